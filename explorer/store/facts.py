"""Facts in their tables: architectures, targets, recipes, latencies, scores, failures.

Facts are inserted if absent and never changed, but for an invalid latency and a failure of the machine, which a later one
replaces. A failure is forgotten when what it stood for is known after all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from explorer.arch import Arch
from explorer.errors import StoreError
from explorer.records import PASSING, Failure, Latency, Score, ScoreKey, Target, latency_key
from explorer.store import schema
from explorer.store.database import insert, leave_or_add
from explorer.store.rows import (
    arch_values,
    failure_of,
    failure_values,
    latency_of,
    latency_values,
    score_of,
    score_until,
    score_values,
)


def rows_of(connection: Connection, statement: sa.Select[Any]) -> list[dict[str, Any]]:
    """All rows as dicts."""
    return [dict(row) for row in connection.execute(statement).mappings()]


def find_latency(connection: Connection, arch_id: str, target_id: str) -> Latency | None:
    """The latency of an architecture on a target, valid or not."""
    rows = rows_of(connection, sa.select(schema.latencies).filter_by(arch_id=arch_id, target_id=target_id))
    return latency_of(rows[0]) if rows else None


def find_score(connection: Connection, key: ScoreKey) -> Score | None:
    """The score under `key`, or as of that epoch from a longer training that was evaluated then."""
    same = {name: value for name, value in asdict(key).items() if name != "epochs"}
    columns = schema.scores.c
    longer = sa.select(schema.scores).filter_by(**same).where(columns.epochs >= key.epochs).order_by(columns.epochs)
    found = (score_until(score_of(dict(row)), key.epochs) for row in connection.execute(longer).mappings())
    return next((score for score in found if score is not None), None)


def find_epochs(connection: Connection, key: ScoreKey) -> int:
    """The most epochs below the key's after which a score of the same training is kept; 0 where there is none."""
    content = asdict(key)
    epochs = content.pop("epochs")
    kept = sa.select(sa.func.max(schema.scores.c.epochs)).filter_by(**content).where(schema.scores.c.epochs < epochs)
    return connection.execute(kept).scalar_one() or 0


def find_failure(connection: Connection, key: str) -> Failure | None:
    """What is kept under a missing fact's key."""
    rows = rows_of(connection, sa.select(schema.failures).filter_by(key=key))
    return failure_of(rows[0]) if rows else None


def find_divergence(connection: Connection, key: ScoreKey) -> Failure | None:
    """That the training under `key` diverged within its epochs, asked for as many or fewer: a longer run passes that step too."""
    columns = schema.failures.c
    before, after = str(key).rsplit(f"/{key.epochs}/", 1)
    same = columns.key.startswith(f"{before}/", autoescape=True), columns.key.endswith(f"/{after}", autoescape=True)
    rows = rows_of(connection, sa.select(schema.failures).where(*same, columns.kind == "diverged"))
    found = {int(row["key"].split("/")[-2]): failure_of(row) for row in rows}
    return found[min(found)] if found and min(found) <= key.epochs else None


def is_known(connection: Connection, key: str) -> bool:
    """Whether there is, after all, the fact under the key of a failure."""
    step, _, rest = key.partition(":")
    match step, rest.split("/"):
        case "latency", [arch_id, target_id]:
            latency = find_latency(connection, arch_id, target_id)
            return latency is not None and not latency.invalid
        case "score", [arch_id, recipe_id, data_id, epochs, seed] if epochs.isdecimal():
            return find_score(connection, ScoreKey(arch_id, recipe_id, data_id, int(epochs), int(seed))) is not None
    return False


def find_arch(connection: Connection, arch_id: str) -> Arch:
    """The architecture with this id, or with the only id that starts so. Raises StoreError otherwise."""
    ids = schema.architectures.c.arch_id
    rows = rows_of(
        connection,
        sa.select(schema.architectures).where(ids.startswith(arch_id, autoescape=True)).order_by(ids).limit(2),
    )
    exact = [row for row in rows if row["arch_id"] == arch_id] or rows
    if len(exact) != 1:
        problem = "fits several architectures; give more of it" if exact else "is not in this database"
        raise StoreError(f"id: {arch_id!r} {problem}; `swinexplore pareto` lists ids")
    return Arch.from_dict(exact[0]["fields"])


def find_target(connection: Connection, target_id: str) -> Target:
    """A target by its id. Raises StoreError where it is not there."""
    return Target(**_fields(connection, schema.targets, "target", target_id))


def find_recipe(connection: Connection, recipe_id: str) -> dict[str, Any]:
    """A recipe's fields by its id. Raises StoreError where it is not there."""
    return _fields(connection, schema.recipes, "recipe", recipe_id)


def measured(connection: Connection, target_id: str) -> list[tuple[Arch, float]]:
    """Every architecture with a valid latency on a target, and that latency in milliseconds; ordered by id."""
    latencies, architectures = schema.latencies.c, schema.architectures.c
    statement = (
        sa.select(architectures.fields, latencies.latency_ms)
        .join(schema.latencies, latencies.arch_id == architectures.arch_id)
        .where(latencies.target_id == target_id, latencies.invalid == "")
        .order_by(architectures.arch_id)
    )
    return [(Arch.from_dict(row["fields"]), row["latency_ms"]) for row in rows_of(connection, statement)]


