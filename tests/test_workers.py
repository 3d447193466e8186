"""Worker processes of a search: what travels, what breaks one of them, and that none outlives its owner."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from explorer.arch import Arch, parse_name
from explorer.errors import BackendMissing, ExplorerError, ParityError, StoreError, TrialError, UserError
from explorer.evaluate import Evaluator, Plan
from explorer.evaluate import workers as workers_module
from explorer.evaluate.table import Table, TableSteps, table_data, table_recipe, table_target
from explorer.evaluate.workers import KEPT, Device, Done, Event, Here, Job, Workers, devices
from explorer.latency import environment
from explorer.latency.worker import Worker
from explorer.records import Candidate, Epoch
from explorer.store import Store

pytestmark = pytest.mark.timeout(120)

#: Longer than any of these tests may take.
FOR_EVER_S = 600
ARCHS = tuple(parse_name(f"Swin-E16x2.2.{depth}.2-R56-P1-N10") for depth in (2, 4, 6, 8))
CPU = Device("cpu", "cpu", 1)
#: What a grandchild of ours may be: a compiler, say.
SLEEP = [sys.executable, "-c", f"import time; time.sleep({FOR_EVER_S})"]

# -- what the workers do: an evaluator of this module, which they import ----------------------------------------------


def hang(tell: Callable[[str], None]) -> None:
    tell("hangs")
    time.sleep(FOR_EVER_S)


class FakeEvaluator:
    """Does what `job.epochs` and `job.seeds` have no part in: `act`, told by the first seed's place in `ACTS`.

    Its candidates carry the pid (`reused`) and how many jobs this evaluator did (`spent_epochs`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_jobs = 0
        self.measuring = Worker()
        self.steps = SimpleNamespace(on_kept=None)

    def close(self) -> None:
        self.measuring.close()

    def evaluate(
        self,
        arch: Arch,
        store: Store,
        *,
        on_step: Callable[[Any], None],
        on_epoch: Callable[[Epoch], None],
        on_detail: Callable[[str], None],
        epochs: int | None,
        seeds: tuple[int, ...],
        measures: bool,
    ) -> Candidate:
        self.num_jobs += 1
        act = ACTS[seeds[0]] if seeds else "nothing"
        match act:
            case "nothing":
                pass
            case "tell":
                on_step("measuring")
                on_detail("exporting")
                on_step("training")
                for epoch in range(1, (epochs or 0) + 1):
                    on_epoch(Epoch(epoch, 1 / epoch, None, 0.5))
                    if self.steps.on_kept is not None:
                        self.steps.on_kept()
            case "log":
                logging.getLogger("explorer.some.module").warning("%s is %d", "it", 7)
            case "use the store":
                on_detail(f"{len(store.studies())} studies")
            case "tell what is imported":
                on_detail(" ".join(name for name in ("torch", "onnx", "onnxruntime") if name in sys.modules))
            case "meet":
                (self.folder / str(os.getpid())).touch()
                wait_until(lambda: len(list(self.folder.iterdir())) >= (epochs or 0))
            case "user error":
                raise UserError("data: 'none' is not there; give another")
            case "parity error":
                raise ParityError("off by 1")
            case "bug":
                raise AttributeError("no such attribute")
            case "ask for memory":
                raise MemoryError("Unable to allocate 3 TiB")
            case "train":
                with environment.shared("cpu"):
                    pass
            case "train a while":
                with environment.shared("cpu"):
                    time.sleep(0.3)
            case "die":
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                print("last words", file=sys.stderr, flush=True)
                os.kill(os.getpid(), epochs or 0)
                time.sleep(FOR_EVER_S)
            case "hang":
                self.hang(on_detail)
        return Candidate(arch, "complete", reused=os.getpid(), spent_epochs=self.num_jobs)

    def hang(self, on_detail: Callable[[str], None]) -> None:
        """For ever, with a lock, a measuring process and a child; tells the three pids."""
        with subprocess.Popen(SLEEP) as child, environment.shared("cpu"):
            self.measuring.call(
                hang, on_event=lambda text: on_detail(f"{os.getpid()} {self.measuring.pid} {child.pid}")
            )


ACTS = (
    "nothing", "tell", "log", "use the store", "tell what is imported", "meet", "user error", "parity error", "bug",
    "ask for memory", "train", "train a while", "die", "hang",
)  # fmt: skip


#: A recorded table of ARCHS, and what is evaluated on it.
TABLE = Table(
    "some.csv",
    "0" * 12,
    (1, 2),
    {arch.id: 1.0 + index for index, arch in enumerate(ARCHS)},
    {(arch.id, epochs): 0.1 * index + 0.01 * epochs for index, arch in enumerate(ARCHS) for epochs in (1, 2)},
)
PLAN = Plan(table_target(TABLE, 56), None, table_recipe(TABLE), table_data(TABLE))


def make_of_table() -> Evaluator:
    return Evaluator(PLAN, TableSteps(TABLE))


def make_none() -> FakeEvaluator:
    raise UserError("recipe: batch 64 is more than the 8 images; lower it")


def job(act: str, arch: Arch = ARCHS[0], epochs: int | None = None) -> Job:
    return Job(arch, epochs, (ACTS.index(act),))


# -- helpers ----------------------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether a process runs, with any of its threads; one that has ended and was not yet asked for is not alive."""
    try:
        ended = os.pidfd_open(pid)  # /proc calls a process a zombie while other threads of it still end
    except ProcessLookupError:
        return False
    try:
        return not wait([ended], 0)
    finally:
        os.close(ended)


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    """Far longer than what is waited for takes."""
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the locks lie, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "met").mkdir()
    return tmp_path


