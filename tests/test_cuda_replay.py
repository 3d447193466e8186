"""The order in which a GPU is given work, seen by a fake of `torch.cuda`; tests/test_gpu.py replays on a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from explorer.errors import MeasureError
from explorer.latency.cuda import RUNS_BEFORE_CAPTURE, Replay


class FakeEvent:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name
        self.recorded_ms = -1.0
        self.is_recorded = False

    def record(self, stream: FakeStream) -> None:
        assert stream is self.cuda.current, "recorded on the stream that is timed"
        assert not self.is_recorded, "recorded again before anyone waited for it"
        self.is_recorded = "end" in self.name
        self.recorded_ms = self.cuda.device_ms
        self.cuda.log.append(f"record {self.name}")

    def synchronize(self) -> None:
        assert self.is_recorded, "waited for what was not recorded"
        self.is_recorded = False
        self.cuda.host_ms = max(self.cuda.host_ms, self.recorded_ms)
        self.cuda.log.append(f"wait {self.name}")

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.recorded_ms - self.recorded_ms


class FakeStream:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def synchronize(self) -> None:
        self.cuda.host_ms = self.cuda.device_ms
        self.cuda.log.append("wait for the stream")


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def replay(self) -> None:
        self.cuda.work("replay")

    def reset(self) -> None:
        self.cuda.log.append("reset the graph")


class FakeCuda:
    """`torch.cuda` with a device whose n-th inference takes `durations_ms[n]`; `log` holds the calls in their order.

    `why_not`: raised at the end of a capture. `enqueue` is an inference as a backend would queue it.
    """

    def __init__(self, durations_ms: Sequence[float] = (), why_not: BaseException | None = None) -> None:
        self.durations_ms, self.why_not = iter(durations_ms), why_not
        self.log: list[str] = []
        self.device_ms = self.host_ms = 0.0
        self.current: FakeStream | None = None
        self.capture_error_mode = ""
        self.is_capturing = False
        self.num_events = 0

    def work(self, what: str) -> None:
        self.device_ms += next(self.durations_ms, 1.0)
        self.log.append(what)

    def enqueue(self, stream: FakeStream) -> None:
        assert stream is self.current, "queued on the stream that is timed"
        if self.is_capturing:
            self.log.append("captured")
        else:
            self.work("enqueue")

    def clock(self) -> float:
        return self.host_ms / 1e3

    # what Replay asks of torch.cuda

    def Stream(self) -> FakeStream:  # noqa: N802
        return FakeStream(self)

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # noqa: N802
        assert enable_timing
        self.num_events += 1
        return FakeEvent(self, f"{'start' if self.num_events % 2 else 'end'} {(self.num_events - 1) // 2 % 2}")

    def CUDAGraph(self) -> FakeGraph:  # noqa: N802
        return FakeGraph(self)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: FakeGraph, *, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        self.log.append("begin capture")
        self.capture_error_mode, self.is_capturing = capture_error_mode, True
        try:
            with self.stream(stream):
                yield
        finally:
            self.is_capturing = False
            self.log.append("end capture")
        if self.why_not is not None:
            raise self.why_not


def opened(cuda: FakeCuda, enqueue: Callable[[Any], None] | None = None, *, capture: bool = True) -> Replay:
    """A replay whose making is no longer in the log."""
    replay = Replay(enqueue or cuda.enqueue, cuda=cuda, capture=capture)
    cuda.log.clear()
    return replay


# -- the capture ------------------------------------------------------------------------------------------------------


def test_inference_is_run_three_times_and_then_captured_once() -> None:
    cuda = FakeCuda()
    replay = Replay(cuda.enqueue, cuda=cuda)
    assert RUNS_BEFORE_CAPTURE == 3
    assert cuda.log == [
        "synchronize",
        *["enqueue"] * RUNS_BEFORE_CAPTURE,
        "wait for the stream",
        "begin capture",
        "captured",
        "end capture",
    ]
    assert replay.graph is not None
    assert replay.why_no_graph == ""


def test_capture_is_not_ended_by_other_threads() -> None:
    cuda = FakeCuda()
    Replay(cuda.enqueue, cuda=cuda)
    assert cuda.capture_error_mode == "thread_local"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nSee the log"), "operation not permitted"),
        (MeasureError("TensorRT could not run the engine"), "TensorRT could not run the engine"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=["of torch", "of ours", "without words"],
)
def test_inference_that_cannot_be_captured_is_queued_and_says_why(error: Exception, why: str) -> None:
    cuda = FakeCuda(why_not=error)
    replay = Replay(cuda.enqueue, cuda=cuda)
    assert replay.graph is None
    assert replay.why_no_graph.startswith(why)
    assert "\n" not in replay.why_no_graph
    assert cuda.log[-1] == "synchronize", "the broken capture is over before anything else is queued"
    replay.run()
    assert cuda.log[-2:] == ["enqueue", "wait for the stream"]


def test_interrupted_capture_is_no_reason_to_go_on() -> None:
    cuda = FakeCuda(why_not=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Replay(cuda.enqueue, cuda=cuda)


def test_capture_may_be_left_out() -> None:
    cuda = FakeCuda()
    replay = Replay(cuda.enqueue, cuda=cuda, capture=False)
    assert replay.graph is None
    assert replay.why_no_graph == "not asked for"
    assert "begin capture" not in cuda.log


def test_reason_not_to_capture_is_told() -> None:
    cuda, why = FakeCuda(), "its shapes depend on the input"
    assert Replay(cuda.enqueue, cuda=cuda, capture=False, why_not=why).why_no_graph == why
    assert Replay(cuda.enqueue, cuda=cuda, why_not=why).why_no_graph == "", "it was captured all the same"


def test_error_of_the_network_goes_through() -> None:
    def enqueue(stream: Any) -> None:
        raise MeasureError("out of memory", "out_of_memory")

    with pytest.raises(MeasureError, match="out of memory"):
        Replay(enqueue, cuda=FakeCuda())


# -- runs and times ---------------------------------------------------------------------------------------------------


def test_run_replays_the_graph_and_waits() -> None:
    cuda = FakeCuda()
    replay = opened(cuda)
    replay.run()
    assert cuda.log == ["replay", "wait for the stream"]
    assert cuda.host_ms == cuda.device_ms


def test_next_inference_is_queued_before_the_last_is_waited_for() -> None:
    cuda = FakeCuda()
    replay = opened(cuda)
    replay.timed(0.0, 4)
    assert cuda.log == [
        *["record start 0", "replay", "record end 0"],
        *["record start 1", "replay", "record end 1", "wait end 0"],
        *["record start 0", "replay", "record end 0", "wait end 1"],
        *["record start 1", "replay", "record end 1", "wait end 0"],
        "wait end 1",
    ]


@pytest.mark.parametrize("num_runs", [1, 2, 3, 10])
def test_every_time_is_that_of_its_own_inference(num_runs: int) -> None:
    known = [float(index + 1) for index in range(num_runs)]
    cuda = FakeCuda([50.0] * RUNS_BEFORE_CAPTURE + known)
    assert opened(cuda).timed(0.0, num_runs) == pytest.approx(known)


def test_inferences_are_timed_until_the_seconds_are_over_too() -> None:
    cuda = FakeCuda([1.0] * RUNS_BEFORE_CAPTURE + [100.0] * 50)
    times_ms = opened(cuda).timed(1.0, 3, clock=cuda.clock)
    assert times_ms == pytest.approx([100.0] * len(times_ms))
    assert 10 <= len(times_ms) <= 12, "two may be in flight when the time is over"


def test_nothing_is_timed_where_nothing_is_asked_for() -> None:
    cuda = FakeCuda()
    assert opened(cuda).timed(0.0, 0) == []


def test_without_the_graph_every_inference_is_queued_anew() -> None:
    cuda = FakeCuda()
    replay = opened(cuda)
    assert len(replay.timed(0.0, 5, graph=False)) == 5
    assert cuda.log.count("enqueue") == 5
    assert "replay" not in cuda.log
    cuda.log.clear()
    replay.timed(0.0, 5)
    assert cuda.log.count("replay") == 5
    assert "enqueue" not in cuda.log


def test_error_while_timing_goes_through() -> None:
    cuda, calls = FakeCuda(), iter(range(100))

    def enqueue(stream: Any) -> None:
        cuda.enqueue(stream)
        if next(calls) == RUNS_BEFORE_CAPTURE + 2:
            raise MeasureError("an illegal memory access was encountered")

    replay = opened(cuda, enqueue, capture=False)
    with pytest.raises(MeasureError, match="illegal memory access"):
        replay.timed(0.0, 10)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_graph_is_freed_once_the_stream_is_done() -> None:
    cuda = FakeCuda()
    replay = opened(cuda)
    replay.close()
    replay.close()
    assert cuda.log == ["wait for the stream", "reset the graph", "wait for the stream"]
    assert replay.graph is None


def test_close_without_a_graph_waits_for_the_stream() -> None:
    cuda = FakeCuda()
    replay = opened(cuda, capture=False)
    replay.close()
    assert cuda.log == ["wait for the stream"]
