"""One front of several studies, and what a report says of measurements; studies written to the store as facts."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from explorer.arch import PRESETS, Arch
from explorer.cli import app
from explorer.cli.progress import outcome_text
from explorer.records import Candidate, Failure, Latency, Score, ScoreKey, StudyRecord, Target, latency_key
from explorer.report import candidate_row, measuring, measuring_text
from explorer.store import Store

TARGET = Target("onnxruntime", "1.0", "fp32", 1, 224, "cpu", "A processor", "", 2, 1)
BASE, FREE, SMALL, LARGE = (PRESETS[name] for name in ("Swin-T", "Swin-Free-T", "Swin-S", "Swin-B"))
PROXY = {"from_unit": 7, "unit": 2, "embed_dim": 8, "head_dim": 4, "patch_size": 2}
Found = tuple[float, float]  # accuracy and latency in ms


def measured(arch: Arch, ms: float, target: Target = TARGET, **more: Any) -> Latency:
    return Latency(
        arch.id, target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, **{"is_stable": True, **more}, prepare_s=0, measure_s=0
    )


def add(
    store: Store,
    name: str,
    found: dict[Arch, Found | Candidate],
    *,
    target: Target = TARGET,
    recipe_id: str = "r1-x",
    **identity: Any,
) -> StudyRecord:
    """A study that found these accuracies and latencies."""
    whole = {"space": {}, "proxy": PROXY, "target": asdict(target), "recipe": {"epochs": 3}, "data": "d1-x", **identity}
    record = StudyRecord(name, whole, target.id, recipe_id, whole["data"], BASE.id, 0)
    store.add_study(record, BASE, target, whole["recipe"])
    for arch, facts in found.items():
        key = ScoreKey(arch.id, record.recipe_id, record.data_id, 3, 0)
        if isinstance(facts, tuple):
            accuracy, ms = facts
            facts = Candidate(
                arch, "complete", measured(arch, ms, target), (Score(**asdict(key), accuracy=accuracy, train_s=1),)
            )
        if facts.latency:
            store.add_latency(arch, target, facts.latency)
        for score in facts.scores:
            store.add_score(arch, whole["recipe"], score)
        if facts.failure:
            store.add_failure(arch, facts.failure)
        store.add_member(name, facts, key)
    return record


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The database that commands find in the working folder."""
    monkeypatch.chdir(tmp_path)
    store = Store.open("studies/explorer.db", create=True)
    yield store
    store.close()


