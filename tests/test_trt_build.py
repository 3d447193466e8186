"""Engines from the real builder of TensorRT for RTX, for a GPU that is not here; and what a build says when it fails."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from explorer import model
from explorer.arch import PRESETS, Arch, parse_name
from explorer.errors import BackendMissing, BuildError
from explorer.latency import environment
from explorer.model.onnx_graph import write_onnx
from explorer.model.swin import Swin
from explorer.records import Precision

pytest.importorskip("tensorrt_rtx_bindings", reason="pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs")

from explorer.latency import trt_build
from explorer.latency.trt_build import Built, Options, build

pytestmark = pytest.mark.skipif(
    not trt_build.IS_RTX, reason="TensorRT is here, and builds for the GPU that is here alone"
)
without_gpu = pytest.mark.skipif(environment.has_nvidia_driver(), reason="there is an NVIDIA driver here")

RTX_30 = Options(compute_capabilities=("8.6",))
SMALL = "Swin-E32x1.1.1.1-H2.4.8.16-R56-P1-N10"
#: One fused attention leaves this many marks in the plan of TensorRT for RTX 1.7.
MARKS_PER_ATTENTION = 18


def graph_of(name: str = SMALL, *, batch: int | None = 1, precision: Precision = "fp16") -> bytes:
    module = model.build(parse_name(name), scatter=True).eval()
    return bytes(write_onnx(module, batch=batch, precision=precision).SerializeToString())


@pytest.fixture(scope="module")
def graph() -> bytes:
    """Of SMALL in fp16 at batch 1."""
    return graph_of()


def num_fused(plan: bytes) -> float:
    return plan.count(b"_gemm_mha_v2") / MARKS_PER_ATTENTION


# -- networks ---------------------------------------------------------------------------------------------------------


def with_any_weights(arch: Arch) -> Swin:
    """Sooner than drawing them as for training: all differ, and none is left out as a 0 or a 1."""
    module = Swin(arch, 0.0).eval()
    generator = torch.Generator().manual_seed(0)
    for values in module.state_dict().values():
        if values.is_floating_point():
            values.uniform_(0.01, 0.1, generator=generator)
    return module


@pytest.mark.parametrize("name", PRESETS)
def test_published_network_is_built_with_every_attention_fused(name: str) -> None:
    arch = PRESETS[name]
    onnx_bytes = write_onnx(with_any_weights(arch), batch=1, precision="fp16").SerializeToString()
    built = build(onnx_bytes, RTX_30, name=name)
    assert num_fused(built.plan) == sum(arch.depths)
    assert built.num_layers > 30 * sum(arch.depths)
    assert len(built.plan) > 0.95 * len(onnx_bytes), "the weights are in the engine"


@pytest.mark.parametrize(("precision", "fused"), [("fp32", 0), ("fp16", 4), ("bf16", 4)])
def test_every_precision_is_built(precision: Precision, fused: int) -> None:
    assert num_fused(build(graph_of(precision=precision), RTX_30).plan) == fused


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_dynamic_graph_is_built_for_a_range_of_batches(precision: Precision) -> None:
    options = Options(batches=(1, 8, 16), compute_capabilities=("8.6",))
    built = build(graph_of(batch=None, precision=precision), options)
    assert num_fused(built.plan) == (0 if precision == "fp32" else 4)


@pytest.mark.parametrize("named", [(one,) for one in trt_build.compute_capabilities()] + [("8.6", "12.0")])
def test_engine_is_built_for_every_gpu_that_can_be_named(named: tuple[str, ...], graph: bytes) -> None:
    assert num_fused(build(graph, Options(compute_capabilities=named)).plan) >= 4


def test_graph_gives_the_same_engine_again(graph: bytes) -> None:
    first, again = build(graph, RTX_30), build(graph, RTX_30)
    assert first.plan == again.plan
    assert first.num_layers == again.num_layers


def test_built_tells_its_seconds_and_keeps_the_log(graph: bytes) -> None:
    start = time.perf_counter()
    built = build(graph, RTX_30)
    assert 0 < built.build_s <= time.perf_counter() - start
    assert built.timing_cache is None, "TensorRT for RTX has no use for one"
    assert isinstance(built.log, tuple)
    assert all(isinstance(word, str) for line in built.log for word in line)


# -- options ----------------------------------------------------------------------------------------------------------


class Spy:
    """TensorRT, but for a builder that keeps the configurations it hands out, and does as told instead of building."""

    def __init__(self, library: Any) -> None:
        self.library = library
        self.log: Any = None
        self.configs: list[Any] = []
        self.instead: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def Builder(self, log: Any) -> Any:  # noqa: N802
        spy, real = self, self.library.Builder(log)
        self.log = log

        class Builder:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def create_builder_config(self) -> Any:
                spy.configs.append(real.create_builder_config())
                return spy.configs[-1]

            def build_serialized_network(self, network: Any, config: Any) -> Any:
                return real.build_serialized_network(network, config) if spy.instead is None else spy.instead()

        return Builder()


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    watching = Spy(trt_build.trt)
    monkeypatch.setattr(trt_build, "trt", watching)
    return watching


def test_options_reach_the_builder(spy: Spy) -> None:
    options = Options(
        level=2,
        aux_streams=1,
        workspace_bytes=64 * 2**20,
        batches=(1, 4, 8),
        compute_capabilities=("8.6", "8.9"),
    )
    assert build(graph_of(batch=None), options).plan
    trt, (config,) = spy.library, spy.configs
    assert config.builder_optimization_level == 2
    assert config.max_aux_streams == 1
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 * 2**20
    assert config.num_optimization_profiles == 1
    assert config.num_compute_capabilities == 2
    named = [config.get_compute_capability(index) for index in range(2)]
    assert named == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM89]


def test_numbers_are_not_rounded_to_tf32(spy: Spy, graph: bytes) -> None:
    trt = spy.library
    log = trt.Logger()
    assert trt.Builder(log).create_builder_config().get_flag(trt.BuilderFlag.TF32), "unless it is told"
    build(graph, RTX_30)
    assert not spy.configs[0].get_flag(trt.BuilderFlag.TF32)


def test_engine_can_be_inspected_and_runs_on_one_stream(spy: Spy, graph: bytes) -> None:
    build(graph, RTX_30)
    trt, (config,) = spy.library, spy.configs
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert config.max_aux_streams == 0


@pytest.mark.parametrize("asked", [True, False])
def test_engine_leaves_memory_to_the_caller_where_asked(asked: bool, spy: Spy, graph: bytes) -> None:
    """Without that, TensorRT for RTX promises no capture; others who load a file need not do it."""
    assert build(graph, Options(compute_capabilities=("8.6",), user_allocation=asked)).plan
    assert spy.configs[0].get_flag(spy.library.BuilderFlag.REQUIRE_USER_ALLOCATION) is asked


def test_workspace_that_is_too_small_is_told(graph: bytes) -> None:
    with pytest.raises(BuildError, match="within workspace limit") as caught:
        build(graph, Options(workspace_bytes=1, compute_capabilities=("8.6",)))
    assert caught.value.kind == "build"


@pytest.mark.parametrize("options", [RTX_30, Options(2, 1, 2**20, (1, 2, 4), ("8.6", "12.0"))])
def test_options_are_recorded(options: Options) -> None:
    assert Options(**options.to_dict()) == options
    assert options.to_dict() == asdict(options)


@pytest.mark.parametrize("named", ["9.0", "10.0", "abc", ""])
def test_unknown_compute_capability_is_refused_with_those_that_are_known(named: str, graph: bytes) -> None:
    with pytest.raises(BackendMissing) as caught:
        build(graph, Options(compute_capabilities=("8.6", named)))
    told = str(caught.value)
    assert repr(named) in told
    assert f"allowed: {', '.join(trt_build.compute_capabilities())}" in told


def test_compute_capabilities_are_as_nvidia_writes_them() -> None:
    known = trt_build.compute_capabilities()
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(known)
    assert "9.0" not in known


@pytest.mark.parametrize(
    ("gpu", "runs"), [("8.6", True), ("12.0", True), ("13.0", True), ("9.0", False), ("10.0", False)]
)
def test_gpus_that_the_library_runs_on(gpu: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer ones than it knows may be served; none is refused by TensorRT, which tells when it starts."""
    if runs:
        trt_build.require_supported(gpu)
    else:
        with pytest.raises(
            BackendMissing, match=rf"does not run on GPUs of .* {gpu}; it runs on 7\.5, .*pip install tensorrt$"
        ):
            trt_build.require_supported(gpu)
    monkeypatch.setattr(trt_build, "IS_RTX", False)
    trt_build.require_supported(gpu)
    assert trt_build.compute_capabilities() == ()


