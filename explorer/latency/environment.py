"""What a number was measured on: host, device, versions and load; and the lock that keeps a device to one job.

Read from the operating system, every query optional; no setting is ever changed.
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

_PACKAGES = (
    "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_cu13_bindings", "nvidia-ml-py", "onnx",
    "numpy", "swinexplore",
)  # fmt: skip


def cpu_model() -> str:
    """The processor's model name, or the machine type where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_cores() -> int | None:
    """Physical cores of the machine, None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    cores, package = set(), ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "physical id":
            package = value.strip()
        elif key.strip() == "core id":
            cores.add((package, value.strip()))
    return len(cores) or None


def cpu_threads() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA kernel driver is loaded; tells without importing torch."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def nvidia_driver() -> str:
    """The NVIDIA driver's version, or an empty string where neither the system nor NVML tells."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        from explorer.latency.nvml import driver_version

        return driver_version()
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def version_of(package: str) -> str:
    """The installed version of `package`, or an empty string."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def describe_host() -> dict[str, Any]:
    """Host, versions and load average now, as JSON-ready values."""
    return {
        "cpu": cpu_model(),
        "cpu_cores": cpu_cores(),
        "cpu_threads": cpu_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": {package: version for package in _PACKAGES if (version := version_of(package))},
    }


def busy_seconds() -> tuple[float, float] | None:
    """CPU seconds used so far on the processors that this process may use: by all, and by this process with its threads.

    None where the system does not tell. What a hypervisor gave to its other guests while this one wanted to run (steal)
    counts as used by all. A process that is bound to some processors loses no time to what runs on the others.
    """
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    allowed = {f"cpu{index}" for index in os.sched_getaffinity(0)}
    total = 0
    for name, *fields in (line.split() for line in lines if line.startswith("cpu")):
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            total += user + nice + system + irq + softirq + steal
    own = os.times()
    return total / os.sysconf("SC_CLK_TCK"), own.user + own.system


def foreign_cpus(before: tuple[float, float] | None, after: tuple[float, float] | None, wall_s: float) -> float | None:
    """How many CPUs other processes kept busy, on average, between two readings of `busy_seconds`."""
    if before is None or after is None or wall_s <= 0:
        return None
    return max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / wall_s


@contextmanager
def exclusive(device: str) -> Iterator[None]:
    """Holds `device` (`cpu`, or `cuda` for the GPU that torch uses) for one measurement or one training across all processes.

    Waits for whoever holds it; the lock goes with the process, so that a killed one leaves nothing behind.
    """
    if device == "cuda":
        from explorer.latency.cuda import gpu_uuid

        device = gpu_uuid() or device
    lock = FileLock(Path(tempfile.gettempdir()) / f"swinexplore-{device}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("waiting: another swinexplore process measures or trains on this machine's %s", device)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
