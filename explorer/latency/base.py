"""The one interface of all latency backends, and the timing loop that they share.

A backend turns a `Deployed` network into a `Runner`, which knows how to time itself: by the host's clock on a CPU, by device
events on a GPU (`explorer.latency.cuda`). How often it runs, what is warm-up and when a median is trusted is decided here,
the same for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

#: Warm-up lasts this long and this many runs, whichever ends later (200 ms is trtexec's default) ...
WARM_UP_S: Final = 0.2
WARM_UP_RUNS: Final = 3
#: ... and on until the clock is steady, looked at this often, but no longer than the last.
CLOCK_STEP_S: Final = 0.1
CLOCK_MOST_S: Final = 3.0
#: A window of samples lasts this long and this many runs, whichever ends later.
WINDOW_S: Final = 0.15
WINDOW_RUNS: Final = 4
#: Stop when the medians of the last three windows lie within this share of each other and all samples in them vary by no
#: more than trtexec calls stable (standard deviation over mean).
STABLE_SPREAD: Final = 0.01
STABLE_CV: Final = 0.025
STABLE_WINDOWS: Final = 3
MAX_WINDOWS: Final = 12
#: Calls whose host time is the isolated latency.
ISOLATED_RUNS: Final = 20

#: Runs until so many seconds have passed and so many runs are done; gives milliseconds of every run.
Timed = Callable[[float, int], list[float]]


@dataclass(frozen=True)
class Facts:
    """What a backend tells of a network that it has loaded; None where it does not.

    `engine_bytes`: size of what it built. `build_s`: seconds that took, whenever it was. `peak_memory_bytes`: of the device.
    `record`: JSON-ready, kept with the latency: options, whether a CUDA graph is replayed, which clock timed it.
    """

    engine_bytes: int | None = None
    build_s: float | None = None
    peak_memory_bytes: int | None = None
    record: dict[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """A network loaded on its device with its input in place."""

    def run(self) -> None:
        """One inference; returns when the device has finished it. Raises MeasureError."""

    def timed(self, at_least_s: float, at_least_runs: int) -> list[float]:
        """Inferences back to back as they would be deployed, until both limits are met; milliseconds of each."""

    def timed_without_graph(self, at_least_s: float, at_least_runs: int) -> list[float] | None:
        """The same without a CUDA graph; None where none is replayed."""

    def logits(self) -> np.ndarray:
        """The output of one inference on the runner's input, (batch, classes) in fp32."""

    def facts(self) -> Facts:
        """Sizes, options and the like."""

    def close(self) -> None:
        """Frees the device's memory."""


class HostTimed:
    """What a runner on a CPU inherits: the host's clock around every run."""

    def run(self) -> None:
        """See `Runner.run`."""
        raise NotImplementedError

    def timed(self, at_least_s: float, at_least_runs: int) -> list[float]:
        """See `Runner.timed`."""
        return timed_by_host(self.run, at_least_s, at_least_runs)

    def timed_without_graph(self, at_least_s: float, at_least_runs: int) -> list[float] | None:
        """There is no graph on a CPU."""
        return None


@dataclass(frozen=True)
class Samples:
    """What the timing loop saw, in milliseconds per run. `window_medians_ms` in order; see `records.Latency`."""

    latency_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    cv: float
    num_samples: int
    window_medians_ms: tuple[float, ...]
    is_stable: bool


def sample(
    timed: Timed, *, is_steady: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.perf_counter
) -> Samples:
    """Times in windows until three medians in a row agree, or MAX_WINDOWS are full and `is_stable` is False.

    All figures but `window_medians_ms` come from the last three windows. `is_steady`: whether the device's clock has settled.
    """
    start = clock()
    timed(WARM_UP_S, WARM_UP_RUNS)
    while not is_steady() and clock() - start < CLOCK_MOST_S:
        timed(CLOCK_STEP_S, 1)
    windows: list[list[float]] = []
    while len(windows) < MAX_WINDOWS and not _agree(windows):
        windows.append(timed(WINDOW_S, WINDOW_RUNS))
    samples_ms = np.concatenate(windows[-STABLE_WINDOWS:])
    p90_ms, p95_ms, p99_ms = (float(value) for value in np.percentile(samples_ms, (90, 95, 99)))
    return Samples(
        latency_ms=float(np.median(samples_ms)),
        p90_ms=p90_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        min_ms=float(samples_ms.min()),
        mean_ms=float(samples_ms.mean()),
        cv=_cv(samples_ms),
        num_samples=len(samples_ms),
        window_medians_ms=tuple(float(np.median(window)) for window in windows),
        is_stable=_agree(windows),
    )


def isolated_ms(run: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Median host time of single calls, each waited for before the next, in milliseconds."""
    return float(np.median(timed_by_host(run, 0.0, ISOLATED_RUNS, clock)))


def timed_by_host(
    run: Callable[[], None], at_least_s: float, at_least_runs: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Runs until both limits are met; milliseconds of every run by the host's clock."""
    times_ms: list[float] = []
    start = clock()
    while len(times_ms) < at_least_runs or clock() - start < at_least_s:
        before = clock()
        run()
        times_ms.append((clock() - before) * 1e3)
    return times_ms


def _cv(samples_ms: np.ndarray) -> float:
    return float(samples_ms.std() / samples_ms.mean())


def _agree(windows: Sequence[Sequence[float]]) -> bool:
    if len(windows) < STABLE_WINDOWS:
        return False
    last = windows[-STABLE_WINDOWS:]
    medians = [float(np.median(window)) for window in last]
    return max(medians) - min(medians) <= STABLE_SPREAD * min(medians) and _cv(np.concatenate(last)) <= STABLE_CV
