"""What a number was measured on: host, device, versions and load; and the locks on a device.

Read from the operating system, every query optional; no setting is ever changed. A measurement has a device to itself
(`exclusive`), trainings may share it (`shared`).
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

#: How the word begins that a device is not free.
WAITING: Final = "waiting:"
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
    """Holds `device` (`cpu`, or `cuda` for the GPU that torch uses) for one measurement across all processes.

    Waits for whoever holds it, `shared` too, and keeps newcomers waiting meanwhile; the lock goes with the process, so that
    a killed one leaves nothing behind. May not be taken again by who holds it in either way.
    """
    with _held(device, is_shared=False):
        yield


@contextmanager
def shared(device: str) -> Iterator[None]:
    """Holds `device` for one training across all processes; others may train beside it, and none measures.

    Waits for a measurement, also for one that itself waits: trainings that follow one another never starve it. Where the
    system has no such locks it is `exclusive`.
    """
    with _held(device, is_shared=True):
        yield


@contextmanager
def _held(device: str, *, is_shared: bool) -> Iterator[None]:
    if device == "cuda":
        from explorer.latency.cuda import gpu_uuid

        device = gpu_uuid() or device
    path = Path(tempfile.gettempdir()) / f"swinexplore-{device}.lock"

    def tell() -> None:
        logger.warning("%s another swinexplore process measures or trains on this machine's %s", WAITING, device)

    if find_spec("fcntl") is None:
        with _file_lock(path, tell):
            yield
        return
    descriptor = _pass_shared(path, tell) if is_shared else _pass_exclusive(path, tell)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _file_lock(path: Path, tell: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(path, mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _pass_exclusive(path: Path, tell: Callable[[], None]) -> int:
    """A descriptor that holds the lock at `path` alone, until it is closed.

    Who has to wait stands in the turnstile, which everyone who shares the lock goes through.
    """
    descriptor = _locked(path, is_shared=False, waits=False)
    if descriptor is None:
        tell()
        turnstile = _locked(_turnstile(path), is_shared=False)
        try:
            descriptor = _locked(path, is_shared=False)
        finally:
            _close(turnstile)
    assert descriptor is not None
    return descriptor


def _pass_shared(path: Path, tell: Callable[[], None]) -> int:
    """A descriptor that holds the lock at `path` with others who share it, until it is closed."""
    # Shared: those who pass at the same time do not take one another for a measurement that waits.
    turnstile = _locked(_turnstile(path), is_shared=True, waits=False)
    try:
        descriptor = None if turnstile is None else _locked(path, is_shared=True, waits=False)
        if descriptor is None:
            tell()
            if turnstile is None:
                turnstile = _locked(_turnstile(path), is_shared=True)
            descriptor = _locked(path, is_shared=True)
    finally:
        _close(turnstile)
    assert descriptor is not None
    return descriptor


def _turnstile(path: Path) -> Path:
    return path.with_name(f"{path.stem}.turn.lock")


def _locked(path: Path, *, is_shared: bool, waits: bool = True) -> int | None:
    """A descriptor of the file at `path`, made where there is none, locked; None where it is held and this `waits` not."""
    import fcntl

    operation = (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | (0 if waits else fcntl.LOCK_NB)
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed meanwhile, by whoever cleans the folder up: others lock another file


def _opened(path: Path) -> int:
    """The file at `path`, for all users of the machine."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except (FileExistsError, PermissionError):  # in /tmp the kernel lets nobody create what another user's file is
            try:
                return os.open(path, os.O_RDWR)
            except FileNotFoundError:
                if not os.access(path.parent, os.W_OK):
                    raise
                continue
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o666)  # whatever the umask
        return descriptor


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
