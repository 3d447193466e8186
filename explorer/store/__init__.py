"""Facts and studies in SQLite, in the same file as Optuna's tables. The only module with SQL.

Facts (architectures, latencies, scores, failures) are keyed by what they are facts of, inserted if absent and never
changed, but for an invalid latency and a failure of the machine, which a later one replaces; studies point at them. Table
names avoid Optuna's (studies, study_*, trials, trial_*, version_info, alembic_version); the schema's version stands in
`explorer_version`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as insert_or_leave
from sqlalchemy.engine import Connection, Engine, make_url

from explorer.arch import Arch
from explorer.errors import StoreError
from explorer.records import (
    DEFAULT_STORAGE,
    PASSING,
    Candidate,
    Failure,
    FrontRecord,
    Latency,
    Score,
    ScoreKey,
    StudyRecord,
    Target,
)
from explorer.store import schema
from explorer.store.rows import arch_values, failure_of, latency_of, latency_values, score_of, score_values

BUSY_TIMEOUT_S: Final = 30


def storage_url(storage: str) -> str:
    """A SQLAlchemy URL from a URL or a file's path. Raises StoreError for what is not SQLite."""
    url = storage if "://" in storage else f"sqlite:///{storage}"
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreError(
            f"storage: {storage.rpartition('@')[2]!r} is no database URL; allowed: sqlite:///FILE or a file's path"
        ) from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise StoreError(
            f"storage: {storage.rpartition('@')[2]!r} is not supported; allowed: sqlite:///FILE or a file's path"
        )
    return url


def exists(storage: str) -> bool:
    """Whether `Store.open` would find anything to read at `storage`: not where only Optuna's tables are.

    Raises StoreError for what is no storage.
    """
    url = storage_url(storage)
    path = Path(make_url(url).database or "")
    if not path.is_file():
        return path.exists()
    engine = sa.create_engine(url)
    try:
        tables = set(sa.inspect(engine).get_table_names())
    except sa.exc.DBAPIError:
        return True
    finally:
        engine.dispose()
    return bool(tables) and ("explorer_version" in tables or "version_info" not in tables)


