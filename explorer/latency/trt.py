"""TensorRT on an NVIDIA GPU: builds or finds the engine, runs it on torch's buffers, replays it in a CUDA graph."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from explorer.errors import BuildError, MeasureError
from explorer.latency import trt_build
from explorer.latency.base import Facts
from explorer.latency.cache import Cache, key_of
from explorer.latency.cuda import Replay, free_memory_bytes, gpu_uuid
from explorer.latency.environment import nvidia_driver
from explorer.model.deployment import Deployed
from explorer.records import Target

trt: Any = trt_build.trt
_DTYPES: Final = {
    trt.DataType.FLOAT: torch.float32,
    trt.DataType.HALF: torch.float16,
    trt.DataType.BF16: torch.bfloat16,
}

OnEvent = Callable[[str], None]


class TrtRunner:
    """An engine with a random input; see `latency.base.Runner`.

    `cache`: where engines and timing caches are kept. `fresh`: builds anew, with no timing cache, though an engine is kept:
    for the spread from build to build. `deadline`: of time.monotonic(), for the build. Raises BuildError and MeasureError.
    """

    def __init__(
        self,
        deployed: Deployed,
        target: Target,
        seed: int,
        *,
        cache: Cache,
        fresh: bool = False,
        deadline: float | None = None,
        on_event: OnEvent = lambda text: None,
        capture: bool = True,
    ) -> None:
        assert deployed.onnx_bytes is not None
        self.name = deployed.arch.name
        self.log = trt_build.Log()
        options = options_of(target)
        plan, self.build_s, is_kept = _plan(deployed, options, cache, fresh=fresh, deadline=deadline, on_event=on_event)
        free_bytes = free_memory_bytes()
        try:
            self._load(plan, cache)
        except BuildError:
            if not is_kept:
                raise
            on_event("building the engine anew: the one that was kept does not load")
            plan, self.build_s, _ = _plan(
                deployed, options, cache, fresh=fresh, deadline=deadline, on_event=on_event, use_kept=False
            )
            self._load(plan, cache)
        self.engine_bytes = len(plan)
        self.buffers = self._bind(target, deployed, seed)
        is_capturable = self._is_capturable()
        why_not = "not asked for" if is_capturable else "TensorRT says that the engine cannot be captured"
        self.replay = Replay(self._enqueue, capture=capture and is_capturable, why_not=why_not)
        self.replay.run()
        self.peak_memory_bytes = max(0, free_bytes - free_memory_bytes())
        self.record = {
            **options.to_dict(),
            "timed_by": "device events",
            "cuda_graph": self.replay.graph is not None,
            "why_no_graph": self.replay.why_no_graph,
            "activation_bytes": self.engine.device_memory_size_v2
            if hasattr(self.engine, "device_memory_size_v2")
            else None,
            "load_s": self.load_s,
        }

    def run(self) -> None:
        """One inference; returns when the GPU has finished it."""
        self.replay.run()

    def timed(self, at_least_s: float, at_least_runs: int) -> list[float]:
        """See `Runner.timed`."""
        return self.replay.timed(at_least_s, at_least_runs)

    def timed_without_graph(self, at_least_s: float, at_least_runs: int) -> list[float] | None:
        """See `Runner.timed_without_graph`."""
        return None if self.replay.graph is None else self.replay.timed(at_least_s, at_least_runs, graph=False)

    def logits(self) -> np.ndarray:
        """(batch, classes) in fp32: of this run, not of one before it."""
        self.buffers["logits"].fill_(math.nan)
        torch.cuda.synchronize()
        self.run()
        return self.buffers["logits"].float().cpu().numpy()

    def facts(self) -> Facts:
        """See `Runner.facts`."""
        return Facts(self.engine_bytes, self.build_s, self.peak_memory_bytes, self.record)

    def close(self) -> None:
        """Frees graph, context, engine and buffers, in this order."""
        self.replay.close()
        del self.replay, self.context, self.engine, self.runtime, self.buffers, self.memory
        torch.cuda.empty_cache()

    def _load(self, plan: bytes, cache: Cache) -> None:
        """Runtime, engine and context from a plan that this process built or found in its own cache."""
        start = time.perf_counter()
        self.memory: torch.Tensor | None = None
        self.runtime = trt.Runtime(self.log)
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BuildError(
                f"{self.name}: TensorRT {trt_build.version()} does not load the engine: {self.log.reason()}"
            )
        self.engine = engine
        context = self._rtx_context(engine, cache) if trt_build.IS_RTX else engine.create_execution_context()
        if context is None:
            raise BuildError(f"{self.name}: TensorRT {trt_build.version()} makes no context: {self.log.reason()}")
        self.context = context
        self.load_s = time.perf_counter() - start

    def _rtx_context(self, engine: Any, cache: Cache) -> Any:
        """A context in memory of torch; its kernels, compiled just in time, are kept for the next engine on this GPU."""
        key = machine_key()
        config = engine.create_runtime_config()
        compiled = config.create_runtime_cache()
        kept = cache.load("runtime", key)
        if kept is not None:
            compiled.deserialize(kept[0])
        config.set_runtime_cache(compiled)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # we capture ourselves, never both
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context = engine.create_execution_context(config)
        if context is not None:
            size = max(1, engine.device_memory_size_v2)
            try:
                self.memory = torch.empty(size, dtype=torch.uint8, device="cuda")
            except torch.OutOfMemoryError as error:
                raise MeasureError(f"{self.name}: out of memory: {error}", "out_of_memory") from error
            context.set_device_memory(self.memory.data_ptr(), size)
            cache.store("runtime", key, bytes(memoryview(compiled.serialize())))
        return context

    def _bind(self, target: Target, deployed: Deployed, seed: int) -> dict[str, torch.Tensor]:
        """Buffers on the GPU for all inputs and outputs; they must outlive the graph."""
        arch = deployed.arch
        shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
        values = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
        if not self.context.set_input_shape("image", shape):
            raise MeasureError(f"{self.name}: the engine does not take images {shape}: {self.log.reason()}")
        buffers: dict[str, torch.Tensor] = {}
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            dtype = _DTYPES[self.engine.get_tensor_dtype(name)]
            is_input = self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            size = tuple(self.context.get_tensor_shape(name))
            try:
                buffers[name] = values.to("cuda", dtype) if is_input else torch.empty(size, dtype=dtype, device="cuda")
            except torch.OutOfMemoryError as error:
                raise MeasureError(f"{self.name}: out of memory: {error}", "out_of_memory") from error
            if not self.context.set_tensor_address(name, buffers[name].data_ptr()):
                raise MeasureError(f"{self.name}: the engine does not take a buffer for {name}: {self.log.reason()}")
        return buffers

    def _enqueue(self, stream: Any) -> None:
        if not self.context.execute_async_v3(stream.cuda_stream):
            reason = self.log.reason()
            kind = "out_of_memory" if "memory" in reason.lower() else None
            raise MeasureError(f"{self.name}: TensorRT could not run the engine: {reason}", kind)

    def _is_capturable(self) -> bool:
        if not hasattr(self.context, "is_stream_capturable"):
            return True
        return bool(self.context.is_stream_capturable(torch.cuda.Stream().cuda_stream))


def options_of(target: Target) -> trt_build.Options:
    """How an engine for this target is built."""
    most = target.largest_batch
    return trt_build.Options(batches=None if most is None else (1, most, most), user_allocation=trt_build.IS_RTX)


def machine_key() -> str:
    """Names what may be shared between engines: GPU, driver and library."""
    return key_of(gpu=gpu_uuid(), driver=nvidia_driver(), runtime=trt_build.version())


def _plan(
    deployed: Deployed,
    options: trt_build.Options,
    cache: Cache,
    *,
    fresh: bool,
    deadline: float | None,
    on_event: OnEvent,
    use_kept: bool = True,
) -> tuple[bytes, float, bool]:
    """The engine, the seconds it once took to build, and whether it was in the cache."""
    assert deployed.onnx_bytes is not None
    graph = hashlib.sha256(deployed.onnx_bytes).hexdigest()
    key = key_of(graph=graph, machine=machine_key(), options=options.to_dict())
    kept = cache.load("engine", key) if use_kept and not fresh else None
    if kept is not None:
        return kept[0], float(kept[1]["build_s"]), True
    timings = None if fresh else cache.load("timing", machine_key())
    built = trt_build.build(
        deployed.onnx_bytes,
        options,
        name=deployed.arch.name,
        on_event=lambda phase, done, total: on_event(f"building the engine: {phase} {done}/{total}"),
        deadline=deadline,
        timing_cache=timings[0] if timings else None,
    )
    if not fresh:
        cache.store("engine", key, built.plan, build_s=built.build_s, arch=deployed.arch.name, log=built.log)
        if built.timing_cache is not None:
            cache.store("timing", machine_key(), built.timing_cache)
    return built.plan, built.build_s, False


class _LayerTimes(trt.IProfiler):
    """Sums milliseconds by layer."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.times_ms: dict[str, float] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT."""
        self.times_ms[layer_name] = self.times_ms.get(layer_name, 0.0) + ms


def layer_times(
    deployed: Deployed, target: Target, *, runs: int, seed: int, cache: Cache | None = None
) -> tuple[list[tuple[str, float]], str]:
    """(Layer, milliseconds per inference) pairs and the inspector's JSON: a pass of its own, slower than a timed one."""
    runner = TrtRunner(deployed, target, seed, cache=cache or Cache(), capture=False)
    profiler = _LayerTimes()
    try:
        runner.context.profiler = profiler
        runner.context.enqueue_emits_profile = True
        for _ in range(runs):
            runner.run()
        inspector = runner.engine.create_engine_inspector()
        information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    finally:
        runner.close()
    times = [(name, ms / runs) for name, ms in profiler.times_ms.items()]
    if not math.isfinite(sum(ms for _, ms in times)):
        raise MeasureError(f"{deployed.arch.name}: TensorRT's profiler tells no times")
    return times, information
