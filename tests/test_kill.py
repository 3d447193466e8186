"""A search that is killed with SIGKILL at random moments, by whole or one worker at a time, loses and repeats nothing but
the steps in flight. Real processes, a real SQLite file.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import optuna
import pytest

from explorer.records import MAX_ATTEMPTS
from explorer.space import Space
from explorer.store import Store

HERE = Path(__file__).parent
SMALL = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14], stage2: [7, 14]}
  br: [off, on]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
NUM_KILLS = 50
WORKERS = 4


class Killed:
    """The search as a process that is started again after every death."""

    def __init__(self, *arguments: object) -> None:
        self.command = [sys.executable, str(HERE / "killed_search.py"), *map(str, arguments)]
        self.log = Path(str(arguments[2]))
        self.process: subprocess.Popen[bytes] | None = None

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def start(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            paths = os.pathsep.join([str(HERE), *filter(None, sys.path)])
            self.process = subprocess.Popen(
                self.command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        return self.process

    def finish(self) -> str:
        """Undisturbed to the end; what it printed."""
        out, err = self.start().communicate(timeout=600)
        assert self.process is not None
        assert self.process.returncode == 0, err.decode()
        return out.decode()

    def kill_after(self, num_lines: int, pause_s: float, *, owner: bool, chance: random.Random) -> bool:
        """SIGKILL once so many more lines are written: to the search, or to one of its workers. Whether it struck."""
        process, before = self.start(), len(self.lines())
        until = time.monotonic() + 120
        while len(self.lines()) < before + num_lines and time.monotonic() < until:
            if process.poll() is not None:
                return False
            time.sleep(0.01)
        time.sleep(pause_s)
        victims = [process.pid] if owner else children_of(process.pid)
        if process.poll() is not None or not victims:
            return False
        os.kill(chance.choice(victims), signal.SIGKILL)
        if owner:
            process.communicate(timeout=60)
        return True


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def require_nothing_repeated_but_what_was_in_flight(lines: list[list[str]]) -> int:
    """A step is begun again only where the process that had begun it did nothing after it; how many were.

    One that had ended may be among them: killed before its fact was in the database.
    """
    last_of: dict[str, int] = {}
    begun: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, (what, step, arch_id, pid) in enumerate(lines):
        if what == "begin":
            begun[step, arch_id].append(index)
            last_of[pid] = index
    again = 0
    for (step, arch_id), indices in begun.items():
        for index in indices[:-1]:
            assert last_of[lines[index][3]] == index, f"{step} of {arch_id} was done, and begun again"
            again += 1
    return again


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_fifty_kills_of_four_workers_and_their_owner_lose_and_double_nothing(tmp_path: Path) -> None:
    space = Space.load("swinfree.yaml")
    with (tmp_path / "table.csv").open("w") as table:
        table.write("windows,shifts,br,depth3,epochs,accuracy,latency_ms\n")
        for number, arch in enumerate(space.archs()):
            key = f"{'-'.join(map(str, arch.windows))},{'-'.join(map(str, map(int, arch.shifts)))},{arch.br:d},{arch.depth3}"
            table.writelines(
                f"{key},{epochs},{0.1 * epochs + number / 10_000},{1 + number % 37}\n" for epochs in (1, 3)
            )
    database, log, trials = tmp_path / "explorer.db", tmp_path / "log", 150
    killed = Killed("swinfree.yaml", database, log, trials, WORKERS, "table", tmp_path / "table.csv", 0.02)
    chance, num_kills, owners = random.Random(20_261_121), 0, 0
    while num_kills < NUM_KILLS:
        is_owner = chance.random() < 0.3
        if not killed.kill_after(chance.randint(1, 8), 0.03 * chance.random(), owner=is_owner, chance=chance):
            if killed.start().poll() is None:
                continue
            pytest.fail(f"the search ended after {num_kills} kills: {killed.finish()}")
        num_kills, owners = num_kills + 1, owners + is_owner
    assert killed.finish() == "killed\n"

    lines = killed.lines()
    again = require_nothing_repeated_but_what_was_in_flight(lines)
    assert again <= owners * WORKERS + (num_kills - owners)
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    num_scores = Counter(connection.execute("SELECT arch_id, epochs, seed FROM scores").fetchall())
    connection.close()
    assert max(num_scores.values()) == 1, "every fact once"
    store = Store.open(str(database))
    record = store.study("killed")
    candidates = store.candidates(record)
    asked = {arch_id for _, _, arch_id, _ in lines}
    assert {candidate.arch.id for candidate in candidates} == asked, "every asked architecture, and no other"
    assert len(candidates) == len({candidate.arch.id for candidate in candidates}) == trials
    assert Counter(c.outcome for c in candidates).keys() <= {"complete", "stopped", "failed"}
    # A worker that dies three times with the same step in hand gives it up, as it must; not the fifty kills of this test.
    failed = [candidate for candidate in candidates if candidate.outcome == "failed"]
    assert len(failed) <= NUM_KILLS // 3
    assert all(c.latency and c.accuracy is not None for c in candidates if c.outcome != "failed"), "no fact lost"
    assert all(c.failure is not None and c.failure.attempts == 3 for c in failed)
    assert len(store.measured(record.target_id)) == trials - sum(c.latency is None for c in failed)
    trials_of = optuna.load_study(study_name="killed", storage=store.url).trials
    settled = Counter(trial.user_attrs["arch_id"] for trial in trials_of)
    assert max(settled.values()) == 1
    assert settled.keys() == asked
    store.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_killed_and_resumed_search_ends_with_the_facts_of_an_undisturbed_one(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    scores = []
    chance = random.Random(7)
    for name, num_kills in (("undisturbed", 0), ("killed", 5)):
        folder = tmp_path / name
        folder.mkdir()
        search = Killed(file, folder / "explorer.db", folder / "log", 8, 1, "train", folder / "cache", 4)
        struck = sum(
            search.kill_after(chance.randint(0, 3), 0.6 * chance.random(), owner=True, chance=chance)
            for _ in range(num_kills)
        )
        assert struck == num_kills
        search.finish()
        require_nothing_repeated_but_what_was_in_flight(search.lines())
        store = Store.open(str(folder / "explorer.db"))
        record = store.study("killed")
        scores.append({c.arch.id: (c.outcome, c.epochs, c.accuracy, c.latency_ms) for c in store.candidates(record)})
        store.close()
    undisturbed, killed = scores
    both = undisturbed.keys() & killed.keys()
    assert len(both) == 8, "the whole space"
    for arch_id in both:
        if undisturbed[arch_id][1] == killed[arch_id][1]:
            assert undisturbed[arch_id] == killed[arch_id]
    assert any(undisturbed[arch_id][1] == 4 == killed[arch_id][1] for arch_id in both)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "num_deaths"), [(1, 2), (1, 3), (2, 3)])
def test_training_that_kills_its_process_each_time_is_given_up_after_three(
    workers: int, num_deaths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    space = Space.load(file)
    with (tmp_path / "table.csv").open("w") as table:
        table.write("windows,shifts,br,depth3,accuracy,latency_ms\n")
        for number, arch in enumerate(space.archs()):
            key = f"{'-'.join(map(str, arch.windows))},{'-'.join(map(str, map(int, arch.shifts)))},{arch.br:d},{arch.depth3}"
            table.write(f"{key},{0.1 + number / 100},{1 + number}\n")
    database, log = tmp_path / "explorer.db", tmp_path / "log"
    monkeypatch.setenv("DIES_OF", space.base.id)
    search = Killed(file, database, log, 4, workers, "table", tmp_path / "table.csv", 0)
    if workers == 1:
        for _ in range(num_deaths):
            process = search.start()
            process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL
    if num_deaths < MAX_ATTEMPTS:
        monkeypatch.delenv("DIES_OF")
    search.finish()

    begun = [
        line
        for line in search.lines()
        if line[0] == "begin" and line[1].startswith("train") and line[2] == space.base.id
    ]
    store = Store.open(str(database))
    (base, *others) = store.candidates(store.study("killed"))
    assert base.arch == space.base
    assert [other.outcome for other in others] == ["complete"] * 3
    if num_deaths == MAX_ATTEMPTS:
        assert len(begun) == MAX_ATTEMPTS
        assert base.outcome == "failed"
        assert base.failure is not None
        assert base.failure.attempts == MAX_ATTEMPTS
        assert base.failure.kind == ("crash" if workers == 1 else "out_of_memory")  # by SIGKILL, as the kernel does it
    else:
        assert base.outcome == "complete"
        assert store.failures() == [], "forgotten once it is known"
    store.close()


@pytest.mark.slow
def test_deaths_of_a_training_that_went_on_in_between_do_not_give_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    base = Space.load(file).base
    epochs = MAX_ATTEMPTS + 2
    search = Killed(file, tmp_path / "explorer.db", tmp_path / "log", 2, 1, "train", tmp_path / "cache", epochs)
    monkeypatch.setenv("DIES_AFTER_EPOCHS_OF", base.id)
    for epoch in range(1, epochs):  # its state is kept after each
        process = search.start()
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        assert search.lines()[-1][0] == f"epoch-{epoch}", "it went on where it was"
        store = Store.open(str(tmp_path / "explorer.db"))
        assert store.failures() == []
        store.close()
    monkeypatch.delenv("DIES_AFTER_EPOCHS_OF")
    search.finish()
    store = Store.open(str(tmp_path / "explorer.db"))
    (first, _) = store.candidates(store.study("killed"))
    assert (first.arch.id, first.outcome, first.epochs) == (base.id, "complete", epochs)
    store.close()