# -- what is here -----------------------------------------------------------------------------------------------------


def test_library_is_told_apart_by_what_it_can_do() -> None:
    assert hasattr(trt_build.trt, "ComputeCapability") == trt_build.IS_RTX
    assert trt_build.version() == f"RTX {trt_build.trt.__version__}"


def test_version_of_tensorrt_is_a_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_build, "IS_RTX", False)
    assert trt_build.version() == trt_build.trt.__version__


BLOCKED = """\
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from explorer.errors import BackendMissing
try:
    from explorer.latency import trt_build
    print("found", trt_build.trt.__name__)
except BackendMissing as error:
    print(error)
"""


def import_without(*blocked: str, folder: Path) -> str:
    """What a process says that imports the builder where these packages are not installed; `folder` comes first in its path."""
    script = f"import sys\nsys.path.insert(0, {str(folder)!r})\n" + BLOCKED.format(blocked=set(blocked) or "()")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_missing_library_is_told_with_how_to_install_it(tmp_path: Path) -> None:
    told = import_without("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", folder=tmp_path)
    assert told.startswith("backend tensorrt: no TensorRT can be imported; install it: pip install tensorrt ")
    assert "pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs" in told
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        assert f"{name}: No module named '{name}'" in told
    assert "\n" not in told


def test_stubs_alone_are_no_library(tmp_path: Path) -> None:
    """They make `import tensorrt` succeed."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").write_text("class Builder: ...\n")
    assert "tensorrt: holds no Builder" in import_without("tensorrt_rtx", "tensorrt_rtx_bindings", folder=tmp_path)
    assert import_without("tensorrt_rtx", folder=tmp_path) == "found tensorrt_rtx_bindings"


@pytest.mark.parametrize("error", ["OSError", "ImportError"])
def test_bindings_without_their_library_are_passed_over(error: str, tmp_path: Path) -> None:
    (tmp_path / "tensorrt").mkdir()
    reason = "libnvinfer.so.11: cannot open shared object file"
    (tmp_path / "tensorrt" / "__init__.py").write_text(f"raise {error}({reason!r})\n")
    assert f"tensorrt: {reason}" in import_without("tensorrt_rtx", "tensorrt_rtx_bindings", folder=tmp_path)
    assert import_without("tensorrt_rtx", folder=tmp_path) == "found tensorrt_rtx_bindings"


@without_gpu
def test_build_for_the_gpu_here_tells_that_there_is_none_and_how_to_name_one(graph: bytes) -> None:
    with pytest.raises(BackendMissing, match=r"finds no NVIDIA GPU to build for .*--compute-capability \d+\.\d$"):
        build(graph, Options())


def test_tensorrt_that_cannot_start_is_missing(spy: Spy, graph: bytes) -> None:
    """As TensorRT does where there is no driver."""

    def start(log: Any) -> Any:
        log.log(spy.library.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    spy.Builder = start  # type: ignore[method-assign]
    with pytest.raises(
        BackendMissing, match=r"cannot start here: CUDA initialization failure .*; it needs an NVIDIA GPU"
    ):
        build(graph, RTX_30)


@without_gpu
def test_engine_is_not_loaded_without_a_driver(graph: bytes) -> None:
    log = trt_build.Log()
    assert trt_build.trt.Runtime(log).deserialize_cuda_engine(build(graph, RTX_30).plan) is None
    assert "driver version is insufficient" in log.reason()


# -- what may fail ----------------------------------------------------------------------------------------------------


def model_of(nodes: list[onnx.NodeProto], *inputs: tuple[str, int]) -> bytes:
    """A graph of these nodes from inputs of shape (1, 4) to the fp16 output `out`."""
    values = [helper.make_tensor_value_info(name, element, [1, 4]) for name, element in inputs]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT16, [1, 4])
    made = helper.make_model(
        helper.make_graph(nodes, "broken", values, [out]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    return bytes(made.SerializeToString())


MIXED = model_of(
    [helper.make_node("Add", ["a", "b"], ["out"], name="sum_of_two")],
    ("a", TensorProto.FLOAT16),
    ("b", TensorProto.FLOAT),
)
UNKNOWN = model_of([helper.make_node("Frobnicate", ["a"], ["out"], name="odd_one")], ("a", TensorProto.FLOAT16))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"no graph at all", r"does not read the graph: (?!:).*Failed to parse"),
        (b"", r"Network must have at least one output"),
        (MIXED, r"does not read the graph: Add sum_of_two: .*must have same input types.*Half and Float"),
        (UNKNOWN, r"does not read the graph: Frobnicate odd_one: "),
    ],
)  # fmt: skip
def test_graph_that_is_not_read_is_told_with_its_node_or_the_reason(broken: bytes, message: str) -> None:
    with pytest.raises(BuildError, match=rf"(?s)^mine: TensorRT RTX [\d.]+ .*{message}") as caught:
        build(broken, RTX_30, name="mine")
    assert caught.value.kind == "build"


def test_half_a_graph_is_not_read(graph: bytes) -> None:
    with pytest.raises(BuildError, match=r"does not read the graph: .*Failed to parse"):
        build(graph[: len(graph) // 2], RTX_30)


def test_fp32_for_a_gpu_without_it_is_told() -> None:
    with pytest.raises(BuildError, match=r"builds no engine: .*FP32 GEMM is not supported") as caught:
        build(graph_of(precision="fp32"), Options(compute_capabilities=("7.5",)))
    assert caught.value.kind == "build"


@pytest.mark.parametrize(
    ("batches", "is_dynamic", "message"),
    [
        (None, True, "no optimization profile has been defined"),
        ((1, 4, 8), False, "static dimensions that don't match"),
        ((4, 1, 8), True, r"(?i)batch.*4, 1, 8"),
    ],
)
def test_batches_that_the_graph_does_not_take_are_told(
    batches: tuple[int, int, int] | None, is_dynamic: bool, message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        build(graph_of(batch=None if is_dynamic else 1), Options(batches=batches, compute_capabilities=("8.6",)))


def fail(spy: Spy, *lines: tuple[str, str]) -> Callable[[], None]:
    """A build that logs these lines and gives no engine."""

    def instead() -> None:
        for severity, message in lines:
            spy.log.log(getattr(spy.library.ILogger.Severity, severity), message)

    return instead


@pytest.mark.parametrize(
    ("lines", "kind", "message"),
    [
        ([("ERROR", "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")], "out_of_memory", "Requested size was 9"),
        ([("WARNING", "Skipping: CUDA out of memory"), ("ERROR", "no tactic is left")], "out_of_memory", "no tactic is left"),
        ([("ERROR", "first"), ("INTERNAL_ERROR", "second")], "build", "builds no engine: second$"),
        ([("ERROR", "mine"), ("INTERNAL_ERROR", "Thread context has not been set! Using global log stream.")], "build", "mine$"),
        ([("WARNING", "all is well")], "build", "TensorRT gave no reason$"),
        ([("ERROR", "the reason"), *(("VERBOSE", f"line {line}") for line in range(2000))], "build", "the reason$"),
    ],
)  # fmt: skip
def test_failed_build_tells_what_the_log_says(
    lines: list[tuple[str, str]], kind: str, message: str, spy: Spy, graph: bytes
) -> None:
    spy.instead = fail(spy, *lines)
    with pytest.raises(BuildError, match=message) as caught:
        build(graph, RTX_30)
    assert caught.value.kind == kind


def test_good_build_has_no_reason(spy: Spy, graph: bytes) -> None:
    build(graph, RTX_30)
    assert spy.log.reason() == "TensorRT gave no reason"


# -- while it builds --------------------------------------------------------------------------------------------------


def test_build_tells_how_far_it_is(graph: bytes) -> None:
    events: list[tuple[str, int, int]] = []
    build(graph, RTX_30, on_event=lambda phase, done, total: events.append((phase, done, total)))
    assert len(events) > 100
    assert len({phase for phase, _, _ in events}) > 3
    assert all(phase and 0 <= done <= total and total > 0 for phase, done, total in events)
    assert events[0] == ("Building engine", 0, events[0][2])
    first_phase = [done for phase, done, _ in events if phase == events[0][0]]
    assert first_phase == sorted(first_phase)


@pytest.fixture(scope="module")
def watched(graph: bytes) -> tuple[bytes, int]:
    """The engine of SMALL, and the number of events while it is built."""
    events: list[str] = []
    return build(graph, RTX_30, on_event=lambda phase, done, total: events.append(phase)).plan, len(events)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
@pytest.mark.parametrize("at", [1, 20, "last"])
def test_build_ends_with_what_its_listener_raises_and_the_next_one_works(
    error: type[BaseException], at: int | str, graph: bytes, watched: tuple[bytes, int]
) -> None:
    plan, num_events = watched
    stop, count = num_events if at == "last" else int(at), iter(range(1, 10**6))

    def listen(phase: str, done: int, total: int) -> None:
        if (now := next(count)) >= stop:
            raise error(f"event {now}")

    with pytest.raises(error, match=f"^event {stop}$"):
        build(graph, RTX_30, on_event=listen)
    assert build(graph, RTX_30).plan == plan


@pytest.mark.parametrize("passed_s", [0.0, 100.0])
def test_passed_deadline_is_a_timeout_and_the_next_build_works(passed_s: float, graph: bytes) -> None:
    with pytest.raises(BuildError, match=r"^mine: the engine was not built by its deadline, after \d+ s$") as caught:
        build(graph, RTX_30, name="mine", deadline=time.monotonic() - passed_s)
    assert caught.value.kind == "timeout"
    assert build(graph, RTX_30, deadline=time.monotonic() + 600).plan


def test_deadline_that_passes_during_the_build_ends_it(graph: bytes) -> None:
    """Which it does at its first event after it, so not with an engine."""
    events: list[str] = []

    def wait(phase: str, done: int, total: int) -> None:
        events.append(phase)
        while len(events) == 20 and time.monotonic() < deadline:
            time.sleep(0.01)

    deadline = time.monotonic() + 0.5
    with pytest.raises(BuildError, match="was not built by its deadline"):
        build(graph, RTX_30, on_event=wait, deadline=deadline)
    assert len(events) < 40


INTERRUPTED = """\
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started the tests ignores it
from explorer.latency import trt_build

