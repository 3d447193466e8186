"""The timing loop under a clock of our own, and the lock that keeps a device to one job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from explorer.latency import environment
from explorer.latency.base import (
    MAX_WINDOWS,
    STABLE_SPREAD,
    STABLE_WINDOWS,
    WARM_UP_RUNS,
    WARM_UP_S,
    WINDOW_RUNS,
    WINDOW_S,
    sample,
)

# -- the timing loop --------------------------------------------------------------------------------------------------


class FakeDevice:
    """A clock that only `run` moves: the n-th run takes `duration_ms(n)`."""

    def __init__(self, duration_ms: Callable[[int], float]) -> None:
        self.now_s, self.num_runs, self.duration_ms = 0.0, 0, duration_ms

    def run(self) -> None:
        self.now_s += self.duration_ms(self.num_runs) / 1e3
        self.num_runs += 1

    def clock(self) -> float:
        return self.now_s


#: So slow that every window holds exactly WINDOW_RUNS runs and the warm-up WARM_UP_RUNS.
SLOW_MS = 1e3 * max(WARM_UP_S / WARM_UP_RUNS, WINDOW_S / WINDOW_RUNS) + 1


def window_of(run: int) -> int:
    """The window (0-based) that a slow device's run falls in; negative in the warm-up."""
    return (run - WARM_UP_RUNS) // WINDOW_RUNS


def test_steady_device_is_stable_after_three_windows() -> None:
    device = FakeDevice(lambda run: SLOW_MS)
    samples = sample(device.run, device.clock)
    assert samples.is_stable
    assert samples.window_medians_ms == pytest.approx([SLOW_MS] * STABLE_WINDOWS)
    assert samples.num_samples == STABLE_WINDOWS * WINDOW_RUNS
    assert device.num_runs == WARM_UP_RUNS + STABLE_WINDOWS * WINDOW_RUNS
    assert (samples.latency_ms, samples.p95_ms, samples.min_ms) == pytest.approx((SLOW_MS,) * 3)
    assert samples.cv == pytest.approx(0, abs=1e-9)


def test_fast_device_is_run_for_the_whole_window() -> None:
    device = FakeDevice(lambda run: 1.0)
    samples = sample(device.run, device.clock)
    assert samples.num_samples == pytest.approx(STABLE_WINDOWS * WINDOW_S * 1e3, abs=STABLE_WINDOWS)
    assert device.num_runs - samples.num_samples == pytest.approx(WARM_UP_S * 1e3, abs=1)


def test_warm_up_is_not_in_the_samples() -> None:
    device = FakeDevice(lambda run: SLOW_MS if run >= WARM_UP_RUNS else 100 * SLOW_MS)
    samples = sample(device.run, device.clock)
    assert samples.is_stable
    assert samples.p95_ms == pytest.approx(SLOW_MS)
    assert max(samples.window_medians_ms) == pytest.approx(SLOW_MS)


def test_device_that_never_settles_is_flagged_after_the_last_window() -> None:
    device = FakeDevice(lambda run: SLOW_MS * (1 + 2 * STABLE_SPREAD * (window_of(run) % 2)))
    samples = sample(device.run, device.clock)
    assert not samples.is_stable
    assert len(samples.window_medians_ms) == MAX_WINDOWS
    assert device.num_runs == WARM_UP_RUNS + MAX_WINDOWS * WINDOW_RUNS


def test_device_that_settles_is_measured_by_its_last_three_windows() -> None:
    device = FakeDevice(lambda run: SLOW_MS * (3 if window_of(run) < 4 and window_of(run) % 2 else 1))
    samples = sample(device.run, device.clock)
    assert samples.is_stable
    assert samples.window_medians_ms == pytest.approx([SLOW_MS * factor for factor in (1, 3, 1, 3, 1, 1, 1)])
    assert samples.num_samples == STABLE_WINDOWS * WINDOW_RUNS
    assert samples.latency_ms == pytest.approx(SLOW_MS)


