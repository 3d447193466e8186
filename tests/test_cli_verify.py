"""`verify` and `evaluate` as their users meet them: a study in a file, real trainings, latencies by arithmetic."""

from __future__ import annotations

import gzip
import json
import shlex
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from explorer import latency
from explorer.arch import Arch
from explorer.cli import _Boundary
from explorer.cli.failures import studies_failures
from explorer.cli.verify import evaluate, verify
from explorer.errors import MeasureError
from explorer.evaluate import Plan, live
from explorer.records import Candidate, Failure, Latency, Score, StudyRecord, Target, latency_key
from explorer.space import Space
from explorer.store import Store
from explorer.training.data import describe
from explorer.training.folders import IDX_FILES
from explorer.training.recipe import Recipe

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N4
search:
  windows: {stage1: [7, 14]}
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
RECIPE = Recipe(epochs=1, batch_size=32, train_images=64, eval_images=64)
MEMBER_FIELDS = {
    "arch_id", "name", "accuracy", "rank", "verified_accuracy", "verified_std", "accuracies", "verified_rank", "latency_ms",
    "verified_ms", "latency_change", "is_on_front", "beaten_by", "reason",
}  # fmt: skip


def run(*arguments: str) -> Result:
    app = typer.Typer(cls=_Boundary, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(verify)
    app.command()(evaluate)
    studies = typer.Typer()
    studies.command("failures")(studies_failures)
    studies.command("other")(lambda: None)  # a single command would have no name
    app.add_typer(studies, name="studies")
    return CliRunner().invoke(app, list(arguments))


def document(*arguments: str, exit_code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == exit_code, result.stderr
    return json.loads(result.stdout)


@dataclass
class Bench:
    """Where every measurer measures: by arithmetic. `why_not` may say what to raise instead."""

    measured: list[str] = field(default_factory=list)
    why_not: Callable[[Arch], Exception | None] = lambda arch: None

    def __call__(self, target: Target, **settings: Any) -> OnBench:
        return OnBench(self, target)


class OnBench:
    def __init__(self, bench: Bench, target: Target) -> None:
        self.bench, self.target = bench, target
        self.on_event: Callable[[str], None] = lambda text: None

    def measure(self, arch: Arch) -> Latency:
        self.bench.measured.append(arch.id)
        self.on_event("timing")
        if (error := self.bench.why_not(arch)) is not None:
            raise error
        return latency_of(arch, self.target, 1.2)

    def close(self) -> None:
        pass


def latency_of(arch: Arch, target: Target, factor: float = 1.0) -> Latency:
    ms = factor * sum(arch.windows)
    return Latency(arch.id, target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench()
    monkeypatch.setattr(live, "Measurer", found)
    return found


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with a cache of its own and images of four classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0)
    for part, number in (("train", 112), ("t10k", 8)):
        contents = (pixels.integers(0, 255, (number, 16, 16), np.uint8), np.arange(number, dtype=np.uint8) % 4)
        of_part = [name for name in IDX_FILES if name.startswith(part)]
        for name, content in zip(of_part, contents, strict=True):
            header = bytes([0, 0, 8, content.ndim]) + struct.pack(f">{content.ndim}I", *content.shape)
            (images / name).write_bytes(gzip.compress(header + content.tobytes()))
    return tmp_path


@pytest.fixture
def space(work: Path) -> Space:
    (work / "small.yaml").write_text(SPACE)
    return Space.load("small.yaml")


@pytest.fixture
def plan(space: Space, work: Path) -> Plan:
    target, _ = latency.resolve("onnxruntime", device="cpu", image_size=space.base.image_size)
    return Plan(target, space.proxy_scale, RECIPE, describe("images", work))


@pytest.fixture
def kept(space: Space, plan: Plan) -> Iterator[Store]:
    """The database of the working folder, with a study whose two architectures are both on its front."""
    store = Store.open("studies/explorer.db", create=True)
    identity = {"space": {"base": space.base.name, **space.describe()}, **plan.identity()}
    settings = {"data": plan.data.spec, "data_root": str(plan.data.root)}
    record = StudyRecord(
        "small", identity, plan.target.id, plan.recipe.id, plan.data.id, space.base.id, 0, settings=settings
    )
    store.add_study(record, space.base, plan.target, plan.recipe.model_dump())
    for arch in space.archs():
        key, measured = plan.score_key(arch), latency_of(arch, plan.target)
        score = Score(**asdict(key), accuracy=sum(arch.windows) / 100, train_s=1.0)
        store.add_latency(arch, plan.target, measured)
        store.add_score(plan.proxy(arch), plan.recipe.model_dump(), score)
        store.add_member("small", Candidate(arch, "complete", measured, (score,)), key)
    yield store
    store.close()


# -- verify -----------------------------------------------------------------------------------------------------------


def test_verify_tells_every_result_and_then_what_changed(kept: Store, space: Space, bench: Bench) -> None:
    result = run("verify", "--seeds", "2")
    assert result.exit_code == 0, result.stderr
    first, *lines = result.stderr.splitlines()
    assert first.startswith("verifying 2 of study small: 2 x 2 epochs of images on c")
    assert [line.split(" ")[0] for line in lines] == [f"[{number}/6]" for number in range(1, 7)]
    assert sum(" ms" in line for line in lines) == 2
    assert sum(line.endswith(("from seed 0", "from seed 1")) for line in lines) == 4
    assert "verified: 2 x 2 epochs against 1, test part" in result.stdout
    assert result.stdout.count("+20.0%") == 2
    assert result.stdout.count("±") == 2
    assert "most accurate: " in result.stdout
    again = run("verify", "--seeds", "2")
    assert again.stdout == result.stdout
    assert all(line.endswith("(known)") for line in again.stderr.splitlines()[1:])
    assert len(bench.measured) == 2


def test_verify_document_holds_both_orders(kept: Store, space: Space, bench: Bench, plan: Plan) -> None:
    content = document("verify", "--seeds", "2", "--epochs", "3")
    assert set(content) == {
        "study", "target", "recipe", "epochs", "study_epochs", "part", "seeds", "tau_b", "left_front", "failed",
        "summary", "candidates",
    }  # fmt: skip
    assert (content["study"], content["epochs"], content["study_epochs"], content["seeds"]) == ("small", 3, 1, [0, 1])
    assert content["part"] == "test"
    assert "verified accuracies are of the test part of the data" in content["summary"][-1]
    assert content["recipe"] == RECIPE.model_copy(update={"epochs": 3}).id
    slow, fast = sorted(space.archs(), key=lambda arch: -sum(arch.windows))
    rows = content["candidates"]
    assert set(rows[0]) >= MEMBER_FIELDS
    assert [(row["arch_id"], row["rank"]) for row in rows] == [(fast.id, 2), (slow.id, 1)]
    assert [row["latency_change"] for row in rows] == [pytest.approx(0.2)] * 2
    assert [len(row["accuracies"]) for row in rows] == [2, 2]
    assert content["left_front"] == [row["arch_id"] for row in rows if not row["is_on_front"]]
    assert content["failed"] == []


def test_verify_reports_what_failed_and_exits_with_1(kept: Store, space: Space, bench: Bench) -> None:
    bench.why_not = lambda arch: MeasureError("the device caught fire") if arch == space.base else None
    content = document("verify", "--seeds", "1", exit_code=1)
    assert content["failed"] == [space.base.id]
    reasons = {row["arch_id"]: row["reason"] for row in content["candidates"]}
    assert reasons[space.base.id] == "latency: measure: the device caught fire"
    assert set(reasons.values()) == {reasons[space.base.id], None}
    result = run("verify", "--seeds", "1")
    assert result.exit_code == 1
    assert f"1 of 2 could not be verified: {space.base.name}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--study", "gone"], "'gone' is not in this database; there are: small"),
        (["verify", "--max-latency", "0.1"], "has no front of at most 0.1 ms"),
        (["verify", "--max-latency", "-1"], "--max-latency: -1.0 is not a number of milliseconds above 0"),
        (["verify", "--again", "--no-latency"], "--again: measures latencies anew, and --no-latency measures none"),
        (["verify", "--data", "contours"], "data: 'contours' is d1-"),
        (["verify", "--recipe", "best"], "recipe: 'best' is not known"),
        (["verify", "--storage", "gone.db"], "no such database"),
        (["evaluate", "Swin-Q"], "'Swin-Q' is no architecture"),
        (["evaluate", "a1-0000"], "'a1-0000' is not in this database"),
        (["evaluate", "Swin-T-R224"], "takes images of 224 pixels, the study's architectures of 56"),
        (["evaluate", "Swin-E16x2.2.2.2", "--data", "contours"], "data: 'contours' is d1-"),
    ],
)
def test_bad_input_is_said_in_one_message(kept: Store, bench: Bench, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert message in result.stderr
    assert bench.measured == []


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_takes_a_name_or_an_id_and_keeps_nothing(kept: Store, space: Space, bench: Bench, work: Path) -> None:
    for name in (space.base.id, space.base.name, "Swin-E16x2.2.2.2-P1"):
        content = document("evaluate", name)
        assert content["arch_id"] == space.base.id
        assert (content["outcome"], content["failure"], content["kept"]) == ("complete", None, False)
        assert content["latency_ms"] == pytest.approx(1.2 * sum(space.base.windows))
        assert 0 <= content["accuracy"] <= 1
        assert content["epochs"] == 1
    assert bench.measured == [space.base.id] * 3
    known = kept.latency(space.base.id, kept.study().target_id)
    assert known is not None
    assert known.latency_ms == sum(space.base.windows)
    assert not (work / "cache" / "swinexplore" / "trainings").exists(), "no training of a search is gone on with"


def test_evaluate_says_the_result_in_a_line(kept: Store, space: Space, bench: Bench) -> None:
    result = run("evaluate", space.base.id, "--seed", "5")
    assert result.exit_code == 0, result.stderr
    name, accuracy, ms = result.stdout.strip().split("  ")
    assert name == space.base.name
    assert accuracy.endswith("after 1 epochs")
    assert ms == f"{1.2 * sum(space.base.windows):.3f} ms"


def test_failing_evaluation_says_step_and_class_without_a_traceback(kept: Store, space: Space, bench: Bench) -> None:
    bench.why_not = lambda arch: MeasureError("the device caught fire", "timeout")
    result = run("evaluate", space.base.id)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        f"error: {space.base.name}: measuring failed, timeout: the device caught fire"
    )
    assert "Traceback" not in result.output
    content = document("evaluate", space.base.id, exit_code=1)
    assert content["failure"] == {
        "step": "measuring", "kind": "timeout", "message": "the device caught fire", "diverged_at": None,
    }  # fmt: skip
    assert (content["outcome"], content["accuracy"], content["latency_ms"]) == ("failed", None, None)
    assert kept.failures() == []


def test_listed_command_shows_the_failure_again_and_ends_it_once_it_is_mended(
    kept: Store, space: Space, bench: Bench, plan: Plan
) -> None:
    arch = next(arch for arch in space.archs() if arch != space.base)
    failure = Failure(arch.id, latency_key(arch.id, plan.target.id), "build", "as the search saw it")
    kept.add_member("small", Candidate(arch, "failed", failure=kept.add_failure(arch, failure)), plan.score_key(arch))
    (row,) = document("studies", "failures")["failures"]
    program, *command = shlex.split(row["command"])
    assert program == "swinexplore"
    bench.why_not = lambda arch: MeasureError("as seen again", "build")
    assert document(*command, exit_code=1)["failure"] == {
        "step": "measuring", "kind": "build", "message": "as seen again", "diverged_at": None,
    }  # fmt: skip
    bench.why_not = lambda arch: None
    assert document(*command, "--keep")["kept"] is True
    assert document("studies", "failures")["failures"] == []
