"""What makes a timing one that may not be kept: heat, other processes; what is only told; and that no thread is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from explorer.latency import conditions, environment
from explorer.latency.conditions import (
    MAX_GRAPHICS_SM_PERCENT,
    MAX_IDLE_SM_PERCENT,
    STEADY_SAMPLES,
    Conditions,
    CpuWatch,
    GpuWatch,
    cpu_mhz,
    is_steady,
    watch_for,
)
from explorer.latency.nvml import REASON_BITS, Gpu, Process, Sample

COOL = Sample(sm_mhz=1650, memory_mhz=6250, temperature_c=55, power_w=120.0, reasons=0)
OWN = Process(os.getpid(), 10**9, "compute")
#: No process of this system: above the kernel's highest pid (PID_MAX_LIMIT, 2^22).
HOST_PID = 2**22 + 7
HOSTS = [Process(HOST_PID + i, None, "compute") for i in range(2)]
#: Our own use of the SMs, where NVML tells it.
BUSY = {os.getpid(): 90.0}


class FakeGpu:
    """Gives `samples` in turn, the last one for ever, and lists `processes` (None: NVML does not tell)."""

    def __init__(
        self,
        samples: Sequence[Sample] = (COOL,),
        processes: list[Process] | None = None,
        *,
        sm_percent: dict[int, float] | None = None,
        thermal_s: Sequence[float] = (0.0,),
    ) -> None:
        self.samples, self.listed, self.num_samples = list(samples), processes, 0
        self.told_percent, self.thermal_s = sm_percent or {}, list(thermal_s)

    def sample(self) -> Sample:
        self.num_samples += 1
        return self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]

    def sm_mhz(self) -> int | None:
        return self.samples[0].sm_mhz

    def max_sm_mhz(self) -> int | None:
        return 1695

    def all_processes(self) -> list[Process] | None:
        return self.listed

    def sm_percent(self, since_s: float) -> dict[int, float]:
        assert since_s > 0
        return self.told_percent

    def violations(self) -> dict[str, float]:
        return {"thermal": self.thermal_s.pop(0) if len(self.thermal_s) > 1 else self.thermal_s[0]}


def watch(gpu: FakeGpu, own_pids: frozenset[int] = frozenset()) -> GpuWatch:
    return GpuWatch(cast(Gpu, gpu), own_pids)


def seen(gpu: FakeGpu, *, num_samples: int = 5, own_pids: frozenset[int] = frozenset()) -> Conditions:
    """The conditions after at least this many samples, which must be JSON-ready."""
    watching = watch(gpu, own_pids)
    watching.start()
    wait_until(lambda: gpu.num_samples >= num_samples - 1)
    result = watching.stop()
    assert json.loads(json.dumps(result.record)) == result.record
    return result


def wait_until(holds: Callable[[], bool]) -> None:
    """Fails by the test's own limit where it never holds."""
    while not holds():
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "SAMPLE_PERIOD_S", 0.002)


def watching_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gpu-watch"]


def test_fake_asks_only_what_a_gpu_answers() -> None:
    assert {name for name in vars(FakeGpu) if not name.startswith("_")} <= set(vars(Gpu))


# -- a GPU: clocks ----------------------------------------------------------------------------------------------------


def test_quiet_gpu_is_valid_and_recorded() -> None:
    warmer = replace(COOL, temperature_c=60, power_w=130.0, memory_mhz=6200)
    result = seen(FakeGpu([COOL, warmer, warmer, COOL], [OWN], thermal_s=(2.0,)))
    assert (result.invalid, result.remarks) == ("", ())
    assert result.record["nvml_samples"] >= 5
    assert {name: value for name, value in result.record.items() if name not in ("nvml_samples", "power_w")} == {
        "sm_mhz": {"min": 1650, "median": 1650, "max": 1650},
        "memory_mhz": {"min": 6200, "median": 6250, "max": 6250},
        "is_clock_locked": True,
        "temperature_c": {"start": 55, "max": 60},
        "throttle_reasons": [],
        "violation_s": {"thermal": 0.0},
        "foreign_processes": [],
    }
    assert result.record["power_w"]["max"] == 130.0


