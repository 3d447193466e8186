"""How a measurement is repeated, judged and put together, by a device of our own; and one real one in full."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from explorer import latency, model
from explorer.arch import Arch, parse_name
from explorer.errors import BuildError, MeasureError, MismatchError
from explorer.latency import measurement
from explorer.latency.base import ISOLATED_RUNS, Facts
from explorer.latency.conditions import Conditions, CpuWatch
from explorer.latency.measurement import (
    COSINES,
    MAX_ATTEMPTS,
    MAX_DRIFT,
    MAX_DRIFT_ATTEMPTS,
    PAUSE_S,
    Reference,
    expected_logits,
    measure,
    own_pids,
    require_same_output,
)
from explorer.model.deployment import Deployed
from explorer.records import Latency, Precision, Target

SMALL = parse_name("Swin-E16x1.2.1.1-W2.2.2.1-R16-P2-N10")
TARGET = Target("torch", "2.11", "fp32", 4, 16, "cpu", "Some CPU", "", 2, 0)
ON_GPU = Target("torch", "2.11", "fp32", 4, 16, "cuda", "Some GPU", "555.1", 0, 0)
DEPLOYED = Deployed(SMALL, torch.nn.Identity(), 4, "fp32")
LOGITS = np.eye(4, 10, dtype=np.float32)


@dataclass(frozen=True)
class Attempt:
    """What a device shows in one attempt; `spread` is by what share single runs differ from `ms`."""

    ms: float = 10.0
    reference_ms: float = 5.0
    invalid: str = ""
    remarks: tuple[str, ...] = ()
    spread: float = 0.0


@dataclass
class Device:
    """Shows the `attempts` in turn, the last one for ever. Its clock is told at once; `log` holds what was done to it."""

    attempts: Sequence[Attempt] = (Attempt(),)
    log: list[str] = field(default_factory=list)
    num_started: int = 0

    @property
    def now(self) -> Attempt:
        return self.attempts[min(max(self.num_started, 1), len(self.attempts)) - 1]

    # what a Watch does

    def start(self) -> None:
        self.num_started += 1
        self.log.append("watch")

    def stop(self) -> Conditions:
        self.log.append("stop watching")
        return Conditions({"foreign_cpus": 0.1 * self.num_started}, self.now.invalid, self.now.remarks)

    def clock_mhz(self) -> float | None:
        return None


class FakeRunner:
    """Runs on a Device; `is_reference` says which of its latencies is this one's."""

    def __init__(self, device: Device, *, is_reference: bool = False, facts: Facts | None = None) -> None:
        self.device, self.is_reference, self.told = device, is_reference, facts or Facts()
        self.num_closed = self.num_runs = 0
        self.output = LOGITS
        self.without_graph_ms: list[float] | None = None

    def run(self) -> None:
        self.num_runs += 1

    def timed(self, at_least_s: float, at_least_runs: int) -> list[float]:
        now = self.device.now
        self.device.log.append("time the reference" if self.is_reference else "time")
        ms = now.reference_ms if self.is_reference else now.ms
        return [ms * (1 + now.spread * (-1) ** run) for run in range(2 * ((at_least_runs + 1) // 2))]

    def timed_without_graph(self, at_least_s: float, at_least_runs: int) -> list[float] | None:
        return self.without_graph_ms

    def logits(self) -> np.ndarray:
        return self.output

    def facts(self) -> Facts:
        return self.told

    def close(self) -> None:
        self.num_closed += 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Latency]:
    """`run(device, runner, ...)` measures on a fake device, without pauses; further runners are those of rebuilds."""
    pauses: list[float] = []

    def run_on(device: Device, *runners: FakeRunner, target: Target = TARGET, **options: Any) -> Latency:
        left = iter(runners or (FakeRunner(device),))

        def open_runner(deployed: Deployed, target: Target, seed: int = 0, **given: Any) -> FakeRunner:
            device.log.append("open afresh" if given.get("fresh") else "open")
            return next(left)

        def watch_for(kind: str, gpu: object, own_pids: frozenset[int]) -> Device:
            assert kind == target.device_kind
            return device

        monkeypatch.setattr(measurement, "open_runner", open_runner)
        monkeypatch.setattr(measurement, "watch_for", watch_for)
        return measure(DEPLOYED, target, **options)

    monkeypatch.setattr(measurement, "expected_logits", lambda deployed, target, seed: LOGITS)
    monkeypatch.setattr(measurement, "_gpu", lambda target: None)
    monkeypatch.setattr(measurement, "_describe_gpu", lambda gpu: {"name": "Some GPU"})
    monkeypatch.setattr(measurement.time, "sleep", pauses.append)
    run_on.pauses = pauses  # type: ignore[attr-defined]
    return run_on


def num_attempts(measured: Latency) -> int:
    return int(measured.environment["attempts"])


# -- attempts ---------------------------------------------------------------------------------------------------------


def test_valid_measurement_is_made_once(run: Any) -> None:
    device = Device([Attempt(ms=10.0)])
    measured = run(device)
    assert (num_attempts(measured), measured.environment["attempts_ms"]) == (1, [10.0])
    assert (measured.latency_ms, measured.invalid, measured.remarks, measured.is_stable) == (10.0, "", (), True)
    assert device.log[:3] == ["open", "watch", "time"]
    assert device.log.count("watch") == device.log.count("stop watching") == 1
    assert run.pauses == [0.0]


@pytest.mark.parametrize("num_invalid", range(1, MAX_ATTEMPTS))
def test_invalid_measurement_is_repeated_until_it_is_valid(num_invalid: int, run: Any) -> None:
    invalid = [Attempt(ms=20.0, invalid="thermal slowdown of the GPU")] * num_invalid
    measured = run(Device([*invalid, Attempt(ms=10.0)]))
    assert (measured.latency_ms, measured.invalid) == (10.0, "")
    assert measured.environment["attempts_ms"] == [20.0] * num_invalid + [10.0]
    assert measured.environment["foreign_cpus"] == pytest.approx(0.1 * (num_invalid + 1)), "of the attempt that counts"


def test_measurement_that_stays_invalid_is_kept_with_its_reason(run: Any) -> None:
    measured = run(Device([Attempt(invalid="pid 7 computed on the GPU meanwhile")]))
    assert measured.invalid == "pid 7 computed on the GPU meanwhile"
    assert num_attempts(measured) == MAX_ATTEMPTS
    assert measured.latency_ms == 10.0


def test_pauses_between_attempts_grow(run: Any) -> None:
    run(Device([Attempt(invalid="busy")]))
    assert run.pauses == [PAUSE_S * index for index in range(MAX_ATTEMPTS)]


def test_listener_is_told_what_is_done_and_why_again(run: Any) -> None:
    events: list[str] = []
    run(Device([Attempt(invalid="power brake slowdown of the GPU"), Attempt()]), on_event=events.append)
    assert events == ["loading", "timing", "timing again: power brake slowdown of the GPU"]


def test_best_of_the_invalid_attempts_is_kept(run: Any) -> None:
    unstable, stable = Attempt(ms=9.0, invalid="busy", spread=0.1), Attempt(ms=10.0, invalid="busier")
    measured = run(Device([unstable, stable, unstable]))
    assert (measured.latency_ms, measured.invalid, measured.is_stable) == (10.0, "busier", True)


def test_first_of_equal_attempts_is_kept(run: Any) -> None:
    measured = run(Device([Attempt(ms=12.0, invalid="busy"), Attempt(ms=11.0, invalid="busy")]))
    assert measured.latency_ms == 12.0, "the fastest is not picked"


def test_unstable_measurement_is_not_repeated_but_told(run: Any) -> None:
    measured = run(Device([Attempt(spread=0.1), Attempt()]))
    assert num_attempts(measured) == 1
    assert not measured.is_stable
    assert measured.cv == pytest.approx(0.1)


def test_remarks_of_the_watch_are_kept(run: Any) -> None:
    assert run(Device([Attempt(remarks=("power cap reached",))])).remarks == ("power cap reached",)


# -- beside the reference ---------------------------------------------------------------------------------------------


def reference_on(device: Device, baseline_ms: float | None = 5.0) -> Reference:
    return Reference("a1-base", FakeRunner(device, is_reference=True), baseline_ms)


def test_reference_is_timed_right_before_under_the_same_watch(run: Any) -> None:
    device = Device([Attempt(ms=10.0, reference_ms=5.05)])
    measured = run(device, reference=reference_on(device))
    assert (measured.reference_id, measured.reference_ms) == ("a1-base", 5.05)
    assert measured.reference_drift == pytest.approx(0.01)
    assert measured.ratio == pytest.approx(10.0 / 5.05)
    timed = [what for what in device.log if "open" not in what]
    num_timed = timed.index("time") - 1
    assert timed[: num_timed + 1] == ["watch", *["time the reference"] * num_timed]
    assert timed[-1] == "stop watching"


def test_without_a_reference_there_is_neither_ratio_nor_drift(run: Any) -> None:
    measured = run(Device())
    assert (measured.reference_id, measured.reference_ms, measured.reference_drift) == ("", None, None)
    assert measured.ratio is None


def test_without_a_baseline_there_is_no_drift_and_no_attempt_sets_one(run: Any) -> None:
    device = Device([Attempt(reference_ms=7.0, invalid="busy"), Attempt(reference_ms=9.0)])
    reference = reference_on(device, None)
    measured = run(device, reference=reference)
    assert (measured.reference_ms, measured.reference_drift, measured.ratio) == (9.0, None, 10.0 / 9.0)
    assert (num_attempts(measured), measured.is_stable, measured.remarks) == (2, True, ())
    assert reference.baseline_ms is None


@pytest.mark.parametrize("share", [0.9 * MAX_DRIFT, -0.9 * MAX_DRIFT])
def test_reference_near_its_baseline_is_no_reason_to_measure_again(share: float, run: Any) -> None:
    device = Device([Attempt(reference_ms=5.0 * (1 + share))])
    measured = run(device, reference=reference_on(device))
    assert num_attempts(measured) == 1
    assert measured.is_stable
    assert measured.remarks == ()


@pytest.mark.parametrize("share", [1.5 * MAX_DRIFT, -1.5 * MAX_DRIFT])
def test_drifted_measurement_is_repeated_once(share: float, run: Any) -> None:
    events: list[str] = []
    device = Device([Attempt(ms=11.0, reference_ms=5.0 * (1 + share)), Attempt(ms=10.0, reference_ms=5.0)])
    measured = run(device, reference=reference_on(device), on_event=events.append)
    assert measured.environment["attempts_ms"] == [11.0, 10.0]
    assert (measured.latency_ms, measured.reference_drift, measured.is_stable) == (10.0, 0.0, True)
    assert events[-1] == "timing again: the reference has drifted"


def test_measurement_that_stays_drifted_is_kept_and_told(run: Any) -> None:
    device = Device([Attempt(ms=11.0, reference_ms=5.5), Attempt(ms=10.5, reference_ms=5.25)])
    measured = run(device, reference=reference_on(device))
    assert num_attempts(measured) == MAX_DRIFT_ATTEMPTS
    assert (measured.latency_ms, measured.reference_ms) == (10.5, 5.25), "the attempt that drifted less"
    assert not measured.is_stable
    assert measured.invalid == ""
    assert measured.remarks == ("the reference was +5.0% from the base model's latency",)


def test_drifted_attempt_is_better_than_an_invalid_one(run: Any) -> None:
    device = Device([Attempt(ms=9.0, invalid="busy"), Attempt(ms=10.0, reference_ms=5.5)])
    measured = run(device, reference=reference_on(device))
    assert (measured.latency_ms, measured.invalid) == (10.0, "")
    assert measured.reference_drift == pytest.approx(0.1)
    assert num_attempts(measured) == 2


def test_invalid_attempt_after_a_drifted_one_is_repeated_too(run: Any) -> None:
    device = Device([Attempt(ms=9.0, reference_ms=5.5), Attempt(ms=10.0, invalid="busy"), Attempt(ms=11.0)])
    measured = run(device, reference=reference_on(device))
    assert measured.environment["attempts_ms"] == [9.0, 10.0, 11.0]
    assert (measured.latency_ms, measured.invalid, measured.reference_drift) == (11.0, "", 0.0)


def test_reference_is_left_open(run: Any) -> None:
    device = Device()
    reference = reference_on(device)
    run(device, reference=reference)
    assert isinstance(reference.runner, FakeRunner)
    assert reference.runner.num_closed == 0


# -- what is recorded -------------------------------------------------------------------------------------------------


def test_what_the_backend_tells_is_kept(run: Any) -> None:
    facts = Facts(engine_bytes=70, build_s=8.5, peak_memory_bytes=900, record={"level": 3, "timed_by": "host clock"})
    device = Device()
    measured = run(device, FakeRunner(device, facts=facts), prepare_s=2.0)
    assert (measured.engine_bytes, measured.build_s, measured.peak_memory_bytes) == (70, 8.5, 900)
    assert measured.environment["backend"] == {"level": 3, "timed_by": "host clock"}
    assert measured.prepare_s >= 2.0
    assert (measured.arch_id, measured.target_id) == (SMALL.id, TARGET.id)


def test_throughput_is_that_of_the_whole_batch(run: Any) -> None:
    assert run(Device([Attempt(ms=10.0)])).images_per_s == pytest.approx(TARGET.batch * 100)


def test_on_a_cpu_a_call_is_isolated_as_it_is(run: Any) -> None:
    device = Device()
    runner = FakeRunner(device)
    measured = run(device, runner)
    assert measured.isolated_ms == measured.latency_ms
    assert (measured.no_graph_ms, runner.num_runs) == (None, 0)
    assert "gpu" not in measured.environment


def test_on_a_gpu_single_calls_and_those_without_a_graph_are_timed_too(run: Any) -> None:
    device = Device()
    runner = FakeRunner(device, facts=Facts(record={"cuda_graph": True, "why_no_graph": ""}))
    runner.without_graph_ms = [12.0, 14.0, 13.0]
    measured = run(device, runner, target=ON_GPU)
    assert measured.no_graph_ms == 13.0
    assert runner.num_runs == ISOLATED_RUNS
    assert measured.isolated_ms is not None
    assert 0 <= measured.isolated_ms < measured.latency_ms, "by the host's clock, which waits for nothing here"
    assert measured.remarks == ()
    assert measured.environment["gpu"] == {"name": "Some GPU"}


def test_on_a_gpu_it_is_told_why_there_is_no_graph(run: Any) -> None:
    device = Device()
    facts = Facts(record={"cuda_graph": False, "why_no_graph": "operation not permitted"})
    measured = run(device, FakeRunner(device, facts=facts), target=ON_GPU)
    assert measured.remarks == ("no CUDA graph: operation not permitted",)
    assert measured.no_graph_ms is None


# -- rebuilds and the runner's end ------------------------------------------------------------------------------------


def test_further_engines_of_the_same_network_are_built_afresh_and_timed(run: Any) -> None:
    events: list[str] = []
    device = Device([Attempt(ms=10.0)])
    runners = [FakeRunner(device), FakeRunner(Device([Attempt(ms=10.5)])), FakeRunner(Device([Attempt(ms=9.5)]))]
    measured = run(device, *runners, rebuilds=3, on_event=events.append)
    assert measured.latency_ms == 10.0
    assert measured.rebuild_medians_ms == (10.5, 9.5)
    assert measured.rebuild_spread == pytest.approx(1.0 / 9.5)
    assert [what for what in device.log if "open" in what] == ["open", "open afresh", "open afresh"]
    assert events == ["loading", "timing", "building engine 2/3", "building engine 3/3"]
    assert [runner.num_closed for runner in runners] == [1, 1, 1]


def test_one_engine_has_no_spread(run: Any) -> None:
    measured = run(Device())
    assert (measured.rebuild_medians_ms, measured.rebuild_spread) == ((), None)


def test_further_engines_are_timed_under_the_same_watch_without_the_reference(run: Any) -> None:
    device = Device([Attempt(ms=10.0), Attempt(ms=20.0, invalid="busy"), Attempt(ms=11.0)])
    measured = run(device, FakeRunner(device), FakeRunner(device), rebuilds=2, reference=reference_on(device))
    assert measured.rebuild_medians_ms == (11.0,), "one that was disturbed is timed again"
    assert measured.remarks == ()
    assert device.log.count("watch") == device.log.count("stop watching") == 3
    assert "time the reference" not in device.log[device.log.index("open afresh") :]
    assert (measured.latency_ms, num_attempts(measured)) == (10.0, 1)


def test_further_engine_whose_timing_stays_invalid_is_told_and_the_others_count(run: Any) -> None:
    invalid = [Attempt(ms=20.0, invalid="busy")] * MAX_ATTEMPTS
    device = Device([Attempt(ms=10.0, remarks=("power cap reached",)), *invalid, Attempt(ms=11.0)])
    runners = [FakeRunner(device) for _ in range(3)]
    measured = run(device, *runners, rebuilds=3)
    assert measured.rebuild_medians_ms == (11.0,)
    assert measured.remarks == ("power cap reached", "engine 2 of 3 was not timed: busy")
    assert (measured.latency_ms, measured.invalid) == (10.0, "")
    assert [runner.num_closed for runner in runners] == [1, 1, 1]


@pytest.mark.parametrize("how", ["is not the model", "fails while it is timed"])
def test_further_engine_that_fails_is_told_and_what_there_is_is_kept(how: str, run: Any) -> None:
    device = Device([Attempt(ms=10.0), Attempt(ms=11.0)])
    runners = [FakeRunner(device), FakeRunner(device), FakeRunner(device)]
    if how == "is not the model":
        runners[2].output = -LOGITS
    else:
        runners[2] = FailingRunner(device)
    measured = run(device, *runners, rebuilds=4)
    assert (measured.latency_ms, measured.rebuild_medians_ms) == (10.0, (11.0,))
    (remark,) = measured.remarks
    assert remark.startswith("engine 3 of 4 failed: ")
    assert ("is not the model" if how == "is not the model" else "device lost") in remark
    assert [runner.num_closed for runner in runners] == [1, 1, 1]
    assert device.log.count("open afresh") == 2, "no further one is tried"


def test_further_engine_that_is_not_built_is_told_with_its_reason(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    runner = FakeRunner(device)

    def refuse(*arguments: Any, **given: Any) -> FakeRunner:
        raise BuildError("no time left")

    def stop_building(text: str) -> None:
        if text.startswith("building engine"):
            monkeypatch.setattr(measurement, "open_runner", refuse)

    measured = run(device, runner, rebuilds=2, on_event=stop_building)
    assert measured.remarks == ("engine 2 of 2 failed: no time left",)
    assert (measured.latency_ms, measured.rebuild_medians_ms, runner.num_closed) == (10.0, (), 1)


def test_bug_of_ours_in_a_further_engine_is_no_remark(run: Any) -> None:
    device = Device()
    runners = [FakeRunner(device), FakeRunner(device)]
    runners[1].logits = lambda: LOGITS["no such key"]  # type: ignore[method-assign, call-overload]
    with pytest.raises(IndexError):
        run(device, *runners, rebuilds=2)
    assert [runner.num_closed for runner in runners] == [1, 1]


@pytest.mark.parametrize("takes_over", [True, False])
def test_runner_is_closed_unless_it_is_taken_over(takes_over: bool, run: Any) -> None:
    device = Device([Attempt(ms=10.0)])
    given: list[object] = []

    def keep(one: object) -> bool:
        assert not runner.num_closed
        given.append(one)
        return takes_over

    runner = FakeRunner(device)
    run(device, runner, keep=keep)
    assert given == [runner]
    assert runner.num_closed == (0 if takes_over else 1)


class FailingRunner(FakeRunner):
    def timed(self, at_least_s: float, at_least_runs: int) -> list[float]:
        raise MeasureError("device lost")


def test_runner_that_fails_is_closed_and_no_longer_watched(run: Any) -> None:
    device = Device()
    runner = FailingRunner(device)
    with pytest.raises(MeasureError, match="device lost"):
        run(device, runner)
    assert runner.num_closed == 1
    assert device.log == ["open", "watch", "stop watching"]


def test_runner_that_is_not_the_model_is_closed_and_never_timed(run: Any) -> None:
    device = Device()
    runner = FakeRunner(device)
    runner.output = np.roll(LOGITS, 1, axis=1)
    with pytest.raises(MismatchError):
        run(device, runner)
    assert runner.num_closed == 1
    assert device.log == ["open"]


def test_reference_that_fails_ends_the_measurement(run: Any) -> None:
    device = Device()
    runner = FakeRunner(device)
    with pytest.raises(MeasureError, match="device lost"):
        run(device, runner, reference=Reference("a1-base", FailingRunner(device), 5.0))
    assert runner.num_closed == 1


def test_listener_that_raises_ends_the_measurement(run: Any) -> None:
    device = Device()
    runner = FakeRunner(device)

    def stop(text: str) -> None:
        if text == "timing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(device, runner, on_event=stop)
    assert runner.num_closed == 1


# -- the same output --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", COSINES)
@pytest.mark.parametrize(("share", "is_model"), [(0.9, True), (1.1, False)])
def test_logits_may_turn_by_what_their_precision_allows(
    precision: Precision, share: float, is_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    angle = math.acos(1 - share * (1 - COSINES[precision]))
    expected = np.array([[3.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    runner = FakeRunner(Device())
    # The first image is right, so that it is the worst one that counts.
    runner.output = np.array([[3.0, 0.0], [2 * math.cos(angle), 2 * math.sin(angle)]], dtype=np.float32)
    monkeypatch.setattr(measurement, "expected_logits", lambda deployed, target, seed: expected)
    target = Target("torch", "2.11", precision, 2, 16, "cpu", "Some CPU", "", 2, 0)
    if is_model:
        require_same_output(runner, DEPLOYED, target, 0)
    else:
        with pytest.raises(MismatchError, match=rf"at least {COSINES[precision]:g}"):
            require_same_output(runner, DEPLOYED, target, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_logit_that_is_not_finite_is_enough(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "expected_logits", lambda deployed, target, seed: LOGITS)
    runner = FakeRunner(Device())
    runner.output = LOGITS.copy()
    runner.output[2, 3] = value
    with pytest.raises(MismatchError, match=f"{SMALL.name}: torch 2.11 in fp32 gives logits that are not finite"):
        require_same_output(runner, DEPLOYED, TARGET, 0)


@pytest.mark.parametrize("output", [np.zeros_like(LOGITS), -LOGITS, np.full_like(LOGITS, 1.0)], ids=str)
def test_logits_of_nothing_like_the_model_are_refused(output: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "expected_logits", lambda deployed, target, seed: LOGITS)
    runner = FakeRunner(Device())
    runner.output = output
    with pytest.raises(MismatchError, match="is not the model"):
        require_same_output(runner, DEPLOYED, TARGET, 0)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_expected_logits_are_those_of_the_module_whatever_the_batch(batch: int) -> None:
    module = model.build(SMALL, seed=1).eval()
    target = Target("torch", "2.11", "fp32", batch, 16, "cpu", "Some CPU", "", 2, 0)
    images = torch.from_numpy(np.random.default_rng(9).standard_normal((batch, 3, 16, 16), dtype=np.float32))
    with torch.inference_mode():
        expected = module(images).numpy()
    found = expected_logits(Deployed(SMALL, module, batch, "fp32"), target, 9)
    assert (found.shape, found.dtype) == ((batch, 10), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# -- one real measurement ---------------------------------------------------------------------------------------------


@pytest.fixture
def onnxruntime_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(measurement, "PAUSE_S", 0.0)
    monkeypatch.setattr(measurement, "MAX_DRIFT_ATTEMPTS", 1)
    monkeypatch.setattr(measurement, "watch_for", lambda *arguments: CpuWatch(max_foreign_cpus=math.inf))
    return latency.resolve("onnxruntime", device="cpu", batch=2, image_size=16)[0]


def onnx_of(arch: Arch) -> Deployed:
    return model.deploy(model.build(arch, seed=0, scatter=True), arch, batch=2)


def test_real_measurement_beside_a_reference_is_complete_and_travels_as_json(onnxruntime_target: Target) -> None:
    base = parse_name("Swin-E16x1.1.1.1-W2.2.2.1-R16-P2-N10")
    runner = measurement.open_runner(onnx_of(base), onnxruntime_target)
    reference = Reference(base.id, runner, 1000.0)
    measured = latency.measure(
        onnx_of(SMALL), onnxruntime_target, prepare_s=1.0, rebuilds=2, reference=reference, seed=5
    )
    runner.close()
    assert measured.p90_ms is not None
    assert measured.p99_ms is not None
    assert 0 < measured.min_ms <= measured.latency_ms <= measured.p90_ms <= measured.p95_ms <= measured.p99_ms
    assert measured.isolated_ms == measured.latency_ms
    assert measured.images_per_s is not None
    assert 0 < measured.images_per_s <= 2e3 / measured.min_ms
    assert (measured.no_graph_ms, measured.engine_bytes, measured.peak_memory_bytes) == (None, None, None)
    assert measured.build_s is not None
    assert 0 < measured.build_s < measured.prepare_s - 1.0 + 1e-3
    assert measured.measure_s > 0
    assert measured.measured_at.endswith("+00:00")
    assert measured.reference_id == base.id
    assert measured.reference_ms is not None
    assert measured.reference_ms > 0
    assert measured.reference_drift == measured.reference_ms / 1000.0 - 1
    assert measured.ratio == measured.latency_ms / measured.reference_ms
    assert reference.baseline_ms == 1000.0
    assert len(measured.rebuild_medians_ms) == 1
    assert measured.rebuild_spread is not None
    assert measured.rebuild_spread >= 0
    assert (measured.environment["attempts"], measured.invalid) == (1, "")
    assert measured.environment["backend"]["provider"] == "CPUExecutionProvider"
    assert measured.environment["cpu_threads"] == onnxruntime_target.threads
    assert {"foreign_cpus", "frequency_mhz", "load_average"} <= measured.environment.keys()
    read = json.loads(json.dumps(asdict(measured)))
    for name in ("window_medians_ms", "remarks", "rebuild_medians_ms"):
        read[name] = tuple(read[name])
    assert Latency(**read) == measured


def test_graph_that_does_not_load_is_a_build_error(onnxruntime_target: Target) -> None:
    broken = Deployed(SMALL, model.build(SMALL), 2, "fp32", b"no graph")
    with pytest.raises(BuildError, match=SMALL.name):
        latency.measure(broken, onnxruntime_target)


def test_own_processes_are_this_one_and_its_owner() -> None:
    assert own_pids(None) == {os.getpid()}
    assert own_pids(7) == {os.getpid(), 7}
