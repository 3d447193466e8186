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

from explorer.latency import cuda, environment
from explorer.latency.base import (
    CLOCK_MOST_S,
    CLOCK_STEP_S,
    ISOLATED_RUNS,
    MAX_WINDOWS,
    STABLE_CV,
    STABLE_SPREAD,
    STABLE_WINDOWS,
    WARM_UP_RUNS,
    WARM_UP_S,
    WINDOW_RUNS,
    WINDOW_S,
    Samples,
    isolated_ms,
    sample,
    timed_by_host,
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

    def timed(self, at_least_s: float, at_least_runs: int) -> list[float]:
        return timed_by_host(self.run, at_least_s, at_least_runs, self.clock)

    def sample(self, is_steady: Callable[[], bool] = lambda: True) -> Samples:
        return sample(self.timed, is_steady=is_steady, clock=self.clock)


#: So slow that every window holds exactly WINDOW_RUNS runs and the warm-up WARM_UP_RUNS.
SLOW_MS = 1e3 * max(WARM_UP_S / WARM_UP_RUNS, WINDOW_S / WINDOW_RUNS) + 1


def window_of(run: int) -> int:
    """The window (0-based) that a slow device's run falls in; negative in the warm-up."""
    return (run - WARM_UP_RUNS) // WINDOW_RUNS


def test_steady_device_is_stable_after_three_windows() -> None:
    device = FakeDevice(lambda run: SLOW_MS)
    samples = device.sample()
    assert samples.is_stable
    assert samples.window_medians_ms == pytest.approx([SLOW_MS] * STABLE_WINDOWS)
    assert samples.num_samples == STABLE_WINDOWS * WINDOW_RUNS
    assert device.num_runs == WARM_UP_RUNS + STABLE_WINDOWS * WINDOW_RUNS
    figures = (samples.latency_ms, samples.p90_ms, samples.p95_ms, samples.p99_ms, samples.min_ms, samples.mean_ms)
    assert figures == pytest.approx((SLOW_MS,) * 6)
    assert samples.cv == pytest.approx(0, abs=1e-9)


def test_fast_device_is_run_for_the_whole_window() -> None:
    device = FakeDevice(lambda run: 1.0)
    samples = device.sample()
    assert samples.num_samples == pytest.approx(STABLE_WINDOWS * WINDOW_S * 1e3, abs=STABLE_WINDOWS)
    assert device.num_runs - samples.num_samples == pytest.approx(WARM_UP_S * 1e3, abs=1)


def test_warm_up_is_not_in_the_samples() -> None:
    device = FakeDevice(lambda run: SLOW_MS if run >= WARM_UP_RUNS else 100 * SLOW_MS)
    samples = device.sample()
    assert samples.is_stable
    assert samples.p99_ms == pytest.approx(SLOW_MS)
    assert max(samples.window_medians_ms) == pytest.approx(SLOW_MS)


def test_warm_up_goes_on_until_the_clock_is_steady() -> None:
    device, looks = FakeDevice(lambda run: 1.0), iter([False] * 5 + [True])
    samples = device.sample(lambda: next(looks))
    assert next(looks, None) is None, "it is not asked again once it is steady"
    num_warm_up = device.num_runs - samples.num_samples
    assert num_warm_up == pytest.approx((WARM_UP_S + 5 * CLOCK_STEP_S) * 1e3, abs=6)


def test_warm_up_does_not_wait_for_ever_for_the_clock() -> None:
    device = FakeDevice(lambda run: 1.0)
    samples = device.sample(lambda: False)
    warm_up_s = (device.num_runs - samples.num_samples) * 1e-3
    assert CLOCK_MOST_S - 0.01 <= warm_up_s <= CLOCK_MOST_S + CLOCK_STEP_S + 0.01
    assert samples.is_stable, "that the clock moves is the watch's to tell"


def test_device_that_never_settles_is_flagged_after_the_last_window() -> None:
    device = FakeDevice(lambda run: SLOW_MS * (1 + 2 * STABLE_SPREAD * (window_of(run) % 2)))
    samples = device.sample()
    assert not samples.is_stable
    assert len(samples.window_medians_ms) == MAX_WINDOWS
    assert device.num_runs == WARM_UP_RUNS + MAX_WINDOWS * WINDOW_RUNS


def test_device_that_settles_is_measured_by_its_last_three_windows() -> None:
    device = FakeDevice(lambda run: SLOW_MS * (3 if window_of(run) < 4 and window_of(run) % 2 else 1))
    samples = device.sample()
    assert samples.is_stable
    assert samples.window_medians_ms == pytest.approx([SLOW_MS * factor for factor in (1, 3, 1, 3, 1, 1, 1)])
    assert samples.num_samples == STABLE_WINDOWS * WINDOW_RUNS
    assert samples.latency_ms == pytest.approx(SLOW_MS)


def test_device_that_settles_in_the_last_window_is_stable() -> None:
    first_steady = MAX_WINDOWS - STABLE_WINDOWS
    device = FakeDevice(lambda run: SLOW_MS * (1 if window_of(run) >= first_steady else 2 - window_of(run) % 2))
    samples = device.sample()
    assert samples.is_stable
    assert len(samples.window_medians_ms) == MAX_WINDOWS


@pytest.mark.parametrize(("share", "is_stable"), [(0.9, True), (1.1, False)])
def test_windows_agree_within_the_stable_spread_only(share: float, is_stable: bool) -> None:
    device = FakeDevice(lambda run: SLOW_MS * (1 + share * STABLE_SPREAD * (window_of(run) % 2)))
    assert device.sample().is_stable is is_stable


@pytest.mark.parametrize(("share", "is_stable"), [(0.9, True), (1.1, False)])
def test_windows_of_equal_medians_are_stable_only_where_their_samples_vary_little(
    share: float, is_stable: bool
) -> None:
    device = FakeDevice(lambda run: 2 * SLOW_MS * (1 + share * STABLE_CV * (-1) ** run))
    samples = device.sample()
    assert samples.window_medians_ms == pytest.approx([2 * SLOW_MS] * len(samples.window_medians_ms))
    assert samples.cv == pytest.approx(share * STABLE_CV, rel=0.01)
    assert samples.is_stable is is_stable


def test_figures_are_those_of_the_known_samples() -> None:
    known = [SLOW_MS * factor for slowest in (1.03, 1.04, 1.05) for factor in (1.0, 1.01, 1.02, slowest)]
    assert len(known) == STABLE_WINDOWS * WINDOW_RUNS
    device = FakeDevice(lambda run: known[run - WARM_UP_RUNS] if run >= WARM_UP_RUNS else SLOW_MS)
    samples = device.sample()
    assert samples.is_stable
    assert samples.latency_ms == pytest.approx(SLOW_MS * 1.015)
    assert samples.min_ms == pytest.approx(SLOW_MS)
    assert samples.p90_ms == pytest.approx(SLOW_MS * 1.039)
    assert samples.p95_ms == pytest.approx(SLOW_MS * 1.0445)
    assert samples.p99_ms == pytest.approx(SLOW_MS * 1.0489)
    assert samples.mean_ms == pytest.approx(np.mean(known))
    assert samples.cv == pytest.approx(np.std(known) / np.mean(known))
    assert samples.window_medians_ms == pytest.approx([SLOW_MS * 1.015] * STABLE_WINDOWS)


def test_error_of_the_network_ends_the_measurement() -> None:
    def timed(at_least_s: float, at_least_runs: int) -> list[float]:
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        sample(timed, clock=lambda: 0.0)


@pytest.mark.parametrize(
    ("at_least_s", "at_least_runs", "num_runs"), [(0.0, 7, 7), (1.0, 3, 4), (1.0, 0, 4), (0.0, 0, 0), (0.5, 2, 2)]
)
def test_host_times_until_both_limits_are_met(at_least_s: float, at_least_runs: int, num_runs: int) -> None:
    device = FakeDevice(lambda run: 250.0 + run)
    times_ms = device.timed(at_least_s, at_least_runs)
    assert times_ms == pytest.approx([250.0 + run for run in range(num_runs)])


def test_isolated_latency_is_the_median_of_single_runs() -> None:
    device = FakeDevice(lambda run: 2.0 if run % 4 else 100.0)
    assert isolated_ms(device.run, device.clock) == pytest.approx(2.0)
    assert device.num_runs == ISOLATED_RUNS


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


@pytest.mark.parametrize(("uuid", "name"), [("GPU-0a1b", "swinexplore-GPU-0a1b.lock"), ("", "swinexplore-cuda.lock")])
def test_lock_of_a_gpu_is_named_by_its_uuid_where_torch_sees_one(
    uuid: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(cuda, "gpu_uuid", lambda: uuid)
    with environment.exclusive("cuda"):
        assert [path.name for path in tmp_path.iterdir()] == [name]


# -- the host ---------------------------------------------------------------------------------------------------------


def test_version_of_a_package_that_is_not_installed_is_empty() -> None:
    assert environment.version_of("no-such-package-here") == ""


def test_host_is_described_with_processor_threads_and_installed_versions() -> None:
    host = environment.describe_host()
    assert host["cpu"]
    assert 1 <= host["cpu_threads"] <= (os.cpu_count() or 1)
    assert all(host["versions"].values())
    assert {"torch", "onnxruntime", "numpy"} <= host["versions"].keys()
