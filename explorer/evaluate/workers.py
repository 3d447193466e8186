"""Who evaluates: this process, or several others side by side, one or more on a device. Neither proposes nor keeps a study.

The owner of a `Runner` hands out jobs and is told, one at a time, what became of them. A worker process has a store and an
evaluator of its own, which measures in one more process. It lives on from job to job, is replaced after an error, and ends
with its owner, however that ends.

Jobs on one device meet at its lock alone (`latency.environment`): a measurement waits until the trainings that run there are
done and keeps others from starting, then it has the device to itself. A measurement holds one lock and waits for no second one,
so that none waits for ever.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Final, Literal, Protocol

from explorer.arch import Arch
from explorer.errors import BackendMissing, MeasureError, UserError
from explorer.evaluate import Evaluator, Step
from explorer.latency import environment
from explorer.latency.worker import Worker
from explorer.records import Candidate, Epoch
from explorer.store import Store

logger = logging.getLogger(__name__)

#: What `Here` tells when the state of a training has been kept.
KEPT: Final = "kept"
#: A step that begins, an epoch of a training, KEPT, or what a measurement is doing.
Event = Step | Epoch | str


@dataclass(frozen=True)
class Job:
    """What is to be evaluated; `epochs`, `seeds` and `measures` as `Evaluator.evaluate` has them."""

    arch: Arch
    epochs: int | None = None
    seeds: tuple[int, ...] = ()
    measures: bool = True


@dataclass(frozen=True)
class Done:
    """What became of a job: its candidate, or the error that ended it; `seconds` since it was handed out.

    `error`: a TrialError of kind `crash` or `out_of_memory` where the process died, else what the evaluator raised.
    """

    job: Job
    candidate: Candidate | None
    error: BaseException | None
    seconds: float


class Runner(Protocol):
    """Evaluates up to `capacity` jobs at once."""

    capacity: int

    def submit(self, job: Job) -> None:
        """Hands a job out; while fewer than `capacity` are unfinished."""

    def wait(self, on_event: Callable[[Arch, Event], None], timeout_s: float | None = None) -> Done | None:
        """The next job that is done; None after `timeout_s`, or where none is unfinished.

        Events of all jobs come in between, those of one job in order and all before it is done. What `on_event` raises goes
        through, KeyboardInterrupt too; other jobs go on.
        """

    def close(self) -> None:
        """Ends everything at once, unfinished jobs too: nobody is told of those."""


@dataclass(frozen=True)
class Device:
    """Where a worker runs. `variables`: of its environment. `train_threads`: CPU threads for a training."""

    name: str
    kind: Literal["cpu", "cuda"]
    train_threads: int
    variables: dict[str, str] = field(default_factory=dict)


def devices(workers: int, kind: Literal["cpu", "cuda"], train_parallel: int = 1) -> tuple[Device, ...]:
    """A place for each of `workers * train_parallel` runners: this CPU, or the GPUs that are visible here in turn.

    `workers`: devices that share the work (more than there are share them), `train_parallel`: runners on each. The first
    `workers` places are on different devices. GPUs of another model than the first are left out: their latencies are others.
    Raises UserError for a bad number and BackendMissing where there is no GPU.
    """
    for name, number in (("workers", workers), ("train_parallel", train_parallel)):
        if number < 1:
            raise UserError(f"{name}: {number} is not a whole number of at least 1")
    threads = threads_each(workers * train_parallel)
    if kind == "cpu":
        return (Device("cpu", kind, threads),) * (workers * train_parallel)
    models = _gpu_models()
    if not models:
        raise BackendMissing(
            "device cuda: torch sees no NVIDIA GPU here; see `swinexplore doctor`, or use --device cpu"
        )
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(index) for index in range(len(models))] if told is None else [gpu.strip() for gpu in told.split(",")]
    alike = [gpu for gpu, model in zip(visible, models, strict=False) if model == models[0]]
    if len(alike) < min(workers, len(models)):
        logger.warning("workers share %d GPU(s): others here are no %s", len(alike), models[0])
    pinned = [alike[index % len(alike)] for index in range(workers)] * train_parallel
    return tuple(Device(f"cuda:{gpu}", kind, threads, {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in pinned)


def threads_each(runners: int) -> int:
    """CPU threads of one training where so many run at once on this machine: an equal share, at least 1."""
    return max(1, environment.cpu_threads() // runners)


def _gpu_models() -> list[str]:
    """Names of the GPUs that torch sees, in its order."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


