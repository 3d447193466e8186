"""Architectures measured by ONNX Runtime in a real worker: what stays loaded, what fails alone, what is held meanwhile."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from explorer import latency
from explorer.arch import Arch, parse_name
from explorer.errors import BackendMissing, BuildError, MeasureError, MismatchError, ParityError, TrialError
from explorer.latency import base, measurement, measurer
from explorer.latency.conditions import Conditions
from explorer.latency.measurer import Measurer, Settings, _Call, deployed_for
from explorer.latency.worker import Worker
from explorer.records import PASSING, Latency, Target

BASE = parse_name("Swin-E16x1.1.1.1-W2.2.2.1-R16-P2-N10")
ARCH = parse_name("Swin-E16x1.2.1.1-W2.2.2.1-R16-P2-N10")
OTHER = parse_name("Swin-E16x2.1.1.1-W2.2.2.1-R16-P2-N10")
Tell = Callable[[str], None]


class Verdict:
    """A watch that finds this."""

    def __init__(self, invalid: str) -> None:
        self.invalid = invalid

    def start(self) -> None: ...

    def stop(self) -> Conditions:
        return Conditions({}, self.invalid, ())

    def clock_mhz(self) -> float | None:
        return None


# -- what the worker does beside measuring -----------------------------------------------------------------------------


def hurry(tell: Tell) -> int:
    """Makes this process forget what it has loaded, and measure once, briefly and undisturbed; gives its pid."""
    for bench in measurer._bench:
        bench.close()
    measurer._bench.clear()
    base.WARM_UP_S, base.CLOCK_MOST_S, base.WINDOW_S, base.MAX_WINDOWS = 0.0, 0.0, 0.0, 3  # type: ignore[misc]
    measurement.PAUSE_S, measurement.MAX_ATTEMPTS, measurement.MAX_DRIFT_ATTEMPTS = 0.0, 1, 1  # type: ignore[misc]
    measurement.watch_for = lambda *arguments: Verdict("")
    return os.getpid()


def disturb(invalid: str, tell: Tell) -> None:
    """Every measurement from now on is invalid."""
    measurement.watch_for = lambda *arguments: Verdict(invalid)


def pid_of(tell: Tell) -> int:
    return os.getpid()


# -- helpers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes of this machine neither wait for these tests nor make them wait."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    with Worker() as started:
        yield started


@pytest.fixture
def worker(shared: Worker) -> Worker:
    """A worker in a hurry, with nothing loaded; one that replaces it is not in a hurry."""
    shared.call(hurry)
    return shared


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def opened(worker: Worker, events: list[str]) -> Callable[..., Measurer]:
    """Measurers on the worker whose events are kept."""

    def open_measurer(target: Target | None = None, **options: Any) -> Measurer:
        options = {"on_event": events.append, "worker": worker, **options}
        return Measurer(target or target_for(), **options)

    return open_measurer


def target_for(batch: int = 1, **options: Any) -> Target:
    return latency.resolve("onnxruntime", device="cpu", batch=batch, image_size=16, **options)[0]


LOADING = f"loading the reference {BASE.name}"

# -- the reference ----------------------------------------------------------------------------------------------------


def test_reference_is_loaded_once_and_timed_beside_every_architecture(
    opened: Callable[..., Measurer], events: list[str], worker: Worker
) -> None:
    measuring = opened(reference=BASE)
    before = worker.pid
    first, second = measuring.measure(ARCH), measuring.measure(OTHER)
    for arch, measured in ((ARCH, first), (OTHER, second)):
        assert (measured.arch_id, measured.target_id) == (arch.id, measuring.settings.target.id)
        assert measured.reference_id == BASE.id
        assert measured.reference_ms is not None
        assert measured.ratio == measured.latency_ms / measured.reference_ms
        assert measured.prepare_s > 0
    assert first.reference_drift is None, "the first is what the others are counted from"
    assert measuring.baseline_ms == first.reference_ms
    assert second.reference_ms is not None
    assert first.reference_ms is not None
    assert second.reference_drift == pytest.approx(second.reference_ms / first.reference_ms - 1)
    one = ["exporting", "loading", "timing"]
    assert events == [LOADING, *one, *one]
    assert worker.pid == before


def test_base_that_is_measured_first_stays_loaded_as_the_reference(
    opened: Callable[..., Measurer], events: list[str]
) -> None:
    measuring = opened(reference=BASE)
    own = measuring.measure(BASE)
    assert (own.reference_id, own.reference_ms, own.reference_drift) == (BASE.id, own.latency_ms, None)
    assert own.ratio == 1.0
    beside = measuring.measure(ARCH)
    assert LOADING not in events
    assert beside.reference_ms is not None
    assert measuring.baseline_ms == own.latency_ms
    assert beside.reference_drift == pytest.approx(beside.reference_ms / own.latency_ms - 1)


def test_drift_is_counted_from_the_latency_that_is_stored(opened: Callable[..., Measurer]) -> None:
    measuring = opened(reference=BASE, baseline_ms=1000.0)
    for arch in (ARCH, BASE, OTHER):
        measured = measuring.measure(arch)
        assert measured.reference_ms is not None
        assert measured.reference_drift == pytest.approx(measured.reference_ms / 1000.0 - 1)
        assert measured.reference_drift < -0.5
    assert not measured.is_stable
    assert any("from the base model's latency" in remark for remark in measured.remarks)


def test_without_a_reference_nothing_is_loaded_beside(opened: Callable[..., Measurer], events: list[str]) -> None:
    measured = opened().measure(ARCH)
    assert (measured.reference_id, measured.reference_ms, measured.ratio) == ("", None, None)
    assert events == ["exporting", "loading", "timing"]


def test_engines_of_one_network_are_built_again_where_that_is_asked_for(
    opened: Callable[..., Measurer], events: list[str]
) -> None:
    measured = opened(rebuilds=3).measure(ARCH)
    assert len(measured.rebuild_medians_ms) == 2
    assert events == ["exporting", "loading", "timing", "building engine 2/3", "building engine 3/3"]


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGKILL, "out_of_memory"), (signal.SIGSEGV, "crash"), (signal.SIGABRT, "crash")]
)
def test_architecture_that_breaks_the_worker_fails_alone(
    number: signal.Signals, kind: str, opened: Callable[..., Measurer], events: list[str], worker: Worker
) -> None:
    measuring = opened(reference=BASE)
    measuring.measure(ARCH)
    before = worker.pid

    def break_it(text: str) -> None:
        if text == "timing":
            assert worker.pid is not None
            os.kill(worker.pid, number)

    measuring.on_event = break_it
    with pytest.raises(MeasureError) as caught:
        measuring.measure(OTHER)
    assert caught.value.kind == kind
    measuring.on_event = events.append
    events.clear()
    worker.call(hurry)
    measured = measuring.measure(OTHER)
    assert measured.arch_id == OTHER.id
    assert measured.reference_id == BASE.id
    assert events[0] == LOADING
    assert worker.pid not in (None, before)


def test_architecture_that_needs_more_memory_than_there_is_fails_alone(
    opened: Callable[..., Measurer], worker: Worker
) -> None:
    before = worker.pid
    with pytest.raises(TrialError, match="allocate memory") as caught:
        opened(target_for(batch=2**40)).measure(ARCH)
    assert caught.value.kind == "out_of_memory"
    worker.call(hurry)
    assert isinstance(opened().measure(ARCH), Latency)
    assert worker.pid not in (None, before)


def test_architecture_past_the_deadline_fails_with_its_worker(opened: Callable[..., Measurer], worker: Worker) -> None:
    def hang(text: str) -> None:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)

    with pytest.raises(MeasureError, match="not done after 2 s") as caught:
        opened(deadline_s=2.0, on_event=hang).measure(ARCH)
    assert caught.value.kind == "timeout"
    worker.call(hurry)
    assert isinstance(opened().measure(ARCH), Latency)


def test_drift_is_not_counted_from_a_measurement_of_the_base_that_is_invalid(
    opened: Callable[..., Measurer], worker: Worker
) -> None:
    measuring = opened(reference=BASE)
    worker.call(disturb, "other processes kept 1.9 CPUs busy")
    assert measuring.measure(BASE).invalid
    assert measuring.measure(ARCH).reference_drift is None
    assert measuring.baseline_ms is None
    worker.call(disturb, "")
    first, second = measuring.measure(ARCH), measuring.measure(ARCH)
    assert (first.invalid, first.reference_drift) == ("", None)
    assert measuring.baseline_ms == first.reference_ms, "the first valid one is what the others are counted from"
    assert second.reference_drift is not None


# -- the reference is loaded in a call of its own ---------------------------------------------------------------------


class Script:
    """A worker that answers as it is told: `faults` by what is called and for which architecture, once each.

    As the real one it is another process after an error. `calls` holds function, architecture and what was told of the call.
    """

    def __init__(self, *latencies: Latency) -> None:
        self.latencies = list(latencies)
        self.faults: dict[tuple[str, str], BaseException] = {}
        self.calls: list[tuple[str, Arch, _Call]] = []
        self.pid: int | None = None
        self.num_started = 0

    def call(
        self, function: Callable[..., Any], settings: Settings, arch: Arch, call: _Call, **options: Any
    ) -> Latency | None:
        if self.pid is None:
            self.num_started += 1
            self.pid = 1000 + self.num_started
        self.calls.append((function.__name__, arch, call))
        fault = self.faults.pop((function.__name__, arch.id), None)
        if fault is not None:
            self.pid = None
            raise fault
        if function.__name__ == "_load":
            return None
        return replace(self.latencies.pop(0) if self.latencies else SEEN, arch_id=arch.id)

    def asked(self) -> list[tuple[str, Arch]]:
        return [call[:2] for call in self.calls]


SEEN = Latency(
    *("", "t1-some", 10.0, 10.0, 10.0, 0.0, 3, (10.0,), True, 0.0, 0.0),
    remarks=("power cap reached",),
    reference_id=BASE.id,
    reference_ms=5.0,
)
ALONE = replace(SEEN, reference_id="", reference_ms=None)


def scripted(script: Script, **options: Any) -> Measurer:
    target = Target("onnxruntime", "1.30", "fp32", 1, 16, "cpu", "Some CPU", "", 2, 1)
    return Measurer(target, reference=BASE, worker=script, **options)  # type: ignore[arg-type]


def test_reference_is_loaded_before_the_first_architecture_and_by_every_new_worker() -> None:
    script = Script()
    measuring = scripted(script)
    measuring.measure(ARCH)
    measuring.measure(OTHER)
    script.faults["_measure", ARCH.id] = MeasureError("killed", "out_of_memory")
    with pytest.raises(MeasureError, match="killed"):
        measuring.measure(ARCH)
    measuring.measure(OTHER)
    once, twice = [("_load", BASE), ("_measure", ARCH)], [("_load", BASE), ("_measure", OTHER)]
    assert script.asked() == [*once, ("_measure", OTHER), ("_measure", ARCH), *twice]
    assert [call.has_reference for _, _, call in script.calls] == [False, True, True, True, False, True]


def test_reference_that_is_measured_itself_is_not_loaded_beside() -> None:
    script = Script()
    measuring = scripted(script)
    for arch in (BASE, ARCH, BASE):
        measuring.measure(arch)
    assert script.asked() == [("_measure", arch) for arch in (BASE, ARCH, BASE)]


def test_baseline_is_the_first_valid_latency_and_travels_with_every_call() -> None:
    seen = [replace(SEEN, reference_ms=ms, invalid=invalid) for ms, invalid in ((4.0, "busy"), (5.0, ""), (6.0, ""))]
    script = Script(ALONE, *seen)
    measuring = scripted(script)
    for expected in (None, None, 5.0, 5.0):
        measuring.measure(ARCH)
        assert measuring.baseline_ms == expected
    assert [call.baseline_ms for _, _, call in script.calls] == [None, None, None, None, 5.0]


def test_baseline_that_is_stored_stays() -> None:
    script = Script()
    measuring = scripted(script, baseline_ms=7.0)
    measuring.measure(BASE)
    measuring.measure(ARCH)
    assert measuring.baseline_ms == 7.0
    assert {call.baseline_ms for _, _, call in script.calls} == {7.0}


@pytest.mark.parametrize(
    "fault",
    [BuildError("does not load"), MismatchError("is not the model"), *(MeasureError(kind, kind) for kind in PASSING)],
    ids=lambda fault: fault.kind,
)
def test_reference_that_never_could_be_loaded_is_a_remark_and_no_fault_of_the_architectures(fault: TrialError) -> None:
    script = Script(ALONE, ALONE)
    script.faults["_load", BASE.id] = fault
    measuring = scripted(script)
    for arch in (ARCH, OTHER):
        measured = measuring.measure(arch)
        assert measured.arch_id == arch.id
        assert measured.remarks == ("power cap reached", f"no reference beside it: {fault}")
    assert script.asked() == [("_load", BASE), ("_measure", ARCH), ("_measure", OTHER)], "it is not tried every time"
    assert not any(call.has_reference for _, _, call in script.calls)


def test_reference_that_can_be_measured_after_all_is_one_again() -> None:
    script = Script()
    script.faults["_load", BASE.id] = BuildError("does not load")
    measuring = scripted(script)
    measuring.measure(ARCH)
    for arch in (BASE, OTHER):
        assert measuring.measure(arch).remarks == ("power cap reached",)
    assert script.calls[-1][2].has_reference


@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("first", [ARCH, BASE], ids=["loaded before", "measured before"])
def test_reference_that_cannot_be_loaded_any_more_shows_a_device_at_fault(first: Arch, kind: str) -> None:
    script = Script()
    measuring = scripted(script)
    measuring.measure(first)
    script.faults["_measure", OTHER.id] = MeasureError("illegal memory access", "crash")
    with pytest.raises(MeasureError):
        measuring.measure(OTHER)
    script.faults["_load", BASE.id] = MeasureError("no kernel runs", kind)
    with pytest.raises(BackendMissing) as caught:
        measuring.measure(OTHER)
    for words in ("Some CPU", BASE.name, "(no kernel runs)", "everything finished is kept"):
        assert words in str(caught.value)
    assert measuring.measure(OTHER).remarks == ("power cap reached",), "it is tried again by whoever goes on"


def test_reference_that_fails_for_good_though_it_worked_is_a_remark() -> None:
    script = Script()
    measuring = scripted(script)
    measuring.measure(ARCH)
    script.pid = None
    script.faults["_load", BASE.id] = MismatchError("is not the model")
    assert measuring.measure(OTHER).remarks[-1] == "no reference beside it: is not the model"


def test_reference_that_shows_a_bug_of_ours_is_no_remark() -> None:
    script = Script()
    script.faults["_load", BASE.id] = ParityError("the graph is not the model")
    with pytest.raises(ParityError):
        scripted(script).measure(ARCH)
    assert script.asked() == [("_load", BASE)]


class Opened:
    """A runner of which it is only known whether it was closed."""

    num_closed = 0

    def close(self) -> None:
        self.num_closed += 1


def test_reference_is_compared_with_the_model_and_closed_where_it_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, compared = Opened(), []

    def refuse(*arguments: Any) -> None:
        compared.append(arguments)
        raise MismatchError("is not the model")

    monkeypatch.setattr(measurer, "deployed_for", lambda arch, target, **options: arch)
    monkeypatch.setattr(measurement, "open_runner", lambda *arguments, **options: runner)
    monkeypatch.setattr(measurement, "require_same_output", refuse)
    settings = Settings(target_for(), reference=BASE, seed=3)
    bench = measurer._Bench(settings)
    with pytest.raises(MismatchError):
        bench.load_reference(BASE, _Call(None, math.inf), lambda text: None)
    assert compared == [(runner, BASE, settings.target, 3)]
    assert (bench.reference, runner.num_closed) == (None, 1)
    monkeypatch.setattr(measurement, "require_same_output", lambda *arguments: None)
    bench.load_reference(BASE, _Call(None, math.inf), lambda text: None)
    assert bench.reference is not None
    bench.close()
    assert runner.num_closed == 2


def test_reference_that_another_measurer_took_the_place_of_is_loaded_again(
    opened: Callable[..., Measurer], events: list[str]
) -> None:
    measuring, other = opened(reference=BASE), opened(target_for(batch=2))
    first = measuring.measure(ARCH)
    events.clear()
    other.measure(ARCH)
    assert LOADING not in events
    events.clear()
    again = measuring.measure(ARCH)
    assert events[0] == LOADING
    assert again.reference_id == BASE.id
    assert not any("no reference" in remark for remark in again.remarks)
    assert again.reference_ms is not None
    assert first.reference_ms is not None
    assert again.reference_drift == pytest.approx(again.reference_ms / first.reference_ms - 1), "though it was replaced"


# -- workers and measurers --------------------------------------------------------------------------------------------


def test_two_targets_are_measured_by_one_worker(opened: Callable[..., Measurer], worker: Worker) -> None:
    before = worker.pid
    measuring = [opened(target_for(), reference=BASE), opened(target_for(precision="fp16"), reference=BASE)]
    for _ in range(2):
        for one in measuring:
            measured = one.measure(ARCH)
            assert measured.target_id == one.settings.target.id
            assert measured.reference_id == BASE.id
    for one in measuring:
        one.close()
    assert worker.pid == before, "a worker that others use too is not ended"
    assert worker.call(pid_of) == before


def test_measurer_ends_its_own_worker() -> None:
    with Measurer(target_for()) as measuring:
        own = measuring._worker
        before = own.call(hurry)
        assert measuring.measure(ARCH).arch_id == ARCH.id
    assert own.pid is None
    assert not Path(f"/proc/{before}").exists()


def test_measurer_starts_nothing_before_it_measures() -> None:
    with Measurer(target_for(), reference=BASE) as measuring:
        assert measuring._worker.pid is None


def test_onnxruntime_needs_no_folder_for_engines(opened: Callable[..., Measurer], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(opened(cache_root=tmp_path / "file").measure(ARCH), Latency)


def test_folder_for_engines_that_is_open_to_others_is_told(opened: Callable[..., Measurer], tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines").chmod(0o755)
    target = Target("tensorrt", "11.4", "fp32", 1, 16, "cpu", "Some GPU", "555.1", 0, 0)
    with pytest.raises(BackendMissing, match="is open to others"):
        opened(target, cache_root=tmp_path).measure(ARCH)


# -- the device is held -----------------------------------------------------------------------------------------------

WAITER = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from explorer.latency.environment import exclusive
with exclusive("cpu"):
    print("held", flush=True)
"""


