"""One measurement: load the network, compare its output with the model's, time it beside the reference, judge what was seen.

Runs in the process that it is called in; `explorer.latency.measurer` does it in a worker. Nothing else of ours may use the
device meanwhile: whoever calls holds `environment.exclusive`.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from explorer.errors import MismatchError, TrialError
from explorer.latency import environment
from explorer.latency.base import Runner, Samples, isolated_ms, sample
from explorer.latency.cache import Cache
from explorer.latency.conditions import Conditions, Watch, is_steady, watch_for
from explorer.latency.nvml import Gpu
from explorer.model.deployment import Deployed
from explorer.records import Latency, Precision, Target

#: A throttled or disturbed measurement is repeated this often in all, one whose reference drifted once; after pauses that
#: grow by this.
MAX_ATTEMPTS: Final = 3
MAX_DRIFT_ATTEMPTS: Final = 2
PAUSE_S: Final = 1.0
#: By how much the reference's latency may differ from the base model's own.
MAX_DRIFT: Final = 0.02
#: Least cosine between the logits of an image and the model's, by precision; both must be finite.
COSINES: Final[MappingProxyType[Precision, float]] = MappingProxyType({"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99})
#: Images that the model is run on at once for the comparison.
_IMAGES_AT_ONCE: Final = 8
#: Seconds and runs without a CUDA graph.
_PLAIN: Final = (0.2, 20)

OnEvent = Callable[[str], None]


@dataclass
class Reference:
    """The base model, loaded and kept to be timed beside every candidate.

    `baseline_ms`: its own latency, which drift is counted from; None where no valid one is known.
    """

    arch_id: str
    runner: Runner
    baseline_ms: float | None = None


@dataclass(frozen=True)
class _Attempt:
    samples: Samples
    reference_ms: float | None
    drift: float | None
    conditions: Conditions
    seconds: float

    @property
    def has_drifted(self) -> bool:
        return self.drift is not None and abs(self.drift) > MAX_DRIFT

    @property
    def faults(self) -> tuple[bool, bool, bool, float]:
        """What is wrong with it, worst first."""
        return bool(self.conditions.invalid), self.has_drifted, not self.samples.is_stable, abs(self.drift or 0.0)


def open_runner(
    deployed: Deployed,
    target: Target,
    seed: int = 0,
    *,
    cache: Cache | None = None,
    fresh: bool = False,
    deadline: float | None = None,
    on_event: OnEvent = lambda text: None,
) -> Runner:
    """Loads a network into the target's backend. `fresh`: builds an engine though one is kept. Raises what the backend raises."""
    assert (deployed.batch, deployed.precision) == (
        None if target.largest_batch else target.batch,
        target.precision,
    )
    if target.device_kind == "cuda":
        from explorer.latency.cuda import require_full_fp32

        require_full_fp32()
    match target.backend:
        case "onnxruntime" | "onnxruntime-tensorrt":
            from explorer.latency.ort import OrtRunner

            return OrtRunner(deployed, target, seed)
        case "torch" | "torch-compile":
            from explorer.latency.torch_module import TorchRunner

            return TorchRunner(deployed, target, seed)
        case "tensorrt":
            from explorer.latency.trt import TrtRunner

            return TrtRunner(
                deployed, target, seed, cache=cache or Cache(), fresh=fresh, deadline=deadline, on_event=on_event
            )
        case other:
            raise AssertionError(f"no backend {other}")


