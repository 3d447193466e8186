"""The store: its contract on a SQLite file and on a PostgreSQL server, then what is SQLite's own, then old files."""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from typer.testing import CliRunner

from explorer import latency
from explorer.arch import PRESETS, Arch
from explorer.cli import app
from explorer.errors import StoreError
from explorer.evaluate import live
from explorer.records import (
    Candidate,
    Epoch,
    Failure,
    FrontRecord,
    Latency,
    Score,
    ScoreKey,
    StudyRecord,
    Target,
    Verification,
    latency_key,
)
from explorer.store import Store, exists, facts, schema, storage_url

TARGET = Target("onnxruntime", "1.0", "fp32", 1, 224, "cpu", "A processor", "", 2, 1)
ARCH = PRESETS["Swin-T"]
LATENCY = Latency(ARCH.id, TARGET.id, 2.5, 3.0, 2.4, 0.01, 30, (2.5, 2.6), True, 1.5, 2.5, {"cpu": "x"}, "2026-01-01")
SCORE = Score(
    ARCH.id, "r1-x", "d1-x", 3, 0, 0.75, 9.0, (Epoch(1, 2.0, None, 3.0), Epoch(2, 1.0, 0.75, 3.0)), {}, "2026"
)
STUDY = StudyRecord("one", {"space": {"depth3": [1]}}, TARGET.id, "r1-x", "d1-x", ARCH.id, 0)


FULL = replace(
    LATENCY, invalid="the GPU was hot", remarks=("power cap reached", "no CUDA graph"), p90_ms=2.8, p99_ms=3.4, isolated_ms=2.9,
    no_graph_ms=2.7, images_per_s=399.5, engine_bytes=2**40, build_s=61.5, peak_memory_bytes=2**33, reference_id="a1-base",
    reference_ms=5.0, reference_drift=-0.012, rebuild_medians_ms=(2.5, 2.75),
)  # fmt: skip
#: What released versions wrote, with Optuna's tables: the study "old" of three architectures; in version 2 one of them has
#: an invalid latency, and a fourth has failed. That of version 3 is the same, as it brought it forward.
OLD = {number: Path(__file__).parent / "golden" / f"store-v{number}.sql" for number in (1, 2, 3, 4)}


@pytest.fixture
def store(storage: str) -> Iterator[Store]:
    opened = Store.open(storage, create=True)
    yield opened
    opened.close()


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "file.db"), create=True)
    yield opened
    opened.close()


def add_study(store: Store, name: str = "one") -> StudyRecord:
    store.add_study(replace(STUDY, name=name), ARCH, TARGET, {"epochs": 3})
    return store.study(name)


def test_training_that_diverged_settles_every_longer_one_and_no_other(store: Store) -> None:
    key = ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0)
    diverged = Failure(ARCH.id, str(key), "diverged", "diverged: the loss is nan at step 9", diverged_at=9)
    store.add_failure(ARCH, diverged)
    store.add_failure(ARCH, Failure(ARCH.id, str(replace(key, seed=1)), "crash", "the fan stopped"))
    assert store.divergence(replace(key, epochs=9)) == diverged
    assert store.divergence(key) == diverged
    assert store.divergence(replace(key, epochs=2)) is None
    assert store.divergence(replace(key, epochs=9, seed=1)) is None
    assert store.divergence(replace(key, epochs=9, recipe_id="r1-y")) is None


def test_facts_read_back_as_they_were_written(store: Store) -> None:
    key = ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0)
    failure = Failure(ARCH.id, latency_key(ARCH.id, "t1-other"), "measure", "the fan stopped", "2026")
    store.add_latency(ARCH, TARGET, LATENCY)
    store.add_score(ARCH, {"epochs": 3}, SCORE)
    store.add_failure(ARCH, failure)
    assert store.latency(ARCH.id, TARGET.id) == LATENCY
    assert store.score(key) == SCORE
    assert store.failure(failure.key) == failure
    assert store.target(TARGET.id) == TARGET
    assert store.arch(ARCH.id) == ARCH


def test_every_field_of_a_latency_reads_back(store: Store) -> None:
    assert all(getattr(FULL, field.name) not in ("", (), None) for field in fields(Latency)), "FULL lacks a field"
    store.add_latency(ARCH, TARGET, FULL)
    assert store.latency(ARCH.id, TARGET.id) == FULL
    study = add_study(store)
    store.add_member("one", Candidate(ARCH, "gated", FULL), ScoreKey("p", "r1-x", "d1-x", 3, 0))
    assert [candidate.latency for candidate in store.candidates(study)] == [FULL]


def test_details_that_a_later_version_may_add_are_left_out(store: Store) -> None:
    store.add_latency(ARCH, TARGET, LATENCY)
    with store.database.writing() as connection:
        connection.execute(schema.latencies.update().values(details={"of_the_future": [1], "p90_ms": 2.75}))
    assert store.latency(ARCH.id, TARGET.id) == replace(LATENCY, p90_ms=2.75)


def test_fact_that_is_there_is_never_changed(store: Store) -> None:
    later = (
        replace(LATENCY, latency_ms=99.0),
        replace(LATENCY, latency_ms=1.0, invalid="other processes kept 2.0 CPUs busy"),
        replace(LATENCY, latency_ms=2.0, is_stable=False),
    )
    unstable = replace(LATENCY, is_stable=False, remarks=("power cap reached",))
    store.add_latency(ARCH, TARGET, unstable)
    for latency_of_another_time in later:
        store.add_latency(ARCH, TARGET, latency_of_another_time)
        assert store.latency(ARCH.id, TARGET.id) == unstable
    store.add_score(ARCH, {"epochs": 3}, SCORE)
    store.add_score(ARCH, {"epochs": 3}, replace(SCORE, accuracy=0.1))
    assert store.score(ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0)) == SCORE