def test_device_is_held_while_an_architecture_is_measured(opened: Callable[..., Measurer], tmp_path: Path) -> None:
    waiters: list[subprocess.Popen[str]] = []
    said: list[str] = []

    def start_waiter(text: str) -> None:
        if text != "timing":
            return
        waiter = subprocess.Popen(
            [sys.executable, "-c", WAITER],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        waiters.append(waiter)
        assert waiter.stdout is not None
        said.append(waiter.stdout.readline().strip())

    opened(on_event=start_waiter).measure(ARCH)
    (waiter,) = waiters
    assert waiter.stdout is not None
    said.append(waiter.stdout.readline().strip())
    waiter.stdout.close()
    assert waiter.wait() == 0
    assert said == ["waiting: another swinexplore process measures or trains on this machine's cpu", "held"]


def test_device_is_free_after_an_architecture_that_failed(opened: Callable[..., Measurer], worker: Worker) -> None:
    def break_it(text: str) -> None:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(MeasureError):
        opened(on_event=break_it).measure(ARCH)
    with latency.environment.exclusive("cpu"):
        pass


# -- what is deployed -------------------------------------------------------------------------------------------------


def test_deployed_is_the_full_size_network_as_the_backend_needs_it() -> None:
    fixed = deployed_for(ARCH, target_for(batch=2))
    assert (fixed.arch, fixed.batch, fixed.precision) == (ARCH, 2, "fp32")
    assert fixed.onnx_bytes
    dynamic = deployed_for(ARCH, target_for(batch=2, dynamic_to=8))
    assert dynamic.batch is None
    eager = deployed_for(ARCH, latency.resolve("torch", device="cpu", precision="bf16", image_size=16)[0])
    assert (eager.onnx_bytes, eager.batch, eager.precision) == (None, 1, "bf16")
    assert not eager.module.training


def test_weights_of_what_is_deployed_come_from_the_seed() -> None:
    first, again, other = (deployed_for(ARCH, target_for(), seed=seed).onnx_bytes for seed in (1, 1, 2))
    assert first == again
    assert first != other
