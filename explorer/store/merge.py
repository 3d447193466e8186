"""Brings facts and studies of another database, as another machine's, into a store, without doubles.

The other database is left as it is: a file, of whatever version, is copied and the copy brought forward. Everything is
brought in one transaction, or nothing. Merging the same database again changes nothing.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from explorer.errors import StoreError
from explorer.records import latency_key
from explorer.store import Store, facts, schema, studies
from explorer.store.database import BUSY_TIMEOUT_S, Database, file_of, insert
from explorer.store.rows import failure_of, failure_values, score_of

logger = logging.getLogger(__name__)
#: Where two databases hold the same candidate of a study, the outcome further on in this order wins, and a divergence over all.
FURTHER: Final = ("pending", "failed", "gated", "stopped", "complete")


@dataclass(frozen=True)
class Merged:
    """What a merge brought. `latencies`, `scores` and `failures`: new facts, a valid latency in place of an invalid one
    among them; `studies`: new ones; `members`: new candidates of any study, and those that got further elsewhere;
    `verifications`: new ones.

    `doubles`: facts that were here already, the same or better (valid, or a fact where there was a failure there);
    `conflicts`: facts that have another value here; ours stay.
    """

    latencies: int = 0
    scores: int = 0
    failures: int = 0
    studies: int = 0
    members: int = 0
    verifications: int = 0
    doubles: int = 0
    conflicts: int = 0

    def __add__(self, other: Merged) -> Merged:
        return Merged(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def merge(store: Store, other: str) -> Merged:
    """Brings what the database at `other` (path or URL) holds into `store`; returns what was new.

    Latencies, scores and failures under the same key stay ours, but a valid latency replaces our invalid one and a fact our
    failure. Studies of the same name and identity are united: the further outcome wins, then more epochs, then more seeds;
    candidates that are new here come after ours; of what they cost the larger figure counts; their fronts are dropped, as
    the front of both is neither's. Settings and verifications of ours stay. A study of the same name and identity but another
    seed comes as NAME-seedS beside ours: its candidates were trained from other seeds.

    Raises StoreError, having changed nothing, when there is no such database, when it is the store itself, when studies of one
    name have different identities, and while one that is in both is being searched.
    """
    with _opened(store.url, other) as database:
        return _merge_from(store, database)


def merge_into(storage: str, other: str) -> Merged:
    """`merge` into the database at a path or URL, which is made, where there is none, once the other one could be opened."""
    with _opened(storage, other) as database:
        store = Store.open(storage, create=True)
        try:
            return _merge_from(store, database)
        finally:
            store.close()


def _merge_from(store: Store, database: Database) -> Merged:
    if not database.is_file:
        _require_another(store, database)
    with database.reading() as there, ExitStack() as held:
        ours = {study.name: (study.seed, study.identity) for study in store.studies()}
        for name in sorted({name for _, name in _studies(there, ours)} & ours.keys()):
            held.enter_context(store.alone(name))  # a running search would not see what comes in, and write over it
        with store.database.writing() as here:
            return _merge(here, there)


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """`space.depth3: [10, 12] there, [10] here` for every leaf in which two identities differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from differences(there.get(key), here.get(key), f"{path}.{key}" if path else key)
    elif there != here:
        yield f"{path}: {there!r} there, {here!r} here"


def _merge(here: Connection, there: Connection) -> Merged:
    # In the order in which every transaction of ours takes its locks, so that none waits for the other.
    known = {row["name"]: row for row in facts.rows_of(here, sa.select(schema.searches))}
    theirs = _studies(there, {name: (row["seed"], row["identity"]) for name, row in known.items()})
    here_as, number_of = dict(known), Counter(name for _, name in theirs)
    for study, name in theirs:
        _require_same(here_as.setdefault(name, study), study, name)
        if name != study["name"]:
            logger.warning("%s was made with another seed there: it comes as %s", study["name"], name)
    for table in (schema.architectures, schema.targets, schema.recipes):
        _add_absent(here, table, _all(there, table))
    merged = _add_latencies(here, there) + _add_scores(here, there)
    for name in sorted(known):
        studies.lock_study(here, name)
    merged += _add_failures(here, there)
    merged += Merged(studies=_add_absent(here, schema.searches, [{**study, "name": name} for study, name in theirs]))
    for study, name in theirs:
        merged += Merged(members=_add_members(here, there, study["name"], name))
        if name not in known and number_of[name] == 1:
            _add_absent(here, schema.fronts, _of_study(there, schema.fronts, study["name"], name))
        verified = _of_study(there, schema.verifications, study["name"], name)
        merged += Merged(verifications=_add_absent(here, schema.verifications, verified))
    return merged


