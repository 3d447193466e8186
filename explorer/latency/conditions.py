"""What a device went through while something was timed on it, and whether that timing may be kept.

A `Watch` is started right before a timing and stopped right after it; the `Conditions` that it gives hold what was seen
and one of three verdicts:

- invalid, the timing is not one of the device left to us at its own speed. On a GPU: clocks lowered by heat or by the
  board (HwSlowdown, HwThermalSlowdown, HwPowerBrakeSlowdown, SwThermalSlowdown in any sample), or another process that
  used the SMs for more than MAX_IDLE_SM_PERCENT of the time, MAX_GRAPHICS_SM_PERCENT where it draws, be it beside
  computing. On a CPU: other processes that kept more than `max_foreign_cpus` busy, on average, of the processors
  that we may use.
- a remark, kept and told: SwPowerCap, SyncBoost, application and display clock settings, limits of the board, a moving
  SM clock, processes on the GPU below those limits (an idle notebook, a desktop), MPS servers, and whatever NVML would
  not tell.
- nothing. GpuIdle is ignored: it is how a GPU looks between two runs.

We compute ourselves while we watch. So where NVML tells no process's use of the SMs, not even ours, it tells none; then a
process that computes only, or through MPS, makes the timing invalid and one that draws is a remark. Where it tells of
any, a process that it does not name was idle. Its samples are short means that come up to a second late: a short burst
may be missed, and a timing shorter than a sample may find none.

In a container NVML may list no process, or list ours under the host's pid. So where none of our own pids is listed and no
more unknown pids may have computed than we have processes, these are taken for ours, with a remark. Policy after NVIDIA's
advice for TensorRT (Best Practices, "Hardware/Software Environment for Performance Measurements") and the meaning of the
bits in the NVML reference (nvmlClocksEventReasons). Nothing is changed on a device: a locked clock is recognised, never
set.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from explorer.latency import environment
from explorer.latency.nvml import REASON_BITS, Gpu, Process, Sample

#: A clock within this share of its highest value does not move; `STEADY_SAMPLES` such readings in a row are steady.
CLOCK_SPREAD: Final = 0.02
STEADY_SAMPLES: Final = 5
#: About 10 samples a second: often enough for a thermal slowdown, too seldom to disturb the thread that times.
SAMPLE_PERIOD_S: Final = 0.1
#: Listing processes costs more than a sample: every tenth.
SAMPLES_PER_LISTING: Final = 10
#: The least that NVML tells beside 0: it gives whole percents.
MAX_IDLE_SM_PERCENT: Final = 1.0
#: A desktop that draws a cursor stays below; a game or a video wall does not.
MAX_GRAPHICS_SM_PERCENT: Final = 10.0
#: Enough samples to call a clock constant.
MIN_CONSTANT_SAMPLES: Final = 3

#: Worst first; HwSlowdown stands with either of the two before it, and is named only where it stands alone.
_SLOWDOWNS: Final = MappingProxyType(
    {
        "HwThermalSlowdown": "thermal slowdown of the GPU",
        "SwThermalSlowdown": "thermal slowdown of the GPU",
        "HwPowerBrakeSlowdown": "power brake slowdown of the GPU",
        "HwSlowdown": "hardware slowdown of the GPU",
    }
)
_CLOCK_REMARKS: Final = MappingProxyType(
    {
        "SwPowerCap": "power cap reached",
        "SyncBoost": "clocks held by sync boost",
        "ApplicationsClocksSetting": "clocks held by the applications clocks setting",
        "DisplayClockSetting": "clocks held by the display clock setting",
        "BoardLimit": "board limit reached",
        "Reliability": "clocks held by the reliability limit",
    }
)


@dataclass(frozen=True)
class Conditions:
    """What was seen (JSON-ready), why the timing may not be kept (empty if it may), and what is worth telling of it."""

    record: dict[str, Any]
    invalid: str
    remarks: tuple[str, ...]


class Watch(Protocol):
    """Watches a device between `start` and `stop`; may be started again after that."""

    def start(self) -> None:
        """Begins to watch."""

    def stop(self) -> Conditions:
        """Ends it, also after the timed code has failed: no thread is left behind."""

    def clock_mhz(self) -> float | None:
        """The device's clock now, for `is_steady`; None where it is not told. Needs no `start`."""


