"""A process that works for this one: what breaks it breaks nothing else.

A sticky CUDA error, memory that runs out or a crash in native code ends the worker and is told as an error of the one call;
the next call starts a fresh worker. A worker that is well lives on from call to call. It ends with its owner, also when
that is killed, and when a call is past its deadline.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, Any, Final, TypeVar

from explorer.errors import ExplorerError, MeasureError, ran_out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: `event` with what was told, `result`, `error` with an exception, or `log`.
Message = tuple[str, Any]
#: Seconds for which a worker that closed its end is waited for.
_CLOSE_S: Final = 5.0
#: Lines of the worker's own output that a message about its end holds.
_LAST_LINES: Final = 3
_PR_SET_PDEATHSIG: Final = 1
_BUGS: Final = (AssertionError, AttributeError, LookupError, NameError, TypeError)
_SERVE: Final = "from explorer.latency.worker import serve; serve()"
#: TF32 off in every CUDA library: fp32 means fp32.
_ENVIRONMENT: Final = {"NVIDIA_TF32_OVERRIDE": "0"}


class Worker:
    """One worker process, started at the first call. Not for several threads: it ends with the thread that started it.

    `name`: what messages call it. `variables`: of its environment, over ours. `leads_group`: it has a process group of its
    own, which ends with it: what it started itself, too.
    """

    def __init__(
        self,
        name: str = "the measuring process",
        *,
        variables: Mapping[str, str] = _ENVIRONMENT,
        leads_group: bool = False,
    ) -> None:
        self._name, self._variables, self._leads_group = name, dict(variables), leads_group
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._sentinel: int | None = None
        self._log: IO[bytes] | None = None
        self._end: Callable[[], object] | None = None

    @property
    def pid(self) -> int | None:
        """Of the living worker."""
        return None if self._process is None else self._process.pid

    @property
    def waitables(self) -> list[Connection | int]:
        """What `multiprocessing.connection.wait` waits on until `receive` has something to give, be it the worker's end."""
        return [item for item in (self._connection, self._sentinel) if item is not None]

    def call(
        self,
        function: Callable[..., T],
        *arguments: Any,
        deadline_s: float | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> T:
        """`function(*arguments, tell)` in the worker, where `tell(text)` reaches `on_event` here.

        `function` is of a module's top level; arguments, result and errors travel pickled. Raises what it raises, and
        MeasureError of kind `timeout` past `deadline_s` seconds, `out_of_memory` or `crash` where the worker died. After any
        error the worker is replaced.
        """
        is_well = False
        try:
            self.begin(function, *arguments)
            result = self._answer(deadline_s, on_event)
            is_well = True
        finally:
            if not is_well:
                self.close()
        return result  # type: ignore[no-any-return]

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Starts what `call` does and does not wait for it: `receive` until it gives a result or an error.

        A worker that dies before it takes the call is replaced once. Raises MeasureError where the next does not take it either.
        """
        try:
            self._started().send((function, arguments))
        except ConnectionError:
            self.close()
            try:
                self._started().send((function, arguments))
            except ConnectionError:
                error = self._death()
                self.close()
                raise error from None

    def receive(self) -> Message:
        """The next that the worker says; waits for it. A record of its log is one of ours now, and the message empty.

        After an `error`, its own death among them, the worker is replaced.
        """
        assert self._connection is not None
        wait(self.waitables)
        message: Message = ("error", None)
        # Nothing to read but its end: something that it started holds the connection open.
        if self._connection.poll(0):
            try:
                message = self._connection.recv()
            except (EOFError, OSError):  # OSError: dead in the middle of a message
                pass
            except BaseException:  # part of a message may be lost
                self.close()
                raise
        kind, content = message
        if kind == "log":
            logging.getLogger(content[0]).log(content[1], content[2])
        if kind == "error":
            content = content or self._death()
            self.close()
        return kind, content

    def kill(self) -> None:
        """Ends the worker and does not wait for its end, as `close` does; what it was doing is told as its death."""
        if self._process is not None:
            _kill(self._process, leads_group=self._leads_group)

    def close(self) -> None:
        """Ends the worker; the next call starts another."""
        if self._end is not None:
            self._end()
        self._process = self._connection = self._sentinel = self._log = self._end = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _started(self) -> Connection:
        if self._connection is not None and not self._has_ended():
            return self._connection
        self.close()
        ours, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno()), str(os.getpid()), self._name],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **self._variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            process_group=0 if self._leads_group else None,
        )
        theirs.close()
        self._connection = ours
        if sys.platform == "linux":
            with suppress(OSError):
                self._sentinel = os.pidfd_open(self._process.pid)
        # Also when nobody holds this any more, and when the interpreter ends.
        self._end = weakref.finalize(
            self, _end, self._name, self._process, ours, self._sentinel, self._log, leads_group=self._leads_group
        )
        return ours

    def _answer(self, deadline_s: float | None, on_event: Callable[[str], None]) -> Any:
        until = None if deadline_s is None else time.monotonic() + deadline_s
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not wait(self.waitables, left):
                raise MeasureError(f"not done after {deadline_s:.0f} s, the deadline of a measurement", "timeout")
            match self.receive():
                case "event", content:
                    on_event(content)
                case "error", content:
                    raise content
                case "result", content:
                    return content

    def _has_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None if self._sentinel is None else bool(wait([self._sentinel], 0))

    def _death(self) -> MeasureError:
        assert self._process is not None
        # A process that was not asked for yet keeps its number, and its group's: so the group goes first.
        if self._leads_group and self._sentinel is not None and wait([self._sentinel], _CLOSE_S):
            _kill(self._process, leads_group=True)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        code = self._process.poll()
        said = self._last_lines()
        if code is None:
            return MeasureError(f"{self._name} stopped answering{said}", "crash")
        if code == -signal.SIGKILL:
            return MeasureError(
                f"{self._name} was killed, as the system does when memory runs out{said}", "out_of_memory"
            )
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return MeasureError(f"{self._name} crashed ({name}){said}", "crash")

    def _last_lines(self) -> str:
        assert self._log is not None
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f": {' | '.join(lines[-_LAST_LINES:])}" if lines else ""


def _end(
    name: str,
    process: subprocess.Popen[bytes],
    connection: Connection,
    sentinel: int | None,
    log: IO[bytes],
    *,
    leads_group: bool,
) -> None:
    """Kills a worker: what it had to keep is kept."""
    connection.close()
    _kill(process, leads_group=leads_group)
    try:
        process.wait(_CLOSE_S)
    except subprocess.TimeoutExpired:
        logger.warning("%s %d does not end: it hangs inside the driver", name, process.pid)
    if sentinel is not None:
        os.close(sentinel)
    log.close()


def _kill(process: subprocess.Popen[bytes], *, leads_group: bool) -> None:
    if not leads_group:
        process.kill()
    elif process.returncode is None:  # else the number may be another's by now
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, of a group of which none lives
            os.killpg(process.pid, signal.SIGKILL)


class _Forwarded(logging.Handler):
    """Log records of the library, told to the owner."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send(("log", (record.name, record.levelno, record.getMessage())))


def serve() -> None:
    """What the worker runs: calls from the connection whose descriptor is its first argument, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner decides
    descriptor, owner, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.set_inheritable(descriptor, False)  # the owner knows of our end by it
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            _PR_SET_PDEATHSIG, signal.SIGKILL
        )  # also where native code never lets the thread below run
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    connection = Connection(descriptor)
    lock = threading.Lock()

    def send(message: Message) -> None:
        with lock:
            connection.send(message)

    library = logging.getLogger("explorer")
    library.addHandler(_Forwarded(send))
    library.setLevel(logging.INFO)
    library.propagate = False
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            message = ("result", function(*arguments, lambda event: send(("event", event))))
        except BaseException as error:  # noqa: BLE001
            traceback.print_exc()
            message = ("error", _portable(error, name))
        with suppress(BrokenPipeError):
            send(message)


def _end_with(owner: int) -> None:
    """Ends this process soon after its owner, though native code may hold the main thread."""
    while os.getppid() == owner:
        time.sleep(0.2)
    os._exit(1)


def _portable(error: BaseException, name: str) -> BaseException:
    """The error where it is one of ours; of a library a MeasureError that says it, of kind `out_of_memory` or `crash`; what
    can only be a bug of ours becomes an ExplorerError with its traceback.
    """
    if isinstance(error, ExplorerError):
        with suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error
    text = f"{type(error).__name__}: {error}".strip()
    if ran_out_of_memory(error):
        return MeasureError(text, "out_of_memory")
    if not isinstance(error, _BUGS) or isinstance(error, NotImplementedError):
        return MeasureError(text, "crash")
    bug = ExplorerError(f"in {name}: {text}")
    bug.add_note(traceback.format_exc())
    return bug