@pytest.mark.parametrize(
    ("reasons", "phrase"),
    [
        (("SwThermalSlowdown",), "thermal slowdown of the GPU"),
        (("HwThermalSlowdown", "HwSlowdown"), "thermal slowdown of the GPU"),
        (("HwPowerBrakeSlowdown", "HwSlowdown"), "power brake slowdown of the GPU"),
        (("HwSlowdown", "SwPowerCap"), "hardware slowdown of the GPU"),
    ],
)
@pytest.mark.parametrize("position", [0, 2, -1])
def test_slowdown_in_any_sample_is_invalid(reasons: tuple[str, ...], phrase: str, position: int) -> None:
    samples = [COOL, COOL, COOL, COOL]
    samples[position] = replace(COOL, reasons=sum(REASON_BITS[reason] for reason in reasons))
    result = seen(FakeGpu(samples, [OWN]))
    assert result.invalid == phrase
    assert set(result.record["throttle_reasons"]) == set(reasons)


@pytest.mark.parametrize(
    ("reason", "remark"),
    [
        ("SwPowerCap", "power cap reached"),
        ("SyncBoost", "clocks held by sync boost"),
        ("ApplicationsClocksSetting", "clocks held by the applications clocks setting"),
        ("DisplayClockSetting", "clocks held by the display clock setting"),
        ("BoardLimit", "board limit reached"),
        ("Reliability", "clocks held by the reliability limit"),
    ],
)
def test_other_reason_is_a_remark(reason: str, remark: str) -> None:
    result = seen(FakeGpu([COOL, replace(COOL, reasons=REASON_BITS[reason]), COOL], [OWN]))
    assert (result.invalid, result.remarks) == ("", (remark,))


def test_idle_gpu_is_nothing_to_tell() -> None:
    result = seen(FakeGpu([replace(COOL, reasons=REASON_BITS["GpuIdle"])], [OWN]))
    assert (result.invalid, result.remarks, result.record["throttle_reasons"]) == ("", (), [])


def test_every_reason_has_a_policy() -> None:
    assert {*conditions._SLOWDOWNS, *conditions._CLOCK_REMARKS, "GpuIdle"} == set(REASON_BITS)


def test_moving_clock_is_told() -> None:
    result = seen(FakeGpu([replace(COOL, sm_mhz=1410), replace(COOL, sm_mhz=1980), COOL], [OWN]))
    assert (result.invalid, result.remarks) == ("", ("SM clock moved between 1410 and 1980 MHz",))
    assert result.record["is_clock_locked"] is False


def test_heat_between_two_samples_is_told() -> None:
    result = seen(FakeGpu(processes=[OWN], thermal_s=(2.0, 2.25)))
    assert (result.invalid, result.remarks) == ("", ("heat lowered the clocks for 0.250 s between samples",))


@pytest.mark.parametrize(
    ("sm_mhz", "reason", "is_locked"),
    [
        (1695, None, False),
        (1410, None, True),
        (1410, "GpuIdle", None),
        (1410, "SwPowerCap", False),
        (1695, "ApplicationsClocksSetting", True),
    ],
)
def test_locked_clock_is_guessed(sm_mhz: int, reason: str | None, is_locked: bool | None) -> None:
    reasons = REASON_BITS[reason] if reason else 0
    result = seen(FakeGpu([replace(COOL, sm_mhz=sm_mhz, reasons=reasons)], [OWN]))
    assert result.record["is_clock_locked"] is is_locked


def test_gpu_that_tells_nothing_is_valid_and_says_so() -> None:
    result = seen(FakeGpu([Sample(None, None, None, None, None)]))
    assert result.invalid == ""
    assert result.remarks == (
        "NVML does not tell whether the clocks were throttled",
        "NVML does not tell which processes use the GPU",
    )
    assert result.record["sm_mhz"] is result.record["is_clock_locked"] is result.record["foreign_processes"] is None


def test_without_nvml_nothing_is_watched_and_that_is_said() -> None:
    watching = watch_for("cuda", None, frozenset())
    watching.start()
    assert (watching_threads(), watching.clock_mhz()) == ([], None)
    result = watching.stop()
    assert result.invalid == ""
    assert result.remarks == ("NVML is missing: neither the clocks nor other processes were watched",)


