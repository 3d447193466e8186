"""A process that works for this one: what travels, what breaks it, and that it never outlives its owner."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from explorer.errors import BackendMissing, BuildError, ExplorerError, MeasureError, ParityError, TrialError
from explorer.latency import worker as worker_module
from explorer.latency.worker import Worker

pytestmark = pytest.mark.timeout(120)

#: Longer than any of these tests may take.
FOR_EVER_S = 600
Tell = Callable[[str], None]

# -- what the workers do: functions of this module, which they import ------------------------------------------------


def pid_of_worker(tell: Tell) -> int:
    return os.getpid()


def echo(*arguments: Any) -> tuple[Any, ...]:
    return arguments[:-1]


def environment_of(name: str, tell: Tell) -> str | None:
    return os.environ.get(name)


def signal_at_the_owners_death(tell: Tell) -> int:
    get_death_signal = 2  # PR_GET_PDEATHSIG
    number = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(get_death_signal, ctypes.byref(number)) == 0
    return number.value


def path_of(tell: Tell) -> list[str]:
    return sys.path


def count_to(most: int, tell: Tell) -> int:
    for number in range(1, most + 1):
        tell(f"{number} of {most}")
    return most


def say_in_log(tell: Tell) -> None:
    logger = logging.getLogger("explorer.some.module")
    logger.warning("%s is %d", "it", 7)
    logger.info("told too")
    logging.getLogger("elsewhere").warning("not ours")


def fail_with(error: BaseException, tell: Tell) -> None:
    raise error


def fail_with_a_class_of_its_own(tell: Tell) -> None:
    class LocalError(ExplorerError):
        pass

    raise LocalError("no one can unpickle this")


def give_what_does_not_travel(tell: Tell) -> object:
    return threading.Lock()


def give_bytes(num_bytes: int, tell: Tell) -> bytes:
    return b"x" * num_bytes


def die_of(number: int, tell: Tell) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("first words", file=sys.stderr)
    print("then: an illegal memory access was encountered", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)
    time.sleep(FOR_EVER_S)


def abort(tell: Tell) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("terminate called after throwing an instance of 'std::bad_alloc'", flush=True)
    os.abort()


def exit_at_once(code: int, tell: Tell) -> None:
    os._exit(code)


def hang(how: str, tell: Tell) -> None:
    """Tells its pid, then stays busy: asleep, or in native code that lets other threads run, or in such that does not."""
    tell(str(os.getpid()))
    match how:
        case "python":
            time.sleep(FOR_EVER_S)
        case "native":
            ctypes.CDLL(None).sleep(FOR_EVER_S)
        case "native with the interpreter's lock":
            ctypes.PyDLL(None).sleep(FOR_EVER_S)


def hang_up(tell: Tell) -> None:
    """Lives on, though the owner can no longer hear it."""
    os.closerange(3, 256)
    time.sleep(FOR_EVER_S)


# -- helpers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker() as opened:
        yield opened


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


def pid(worker: Worker) -> int:
    assert worker.pid is not None
    return worker.pid


# -- what travels -----------------------------------------------------------------------------------------------------


def test_nothing_is_started_before_the_first_call() -> None:
    worker = Worker()
    assert worker.pid is None
    worker.close()


def test_arguments_and_result_travel(worker: Worker) -> None:
    arguments = (1, "two", {"three": [4.0]}, None)
    assert worker.call(echo, *arguments) == arguments


def test_function_runs_in_another_process_that_serves_all_calls(worker: Worker) -> None:
    found = {worker.call(pid_of_worker) for _ in range(3)}
    assert found == {pid(worker)}
    assert os.getpid() not in found


def test_events_arrive_in_order_before_the_result(worker: Worker) -> None:
    events: list[str] = []
    assert worker.call(count_to, 100, on_event=events.append) == 100
    assert events == [f"{number} of 100" for number in range(1, 101)]


def test_events_need_no_listener(worker: Worker) -> None:
    assert worker.call(count_to, 3) == 3


def test_log_of_the_library_arrives(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "explorer")
    worker.call(say_in_log)
    assert caplog.record_tuples == [
        ("explorer.some.module", logging.WARNING, "it is 7"),
        ("explorer.some.module", logging.INFO, "told too"),
    ]


def test_what_a_handler_formats_is_the_message_alone(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    worker.call(echo)
    worker.call(say_in_log)
    assert "it is 7" in caplog.messages


def test_large_arguments_and_results_travel(worker: Worker) -> None:
    images = np.random.default_rng(0).standard_normal((8, 3, 512, 512), dtype=np.float32)
    (found,) = worker.call(echo, images)
    np.testing.assert_array_equal(found, images)
    assert len(worker.call(give_bytes, 50_000_000)) == 50_000_000


def test_tf32_is_off_in_every_library(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert worker.call(environment_of, "NVIDIA_TF32_OVERRIDE") == "0"


def test_worker_imports_from_where_its_owner_does(worker: Worker, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "some_helper.py").write_text("def double(number, tell):\n    return 2 * number\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import some_helper

    assert worker.call(some_helper.double, 21) == 42
    assert set(filter(None, sys.path)) <= set(worker.call(path_of))


def test_worker_imports_nothing_from_the_folder_it_happens_to_run_in(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ctypes", "pickle", "logging", "explorer"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not the one that is meant')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = worker.call(path_of)
    assert not {"", ".", str(tmp_path)} & set(found)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of its parent's end")
def test_kernel_is_asked_to_end_the_worker_with_its_owner(worker: Worker) -> None:
    assert worker.call(signal_at_the_owners_death) == signal.SIGKILL


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MeasureError("out of memory: 3 GB", "out_of_memory"),
        BuildError("no engine"),
        BackendMissing("no TensorRT"),
        ParityError("off"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_of_ours_arrives_as_it_is_and_the_worker_is_replaced(error: ExplorerError, worker: Worker) -> None:
    before = worker.call(pid_of_worker)
    with pytest.raises(type(error)) as caught:
        worker.call(fail_with, error)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "kind", None) == getattr(error, "kind", None)
    assert worker.pid is None
    assert not is_alive(before)
    assert worker.call(pid_of_worker) != before


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "crash"),
        (ZeroDivisionError("division by zero"), "crash"),
        (SystemExit(3), "crash"),
        (KeyboardInterrupt("in the worker"), "crash"),
        (MemoryError("Unable to allocate 3 TiB"), "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
    ],
)
def test_foreign_error_is_told_with_its_class_and_words(error: BaseException, kind: str, worker: Worker) -> None:
    with pytest.raises(MeasureError) as caught:
        worker.call(fail_with, error)
    assert caught.value.kind == kind
    assert type(error).__name__ in str(caught.value)
    assert str(error) in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("no such state"),
        AttributeError("no such attribute"),
        KeyError("key"),
        IndexError("out of range"),
        NameError("no such name"),
        TypeError("one argument too many"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_bug_of_ours_is_no_fault_of_the_architecture_and_tells_where_it_is(error: Exception, worker: Worker) -> None:
    with pytest.raises(ExplorerError) as caught:
        worker.call(fail_with, error)
    assert not isinstance(caught.value, TrialError)
    assert str(caught.value) == f"in the measuring process: {type(error).__name__}: {error}"
    (note,) = caught.value.__notes__
    assert note.startswith("Traceback")
    assert "in fail_with" in note
    assert worker.call(echo, 1) == (1,)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(NotImplementedError("no kernel"), "crash"), (TypeError("bad_alloc"), "out_of_memory")],
    ids=["a kind of RuntimeError", "memory comes first"],
)
def test_error_that_looks_like_a_bug_may_be_the_machines(error: Exception, kind: str, worker: Worker) -> None:
    with pytest.raises(MeasureError) as caught:
        worker.call(fail_with, error)
    assert caught.value.kind == kind


def test_error_of_ours_that_does_not_travel_is_told_all_the_same(worker: Worker) -> None:
    with pytest.raises(MeasureError, match="LocalError: no one can unpickle this") as caught:
        worker.call(fail_with_a_class_of_its_own)
    assert caught.value.kind == "crash"


def test_result_that_does_not_travel_is_an_error_of_the_call(worker: Worker) -> None:
    with pytest.raises(MeasureError, match="cannot pickle") as caught:
        worker.call(give_what_does_not_travel)
    assert caught.value.kind == "crash"
    assert worker.call(echo, 1) == (1,)


def test_listener_that_raises_ends_the_call_and_the_worker(worker: Worker) -> None:
    before = worker.call(pid_of_worker)

    def stop(text: str) -> None:
        raise KeyboardInterrupt(text)

    with pytest.raises(KeyboardInterrupt):
        worker.call(hang, "python", on_event=stop)
    assert not is_alive(before)
    assert worker.call(pid_of_worker) != before


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_abort_is_told_with_the_last_words(worker: Worker) -> None:
    with pytest.raises(MeasureError, match=r"SIGABRT.*std::bad_alloc") as caught:
        worker.call(abort)
    assert caught.value.kind == "crash"
    assert worker.call(echo, 1) == (1,)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGTERM"])
def test_signal_is_told_by_its_name_with_the_last_words(name: str, worker: Worker) -> None:
    with pytest.raises(MeasureError) as caught:
        worker.call(die_of, int(signal.Signals[name]))
    assert caught.value.kind == "crash"
    assert name in str(caught.value)
    assert "first words" in str(caught.value)
    assert str(caught.value).endswith("an illegal memory access was encountered")
    assert worker.call(echo, 1) == (1,)


def test_killed_worker_is_taken_for_one_that_ran_out_of_memory(worker: Worker) -> None:
    with pytest.raises(MeasureError, match="memory runs out") as caught:
        worker.call(die_of, int(signal.SIGKILL))
    assert caught.value.kind == "out_of_memory"
    assert worker.call(echo, 1) == (1,)


def test_exit_is_told_with_its_code(worker: Worker) -> None:
    with pytest.raises(MeasureError, match="exit code 3") as caught:
        worker.call(exit_at_once, 3)
    assert caught.value.kind == "crash"


def test_last_words_are_those_of_this_worker_alone(worker: Worker) -> None:
    with pytest.raises(MeasureError, match="illegal memory access"):
        worker.call(die_of, int(signal.SIGSEGV))
    with pytest.raises(MeasureError) as caught:
        worker.call(exit_at_once, 3)
    assert "illegal" not in str(caught.value)


def test_worker_that_dies_between_calls_is_replaced(worker: Worker) -> None:
    before = worker.call(pid_of_worker)
    os.kill(before, signal.SIGKILL)
    assert worker._process is not None
    worker._process.wait()  # a zombie is not over for its owner before all of its threads are
    assert worker.call(pid_of_worker) != before


def test_worker_that_hangs_up_is_an_error_of_the_call(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    before = worker.call(pid_of_worker)
    monkeypatch.setattr(worker_module, "_CLOSE_S", 0.2)
    with pytest.raises(MeasureError) as caught:
        worker.call(hang_up)
    assert caught.value.kind == "crash"
    assert not is_alive(before)


@pytest.mark.parametrize("num_bytes", [1, 10_000_000])
def test_worker_that_does_not_start_is_an_error_of_the_call(
    num_bytes: int, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = shutil.which("false")
    assert false is not None
    monkeypatch.setattr(sys, "executable", false)
    with pytest.raises(MeasureError, match="exit code 1") as caught:
        worker.call(echo, bytes(num_bytes))
    assert caught.value.kind == "crash"


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["python", "native", "native with the interpreter's lock"])
def test_call_past_its_deadline_is_ended_with_its_process(how: str, worker: Worker) -> None:
    before = worker.call(pid_of_worker)
    with pytest.raises(MeasureError, match="not done after 1 s") as caught:
        worker.call(hang, how, deadline_s=1.0)
    assert caught.value.kind == "timeout"
    assert not is_alive(before)
    assert worker.call(pid_of_worker) != before


def test_events_do_not_put_the_deadline_off(worker: Worker) -> None:
    with pytest.raises(MeasureError, match="not done after 1 s") as caught:
        worker.call(count_to, 10**9, deadline_s=1.0)
    assert caught.value.kind == "timeout"


def test_deadline_is_that_of_one_call(worker: Worker) -> None:
    assert worker.call(echo, 1, deadline_s=60.0) == (1,)
    assert worker.call(echo, 2) == (2,)


# -- the end ----------------------------------------------------------------------------------------------------------


def test_close_ends_the_worker_and_may_be_repeated() -> None:
    worker = Worker()
    before = worker.call(pid_of_worker)
    worker.close()
    worker.close()
    assert worker.pid is None
    assert not is_alive(before)
    assert worker.call(pid_of_worker) != before
    worker.close()


def test_close_ends_a_worker_that_does_not_listen(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    before = worker.call(pid_of_worker)
    os.kill(before, signal.SIGSTOP)
    monkeypatch.setattr(worker_module, "_CLOSE_S", 0.2)
    worker.close()
    assert not is_alive(before)


def test_worker_that_hangs_in_the_driver_is_not_waited_for_for_ever(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = worker.call(pid_of_worker)
    process = worker._process
    assert process is not None
    waited: list[float | None] = []

    def wait(timeout: float | None = None) -> int:
        waited.append(timeout)
        raise subprocess.TimeoutExpired("worker", timeout or 0.0)

    with monkeypatch.context() as patched:
        patched.setattr(process, "wait", wait)
        worker.close()
    process.wait()
    assert waited == [worker_module._CLOSE_S]
    assert f"the measuring process {before} does not end" in caplog.text
    assert worker.pid is None
    assert worker.call(pid_of_worker) != before


def test_worker_that_nobody_holds_ends() -> None:
    worker = Worker()
    before = worker.call(pid_of_worker)
    del worker
    assert not is_alive(before)


def test_worker_ends_with_its_context_though_that_fails() -> None:
    with pytest.raises(ZeroDivisionError), Worker() as worker:
        before = worker.call(pid_of_worker)
        raise ZeroDivisionError
    assert not is_alive(before)


def test_replaced_workers_leave_nothing_open(worker: Worker) -> None:
    worker.call(echo)
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(MeasureError):
            worker.call(exit_at_once, 1)
    worker.call(echo)
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


# -- the end of the owner ---------------------------------------------------------------------------------------------

OWNER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever started the tests ignores it
import sys
import test_worker
from explorer.latency.worker import Worker
worker = Worker()
worker.call(test_worker.hang, sys.argv[1], on_event=lambda text: print(text, flush=True))
"""
IDLE_OWNER = """
import sys
import test_worker
from explorer.latency.worker import Worker
worker = Worker()
print(worker.call(test_worker.pid_of_worker), flush=True)
if sys.argv[1] == "waits":
    sys.stdin.read()
"""
Owner = tuple["subprocess.Popen[str]", int]