def test_invalid_latency_is_replaced_as_a_whole(store: Store) -> None:
    still_invalid = replace(LATENCY, latency_ms=7.0, invalid="clocks were lowered")
    for found in (FULL, still_invalid, LATENCY):
        store.add_latency(ARCH, TARGET, found)
        assert store.latency(ARCH.id, TARGET.id) == found
    store.add_latency(ARCH, TARGET, FULL)
    assert store.latency(ARCH.id, TARGET.id) == LATENCY, "a valid one stays"


def test_invalid_latency_on_another_target_is_another_fact(store: Store) -> None:
    other = replace(TARGET, precision="fp16")
    store.add_latency(ARCH, TARGET, FULL)
    store.add_latency(ARCH, other, replace(FULL, target_id=other.id))
    store.add_latency(ARCH, other, replace(LATENCY, target_id=other.id))
    assert store.latency(ARCH.id, TARGET.id) == FULL


def test_validity_can_be_asked_for_in_sql(store: Store) -> None:
    store.add_latency(ARCH, TARGET, FULL)
    with store.database.reading() as connection:
        statement = "SELECT CAST(details AS TEXT) FROM latencies WHERE invalid = 'the GPU was hot'"
        ((details,),) = connection.exec_driver_sql(statement).fetchall()
    assert json.loads(details)["rebuild_medians_ms"] == [2.5, 2.75]


@pytest.mark.parametrize("field", ["arch_id", "recipe_id", "data_id", "epochs", "seed"])
def test_score_is_found_by_every_part_of_its_key(field: str, store: Store) -> None:
    store.add_score(ARCH, {"epochs": 3}, SCORE)
    key = ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0)
    other = replace(key, **{field: 9 if isinstance(getattr(key, field), int) else "other"})
    assert store.score(key) is not None
    assert store.score(other) is None


def test_latency_of_another_target_is_another_fact(store: Store) -> None:
    store.add_latency(ARCH, TARGET, LATENCY)
    assert store.latency(ARCH.id, replace(TARGET, precision="fp16").id) is None


def test_candidates_come_in_order_with_their_facts(store: Store) -> None:
    study = add_study(store)
    other = PRESETS["Swin-Free-T"]
    failure = Failure(other.id, latency_key(other.id, TARGET.id), "build", "too large", "2026")
    store.add_latency(ARCH, TARGET, LATENCY)
    store.add_score(ARCH, {"epochs": 3}, SCORE)
    store.add_failure(other, failure)
    complete = Candidate(ARCH, "complete", LATENCY, (SCORE,))
    failed = Candidate(other, "failed", failure=failure)
    store.add_member("one", complete, ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0))
    store.add_member("one", failed, ScoreKey("p", "r1-x", "d1-x", 3, 0))
    assert store.candidates(study) == [complete, failed]


def test_member_evaluated_anew_keeps_its_position(store: Store) -> None:
    study = add_study(store)
    key = ScoreKey("p", "r1-x", "d1-x", 3, 0)
    store.add_member("one", Candidate(ARCH, "gated"), key)
    store.add_member("one", Candidate(PRESETS["Swin-S"], "gated"), key)
    store.add_member("one", Candidate(ARCH, "complete"), key)
    assert [(c.arch.name, c.outcome) for c in store.candidates(study)] == [("Swin-T", "complete"), ("Swin-S", "gated")]


def test_latest_used_study_is_the_default(store: Store) -> None:
    add_study(store, "one")
    add_study(store, "two")
    assert store.study().name == "two"
    add_study(store, "one")
    assert store.study().name == "one"
    assert [study.name for study in store.studies()] == ["one", "two"]


def test_unknown_study_names_those_there_are(store: Store) -> None:
    with pytest.raises(StoreError, match="none yet"):
        store.study()
    add_study(store)
    with pytest.raises(StoreError, match="'two' is not in this database; there are: one"):
        store.study("two")


def test_fronts_keep_their_history(store: Store) -> None:
    add_study(store)
    first, second = (FrontRecord("one", n, (ARCH.id,) * 1, n / 10, 5.0) for n in (1, 4))
    store.add_front(first)
    store.add_front(second)
    assert store.fronts("one") == [first, second]


def test_id_may_be_shortened_while_it_fits_one(store: Store) -> None:
    for arch in PRESETS.values():
        store.add_failure(arch, Failure(arch.id, arch.id, "build", ""))
    assert store.arch(ARCH.id[:9]) == ARCH
    with pytest.raises(StoreError, match="fits several"):
        store.arch("a1-")
    with pytest.raises(StoreError, match="is not in this database"):
        store.arch("a1-zzz")
    with pytest.raises(StoreError, match="is not in this database"):
        store.arch("a1-%")


def test_score_of_a_longer_training_gives_those_of_its_epochs(store: Store) -> None:
    curve = (Epoch(1, 2.0, 0.5, 3.0), Epoch(2, 1.0, None, 4.0), Epoch(3, 0.5, 0.75, 5.0))
    score = replace(SCORE, curve=curve, train_s=12.0)
    store.add_score(ARCH, {"epochs": 3}, score)
    key = ScoreKey(ARCH.id, "r1-x", "d1-x", 1, 0)
    assert store.score(key) == replace(score, epochs=1, accuracy=0.5, train_s=3.0, curve=curve[:1])
    assert store.score(replace(key, epochs=2)) is None, "it was not evaluated then"
    assert store.score(replace(key, epochs=4)) is None
    assert store.score(replace(key, epochs=1, seed=1)) is None


