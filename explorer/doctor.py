"""What works on this machine: packages, devices, backends, data; and the command that mends what does not.

Backends are not asked whether they could work: each measures a small network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final

from explorer import latency
from explorer.arch import parse_name
from explorer.errors import BackendMissing, ExplorerError
from explorer.latency import environment
from explorer.latency.measurer import Measurer
from explorer.latency.worker import Worker
from explorer.space.file import shipped

#: Measured by each backend: small enough to take a second.
PROBE: Final = parse_name("Swin-E16x2.2.2.2-R56-P1-N10")
REQUIRED: Final = (
    "torch", "torchvision", "optuna", "onnx", "onnxruntime", "rich", "typer", "sqlalchemy", "pydantic", "PyYAML", "numpy",
    "scipy", "matplotlib", "plotly", "filelock", "nvidia-ml-py",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `mend` is the command or step that mends it, empty where nothing is to be mended."""

    subject: str
    state: str
    detail: str
    mend: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON of `swinexplore doctor`."""
        return asdict(self)


def examine(cache_root: Path | None = None) -> Iterator[Finding]:
    """Looks at one thing after another; states are `ok`, `missing` (an option this machine lacks) and `broken`."""
    yield Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    for package in REQUIRED:
        yield _package(package)
    yield Finding("cpu", "ok", f"{environment.cpu_model()}, {environment.cpu_threads()} threads")
    yield _gpu()
    with Worker() as worker:
        for backend, known in latency.BACKENDS.items():
            for kind in known.kinds:
                if kind == "cpu" or latency.sees_gpu():
                    yield _probe(backend, kind, worker, cache_root)
                else:
                    yield Finding(f"backend {backend} on {kind}", "missing", "no NVIDIA GPU to run on")
    yield _tensorrt()
    yield _nvml()
    yield _dashboard()
    yield Finding(
        "space files",
        "ok" if shipped() else "broken",
        ", ".join(shipped()),
        "" if shipped() else "reinstall swinexplore",
    )
    yield _storage(Path("studies"))


def _package(package: str) -> Finding:
    version = environment.version_of(package)
    if not version and package == "onnxruntime":
        version = environment.version_of("onnxruntime-gpu")
    if version:
        return Finding(package, "ok", version)
    return Finding(package, "broken", "not installed", f"pip install {package}")


def _gpu() -> Finding:
    if not environment.has_nvidia_driver():
        return Finding(
            "gpu", "missing", "no NVIDIA driver is loaded", "install the NVIDIA driver, if there is such a GPU"
        )
    if latency.sees_gpu():
        import torch

        return Finding(
            "gpu", "ok", f"{torch.cuda.get_device_name()}, driver {environment.nvidia_driver() or 'unknown'}"
        )
    import torch

    built = torch.version.cuda
    reason = "this torch is a CPU build" if built is None else f"torch for CUDA {built} cannot use the GPU"
    return Finding("gpu", "broken", reason, "install a torch that fits the driver: see pytorch.org")


def _probe(backend: str, kind: str, worker: Worker, cache_root: Path | None) -> Finding:
    subject = f"backend {backend} on {kind}"
    try:
        target, _ = latency.resolve(backend, device=kind, image_size=PROBE.image_size)
    except BackendMissing as error:
        return Finding(subject, "missing", str(error).splitlines()[0])
    try:
        measured = Measurer(target, worker=worker, cache_root=cache_root, deadline_s=300).measure(PROBE)
    except (ExplorerError, ImportError, OSError, RuntimeError) as error:
        return Finding(subject, "broken", str(error).splitlines()[0], "reinstall the package named here")
    shaky = f" (invalid: {measured.invalid})" if measured.invalid else ""
    return Finding(subject, "ok", f"{target.backend_version}: {measured.latency_ms:.2f} ms for {PROBE.name}{shaky}")


def _tensorrt() -> Finding:
    """The library, which TensorRT for RTX needs no GPU to build with."""
    try:
        from explorer.latency import trt_build
    except BackendMissing as error:
        return Finding("tensorrt", "missing", str(error).splitlines()[0], "pip install tensorrt")
    builds_for = ", ".join(trt_build.compute_capabilities())
    return Finding(
        "tensorrt", "ok", trt_build.version() + (f", builds for compute capability {builds_for}" * bool(builds_for))
    )


def _nvml() -> Finding:
    """What clocks, throttling and other processes are read with."""
    if not environment.has_nvidia_driver():
        return Finding("nvml", "missing", "no NVIDIA driver is loaded")
    from explorer.latency.cuda import gpu_uuid
    from explorer.latency.nvml import Gpu

    gpu = Gpu.find(gpu_uuid())
    if gpu is None:
        return Finding("nvml", "broken", "NVML does not tell of the GPU", "pip install nvidia-ml-py")
    told = gpu.describe()
    return Finding("nvml", "ok", f"driver {told['driver']}, CUDA {told['cuda']}, {told['uuid']}")


def _dashboard() -> Finding:
    if util.find_spec("optuna_dashboard"):
        return Finding("optuna-dashboard", "ok", metadata.version("optuna-dashboard"))
    return Finding("optuna-dashboard", "missing", "the web view of a study", "pip install 'swinexplore[dashboard]'")


def _storage(folder: Path) -> Finding:
    """Whether the default database could be written, without writing it."""
    import os

    present = folder if folder.exists() else folder.resolve().parent
    if os.access(present, os.W_OK):
        return Finding("studies", "ok", f"{folder.resolve()} can be written")
    return Finding("studies", "broken", f"{present} cannot be written", "run in another folder, or give --storage")