@pytest.fixture
def start() -> Iterator[Callable[[str, str], Owner]]:
    """Starts an owner in a process group of its own; gives it and its worker's pid. No process is left behind."""
    owners: list[Owner] = []

    def start_owner(script: str, argument: str) -> Owner:
        process = subprocess.Popen(
            [sys.executable, "-c", script, argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert process.stdout is not None
        owners.append((process, int(process.stdout.readline())))
        return owners[-1]

    yield start_owner
    for process, worker in owners:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        if is_alive(worker):
            os.kill(worker, signal.SIGKILL)


def stays_for_seconds(worker: int, seconds: float = 15.0) -> bool:
    """Whether a worker is still there after so long, which is far more than its end takes."""
    until = time.monotonic() + seconds
    while is_alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    return is_alive(worker)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("python", "SIGKILL"),
        ("python", "SIGTERM"),
        ("python", "SIGINT"),
        ("native", "SIGKILL"),
        ("native with the interpreter's lock", "SIGKILL"),
    ],
)
def test_busy_worker_ends_with_its_owner(how: str, name: str, start: Callable[[str, str], Owner]) -> None:
    owner, worker = start(OWNER, how)
    assert is_alive(worker)
    owner.send_signal(signal.Signals[name])
    assert owner.wait() != 0
    assert not stays_for_seconds(worker)


def test_interrupt_of_the_whole_group_ends_owner_and_worker(start: Callable[[str, str], Owner]) -> None:
    owner, worker = start(OWNER, "python")
    os.killpg(owner.pid, signal.SIGINT)
    assert owner.wait() != 0
    assert not stays_for_seconds(worker)


@pytest.mark.parametrize("end", ["waits", "ends"])
def test_idle_worker_ends_with_its_owner(end: Literal["waits", "ends"], start: Callable[[str, str], Owner]) -> None:
    owner, worker = start(IDLE_OWNER, end)
    if end == "waits":
        assert is_alive(worker)
        owner.kill()
        owner.wait()
    else:
        assert owner.wait() == 0, "a worker that was not closed is no error of its owner"
    assert not stays_for_seconds(worker)