def pareto(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pareto", *arguments])


def document(*arguments: str) -> Any:
    result = pareto(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["name"] for row in rows]


# -- several studies --------------------------------------------------------------------------------------------------


def test_studies_of_one_environment_make_one_front(studies: Store) -> None:
    add(studies, "one", {BASE: (0.5, 4.0), SMALL: (0.6, 8.0)})
    add(studies, "two", {FREE: (0.7, 6.0)})
    both = document("--study", "one", "--study", "two")
    assert names(both["front"]) == ["Swin-T", "Swin-Free-T"], "the other is beaten by one of the other study"
    assert both["study"] == "one + two"
    assert both["target"] == TARGET.describe()
    assert [row["speedup"] for row in both["front"]] == [1.0, pytest.approx(4 / 6)]
    assert both["measuring"]["latencies"] == 3
    assert names(document("--study", "one")["front"]) == ["Swin-T", "Swin-S"]
    assert names(document()["front"]) == ["Swin-Free-T"], "the latest alone"
    assert names(document("--study", "one", "--study", "two", "--max-latency", "5")["front"]) == ["Swin-T"]


def test_studies_may_share_architectures_and_be_named_twice(studies: Store) -> None:
    add(studies, "one", {BASE: (0.5, 4.0), SMALL: (0.6, 8.0)})
    add(studies, "two", {SMALL: (0.6, 8.0), BASE: (0.5, 4.0)})
    both = document("--study", "one", "--study", "two", "--study", "one")
    assert both["study"] == "one + two"
    assert names(both["front"]) == ["Swin-T", "Swin-S"]
    assert both["measuring"]["latencies"] == 2


@pytest.mark.parametrize("order", [("limited", "free"), ("free", "limited")])
@pytest.mark.parametrize("outcome", ["gated", "failed"])
def test_what_one_study_did_not_finish_and_another_did_is_on_the_front(
    outcome: str, order: tuple[str, str], studies: Store
) -> None:
    """One study's latency limit, or a failed training with another seed, takes nothing from the other's front."""
    add(studies, "free", {BASE: (0.5, 4.0), SMALL: (0.6, 8.0)})
    failure = Failure(SMALL.id, "score:x", "diverged", "the loss is nan") if outcome == "failed" else None
    stopped = Candidate(SMALL, outcome, measured(SMALL, 8.0), failure=failure)  # type: ignore[arg-type]
    add(studies, "limited", {BASE: (0.5, 4.0), SMALL: stopped})
    front = document(*(word for name in order for word in ("--study", name)))["front"]
    assert names(front) == ["Swin-T", "Swin-S"]


@pytest.mark.parametrize("output", ["table", "csv", "md"])
def test_front_of_several_studies_comes_in_every_form(output: str, studies: Store) -> None:
    add(studies, "one", {BASE: (0.5, 4.0)})
    add(studies, "two", {FREE: (0.7, 6.0)})
    result = pareto("--study", "one", "--study", "two", "--format", output, "--plot", "front.html")
    assert result.exit_code == 0, result.stderr
    assert "Swin-T" in result.stdout
    assert "Swin-Free-T" in result.stdout
    page = Path("front.html").read_text()
    assert "one + two" in page
    if output == "table":
        assert result.stdout.startswith(f"one + two\n{TARGET.describe()}\n")
        assert "front of 2 architectures" in result.stdout
    if output == "csv":
        assert [row["speedup"] for row in csv.DictReader(io.StringIO(result.stdout))] == ["1.0", str(4 / 6)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "torch"),
        ("backend_version", "1.1"),
        ("precision", "fp16"),
        ("batch", 8),
        ("image_size", 256),
        ("device", "Another processor"),
        ("driver", "580.1"),
        ("threads", 4),
        ("graph_version", 2),
        ("options", "dynamic batch 1..8"),
    ],
)
def test_studies_of_different_environments_share_no_front(field: str, value: Any, studies: Store) -> None:
    other = replace(TARGET, **{field: value})
    add(studies, "one", {BASE: (0.5, 4.0)})
    add(studies, "two", {FREE: (0.7, 6.0)}, target=other)
    result = pareto("--study", "one", "--study", "two", "--plot", "front.png")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'one' and 'two' were measured in different environments" in result.stderr
    assert f"({field}: {getattr(TARGET, field)!r} and {value!r})" in result.stderr
    for target in (TARGET, other):
        assert f"--target {target.id} ({target.describe()})" in result.stderr
    assert not Path("front.png").exists()


def test_all_fields_that_differ_are_named_with_both_values(studies: Store) -> None:
    add(studies, "one", {BASE: (0.5, 4.0)})
    add(studies, "two", {FREE: (0.7, 6.0)}, target=replace(TARGET, batch=8, precision="fp16"))
    result = pareto("--study", "two", "--study", "one")
    assert "precision: 'fp16' and 'fp32'; batch: 8 and 1" in result.stderr, "in the order of the studies"