def watch_for(device_kind: Literal["cpu", "cuda"], gpu: Gpu | None, own_pids: frozenset[int]) -> Watch:
    """The watch for a device. `own_pids`: processes of ours, beside this one, that hold a context on the GPU."""
    return GpuWatch(gpu, own_pids) if device_kind == "cuda" else CpuWatch()


def is_steady(samples_mhz: Sequence[float | None]) -> bool:
    """Whether the last STEADY_SAMPLES clocks lie within CLOCK_SPREAD; True where clocks are asked for and not told."""
    told = [mhz for mhz in samples_mhz if mhz is not None]
    if not told:
        return len(samples_mhz) > 0
    return len(told) >= STEADY_SAMPLES and not _moves(told[-STEADY_SAMPLES:])


class CpuWatch:
    """Watches this machine's processors: what other processes use, and the frequencies of those that we may run on.

    Reads at `start` and at `stop` only. The system counts in ticks of 10 ms: over a wall time of t seconds other processes
    are told to about 0.01 / t processors.
    """

    def __init__(self, max_foreign_cpus: float = 0.2) -> None:
        self._max_foreign_cpus = max_foreign_cpus
        self._started: tuple[float, tuple[float, float] | None, list[float]] | None = None

    def start(self) -> None:
        """Reads frequencies, then the processors' busy time."""
        frequencies = list(cpu_mhz().values())
        self._started = time.perf_counter(), environment.busy_seconds(), frequencies

    def stop(self) -> Conditions:
        """Judges by the busy time since `start`."""
        assert self._started is not None, "stop without start"
        (start_s, busy, frequencies), self._started = self._started, None
        foreign = environment.foreign_cpus(busy, environment.busy_seconds(), time.perf_counter() - start_s)
        is_crowded = foreign is not None and foreign > self._max_foreign_cpus
        return Conditions(
            record={
                "foreign_cpus": None if foreign is None else round(foreign, 3),
                "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
                "frequency_mhz": _spread([*frequencies, *cpu_mhz().values()]),
            },
            invalid=f"other processes kept {foreign:.1f} CPUs busy" if is_crowded else "",
            remarks=() if foreign is not None else ("the system does not tell how busy other processes were",),
        )

    def clock_mhz(self) -> float | None:
        """The highest frequency of the processors that we may run on: the others may idle."""
        return max(cpu_mhz().values(), default=None)