@pytest.fixture
def start(folder: Path, store: Store) -> Iterator[Callable[..., Workers]]:
    """Starts so many workers with a fake evaluator; they end with the test."""
    opened: list[Workers] = []

    def start_workers(number: int = 1, make: Callable[[], Any] | None = None, storage: str | None = None) -> Workers:
        make = make or partial(FakeEvaluator, folder / "met")
        opened.append(Workers(make, storage or store.url, (CPU,) * number))
        return opened[-1]

    yield start_workers
    for workers in opened:
        workers.close()


def ignore(arch: Arch, event: Event) -> None:
    pass


def done(workers: Workers | Here, *jobs: Job, events: list[tuple[Arch, Event]] | None = None) -> list[Done]:
    """The jobs, each handed out as soon as there is room, in the order in which they are done."""
    left, found = list(jobs), []
    num_unfinished = 0
    while left or num_unfinished:
        while left and num_unfinished < workers.capacity:
            workers.submit(left.pop(0))
            num_unfinished += 1
        ended = workers.wait(ignore if events is None else lambda arch, event: events.append((arch, event)))
        assert ended is not None
        num_unfinished -= 1
        found.append(ended)
    return found


def candidate(ended: Done) -> Candidate:
    assert ended.error is None
    assert ended.candidate is not None
    return ended.candidate


def first_event(workers: Workers, job: Job) -> str:
    """The first that is told of a job that then goes on."""
    workers.submit(job)
    told: list[Event] = []
    wait_until(lambda: workers.wait(lambda arch, event: told.append(event), timeout_s=0.1) is None and bool(told))
    (event,) = told
    return str(event)


def pids_of_hanging(workers: Workers, arch: Arch = ARCHS[0]) -> list[int]:
    """Of the worker, its measuring process and its child."""
    pids = [int(pid) for pid in first_event(workers, job("hang", arch)).split()]
    assert len(pids) == 3
    assert all(is_alive(pid) for pid in pids)
    return pids


# -- what travels -----------------------------------------------------------------------------------------------------


def test_worker_lives_on_from_job_to_job_with_its_evaluator_and_its_store(start: Callable[..., Workers]) -> None:
    workers = start()
    assert workers.pids == ()
    events: list[tuple[Arch, Event]] = []
    acts = ("nothing", "use the store", "tell what is imported")
    ended = done(workers, *(job(act, arch) for act, arch in zip(acts, ARCHS, strict=False)), events=events)
    assert [one.job.arch for one in ended] == [candidate(one).arch for one in ended] == list(ARCHS[:3])
    assert [candidate(one).spent_epochs for one in ended] == [1, 2, 3]
    assert {candidate(one).reused for one in ended} == set(workers.pids)
    assert os.getpid() not in workers.pids
    assert all(one.seconds > 0 for one in ended)
    assert events == [(ARCHS[1], "0 studies"), (ARCHS[2], "")], "an evaluator that needs no torch imports none"