def test_target_keeps_the_studies_measured_on_it(studies: Store) -> None:
    fp16 = replace(TARGET, precision="fp16")
    add(studies, "one", {BASE: (0.5, 4.0)})
    add(studies, "half", {BASE: (0.5, 2.0), SMALL: (0.6, 4.0)}, target=fp16)
    add(studies, "two", {FREE: (0.7, 6.0)})
    named = [word for name in ("one", "half", "two") for word in ("--study", name)]
    assert pareto(*named).exit_code == 2
    kept = document(*named, "--target", TARGET.id)
    assert (kept["study"], names(kept["front"])) == ("one + two", ["Swin-T", "Swin-Free-T"])
    half = document(*named, "--target", fp16.id)
    assert (half["study"], half["target"]) == ("half", fp16.describe())
    assert [row["latency_ms"] for row in half["front"]] == [2.0, 4.0]
    refused = pareto(*named, "--target", "t1-nothing")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert (
        f"--target: 't1-nothing' is none of the studies' targets; allowed: {', '.join(sorted((TARGET.id, fp16.id)))}"
        in (refused.stderr)
    )


@pytest.mark.parametrize(
    ("key", "value", "options"),
    [
        ("recipe", {"epochs": 9}, {"recipe_id": "r1-y"}),
        ("data", "d1-y", {}),
        ("proxy", {**PROXY, "embed_dim": 16}, {}),
    ],
)
def test_accuracies_of_different_trainings_share_no_front(
    key: str, value: Any, options: dict[str, Any], studies: Store
) -> None:
    first = add(studies, "one", {BASE: (0.5, 4.0)})
    add(studies, "two", {FREE: (0.7, 6.0)}, **{key: value}, **options)
    result = pareto("--study", "one", "--study", "two")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"'one' and 'two' were trained with another {key}: {first.identity[key]!r} and {value!r}" in result.stderr


def test_unknown_study_among_several_names_those_there_are(studies: Store) -> None:
    add(studies, "one", {BASE: (0.5, 4.0)})
    result = pareto("--study", "one", "--study", "gone")
    assert result.exit_code == 2
    assert "'gone' is not in this database; there are: one" in result.stderr


def test_architecture_that_failed_in_one_study_stands_in_the_documents_with_its_reason(studies: Store) -> None:
    failure = Failure(FREE.id, latency_key(FREE.id, TARGET.id), "timeout", "not done after 900 s")
    add(studies, "one", {BASE: (0.5, 4.0), FREE: Candidate(FREE, "failed", failure=failure)})
    shown = json.loads(CliRunner().invoke(app, ["studies", "show", "--json"]).stdout)
    assert [(row["outcome"], row["reason"]) for row in shown["candidates"]] == [
        ("complete", None),
        ("failed", "not done after 900 s"),
    ]
    assert shown["measuring"]["latencies"] == 1


# -- what diverged ----------------------------------------------------------------------------------------------------


def diverged(
    arch: Arch, ms: float, message: str = "diverged: the loss is nan by step 7 (epoch 1, seed 0)"
) -> Candidate:
    key, at = f"score:{arch.id}/r1-x/d1-x/3/0", "2026-01-02T03:04:05+00:00"
    failure = Failure(arch.id, key, "diverged", message, at, diverged_at=7)
    return Candidate(arch, "failed", measured(arch, ms), failure=failure)


@pytest.fixture
def with_diverged(studies: Store) -> None:
    """One network on the front, two that diverged, and one that was not measured in time."""
    late = Failure(LARGE.id, latency_key(LARGE.id, TARGET.id), "timeout", "not done after 900 s")
    found: dict[Arch, Found | Candidate] = {BASE: (0.5, 4.0), SMALL: diverged(SMALL, 8.0, "diverged: [so] it is")}
    add(studies, "one", {**found, FREE: diverged(FREE, 3.0), LARGE: Candidate(LARGE, "failed", failure=late)})