class Store:
    """One database file. Open it with `Store.open`; every method is one short transaction.

    Methods raise StoreError when the database cannot be read or written (locked, full, read-only, damaged).
    """

    def __init__(self, engine: Engine, url: str) -> None:
        self._engine = engine
        self.url = url

    @staticmethod
    def open(storage: str = DEFAULT_STORAGE, *, create: bool = False) -> Store:
        """Opens the database at `storage` (URL or path), brings its schema forward; makes it where `create`.

        Raises StoreError, having written nothing, when there is none, when it is no database or another program's, or
        when a newer swinexplore wrote it.
        """
        url = storage_url(storage)
        path = Path(make_url(url).database or "")
        is_new = not path.exists() or path.stat().st_size == 0
        if is_new and not create:
            raise StoreError(f"storage: {path}: no such database; run `swinexplore search` first, or give --storage")
        if path.is_dir():
            raise StoreError(f"storage: {path}: is a folder; give a file")
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
        sa.event.listen(engine, "connect", _configure)
        store = Store(engine, url)
        try:
            if is_new:
                path.parent.mkdir(parents=True, exist_ok=True)
                store._write_ahead()
            else:
                store._require_ours(path, create=create)
            store._migrate(path)
        except OSError as error:
            store.close()
            raise StoreError(f"storage: {path}: cannot be made: {error.strerror}") from None
        except StoreError:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    # -- facts ---------------------------------------------------------------------------------------------------------

    def latency(self, arch_id: str, target_id: str) -> Latency | None:
        """The latency of an architecture on a target, if measured."""
        rows = self._rows(
            sa.select(schema.latencies).where(
                schema.latencies.c.arch_id == arch_id, schema.latencies.c.target_id == target_id
            )
        )
        return latency_of(rows[0]) if rows else None

    def score(self, key: ScoreKey) -> Score | None:
        """The score under `key`, if trained."""
        rows = self._rows(sa.select(schema.scores).filter_by(**asdict(key)))
        return score_of(rows[0]) if rows else None

    def failure(self, key: str) -> Failure | None:
        """Why the fact under `key` is missing for good, if it is."""
        rows = self._rows(sa.select(schema.failures).where(schema.failures.c.key == key))
        return failure_of(rows[0]) if rows else None

    def arch(self, arch_id: str) -> Arch:
        """The architecture with this id, or with the only id that starts so. Raises StoreError otherwise."""
        rows = self._rows(
            sa.select(schema.architectures)
            .where(schema.architectures.c.arch_id.startswith(arch_id, autoescape=True))
            .limit(2)
        )
        exact = [row for row in rows if row["arch_id"] == arch_id] or rows
        if len(exact) != 1:
            problem = "fits several architectures; give more of it" if exact else "is not in this database"
            raise StoreError(f"id: {arch_id!r} {problem}; `swinexplore pareto` lists ids")
        return Arch.from_dict(exact[0]["fields"])

    def add_latency(self, arch: Arch, target: Target, latency: Latency) -> None:
        """Keeps a latency with its architecture and target; what is there already stays, unless it is invalid."""
        values = latency_values(latency)
        insert = insert_or_leave(schema.latencies).values(**values)
        with self._transaction() as connection:
            _add_arch(connection, arch)
            _leave_or_add(connection, schema.targets, target_id=target.id, fields=asdict(target))
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["arch_id", "target_id"], set_=values, where=schema.latencies.c.invalid != ""
                )
            )

    def add_score(self, proxy: Arch, recipe_fields: dict[str, Any], score: Score) -> None:
        """Keeps a score with its proxy architecture and recipe; what is there already stays."""
        with self._transaction() as connection:
            _add_arch(connection, proxy)
            _leave_or_add(connection, schema.recipes, recipe_id=score.recipe_id, fields=recipe_fields)
            _leave_or_add(connection, schema.scores, **score_values(score))

    def add_failure(self, arch: Arch, failure: Failure) -> None:
        """Keeps why a fact is missing; what is there already stays, unless it was the machine's fault."""
        values = asdict(failure)
        insert = insert_or_leave(schema.failures).values(**values)
        with self._transaction() as connection:
            _add_arch(connection, arch)
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["key"], set_=values, where=schema.failures.c.kind.in_(PASSING)
                )
            )

    def mean_seconds(self, target_id: str, recipe_id: str) -> tuple[float | None, float | None]:
        """Mean seconds of a latency step on this target and of a training with this recipe, None where none is kept."""
        prepare_and_measure = sa.func.avg(schema.latencies.c.prepare_s + schema.latencies.c.measure_s)
        latency = self._rows(sa.select(prepare_and_measure.label("s")).where(schema.latencies.c.target_id == target_id))
        score = self._rows(
            sa.select(sa.func.avg(schema.scores.c.train_s).label("s")).where(schema.scores.c.recipe_id == recipe_id)
        )
        return latency[0]["s"], score[0]["s"]

    # -- studies -------------------------------------------------------------------------------------------------------

    def add_study(self, study: StudyRecord, base: Arch, target: Target, recipe_fields: dict[str, Any]) -> None:
        """Keeps a new study; an existing one of that name is left as it is but counts as the latest from now on."""
        now = _now()
        with self._transaction() as connection:
            _add_arch(connection, base)
            _leave_or_add(connection, schema.targets, target_id=target.id, fields=asdict(target))
            _leave_or_add(connection, schema.recipes, recipe_id=study.recipe_id, fields=recipe_fields)
            _leave_or_add(connection, schema.searches, **{**asdict(study), "created_at": now, "used_at": now})
            connection.execute(schema.searches.update().where(schema.searches.c.name == study.name).values(used_at=now))

    def studies(self) -> list[StudyRecord]:
        """All studies, the latest used first."""
        rows = self._rows(
            sa.select(schema.searches).order_by(schema.searches.c.used_at.desc(), sa.text("searches.rowid DESC"))
        )
        return [StudyRecord(**{key: value for key, value in row.items() if key != "used_at"}) for row in rows]

    def study(self, name: str | None = None) -> StudyRecord:
        """The study of this name, or the latest. Raises StoreError that lists the names."""
        studies = self.studies()
        if name is None and studies:
            return studies[0]
        for study in studies:
            if study.name == name:
                return study
        names = ", ".join(study.name for study in studies) or "none yet"
        raise StoreError(f"study: {name or 'no study'!r} is not in this database; there are: {names}")

    def target(self, target_id: str) -> Target:
        """A target by its id; it is there for every latency and study."""
        return Target(
            **self._rows(sa.select(schema.targets).where(schema.targets.c.target_id == target_id))[0]["fields"]
        )

    def add_member(self, study: str, candidate: Candidate, key: ScoreKey) -> None:
        """Notes that a study holds an evaluated candidate; `key` says which score is its own.

        A candidate evaluated anew (the latency limit has risen) keeps its position.
        """
        found = {
            "outcome": candidate.outcome,
            "proxy_id": key.arch_id,
            "epochs": key.epochs,
            "seed": key.seed,
            "failure_key": None if candidate.failure is None else candidate.failure.key,
        }
        with self._transaction() as connection:
            count = sa.select(sa.func.count()).select_from(schema.members).where(schema.members.c.study == study)
            position = connection.execute(count).scalar_one()
            _add_arch(connection, candidate.arch)
            insert = insert_or_leave(schema.members).values(
                study=study, arch_id=candidate.arch.id, position=position, **found
            )
            connection.execute(insert.on_conflict_do_update(index_elements=["study", "arch_id"], set_=found))

    def candidates(self, study: StudyRecord) -> list[Candidate]:
        """All candidates of a study with their facts, in the order they were evaluated."""
        where = schema.members.c.study == study.name
        members = self._rows(
            sa.select(schema.members, schema.architectures.c.fields)
            .join(schema.architectures)
            .where(where)
            .order_by(schema.members.c.position)
        )
        latencies = {
            row["arch_id"]: latency_of(row)
            for row in self._rows(sa.select(schema.latencies).where(schema.latencies.c.target_id == study.target_id))
        }
        same_data = (schema.scores.c.recipe_id == study.recipe_id, schema.scores.c.data_id == study.data_id)
        scores = {
            (row["arch_id"], row["epochs"], row["seed"]): score_of(row)
            for row in self._rows(sa.select(schema.scores).where(*same_data))
        }
        failures = {
            row["key"]: failure_of(row)
            for row in self._rows(
                sa.select(schema.failures)
                .join(schema.members, schema.members.c.failure_key == schema.failures.c.key)
                .where(where)
            )
        }
        return [
            Candidate(
                Arch.from_dict(row["fields"]),
                row["outcome"],
                latencies.get(row["arch_id"]),
                scores.get((row["proxy_id"], row["epochs"], row["seed"])) if row["outcome"] == "complete" else None,
                failures.get(row["failure_key"]),
            )
            for row in members
        ]

    def add_front(self, front: FrontRecord) -> None:
        """Keeps the front of a study after so many architectures; the last one at that number counts."""
        values = {**asdict(front), "arch_ids": list(front.arch_ids)}
        insert = insert_or_leave(schema.fronts).values(**values)
        with self._transaction() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["study", "num_trials"], set_=values))

    def fronts(self, study: str) -> list[FrontRecord]:
        """The history of a study's front, one record for every change."""
        rows = self._rows(
            sa.select(schema.fronts).where(schema.fronts.c.study == study).order_by(schema.fronts.c.num_trials)
        )
        return [FrontRecord(**{**row, "arch_ids": tuple(row["arch_ids"])}) for row in rows]

    def delete_study(self, name: str) -> None:
        """Forgets a study, its members and fronts; the facts stay for others."""
        with self._transaction() as connection:
            connection.execute(schema.searches.delete().where(schema.searches.c.name == name))

    # -- the database itself -------------------------------------------------------------------------------------------

    def _write_ahead(self) -> None:
        """Readers and one writer at a time; stays with the file."""
        with self._guarded(), self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def _require_ours(self, path: Path, *, create: bool) -> None:
        """Our tables, or with `create` Optuna's alone."""
        with self._guarded():
            tables = set(sa.inspect(self._engine).get_table_names())
        if not create and tables and "explorer_version" not in tables and "version_info" in tables:
            raise StoreError(f"storage: {path}: holds studies of Optuna, none of swinexplore; give another --storage")
        if tables and "explorer_version" not in tables and "version_info" not in tables:
            raise StoreError(
                f"storage: {path}: another program's database (it holds {', '.join(sorted(tables)[:3])}); nothing was written"
            )

    def _migrate(self, path: Path) -> None:
        with self._transaction() as connection:
            if _version(connection) == schema.VERSION:  # reading needs no lock, nor a file that can be written
                return
        with self._transaction() as connection:
            # Python's sqlite3 begins no transaction before DDL: half an upgrade would stay.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            version = _version(connection)
            if version is None:
                schema.metadata.create_all(connection)
            elif version > schema.VERSION:
                raise StoreError(
                    f"storage: {path}: schema version {version} is newer than {schema.VERSION}, the newest that this "
                    "swinexplore knows; upgrade it: pip install --upgrade swinexplore"
                )
            else:
                for upgrade in schema.UPGRADES[version - 1 :]:
                    upgrade(connection)
            if version != schema.VERSION:
                connection.execute(schema.version.delete())
                connection.execute(schema.version.insert().values(version=schema.VERSION))

    def _rows(self, statement: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._transaction() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._guarded(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise StoreError(f"storage: {make_url(self.url).database}: {error.orig}") from error


def _version(connection: Connection) -> int | None:
    """The schema's version; None where there are no tables of ours."""
    if not sa.inspect(connection).has_table("explorer_version"):
        return None
    version: int | None = connection.execute(sa.select(schema.version.c.version)).scalar()
    return version


def _configure(connection: Any, _record: object) -> None:
    """Foreign keys are checked, and a fact that was kept survives a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _add_arch(connection: Connection, arch: Arch) -> None:
    _leave_or_add(connection, schema.architectures, **arch_values(arch))


def _leave_or_add(connection: Connection, table: sa.Table, **values: Any) -> None:
    connection.execute(insert_or_leave(table).values(**values).on_conflict_do_nothing())


def _now() -> str:
    return datetime.now(UTC).isoformat()
