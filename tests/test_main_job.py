"""The main job end to end as a user runs it: real processes, Debian's Fashion-MNIST, kill -9."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

pytestmark = pytest.mark.slow

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14], stage2: [7, 14]}
  br: [off, on]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
RECIPE = "epochs: 2\nbatch_size: 64\ntrain_images: 512\neval_images: 256\nlr: 0.003\n"
TRIALS = 5


#: The command line with latencies by arithmetic, where training alone is looked at.
UNMEASURED = """
from explorer.evaluate import live
from explorer.__main__ import main
from explorer.records import Latency

class Measurer:
    def __init__(self, target, **settings):
        self.target = target
    def measure(self, arch):
        ms = 1.0 + sum(arch.windows) / 100 - arch.br / 2
        return Latency(arch.id, self.target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0)
    def close(self):
        pass

live.Measurer = Measurer
main()
"""


def command(folder: Path, data: Path, *, is_measured: bool = True) -> list[str]:
    (folder / "small.yaml").write_text(SPACE)
    (folder / "recipe.yaml").write_text(RECIPE)
    options = [
        "--space",
        "small.yaml",
        "--recipe",
        "recipe.yaml",
        "--data",
        str(data),
        "--trials",
        str(TRIALS),
        "--json",
    ]
    return [sys.executable, *(["-m", "explorer"] if is_measured else ["-c", UNMEASURED]), "search", *options]


def run_to_end(folder: Path, data: Path, *, is_measured: bool = True) -> list[dict[str, Any]]:
    done = subprocess.run(
        command(folder, data, is_measured=is_measured), cwd=folder, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def run_until(
    folder: Path, data: Path, step: str, num_done: int, with_signal: signal.Signals
) -> tuple[list[dict[str, Any]], int]:
    """Runs until the given step of the architecture after `num_done`, then sends the signal; events and exit code.

    The measuring process must not outlive it.
    """
    events, workers = [], set[int]()
    with subprocess.Popen(
        command(folder, data), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1].get("step") == step and events[-1]["trials_done"] == num_done:
                workers = children_of(process.pid)
                os.kill(process.pid, with_signal)
                break
        process.stdout.read()
    assert workers
    until = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "the measuring process has outlived the search"
        time.sleep(0.1)
    return events, process.returncode


def children_of(pid: int) -> set[int]:
    """Processes whose parent is `pid`."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found.add(int(entry.name))
    return found


def invalid_in(folder: Path) -> set[str]:
    """Architectures whose latency is invalid, as it may be on a busy machine: the next search measures them again."""
    with sqlite3.connect(folder / "studies" / "explorer.db") as connection:
        found = {row[0] for row in connection.execute("SELECT arch_id FROM latencies WHERE invalid != ''")}
    connection.close()
    return found


def steps(events: list[dict[str, Any]], step: str) -> list[str]:
    return [event["arch_id"] for event in events if event["event"] == "step" and event["step"] == step]


def test_killed_search_goes_on_and_does_nothing_again(tmp_path: Path, fashion_mnist: Path) -> None:
    first, code = run_until(tmp_path, fashion_mnist, "training", 1, signal.SIGKILL)
    assert code == -signal.SIGKILL
    in_training = first[-1]["arch_id"]
    invalid = invalid_in(tmp_path)
    second, code = run_until(tmp_path, fashion_mnist, "measuring", 3, signal.SIGKILL)
    assert code == -signal.SIGKILL
    in_measuring = second[-1]["arch_id"]
    invalid |= invalid_in(tmp_path)
    third = run_to_end(tmp_path, fashion_mnist)

    measured = steps(first, "measuring") + steps(second, "measuring") + steps(third, "measuring")
    trained = steps(first, "training") + steps(second, "training") + steps(third, "training")
    assert measured.count(in_measuring) > 1
    assert {arch for arch in measured if measured.count(arch) > 1} - invalid == {in_measuring} - invalid, (
        "only the step in flight is repeated, and what was measured on a busy machine"
    )
    assert {arch for arch in trained if trained.count(arch) > 1} == {in_training}
    assert steps(second, "training")[0] == in_training, "work in flight is taken up first"
    assert third[-1]["event"] == "end"
    assert third[-1]["trials_done"] == TRIALS

    database = tmp_path / "studies" / "explorer.db"
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM members").fetchone() == (TRIALS,)
        assert connection.execute("SELECT count(*) FROM latencies").fetchone() == (TRIALS,)
        assert connection.execute("SELECT count(*) FROM scores").fetchone() == (TRIALS,)
        members = {arch_id for (arch_id,) in connection.execute("SELECT arch_id FROM members")}
        (accuracy,) = connection.execute("SELECT max(accuracy) FROM scores").fetchone()
    connection.close()
    assert accuracy > 0.2, "chance is 0.1"
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{database}")
    states = [trial.state.name for trial in study.trials]
    assert "RUNNING" not in states
    complete = [trial.user_attrs["arch_id"] for trial in study.trials if trial.state.name == "COMPLETE"]
    assert set(complete) == members - invalid_in(tmp_path), "all but what a busy machine has left to be measured again"
    assert {arch for arch in complete if complete.count(arch) > 1} <= invalid
    _dashboard_opens(database, len(study.trials))


def _dashboard_opens(database: Path, num_trials: int) -> None:
    """optuna-dashboard's own server code reads the file and knows the objectives' names."""
    from optuna_dashboard import wsgi

    application = wsgi(f"sqlite:///{database}")

    def get(path: str) -> Any:
        environ: dict[str, Any] = {"PATH_INFO": path, "wsgi.input": BytesIO(), "HTTP_ACCEPT": "application/json"}
        setup_testing_defaults(environ)
        status: list[str] = []
        body = b"".join(application(environ, lambda line, headers, exc=None: status.append(line)))
        assert status[0].startswith("200"), (path, status, body)
        return json.loads(body)

    (summary,) = get("/api/studies")["study_summaries"]
    detail = get(f"/api/studies/{summary['study_id']}")
    assert detail["objective_names"] == ["accuracy", "latency_ms"]
    assert len(detail["trials"]) == num_trials


@pytest.mark.parametrize(
    ("with_signal", "step", "num_measured"), [(signal.SIGINT, "training", 2), (signal.SIGTERM, "measuring", 1)]
)
def test_interrupt_ends_cleanly_with_130_and_keeps_everything(
    with_signal: signal.Signals, step: str, num_measured: int, tmp_path: Path, fashion_mnist: Path
) -> None:
    events, code = run_until(tmp_path, fashion_mnist, step, 1, with_signal)
    assert code == 130
    database = tmp_path / "studies" / "explorer.db"
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{database}")
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE"}, "an invalid latency has none yet"
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT outcome FROM members ORDER BY position").fetchall()
        assert rows == [("complete",), ("pending",)], "what was in work is taken up by the next command"
        assert connection.execute("SELECT count(*) FROM latencies").fetchone() == (num_measured,)
    connection.close()
    assert steps(events, "measuring")


def test_same_seed_gives_the_same_scores(tmp_path: Path, fashion_mnist: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        events = run_to_end(tmp_path / name, fashion_mnist, is_measured=False)
        trials = [event["candidate"] for event in events if event["event"] == "trial"]
        found.append({row["arch_id"]: row["accuracy"] for row in trials})
    shared = found[0].keys() & found[1].keys()
    assert len(shared) == TRIALS, "the same latencies and scores lead to the same proposals"
    assert {arch_id: found[0][arch_id] for arch_id in shared} == {arch_id: found[1][arch_id] for arch_id in shared}
