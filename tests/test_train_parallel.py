"""Several trainings at once on one device: the scores of one after another, and an end that leaves nothing behind.

Real searches through the command line: tiny networks, few images, real trainings. Latencies are in the database before, so that
nothing but trainings meets.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from explorer.cli import app
from explorer.latency import resolve
from explorer.records import Latency, Score
from explorer.search.estimate import Estimate
from explorer.space import Space
from explorer.store import Store

pytestmark = pytest.mark.timeout(600)

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14]}
  br: [off, on]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
RECIPE = "epochs: 2\nbatch_size: 16\nflip: true\n"
#: Images for training, a seventh of them held out, and for the test.
NUM_IMAGES = {"train": 112, "t10k": 16}
NUM_ARCHS = 4
Found = dict[tuple[str, int], tuple[float, tuple[tuple[float, float | None], ...]]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, where `one.db` and `two.db` know every latency of the space; with a cache and locks of its own."""
    (tmp_path / "small.yaml").write_text(SPACE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    space = Space.load("small.yaml")
    target, _ = resolve("torch", device="cpu", precision="fp32", batch=1, image_size=space.base.image_size)
    assert space.architectures == NUM_ARCHS
    for name in ("one.db", "two.db"):
        store = Store.open(name, create=True)
        for ms, arch in enumerate(space.archs(), 1):
            store.add_latency(arch, target, Latency(arch.id, target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0))
        store.close()
    return tmp_path


def write_images(folder: Path) -> None:
    """Noise with a bright row by class, in the files of Fashion-MNIST."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    for part, number in NUM_IMAGES.items():
        labels = np.arange(number, dtype=np.uint8) % 10
        images = chance.integers(0, 128, (number, 16, 16), dtype=np.uint8)
        images[np.arange(number), labels + 3] += 100
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">4B{content.ndim}I", 0, 0, 8, content.ndim, *content.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + content.tobytes()))


def arguments(storage: str, *more: object) -> list[str]:
    words = ("search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--data", "images", "--backend", "torch")
    return [
        *words,
        "--device",
        "cpu",
        "--sampler",
        "brute",
        "--trials",
        str(NUM_ARCHS),
        "--storage",
        storage,
        *map(str, more),
    ]


def search(storage: str, *more: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments(storage, *more))
    assert result.exit_code == code, result.output
    return result.stdout


def scores(storage: str) -> list[Score]:
    """Of all architectures and seeds of the only study; each has one."""
    store = Store.open(storage)
    candidates = store.candidates(store.study())
    store.close()
    assert {candidate.outcome for candidate in candidates} == {"complete"}
    assert len(candidates) == NUM_ARCHS
    return [score for candidate in candidates for score in candidate.scores]


def found(storage: str) -> Found:
    """Accuracies and curves, to the last bit."""
    return {
        (score.arch_id, score.seed): (score.accuracy, tuple((epoch.loss, epoch.accuracy) for epoch in score.curve))
        for score in scores(storage)
    }


def test_trainings_at_once_give_the_scores_of_one_after_another_bit_for_bit(folder: Path) -> None:
    search("one.db", "--train-parallel", 1, "--train-threads", 1)
    search("two.db", "--train-parallel", 2, "--train-threads", 1)
    one = found("one.db")
    assert found("two.db") == one
    assert len(one) == NUM_ARCHS
    assert {score.environment["threads"] for score in (*scores("one.db"), *scores("two.db"))} == {1}
    assert len({curve for _, curve in one.values()}) == NUM_ARCHS, "trainings that differ: equality says something"


def test_interrupt_ends_all_trainings_and_the_same_command_goes_on(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("epochs: 2", "epochs: 100000"))
    command = [sys.executable, "-m", "explorer", *arguments("one.db", "--train-parallel", 2, "--json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        training: set[str] = set()
        for line in running.stdout:
            event = json.loads(line)
            assert event["event"] in ("start", "step", "epoch"), event
            if event["event"] == "epoch":
                training.add(event["arch_id"])
            if len(training) == 2:
                break
        workers = children_of(running.pid)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 130, said
    assert len(workers) == 2
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert "Traceback" not in said
    told = json.loads(search("one.db", "--train-parallel", 2, "--dry-run", "--json"))
    assert (told["trials_done"], told["trials"]) == (0, NUM_ARCHS), "what was in flight is not taken for done"


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ([], None),
        (["--train-parallel", 2], 4),
        (["--train-parallel", 2, "--workers", 2], 2),
        (["--train-parallel", 64], 1),
        (["--train-parallel", 2, "--train-threads", 3], 3),
        (["--train-threads", 3], 3),
    ],
)
def test_plan_tells_how_processors_are_shared(
    given: list[object], threads: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("explorer.latency.environment.cpu_threads", lambda: 8)
    told = json.loads(search("none.db", "--dry-run", "--json", *given))
    assert told["train_threads"] == threads


def test_time_of_measurements_is_not_divided_by_trainings_at_once() -> None:
    cost = Estimate(latency_s=10.0, train_s=60.0, latencies=4, trainings=6.0, basis="arithmetic")
    assert cost.total_s() == 4 * 10 + 6 * 60
    assert cost.total_s(training=3) == 4 * 10 + 2 * 60
    assert cost.total_s(measuring=2, training=6) == 2 * 10 + 60


def test_plan_of_trainings_at_once_takes_less_time_and_says_why(folder: Path) -> None:
    def plan(at_once: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(
            search("none.db", "--dry-run", "--json", "--train-threads", 1, "--train-parallel", at_once)
        )
        return content

    one, two, four = plan(1), plan(2), plan(4)
    assert (two["train_parallel"], two["workers"]) == (2, 1)
    # Measurements take as long; what trains takes a half, then a quarter.
    assert one["seconds"] - two["seconds"] == pytest.approx(2 * (two["seconds"] - four["seconds"]))
    assert one["seconds"] > two["seconds"] > one["seconds"] / 2
    told = (
        CliRunner().invoke(app, arguments("none.db", "--dry-run", "--train-parallel", 2, "--train-threads", 1)).stderr
    )
    assert ", 2 trainings at once on one device, 1 CPU thread each" in " ".join(told.split())


@pytest.mark.parametrize("given", [["--train-parallel", 0], ["--train-threads", 0], ["--train-parallel", 65]])
def test_numbers_that_cannot_be_are_refused(given: list[object], folder: Path) -> None:
    search("none.db", *given, code=2)
    assert not Path("none.db").exists()


def test_training_that_diverges_is_a_result_below_the_front(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE + "lr: 1.0e+30\nwarmup: 0.0\n")
    told = [json.loads(line) for line in search("one.db", "--json").splitlines()]
    rows = [event["candidate"] for event in told if event["event"] == "trial"]
    assert [row["outcome"] for row in rows] == ["failed"] * NUM_ARCHS
    for row in rows:
        assert (row["failure"]["kind"], row["failure"]["step"], row["accuracy"]) == ("diverged", "training", None)
        assert re.search(r"step \d+", row["failure"]["message"])
    result = CliRunner().invoke(app, arguments("two.db"))
    lines = [line for line in result.stderr.splitlines() if ": the loss is" in line or "diverged: " in line]
    assert len(lines) == NUM_ARCHS
    assert all(re.search(r"  diverged: .*step \d+.*; cannot stand on the front  \d\.00 ms", line) for line in lines), (
        lines
    )
    assert "training diverged, cannot stand on the front" in result.stdout
    assert "front of 4 architectures" in result.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
@pytest.mark.parametrize("at_once", [2, 4])
def test_trainings_at_once_on_one_gpu_give_the_scores_of_one_after_another(at_once: int, folder: Path) -> None:
    search("one.db", "--train-threads", 1)
    search("two.db", "--train-parallel", at_once, "--train-threads", 1)
    assert {score.environment["device"] for score in scores("two.db")} == {"cuda"}
    assert {score.environment["gpu"]["name"] for score in scores("two.db")} == {torch.cuda.get_device_name()}
    assert found("two.db") == found("one.db")