def test_score_of_its_own_comes_before_one_of_a_longer_training(store: Store) -> None:
    own = replace(SCORE, epochs=1, accuracy=0.4, curve=(Epoch(1, 2.0, 0.4, 3.0),), train_s=3.5)
    for score in (replace(SCORE, curve=(Epoch(1, 2.0, 0.5, 3.0), Epoch(3, 0.5, 0.75, 5.0))), own):
        store.add_score(ARCH, {"epochs": 3}, score)
    assert store.score(ScoreKey(ARCH.id, "r1-x", "d1-x", 1, 0)) == own


def test_known_facts_can_be_counted_beforehand(store: Store) -> None:
    other = PRESETS["Swin-S"]
    store.add_latency(ARCH, TARGET, LATENCY)
    store.add_latency(other, TARGET, replace(FULL, arch_id=other.id))
    store.add_score(ARCH, {"epochs": 3}, SCORE)
    store.add_score(other, {"epochs": 3}, replace(SCORE, arch_id=other.id, epochs=2, curve=()))
    assert store.measured(TARGET.id) == [(ARCH, 2.5)], "an invalid latency counts for nothing"
    assert store.measured("t1-other") == []
    assert store.scored("r1-x", "d1-x", 0, 3) == {ARCH.id}
    assert store.scored("r1-x", "d1-x", 0, 2) == {ARCH.id, other.id}, "one of them as of a longer training"
    assert store.scored("r1-x", "d1-x", 0, 1) == set()
    assert store.scored("r1-x", "d1-x", 1, 3) == set()


def test_mean_seconds_are_of_a_latency_and_of_one_epoch(store: Store) -> None:
    assert store.mean_seconds(TARGET.id, "r1-x") == (None, None)
    store.add_latency(ARCH, TARGET, LATENCY)
    for epochs, train_s in ((3, 9.0), (1, 5.0)):
        store.add_score(ARCH, {"epochs": 3}, replace(SCORE, epochs=epochs, train_s=train_s))
    assert store.mean_seconds(TARGET.id, "r1-x") == (4.0, 4.0)
    assert store.mean_seconds("t1-other", "r1-other") == (None, None)


def test_recipe_and_target_are_found_by_id_or_named_in_the_error(store: Store) -> None:
    add_study(store)
    assert store.recipe("r1-x") == {"epochs": 3}
    with pytest.raises(StoreError, match="recipe: 'r1-y' is not in this database"):
        store.recipe("r1-y")
    with pytest.raises(StoreError, match="target: 't1-y' is not in this database"):
        store.target("t1-y")


# -- failures ------------------------------------------------------------------------------------------------------------

TIMEOUT = Failure(ARCH.id, latency_key(ARCH.id, TARGET.id), "timeout", "not within 600 s", "2026-01-01")


def test_attempts_at_a_passing_failure_are_counted(store: Store) -> None:
    assert store.add_failure(ARCH, TIMEOUT) == TIMEOUT
    again = replace(TIMEOUT, kind="crash", message="signal 11", failed_at="2026-01-02")
    assert store.add_failure(ARCH, again) == replace(again, attempts=2)
    assert store.add_failure(ARCH, replace(again, attempts=2)) == replace(again, attempts=3)
    assert store.failure(TIMEOUT.key) == replace(again, attempts=3)


def test_lasting_failure_stays_and_is_what_comes_back(store: Store) -> None:
    lasting = replace(TIMEOUT, kind="build", message="no tactic")
    store.add_failure(ARCH, TIMEOUT)
    assert store.add_failure(ARCH, lasting) == replace(lasting, attempts=2)
    assert store.add_failure(ARCH, TIMEOUT) == replace(lasting, attempts=2)
    assert store.failure(TIMEOUT.key) == replace(lasting, attempts=2)


def test_last_words_that_no_database_keeps_are_kept_as_far_as_they_can_be(store: Store) -> None:
    kept = store.add_failure(ARCH, replace(TIMEOUT, message="core\0dumped \udcff"))
    assert kept.message == "coredumped ?"


def test_failures_are_listed_by_study_or_all(store: Store) -> None:
    add_study(store)
    other, elsewhere = PRESETS["Swin-S"], PRESETS["Swin-B"]
    key = ScoreKey("p", "r1-x", "d1-x", 3, 0)
    found = []
    for arch, when in ((other, "2026-03"), (ARCH, "2026-02"), (elsewhere, "2026-01")):
        failure = Failure(arch.id, latency_key(arch.id, TARGET.id), "build", "too large", when)
        store.add_failure(arch, failure)
        found.append((arch, failure))
        if arch != elsewhere:
            store.add_member("one", Candidate(arch, "failed", failure=failure), key)
    assert store.failures("one") == found[:2]
    assert store.failures() == found[::-1]
    assert store.failures("two") == []