def interrupt():
    started.wait()
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

graph, options, started = open(sys.argv[1], "rb").read(), trt_build.Options(compute_capabilities=("8.6",)), threading.Event()
threading.Thread(target=interrupt, daemon=True).start()
try:
    trt_build.build(graph, options, on_event=lambda phase, done, total: started.set() if done > 50 else None)
    print("built")
except KeyboardInterrupt:
    print("interrupted")
print("again", len(trt_build.build(graph, options).plan) > 0)
"""


def test_ctrl_c_ends_a_build(tmp_path: Path) -> None:
    """It comes while the library works, and Python sees it first in whatever the library calls next."""
    arch = parse_name("Swin-T")
    file = tmp_path / "model.onnx"
    file.write_bytes(write_onnx(with_any_weights(arch), batch=1, precision="fp16").SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(file)], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split("\n") == ["interrupted", "again True", ""], done.stderr


def test_other_threads_run_while_the_library_builds(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two calls into Python a library that holds on to the interpreter lets others take at most one turn."""
    turns, is_over, seen = 0, threading.Event(), list[int]()

    def take_turns() -> None:
        nonlocal turns
        while not is_over.wait(0.0005):
            turns += 1

    class Log(trt_build.Log):
        def log(self, severity: Any, msg: str) -> None:
            seen.append(turns)
            super().log(severity, msg)

    monkeypatch.setattr(trt_build, "Log", Log)
    other = threading.Thread(target=take_turns)
    other.start()
    try:
        build(graph, RTX_30, on_event=lambda phase, done, total: seen.append(turns))
    finally:
        is_over.set()
        other.join()
    assert max(after - before for before, after in pairwise(seen)) > 5