def test_events_and_log_arrive_in_order_and_before_the_end(
    start: Callable[..., Workers], caplog: pytest.LogCaptureFixture
) -> None:
    events: list[tuple[Arch, Event]] = []
    done(start(), job("tell", epochs=50), job("log"), events=events)
    epochs = [Epoch(epoch, 1 / epoch, None, 0.5) for epoch in range(1, 51)]
    assert events == [(ARCHS[0], event) for event in ("measuring", "exporting", "training", *epochs)]
    assert caplog.record_tuples == [("explorer.some.module", logging.WARNING, "it is 7")]


def test_as_many_jobs_as_there_are_devices_run_at_once(start: Callable[..., Workers]) -> None:
    workers = start(2)
    assert workers.capacity == 2
    ended = done(workers, *(job("meet", arch, epochs=2) for arch in ARCHS[:2]))
    assert {one.job.arch for one in ended} == set(ARCHS[:2])
    assert len({candidate(one).reused for one in ended}) == 2


def test_more_places_than_jobs_start_no_more_processes(start: Callable[..., Workers]) -> None:
    workers = start(8)
    done(workers, *(job("meet", arch, epochs=2) for arch in ARCHS[:2]))
    assert len(workers.pids) == 2


def test_facts_of_all_workers_come_to_one_store(start: Callable[..., Workers], store: Store) -> None:
    ended = done(start(2, make=make_of_table), *(Job(arch, 1, (0, 1)) for arch in ARCHS))
    found = {one.job.arch.id: candidate(one) for one in ended}
    for arch in ARCHS:
        assert found[arch.id].outcome == "stopped"
        assert found[arch.id].latency == store.latency(arch.id, PLAN.target.id)
        assert found[arch.id].latency_ms == TABLE.latency_ms[arch.id]
        assert found[arch.id].scores == tuple(store.score(PLAN.score_key(arch, epochs=1, seed=seed)) for seed in (0, 1))
        assert found[arch.id].accuracy == pytest.approx(TABLE.accuracy[arch.id, 1])


def test_job_that_is_done_does_not_wait_for_those_that_are_not(start: Callable[..., Workers]) -> None:
    workers = start(2)
    assert workers.wait(ignore) is None, "nothing to wait for"
    pids_of_hanging(workers)
    (ended,) = done(workers, job("nothing", ARCHS[1]))
    assert candidate(ended).arch == ARCHS[1]
    assert workers.wait(ignore, timeout_s=0.2) is None