class Here:
    """Evaluates in this process, one job at a time, inside `wait`; see `Runner`."""

    capacity = 1

    def __init__(self, evaluator: Evaluator, store: Store) -> None:
        self._evaluator, self._store = evaluator, store
        self._job: Job | None = None

    def submit(self, job: Job) -> None:
        """See `Runner`."""
        assert self._job is None, "one job at a time"
        self._job = job

    def wait(self, on_event: Callable[[Arch, Event], None], timeout_s: float | None = None) -> Done | None:
        """See `Runner`; a job takes what it takes, whatever `timeout_s`. KeyboardInterrupt ends it and goes through."""
        if self._job is None:
            return None
        job, self._job = self._job, None
        start = time.perf_counter()
        candidate, error = None, None
        self._evaluator.steps.on_kept = partial(on_event, job.arch, KEPT)
        try:
            candidate = _evaluate(self._evaluator, self._store, job, partial(on_event, job.arch))
        except Exception as raised:  # noqa: BLE001  as a worker process would tell it
            error = raised
        return Done(job, candidate, error, time.perf_counter() - start)

    def close(self) -> None:
        """Ends the evaluator's own processes."""
        self._job = None
        self._evaluator.close()


@dataclass(eq=False)
class _Place:
    """A worker and what it is at."""

    device: Device
    worker: Worker
    job: Job | None = None
    started: float = 0.0


class Workers:
    """One process for each of `devices`, which may name one device several times, started with its first job; see `Runner`.

    To be used by one thread, which lives as long. Each process takes memory for torch and for its own copy of the data.
    `make`: called in each process for its evaluator, ready to evaluate; travels pickled and so is of a module's top level.
    `storage`: the database's URL, which each process opens.
    """

    def __init__(self, make: Callable[[], Evaluator], storage: str, devices: Sequence[Device]) -> None:
        self.capacity = len(devices)
        self._make, self._storage = pickle.dumps(make), storage
        self._places = [
            _Place(device, Worker(f"the worker on {device.name}", variables=device.variables, leads_group=True))
            for device in devices
        ]
        self._done: deque[Done] = deque()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the worker processes that live."""
        return tuple(place.worker.pid for place in self._places if place.worker.pid is not None)

    def submit(self, job: Job) -> None:
        """See `Runner`."""
        place = next((place for place in self._places if place.job is None), None)
        assert place is not None, f"at most {self.capacity} unfinished jobs"
        place.job, place.started = job, time.perf_counter()
        try:
            place.worker.begin(_work, self._make, self._storage, place.device.kind, job)
        except MeasureError as error:
            self._finish(place, error=error)

    def wait(self, on_event: Callable[[Arch, Event], None], timeout_s: float | None = None) -> Done | None:
        """See `Runner`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._done:
            busy = {item: place for place in self._places if place.job for item in place.worker.waitables}
            if not busy:
                return None
            ready = wait(list(busy), None if until is None else max(0.0, until - time.monotonic()))
            if not ready:
                return None
            for place in dict.fromkeys(busy[item] for item in ready):  # type: ignore[index]
                self._hear(place, on_event)
        return self._done.popleft()

    def close(self) -> None:
        """See `Runner`; what the processes started ends too."""
        for place in self._places:  # all of them before the first is waited for
            place.worker.kill()
        for place in self._places:
            place.worker.close()
            place.job = None
        self._done.clear()

    def _hear(self, place: _Place, on_event: Callable[[Arch, Event], None]) -> None:
        assert place.job is not None
        try:
            message = place.worker.receive()
        except KeyboardInterrupt:
            place.worker.close()
            self._finish(place, error=MeasureError("interrupted while it was told of", "crash"))
            raise
        match message:
            case "event", event:
                on_event(place.job.arch, event)
            case "result", candidate:
                self._finish(place, candidate)
            case "error", error:
                self._finish(place, error=error)

    def _finish(self, place: _Place, candidate: Candidate | None = None, error: BaseException | None = None) -> None:
        assert place.job is not None
        self._done.append(Done(place.job, candidate, error, time.perf_counter() - place.started))
        place.job = None


# -- in a worker process ----------------------------------------------------------------------------------------------

#: The evaluator and the store of this process, once it is a worker: they live on from job to job.
_kept: list[tuple[Evaluator, Store]] = []


def _work(
    make: bytes, storage: str, kind: Literal["cpu", "cuda"], job: Job, tell: Callable[[Event], None]
) -> Candidate:
    """Runs in a worker."""
    with _waiting_told(tell):
        if not _kept:
            # To import torch and to load data takes as much of a CPU as a training: not beside a measurement on it.
            with environment.shared("cpu") if kind == "cpu" else nullcontext():
                _kept.append((pickle.loads(make)(), Store.open(storage)))
        evaluator, store = _kept[0]
        return _evaluate(evaluator, store, job, tell)


def _evaluate(evaluator: Evaluator, store: Store, job: Job, tell: Callable[[Event], None]) -> Candidate:
    return evaluator.evaluate(
        job.arch,
        store,
        on_step=tell,
        on_epoch=tell,
        on_detail=tell,
        epochs=job.epochs,
        seeds=job.seeds,
        measures=job.measures,
    )


@contextmanager
def _waiting_told(tell: Callable[[Event], None]) -> Iterator[None]:
    """That a device is not free is no warning among workers, who wait for each other all the time: it is told as an event."""

    def is_warning(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(environment.WAITING):
            tell(text)
            return False
        return True

    log: Any = logging.getLogger(environment.__name__)
    log.addFilter(is_warning)
    try:
        yield
    finally:
        log.removeFilter(is_warning)