# -- a GPU: processes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other() -> Iterator[int]:
    """The pid of a process that runs and is not ours: it waits for its input to end."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process.pid


def test_computing_process_is_invalid_with_its_pid_and_memory(other: int) -> None:
    stranger = Process(other, 1_234_000_000, "compute")
    result = seen(FakeGpu(processes=[OWN, stranger], sm_percent=BUSY | {other: MAX_IDLE_SM_PERCENT + 1}))
    assert result.invalid == f"pid {other} computed on the GPU meanwhile (1.2 GB)"
    assert result.record["foreign_processes"] == [{"pid": other, "memory_bytes": 1_234_000_000, "kind": "compute"}]


@pytest.mark.parametrize("kind", ["compute", "mps"])
@pytest.mark.parametrize(("memory_bytes", "told"), [(1_234_000_000, " (1.2 GB)"), (None, "")])
def test_process_of_untold_use_is_invalid_and_not_said_to_compute(
    kind: Any, memory_bytes: int | None, told: str, other: int
) -> None:
    result = seen(FakeGpu(processes=[OWN, Process(other, memory_bytes, kind)]))
    assert result.invalid == f"pid {other} is on the GPU{told}, and NVML does not tell whether it computes"
    assert result.remarks == ()


@pytest.mark.parametrize("kind", ["compute", "mps", "graphics", "compute+graphics"])
@pytest.mark.parametrize("percent", [{}, {"other": 0.4}, {"other": MAX_IDLE_SM_PERCENT}])
def test_idle_process_is_a_remark(kind: Any, percent: dict[str, float], other: int) -> None:
    idle = Process(other, 10**9, kind)
    told = BUSY | ({other: percent["other"]} if percent else {})
    result = seen(FakeGpu(processes=[OWN, idle], sm_percent=told))
    assert (result.invalid, result.remarks) == ("", (f"pid {other} holds memory on the GPU and is idle",))
    assert [process["pid"] for process in result.record["foreign_processes"]] == [other]


def test_idle_processes_share_a_remark() -> None:
    result = seen(FakeGpu(processes=[OWN, *HOSTS], sm_percent=BUSY))
    assert result.invalid == ""
    assert result.remarks == (f"pids {HOST_PID}, {HOST_PID + 1} hold memory on the GPU and are idle",)


def test_process_that_came_and_went_is_invalid(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "SAMPLES_PER_LISTING", 1)
    gpu = FakeGpu(processes=[OWN])
    watching = watch(gpu)
    watching.start()
    gpu.listed = [OWN, Process(other, None, "mps")]
    wait_until(lambda: other in (watching._sight.processes or {}))
    gpu.listed = [OWN]
    assert watching.stop().invalid.startswith(f"pid {other} is on the GPU")


def test_processes_of_ours_are_not_foreign(other: int) -> None:
    result = seen(FakeGpu(processes=[OWN, Process(other, 10**9, "compute")]), own_pids=frozenset({other}))
    assert (result.invalid, result.remarks, result.record["foreign_processes"]) == ("", (), [])


@pytest.mark.parametrize("kind", ["graphics", "compute+graphics"])
def test_desktop_that_draws_little_is_a_remark(kind: Any, other: int) -> None:
    percent = BUSY | {other: MAX_GRAPHICS_SM_PERCENT}
    result = seen(FakeGpu(processes=[OWN, Process(other, 10**8, kind)], sm_percent=percent))
    assert (result.invalid, result.remarks) == ("", (f"pid {other} used the GPU for 10% of the time",))
    assert [process["pid"] for process in result.record["foreign_processes"]] == [other]


@pytest.mark.parametrize("kind", ["graphics", "compute+graphics"])
def test_graphics_of_untold_use_are_a_remark_that_says_so(kind: Any, other: int) -> None:
    result = seen(FakeGpu(processes=[OWN, Process(other, 10**8, kind)]))
    assert (result.invalid, result.remarks) == (
        "",
        (f"NVML does not tell how busy graphics kept the GPU (pid {other})",),
    )


def test_busy_graphics_are_invalid(other: int) -> None:
    game = Process(other, None, "graphics")
    result = seen(FakeGpu(processes=[OWN, game], sm_percent=BUSY | {other: MAX_GRAPHICS_SM_PERCENT + 1}))
    assert result.invalid == f"pid {other} computed on the GPU meanwhile"


@pytest.mark.parametrize("told", [True, False])
def test_mps_server_is_a_remark(told: bool, other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_is_mps_server", lambda pid: pid == other)
    server = Process(other, 10**8, "compute")
    result = seen(FakeGpu(processes=[OWN, server], sm_percent=BUSY | {other: 50.0} if told else {}))
    assert (result.invalid, result.remarks) == ("", (f"pid {other} on the GPU is an MPS server",))


def test_use_told_of_the_mps_server_tells_nothing_of_its_clients(other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_is_mps_server", lambda pid: pid == other)
    processes = [OWN, Process(other, None, "compute"), Process(HOST_PID, None, "mps")]
    result = seen(FakeGpu(processes=processes, sm_percent={other: 90.0}))
    assert result.invalid == f"pid {HOST_PID} is on the GPU, and NVML does not tell whether it computes"


def test_this_process_is_no_mps_server() -> None:
    assert not conditions._is_mps_server(os.getpid())


@pytest.mark.parametrize("sm_percent", [{}, {HOST_PID: 90.0}])
def test_one_unknown_pid_may_be_ours_in_a_container(sm_percent: dict[int, float]) -> None:
    result = seen(FakeGpu(processes=HOSTS[:1], sm_percent=sm_percent))
    assert result.invalid == ""
    assert result.remarks == (
        f"pid {HOST_PID} on the GPU is not one of this system: perhaps ours, as seen from outside its container",
    )


def test_idle_unknown_pid_is_not_the_one_taken_for_ours() -> None:
    result = seen(FakeGpu(processes=HOSTS, sm_percent={HOST_PID + 1: 90.0}))
    assert result.invalid == ""
    assert [remark.split(" on ")[0] for remark in result.remarks] == [
        f"pid {HOST_PID + 1}",
        f"pid {HOST_PID} holds memory",
    ]


def test_unknown_pid_beside_ours_is_foreign() -> None:
    result = seen(FakeGpu(processes=[OWN, *HOSTS[:1]], sm_percent=BUSY | {HOST_PID: 90.0}))
    assert result.invalid == f"pid {HOST_PID} computed on the GPU meanwhile"


@pytest.mark.parametrize("sm_percent", [{}, {HOST_PID: 50.0, HOST_PID + 1: 50.0}])
@pytest.mark.parametrize("own_pids", [frozenset(), frozenset({os.getpid()})])
def test_with_one_process_of_ours_two_unknown_pids_are_foreign(
    own_pids: frozenset[int], sm_percent: dict[int, float]
) -> None:
    result = seen(FakeGpu(processes=HOSTS, sm_percent=sm_percent), own_pids=own_pids)
    assert [f"pid {process.pid} " in result.invalid for process in HOSTS] == [True, True]


def test_as_many_unknown_pids_as_processes_of_ours_are_taken_for_ours() -> None:
    result = seen(FakeGpu(processes=HOSTS), own_pids=frozenset({12345}))
    assert (result.invalid, len(result.remarks)) == ("", 2)


def test_known_pid_without_ours_is_foreign(other: int) -> None:
    assert seen(FakeGpu(processes=[Process(other, None, "compute")])).invalid


# -- a GPU: the thread ------------------------------------------------------------------------------------------------


def test_thread_ends_with_the_watch_also_after_an_error_of_the_timed_code() -> None:
    watching = watch(FakeGpu(processes=[OWN]))

    def time_something() -> None:
        watching.start()
        try:
            assert [thread.daemon for thread in watching_threads()] == [True]
            raise RuntimeError("device lost")
        finally:
            watching.stop()

    with pytest.raises(RuntimeError, match="device lost"):
        time_something()
    assert watching_threads() == []


def test_first_and_last_sample_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "SAMPLE_PERIOD_S", 3600.0)
    gpu = FakeGpu([COOL, replace(COOL, temperature_c=70)], [OWN])
    watching = watch(gpu)
    watching.start()
    result = watching.stop()
    assert (gpu.num_samples, result.record["nvml_samples"]) == (2, 2)
    assert result.record["temperature_c"] == {"start": 55, "max": 70}
    assert result.record["is_clock_locked"] is None


def test_watch_starts_afresh() -> None:
    gpu = FakeGpu([replace(COOL, reasons=REASON_BITS["HwSlowdown"]), COOL], [OWN])
    watching = watch(gpu)
    watching.start()
    assert watching.stop().invalid
    watching.start()
    assert watching.stop().invalid == ""
    assert watching_threads() == []


def test_clock_is_told_without_a_start() -> None:
    assert watch_for("cuda", cast(Gpu, FakeGpu()), frozenset()).clock_mhz() == 1650


# -- a CPU ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def busy_of_others(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    """Lets other processes use this many CPUs, on a clock by which every watch takes ten seconds."""

    def put(foreign_cpus: float | None) -> None:
        seconds = iter((100.0, 110.0))
        readings = iter(((50.0, 5.0), (50.0 + 10 * (foreign_cpus or 0) + 9, 14.0)))
        monkeypatch.setattr(conditions, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
        monkeypatch.setattr(environment, "busy_seconds", lambda: None if foreign_cpus is None else next(readings))

    return put


@pytest.mark.parametrize(("foreign", "invalid"), [(0.1, ""), (0.8, "other processes kept 0.8 CPUs busy")])
def test_other_processes_on_a_cpu_make_it_invalid(
    foreign: float, invalid: str, busy_of_others: Callable[[float | None], None]
) -> None:
    busy_of_others(foreign)
    watching = watch_for("cpu", None, frozenset())
    watching.start()
    result = watching.stop()
    assert (result.invalid, result.remarks) == (invalid, ())
    assert result.record["foreign_cpus"] == pytest.approx(foreign)
    assert set(result.record) == {"foreign_cpus", "load_average", "frequency_mhz"}
    assert json.loads(json.dumps(result.record)) == result.record


def test_system_that_tells_no_busy_time_is_valid_and_says_so(busy_of_others: Callable[[float | None], None]) -> None:
    busy_of_others(None)
    watching = CpuWatch()
    watching.start()
    result = watching.stop()
    assert (result.invalid, result.record["foreign_cpus"]) == ("", None)
    assert result.remarks == ("the system does not tell how busy other processes were",)


@pytest.mark.skipif(environment.busy_seconds() is None, reason="the system does not tell the processors' busy time")
@pytest.mark.timeout(120)
def test_real_busy_process_makes_it_invalid() -> None:
    spin = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            watching = CpuWatch()
            watching.start()
            used = spent_s(process.pid)
            wait_until(lambda: spent_s(process.pid) - used >= 0.5)
            result = watching.stop()
        finally:
            process.kill()
    assert result.record["foreign_cpus"] > 0
    if result.record["foreign_cpus"] > 0.25:  # not so where the machine was too loaded to let the process spin
        assert result.invalid.startswith("other processes kept ")


def spent_s(pid: int) -> float:
    """CPU seconds of a process by /proc/<pid>/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)