def test_listener_that_raises_goes_through_and_ends_no_job(start: Callable[..., Workers]) -> None:
    workers = start()
    workers.submit(job("tell", epochs=1))

    def fail(arch: Arch, event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.wait(fail)
    events: list[Event] = []
    ended = workers.wait(lambda arch, event: events.append(event))
    assert ended is not None
    assert candidate(ended).arch == ARCHS[0]
    assert events[:2] == ["exporting", "training"]


# -- devices that are not free ----------------------------------------------------------------------------------------


def test_measurement_keeps_a_worker_from_starting_and_from_training(
    start: Callable[..., Workers], caplog: pytest.LogCaptureFixture
) -> None:
    workers = start()
    for act in ("nothing", "train"):
        with environment.exclusive("cpu"):
            told = first_event(workers, job(act))
        assert told == "waiting: another swinexplore process measures or trains on this machine's cpu"
        ended = workers.wait(ignore)
        assert ended is not None
        assert candidate(ended).arch == ARCHS[0]
    assert not caplog.records


def test_measurement_waits_for_trainings_under_way_and_comes_before_the_next(start: Callable[..., Workers]) -> None:
    """Trainings that follow one another on two places of a device, without end: a measurement gets in all the same."""
    workers = start(2)
    measured = threading.Event()

    def measure() -> None:
        with environment.exclusive("cpu"):
            measured.set()

    for arch in ARCHS[:2]:
        workers.submit(job("train a while", arch))
    one_more = threading.Thread(target=measure)
    num_trained = 0
    try:
        while not measured.is_set():
            ended = workers.wait(ignore)
            assert ended is not None
            assert candidate(ended).outcome == "complete"
            num_trained += 1
            assert num_trained < 100, "starved"
            if num_trained == 2:  # both are up: from now on they do nothing but train
                one_more.start()
            workers.submit(job("train a while", ended.job.arch))
    finally:
        workers.close()
        if num_trained >= 2:
            one_more.join()


# -- errors and crashes -----------------------------------------------------------------------------------------------


def test_errors_arrive_as_they_are(start: Callable[..., Workers]) -> None:
    acts = ("user error", "parity error", "bug", "ask for memory")
    user, parity, bug, memory = (one.error for one in done(start(), *(job(act) for act in acts)))
    assert (type(user), str(user)) == (UserError, "data: 'none' is not there; give another")
    assert (type(parity), str(parity)) == (ParityError, "off by 1")
    assert (type(bug), str(bug)) == (ExplorerError, "in the worker on cpu: AttributeError: no such attribute")
    assert isinstance(memory, TrialError)
    assert memory.kind == "out_of_memory"


def test_evaluator_and_database_that_cannot_be_opened_are_told(start: Callable[..., Workers], tmp_path: Path) -> None:
    (ended,) = done(start(make=make_none), job("nothing"))
    assert type(ended.error) is UserError
    assert "lower it" in str(ended.error)
    (ended,) = done(start(storage=f"sqlite:///{tmp_path}/none.db"), job("nothing"))
    assert type(ended.error) is StoreError


def test_worker_that_dies_is_told_and_replaced_and_harms_no_other(start: Callable[..., Workers]) -> None:
    workers = start(2)
    pids = pids_of_hanging(workers)
    expected = [(signal.SIGKILL, "out_of_memory", "memory runs out"), (signal.SIGSEGV, "crash", "SIGSEGV")]
    for number, kind, message in expected:
        (ended,) = done(workers, job("die", ARCHS[1], epochs=int(number)))
        assert ended.job.arch == ARCHS[1]
        assert isinstance(ended.error, TrialError)
        assert ended.error.kind == kind
        assert str(ended.error).startswith("the worker on cpu ")
        assert message in str(ended.error)
        assert str(ended.error).endswith("last words")
    (after,) = done(workers, job("nothing", ARCHS[1]))
    assert candidate(after).spent_epochs == 1, "another process"
    assert all(is_alive(pid) for pid in pids)


def test_worker_that_is_killed_takes_with_it_what_it_started(start: Callable[..., Workers]) -> None:
    workers = start()
    pids = pids_of_hanging(workers)
    os.kill(pids[0], signal.SIGKILL)
    ended = workers.wait(ignore)
    assert ended is not None
    assert isinstance(ended.error, TrialError)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    with environment.exclusive("cpu"):
        pass
    (after,) = done(workers, job("nothing"))
    assert candidate(after).arch == ARCHS[0]


def test_worker_that_dies_between_jobs_is_replaced_and_one_that_is_interrupted_goes_on(
    start: Callable[..., Workers],
) -> None:
    workers = start()
    done(workers, job("nothing"))
    (pid,) = workers.pids
    os.kill(pid, signal.SIGINT)
    (ended,) = done(workers, job("nothing"))
    assert candidate(ended).reused == pid, "an interrupt is the owner's business"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    (ended,) = done(workers, job("nothing"))
    assert candidate(ended).reused != pid


def send_much(tell: Callable[[Any], None]) -> None:
    tell(bytes(50_000_000))


def test_process_that_dies_in_the_middle_of_a_message_is_told() -> None:
    with Worker("the worker", leads_group=True) as worker:
        worker.begin(send_much)
        wait(worker.waitables)
        worker.kill()
        kind, error = worker.receive()
    assert kind == "error"
    assert error.kind == "out_of_memory"


# -- the end ----------------------------------------------------------------------------------------------------------


def test_close_ends_everything_at_once(start: Callable[..., Workers]) -> None:
    workers = start()
    pids = pids_of_hanging(workers)
    workers.close()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    assert workers.pids == ()
    assert workers.wait(ignore) is None
    workers.close()


OWNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started the tests ignores it
from functools import partial
from pathlib import Path
import test_workers
from explorer.evaluate.workers import Workers
workers = Workers(partial(test_workers.FakeEvaluator, Path(sys.argv[1])), sys.argv[2], (test_workers.CPU,))
workers.submit(test_workers.job("hang"))
workers.wait(lambda arch, event: print(event, flush=True))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_nothing_outlives_the_owner(name: str, folder: Path, store: Store) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), store.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as owner:
        assert owner.stdout is not None
        worker, measuring, child = (int(pid) for pid in owner.stdout.readline().split())
        assert all(is_alive(pid) for pid in (worker, measuring, child))
        owner.send_signal(signal.Signals[name])
        assert owner.wait() != 0
    wait_until(lambda: not is_alive(worker) and not is_alive(measuring))
    with environment.exclusive("cpu"):
        pass
    if name == "SIGKILL":  # a program that is not ours goes on: nobody is left to end it
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: not is_alive(child))


