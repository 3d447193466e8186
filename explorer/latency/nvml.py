"""Reads one NVIDIA GPU through NVML, NVIDIA's management library, by the package nvidia-ml-py (`import pynvml`).

Owns which NVML functions are asked and what a missing answer means; what the readings are worth is `conditions`' matter.
Every query is optional: NVML refuses many of them on many boards, under MIG and in virtual machines, older packages and
drivers lack functions, and NVML itself may be missing. Such a field is None; nothing here raises, and no setting of the
GPU is ever changed. A GPU is found by its UUID and never by its index, which CUDA_VISIBLE_DEVICES changes.

Source: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import atexit
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal

ProcessKind = Literal["compute", "mps", "graphics", "compute+graphics"]

#: Why a GPU's clocks are what they are: the bits of `Sample.reasons` (NVML reference, nvmlClocksEventReasons).
REASON_BITS: Final = MappingProxyType(
    {
        "GpuIdle": 0x1,
        "ApplicationsClocksSetting": 0x2,
        "SwPowerCap": 0x4,
        "HwSlowdown": 0x8,
        "SyncBoost": 0x10,
        "SwThermalSlowdown": 0x20,
        "HwThermalSlowdown": 0x40,
        "HwPowerBrakeSlowdown": 0x80,
        "DisplayClockSetting": 0x100,
        "BoardLimit": 0x200,
        "Reliability": 0x400,
    }
)

_SWITCH: Final = ("off", "on")
_COMPUTE_MODES: Final = MappingProxyType(
    {
        "NVML_COMPUTEMODE_DEFAULT": "default",
        "NVML_COMPUTEMODE_EXCLUSIVE_THREAD": "exclusive thread",
        "NVML_COMPUTEMODE_PROHIBITED": "prohibited",
        "NVML_COMPUTEMODE_EXCLUSIVE_PROCESS": "exclusive process",
    }
)
_VIRTUALIZATION: Final = MappingProxyType(
    {
        "NVML_GPU_VIRTUALIZATION_MODE_NONE": "none",
        "NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH": "passthrough",
        "NVML_GPU_VIRTUALIZATION_MODE_VGPU": "vgpu",
        "NVML_GPU_VIRTUALIZATION_MODE_HOST_VGPU": "host vgpu",
        "NVML_GPU_VIRTUALIZATION_MODE_HOST_VSGA": "host vsga",
    }
)
#: Newest first; a package's name without a version is its newest function, which an older driver may lack.
_COMPUTE_LISTS: Final = (
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses",
)
_MPS_LISTS: Final = (
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v2",
    "nvmlDeviceGetMPSComputeRunningProcesses",
)
_GRAPHICS_LISTS: Final = (
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v2",
    "nvmlDeviceGetGraphicsRunningProcesses",
)


@dataclass(frozen=True)
class Sample:
    """A GPU at one moment; `reasons` is a set of REASON_BITS. None where NVML does not tell."""

    sm_mhz: int | None
    memory_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    reasons: int | None


@dataclass(frozen=True)
class Process:
    """A process that NVML lists on a GPU. In a container `pid` may be the host's. `memory_bytes` is None if not told."""

    pid: int
    memory_bytes: int | None
    kind: ProcessKind