def cpufreq(root: Path, khz: dict[int, str]) -> None:
    for cpu, text in khz.items():
        path = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
        path.parent.mkdir(parents=True)
        path.write_text(f"{text}\n", encoding="ascii")


def cpuinfo(root: Path, mhz: dict[int, str]) -> None:
    (root / "proc").mkdir()
    blocks = [f"processor\t: {cpu}\nmodel name\t: A\ncpu MHz\t\t: {text}\n" for cpu, text in mhz.items()]
    (root / "proc/cpuinfo").write_text("\n".join(blocks), encoding="utf-8")


@pytest.mark.usefixtures("two_cpus")
def test_frequencies_are_those_of_our_cpus(tmp_path: Path) -> None:
    cpufreq(tmp_path, {0: "2400000", 1: "800000", 2: "3100500"})
    assert cpu_mhz(tmp_path) == {0: 2400.0, 2: 3100.5}


@pytest.mark.usefixtures("two_cpus")
def test_frequencies_come_from_cpuinfo_where_cpufreq_does_not_tell(tmp_path: Path) -> None:
    cpufreq(tmp_path, {0: "2400000", 2: "<unknown>"})
    cpuinfo(tmp_path, {0: "1000.0", 1: "1100.000", 2: "2500.250"})
    assert cpu_mhz(tmp_path) == {0: 2400.0, 2: 2500.25}