@pytest.mark.usefixtures("with_diverged")
def test_document_lists_what_diverged_by_latency_and_why() -> None:
    found = document()
    assert names(found["front"]) == ["Swin-T"], "the faster one diverged"
    assert names(found["diverged"]) == ["Swin-Free-T", "Swin-S"]
    first = found["diverged"][0]
    assert (first["outcome"], first["accuracy"], first["latency_ms"], first["speedup"]) == ("failed", None, 3.0, 4 / 3)
    assert first["failure"] == {
        "kind": "diverged",
        "step": "training",
        "message": "diverged: the loss is nan by step 7 (epoch 1, seed 0)",
        "diverged_at": 7,
        "attempts": 1,
        "failed_at": "2026-01-02T03:04:05+00:00",
    }
    assert names(document("--max-latency", "5")["diverged"]) == ["Swin-Free-T"]
    shown = json.loads(CliRunner().invoke(app, ["studies", "show", "--json"]).stdout)["candidates"]
    kinds = {row["name"]: row["failure"] and row["failure"]["kind"] for row in shown}
    assert kinds == {"Swin-T": None, "Swin-S": "diverged", "Swin-Free-T": "diverged", "Swin-B": "timeout"}


@pytest.mark.parametrize("order", [("limited", "free"), ("free", "limited")])
def test_what_diverged_in_one_study_and_was_not_trained_in_another_is_listed(
    order: tuple[str, str], studies: Store
) -> None:
    add(studies, "free", {BASE: (0.5, 4.0), SMALL: diverged(SMALL, 8.0)})
    add(studies, "limited", {BASE: (0.5, 4.0), SMALL: Candidate(SMALL, "gated", measured(SMALL, 8.0))})
    found = document(*(word for name in order for word in ("--study", name)))
    assert names(found["diverged"]) == ["Swin-S"]


@pytest.mark.usefixtures("with_diverged")
@pytest.mark.parametrize("output", ["table", "md"])
def test_what_diverged_stands_below_the_front(output: str) -> None:
    text = pareto("--format", output).stdout
    front, _, below = text.partition("training diverged, cannot stand on the front")
    assert "diverged" not in front
    section = below.partition("known networks")[0]
    rows = [line for line in section.splitlines() if re.search(r"[│|] diverged +[│|]", line)]
    assert ["Swin-Free-T" in rows[0], "3.00" in rows[0], "Swin-S" in rows[1], "8.00" in rows[1]] == [True] * 4
    assert len(rows) == 2
    assert "Swin-Free-T: diverged: the loss is nan by step 7 (epoch 1, seed 0)\n" in section
    assert "Swin-S: diverged: [so] it is\n" in section, "no markup"


def test_nothing_is_said_of_divergence_where_there_was_none(studies: Store) -> None:
    add(studies, "one", {BASE: (0.5, 4.0)})
    for output in ("table", "md", "csv"):
        assert "diverged" not in pareto("--format", output).stdout
    assert document()["diverged"] == []


@pytest.mark.usefixtures("with_diverged")
def test_csv_holds_the_front_alone() -> None:
    rows = list(csv.DictReader(io.StringIO(pareto("--format", "csv").stdout)))
    assert [row["name"] for row in rows] == ["Swin-T"]


@pytest.mark.usefixtures("with_diverged")
def test_plot_marks_what_diverged_at_its_latency() -> None:
    assert pareto("--plot", "front.html").exit_code == 0
    page = Path("front.html").read_text()
    assert '"name":"diverged"' in page
    assert "Swin-Free-T: diverged: the loss is nan by step 7" in page
    assert pareto("--plot", "front.png").exit_code == 0
    with_them = Path("front.png").read_bytes()
    assert pareto("--plot", "front.png", "--max-latency", "2").exit_code == 0, "an empty picture"
    assert Path("front.png").read_bytes() != with_them


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        (
            diverged(FREE, 3.0),
            "diverged: the loss is nan by step 7 (epoch 1, seed 0); cannot stand on the front  3.00 ms",
        ),
        (
            replace(diverged(FREE, 3.0, "loss is\n inf"), reused=2),
            "diverged: loss is inf; cannot stand on the front  3.00 ms  (known)",
        ),
        (replace(diverged(FREE, 3.0, "x"), reused=1), "diverged: x; cannot stand on the front  3.00 ms"),
        (
            Candidate(FREE, "failed", failure=Failure(FREE.id, "latency:x", "build", "no")),
            "failed: build",
        ),
    ],
    ids=["new", "known", "of known latency", "no divergence"],
)
def test_progress_says_that_a_training_diverged_and_where(candidate: Candidate, text: str) -> None:
    assert outcome_text(candidate) == text


