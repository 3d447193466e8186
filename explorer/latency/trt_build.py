"""Builds TensorRT engines from ONNX graphs: TensorRT 10 and 11 and TensorRT for RTX through one path.

What a library can do is asked of it (`hasattr`), never read from its version. Networks are strongly typed: the precision is
that of the graph's tensors, TF32 is off. A failing call of TensorRT returns None and leaves the reason in its log, so every
build has a log of its own. TensorRT for RTX needs no GPU to build for a named compute capability.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from explorer.errors import BackendMissing, BuildError

#: Where the Python bindings may be: TensorRT, TensorRT for RTX, and the latter's wheel without its thin package.
LIBRARIES: Final = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
#: What RTX logs as an internal error on every good build.
_NOISE: Final = "Thread context has not been set"
_ERRORS: Final = ("INTERNAL_ERROR", "ERROR")
_KEPT: Final = (*_ERRORS, "WARNING")
_MAX_LINES: Final = 400
#: A signal is seen this soon.
_JOIN_S: Final = 0.2


def _import() -> Any:
    """The first library that is here. Raises BackendMissing, which says what was tried."""
    tried = []
    for name in LIBRARIES:
        try:
            library = importlib.import_module(name)
        except (ImportError, OSError) as error:
            tried.append(f"{name}: {error}")
            continue
        if hasattr(library, "Builder"):
            return library
        tried.append(f"{name}: holds no Builder (stubs alone?)")
    raise BackendMissing(
        "backend tensorrt: no TensorRT can be imported; install it: pip install tensorrt (data-centre, desktop and Jetson "
        "GPUs), or pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs (TensorRT for RTX: GeForce and RTX GPUs); "
        f"tried {'; '.join(tried)}"
    )


trt: Any = _import()

#: TensorRT for RTX alone can build for a GPU that is not here.
IS_RTX: Final = hasattr(trt, "ComputeCapability")


def version() -> str:
    """`11.4.0.106`, or `RTX 1.7.1.116`."""
    return f"{'RTX ' if IS_RTX else ''}{trt.__version__}"


@dataclass(frozen=True)
class Options:
    """How an engine is built. All of it is recorded and part of the engine's key.

    `level`: builder optimization level (0..5; no effect in RTX). `aux_streams`: streams beside the main one, 0 for one stream.
    `workspace_bytes`: None for the library's default. `batches`: smallest, usual and largest batch of a dynamic graph.
    `compute_capabilities`: `8.6` and the like, each once, which RTX builds for; empty for the GPU that is here.
    `user_allocation`: the context's memory is the caller's, without which RTX does not promise that an inference can be
    captured in a CUDA graph.
    """

    level: int = 3
    aux_streams: int = 0
    workspace_bytes: int | None = None
    batches: tuple[int, int, int] | None = None
    compute_capabilities: tuple[str, ...] = ()
    user_allocation: bool = False

    def __post_init__(self) -> None:
        assert 0 <= self.level <= 5
        assert self.aux_streams >= 0
        assert len(set(self.compute_capabilities)) == len(self.compute_capabilities)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Built:
    """A serialized engine (`plan`), the seconds it took, layers of the network before fusion, and what to keep: the timing
    cache, and the last lines of TensorRT's log as (severity, message).
    """

    plan: bytes
    build_s: float
    num_layers: int
    timing_cache: bytes | None
    log: tuple[tuple[str, str], ...]


class Log(trt.ILogger):
    """Keeps the last warnings and errors of TensorRT's log. Must live as long as anything that was given it."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[tuple[str, str]] = []

    def log(self, severity: Any, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        if severity.name in _KEPT:
            self.lines.append((severity.name, msg))
            del self.lines[:-_MAX_LINES]

    def reason(self) -> str:
        """What TensorRT says went wrong."""
        errors = [msg for severity, msg in self.lines if severity in _ERRORS and _NOISE not in msg]
        return errors[-1] if errors else "TensorRT gave no reason"


class Progress(trt.IProgressMonitor):
    """Tells how far a build is, and ends it at a deadline or when `on_event` raises. Called from threads of the builder.

    `on_event` is given the phase, steps done and steps in all.
    """

    def __init__(self, on_event: Callable[[str, int, int], None], deadline: float | None) -> None:
        trt.IProgressMonitor.__init__(self)
        self.on_event, self.deadline = on_event, deadline
        self.steps: dict[str, int] = {}
        self.lock = threading.Lock()
        self.is_late = False
        self.stopped_by: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT."""
        with self.lock:
            self.steps[phase_name] = num_steps
        self._tell(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False ends the build."""
        self._tell(phase_name, step + 1)
        return self.stopped_by is None and not self.is_late

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT."""
        with self.lock:
            self.steps.pop(phase_name, None)

    def stop(self, reason: BaseException) -> None:
        """Ends the build at its next step."""
        self.stopped_by = self.stopped_by or reason

    def _tell(self, phase: str, done: int) -> None:
        if self.stopped_by is not None:
            return
        # An exception would be printed and lost inside TensorRT.
        try:
            self.on_event(phase, done, self.steps.get(phase, done))
        except BaseException as error:  # noqa: BLE001
            self.stop(error)
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.is_late = True


def build(
    onnx_bytes: bytes,
    options: Options = Options(),
    *,
    name: str = "graph",
    on_event: Callable[[str, int, int], None] = lambda phase, done, total: None,
    deadline: float | None = None,
    timing_cache: bytes | None = None,
) -> Built:
    """Builds an engine. `deadline`: of time.monotonic(). `name`: of the network, for messages. Takes seconds to minutes.

    Raises BuildError (kind `build`, `timeout` or `out_of_memory`), BackendMissing where a GPU is needed and none is here or
    the library does not support it, and what `on_event` raises, which ends the build.
    """
    log = Log()
    builder = _builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_bytes):
        raise BuildError(
            f"{name}: TensorRT {version()} does not read the graph: {_parser_errors(parser) or log.reason()}"
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.level
    config.max_aux_streams = options.aux_streams
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.batches is not None:
        _add_profile(builder, network, config, options.batches)
    if IS_RTX:
        _configure_rtx(config, options)
    else:
        cache = config.create_timing_cache(timing_cache or b"")
        if not config.set_timing_cache(cache, False):  # of another GPU or library after all
            config.set_timing_cache(config.create_timing_cache(b""), False)
    progress = Progress(on_event, deadline)
    config.progress_monitor = progress
    start = time.perf_counter()
    plan = _in_a_thread(lambda: builder.build_serialized_network(network, config), progress)
    if progress.stopped_by is not None:
        raise progress.stopped_by
    if plan is None:
        raise _failure(name, log, options, is_late=progress.is_late, seconds=time.perf_counter() - start)
    new_cache = None if IS_RTX else bytes(memoryview(config.get_timing_cache().serialize()))
    seconds = time.perf_counter() - start
    return Built(bytes(memoryview(plan)), seconds, network.num_layers, new_cache, tuple(log.lines))


def _in_a_thread(build: Callable[[], Any], progress: Progress) -> Any:
    """What `build` returns. A signal would be raised inside a callback of TensorRT, which prints it and builds on."""
    built: list[Any] = []
    thread = threading.Thread(target=lambda: built.append(build()), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_JOIN_S)
    except BaseException as error:
        progress.stop(error)
        thread.join()
        raise
    return built[0] if built else None


def compute_capabilities() -> tuple[str, ...]:
    """Those that RTX names, as `8.6`; empty for TensorRT, which builds for the GPU that is here."""
    if not IS_RTX:
        return ()
    names = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{name[:-1]}.{name[-1]}" for name in names)


def require_supported(compute_capability: str) -> None:
    """Raises BackendMissing where the library does not run on GPUs of this compute capability (`9.0`)."""
    known = compute_capabilities()
    newest = max((tuple(map(int, one.split("."))) for one in known), default=(0, 0))
    is_newer = tuple(map(int, compute_capability.split("."))) > newest
    if known and compute_capability not in known and not is_newer:
        raise BackendMissing(
            f"backend tensorrt: TensorRT for RTX {trt.__version__} does not run on GPUs of compute capability "
            f"{compute_capability}; it runs on {', '.join(known)} and newer; install TensorRT: pip install tensorrt"
        )


def trtexec(onnx: str, engine: str, options: Options, *, image: tuple[int, int, int]) -> str:
    """The command that builds the same engine from the file `onnx` into `engine` and times it, without swinexplore.

    `image`: channels, height, width. TensorRT 11 replays a CUDA graph and moves no data unless told; 10 and RTX must be told.
    """
    program = "tensorrt_rtx" if IS_RTX else "trtexec"
    words = [program, f"--onnx={onnx}", f"--saveEngine={engine}", "--noTF32", "--profilingVerbosity=detailed"]
    words += [f"--builderOptimizationLevel={options.level}", f"--maxAuxStreams={options.aux_streams}"]
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes}B")
    if options.batches is not None:
        shapes = ("x".join(map(str, (batch, *image))) for batch in options.batches)
        words += [f"--{kind}Shapes=image:{shape}" for kind, shape in zip(("min", "opt", "max"), shapes, strict=True)]
    if options.compute_capabilities:
        named = ",".join(one.replace(".", "") for one in options.compute_capabilities)
        words.append(f"--computeCapabilities={named}")
    elif IS_RTX:
        words.append("--useGpu")
    is_10 = hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    if is_10:
        words.append("--stronglyTyped")
    if is_10 or IS_RTX:
        words += ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"]
    return " ".join(words)


def _builder(log: Log) -> Any:
    try:
        return trt.Builder(log)
    except TypeError:
        raise BackendMissing(
            f"backend tensorrt: TensorRT {version()} cannot start here: {log.reason()}; it needs an NVIDIA GPU and a driver"
        ) from None


def _configure_rtx(config: Any, options: Options) -> None:
    """For RTX: what a capture by ourselves needs, and the GPUs to build for."""
    if options.user_allocation:
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    wanted = options.compute_capabilities or ("CURRENT",)
    config.num_compute_capabilities = len(wanted)
    for index, one in enumerate(wanted):
        member = getattr(trt.ComputeCapability, one if one == "CURRENT" else f"SM{one.replace('.', '')}", None)
        if member is None or not config.set_compute_capability(member, index):
            raise BackendMissing(
                f"compute capability: {one!r} is not supported by TensorRT for RTX {trt.__version__}; allowed: "
                f"{', '.join(compute_capabilities())}"
            )


def _add_profile(builder: Any, network: Any, config: Any, batches: tuple[int, int, int]) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        numbers = ", ".join(map(str, batches))
        raise BuildError(f"the graph does not take batch {numbers} as its smallest, usual and largest")


def _parser_errors(parser: Any) -> str:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return "; ".join(
        f"{error.node_operator()} {error.node_name()}: {error.desc()}".removeprefix(" : ") for error in errors
    )


def _failure(name: str, log: Log, options: Options, *, is_late: bool, seconds: float) -> Exception:
    reason = log.reason()
    if is_late:
        return BuildError(f"{name}: the engine was not built by its deadline, after {seconds:.0f} s", "timeout")
    has_no_gpu = "driver version is insufficient" in reason or "no CUDA-capable device" in reason
    if has_no_gpu and not options.compute_capabilities:
        return BackendMissing(
            f"backend tensorrt: TensorRT {version()} finds no NVIDIA GPU to build for ({reason}); name one, for TensorRT for "
            "RTX: --compute-capability 8.6"
        )
    text = "\n".join(message for severity, message in log.lines if severity in (*_ERRORS, "WARNING"))
    is_memory = "OutOfMemory" in text or "out of memory" in text.lower()
    return BuildError(
        f"{name}: TensorRT {version()} builds no engine: {reason}", "out_of_memory" if is_memory else None
    )
