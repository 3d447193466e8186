"""`studies failures`: what failed, by class, what a search does with it next, and how it is forgotten."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from explorer.arch import PRESETS, Arch
from explorer.cli import _Boundary
from explorer.cli.failures import studies_failures
from explorer.records import Candidate, Failure, FailureKind, ScoreKey, StudyRecord, Target, latency_key
from explorer.store import Store

TARGET = Target("onnxruntime", "1.0", "fp32", 1, 224, "cpu", "A processor", "", 2, 1)
RECIPE = {"epochs": 3}
BASE, FREE, SMALL = PRESETS["Swin-T"], PRESETS["Swin-Free-T"], PRESETS["Swin-S"]
ROW_FIELDS = {
    "arch_id", "name", "step", "kind", "is_transient", "attempts", "max_attempts", "is_tried_again", "message", "failed_at",
    "key", "command", "diverged_at",
}  # fmt: skip


def failures(*arguments: str, typed: str = "") -> Result:
    app = typer.Typer(cls=_Boundary, rich_markup_mode=None)
    app.command("failures")(studies_failures)
    app.command("other")(lambda: None)  # a single command would have no name
    return CliRunner().invoke(app, ["failures", *arguments], input=typed)


def document(*arguments: str) -> Any:
    result = failures(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """What commands find in the working folder: two studies without members."""
    monkeypatch.chdir(tmp_path)
    store = Store.open("studies/explorer.db", create=True)
    for name in ("first", "second one"):
        identity = {"space": {}, "proxy": None, "target": asdict(TARGET), "recipe": RECIPE, "data": "d1-x"}
        store.add_study(StudyRecord(name, identity, TARGET.id, "r1-x", "d1-x", BASE.id, 7), BASE, TARGET, RECIPE)
    yield store
    store.close()


def add(store: Store, study: str | None, arch: Arch, kind: FailureKind, *, key: str = "", times: int = 1) -> Failure:
    """A failure, of a member where there is a study."""
    failure = Failure(arch.id, key or latency_key(arch.id, TARGET.id), kind, f"{arch.name}:\nit broke", "2026-01-02")
    for _ in range(times):
        kept = store.add_failure(arch, failure)
    if study is not None:
        store.add_member(study, Candidate(arch, "failed", failure=kept), score_key(arch))
    return kept


def score_key(arch: Arch, *, recipe_id: str = "r1-x", epochs: int = 3, seed: int = 7) -> ScoreKey:
    return ScoreKey(arch.id, recipe_id, "d1-x", epochs, seed)


def test_study_in_which_nothing_failed_says_so(database: Store) -> None:
    result = failures("--study", "first")
    assert (result.exit_code, result.stdout) == (0, "study first: nothing failed\n")
    assert document("--study", "first") == {"study": "first", "forgotten": 0, "failures": []}
    assert failures("--all").stdout == "the database: nothing failed\n"
    assert failures("--study", "first", "--forget").exit_code == 0, "and there is nothing to ask about"


def test_rows_hold_what_failed_and_the_command_that_shows_it_again(database: Store) -> None:
    kept = add(database, "second one", FREE, "timeout", times=2)
    (row,) = document()["failures"]
    assert set(row) == ROW_FIELDS
    assert {key: row[key] for key in ("arch_id", "name", "step", "kind", "message", "failed_at", "key")} == {
        "arch_id": FREE.id,
        "name": "Swin-Free-T",
        "step": "measuring",
        "kind": "timeout",
        "message": "Swin-Free-T:\nit broke",
        "failed_at": "2026-01-02",
        "key": kept.key,
    }
    assert (row["is_transient"], row["attempts"], row["max_attempts"], row["is_tried_again"]) == (True, 2, 3, True)
    words = ["swinexplore", "evaluate", FREE.id, "--study", "second one", "--storage", "sqlite:///studies/explorer.db"]
    assert shlex.split(row["command"]) == words
    assert document("--storage", "studies/explorer.db")["failures"][0]["command"].endswith(
        " --storage studies/explorer.db"
    )


def test_training_from_another_seed_than_the_studys_is_shown_again_from_it(database: Store) -> None:
    add(database, "first", FREE, "diverged", key=str(score_key(FREE)))
    add(database, "first", SMALL, "diverged", key=str(score_key(SMALL, seed=9)))
    of_study, other = document("--study", "first")["failures"]
    assert of_study["step"] == other["step"] == "training"
    assert "--seed" not in of_study["command"]
    assert "--seed 9 " in other["command"]


def test_table_groups_by_class_and_says_what_a_search_does_next(database: Store) -> None:
    add(database, "first", BASE, "crash")
    add(database, "first", FREE, "build")
    add(database, "first", SMALL, "crash", times=3)
    result = failures("--study", "first")
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0] == "study first: 3 failed"
    rows = [line.split("│")[1:4] for line in lines if "it broke" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["crash", "measuring", "1 of 3"],
        ["crash", "measuring", "3 of 3"],
        ["build", "measuring", "1 of 1"],
    ]
    assert "2 crash: transient, 1 tried again by the next search, 1 given up" in lines
    assert "1 build: deterministic, not tried again" in lines
    commands = [line.strip() for line in lines if "swinexplore evaluate" in line]
    assert [command.split()[2] for command in commands] == [BASE.id, SMALL.id, FREE.id]


@pytest.mark.parametrize(("times", "said"), [(1, "tried again by the next search"), (3, "given up after 3 attempts")])
def test_transient_failure_is_tried_again_until_it_is_given_up(database: Store, times: int, said: str) -> None:
    add(database, "first", BASE, "out_of_memory", times=times)
    assert f"1 out_of_memory: transient, {said}" in failures("--study", "first").stdout


def test_markup_in_a_message_is_shown_as_it_is(database: Store) -> None:
    key = latency_key(BASE.id, TARGET.id)
    database.add_failure(BASE, Failure(BASE.id, key, "crash", "[bold]std::bad[/oops] " + "x" * 300))
    shown = failures("--all").stdout
    assert "[bold]std::bad[/oops]" in shown
    assert "…" in shown
    assert document("--all")["failures"][0]["message"].endswith("x" * 300)


def test_study_lists_its_own_and_all_lists_every_failure_once(database: Store) -> None:
    shared = add(database, "first", FREE, "build")
    database.add_member("second one", Candidate(FREE, "failed", failure=shared), score_key(FREE))
    add(database, "first", BASE, "export")
    of_none = add(database, None, SMALL, "diverged", key=str(score_key(SMALL)))
    beyond = add(database, None, SMALL, "diverged", key=str(score_key(SMALL, recipe_id="r1-longer", epochs=6)))
    assert {row["arch_id"] for row in document("--study", "second one")["failures"]} == {FREE.id}
    everything = document("--all")
    assert everything["study"] is None
    commands = {row["key"]: row["command"] for row in everything["failures"]}
    assert len(commands) == len(everything["failures"]) == 4
    assert f"evaluate {SMALL.id} --study" in commands[of_none.key], "a study with that recipe and data does the same"
    assert commands[beyond.key] is None
    assert f"no study of this database would do it again: {beyond.key}" in failures("--all").stdout


def test_further_seed_of_a_member_that_did_not_fail_is_listed_and_can_be_forgotten(database: Store) -> None:
    database.add_member("first", Candidate(BASE, "complete"), score_key(BASE))
    add(database, None, BASE, "crash", key=str(score_key(BASE, seed=8)), times=3)
    add(database, None, BASE, "crash", key=str(score_key(BASE, recipe_id="r1-longer", seed=8)))
    add(database, None, SMALL, "crash", key=str(score_key(SMALL, seed=8)))
    (row,) = document("--study", "first")["failures"]
    assert (row["arch_id"], row["step"], row["attempts"], row["is_tried_again"]) == (BASE.id, "training", 3, False)
    assert "--seed 8 " in row["command"]
    assert document("--study", "second one")["failures"] == []
    assert document("--study", "first", "--forget", "--yes")["forgotten"] == 1
    assert len(database.failures()) == 2
    assert [c.outcome for c in database.candidates(database.study("first"))] == ["complete"]


def test_forgotten_failures_are_tried_again(database: Store) -> None:
    add(database, "first", FREE, "build")
    add(database, "first", BASE, "timeout", times=3)
    elsewhere = add(database, "second one", SMALL, "build")
    content = document("--study", "first", "--forget", "--yes")
    assert content["forgotten"] == len(content["failures"]) == 2
    assert [failure.key for _, failure in database.failures()] == [elsewhere.key]
    assert [c.outcome for c in database.candidates(database.study("first"))] == ["pending", "pending"]
    assert [c.outcome for c in database.candidates(database.study("second one"))] == ["failed"]


def test_nothing_is_forgotten_without_a_yes(database: Store) -> None:
    add(database, "first", FREE, "build")
    refused = failures("--study", "first", "--forget", typed="n\n")
    assert refused.exit_code == 2
    assert "1 failure not forgotten; say --yes" in refused.stderr
    assert len(database.failures()) == 1
    agreed = failures("--study", "first", "--forget", typed="y\n")
    assert agreed.exit_code == 0
    assert "forgot 1 failure; the next search tries again" in agreed.stderr
    assert database.failures() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "gone"], "study: 'gone' is not in this database; there are: second one, first"),
        (["--study", "first", "--all"], "give one of them"),
        (["--storage", "gone.db"], "no such database"),
    ],
)
def test_bad_input_is_said_in_one_message(database: Store, arguments: list[str], message: str) -> None:
    result = failures(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