# -- rows -------------------------------------------------------------------------------------------------------------


def test_speedup_is_counted_from_the_base_as_it_was_timed_beside_the_architecture() -> None:
    base = measured(BASE, 10.0)
    alone = measured(FREE, 8.0)
    beside = replace(alone, reference_id=BASE.id, reference_ms=12.0)
    beside_another = replace(beside, reference_id=SMALL.id)

    def speedup(latency: Latency | None, of: Latency | None = base) -> float | None:
        found: float | None = candidate_row(Candidate(FREE, "complete", latency), of)["speedup"]
        return found

    assert speedup(beside) == pytest.approx(12 / 8)
    assert speedup(alone) == speedup(beside_another) == pytest.approx(10 / 8)
    assert speedup(None) is speedup(beside, None) is None


def test_row_holds_validity_and_ratio() -> None:
    found = measured(FREE, 8.0, invalid="hot", reference_id=BASE.id, reference_ms=16.0)
    row = candidate_row(Candidate(FREE, "complete", found), None)
    assert (row["invalid"], row["ratio"], row["is_stable"]) == ("hot", 0.5, True)
    empty = candidate_row(Candidate(FREE, "pending"), None)
    assert (empty["invalid"], empty["ratio"], empty["latency_ms"]) == (None, None, None)


def test_measurements_are_summed_up() -> None:
    latencies = [
        measured(BASE, 10.0, reference_drift=-0.01),
        measured(FREE, 8.0, is_stable=False, reference_drift=0.015, rebuild_medians_ms=(8.4, 7.5)),
        measured(SMALL, 9.0, invalid="hot", rebuild_medians_ms=(9.0,)),
    ]
    found = measuring(latencies)
    assert found == {
        "latencies": 3,
        "unstable": 1,
        "invalid": 1,
        "reference_drift_min": -0.01,
        "reference_drift_max": 0.015,
        "rebuild_spread_max": pytest.approx(0.12),
        "rebuilt": 2,
    }
    assert measuring_text(found) == (
        "3 latencies: 1 unstable, 1 invalid, reference drift -1.0% to +1.5%, engines of one network differ by at most 12.0% "
        "(2 rebuilt)"
    )


def test_nothing_measured_is_summed_up_too() -> None:
    found = measuring([])
    assert {key: value for key, value in found.items() if value is not None} == {
        "latencies": 0, "unstable": 0, "invalid": 0, "rebuilt": 0,
    }  # fmt: skip
    assert measuring_text(found) == (
        "0 latencies: 0 unstable, 0 invalid, spread from engine to engine not measured (--rebuilds)"
    )


@pytest.mark.parametrize("command", [["pareto"], ["studies", "show"]])
def test_text_and_document_tell_how_measuring_went(command: list[str], studies: Store) -> None:
    found = measured(FREE, 6.0, reference_id=BASE.id, reference_ms=4.4, reference_drift=0.1, rebuild_medians_ms=(6.6,))
    score = Score(FREE.id, "r1-x", "d1-x", 3, 0, 0.7, 1.0)
    add(studies, "one", {BASE: (0.5, 4.0), FREE: Candidate(FREE, "complete", found, (score,))})
    text = CliRunner().invoke(app, command)
    assert text.exit_code == 0, text.output
    line = "2 latencies: 0 unstable, 0 invalid, reference drift +10.0% to +10.0%, engines of one network differ by at most 10.0%"
    assert line in text.stdout
    summary = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["measuring"]
    assert summary == measuring([measured(BASE, 4.0), found])