class GpuWatch:
    """Watches a GPU by NVML from a thread of its own. Without a `gpu` (NVML is missing) all is valid, with a remark."""

    def __init__(self, gpu: Gpu | None, own_pids: frozenset[int]) -> None:
        self._gpu = gpu
        self._own_pids = own_pids | {os.getpid()}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._sight = _Sight()

    def start(self) -> None:
        """Takes the first sample and starts the thread."""
        assert self._thread is None, "start before stop"
        self._sight = _Sight(started_s=time.time())
        if self._gpu is None:
            return
        self._sight.take(self._gpu, with_processes=True)
        self._sight.violations_s = self._gpu.violations()
        self._ended.clear()
        self._thread = threading.Thread(
            target=_sample_until, args=(self._ended, self._sight, self._gpu), name="gpu-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> Conditions:
        """Ends the thread, takes the last sample and judges by all of them."""
        if self._gpu is None:
            remark = "NVML is missing: neither the clocks nor other processes were watched"
            return Conditions(record={"nvml_samples": 0}, invalid="", remarks=(remark,))
        assert self._thread is not None, "stop without start"
        self._ended.set()
        self._thread.join()
        self._thread = None
        self._sight.take(self._gpu, with_processes=True)
        return _judge(self._sight, self._gpu, self._own_pids)

    def clock_mhz(self) -> float | None:
        """The SM clock."""
        return None if self._gpu is None else self._gpu.sm_mhz()


@dataclass
class _Sight:
    """What a GpuWatch has seen so far. `processes` by pid, ours too; None until NVML has told of any listing."""

    started_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    processes: dict[int, Process] | None = None
    violations_s: dict[str, float] = field(default_factory=dict)

    def take(self, gpu: Gpu, *, with_processes: bool) -> None:
        self.samples.append(gpu.sample())
        listed = gpu.all_processes() if with_processes else None
        if listed is not None:
            self.processes = (self.processes or {}) | {process.pid: process for process in listed}

    def has(self, reason: str) -> bool:
        return any(sample.reasons is not None and sample.reasons & REASON_BITS[reason] for sample in self.samples)

    def told(self, name: str) -> list[float]:
        return [value for sample in self.samples if (value := getattr(sample, name)) is not None]


def _sample_until(ended: threading.Event, sight: _Sight, gpu: Gpu) -> None:
    num_samples = 0
    while not ended.wait(SAMPLE_PERIOD_S):
        num_samples += 1
        sight.take(gpu, with_processes=num_samples % SAMPLES_PER_LISTING == 0)


def _judge(sight: _Sight, gpu: Gpu, own_pids: frozenset[int]) -> Conditions:
    reasons = [name for name in REASON_BITS if name != "GpuIdle" and sight.has(name)]
    violations_s = {
        name: round(seconds - sight.violations_s[name], 6)
        for name, seconds in gpu.violations().items()
        if name in sight.violations_s
    }
    others, presence, process_remarks = _judge_processes(sight, gpu, own_pids)
    slowdown = next((phrase for name, phrase in _SLOWDOWNS.items() if name in reasons), "")
    temperatures_c, powers_w = sight.told("temperature_c"), sight.told("power_w")
    record = {
        "nvml_samples": len(sight.samples),
        "sm_mhz": _spread(sight.told("sm_mhz")),
        "memory_mhz": _spread(sight.told("memory_mhz")),
        "is_clock_locked": _is_clock_locked(sight, gpu.max_sm_mhz(), reasons),
        "temperature_c": {"start": temperatures_c[0], "max": max(temperatures_c)} if temperatures_c else None,
        "power_w": {"median": statistics.median(powers_w), "max": max(powers_w)} if powers_w else None,
        "throttle_reasons": reasons if sight.told("reasons") else None,
        "violation_s": violations_s,
        "foreign_processes": None if others is None else [asdict(process) for process in others],
    }
    remarks = [*_clock_remarks(sight, reasons), *process_remarks]
    if not slowdown and violations_s.get("thermal", 0) > 0:
        remarks.append(f"heat lowered the clocks for {violations_s['thermal']:.3f} s between samples")
    return Conditions(record, slowdown or presence, tuple(remarks))


def _clock_remarks(sight: _Sight, reasons: list[str]) -> list[str]:
    remarks = [phrase for name, phrase in _CLOCK_REMARKS.items() if name in reasons]
    sm_mhz = sight.told("sm_mhz")
    if sm_mhz and _moves(sm_mhz):
        remarks.append(f"SM clock moved between {min(sm_mhz):.0f} and {max(sm_mhz):.0f} MHz")
    if not sight.told("reasons"):
        remarks.append("NVML does not tell whether the clocks were throttled")
    return remarks


def _judge_processes(
    sight: _Sight, gpu: Gpu, own_pids: frozenset[int]
) -> tuple[list[Process] | None, str, tuple[str, ...]]:
    """Processes other than ours on the GPU (None if not told), why they make the timing invalid, and remarks."""
    if sight.processes is None:
        return None, "", ("NVML does not tell which processes use the GPU",)
    others = [process for pid, process in sorted(sight.processes.items()) if pid not in own_pids]
    sm_percent = _told_use(gpu, sight.started_s, others)
    suspects = [process for process in others if _may_disturb(process, sm_percent)]
    unknown = [process for process in suspects if not _is_running(process.pid)]
    if len(others) < len(sight.processes) or len(unknown) > len(own_pids):
        unknown = []
    remarks = [
        f"pid {process.pid} on the GPU is not one of this system: perhaps ours, as seen from outside its container"
        for process in unknown
    ]
    remarks += _harmless_remarks([process for process in others if process not in suspects], sm_percent)
    foreign = [process for process in suspects if process not in unknown]
    return others, "; ".join(_presence(process, sm_percent) for process in foreign), tuple(remarks)


def _told_use(gpu: Gpu, since_s: float, processes: list[Process]) -> dict[int, float] | None:
    """Use of the SMs by each process; None if not told, as where an MPS server stands in for its clients."""
    told = {pid: percent for pid, percent in gpu.sm_percent(since_s).items() if not _is_mps_server(pid)}
    return {process.pid: told.get(process.pid, 0.0) for process in processes} if told else None


def _may_disturb(process: Process, sm_percent: dict[int, float] | None) -> bool:
    """Whether the process took time from ours, or may have. An MPS server does not: its clients do."""
    if _is_mps_server(process.pid):
        return False
    is_graphics = "graphics" in process.kind
    if sm_percent is None:
        return not is_graphics
    return sm_percent[process.pid] > (MAX_GRAPHICS_SM_PERCENT if is_graphics else MAX_IDLE_SM_PERCENT)


def _presence(process: Process, sm_percent: dict[int, float] | None) -> str:
    memory = "" if process.memory_bytes is None else f" ({process.memory_bytes / 1e9:.1f} GB)"
    if sm_percent is None:
        return f"pid {process.pid} is on the GPU{memory}, and NVML does not tell whether it computes"
    return f"pid {process.pid} computed on the GPU meanwhile{memory}"


def _harmless_remarks(processes: list[Process], sm_percent: dict[int, float] | None) -> list[str]:
    """Remarks on processes that do not disturb: a desktop has many, so those of which the same is told share one."""
    servers = [process.pid for process in processes if _is_mps_server(process.pid)]
    pids = [process.pid for process in processes if process.pid not in servers]
    remarks = [f"pid {pid} on the GPU is an MPS server" for pid in servers]
    if sm_percent is None:
        return [*remarks, f"NVML does not tell how busy graphics kept the GPU ({_named(pids)})"] if pids else remarks
    idle = [pid for pid in pids if sm_percent[pid] <= MAX_IDLE_SM_PERCENT]
    remarks += [f"pid {pid} used the GPU for {sm_percent[pid]:.0f}% of the time" for pid in pids if pid not in idle]
    if idle:
        state = "holds memory on the GPU and is idle" if len(idle) == 1 else "hold memory on the GPU and are idle"
        remarks.append(f"{_named(idle)} {state}")
    return remarks


def _named(pids: list[int]) -> str:
    return f"pid{'s' * (len(pids) > 1)} {', '.join(map(str, pids))}"


def _is_running(pid: int) -> bool:
    """Whether `pid` is one of this system's; True where there is no /proc to tell."""
    return not Path("/proc/self").exists() or (pid > 0 and Path(f"/proc/{pid}").exists())


def _is_mps_server(pid: int) -> bool:
    """nvidia-cuda-mps-server, whose name the kernel cuts at 15 characters."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip() == "nvidia-cuda-mps"
    except OSError:
        return False


def _is_clock_locked(sight: _Sight, max_sm_mhz: int | None, reasons: list[str]) -> bool | None:
    """A guess: a constant clock that the applications setting explains, or that nothing told keeps below the highest."""
    sm_mhz = sight.told("sm_mhz")
    if len(sm_mhz) < MIN_CONSTANT_SAMPLES:
        return None
    if min(sm_mhz) != max(sm_mhz):
        return False
    if "ApplicationsClocksSetting" in reasons:
        return True
    if reasons or sm_mhz[0] == max_sm_mhz:
        return False
    return None if max_sm_mhz is None or sight.has("GpuIdle") else True


def cpu_mhz(root: Path = Path("/")) -> dict[int, float]:
    """The frequency of every processor that this process may use, by its number; those that the system tells.

    From cpufreq where there is one, else from /proc/cpuinfo; in a virtual machine that is the nominal frequency. `root` is
    the directory that holds `sys` and `proc`.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    told: dict[int, float] = {}
    for cpu in cpus:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
        try:
            told[cpu] = int(path.read_text(encoding="ascii")) / 1e3  # the file is in kHz
        except (OSError, ValueError):  # no such file, or `<unknown>`
            continue
    if len(told) < len(cpus):
        told = _cpuinfo_mhz(root / "proc" / "cpuinfo") | told
    return {cpu: told[cpu] for cpu in sorted(cpus) if cpu in told}


def _cpuinfo_mhz(path: Path) -> dict[int, float]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    told: dict[int, float] = {}
    cpu = -1
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "processor" and value.strip().isdigit():
            cpu = int(value)
        elif key.strip() == "cpu MHz" and value.strip().replace(".", "", 1).isdigit():
            told[cpu] = float(value)
    return told


def _moves(mhz: Sequence[float]) -> bool:
    return max(mhz) - min(mhz) > CLOCK_SPREAD * max(mhz)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else None