@pytest.mark.usefixtures("two_cpus")
def test_frequencies_may_not_be_told_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(tmp_path, {0: "unknown"})
    assert cpu_mhz(tmp_path) == {}
    monkeypatch.setattr(conditions, "cpu_mhz", dict)
    watching = CpuWatch()
    assert watching.clock_mhz() is None
    watching.start()
    assert watching.stop().record["frequency_mhz"] is None


def test_cpus_clock_is_the_busiest_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "cpu_mhz", lambda: {0: 800.0, 1: 3100.0})
    watching = CpuWatch()
    assert watching.clock_mhz() == 3100.0
    watching.start()
    assert watching.stop().record["frequency_mhz"] == {"min": 800.0, "median": 1950.0, "max": 3100.0}


# -- warm-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples_mhz", "steady"),
    [
        ([], False),
        ([None], True),
        ([1000.0] * (STEADY_SAMPLES - 1), False),
        ([1000.0] * STEADY_SAMPLES, True),
        ([300.0, 700.0, 1000.0, 981.0, 1000.0, 990.0, 1000.0], True),
        ([1000.0, 970.0, 1000.0, 990.0, 1000.0], False),
        ([1000.0, None, 990.0, 1000.0, 990.0, 1000.0], True),
        ([0.0] * STEADY_SAMPLES, True),
    ],
)
def test_clock_is_steady_when_its_last_readings_agree(samples_mhz: list[float | None], steady: bool) -> None:
    assert is_steady(samples_mhz) is steady
