"""The locks on a device, among real processes: who waits for whom, and that a killed one leaves nothing behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from explorer.latency import environment

pytestmark = pytest.mark.timeout(120)

WAITING = "waiting: another swinexplore process measures or trains on this machine's cpu"
#: Holds the lock that its argument names until its standard input ends.
HOLDER = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from explorer.latency import environment
with getattr(environment, sys.argv[1])("cpu"):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


class Holder:
    """A process that holds, or waits for, the lock of one kind."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the locks lie, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[str], Holder]]:
    holders: list[Holder] = []

    def start_holder(kind: str) -> Holder:
        holders.append(Holder(kind))
        return holders[-1]

    yield start_holder
    for holder in holders:
        holder.end()


def stands_in_turnstile(folder: Path) -> bool:
    """Whether a measurement waits: it holds the turnstile that trainings have to pass."""
    turnstile = environment._locked(folder / "swinexplore-cpu.turn.lock", is_shared=True, waits=False)
    environment._close(turnstile)
    return turnstile is None


def test_trainings_hold_a_device_together_and_a_measurement_waits_for_all_of_them(
    start: Callable[[str], Holder],
) -> None:
    first, second = start("shared"), start("shared")
    assert (first.says(), second.says()) == ("held", "held")
    measurement = start("exclusive")
    assert measurement.says() == WAITING
    first.release()
    assert first.says() == "released"
    with pytest.raises(subprocess.TimeoutExpired):
        measurement.process.wait(timeout=0.3)
    second.release()
    assert measurement.says() == "held"


def test_measurement_that_waits_comes_before_trainings_that_come_later(
    start: Callable[[str], Holder], folder: Path
) -> None:
    training, measurement = start("shared"), start("exclusive")
    # Whichever came first: the training holds the device and the measurement waits, or the other way round.
    said = {"training": training.says(), "measurement": measurement.says()}
    if said["measurement"] == "held":
        measurement.release()
        assert training.says() == "held"
        measurement = start("exclusive")
        assert measurement.says() == WAITING
    until = time.monotonic() + 60
    while not stands_in_turnstile(folder):
        assert time.monotonic() < until
        time.sleep(0.01)
    later = start("shared")
    assert later.says() == WAITING, "though a training holds the device, which could be shared"
    training.release()
    assert measurement.says() == "held"
    with pytest.raises(subprocess.TimeoutExpired):
        later.process.wait(timeout=0.3)
    measurement.release()
    assert later.says() == "held"


@pytest.mark.parametrize(
    ("holder", "waiter"), [("exclusive", "exclusive"), ("exclusive", "shared"), ("shared", "exclusive")]
)
def test_killed_holder_leaves_the_device_free(holder: str, waiter: str, start: Callable[[str], Holder]) -> None:
    held, waits = start(holder), None
    assert held.says() == "held"
    waits = start(waiter)
    assert waits.says() == WAITING
    held.process.kill()
    assert waits.says() == "held"


def test_killed_measurement_that_waited_keeps_no_training_out(start: Callable[[str], Holder], folder: Path) -> None:
    assert start("shared").says() == "held"
    measurement = start("exclusive")
    assert measurement.says() == WAITING
    measurement.process.kill()
    measurement.process.wait()
    assert start("shared").says() == "held"


def test_lock_is_free_after_an_error_and_open_to_all_users(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with pytest.raises(KeyboardInterrupt), environment.shared("cpu"):
            raise KeyboardInterrupt
    finally:
        os.umask(before)
    with environment.exclusive("cpu"):
        pass
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["swinexplore-cpu.lock", "swinexplore-cpu.turn.lock"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666}


def test_lock_file_that_is_removed_meanwhile_is_not_what_is_held(start: Callable[[str], Holder], folder: Path) -> None:
    holder = start("exclusive")
    assert holder.says() == "held"
    waiter = start("exclusive")
    assert waiter.says() == WAITING
    (folder / "swinexplore-cpu.lock").unlink()
    holder.release()
    assert waiter.says() == "held"
    assert (folder / "swinexplore-cpu.lock").exists()
    third = start("shared")
    assert third.says() == WAITING


def test_system_without_such_locks_shares_nothing_but_excludes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[[str], Holder]
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with environment.shared("cpu"):
        waiter = start("exclusive")
        assert waiter.says() == WAITING
    assert waiter.says() == "held"