def _studies(there: Connection, ours: Mapping[str, tuple[int, Any]]) -> list[tuple[dict[str, Any], str]]:
    """The studies there, each with its name here; `ours`: seeds and identities of ours by name."""
    rows = facts.rows_of(there, sa.select(schema.searches).order_by(schema.searches.c.name))
    return [(row, _name_here(row, ours)) for row in rows]


def _name_here(study: dict[str, Any], ours: Mapping[str, tuple[int, Any]]) -> str:
    """That of the same study of ours, whichever of both was renamed; else its own, with its seed where ours has another."""
    name, seed = str(study["name"]), study["seed"]
    plain = name.removesuffix(f"-seed{seed}")
    for one in (name, plain, f"{plain}-seed{seed}"):
        if ours.get(one) == (seed, study["identity"]):
            return one
    return name if ours.get(name, (seed, None))[0] == seed else f"{name}-seed{seed}"


def _of_study(there: Connection, table: sa.Table, study: str, name: str) -> list[dict[str, Any]]:
    rows = facts.rows_of(there, sa.select(table).filter_by(study=study).order_by(*table.primary_key))
    return [{**row, "study": name} for row in rows]


def _require_same(ours: dict[str, Any], study: dict[str, Any], name: str) -> None:
    found = list(differences(study["identity"], ours["identity"]))
    if ours["seed"] != study["seed"]:
        found.append(f"seed: {study['seed']} there, {ours['seed']} here")
    if found:
        like = "" if name == study["name"] else f" than {name!r} here, as it would be called"
        raise StoreError(
            f"study: {study['name']!r} was made with another setting there{like}: {'; '.join(found)}; nothing was merged; "
            "delete or search one of them under another name (--study)"
        )
    if len(name) > schema.MAX_NAME:
        raise StoreError(
            f"study: {study['name']!r}: as one of another seed it would be called {name!r} here, longer than {schema.MAX_NAME} "
            "characters; "
            "nothing was merged; merge into a new database"
        )


def _add_latencies(here: Connection, there: Connection) -> Merged:
    columns = schema.latencies.c
    ours = {
        (arch_id, target_id): (latency_ms, invalid)
        for arch_id, target_id, latency_ms, invalid in here.execute(
            sa.select(columns.arch_id, columns.target_id, columns.latency_ms, columns.invalid)
        )
    }
    new, doubles, conflicts = [], 0, 0
    for row in _all(there, schema.latencies):
        latency_ms, invalid = ours.get((row["arch_id"], row["target_id"]), (None, ""))
        if latency_ms is None or (invalid and not row["invalid"]):
            new.append(row)
        elif latency_ms == row["latency_ms"] or invalid or row["invalid"]:
            doubles += 1
        else:
            conflicts += 1
    facts.add_latency_rows(here, new)
    facts.drop_failures(here, [latency_key(row["arch_id"], row["target_id"]) for row in new if not row["invalid"]])
    return Merged(latencies=len(new), doubles=doubles, conflicts=conflicts)


def _add_scores(here: Connection, there: Connection) -> Merged:
    key = [column.name for column in schema.scores.primary_key]
    columns = schema.scores.c
    ours = {
        tuple(row[:-1]): row[-1] for row in here.execute(sa.select(*(columns[name] for name in key), columns.accuracy))
    }
    new, doubles, conflicts = [], 0, 0
    for row in _all(there, schema.scores):
        accuracy = ours.get(tuple(row[name] for name in key))
        if accuracy is None:
            new.append(row)
        elif accuracy == row["accuracy"]:
            doubles += 1
        else:
            conflicts += 1
    _add_absent(here, schema.scores, new)
    facts.drop_failures(here, [found for row in new for found in facts.score_keys(score_of(row))])
    return Merged(scores=len(new), doubles=doubles, conflicts=conflicts)


def _add_failures(here: Connection, there: Connection) -> Merged:
    """Failures for which there is no fact; ours stay, with the larger number of attempts."""
    ours = {row["key"]: failure_of(row) for row in _all(here, schema.failures)}
    new, doubles, conflicts = [], 0, 0
    for row in _all(there, schema.failures):
        known = ours.get(row["key"])
        if known is None and not facts.is_known(here, row["key"]):
            new.append(failure_values(failure_of(row)))
        elif known is not None and known.kind != row["kind"]:
            conflicts += 1
        else:
            doubles += 1
        if known is not None and known.attempts < row["attempts"]:
            table = schema.failures
            here.execute(table.update().where(table.c.key == known.key).values(attempts=row["attempts"]))
    _add_absent(here, schema.failures, new)
    return Merged(failures=len(new), doubles=doubles, conflicts=conflicts)