def measure(
    deployed: Deployed,
    target: Target,
    *,
    prepare_s: float = 0.0,
    seed: int = 0,
    rebuilds: int = 1,
    reference: Reference | None = None,
    cache: Cache | None = None,
    deadline: float | None = None,
    own_pids: frozenset[int] = frozenset(),
    on_event: OnEvent = lambda text: None,
    keep: Callable[[Runner], bool] = lambda runner: False,
) -> Latency:
    """Measures `deployed` on `target`. Takes seconds, with TensorRT up to minutes.

    `prepare_s`: seconds that building and exporting took, kept with the result. `rebuilds`: engines to build in all.
    `keep`: is given the runner in the end and says whether it takes it over; otherwise it is closed.
    Raises BuildError, MeasureError and MismatchError.
    """
    start = time.perf_counter()
    on_event("loading")
    runner = open_runner(deployed, target, seed, cache=cache, deadline=deadline, on_event=on_event)
    is_kept = False
    try:
        opened = time.perf_counter()
        require_same_output(runner, deployed, target, seed)
        gpu = _gpu(target)
        on_event("timing")
        watch = watch_for(target.device_kind, gpu, own_pids)
        attempts = _attempts(runner, watch, reference, on_event)
        best = min(attempts, key=lambda attempt: attempt.faults)
        latency = replace(
            _latency(deployed, target, runner, best, attempts, gpu),
            reference_id="" if reference is None else reference.arch_id,
        )
        is_kept = keep(runner)
    finally:
        if not is_kept:
            runner.close()
    latency = replace(latency, prepare_s=prepare_s + opened - start)
    for index in range(2, rebuilds + 1):
        on_event(f"building engine {index}/{rebuilds}")
        try:
            attempt = _rebuilt(deployed, target, seed, watch, cache, deadline, on_event)
        except TrialError as error:
            return replace(latency, remarks=(*latency.remarks, f"engine {index} of {rebuilds} failed: {error}"))
        if attempt.conditions.invalid:
            remark = f"engine {index} of {rebuilds} was not timed: {attempt.conditions.invalid}"
            latency = replace(latency, remarks=(*latency.remarks, remark))
        else:
            medians_ms = (*latency.rebuild_medians_ms, attempt.samples.latency_ms)
            latency = replace(latency, rebuild_medians_ms=medians_ms)
    return latency


def require_same_output(runner: Runner, deployed: Deployed, target: Target, seed: int) -> None:
    """Raises MismatchError where what runs is not the model: a logit is not finite, or the cosine of an image is too low."""
    found, expected = runner.logits(), expected_logits(deployed, target, seed)
    who = f"{deployed.arch.name}: {target.backend} {target.backend_version} in {target.precision}"
    if not np.isfinite(found).all():
        raise MismatchError(f"{who} gives logits that are not finite")
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((found * expected).sum(axis=1) / np.maximum(lengths, 1e-30)).min())
    least = COSINES[target.precision]
    if not cosine >= least:
        raise MismatchError(f"{who} is not the model: cosine {cosine:.5f} between their logits; at least {least:g}")


def expected_logits(deployed: Deployed, target: Target, seed: int) -> np.ndarray:
    """Logits (batch, classes) of the model in fp32 on the input that every runner takes from `seed`."""
    import torch

    arch = deployed.arch
    shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
    images = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
    module = deployed.module if target.device_kind == "cpu" else copy.deepcopy(deployed.module).to("cuda")
    device = next(module.parameters()).device
    with torch.inference_mode():
        logits = [module(part.to(device)).float().cpu() for part in images.split(_IMAGES_AT_ONCE)]
    return torch.cat(logits).numpy()


def _attempts(runner: Runner, watch: Watch, reference: Reference | None, on_event: OnEvent) -> list[_Attempt]:
    attempts: list[_Attempt] = []
    while not attempts or (
        (attempts[-1].conditions.invalid and len(attempts) < MAX_ATTEMPTS)
        or (attempts[-1].has_drifted and len(attempts) < MAX_DRIFT_ATTEMPTS)
    ):
        if attempts:
            on_event(f"timing again: {attempts[-1].conditions.invalid or 'the reference has drifted'}")
        time.sleep(PAUSE_S * len(attempts))
        attempts.append(_attempt(runner, watch, reference))
    return attempts


