"""Merging of databases, from and into both kinds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import PostgresServer
from test_store import ARCH, FULL, LATENCY, OLD, SCORE, STUDY, TARGET, TIMEOUT, load_old

from explorer.arch import PRESETS, Arch
from explorer.errors import StoreError
from explorer.records import (
    Candidate,
    Epoch,
    Failure,
    FrontRecord,
    Latency,
    Score,
    ScoreKey,
    Verification,
    latency_key,
)
from explorer.store import Store, schema
from explorer.store.merge import Merged, merge, merge_into

OTHER = PRESETS["Swin-S"]
THIRD = PRESETS["Swin-B"]
RECIPE = {"epochs": 3}
KEY = ScoreKey(ARCH.id, "r1-x", "d1-x", 3, 0)


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "ours.db"), create=True)
    yield store
    store.close()


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(str(tmp_path / "theirs.db"), create=True)
    yield store
    store.close()


def latency_of(arch: Arch, latency_ms: float = 2.5, invalid: str = "") -> Latency:
    return replace(LATENCY, arch_id=arch.id, latency_ms=latency_ms, invalid=invalid)


def score_of(arch: Arch, accuracy: float = 0.75, epochs: int = 3, seed: int = 0) -> Score:
    return replace(SCORE, arch_id=arch.id, accuracy=accuracy, epochs=epochs, seed=seed)


def member(
    store: Store,
    arch: Arch,
    outcome: Any,
    *,
    epochs: int = 3,
    seeds: int = 1,
    failure: Failure | None = None,
    **spent: Any,
) -> None:
    scores = tuple(
        score_of(arch, epochs=epochs, seed=seed) for seed in range(seeds) if outcome in ("complete", "stopped")
    )
    for score in scores:
        store.add_score(arch, RECIPE, score)
    store.add_member(
        "one",
        Candidate(arch, outcome, scores=scores, failure=failure),
        replace(KEY, arch_id=arch.id, epochs=epochs),
        **spent,
    )


def add_study(store: Store, **changes: Any) -> None:
    store.add_study(replace(STUDY, **changes), ARCH, TARGET, RECIPE)


def outcomes(store: Store) -> list[tuple[str, str]]:
    return [(c.arch.name, c.outcome) for c in store.candidates(store.study("one"))]


def contents(store: Store) -> dict[str, list[Any]]:
    """Every row of every table of ours."""
    with store.database.reading() as connection:
        return {
            name: [dict(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()]
            for name, table in schema.metadata.tables.items()
        }


def fill(store: Store) -> None:
    """A study with everything that there is."""
    add_study(store, settings={"data": "/data"})
    store.add_latency(ARCH, TARGET, FULL)
    store.add_latency(OTHER, TARGET, latency_of(OTHER))
    failure = Failure(THIRD.id, latency_key(THIRD.id, TARGET.id), "build", "no tactic", "2026")
    store.add_failure(THIRD, failure)
    member(store, OTHER, "complete", seeds=2, spent_epochs=6, spent_s=9.5)
    member(store, ARCH, "stopped", epochs=1)
    member(store, THIRD, "failed", failure=failure)
    store.add_front(FrontRecord("one", 1, (OTHER.id,), 0.5, 5.0))
    store.add_verification(Verification("one", OTHER.id, "r1-x/30/1", 2.5, 0.75, 2.6, (0.8,), "2026"))


@pytest.mark.parametrize("other_kind", ["sqlite", "postgresql"])
def test_everything_comes_over_and_only_once(
    storage: str, other_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    other = str(tmp_path / "theirs.db")
    if other_kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        server.execute("CREATE DATABASE theirs")
        request.addfinalizer(lambda: server.execute("DROP DATABASE theirs WITH (FORCE)"))
        other = server.url("theirs")
    theirs, ours = Store.open(other, create=True), Store.open(storage, create=True)
    fill(theirs)
    brought = merge(ours, other)
    assert brought == Merged(latencies=2, scores=3, failures=1, studies=1, members=3, verifications=1)
    assert contents(ours) == contents(theirs)
    assert merge(ours, other) == Merged(doubles=6)
    assert contents(ours) == contents(theirs)
    for store in (ours, theirs):
        store.close()


def test_facts_under_one_key_stay_ours_and_are_counted(ours: Store, theirs: Store) -> None:
    for store, latency_ms, accuracy in ((ours, 2.5, 0.75), (theirs, 2.6, 0.76)):
        store.add_latency(ARCH, TARGET, latency_of(ARCH, latency_ms))
        store.add_score(ARCH, RECIPE, score_of(ARCH, accuracy))
        store.add_latency(OTHER, TARGET, latency_of(OTHER))
        store.add_score(OTHER, RECIPE, score_of(OTHER))
    before = contents(ours)
    assert merge(ours, theirs.url) == Merged(doubles=2, conflicts=2)
    assert contents(ours) == before


def test_valid_latency_replaces_an_invalid_one_and_never_the_other_way(ours: Store, theirs: Store) -> None:
    ours.add_latency(ARCH, TARGET, FULL)
    theirs.add_latency(ARCH, TARGET, LATENCY)
    ours.add_latency(OTHER, TARGET, latency_of(OTHER))
    theirs.add_latency(OTHER, TARGET, latency_of(OTHER, 9.0, "hot"))
    ours.add_latency(THIRD, TARGET, latency_of(THIRD, 1.0, "hot"))
    theirs.add_latency(THIRD, TARGET, latency_of(THIRD, 9.0, "busy"))
    assert merge(ours, theirs.url) == Merged(latencies=1, doubles=2)
    assert ours.latency(ARCH.id, TARGET.id) == LATENCY
    assert ours.latency(OTHER.id, TARGET.id) == latency_of(OTHER)
    assert ours.latency(THIRD.id, TARGET.id) == latency_of(THIRD, 1.0, "hot")


@pytest.mark.parametrize("step", ["latency", "score"])
def test_fact_of_theirs_ends_a_failure_of_ours(step: str, ours: Store, theirs: Store) -> None:
    add_study(ours)
    failure = TIMEOUT if step == "latency" else replace(TIMEOUT, key=str(KEY), kind="diverged")
    ours.add_failure(ARCH, failure)
    member(ours, ARCH, "failed", failure=failure)
    if step == "latency":
        theirs.add_latency(ARCH, TARGET, LATENCY)
    else:
        theirs.add_score(
            ARCH, RECIPE, replace(SCORE, epochs=5, curve=(Epoch(3, 1.0, 0.5, 2.0), Epoch(5, 1.0, 0.6, 4.0)))
        )
    merge(ours, theirs.url)
    assert ours.failure(failure.key) is None
    assert outcomes(ours) == [("Swin-T", "pending")]


def test_failure_of_theirs_is_left_where_there_is_a_fact(ours: Store, theirs: Store) -> None:
    ours.add_latency(ARCH, TARGET, LATENCY)
    add_study(theirs)
    theirs.add_failure(ARCH, TIMEOUT)
    member(theirs, ARCH, "failed", failure=TIMEOUT)
    assert merge(ours, theirs.url) == Merged(studies=1, members=1, doubles=1)
    assert ours.failures() == []
    assert outcomes(ours) == [("Swin-T", "pending")], "to be evaluated with the fact of ours"
    assert merge(ours, theirs.url) == Merged(doubles=1)


def test_failures_keep_the_larger_number_of_attempts(ours: Store, theirs: Store) -> None:
    for store, attempts in ((ours, 1), (theirs, 2)):
        for _ in range(attempts):
            store.add_failure(ARCH, TIMEOUT)
    for _ in range(2):
        merge(ours, theirs.url)
        assert ours.failure(TIMEOUT.key) == replace(TIMEOUT, attempts=2)


def test_studies_of_one_identity_are_united(ours: Store, theirs: Store) -> None:
    names = ["Swin-T", "Swin-S", "Swin-B", "Swin-Free-S"]
    mine = dict(zip(names, ("complete", "gated", "failed", "pending"), strict=True))
    other = dict(zip(names, ("failed", "stopped", "gated", "failed"), strict=True))
    new = PRESETS["Swin-Free-T"]
    for store, outcomes_of in ((ours, mine), (theirs, other)):
        add_study(store)
        if store is theirs:
            member(store, new, "complete")
        for name, outcome in outcomes_of.items():
            arch = PRESETS[name]
            failure = None
            if outcome == "failed":
                failure = Failure(arch.id, latency_key(arch.id, TARGET.id), "build", "too large", "2026")
                store.add_failure(arch, failure)
            member(store, arch, outcome, failure=failure)
    ours.add_front(FrontRecord("one", 4, (ARCH.id,), 0.5, 5.0))
    theirs.add_front(FrontRecord("one", 5, (new.id,), 0.6, 5.0))
    merged = merge(ours, theirs.url)
    assert (merged.studies, merged.members) == (0, 4)
    united = [*zip(names, ("complete", "stopped", "gated", "failed"), strict=True), ("Swin-Free-T", "complete")]
    assert outcomes(ours) == united, "in our order, theirs after ours"
    assert [front.num_trials for front in ours.fronts("one")] == [4], "theirs is not the front of both"
    before = contents(ours)
    assert merge(ours, theirs.url).members == 0
    assert contents(ours) == before


def test_more_epochs_win_and_then_more_seeds(ours: Store, theirs: Store) -> None:
    for store, there in ((ours, False), (theirs, True)):
        add_study(store)
        member(
            store,
            ARCH,
            "stopped",
            epochs=3 if there else 1,
            spent_epochs=2 if there else 1,
            spent_s=1.0 if there else 5.0,
        )
        member(store, OTHER, "complete", seeds=3 if there else 1)
        member(store, THIRD, "stopped", epochs=1 if there else 3)
    assert merge(ours, theirs.url).members == 2
    first, second, third = ours.candidates(ours.study("one"))
    assert (first.epochs, first.spent_epochs, first.spent_s) == (3, 2, 5.0)
    assert len(second.scores) == 3
    assert third.epochs == 3


def test_study_of_another_identity_is_refused_and_nothing_is_merged(ours: Store, theirs: Store) -> None:
    add_study(ours)
    theirs.add_latency(ARCH, TARGET, LATENCY)
    add_study(theirs, identity={"space": {"depth3": [1, 2]}, "data": "d"})
    before = contents(ours)
    with pytest.raises(
        StoreError, match=r"'one' .* data: 'd' there, None here; space.depth3: \[1, 2\] there, \[1\] here"
    ):
        merge(ours, theirs.url)
    assert contents(ours) == before


def test_study_of_another_seed_comes_beside_ours(ours: Store, theirs: Store, caplog: pytest.LogCaptureFixture) -> None:
    add_study(ours)
    member(ours, ARCH, "complete")
    add_study(theirs, seed=5)
    score = score_of(ARCH, accuracy=0.9, seed=5)
    theirs.add_score(ARCH, RECIPE, score)
    theirs.add_member("one", Candidate(ARCH, "complete", scores=(score,)), replace(KEY, seed=5))
    theirs.add_front(FrontRecord("one", 1, (ARCH.id,), 0.6, 5.0))
    theirs.add_verification(Verification("one", ARCH.id, "r1-x/30/1", 2.5, 0.75, 2.6, (0.8,), "2026"))
    before = ours.candidates(ours.study("one"))
    assert merge(ours, theirs.url) == Merged(scores=1, studies=1, members=1, verifications=1)
    assert "one was made with another seed there: it comes as one-seed5" in caplog.text
    assert ours.candidates(ours.study("one")) == before
    study = ours.study("one-seed5")
    assert (study.seed, study.identity) == (5, ours.study("one").identity)
    assert [(c.outcome, c.accuracy) for c in ours.candidates(study)] == [("complete", 0.9)]
    assert [front.hypervolume for front in ours.fronts("one-seed5")] == [0.6]
    assert (len(ours.verifications("one")), len(ours.verifications("one-seed5"))) == (0, 1)

    member(theirs, OTHER, "complete")
    assert merge(ours, theirs.url) == Merged(scores=1, members=1, doubles=1), "and into the same the next time"
    assert len(ours.candidates(study)) == 2


def test_studies_of_two_seeds_that_are_merged_both_ways_stay_two(ours: Store, theirs: Store) -> None:
    add_study(ours, seed=1)
    add_study(theirs, seed=2)
    for _ in range(2):
        merge(ours, theirs.url)
        merge(theirs, ours.url)
    assert sorted((study.name, study.seed) for study in ours.studies()) == [("one", 1), ("one-seed2", 2)]
    assert sorted((study.name, study.seed) for study in theirs.studies()) == [("one", 2), ("one-seed1", 1)]


def test_two_studies_that_become_one_have_the_front_of_neither(ours: Store, theirs: Store) -> None:
    add_study(ours)
    for number, name in enumerate(("one", "one-seed5")):
        add_study(theirs, name=name, seed=5)
        theirs.add_front(FrontRecord(name, 1 + number, (ARCH.id,), 0.5, 5.0))
    merge(ours, theirs.url)
    assert sorted(study.name for study in ours.studies()) == ["one", "one-seed5"]
    assert ours.fronts("one-seed5") == []


@pytest.mark.parametrize("diverged_here", [True, False])
def test_candidate_that_diverged_in_one_of_them_has_diverged(diverged_here: bool, ours: Store, theirs: Store) -> None:
    failure = Failure(ARCH.id, str(replace(KEY, seed=1)), "diverged", "the loss is nan", "2026")
    for store, has_diverged in ((ours, diverged_here), (theirs, not diverged_here)):
        add_study(store)
        if has_diverged:
            store.add_failure(ARCH, failure)
        member(store, ARCH, "failed" if has_diverged else "complete", failure=failure if has_diverged else None)
    for _ in range(2):
        merge(ours, theirs.url)
        (candidate,) = ours.candidates(ours.study("one"))
        assert (candidate.outcome, candidate.failure) == ("failed", failure)


def test_study_that_has_no_name_for_its_seed_is_refused(ours: Store, theirs: Store) -> None:
    add_study(ours)
    add_study(theirs, seed=5)
    add_study(theirs, name="one-seed5", seed=6)
    with pytest.raises(StoreError, match=r"'one-seed5' .* there: seed: 6 there, 5 here; nothing was merged"):
        merge(ours, theirs.url)
    long = "x" * 197
    add_study(ours, name=long)
    theirs.delete_study("one-seed5")
    add_study(theirs, name=long, seed=5)
    with pytest.raises(StoreError, match="longer than 200 characters; nothing was merged"):
        merge(ours, theirs.url)
    assert len(ours.studies()) == 2
    theirs.delete_study(long)
    add_study(ours, name="one-seed5", seed=7)
    with pytest.raises(
        StoreError, match=r"'one' .* there than 'one-seed5' here, as it would be called: seed: 5 there, 7 here"
    ):
        merge(ours, theirs.url)
    assert len(ours.studies()) == 3


def test_database_is_made_when_the_other_could_be_opened(tmp_path: Path, theirs: Store) -> None:
    new, notes = tmp_path / "new.db", tmp_path / "notes.db"
    notes.write_bytes(b"these are my notes, not a database" * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        merge_into(str(new), str(notes))
    assert not new.exists()
    theirs.add_latency(ARCH, TARGET, LATENCY)
    for expected in (Merged(latencies=1), Merged(doubles=1)):
        assert merge_into(str(new), theirs.url) == expected


def test_database_is_not_merged_with_itself(ours: Store, tmp_path: Path) -> None:
    (tmp_path / "alias.db").symlink_to(ours.database.path)
    for name in (ours.url, str(tmp_path / "alias.db")):
        with pytest.raises(StoreError, match="is the database that it would be merged into"):
            merge(ours, name)


def test_server_database_is_not_merged_with_itself_under_another_name(postgres_url: str) -> None:
    store = Store.open(postgres_url, create=True)
    with pytest.raises(StoreError, match="is the database that it would be merged into") as refused:
        merge(store, postgres_url.replace("127.0.0.1", "localhost"))
    assert "s3cret" not in str(refused.value)
    store.close()


@pytest.mark.parametrize("number", OLD)
def test_file_of_an_old_version_is_read_and_left_as_it_is(number: int, ours: Store, tmp_path: Path) -> None:
    file = load_old(tmp_path, number)
    before, beside = file.read_bytes(), sorted(tmp_path.glob("old.db*"))
    merged = merge(ours, str(file))
    assert (merged.latencies, merged.scores, merged.studies, merged.conflicts) == (3, 3, 1, 0)
    assert (merged.members, merged.failures) == {1: (3, 0), 4: (4, 3)}.get(number, (4, 1))
    assert {failure.diverged_at for _, failure in ours.failures()} - {None} == ({37, 66} if number == 4 else set())
    assert file.read_bytes() == before
    assert sorted(tmp_path.glob("old.db*")) == beside
    assert [c.accuracy for c in ours.candidates(ours.study("old"))][:3] == [0.109375, 0.078125, 0.0625]


def test_what_still_stands_in_the_log_of_a_file_in_use_comes_over(ours: Store, theirs: Store) -> None:
    theirs.add_latency(ARCH, TARGET, LATENCY)
    file = theirs.database.path
    log = file.with_name("theirs.db-wal")
    before = (file.read_bytes(), log.read_bytes())
    assert before[1], "the latency stands in the log alone"
    assert merge(ours, str(file)) == Merged(latencies=1)
    assert (file.read_bytes(), log.read_bytes()) == before


def test_file_that_cannot_be_merged_is_told_by_its_own_name(ours: Store, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_bytes(b"these are my notes, not a database" * 100)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    newer = load_old(tmp_path, 1)
    with closing(sqlite3.connect(newer)) as connection, connection:
        connection.execute("UPDATE explorer_version SET version = 99")
    for name, problem in {
        "none.db": "no such database",
        "notes.db": "file is not a database",
        "shop.db": "another program's database",
        "old.db": "schema version 99 is newer",
    }.items():
        with pytest.raises(StoreError, match=f"storage: {tmp_path / name}: .*{problem}"):
            merge(ours, str(tmp_path / name))
    assert not (tmp_path / "none.db").exists()
    assert contents(ours)["searches"] == []


def test_what_a_process_there_was_training_is_no_death_here(ours: Store, theirs: Store) -> None:
    for store in (ours, theirs):
        add_study(store)
        member(store, ARCH, "pending")
    member(theirs, OTHER, "pending")
    member(theirs, THIRD, "stopped", epochs=1)
    member(ours, THIRD, "pending")
    keys = {arch.id: replace(KEY, arch_id=arch.id, epochs=9) for arch in (ARCH, OTHER, THIRD)}
    ours.set_in_work("one", ARCH.id, keys[ARCH.id])
    ours.set_in_work("one", THIRD.id, keys[THIRD.id])
    for arch_id, key in keys.items():
        theirs.set_in_work("one", arch_id, key)
    merge(ours, theirs.url)
    deaths = ours.count_deaths("one", "it died", "2026")
    assert {failure.key for failure in deaths} == {str(keys[ARCH.id]), str(keys[THIRD.id])}, "our own alone"