def test_device_that_settles_in_the_last_window_is_stable() -> None:
    first_steady = MAX_WINDOWS - STABLE_WINDOWS
    device = FakeDevice(lambda run: SLOW_MS * (1 if window_of(run) >= first_steady else 2 - window_of(run) % 2))
    samples = sample(device.run, device.clock)
    assert samples.is_stable
    assert len(samples.window_medians_ms) == MAX_WINDOWS


@pytest.mark.parametrize(("share", "is_stable"), [(0.9, True), (1.1, False)])
def test_windows_agree_within_the_stable_spread_only(share: float, is_stable: bool) -> None:
    device = FakeDevice(lambda run: SLOW_MS * (1 + share * STABLE_SPREAD * (window_of(run) % 2)))
    assert sample(device.run, device.clock).is_stable is is_stable


def test_figures_are_those_of_the_known_samples() -> None:
    known = [SLOW_MS * factor for slowest in (2.0, 3.0, 4.0) for factor in (1.0, 1.2, 1.4, slowest)]
    assert len(known) == STABLE_WINDOWS * WINDOW_RUNS
    device = FakeDevice(lambda run: known[run - WARM_UP_RUNS] if run >= WARM_UP_RUNS else SLOW_MS)
    samples = sample(device.run, device.clock)
    assert samples.latency_ms == pytest.approx(SLOW_MS * 1.3)
    assert samples.min_ms == pytest.approx(SLOW_MS)
    assert samples.p95_ms == pytest.approx(SLOW_MS * 3.45)
    assert samples.cv == pytest.approx(np.std(known) / np.mean(known))
    assert samples.window_medians_ms == pytest.approx([SLOW_MS * 1.3] * STABLE_WINDOWS)


def test_error_of_the_network_ends_the_measurement() -> None:
    def run() -> None:
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        sample(run, lambda: 0.0)


# -- the lock ---------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from explorer.latency.environment import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
WAITER = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from explorer.latency.environment import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
"""
Started = Callable[[str, str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    """Starts a script with a device as its argument; its locks lie in this test's folder."""
    processes: list[subprocess.Popen[str]] = []

    def start_script(script: str, device: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", script, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        processes.append(process)
        return process

    yield start_script
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("end", ["finishes", "is killed"])
def test_second_process_waits_until_the_holder(end: Literal["finishes", "is killed"], start: Started) -> None:
    holder = start(HOLDER, "cpu")
    assert line_of(holder) == "held"
    waiter = start(WAITER, "cpu")
    assert line_of(waiter) == "waiting: another swinexplore process measures or trains on this machine's cpu"
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(timeout=0.5)
    if end == "is killed":
        holder.kill()
    else:
        assert holder.stdin is not None
        holder.stdin.close()
    assert line_of(waiter) == "held"
    assert waiter.wait(timeout=30) == 0


@pytest.mark.timeout(60)
def test_devices_do_not_exclude_one_another(start: Started) -> None:
    holder = start(HOLDER, "cpu")
    assert line_of(holder) == "held"
    other = start(WAITER, "cuda")
    assert line_of(other) == "held"
    assert holder.poll() is None


@pytest.mark.timeout(60)
def test_device_is_free_again_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Started) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), environment.exclusive("cpu"):
        raise KeyboardInterrupt
    other = start(WAITER, "cpu")
    assert line_of(other) == "held"


# -- the host ---------------------------------------------------------------------------------------------------------


def test_version_of_a_package_that_is_not_installed_is_empty() -> None:
    assert environment.version_of("no-such-package-here") == ""


def test_host_is_described_with_processor_threads_and_installed_versions() -> None:
    host = environment.describe_host()
    assert host["cpu"]
    assert 1 <= host["cpu_threads"] <= (os.cpu_count() or 1)
    assert all(host["versions"].values())
    assert {"torch", "onnxruntime", "numpy"} <= host["versions"].keys()