def test_two_builds_at_once_do_not_mix(graph: bytes) -> None:
    other = graph_of("Swin-E32x1.1.1.1-BR-H2.4.8.16-R56-P1-N10")
    expected = [build(each, RTX_30).plan for each in (graph, other)]
    found: dict[int, Built] = {}
    threads = [
        threading.Thread(target=lambda index=index, each=each: found.update({index: build(each, RTX_30)}))
        for index, each in enumerate((graph, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index].plan for index in range(2)] == expected


# -- TensorRT ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of TensorRT 11, whose calls TensorRT for RTX has too."""
    monkeypatch.setattr(trt_build, "IS_RTX", False)


@pytest.mark.usefixtures("as_tensorrt")
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_timing_cache_is_kept_and_given_to_the_next_build(spy: Spy, graph: bytes) -> None:
    first = build(graph)
    assert isinstance(first.timing_cache, bytes)
    assert first.timing_cache
    again = build(graph, timing_cache=first.timing_cache)
    assert again.plan == first.plan
    assert again.timing_cache
    assert spy.configs[0].num_compute_capabilities == 0
    assert not spy.configs[0].get_flag(spy.library.BuilderFlag.REQUIRE_USER_ALLOCATION)


OPTIONS = Options(level=4, aux_streams=2, workspace_bytes=3 * 2**29, batches=(1, 8, 32))


def test_command_for_tensorrt_for_rtx() -> None:
    options = Options(compute_capabilities=("8.6", "12.0"))
    words = [
        "tensorrt_rtx",
        "--onnx=a/model.onnx",
        "--saveEngine=a/model.engine",
        "--noTF32",
        "--profilingVerbosity=detailed",
        "--builderOptimizationLevel=3",
        "--maxAuxStreams=0",
    ]
    timing = ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    arguments = ("a/model.onnx", "a/model.engine")
    named = trt_build.trtexec(*arguments, options, image=(3, 224, 224)).split()
    assert named == [*words, "--computeCapabilities=86,120", *timing]
    here = trt_build.trtexec(*arguments, Options(), image=(3, 224, 224)).split()
    assert here == [*words, "--useGpu", *timing]


COMMAND = [
    "trtexec",
    "--onnx=model.onnx",
    "--saveEngine=model.engine",
    "--noTF32",
    "--profilingVerbosity=detailed",
    "--builderOptimizationLevel=4",
    "--maxAuxStreams=2",
    "--memPoolSize=workspace:1610612736B",
    "--minShapes=image:1x3x64x32",
    "--optShapes=image:8x3x64x32",
    "--maxShapes=image:32x3x64x32",
]


@pytest.mark.usefixtures("as_tensorrt")
def test_command_for_tensorrt_11() -> None:
    """Which is strongly typed, replays a CUDA graph and moves no data unless told."""
    assert trt_build.trtexec("model.onnx", "model.engine", OPTIONS, image=(3, 64, 32)).split() == COMMAND


@pytest.mark.usefixtures("as_tensorrt")
def test_command_for_tensorrt_10(spy: Spy) -> None:
    class Flag:
        EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1

    spy.NetworkDefinitionCreationFlag = Flag  # type: ignore[attr-defined]
    told = ["--stronglyTyped", "--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    assert trt_build.trtexec("model.onnx", "model.engine", OPTIONS, image=(3, 64, 32)).split() == COMMAND + told