def test_forgotten_failure_leaves_its_members_to_be_evaluated_again(store: Store) -> None:
    study = add_study(store)
    failure = store.add_failure(ARCH, TIMEOUT)
    store.add_member("one", Candidate(ARCH, "failed", failure=failure), ScoreKey("p", "r1-x", "d1-x", 3, 0))
    assert store.forget_failures([failure.key, "latency:none/none"]) == 1
    assert store.failure(failure.key) is None
    assert store.candidates(study) == [Candidate(ARCH, "pending")]
    assert store.add_failure(ARCH, TIMEOUT).attempts == 1, "counted from the start"


@pytest.mark.parametrize("fact", ["latency", "score", "longer score"])
def test_fact_ends_the_failure_to_get_it(fact: str, store: Store) -> None:
    study = add_study(store)
    key = ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0)
    failure = TIMEOUT if fact == "latency" else replace(TIMEOUT, key=str(key), kind="diverged")
    store.add_failure(ARCH, failure)
    store.add_member("one", Candidate(ARCH, "failed", failure=failure), key)
    longer = replace(SCORE, epochs=5, curve=(Epoch(3, 1.0, 0.5, 3.0), Epoch(5, 1.0, 0.75, 6.0)))
    if fact == "latency":
        store.add_latency(ARCH, TARGET, FULL)
        assert store.failure(failure.key) == failure, "an invalid latency is none"
        store.add_latency(ARCH, TARGET, LATENCY)
    else:
        store.add_score(ARCH, {"epochs": 3}, SCORE if fact == "score" else longer)
    assert store.failure(failure.key) is None
    assert [candidate.outcome for candidate in store.candidates(study)] == ["pending"]


# -- members -------------------------------------------------------------------------------------------------------------


def test_candidate_has_the_scores_of_its_seeds_after_its_epochs(store: Store) -> None:
    study = add_study(store)
    curve = (Epoch(1, 2.0, 0.5, 3.0), Epoch(3, 0.5, 0.75, 5.0))
    scores = tuple(replace(SCORE, seed=seed, accuracy=0.7 + seed / 100, curve=curve) for seed in (4, 5, 6))
    for score in (*scores, replace(SCORE, seed=7), replace(SCORE, seed=4, data_id="d1-y")):
        store.add_score(ARCH, {"epochs": 3}, score)
    key = ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 4)
    complete = Candidate(ARCH, "complete", scores=scores)
    store.add_member("one", complete, key)
    assert store.candidates(study) == [complete]
    stopped = Candidate(ARCH, "stopped", scores=scores[:1])
    store.add_member("one", stopped, replace(key, epochs=1))
    (found,) = store.candidates(study)
    assert [(score.epochs, score.seed, score.accuracy) for score in found.scores] == [(1, 4, 0.5)]


@pytest.mark.parametrize("outcome", ["pending", "gated", "failed"])
def test_candidate_that_was_not_trained_for_the_study_has_no_scores(outcome: Any, store: Store) -> None:
    study = add_study(store)
    store.add_score(ARCH, {"epochs": 3}, SCORE)
    store.add_member("one", Candidate(ARCH, outcome), ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0))
    assert store.candidates(study) == [Candidate(ARCH, outcome)]


def test_what_a_candidate_cost_adds_up(store: Store) -> None:
    study, key = add_study(store), ScoreKey("p", "r1-x", "d1-x", 1, 0)
    store.add_member("one", Candidate(ARCH, "stopped"), key, spent_epochs=1, spent_s=1.5)
    store.add_member("one", Candidate(ARCH, "stopped"), replace(key, epochs=3), spent_epochs=2, spent_s=2.0)
    store.add_member("one", Candidate(ARCH, "complete"), replace(key, epochs=3))
    assert [(found.spent_epochs, found.spent_s) for found in store.candidates(study)] == [(3, 3.5)]


def test_facts_of_other_members_and_targets_are_not_mixed_in(store: Store) -> None:
    add_study(store)
    other_target = replace(TARGET, precision="fp16")
    store.add_study(replace(STUDY, name="two", target_id=other_target.id), ARCH, other_target, {"epochs": 3})
    store.add_latency(ARCH, TARGET, LATENCY)
    store.add_latency(ARCH, other_target, replace(LATENCY, target_id=other_target.id, latency_ms=1.0))
    for name in ("one", "two"):
        store.add_member(name, Candidate(ARCH, "gated"), ScoreKey("p", "r1-x", "d1-x", 3, 0))
    assert [store.candidates(store.study(name))[0].latency_ms for name in ("one", "two")] == [2.5, 1.0]


def test_settings_are_those_of_the_latest_run_that_gave_any(store: Store) -> None:
    for settings in ({}, {"data": "/first"}, {"data": "/second"}, {}):
        store.add_study(replace(STUDY, settings=settings), ARCH, TARGET, {"epochs": 3})
    assert store.study("one").settings == {"data": "/second"}


def test_verifications_read_back_and_go_with_their_study(store: Store) -> None:
    add_study(store)
    first = Verification("one", ARCH.id, "r1-x/30/3", 2.5, 0.75, 2.6, (0.8, 0.81, 0.79), "2026-01-01")
    second = replace(first, key="r1-x/60/1", verified_ms=None, accuracies=(0.9,), verified_at="2026-01-02")
    store.add_verification(second)
    store.add_verification(replace(first, verified_ms=9.0))
    store.add_verification(first)
    assert store.verifications("one") == [first, second], "the later one under a key counts"
    assert store.verifications("two") == []
    store.delete_study("one")
    assert store.verifications("one") == []


