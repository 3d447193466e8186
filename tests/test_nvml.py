"""Reading a GPU through NVML, against a fake of the package with the real one's names, and against the real one."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from explorer.latency import environment, nvml
from explorer.latency.nvml import REASON_BITS, Gpu, Process, Sample

UUID = "GPU-20bed2f5-819b-69ad-8d42-d3e1446080c1"
MIG_UUID = "MIG-90443af0-2fe6-57fb-86fe-54186d5a6581"
GIB = 1024**3


class NVMLError(Exception):
    """As the real one: every refusal of NVML."""


class NVMLLibraryMismatchError(Exception):
    """As the real one: a driver older than the package; not an NVMLError."""


def listed(pid: int, memory_bytes: int | None = GIB) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory_bytes)


class FakeNvml:
    """One board `board` and one MIG device `slice` of it. `answers` by name: a value, an exception, or a function.

    A name that is not in `answers` is missing, as in an older package.
    """

    NVMLError = NVMLError
    NVMLLibraryMismatchError = NVMLLibraryMismatchError

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlDeviceGetHandleByUUID": self.handle,
            "nvmlDeviceIsMigDeviceHandle": lambda handle: int(handle == "slice"),
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": "board",
            "nvmlDeviceGetName": lambda handle: {"board": "NVIDIA A10", "slice": "NVIDIA A10 MIG 1g"}[handle],
            "nvmlDeviceGetUUID": lambda handle: {"board": UUID, "slice": MIG_UUID}[handle],
            "nvmlDeviceGetCudaComputeCapability": (8, 6),
            "nvmlSystemGetDriverVersion": "580.65.06",
            "nvmlSystemGetCudaDriverVersion_v2": 13000,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                total={"board": 24 * GIB, "slice": 5 * GIB}[handle]
            ),
            "nvmlDeviceGetMaxClockInfo": self.of_board(lambda clock: {1: 1695, 2: 6251}[clock]),
            "nvmlDeviceGetEnforcedPowerLimit": self.of_board(150_000),
            "nvmlDeviceGetPersistenceMode": self.of_board(1),
            "nvmlDeviceGetComputeMode": self.of_board(3),
            "nvmlDeviceGetEccMode": self.of_board([1, 0]),
            "nvmlDeviceGetMigMode": self.of_board([0, 1]),
            "nvmlDeviceGetVirtualizationMode": self.of_board(1),
            "nvmlSystemGetConfComputeState": SimpleNamespace(environment=2, ccFeature=0, devToolsMode=0),
            "nvmlDeviceGetVbiosVersion": self.of_board("94.02.75.00.01"),
            "nvmlDeviceGetClockInfo": self.of_board(lambda clock: {1: 1650, 2: 6250}[clock]),
            "nvmlDeviceGetTemperatureV": self.of_board(lambda sensor: 61 + sensor),
            "nvmlDeviceGetPowerUsage": self.of_board(142_500),
            "nvmlDeviceGetCurrentClocksEventReasons": self.of_board(0x4),
            "nvmlDeviceGetComputeRunningProcesses_v3": [listed(os.getpid()), listed(4242, 3 * GIB)],
            "nvmlDeviceGetMPSComputeRunningProcesses_v3": [],
            "nvmlDeviceGetGraphicsRunningProcesses_v3": [listed(100, None)],
            "nvmlDeviceGetProcessUtilization": NVMLError("not found"),
            "nvmlDeviceGetViolationStatus": self.of_board(
                lambda policy: SimpleNamespace(referenceTime=9, violationTime={0: 1_500_000_000, 1: 0}[policy])
            ),
            **answers,
        }

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1
    NVML_COMPUTEMODE_DEFAULT, NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 0, 3
    NVML_GPU_VIRTUALIZATION_MODE_NONE, NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH = 0, 1

    @staticmethod
    def handle(uuid: str) -> str:
        try:
            return {UUID: "board", MIG_UUID: "slice"}[uuid]
        except KeyError:
            raise NVMLError("not found") from None

    @staticmethod
    def of_board(answer: Any) -> Callable[..., Any]:
        """An answer that NVML refuses for a MIG device."""

        def ask(handle: str, *arguments: Any) -> Any:
            if handle != "board":
                raise NVMLError("invalid argument")
            return answer(*arguments) if callable(answer) else answer

        return ask

    def __getattr__(self, name: str) -> Any:
        if name == "answers" or name not in self.answers:
            raise AttributeError(name)

        def ask(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return ask

    def without(self, *names: str) -> FakeNvml:
        for name in names:
            del self.answers[name]
        return self


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """Puts a fake in the package's place for one test; Python's end does not shut it down."""
    monkeypatch.setattr(nvml, "atexit", SimpleNamespace(register=lambda *_: None))

    def put(fake: Any) -> Any:
        nvml._library.cache_clear()
        monkeypatch.setattr(nvml, "_pynvml", lambda: fake)
        return fake

    yield put
    nvml._library.cache_clear()


def found(uuid: str = UUID) -> Gpu:
    gpu = Gpu.find(uuid)
    assert gpu is not None
    return gpu


# -- finding a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", [UUID, UUID.removeprefix("GPU-"), UUID.removeprefix("GPU-").replace("-", "").upper()]
)
def test_gpu_is_found_by_every_spelling_of_its_uuid(spelling: str, install: Callable[[Any], Any]) -> None:
    install(FakeNvml())
    gpu = found(spelling)
    assert gpu.uuid == UUID
    assert gpu.describe()["name"] == "NVIDIA A10"


@pytest.mark.parametrize("spelling", [MIG_UUID, MIG_UUID.removeprefix("MIG-")])
def test_mig_device_has_its_own_memory_and_the_boards_clocks(spelling: str, install: Callable[[Any], Any]) -> None:
    fake = install(FakeNvml(nvmlDeviceGetMigMode=FakeNvml.of_board([1, 1])))
    gpu = found(spelling)
    described = gpu.describe()
    assert (described["name"], described["uuid"], described["mig"]) == ("NVIDIA A10 MIG 1g", MIG_UUID, "on")
    assert (described["memory_bytes"], described["max_sm_mhz"]) == (5 * GIB, 1695)
    assert gpu.sample().sm_mhz == 1650
    gpu.all_processes()
    assert ("nvmlDeviceGetComputeRunningProcesses_v3", "slice") in fake.calls


def test_unknown_uuid_is_no_gpu(install: Callable[[Any], Any]) -> None:
    install(FakeNvml())
    assert Gpu.find("GPU-00000000-0000-0000-0000-000000000000") is None
    assert Gpu.find("") is None


def test_without_the_package_there_is_no_gpu(install: Callable[[Any], Any]) -> None:
    install(None)
    assert Gpu.find(UUID) is None


def test_without_the_driver_there_is_no_gpu(install: Callable[[Any], Any]) -> None:
    install(FakeNvml(nvmlInit=NVMLError("library not found")))
    assert Gpu.find(UUID) is None


def test_library_is_initialised_once_and_shut_down_at_exit(
    install: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(FakeNvml(nvmlShutdown=NVMLError("uninitialized")))
    at_exit: list[tuple[Any, ...]] = []
    monkeypatch.setattr(nvml, "atexit", SimpleNamespace(register=lambda *call: at_exit.append(call)))
    found(), found()
    assert fake.calls.count(("nvmlInit",)) == 1
    ((shut_down, *arguments),) = at_exit
    shut_down(*arguments)
    assert fake.calls[-1] == ("nvmlShutdown",)


def test_driver_is_told_without_a_gpu(install: Callable[[Any], Any]) -> None:
    install(FakeNvml())
    assert nvml.driver_version() == "580.65.06"
    install(FakeNvml(nvmlSystemGetDriverVersion=b"470.1"))
    assert nvml.driver_version() == "470.1"


def test_driver_is_empty_where_nvml_does_not_tell(install: Callable[[Any], Any]) -> None:
    for nothing in (None, FakeNvml(nvmlInit=NVMLError("no driver")), FakeNvml().without("nvmlSystemGetDriverVersion")):
        install(nothing)
        assert nvml.driver_version() == ""


# -- what is read -----------------------------------------------------------------------------------------------------


def test_description_has_units_and_words(install: Callable[[Any], Any]) -> None:
    install(FakeNvml())
    assert found().describe() == {
        "name": "NVIDIA A10",
        "uuid": UUID,
        "compute_capability": "8.6",
        "driver": "580.65.06",
        "cuda": "13.0",
        "memory_bytes": 24 * GIB,
        "max_sm_mhz": 1695,
        "max_memory_mhz": 6251,
        "power_limit_w": 150.0,
        "persistence": "on",
        "compute_mode": "exclusive process",
        "ecc": "on",
        "mig": "off",
        "virtualization": "passthrough",
        "confidential_computing": "off",
        "vbios": "94.02.75.00.01",
    }


def test_sample_has_units(install: Callable[[Any], Any]) -> None:
    install(FakeNvml())
    assert found().sample() == Sample(
        sm_mhz=1650, memory_mhz=6250, temperature_c=61, power_w=142.5, reasons=REASON_BITS["SwPowerCap"]
    )
    assert found().violations() == {"power": 1.5, "thermal": 0.0}


def test_old_packages_names_tell_the_same(install: Callable[[Any], Any]) -> None:
    board = FakeNvml.of_board
    install(
        FakeNvml(
            nvmlDeviceGetCurrentClocksThrottleReasons=board(0x4),
            nvmlDeviceGetTemperature=board(61),
            nvmlDeviceGetPowerManagementLimit=board(150_000),
            nvmlSystemGetCudaDriverVersion=12080,
            nvmlDeviceGetName=b"NVIDIA A10",
            nvmlDeviceGetComputeRunningProcesses=[listed(7)],
        ).without(
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetTemperatureV",
            "nvmlDeviceGetEnforcedPowerLimit",
            "nvmlSystemGetCudaDriverVersion_v2",
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceIsMigDeviceHandle",
            "nvmlDeviceGetMPSComputeRunningProcesses_v3",
            "nvmlDeviceGetGraphicsRunningProcesses_v3",
        )
    )
    gpu = found()
    assert (gpu.sample().reasons, gpu.sample().temperature_c) == (0x4, 61)
    described = gpu.describe()
    assert (described["power_limit_w"], described["cuda"], described["name"]) == (150.0, "12.8", "NVIDIA A10")
    assert gpu.all_processes() == [Process(7, GIB, "compute")]


def test_old_driver_under_a_new_package_is_asked_for_its_older_list(install: Callable[[Any], Any]) -> None:
    install(
        FakeNvml(
            nvmlDeviceGetComputeRunningProcesses_v3=NVMLError("function not found"),
            nvmlDeviceGetComputeRunningProcesses_v2=[listed(7)],
            nvmlDeviceGetGraphicsRunningProcesses_v3=NVMLError("function not found"),
            nvmlDeviceGetGraphicsRunningProcesses=NVMLLibraryMismatchError("use _v2"),
        )
    )
    assert found().all_processes() == [Process(7, GIB, "compute")]


QUERIES = sorted({name for name in FakeNvml().answers if name.startswith(("nvmlDeviceGet", "nvmlSystem"))})


@pytest.mark.parametrize("refused", [name for name in QUERIES if name != "nvmlDeviceGetHandleByUUID"])
def test_refused_query_leaves_only_its_own_field_untold(refused: str, install: Callable[[Any], Any]) -> None:
    def read(fake: FakeNvml) -> dict[str, Any]:
        install(fake)
        gpu = found()
        told: dict[str, Any] = {**gpu.describe(), **vars(gpu.sample()), "processes": gpu.all_processes()}
        told["violations"] = gpu.violations()
        told["graphics"] = [process for process in gpu.all_processes() or [] if process.kind == "graphics"]
        told["sm_percent"] = gpu.sm_percent(0.0)
        return told

    told = read(FakeNvml())
    refusing = read(FakeNvml(**{refused: NVMLError("not supported")}))
    lacking = read(FakeNvml().without(refused))
    assert refusing == lacking
    changed = {name: value for name, value in refusing.items() if value != told[name]}
    assert len(changed) <= 3
    assert all(value is None or value in ([], {}) for name, value in changed.items() if name != "processes")


def test_gpu_that_answers_nothing_has_every_key(install: Callable[[Any], Any]) -> None:
    fake = install(FakeNvml())
    gpu = found()
    for name in fake.answers:
        fake.answers[name] = NVMLError("GPU is lost")
    described = gpu.describe()
    assert described.pop("uuid") == UUID
    assert set(described.values()) == {None}
    assert gpu.sample() == Sample(None, None, None, None, None)
    assert (gpu.all_processes(), gpu.violations(), gpu.sm_percent(0)) == (None, {}, {})


def test_missing_constant_leaves_the_field_untold(
    install: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeNvml, "NVML_CLOCK_SM")
    monkeypatch.delattr(FakeNvml, "NVML_COMPUTEMODE_EXCLUSIVE_PROCESS")
    install(FakeNvml())
    assert found().sm_mhz() is None
    assert found().describe()["compute_mode"] is None


# -- processes --------------------------------------------------------------------------------------------------------


def test_processes_are_listed_by_pid_ours_too(install: Callable[[Any], Any]) -> None:
    ours = listed(os.getpid())
    install(FakeNvml(nvmlDeviceGetComputeRunningProcesses_v3=[listed(2**22 + 7, 3 * GIB), ours]))
    processes = found().all_processes()
    assert processes is not None
    assert [process.pid for process in processes] == sorted({100, os.getpid(), 2**22 + 7})
    assert {Process(100, None, "graphics"), Process(2**22 + 7, 3 * GIB, "compute")} < {*processes}


def test_process_in_two_lists_is_one_process(install: Callable[[Any], Any]) -> None:
    install(
        FakeNvml(
            nvmlDeviceGetComputeRunningProcesses_v3=[listed(5), listed(6)],
            nvmlDeviceGetGraphicsRunningProcesses_v3=[listed(5, None)],
            nvmlDeviceGetMPSComputeRunningProcesses_v3=[listed(6)],
        )
    )
    assert found().all_processes() == [Process(5, GIB, "compute+graphics"), Process(6, GIB, "mps")]


def test_processes_are_not_told_where_the_compute_list_is_not(install: Callable[[Any], Any]) -> None:
    install(FakeNvml(nvmlDeviceGetComputeRunningProcesses_v3=NVMLError("no permission")))
    assert found().all_processes() is None


def test_use_of_the_gpu_is_the_mean_by_pid_without_impossible_samples(install: Callable[[Any], Any]) -> None:
    samples = [
        SimpleNamespace(pid=pid, smUtil=percent) for pid, percent in ((5, 40), (5, 20), (6, 3), (0, 9), (6, 4_000))
    ]
    fake = install(FakeNvml(nvmlDeviceGetProcessUtilization=samples))
    assert found().sm_percent(2.5) == {5: 30.0, 6: 3.0}
    assert fake.calls[-1] == ("nvmlDeviceGetProcessUtilization", "board", 2_500_000)


# -- the real package -------------------------------------------------------------------------------------------------


def names_in_source() -> set[str]:
    tree = ast.parse(Path(nvml.__file__).read_text(encoding="utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {name for name in attributes | texts if name.startswith(("nvml", "NVML")) and name.isidentifier()}


def test_every_name_is_one_of_the_real_package() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = names_in_source()
    assert {"nvmlInit", "nvmlDeviceGetHandleByUUID", "NVML_CLOCK_SM", "NVMLError"} <= names
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []


def test_no_name_sets_or_resets_anything() -> None:
    assert [name for name in names_in_source() if "Set" in name.removeprefix("nvml") or "Reset" in name] == []


def test_reason_bits_are_the_real_package_s() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name, bit in REASON_BITS.items():
        assert getattr(pynvml, f"nvmlClocksThrottleReason{name}") == bit


def test_fake_has_only_names_of_the_real_package() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = {*FakeNvml().answers, *(name for name in vars(FakeNvml) if name.startswith("NVML"))}
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []


@pytest.mark.skipif(environment.has_nvidia_driver(), reason="an NVIDIA driver is loaded")
def test_real_package_without_a_driver_finds_no_gpu() -> None:
    pytest.importorskip("pynvml")
    nvml._library.cache_clear()
    assert Gpu.find(UUID) is None


@pytest.mark.gpu
def test_real_gpu_is_found_by_torchs_uuid() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("pynvml")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")
    nvml._library.cache_clear()
    properties = torch.cuda.get_device_properties(0)
    gpu = found(str(properties.uuid))
    described = gpu.describe()
    assert described["compute_capability"] == f"{properties.major}.{properties.minor}"
    assert str(properties.uuid) in str(described["uuid"])
