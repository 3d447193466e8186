"""The store on real SQLite files."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from typer.testing import CliRunner

from explorer import evaluate, latency
from explorer.arch import PRESETS, Arch
from explorer.cli import app
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
from explorer.store import Store, exists, schema, storage_url

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
#: What the released version with schema 1 wrote: the study "old" of three architectures, with Optuna's tables.
VERSION_1 = Path(__file__).parent / "golden" / "store-v1.sql"


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


def test_every_field_of_a_latency_reads_back(store: Store) -> None:
    assert all(getattr(FULL, field.name) not in ("", (), None) for field in fields(Latency)), "FULL lacks a field"
    store.add_latency(ARCH, TARGET, FULL)
    assert store.latency(ARCH.id, TARGET.id) == FULL
    study = add_study(store)
    store.add_member("one", Candidate(ARCH, "gated", FULL), ScoreKey("p", "r1-x", "d1-x", 3, 0))
    assert [candidate.latency for candidate in store.candidates(study)] == [FULL]


def test_details_that_a_later_version_may_add_are_left_out(store: Store) -> None:
    store.add_latency(ARCH, TARGET, LATENCY)
    with sqlite3.connect(store.url.removeprefix("sqlite:///")) as connection:
        connection.execute("""UPDATE latencies SET details = '{"of_the_future": [1], "p90_ms": 2.75}'""")
    connection.close()
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
    with sqlite3.connect(store.url.removeprefix("sqlite:///")) as connection:
        ((invalid, details),) = connection.execute("SELECT invalid, details FROM latencies").fetchall()
    connection.close()
    assert invalid == "the GPU was hot"
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


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("version", [schema.VERSION + 1, 99])
def test_newer_schema_is_refused_and_nothing_is_written(version: int, create: bool, tmp_path: Path) -> None:
    file = load_version_1(tmp_path)
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


# -- a database of schema version 1 -----------------------------------------------------------------------------------


def load_version_1(folder: Path) -> Path:
    file = folder / "old.db"
    connection = sqlite3.connect(file)
    connection.executescript(VERSION_1.read_text())
    connection.close()
    return file


def tables_of(file: Path) -> dict[str, Any]:
    """Columns (name, type, not null, default, place in the key) and foreign keys of our tables, whatever their order."""
    connection = sqlite3.connect(file)
    found = {
        table: (
            {tuple(row[1:]) for row in connection.execute(f"PRAGMA table_info({table})")},
            {tuple(row[2:]) for row in connection.execute(f"PRAGMA foreign_key_list({table})")},
            {(row[2], row[3]) for row in connection.execute(f"PRAGMA index_list({table})")},
        )
        for table in schema.metadata.tables
    }
    connection.close()
    assert all(columns for columns, _, _ in found.values())
    return found


def version_of(file: Path) -> list[tuple[int]]:
    connection = sqlite3.connect(file)
    versions = connection.execute("SELECT version FROM explorer_version").fetchall()
    connection.close()
    return versions


def test_old_database_gets_the_tables_of_a_new_one(tmp_path: Path) -> None:
    old, new = load_version_1(tmp_path), tmp_path / "new.db"
    assert version_of(old) == [(1,)]
    Store.open(str(old)).close()
    Store.open(str(new), create=True).close()
    assert version_of(old) == version_of(new) == [(schema.VERSION,)]
    assert tables_of(old) == tables_of(new)
    before = old.read_bytes()
    Store.open(str(old), create=True).close()
    assert old.read_bytes() == before, "brought forward once"


def test_old_database_keeps_its_facts(tmp_path: Path) -> None:
    file = load_version_1(tmp_path)
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


def test_study_of_an_old_database_is_shown(tmp_path: Path) -> None:
    file = str(load_version_1(tmp_path))

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
    """In place of `evaluate.Measurer`."""

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
    file = load_version_1(tmp_path)
    store = Store.open(str(file))
    target = store.target(store.study("old").target_id)
    store.close()
    monkeypatch.setattr(latency, "resolve", lambda *arguments, **options: (target, "this machine is that one"))
    monkeypatch.setattr(evaluate, "Measurer", _ByDepth)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "version: 1\nbase: Swin-E16x2.2.2.2-R56-P1-N10\nsearch: {windows: {stage1: [7, 14]}, br: [off, on]}\n"
        "proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}\n"
    )
    (tmp_path / "recipe.yaml").write_text("epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 64\n")
    command = ["search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--storage", "old.db", "--json"]
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
    assert store.fronts(study)[-1].num_trials == 4
    store.close()


def test_upgrade_that_breaks_off_leaves_the_old_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = load_version_1(tmp_path)
    before = tables_of(file)

    def half(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE latencies ADD COLUMN invalid TEXT DEFAULT '' NOT NULL")
        raise sa.exc.OperationalError("ALTER TABLE", {}, sqlite3.OperationalError("database or disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(schema, "UPGRADES", (half,))
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


@pytest.mark.parametrize("is_old", [True, False])
def test_several_processes_open_a_database_at_once(is_old: bool, tmp_path: Path) -> None:
    file = load_version_1(tmp_path) if is_old else tmp_path / "new.db"
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    openers = [context.Process(target=_open, args=(str(file), go)) for _ in range(4)]
    for opener in openers:
        opener.start()
    go.set()
    for opener in openers:
        opener.join(60)
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