def scored(connection: Connection, key: ScoreKey) -> set[str]:
    """Ids of the proxies that have a score as `key` says, whatever its `arch_id`."""
    columns = schema.scores.c
    same = {"recipe_id": key.recipe_id, "data_id": key.data_id, "seed": key.seed}
    ids = sa.select(columns.arch_id).filter_by(**same).where(columns.epochs == key.epochs)
    found = set(connection.execute(ids).scalars())
    longer = sa.select(columns.arch_id, columns.curve).filter_by(**same).where(columns.epochs > key.epochs)
    for arch_id, curve in connection.execute(longer):
        if any(epoch["epoch"] == key.epochs and epoch["accuracy"] is not None for epoch in curve):
            found.add(arch_id)
    return found


def mean_seconds(connection: Connection, target_id: str, recipe_id: str) -> tuple[float | None, float | None]:
    """Mean seconds of a latency step on this target, and of one epoch with this recipe; None where none is kept."""
    latencies, scores = schema.latencies.c, schema.scores.c
    step_s = sa.select(sa.func.avg(latencies.prepare_s + latencies.measure_s)).where(latencies.target_id == target_id)
    epoch_s = sa.select(sa.func.avg(scores.train_s / scores.epochs)).where(
        scores.recipe_id == recipe_id, scores.epochs > 0
    )
    return connection.execute(step_s).scalar(), connection.execute(epoch_s).scalar()


def add_arch(connection: Connection, arch: Arch) -> None:
    """Keeps an architecture."""
    leave_or_add(connection, schema.architectures, **arch_values(arch))


def add_target(connection: Connection, target: Target) -> None:
    """Keeps a target."""
    leave_or_add(connection, schema.targets, target_id=target.id, fields=asdict(target))


def add_recipe(connection: Connection, recipe_id: str, recipe_fields: dict[str, Any]) -> None:
    """Keeps a recipe."""
    leave_or_add(connection, schema.recipes, recipe_id=recipe_id, fields=recipe_fields)


def add_latency(connection: Connection, latency: Latency) -> None:
    """Keeps a latency; what is there already stays, unless it is invalid."""
    add_latency_rows(connection, [latency_values(latency)])
    if not latency.invalid:
        drop_failures(connection, [latency_key(latency.arch_id, latency.target_id)])


def add_latency_rows(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """As `add_latency` for many; failures are the caller's."""
    if not rows:
        return
    statement = insert(connection, schema.latencies)
    found = {name: statement.excluded[name] for name in rows[0]}
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["arch_id", "target_id"], set_=found, where=schema.latencies.c.invalid != ""
        ),
        rows,
    )


def add_score(connection: Connection, score: Score) -> None:
    """Keeps a score; what is there already stays."""
    leave_or_add(connection, schema.scores, **score_values(score))
    drop_failures(connection, score_keys(score))


def score_keys(score: Score) -> list[str]:
    """The keys of all scores that one training gives: its own and those of epochs in which it was evaluated."""
    key = ScoreKey(score.arch_id, score.recipe_id, score.data_id, score.epochs, score.seed)
    epochs = {row.epoch for row in score.curve if row.accuracy is not None and row.epoch < score.epochs}
    return [str(replace(key, epochs=number)) for number in sorted({*epochs, score.epochs})]


def add_failure(connection: Connection, failure: Failure) -> Failure:
    """Keeps why a fact is missing and counts the attempts; a lasting failure stays. Returns what is kept now."""
    values = {**failure_values(failure), "attempts": 1}
    statement = insert(connection, schema.failures).values(**values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["key"],
            set_={**values, "attempts": schema.failures.c.attempts + 1},
            where=schema.failures.c.kind.in_(PASSING),
        )
    )
    (row,) = rows_of(connection, sa.select(schema.failures).filter_by(key=failure.key))
    return failure_of(row)


def drop_failures(connection: Connection, keys: Iterable[str]) -> int:
    """Forgets failures, and notes that members which failed so are to be evaluated again. Returns how many there were."""
    dropped = 0
    for key in sorted(set(keys)):
        if connection.execute(schema.failures.delete().where(schema.failures.c.key == key)).rowcount:
            dropped += 1
            members = schema.members.update().where(schema.members.c.failure_key == key)
            connection.execute(members.values(failure_key=None, outcome="pending"))
    return dropped


def failures(connection: Connection, study: str | None) -> list[tuple[Arch, Failure]]:
    """Failures of a study's members in their order, or all, ordered by when they happened."""
    both = schema.failures.join(schema.architectures)
    statement = sa.select(schema.failures, schema.architectures.c.fields).select_from(both)
    if study is None:
        statement = statement.order_by(schema.failures.c.failed_at, schema.failures.c.key)
    else:
        members = schema.members
        statement = statement.join(members, members.c.failure_key == schema.failures.c.key)
        statement = statement.where(members.c.study == study).order_by(members.c.position)
    return [(Arch.from_dict(row.pop("fields")), failure_of(row)) for row in rows_of(connection, statement)]


def _fields(connection: Connection, table: sa.Table, kind: str, key: str) -> dict[str, Any]:
    rows = rows_of(connection, sa.select(table).filter_by(**{f"{kind}_id": key}))
    if not rows:
        raise StoreError(f"{kind}: {key!r} is not in this database")
    fields: dict[str, Any] = rows[0]["fields"]
    return fields