def test_deleted_study_leaves_its_facts(store: Store) -> None:
    study = add_study(store)
    store.add_latency(ARCH, TARGET, LATENCY)
    store.add_member("one", Candidate(ARCH, "gated"), ScoreKey("p", "r1-x", "d1-x", 3, 0))
    store.add_front(FrontRecord("one", 1, (ARCH.id,), 0.5, 5.0))
    store.delete_study("one")
    assert (store.studies(), store.candidates(study), store.fronts("one")) == ([], [], [])
    assert store.latency(ARCH.id, TARGET.id) == LATENCY


# -- several processes, and killed ones ----------------------------------------------------------------------------------


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """A process that begins at once: forked from one that has imported the slow part of this file already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["explorer.cli", "explorer.evaluate", "explorer.store", "pytest", "typer.testing", "psycopg"]
    )
    process = context.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def arch_number(number: int) -> Arch:
    return replace(ARCH, num_classes=2 + number)


def latency_number(number: int) -> Latency:
    return replace(FULL, arch_id=arch_number(number).id, latency_ms=1.0 + number, invalid="")


def score_number(number: int) -> Score:
    return replace(SCORE, arch_id=arch_number(number).id, accuracy=1 / (1 + number))


def complete_number(number: int) -> Candidate:
    return Candidate(arch_number(number), "complete", latency_number(number), (score_number(number),))


def write_numbers(store: Store, numbers: Iterator[int] | list[int], done: Callable[[str, int], None]) -> None:
    """All that one complete candidate leaves behind, step by step as a search does it."""
    for number in numbers:
        arch = arch_number(number)
        store.add_latency(arch, TARGET, latency_number(number))
        done("latency", number)
        store.add_score(arch, {"epochs": 3}, score_number(number))
        done("score", number)
        key = ScoreKey(arch.id, "r1-x", "d1-x", 3, 0)
        store.add_member("one", complete_number(number), key, spent_epochs=3, spent_s=9.0)
        done("member", number)


def _write_at_once(storage: str, worker: int, ready: Any, go: Any) -> None:
    store = Store.open(storage)
    ready.release()
    go.wait()
    for _ in range(5):
        store.add_failure(PRESETS["Swin-S"], replace(TIMEOUT, key="latency:of/all", arch_id=PRESETS["Swin-S"].id))
    shared, own = list(range(10)), [100 * (1 + worker) + number for number in range(5)]
    write_numbers(store, random.Random(worker).sample(shared + own, 15), lambda what, number: None)
    store.close()


def test_several_processes_write_at_once_and_every_fact_is_there_once(storage: str, store: Store) -> None:
    study = add_study(store)
    context = multiprocessing.get_context("forkserver")
    ready, go = context.Semaphore(0), context.Event()
    workers = [start(_write_at_once, storage, worker, ready, go) for worker in range(4)]
    for _ in workers:
        assert ready.acquire(timeout=120)
    go.set()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    numbers = [*range(10), *(100 * (1 + worker) + number for worker in range(4) for number in range(5))]
    found = {candidate.arch.id: candidate for candidate in store.candidates(study)}
    assert len(found) == len(numbers) == 30
    for number in numbers:
        times = 4 if number < 10 else 1
        expected = replace(complete_number(number), spent_epochs=3 * times, spent_s=9.0 * times)
        assert found[arch_number(number).id] == expected
    assert positions(store) == list(range(30)), "no two processes took one position"
    failure = store.failure("latency:of/all")
    assert failure is not None
    assert failure.attempts == 20, "no attempt was lost"


def positions(store: Store) -> list[int]:
    with store.database.reading() as connection:
        return sorted(connection.execute(sa.select(schema.members.c.position)).scalars())


def _write_until_killed(storage: str, first: int, report: Any) -> None:
    store = Store.open(storage)
    write_numbers(store, iter(range(first, first + 10_000)), lambda what, number: report.send((what, number)))


def test_killed_writer_leaves_every_fact_whole(storage: str, store: Store) -> None:
    """Killed at twenty random points: what it had finished is there, what it had not is there wholly or not at all."""
    study = add_study(store)
    dice, first = random.Random(0), 0
    for _ in range(20):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        with receiver, sender:
            writer = start(_write_until_killed, storage, first, sender)
            sender.close()
            done = [receiver.recv() for _ in range(dice.randint(1, 5))]
            time.sleep(dice.random() * 0.01)
            writer.kill()
            writer.join()
            while receiver.poll():
                try:
                    done.append(receiver.recv())
                except (EOFError, OSError):  # the end, or a word cut short
                    break
        steps = [(what, number) for number in range(first, done[-1][1] + 2) for what in ("latency", "score", "member")]
        begun = steps[: steps.index(done[-1]) + 2]
        members = {candidate.arch.id: candidate for candidate in store.candidates(study)}
        for what, number in begun:
            arch_id = arch_number(number).id
            found: object = {
                "latency": store.latency(arch_id, TARGET.id),
                "score": store.score(ScoreKey(arch_id, "r1-x", "d1-x", 3, 0)),
                "member": members.get(arch_id),
            }[what]
            whole: object = {
                "latency": latency_number(number),
                "score": score_number(number),
                "member": replace(complete_number(number), spent_epochs=3, spent_s=9.0),
            }[what]
            assert found == whole or (found is None and (what, number) == begun[-1])
        assert positions(store) == list(range(len(members)))
        assert_sound(store)
        first = done[-1][1] + 10
    assert len(store.candidates(study)) > 5, "the writer had time to write"


def assert_sound(store: Store) -> None:
    if store.database.is_file:
        with closing(sqlite3.connect(store.database.path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def _write_half(storage: str, report: Any) -> None:
    store = Store.open(storage)
    with store.database.writing() as connection:
        facts.add_arch(connection, ARCH)
        facts.add_target(connection, TARGET)
        facts.add_latency(connection, LATENCY)
        report.send("half")
        time.sleep(600)


def test_writer_killed_within_a_transaction_leaves_nothing_and_holds_nobody_up(storage: str, store: Store) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver, sender:
        writer = start(_write_half, storage, sender)
        assert receiver.recv() == "half"
        assert store.latency(ARCH.id, TARGET.id) is None
        writer.kill()
        writer.join()
    store.add_latency(ARCH, TARGET, replace(LATENCY, latency_ms=3.0))
    assert store.latency(ARCH.id, TARGET.id) == replace(LATENCY, latency_ms=3.0)
    assert_sound(store)


def _hold(storage: str, report: Any) -> None:
    store = Store.open(storage)
    with store.alone("one"):
        report.send("held")
        time.sleep(600)


def test_study_is_held_by_one_process_until_it_ends_or_dies(storage: str, store: Store) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with receiver, sender:
        holder = start(_hold, storage, sender)
        assert receiver.recv() == "held"
        refusal = pytest.raises(StoreError, match="study: 'one' is being searched by another process")
        with refusal, store.alone("one"):
            pytest.fail("two processes hold the study")
        with store.alone("two"):
            pass
        holder.kill()
        holder.join()
    for _ in range(100):  # the server notices a dead client in its own time
        try:
            with store.alone("one"):
                break
        except StoreError:
            time.sleep(0.05)
    with store.alone("one"):
        pass


def test_study_is_free_again_after_an_error(store: Store) -> None:
    with pytest.raises(KeyError), store.alone("one"):
        raise KeyError
    with store.alone("one"):
        pass


# -- files ---------------------------------------------------------------------------------------------------------------


def test_file_has_a_write_ahead_log_and_survives_a_power_cut(file_store: Store) -> None:
    with file_store.database.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_reading_a_database_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such database"):
        Store.open(str(tmp_path / "sub" / "none.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [False, True])
def test_file_that_is_no_database_is_refused_and_left_alone(create: bool, tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_bytes(b"these are my notes, not a database" * 100)
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"notes\.db: file is not a database"):
        Store.open(str(file), create=create)
    assert file.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"another program's database \(it holds customers\)"):
        Store.open(str(file), create=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("version", [schema.VERSION + 1, 99])
def test_newer_schema_is_refused_and_nothing_is_written(version: int, create: bool, tmp_path: Path) -> None:
    file = load_old(tmp_path, 1)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE explorer_version SET version = ?", (version,))
    connection.close()
    before = file.read_bytes()
    with pytest.raises(StoreError, match=rf"version {version} is newer than {schema.VERSION}.*pip install --upgrade"):
        Store.open(str(file), create=create)
    assert file.read_bytes() == before
    result = CliRunner().invoke(app, ["pareto", "--storage", str(file)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"schema version {version} is newer" in result.stderr
    assert file.read_bytes() == before


# -- databases of old schema versions ---------------------------------------------------------------------------------


def load_old(folder: Path, number: int) -> Path:
    file = folder / "old.db"
    connection = sqlite3.connect(file)
    connection.executescript(OLD[number].read_text())
    connection.close()
    return file


def tables_of(file: Path) -> dict[str, Any]:
    """Columns (name, type, not null, default, place in the key), foreign keys and indices of our tables, whatever their order."""
    connection = sqlite3.connect(file)
    indices = {
        (row[1], tuple(column[2] for column in connection.execute(f"PRAGMA index_info({row[1]})")))
        for table in schema.metadata.tables
        for row in connection.execute(f"PRAGMA index_list({table})")
    }
    found = {
        table: (
            {tuple(row[1:]) for row in connection.execute(f"PRAGMA table_info({table})")},
            {tuple(row[2:]) for row in connection.execute(f"PRAGMA foreign_key_list({table})")},
            {(row[2], row[3]) for row in connection.execute(f"PRAGMA index_list({table})")},
        )
        for table in schema.metadata.tables
    }
    connection.close()
    assert found["latencies"][0]
    return {**found, "indices": indices}


def version_of(file: Path) -> list[tuple[int]]:
    connection = sqlite3.connect(file)
    versions = connection.execute("SELECT version FROM explorer_version").fetchall()
    connection.close()
    return versions


@pytest.mark.parametrize("number", OLD)
def test_old_database_gets_the_tables_of_a_new_one(number: int, tmp_path: Path) -> None:
    old, new = load_old(tmp_path, number), tmp_path / "new.db"
    assert version_of(old) == [(number,)]
    Store.open(str(old)).close()
    Store.open(str(new), create=True).close()
    assert version_of(old) == version_of(new) == [(schema.VERSION,)]
    assert tables_of(old) == tables_of(new)
    before = old.read_bytes()
    Store.open(str(old), create=True).close()
    assert old.read_bytes() == before, "brought forward once"


def test_old_database_keeps_its_facts(tmp_path: Path) -> None:
    file = load_old(tmp_path, 1)
    connection = sqlite3.connect(file)
    connection.row_factory = sqlite3.Row
    written = [dict(row) for row in connection.execute("SELECT * FROM latencies")]
    connection.close()
    store = Store.open(str(file))
    record = store.study("old")
    candidates = store.candidates(record)
    assert [(c.outcome, c.accuracy) for c in candidates] == [
        ("complete", 0.109375),
        ("complete", 0.078125),
        ("complete", 0.0625),
    ]
    assert all(candidate.may_stand_on_front for candidate in candidates)
    assert [front.num_trials for front in store.fronts("old")] == [1]
    expected = [
        Latency(
            **{
                key: json.loads(row[key]) if key == "environment" else row[key]
                for key in row
                if key != "window_medians_ms"
            },
            window_medians_ms=tuple(json.loads(row["window_medians_ms"])),
        )
        for row in written
    ]
    assert [candidate.latency for candidate in candidates] == expected, "what version 1 did not know has its default"
    assert {(found.invalid, found.remarks, found.ratio, found.rebuild_spread) for found in expected} == {
        ("", (), None, None)
    }
    store.close()


def test_database_of_version_2_keeps_its_facts(tmp_path: Path) -> None:
    file = load_old(tmp_path, 2)
    connection = sqlite3.connect(file)
    written = dict(connection.execute("SELECT arch_id, latency_ms FROM latencies").fetchall())
    kept = dict(
        connection.execute("SELECT arch_id, p90 FROM (SELECT arch_id, details ->> 'p90_ms' AS p90 FROM latencies)")
    )
    connection.close()
    store = Store.open(str(file))
    study = store.study("old")
    candidates = store.candidates(study)
    assert [(c.outcome, c.accuracy) for c in candidates] == [
        ("complete", 0.109375),
        ("complete", 0.078125),
        ("complete", 0.0625),
        ("failed", None),
    ]
    assert {c.arch.id: c.latency_ms for c in candidates[:3]} == written
    assert {c.arch.id: c.latency.p90_ms for c in candidates if c.latency} == kept
    assert [c.may_stand_on_front for c in candidates] == [True, True, False, False]
    assert [latency.invalid for c in candidates if (latency := c.latency)] == [
        "",
        "",
        "other processes kept 0.5 CPUs busy",
    ]
    (failed,) = store.failures("old")
    assert failed == (candidates[3].arch, candidates[3].failure)
    assert (failed[1].kind, failed[1].attempts, failed[1].is_passing) == ("timeout", 1, True)
    assert (study.settings, store.verifications("old"), len(store.fronts("old"))) == ({}, [], 1)
    assert {(c.spent_epochs, c.spent_s) for c in candidates} == {(0, 0.0)}
    store.close()


def test_database_of_version_4_learns_the_steps_of_divergences_from_their_messages(tmp_path: Path) -> None:
    store = Store.open(str(load_old(tmp_path, 4)))
    assert {(failure.kind, failure.message, failure.diverged_at) for _, failure in store.failures()} == {
        ("timeout", "not measured within 600 s", None),
        ("diverged", "diverged: the loss is nan at step 37 (epoch 1, seed 7)", 37),
        ("diverged", "diverged: the output is not finite after step 66 (epoch 2, seed 8)", 66),
    }
    store.close()


def test_study_of_an_old_database_is_shown(tmp_path: Path) -> None:
    file = str(load_old(tmp_path, 1))

    def document(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--storage", file, "--json"])
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    found = document("pareto")
    assert (found["study"], found["left_out"]) == ("old", [])
    assert [row["latency_ms"] for row in found["front"]] == [pytest.approx(10.9347, abs=1e-4)]
    assert (found["front"][0]["invalid"], found["front"][0]["ratio"], found["front"][0]["speedup"]) == ("", None, 1.0)
    assert found["measuring"] == {
        "latencies": 3,
        "unstable": 0,
        "invalid": 0,
        "reference_drift_min": None,
        "reference_drift_max": None,
        "rebuild_spread_max": None,
        "rebuilt": 0,
    }
    shown = document("studies", "show")
    assert (shown["study"], shown["outcomes"]) == ("old", {"complete": 3})
    assert [row["speedup"] for row in shown["candidates"]] == [
        1.0,
        pytest.approx(0.7325, 1e-3),
        pytest.approx(0.8627, 1e-3),
    ]
    assert [row["study"] for row in document("studies", "list")["studies"]] == ["old"]
    assert document("inspect", "a1-81c2")["name"] == "Swin-E16x2.2.2.2-W14.7.7.7-R56-P1-N10"


class _ByDepth:
    """In place of `evaluate.live.Measurer`."""

    def __init__(self, target: Target, **settings: Any) -> None:
        self.target, self.settings = target, settings
        self.on_event: Callable[[str], None] = lambda text: None

    def measure(self, arch: Arch) -> Latency:
        ms, base_ms = 8.0, self.settings["baseline_ms"]
        return Latency(
            arch.id,
            self.target.id,
            ms,
            ms,
            ms,
            0.0,
            3,
            (ms,) * 3,
            True,
            0.0,
            0.0,
            reference_id="base",
            reference_ms=base_ms,
        )

    def close(self) -> None:
        pass


@pytest.mark.parametrize("study", ["old", "new"])
def test_search_goes_on_in_an_old_database(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the machine that it was made on: the study's own setting adds the fourth architecture of the space to it."""
    file = load_old(tmp_path, 1)
    store = Store.open(str(file))
    target = store.target(store.study("old").target_id)
    store.close()
    monkeypatch.setattr(latency, "resolve", lambda *arguments, **options: (target, "this machine is that one"))
    monkeypatch.setattr(live, "Measurer", _ByDepth)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "version: 1\nbase: Swin-E16x2.2.2.2-R56-P1-N10\nsearch: {windows: {stage1: [7, 14]}, br: [off, on]}\n"
        "proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}\n"
    )
    (tmp_path / "recipe.yaml").write_text("epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 64\n")
    command = ["search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--storage", "old.db", "--json"]
    command += ["--data", "contours"]
    result = CliRunner().invoke(app, [*command, "--trials", "4", "--study", study])
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in result.stdout.splitlines()]
    measured = [event["arch_id"] for event in events if event.get("step") == "measuring" and event["event"] == "step"]
    assert len(measured) == 1, "what version 1 measured is not measured again"
    store = Store.open(str(file))
    candidates = store.candidates(store.study(study))
    assert len(candidates) == 4
    (added,) = (candidate.latency for candidate in candidates if candidate.arch.id in measured)
    assert added is not None
    assert added.reference_ms == pytest.approx(10.9347, abs=1e-4), "drift is counted from the old base latency"
    assert added.arch_id in store.fronts(study)[-1].arch_ids
    store.close()


