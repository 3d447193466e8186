"""Real latency on a real device: choose a target here; measure on it with a `Measurer`, in a process of its own.

One file a backend; a new one is a file, a `case` in `measurement.open_runner` and an entry in BACKENDS. torch, ONNX Runtime
and TensorRT are imported when a backend is asked for, not before.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from explorer.errors import BackendMissing
from explorer.latency import environment
from explorer.model import GRAPH_VERSION, MODULE_VERSION
from explorer.records import DYNAMIC, Latency, Precision, Target

if TYPE_CHECKING:
    from explorer.model.deployment import Deployed

DeviceKind = Literal["cpu", "cuda"]


class Backend(NamedTuple):
    """What a backend can do: distributions that hold it (one is enough), devices, precisions, and whether it runs our graph."""

    packages: tuple[str, ...]
    kinds: tuple[DeviceKind, ...]
    precisions: tuple[Precision, ...]
    runs_graph: bool


_ORT: Final = ("onnxruntime", "onnxruntime-gpu")
BACKENDS: Final = MappingProxyType(
    {
        "tensorrt": Backend(("tensorrt",), ("cuda",), ("fp32", "fp16", "bf16"), True),
        "onnxruntime": Backend(_ORT, ("cpu", "cuda"), ("fp32", "fp16"), True),
        "onnxruntime-tensorrt": Backend(("onnxruntime-gpu",), ("cuda",), ("fp32", "fp16"), True),
        "torch": Backend(("torch",), ("cpu", "cuda"), ("fp32", "fp16", "bf16"), False),
        "torch-compile": Backend(("torch",), ("cpu", "cuda"), ("fp32", "fp16", "bf16"), False),
    }
)


def resolve(
    backend: str = "auto",
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    batch: int = 1,
    image_size: int = 224,
    dynamic_to: int | None = None,
) -> tuple[Target, str]:
    """The target on this machine, and a sentence that says what was chosen and why.

    `backend`: `auto` or one of BACKENDS; `device`: `auto`, `cpu` or `cuda`. `dynamic_to`: one graph for any batch up to this.
    Raises BackendMissing, which names what is missing and how to get it.
    """
    _require(
        backend == "auto" or backend in BACKENDS,
        f"backend: {backend!r} is not in this version; allowed: auto, {', '.join(BACKENDS)}",
    )
    kind, why = _device_kind(backend, device)
    if backend == "auto":
        backend, reading = _automatic(kind)
        why = f"backend {backend}: chosen because {why}, and {reading}"
    else:
        why = f"backend {backend} on {kind}: {why}"
    _, kinds, precisions, runs_graph = BACKENDS[backend]
    _require(
        kind in kinds,
        f"backend {backend}: does not run on {kind}; use --device {' or '.join(kinds)}, or --backend torch",
    )
    _require(
        precision in precisions, f"precision: {precision!r} is not run by {backend}; allowed: {', '.join(precisions)}"
    )
    _require(batch >= 1, f"batch: {batch} is not a whole number of at least 1")
    _require(dynamic_to is None or runs_graph, f"dynamic batch: {backend} runs no graph; it takes any batch as it is")
    _require(
        dynamic_to is None or dynamic_to >= batch, f"batch: {batch} is over {dynamic_to}, the largest of the graph"
    )
    target = Target(
        backend=backend,
        backend_version=_version(backend, kind),
        precision=precision,
        batch=batch,
        image_size=image_size,
        device_kind=kind,
        device=_gpu_name() if kind == "cuda" else environment.cpu_model(),
        driver=environment.nvidia_driver() if kind == "cuda" else "",
        threads=0 if kind == "cuda" else environment.cpu_threads(),
        graph_version=GRAPH_VERSION if runs_graph else MODULE_VERSION,
        options="" if dynamic_to is None else f"{DYNAMIC}{dynamic_to}",
    )
    return target, why


def measure(deployed: Deployed, target: Target, **options: Any) -> Latency:
    """See `explorer.latency.measurement.measure`: in this process, the device held for it."""
    from explorer.latency import measurement

    with environment.exclusive(target.device_kind):
        return measurement.measure(deployed, target, **options)


def needs_graph(target: Target) -> bool:
    """Whether the target's backend runs our exported ONNX graph rather than the module."""
    return BACKENDS[target.backend].runs_graph


