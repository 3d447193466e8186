"""The store on real SQLite files."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

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
    StudyRecord,
    Target,
    latency_key,
)
from explorer.store import Store, exists, storage_url

TARGET = Target("onnxruntime", "1.0", "fp32", 1, 224, "cpu", "A processor", "", 2, 1)
ARCH = PRESETS["Swin-T"]
LATENCY = Latency(ARCH.id, TARGET.id, 2.5, 3.0, 2.4, 0.01, 30, (2.5, 2.6), True, 1.5, 2.5, {"cpu": "x"}, "2026-01-01")
SCORE = Score(
    ARCH.id, "r1-x", "d1-x", 3, 0, 0.75, 9.0, (Epoch(1, 2.0, None, 3.0), Epoch(2, 1.0, 0.75, 3.0)), {}, "2026"
)
STUDY = StudyRecord("one", {"space": {"depth3": [1]}}, TARGET.id, "r1-x", "d1-x", ARCH.id, 0)


def add_study(store: Store, name: str = "one") -> StudyRecord:
    store.add_study(replace(STUDY, name=name), ARCH, TARGET, {"epochs": 3})
    return store.study(name)


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


def test_fact_that_is_there_is_never_changed(store: Store) -> None:
    store.add_latency(ARCH, TARGET, LATENCY)
    store.add_latency(ARCH, TARGET, replace(LATENCY, latency_ms=99.0))
    assert store.latency(ARCH.id, TARGET.id) == LATENCY


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
    complete = Candidate(ARCH, "complete", LATENCY, SCORE)
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


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    Store.open(str(file), create=True).close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE explorer_version SET version = 99")
    with pytest.raises(StoreError, match="version 99 is newer"):
        Store.open(str(file))


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
    with pytest.raises(StoreError, match="allowed: sqlite:///FILE"):
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
    optuna.create_study(study_name="one", storage=store.url)
    with sqlite3.connect(store.url.removeprefix("sqlite:///")) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert {"architectures", "latencies", "scores", "fronts", "studies", "trials", "explorer_version"} <= tables
    assert {"explorer_version", "version_info", "alembic_version"} <= tables, (
        "versions of ours and Optuna's stand apart"
    )


def _write_many(url: str, offset: int) -> None:
    store = Store.open(url)
    for number in range(40):
        arch = replace(ARCH, num_classes=2 + (number + offset) % 60)
        store.add_latency(arch, TARGET, replace(LATENCY, arch_id=arch.id))


def test_several_processes_write_at_once_and_nothing_is_lost(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(store.url, offset)) for offset in (0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ids = {replace(ARCH, num_classes=2 + number).id for number in range(60)}
    assert all(store.latency(arch_id, TARGET.id) for arch_id in ids)


def test_architecture_row_has_the_names_that_stay(store: Store) -> None:
    store.add_latency(ARCH, TARGET, LATENCY)
    with sqlite3.connect(store.url.removeprefix("sqlite:///")) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM architectures").fetchone())
    fields = {"arch_id": ARCH.id, "name": "Swin-T", "br": 0, "depth3": 6, "embed_dim": 96, "params_trainable": 28288354}
    assert {key: row[key] for key in fields} == fields
    assert {"windows", "shifts", "depths", "params_deployed", "flops"} <= set(row)
    assert Arch.from_dict(json.loads(row["fields"])) == ARCH


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