def test_upgrade_that_breaks_off_leaves_the_old_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = load_old(tmp_path, 1)
    before = tables_of(file)

    def half(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE latencies ADD COLUMN details JSON DEFAULT '{}' NOT NULL")
        connection.exec_driver_sql("CREATE TABLE verifications (study VARCHAR(200))")
        raise sa.exc.OperationalError("ALTER TABLE", {}, sqlite3.OperationalError("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(schema, "UPGRADES", (half, *schema.UPGRADES[1:]))
        with pytest.raises(StoreError, match="disk is full"):
            Store.open(str(file))
    assert version_of(file) == [(1,)]
    assert tables_of(file) == before
    store = Store.open(str(file))
    assert len(store.candidates(store.study("old"))) == 3
    store.close()


def _open(file: str, go: Any) -> None:
    go.wait()
    Store.open(file, create=True).close()


@pytest.mark.parametrize("number", [1, 2, 3, 4, schema.VERSION])
def test_several_processes_open_a_database_at_once(number: int, tmp_path: Path) -> None:
    file = load_old(tmp_path, number) if number in OLD else tmp_path / "new.db"
    go = multiprocessing.get_context("forkserver").Event()
    openers = [start(_open, str(file), go) for _ in range(4)]
    go.set()
    for opener in openers:
        opener.join(120)
    assert [opener.exitcode for opener in openers] == [0] * 4
    assert version_of(file) == [(schema.VERSION,)]


def test_truncated_database_is_told_not_crashed_on(tmp_path: Path) -> None:
    file = tmp_path / "cut.db"
    store = Store.open(str(file), create=True)
    add_study(store)
    store.close()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(StoreError, match=r"cut\.db"):
        opened = Store.open(str(file))
        opened.candidates(opened.study())


def test_folder_and_unwritable_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        Store.open(str(tmp_path), create=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store.open(str(tmp_path / "file" / "x.db"), create=True)


@pytest.mark.parametrize("storage", ["mysql://h/db", "nonsense://", "sqlite://", "sqlite:///:memory:"])
def test_other_storages_are_refused(storage: str) -> None:
    with pytest.raises(StoreError, match="allowed: a file's path, sqlite:///FILE or postgresql:"):
        storage_url(storage)


def test_path_and_url_mean_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    assert not exists(str(file))
    Store.open(f"sqlite:///{file}", create=True).close()
    assert exists(str(file))
    assert Store.open(str(file)).studies() == []


def test_tables_stand_beside_optunas_in_one_file(store: Store) -> None:
    import optuna

    add_study(store)
    theirs = optuna.storages.RDBStorage(store.url, engine_kwargs=store.engine_options)
    optuna.create_study(study_name="one", storage=theirs)
    theirs.engine.dispose()
    tables = store.database.table_names()
    assert {"architectures", "latencies", "scores", "fronts", "studies", "trials", "explorer_version"} <= tables
    assert {"explorer_version", "version_info", "alembic_version"} <= tables, (
        "versions of ours and Optuna's stand apart"
    )


def test_architecture_row_has_the_names_that_stay(store: Store) -> None:
    store.add_latency(ARCH, TARGET, LATENCY)
    with store.database.reading() as connection:
        row = connection.execute(sa.text("SELECT * FROM architectures")).mappings().one()
    fields = {"arch_id": ARCH.id, "name": "Swin-T", "br": 0, "depth3": 6, "embed_dim": 96, "params_trainable": 28288354}
    assert {key: row[key] for key in fields} == fields
    assert {"windows", "shifts", "depths", "params_deployed", "flops"} <= set(row)
    content = row["fields"] if isinstance(row["fields"], dict) else json.loads(row["fields"])
    assert Arch.from_dict(content) == ARCH


def test_reading_a_database_of_optuna_alone_changes_nothing(tmp_path: Path) -> None:
    import optuna

    file = tmp_path / "theirs.db"
    optuna.create_study(study_name="theirs", storage=f"sqlite:///{file}")
    before = file.read_bytes()
    with pytest.raises(StoreError, match="holds studies of Optuna, none of swinexplore"):
        Store.open(str(file))
    assert not exists(str(file))
    assert file.read_bytes() == before
    Store.open(str(file), create=True).close()
    assert exists(str(file))


def test_password_of_a_refused_url_is_not_shown() -> None:
    with pytest.raises(StoreError) as refusal:
        storage_url("postgresql://me:secret@host:abc/db")
    assert "secret" not in str(refusal.value)
