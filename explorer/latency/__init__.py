"""Real latency on a real device: choose a target, measure a deployed network on it.

One file a backend; a new one is a file, a `case` in `_open` and an entry in BACKENDS. torch and ONNX Runtime are imported
when a runner is opened, not before.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from explorer.errors import BackendMissing
from explorer.latency import environment
from explorer.model import GRAPH_VERSION, MODULE_VERSION
from explorer.records import Latency, Precision, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from explorer.latency.base import Runner, Samples
    from explorer.model.deployment import Deployed

DeviceKind = Literal["cpu", "cuda"]

#: A latency on a CPU is measured again when other processes kept more CPUs than this busy meanwhile, after a pause that
#: grows with the attempts; after the last, the least disturbed is kept and not called stable.
MAX_FOREIGN_CPUS: Final = 0.2
MAX_ATTEMPTS: Final = 3
PAUSE_S: Final = 1.0

#: What each backend can do: package, device kinds, precisions, and whether it runs our exported graph.
BACKENDS: Final = MappingProxyType(
    {
        "onnxruntime": ("onnxruntime", ("cpu",), ("fp32", "fp16"), True),
        "torch": ("torch", ("cpu", "cuda"), ("fp32", "fp16", "bf16"), False),
    }
)


def resolve(
    backend: str = "auto", *, device: str = "auto", precision: Precision = "fp32", batch: int = 1, image_size: int = 224
) -> tuple[Target, str]:
    """The target on this machine, and a sentence that says what was chosen and why.

    `backend`: `auto` or one of BACKENDS; `device`: `auto`, `cpu` or `cuda`. Raises BackendMissing, which names what is
    missing and how to get it.
    """
    kind, why = _device_kind(backend, device)
    if backend == "auto":
        backend = "torch" if kind == "cuda" else "onnxruntime"
        reading = "torch eager runs on the GPU" if kind == "cuda" else "it runs the exported graph on the CPU"
        why = f"backend {backend}: chosen because {why}, and {reading}"
    else:
        why = f"backend {backend} on {kind}: {why}"
    _require(backend in BACKENDS, f"backend: {backend!r} is not in this version; allowed: auto, {', '.join(BACKENDS)}")
    package, kinds, precisions, runs_graph = BACKENDS[backend]
    _require(
        kind in kinds,
        f"backend {backend}: does not run on {kind}; use --device {' or '.join(kinds)}, or --backend torch",
    )
    _require(
        precision in precisions, f"precision: {precision!r} is not run by {backend}; allowed: {', '.join(precisions)}"
    )
    _require(batch >= 1, f"batch: {batch} is not a whole number of at least 1")
    version = environment.version_of(package)
    _require(
        version != "", f"backend {backend}: the package {package} is not installed; install it: pip install {package}"
    )
    target = Target(
        backend=backend,
        backend_version=version,
        precision=precision,
        batch=batch,
        image_size=image_size,
        device_kind=kind,
        device=_gpu_name() if kind == "cuda" else environment.cpu_model(),
        driver=environment.nvidia_driver() if kind == "cuda" else "",
        threads=0 if kind == "cuda" else environment.cpu_threads(),
        graph_version=GRAPH_VERSION if runs_graph else MODULE_VERSION,
    )
    return target, why


def measure(deployed: Deployed, target: Target, *, prepare_s: float = 0.0, seed: int = 0) -> Latency:
    """Measures `deployed` on `target`; the device is held exclusively meanwhile.

    `prepare_s`: seconds that building and exporting took, kept with the result. Takes seconds: warm-up, then windows until
    three medians agree; up to three times that where other processes disturb a CPU. Raises BuildError and MeasureError.
    """
    from explorer.latency.base import sample

    assert (deployed.batch, deployed.precision) == (target.batch, target.precision)
    with environment.exclusive(target.device_kind):
        start = time.perf_counter()
        runner = _open(deployed, target, seed)
        opened = time.perf_counter()
        host = environment.describe_host()
        attempts: list[_Attempt] = []
        try:
            while len(attempts) < MAX_ATTEMPTS and not any(attempt.is_quiet for attempt in attempts):
                time.sleep(PAUSE_S * len(attempts))
                attempts.append(_attempt(target, lambda: sample(runner.run)))
        finally:
            runner.close()
    best = min(attempts, key=lambda attempt: attempt.foreign_cpus or 0.0)
    samples = best.samples
    return Latency(
        arch_id=deployed.arch.id,
        target_id=target.id,
        latency_ms=samples.latency_ms,
        p95_ms=samples.p95_ms,
        min_ms=samples.min_ms,
        cv=samples.cv,
        num_samples=samples.num_samples,
        window_medians_ms=samples.window_medians_ms,
        is_stable=samples.is_stable and best.is_quiet,
        prepare_s=prepare_s + opened - start,
        measure_s=sum(attempt.seconds for attempt in attempts),
        environment={**host, "foreign_cpus": best.foreign_cpus, "attempts": len(attempts)},
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True)
class _Attempt:
    """Samples, seconds they took, and how many CPUs other processes kept busy meanwhile (None on a GPU, or not told)."""

    samples: Samples
    seconds: float
    foreign_cpus: float | None

    @property
    def is_quiet(self) -> bool:
        return self.foreign_cpus is None or self.foreign_cpus <= MAX_FOREIGN_CPUS


def _attempt(target: Target, measure_once: Callable[[], Samples]) -> _Attempt:
    start, busy = time.perf_counter(), environment.busy_seconds()
    samples = measure_once()
    seconds = time.perf_counter() - start
    foreign = environment.foreign_cpus(busy, environment.busy_seconds(), seconds) if target.threads else None
    return _Attempt(samples, seconds, None if foreign is None else round(foreign, 3))


def needs_graph(target: Target) -> bool:
    """Whether the target's backend runs our exported ONNX graph rather than the module."""
    return BACKENDS[target.backend][3]


def _open(deployed: Deployed, target: Target, seed: int) -> Runner:
    match target.backend:
        case "onnxruntime":
            from explorer.latency.ort import OrtRunner

            return OrtRunner(deployed, target, seed)
        case "torch":
            from explorer.latency.torch_eager import TorchRunner

            return TorchRunner(deployed, target, seed)
        case other:
            raise AssertionError(f"no backend {other}")


def _device_kind(backend: str, device: str) -> tuple[DeviceKind, str]:
    _require(device in ("auto", "cpu", "cuda"), f"device: {device!r} is not allowed; allowed: auto, cpu, cuda")
    if device == "cpu":
        return "cpu", "--device cpu asks for it"
    if device == "cuda":
        _require(
            sees_gpu(), "device cuda: torch sees no NVIDIA GPU here; see `swinexplore doctor`, or use --device cpu"
        )
        return "cuda", "--device cuda asks for it"
    if backend == "onnxruntime":
        return "cpu", "ONNX Runtime runs on the CPU here"
    return ("cuda", "torch sees an NVIDIA GPU") if sees_gpu() else ("cpu", "torch sees no NVIDIA GPU")


def sees_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU here; imports torch only where a driver is loaded."""
    if not environment.has_nvidia_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BackendMissing(message)