def _attempt(runner: Runner, watch: Watch, reference: Reference | None) -> _Attempt:
    start = time.perf_counter()
    clocks: list[float | None] = []

    def has_steady_clock() -> bool:
        clocks.append(watch.clock_mhz())
        return is_steady(clocks)

    watch.start()
    try:
        reference_ms = drift = None
        if reference is not None:
            reference_ms = sample(reference.runner.timed, is_steady=has_steady_clock).latency_ms
            drift = None if reference.baseline_ms is None else reference_ms / reference.baseline_ms - 1
        samples = sample(runner.timed, is_steady=has_steady_clock)
    finally:
        conditions = watch.stop()
    return _Attempt(samples, reference_ms, drift, conditions, time.perf_counter() - start)


def _latency(
    deployed: Deployed, target: Target, runner: Runner, best: _Attempt, attempts: list[_Attempt], gpu: Gpu | None
) -> Latency:
    samples, facts, conditions = best.samples, runner.facts(), best.conditions
    plain = runner.timed_without_graph(*_PLAIN)
    remarks = list(conditions.remarks)
    if best.has_drifted:
        assert best.drift is not None
        remarks.append(f"the reference was {best.drift:+.1%} from the base model's latency")
    if target.device_kind == "cuda" and facts.record.get("cuda_graph") is False:
        remarks.append(f"no CUDA graph: {facts.record.get('why_no_graph')}")
    surroundings: dict[str, Any] = {
        **environment.describe_host(),
        **({} if target.device_kind == "cpu" else {"gpu": _describe_gpu(gpu)}),
        **conditions.record,
        "attempts": len(attempts),
        "attempts_ms": [attempt.samples.latency_ms for attempt in attempts],
        "backend": facts.record,
    }
    return Latency(
        arch_id=deployed.arch.id,
        target_id=target.id,
        latency_ms=samples.latency_ms,
        p95_ms=samples.p95_ms,
        min_ms=samples.min_ms,
        cv=samples.cv,
        num_samples=samples.num_samples,
        window_medians_ms=samples.window_medians_ms,
        is_stable=samples.is_stable and not best.has_drifted,
        prepare_s=0.0,
        measure_s=sum(attempt.seconds for attempt in attempts),
        environment=surroundings,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        invalid=conditions.invalid,
        remarks=tuple(remarks),
        p90_ms=samples.p90_ms,
        p99_ms=samples.p99_ms,
        isolated_ms=samples.latency_ms if target.device_kind == "cpu" else isolated_ms(runner.run),
        no_graph_ms=None if plain is None else float(np.median(plain)),
        images_per_s=target.batch * 1e3 / samples.mean_ms,
        engine_bytes=facts.engine_bytes,
        build_s=facts.build_s,
        peak_memory_bytes=facts.peak_memory_bytes,
        reference_ms=best.reference_ms,
        reference_drift=best.drift,
    )


def _rebuilt(
    deployed: Deployed,
    target: Target,
    seed: int,
    watch: Watch,
    cache: Cache | None,
    deadline: float | None,
    on_event: OnEvent,
) -> _Attempt:
    """One more engine of the same network, timed under the same watch as the first."""
    runner = open_runner(deployed, target, seed, cache=cache, fresh=True, deadline=deadline, on_event=on_event)
    try:
        require_same_output(runner, deployed, target, seed)
        return min(_attempts(runner, watch, None, on_event), key=lambda attempt: attempt.faults)
    finally:
        runner.close()


def _gpu(target: Target) -> Gpu | None:
    if target.device_kind == "cpu":
        return None
    from explorer.latency.cuda import gpu_uuid

    return Gpu.find(gpu_uuid())


def _describe_gpu(gpu: Gpu | None) -> dict[str, Any]:
    """What NVML and torch tell of the GPU."""
    from explorer.latency.cuda import describe

    return {**describe(), **({} if gpu is None else gpu.describe())}


def own_pids(owner: int | None) -> frozenset[int]:
    """This process and its owner."""
    return frozenset({os.getpid()} | ({owner} if owner is not None else set()))