def _add_members(here: Connection, there: Connection, study: str, name: str) -> int:
    """Candidates of a study, called `name` here, that are new here or got further there; returns how many."""
    in_order = sa.select(schema.members).order_by(schema.members.c.position)
    ours = {row["arch_id"]: row for row in facts.rows_of(here, in_order.filter_by(study=name))}
    position, changed = studies.next_position(here, name), 0
    for row in facts.rows_of(there, in_order.filter_by(study=study)):
        row |= {"study": name, "in_work": ""}  # in work there, not here
        if row["failure_key"] is not None and facts.find_failure(here, row["failure_key"]) is None:
            row |= {"failure_key": None, "outcome": "pending"}  # there is a fact here instead
        known = ours.get(row["arch_id"])
        if known is None:
            here.execute(schema.members.insert().values({**row, "position": position}))
            position, changed = position + 1, changed + 1
            continue
        spent = {name: max(known[name], row[name]) for name in ("spent_epochs", "spent_s")}
        further = _progress(here, row) > _progress(here, known)
        changed += further
        if further or any(spent[name] > known[name] for name in spent):
            values = {**(row if further else known), **spent, **{name: known[name] for name in ("position", "in_work")}}
            table = schema.members
            of_arch = (table.c.study == name, table.c.arch_id == row["arch_id"])
            here.execute(table.update().where(*of_arch).values(values))
    return changed


def _progress(here: Connection, member: dict[str, Any]) -> tuple[int, int, int]:
    failure = None if member["failure_key"] is None else facts.find_failure(here, member["failure_key"])
    has_diverged = failure is not None and failure.kind == "diverged"  # from a seed that the other has not trained
    return len(FURTHER) if has_diverged else FURTHER.index(member["outcome"]), member["epochs"], member["seeds"]


def _all(connection: Connection, table: sa.Table) -> list[dict[str, Any]]:
    return facts.rows_of(connection, sa.select(table).order_by(*table.primary_key))


def _add_absent(here: Connection, table: sa.Table, rows: list[dict[str, Any]]) -> int:
    """Inserts the rows whose key is not there; returns how many."""
    before = here.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    if rows:
        here.execute(insert(here, table).on_conflict_do_nothing(), rows)
    after = here.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    return int(after - before)


# -- the other database ----------------------------------------------------------------------------------------------------


@contextmanager
def _opened(own: str, other: str) -> Iterator[Database]:
    """The other database as one of today's: a copy of a file; a PostgreSQL database itself, opened as any command does."""
    with tempfile.TemporaryDirectory() as folder:
        file = file_of(other)
        if file is None:
            database = Database.open(other)
        else:
            _copy(own, file, Path(folder) / "copy.db")
            database = Database.open(str(Path(folder) / "copy.db"), place=str(file))
        try:
            yield database
        finally:
            database.close()


def _copy(own: str, file: Path, copy: Path) -> None:
    """Copies a database file as it is at this moment, its write-ahead log included, even while another writes it.

    Raises StoreError where it is the database at `own`, and where it cannot be read.
    """
    if not file.is_file():
        raise StoreError(f"storage: {file}: no such database; give a file that swinexplore wrote, or a URL")
    target_file = file_of(own)
    if target_file is not None and target_file.exists() and file.samefile(target_file):
        raise StoreError(f"storage: {file}: is the database that it would be merged into; give another")
    uri = f"file:{quote(str(file.resolve()))}?mode=ro"
    log = file.with_name(f"{file.name}-wal")
    if not (log.exists() or os.access(file.parent, os.W_OK)):
        uri += "&immutable=1"  # SQLite would write its index of the log beside the file
    with closing(sqlite3.connect(copy)) as target:
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as source:
                source.backup(target)
        except sqlite3.Error as error:
            raise StoreError(f"storage: {file}: {error}") from error


def _require_another(store: Store, database: Database) -> None:
    """Raises StoreError where both are one PostgreSQL database, under whatever names of host and user."""
    if store.database.is_file:
        return
    probe = f"merge {uuid.uuid4()}"
    with store.database.alone(probe):
        try:
            with database.alone(probe):
                pass
        except StoreError:
            raise StoreError(
                f"storage: {database.place}: is the database that it would be merged into; give another"
            ) from None