# -- in this process --------------------------------------------------------------------------------------------------


def test_here_evaluates_in_this_process(folder: Path, store: Store) -> None:
    here: Any = Here(FakeEvaluator(folder), store)  # type: ignore[arg-type]
    assert here.capacity == 1
    assert here.wait(ignore) is None
    events: list[tuple[Arch, Event]] = []
    told, failed, after = done(here, job("tell", epochs=1), job("user error"), job("nothing"), events=events)
    assert candidate(told).reused == os.getpid()
    epoch = Epoch(1, 1.0, None, 0.5)
    assert events == [(ARCHS[0], event) for event in ("measuring", "exporting", "training", epoch, KEPT)]
    assert isinstance(failed.error, UserError)
    assert failed.candidate is None
    assert candidate(after).spent_epochs == 3
    here.close()


def test_interrupt_goes_through_here(folder: Path, store: Store) -> None:
    here = Here(FakeEvaluator(folder), store)  # type: ignore[arg-type]
    here.submit(job("tell"))

    def interrupt(arch: Arch, event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.wait(interrupt)
    (ended,) = done(here, job("nothing"))
    assert candidate(ended).arch == ARCHS[0]


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "workers", "share"), [(8, 1, 8), (8, 3, 2), (2, 4, 1)])
def test_workers_share_the_processors(threads: int, workers: int, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_threads", lambda: threads)
    assert devices(workers, "cpu") == (Device("cpu", "cpu", share),) * workers


@pytest.mark.parametrize(("threads", "at_once", "share"), [(16, 1, 8), (16, 3, 2), (2, 4, 1)])
def test_runners_on_one_device_share_the_processors_with_all_others(
    threads: int, at_once: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_threads", lambda: threads)
    assert devices(2, "cpu", at_once) == (Device("cpu", "cpu", share),) * (2 * at_once)


def test_each_gpu_gets_so_many_runners_and_the_first_jobs_go_to_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment, "cpu_threads", lambda: 12)
    monkeypatch.setattr(workers_module, "_gpu_models", lambda: ["A", "A"])
    found = devices(2, "cuda", train_parallel=3)
    assert [device.name for device in found] == ["cuda:0", "cuda:1"] * 3
    assert {device.train_threads for device in found} == {2}
    alone = devices(1, "cuda", train_parallel=2)
    assert [device.variables for device in alone] == [{"CUDA_VISIBLE_DEVICES": "0"}] * 2


@pytest.mark.parametrize(
    ("visible", "models", "pinned"),
    [
        (None, ["A", "A"], ["0", "1", "0"]),
        ("3, GPU-0a1b", ["A", "A"], ["3", "GPU-0a1b", "3"]),
        ("5,6,9", ["A"], ["5", "5", "5"]),
        (None, ["A", "B", "A"], ["0", "2", "0"]),
    ],
    ids=["all", "some", "those after one that is not there are none", "of one model"],
)
def test_workers_take_the_visible_gpus_in_turn(
    visible: str | None, models: list[str], pinned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(workers_module, "_gpu_models", lambda: models)
    found = devices(3, "cuda")
    assert [device.variables for device in found] == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in pinned]
    assert [device.name for device in found] == [f"cuda:{gpu}" for gpu in pinned]


def test_devices_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="workers: 0 is not a whole number"):
        devices(0, "cpu")
    with pytest.raises(UserError, match="train_parallel: 0 is not a whole number"):
        devices(1, "cpu", 0)
    monkeypatch.setattr(workers_module, "_gpu_models", list)
    with pytest.raises(BackendMissing, match="no NVIDIA GPU"):
        devices(1, "cuda")


def test_variables_of_the_device_reach_the_worker_alone(folder: Path, store: Store) -> None:
    device = Device("cuda:3", "cuda", 1, {"CUDA_VISIBLE_DEVICES": "3"})
    workers = Workers(partial(FakeEvaluator, folder), store.url, (device,))  # type: ignore[arg-type]
    try:
        done(workers, job("nothing"))
        (pid,) = workers.pids
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    finally:
        workers.close()
    assert b"CUDA_VISIBLE_DEVICES=3" in variables
    assert not any(variable.startswith(b"NVIDIA_TF32_OVERRIDE") for variable in variables), "training is as it is here"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "3"
