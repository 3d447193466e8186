"""The one interface of all latency backends, and the timing loop that they share.

A backend turns a `Deployed` network into a `Runner`; how often it runs, what is warm-up and when a median is trusted is
decided here, the same for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

#: Warm-up lasts this long and this many runs, whichever ends later (200 ms is trtexec's default).
WARM_UP_S: Final = 0.2
WARM_UP_RUNS: Final = 3
#: A window of samples lasts this long and this many runs, whichever ends later.
WINDOW_S: Final = 0.15
WINDOW_RUNS: Final = 4
#: Stop when the medians of the last three windows lie within this share of each other.
STABLE_SPREAD: Final = 0.02
STABLE_WINDOWS: Final = 3
MAX_WINDOWS: Final = 12


class Runner(Protocol):
    """A network loaded on its device with its input in place."""

    def run(self) -> None:
        """One inference; returns when the device has finished it. Raises MeasureError."""

    def logits(self) -> np.ndarray:
        """The output of one inference on the runner's input, (batch, classes) in fp32."""

    def close(self) -> None:
        """Frees the device's memory."""


@dataclass(frozen=True)
class Samples:
    """What the timing loop saw, in milliseconds per run. `window_medians_ms` in order; see `records.Latency`."""

    latency_ms: float
    p95_ms: float
    min_ms: float
    cv: float
    num_samples: int
    window_medians_ms: tuple[float, ...]
    is_stable: bool


def sample(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> Samples:
    """Times `run` in windows until three medians in a row agree, or MAX_WINDOWS are full and `is_stable` is False.

    All figures but `window_medians_ms` come from the last three windows. `clock` gives seconds.
    """
    _repeat(run, clock, WARM_UP_S, WARM_UP_RUNS)
    windows: list[list[float]] = []
    while len(windows) < MAX_WINDOWS and not _agree(windows):
        windows.append(_repeat(run, clock, WINDOW_S, WINDOW_RUNS))
    samples_ms = np.concatenate(windows[-STABLE_WINDOWS:])
    return Samples(
        latency_ms=float(np.median(samples_ms)),
        p95_ms=float(np.percentile(samples_ms, 95)),
        min_ms=float(samples_ms.min()),
        cv=float(samples_ms.std() / samples_ms.mean()),
        num_samples=len(samples_ms),
        window_medians_ms=tuple(float(np.median(window)) for window in windows),
        is_stable=_agree(windows),
    )


def _repeat(run: Callable[[], None], clock: Callable[[], float], at_least_s: float, at_least_runs: int) -> list[float]:
    """Runs until both limits are met; milliseconds of every run."""
    times_ms: list[float] = []
    start = clock()
    while len(times_ms) < at_least_runs or clock() - start < at_least_s:
        before = clock()
        run()
        times_ms.append((clock() - before) * 1e3)
    return times_ms


def _agree(windows: list[list[float]]) -> bool:
    if len(windows) < STABLE_WINDOWS:
        return False
    medians = [float(np.median(window)) for window in windows[-STABLE_WINDOWS:]]
    return max(medians) - min(medians) <= STABLE_SPREAD * min(medians)