def _device_kind(backend: str, device: str) -> tuple[DeviceKind, str]:
    _require(device in ("auto", "cpu", "cuda"), f"device: {device!r} is not allowed; allowed: auto, cpu, cuda")
    if device == "cpu":
        return "cpu", "--device cpu asks for it"
    if device == "cuda":
        _require(
            sees_gpu(), "device cuda: torch sees no NVIDIA GPU here; see `swinexplore doctor`, or use --device cpu"
        )
        return "cuda", "--device cuda asks for it"
    if backend == "tensorrt":
        _version("tensorrt", "cuda")  # that it is missing is the first thing to mend
    if backend != "auto" and BACKENDS[backend].kinds == ("cuda",):
        _require(
            sees_gpu(),
            f"backend {backend}: needs an NVIDIA GPU, and torch sees none here; see `swinexplore doctor`, or use --backend "
            "onnxruntime or torch. TensorRT for RTX builds an engine for a GPU that is not here: swinexplore export NAME "
            "--to DIR --what engine --compute-capability 8.6",
        )
        return "cuda", "it runs on nothing else"
    if backend == "onnxruntime" and not environment.version_of("onnxruntime-gpu"):
        return "cpu", "this ONNX Runtime runs on the CPU"
    return ("cuda", "torch sees an NVIDIA GPU") if sees_gpu() else ("cpu", "torch sees no NVIDIA GPU")


def _automatic(kind: DeviceKind) -> tuple[str, str]:
    """The backend for a device, and why."""
    if kind == "cpu":
        return "onnxruntime", "it runs the exported graph on the CPU"
    try:
        _version("tensorrt", kind)
    except BackendMissing as error:
        return "torch", f"torch runs on the GPU where TensorRT does not ({error})"
    return "tensorrt", "TensorRT is what networks are deployed with there"


def _version(backend: str, kind: DeviceKind) -> str:
    """The installed version. Raises BackendMissing where there is none, or what it needs beside is missing."""
    if backend == "tensorrt":
        from explorer.latency import trt_build

        if sees_gpu():
            from explorer.latency.cuda import compute_capability

            trt_build.require_supported(compute_capability())
        return trt_build.version()
    packages = BACKENDS[backend].packages
    version = next((found for package in packages if (found := environment.version_of(package))), "")
    _require(
        version != "",
        f"backend {backend}: the package {packages[0]} is not installed; install it: pip install {packages[0]}",
    )
    if backend == "torch-compile":
        needed = "g++" if kind == "cpu" else "gcc"
        _require(
            any(shutil.which(compiler) for compiler in (needed, "clang++", "clang")),
            f"backend torch-compile: torch.compile needs a compiler ({needed}) and none is here; install it: apt-get install g++",
        )
        _require(
            kind == "cpu" or find_spec("triton") is not None,
            "backend torch-compile: torch.compile needs the package triton on a GPU; install it: pip install triton",
        )
    if kind == "cuda" and packages[0].startswith("onnxruntime"):
        from explorer.latency.ort import PROVIDERS, require_provider

        require_provider(backend, PROVIDERS[backend, kind])
    if backend == "onnxruntime-tensorrt":
        return f"{version} with TensorRT {_tensorrt_beside()}"
    return version


def _tensorrt_beside() -> str:
    """The TensorRT that ONNX Runtime's provider loads, as far as packages tell."""
    packages = (f"tensorrt{cuda}{part}" for cuda in ("", "_cu13", "_cu12") for part in ("", "_libs"))
    return next((found for package in packages if (found := environment.version_of(package))), "of the system")


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