class Gpu:
    """One GPU, or one MIG device of it, whose clocks, power and temperature are then those of the whole board."""

    def __init__(self, library: Any, handle: Any, uuid: str) -> None:
        self.uuid = uuid
        self._library = library
        self._handle = handle
        is_mig = bool(_ask(library, "nvmlDeviceIsMigDeviceHandle", handle))
        board = _ask(library, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle) if is_mig else None
        self._board = handle if board is None else board

    @staticmethod
    def find(uuid: str) -> Gpu | None:
        """The GPU with this UUID; None where NVML is missing or does not know it.

        `uuid`: `GPU-...` or `MIG-...` as nvidia-smi writes it, or the bare hexadecimal digits that torch gives.
        """
        library = _library()
        if library is None:
            return None
        for spelling in _spellings(uuid):
            handle = _ask(library, "nvmlDeviceGetHandleByUUID", spelling)
            if handle is not None:
                return Gpu(library, handle, spelling)
        return None

    def describe(self) -> dict[str, str | int | float | None]:
        """What does not change while something runs, JSON-ready; every key is there, with None where NVML does not tell.

        `cuda` is the newest CUDA version that the driver runs, `power_limit_w` the limit enforced now, `memory_bytes` a
        MIG device's own share.
        """
        memory = self._own("nvmlDeviceGetMemoryInfo")
        return {
            "name": _text(self._own("nvmlDeviceGetName")),
            "uuid": _text(self._own("nvmlDeviceGetUUID")) or self.uuid,
            "compute_capability": _dotted(self._of_board("nvmlDeviceGetCudaComputeCapability")),
            "driver": _text(_ask(self._library, "nvmlSystemGetDriverVersion")),
            "cuda": self._cuda(),
            "memory_bytes": None if memory is None else int(memory.total),
            "max_sm_mhz": self.max_sm_mhz(),
            "max_memory_mhz": self._clock("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
            "power_limit_w": self._power_limit_w(),
            "persistence": _switch(self._of_board("nvmlDeviceGetPersistenceMode")),
            "compute_mode": self._word(self._of_board("nvmlDeviceGetComputeMode"), _COMPUTE_MODES),
            "ecc": _switch(_current(self._of_board("nvmlDeviceGetEccMode"))),
            "mig": _switch(_current(self._of_board("nvmlDeviceGetMigMode"))),
            "virtualization": self._word(self._of_board("nvmlDeviceGetVirtualizationMode"), _VIRTUALIZATION),
            "confidential_computing": self._confidential_computing(),
            "vbios": _text(self._of_board("nvmlDeviceGetVbiosVersion")),
        }

    def sample(self) -> Sample:
        """Clocks, temperature, power and throttle reasons now."""
        milliwatts = self._of_board("nvmlDeviceGetPowerUsage")
        reasons = self._of_board("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = self._of_board("nvmlDeviceGetCurrentClocksThrottleReasons")
        return Sample(
            sm_mhz=self.sm_mhz(),
            memory_mhz=self._clock("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
            temperature_c=self._temperature_c(),
            power_w=None if milliwatts is None else milliwatts / 1e3,
            reasons=None if reasons is None else int(reasons),
        )

    def sm_mhz(self) -> int | None:
        """The clock of the streaming multiprocessors now."""
        return self._clock("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM")

    def max_sm_mhz(self) -> int | None:
        """The highest clock that the streaming multiprocessors can have."""
        return self._clock("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM")

    def all_processes(self) -> list[Process] | None:
        """The processes that hold a context on the GPU, by pid, ours too; None where NVML does not tell of compute ones.

        On a MIG device only its own. In a container the list may be empty, or hold the host's pids.
        """
        compute = self._first_list(_COMPUTE_LISTS)
        if compute is None:
            return None
        mps = self._first_list(_MPS_LISTS) or {}
        graphics = self._first_list(_GRAPHICS_LISTS) or {}
        memory_bytes = graphics | compute | mps
        return [
            Process(pid, memory_bytes[pid], _kind(pid in compute, pid in mps, pid in graphics))
            for pid in sorted(memory_bytes)
        ]

    def sm_percent(self, since_s: float) -> dict[int, float]:
        """Mean use of the streaming multiprocessors by pid since `since_s` (seconds since the epoch), 0 to 100.

        Empty where NVML does not tell, as under MIG; processes that used none are absent. NVML's samples are means over a
        sixth of a second to a second and come that much late: a short burst may be missing, or all within a second.
        """
        samples = self._own("nvmlDeviceGetProcessUtilization", int(since_s * 1e6)) or []
        percents: dict[int, list[int]] = {}
        for sample in samples:
            if sample.pid and sample.smUtil <= 100:  # drivers leave unused entries empty or unset
                percents.setdefault(int(sample.pid), []).append(int(sample.smUtil))
        return {pid: sum(seen) / len(seen) for pid, seen in percents.items()}

    def violations(self) -> dict[str, float]:
        """Seconds, counted up without end, in which clocks were lowered for `power` or `thermal`; only what NVML tells."""
        policies = {"power": "NVML_PERF_POLICY_POWER", "thermal": "NVML_PERF_POLICY_THERMAL"}
        status = {
            name: self._of_board("nvmlDeviceGetViolationStatus", self._constant(policy))
            for name, policy in policies.items()
        }
        return {name: told.violationTime / 1e9 for name, told in status.items() if told is not None}

    def _own(self, name: str, *arguments: Any) -> Any:
        return _ask(self._library, name, self._handle, *arguments)

    def _of_board(self, name: str, *arguments: Any) -> Any:
        return _ask(self._library, name, self._board, *arguments)

    def _constant(self, name: str) -> int | None:
        return getattr(self._library, name, None)

    def _clock(self, name: str, domain: str) -> int | None:
        mhz = self._of_board(name, self._constant(domain))
        return None if mhz is None else int(mhz)

    def _temperature_c(self) -> int | None:
        sensor = self._constant("NVML_TEMPERATURE_GPU")
        celsius = self._of_board("nvmlDeviceGetTemperatureV", sensor)
        if celsius is None:
            celsius = self._of_board("nvmlDeviceGetTemperature", sensor)
        return None if celsius is None else int(celsius)

    def _power_limit_w(self) -> float | None:
        milliwatts = self._of_board("nvmlDeviceGetEnforcedPowerLimit")
        if milliwatts is None:
            milliwatts = self._of_board("nvmlDeviceGetPowerManagementLimit")
        return None if milliwatts is None else milliwatts / 1e3

    def _cuda(self) -> str | None:
        version = _ask(self._library, "nvmlSystemGetCudaDriverVersion_v2")
        if version is None:
            version = _ask(self._library, "nvmlSystemGetCudaDriverVersion")
        return None if version is None else f"{version // 1000}.{version % 1000 // 10}"

    def _confidential_computing(self) -> str | None:
        state = _ask(self._library, "nvmlSystemGetConfComputeState")
        return None if state is None else _switch(state.ccFeature)

    def _word(self, told: int | None, words: Mapping[str, str]) -> str | None:
        return next((word for name, word in words.items() if told is not None and told == self._constant(name)), None)

    def _first_list(self, names: tuple[str, ...]) -> dict[int, int | None] | None:
        """Memory in bytes by pid, from the first of `names` that answers."""
        listed = next((answer for name in names if (answer := self._own(name)) is not None), None)
        return None if listed is None else {int(entry.pid): entry.usedGpuMemory for entry in listed}


def driver_version() -> str:
    """The NVIDIA driver's version, or an empty string where NVML is missing or does not tell."""
    library = _library()
    return "" if library is None else _text(_ask(library, "nvmlSystemGetDriverVersion")) or ""


def _pynvml() -> Any:
    """The package's module, or None; the one place that imports it."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


@cache
def _library() -> Any:
    """The initialised library, shut down when Python ends; None where the package, NVML or the driver is missing."""
    library = _pynvml()
    if library is None:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    atexit.register(_shut_down, library)
    return library


def _shut_down(library: Any) -> None:
    with contextlib.suppress(library.NVMLError):
        library.nvmlShutdown()


def _ask(library: Any, name: str, *arguments: Any) -> Any:
    """What NVML's function `name` answers; None where it is missing, lacks an argument, or refuses."""
    function = getattr(library, name, None)
    if function is None or any(argument is None for argument in arguments):
        return None
    # A package newer than the driver reports that by an error of its own, which is no NVMLError.
    mismatch = getattr(library, "NVMLLibraryMismatchError", library.NVMLError)
    try:
        return function(*arguments)
    except (library.NVMLError, mismatch, UnicodeDecodeError):
        return None


def _spellings(uuid: str) -> tuple[str, ...]:
    """How NVML may spell `uuid`. CUDA gives a MIG device's UUID without a prefix too."""
    if uuid.startswith(("GPU-", "MIG-")):
        return (uuid,)
    digits = re.sub("[^0-9a-f]", "", uuid.lower())
    bare = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    return f"GPU-{bare}", f"MIG-{bare}"


def _kind(is_compute: bool, is_mps: bool, is_graphics: bool) -> ProcessKind:
    if is_mps:
        return "mps"
    if is_compute:
        return "compute+graphics" if is_graphics else "compute"
    return "graphics"


def _text(told: str | bytes | None) -> str | None:
    """The text of a str, or of the bytes that older packages give."""
    return told.decode(errors="replace") if isinstance(told, bytes) else told


def _dotted(version: tuple[int, int] | None) -> str | None:
    return None if version is None else f"{version[0]}.{version[1]}"


def _current(modes: tuple[int, int] | list[int] | None) -> int | None:
    """The first of a mode's current and pending value."""
    return None if modes is None else modes[0]


def _switch(told: int | None) -> str | None:
    return None if told is None else _SWITCH[bool(told)]
