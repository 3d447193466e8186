"""Timing on an NVIDIA GPU: one inference captured in a CUDA graph, replayed back to back between device events.

As trtexec does it (NVIDIA/TensorRT, samples/common): the next inference is queued before the last is waited for, so that the
GPU never idles and an event pair holds the service time of one inference without the host's launch gaps. Graph and events
are torch's, on a stream of their own; the engine or module that is queued may be anyone's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch

from explorer.errors import MeasureError

#: Inferences before a capture: lazy initialisation and just-in-time compilation must not be captured.
RUNS_BEFORE_CAPTURE: Final = 3


class Replay:
    """An inference on a stream of its own, as a CUDA graph where it can be captured.

    `enqueue` queues one inference on the stream it is given and returns at once; it raises MeasureError. `why_no_graph`: why
    it is queued anew every time, empty where a graph is replayed; `why_not` where it is not to be captured. Raises what
    `enqueue` raises.
    """

    def __init__(
        self,
        enqueue: Callable[[Any], None],
        *,
        cuda: Any = torch.cuda,
        capture: bool = True,
        why_not: str = "not asked for",
    ) -> None:
        self.enqueue, self.cuda = enqueue, cuda
        self.stream = cuda.Stream()
        self.graph: Any = None
        self.why_no_graph = why_not
        cuda.synchronize()  # inputs are in place before another stream reads them
        with cuda.stream(self.stream):
            for _ in range(RUNS_BEFORE_CAPTURE):
                enqueue(self.stream)
        self.stream.synchronize()
        if capture:
            self._capture()

    def _capture(self) -> None:
        graph = self.cuda.CUDAGraph()
        try:
            # thread_local: an allocation in another thread does not end the capture.
            with self.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.enqueue(self.stream)
        except (RuntimeError, MeasureError) as error:
            self.cuda.synchronize()
            self.why_no_graph = str(error).splitlines()[0] if str(error) else type(error).__name__
            return
        self.graph, self.why_no_graph = graph, ""

    def queue(self, *, graph: bool = True) -> None:
        """Queues one inference on the stream."""
        if graph and self.graph is not None:
            self.graph.replay()
        else:
            self.enqueue(self.stream)

    def run(self) -> None:
        """One inference; returns when the GPU has finished it."""
        with self.cuda.stream(self.stream):
            self.queue()
        self.stream.synchronize()

    def timed(
        self,
        at_least_s: float,
        at_least_runs: int,
        *,
        graph: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> list[float]:
        """Milliseconds of every inference by device events, until both limits are met; two in flight."""
        times_ms: list[float] = []
        free = [self._events() for _ in range(2)]
        start, queued, before = clock(), 0, None
        with self.cuda.stream(self.stream):
            while queued < at_least_runs or clock() - start < at_least_s:
                events = free[queued % 2]
                events[0].record(self.stream)
                self.queue(graph=graph)
                events[1].record(self.stream)
                queued += 1
                if before is not None:
                    times_ms.append(_elapsed_ms(before))
                before = events
            if before is not None:
                times_ms.append(_elapsed_ms(before))
        return times_ms

    def close(self) -> None:
        """Frees the graph; before what it replays is freed."""
        self.stream.synchronize()
        if self.graph is not None:
            self.graph.reset()
            self.graph = None

    def _events(self) -> tuple[Any, Any]:
        return self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)


def _elapsed_ms(events: tuple[Any, Any]) -> float:
    events[1].synchronize()
    return float(events[0].elapsed_time(events[1]))


def gpu_uuid() -> str:
    """UUID of the GPU that torch uses, whatever CUDA_VISIBLE_DEVICES says, as torch tells it; empty where it sees none."""
    if not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def compute_capability() -> str:
    """`8.6` and the like."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def describe() -> dict[str, Any]:
    """What torch tells of the GPU and of itself, JSON-ready."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "uuid": gpu_uuid(),
        "compute_capability": compute_capability(),
        "memory_bytes": properties.total_memory,
        "num_sms": properties.multi_processor_count,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def free_memory_bytes() -> int:
    """Free memory of the current GPU, after what torch keeps for itself was given back."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def require_full_fp32() -> None:
    """Turns TF32 off for this process: fp32 means fp32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
