"""Studies in their tables: what they are, their members, fronts and verifications. Facts are `facts`."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from explorer.arch import Arch
from explorer.records import Candidate, Failure, FrontRecord, Latency, Score, ScoreKey, StudyRecord, Verification
from explorer.store import schema
from explorer.store.database import insert, leave_or_add
from explorer.store.facts import rows_of
from explorer.store.rows import failure_of, latency_of, score_of, score_until

#: Outcomes of members that have scores.
TRAINED: Final = ("complete", "stopped")


def add_study(connection: Connection, study: StudyRecord) -> None:
    """Keeps a new study. One of that name stays as it is but counts as the latest, and takes up settings if there are any."""
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    searches = schema.searches
    leave_or_add(connection, searches, **{**asdict(study), "created_at": now, "used_at": now})
    latest = {"used_at": now, **({"settings": study.settings} if study.settings else {})}
    connection.execute(searches.update().where(searches.c.name == study.name).values(**latest))


def all_studies(connection: Connection) -> list[StudyRecord]:
    """All studies, the latest used first."""
    columns = schema.searches.c
    order = (columns.used_at.desc(), columns.created_at.desc(), columns.name)
    rows = rows_of(connection, sa.select(schema.searches).order_by(*order))
    return [StudyRecord(**{key: value for key, value in row.items() if key != "used_at"}) for row in rows]


def lock_study(connection: Connection, name: str) -> None:
    """Lets no other transaction number members of this study; a file's writer is alone anyway."""
    searches = schema.searches
    connection.execute(sa.select(searches.c.name).where(searches.c.name == name).with_for_update(key_share=True))


def add_member(
    connection: Connection, study: str, candidate: Candidate, key: ScoreKey, *, spent_epochs: int, spent_s: float
) -> None:
    """Notes what became of a candidate; its architecture is there already. Costs the same in small and large studies."""
    found = {
        "outcome": candidate.outcome,
        "proxy_id": key.arch_id,
        "epochs": key.epochs,
        "seed": key.seed,
        "seeds": len(candidate.scores) or 1,
        "failure_key": None if candidate.failure is None else candidate.failure.key,
        "in_work": "",
    }
    lock_study(connection, study)
    members = schema.members
    statement = insert(connection, members).values(
        study=study,
        arch_id=candidate.arch.id,
        position=next_position(connection, study),
        spent_epochs=spent_epochs,
        spent_s=spent_s,
        **found,
    )
    spent = {"spent_epochs": members.c.spent_epochs + spent_epochs, "spent_s": members.c.spent_s + spent_s}
    connection.execute(statement.on_conflict_do_update(index_elements=["study", "arch_id"], set_={**found, **spent}))


def set_in_work(connection: Connection, study: str, arch_id: str, key: str) -> None:
    """Notes for which score a member is being trained; empty for none."""
    members = schema.members
    connection.execute(members.update().filter_by(study=study, arch_id=arch_id).values(in_work=key))


def take_in_work(connection: Connection, study: str) -> list[tuple[str, str]]:
    """Ids of the members that are noted to be in work, with the keys; they are noted no more."""
    members = schema.members
    noted = (members.c.study == study, members.c.in_work != "")
    found = rows_of(
        connection, sa.select(members.c.arch_id, members.c.in_work).where(*noted).order_by(members.c.position)
    )
    connection.execute(members.update().where(*noted).values(in_work=""))
    return [(row["arch_id"], row["in_work"]) for row in found]


def next_position(connection: Connection, study: str) -> int:
    """The position of the next member."""
    columns = schema.members.c
    last = sa.select(columns.position).where(columns.study == study).order_by(columns.position.desc()).limit(1)
    position = connection.execute(last).scalar()
    return 0 if position is None else position + 1


def candidates(connection: Connection, study: StudyRecord) -> list[Candidate]:
    """All candidates of a study with their facts, in the order they were first taken up."""
    members = schema.members
    latencies = _latencies(connection, study)
    scores = _scores(connection, study)
    failures = _failures(connection, study)
    rows = rows_of(
        connection,
        sa.select(members, schema.architectures.c.fields)
        .join(schema.architectures)
        .where(members.c.study == study.name)
        .order_by(members.c.position, members.c.arch_id),
    )
    return [
        Candidate(
            Arch.from_dict(row["fields"]),
            row["outcome"],
            latencies.get(row["arch_id"]),
            _scores_of(row, scores),
            failures.get(row["failure_key"]),
            spent_epochs=row["spent_epochs"],
            spent_s=row["spent_s"],
        )
        for row in rows
    ]


def _scores_of(member: dict[str, Any], scores: dict[tuple[str, int], Score]) -> tuple[Score, ...]:
    if member["outcome"] not in TRAINED:
        return ()
    found = (scores.get((member["arch_id"], member["seed"] + offset)) for offset in range(member["seeds"]))
    return tuple(score for score in found if score is not None)


def _latencies(connection: Connection, study: StudyRecord) -> dict[str, Latency]:
    latencies, members = schema.latencies, schema.members
    statement = (
        sa.select(latencies)
        .join(members, members.c.arch_id == latencies.c.arch_id)
        .where(members.c.study == study.name, latencies.c.target_id == study.target_id)
    )
    return {row["arch_id"]: latency_of(row) for row in rows_of(connection, statement)}


def _scores(connection: Connection, study: StudyRecord) -> dict[tuple[str, int], Score]:
    """Every score of a trained member after its epochs, by the member's architecture and the seed."""
    scores, members = schema.scores, schema.members
    statement = (
        sa.select(scores, members.c.arch_id.label("member_id"), members.c.epochs.label("member_epochs"))
        .join(
            members,
            (members.c.proxy_id == scores.c.arch_id)
            & (scores.c.epochs >= members.c.epochs)
            & (scores.c.seed >= members.c.seed)
            & (scores.c.seed < members.c.seed + members.c.seeds),
        )
        .where(
            members.c.study == study.name,
            members.c.outcome.in_(TRAINED),
            scores.c.recipe_id == study.recipe_id,
            scores.c.data_id == study.data_id,
        )
        .order_by(scores.c.epochs)
    )
    found: dict[tuple[str, int], Score] = {}
    for row in rows_of(connection, statement):
        member_id, epochs = row.pop("member_id"), row.pop("member_epochs")
        score = score_until(score_of(row), epochs)
        if score is not None:
            found.setdefault((member_id, score.seed), score)
    return found


def _failures(connection: Connection, study: StudyRecord) -> dict[str, Failure]:
    failures, members = schema.failures, schema.members
    statement = sa.select(failures).join(members, members.c.failure_key == failures.c.key)
    rows = rows_of(connection, statement.where(members.c.study == study.name))
    return {row["key"]: failure_of(row) for row in rows}


def add_front(connection: Connection, front: FrontRecord) -> None:
    """Keeps the front of a study after so many architectures; the last one at that number counts."""
    values = {**asdict(front), "arch_ids": list(front.arch_ids)}
    statement = insert(connection, schema.fronts).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["study", "num_trials"], set_=values))


def fronts(connection: Connection, study: str) -> list[FrontRecord]:
    """The history of a study's front."""
    rows = rows_of(connection, sa.select(schema.fronts).filter_by(study=study).order_by(schema.fronts.c.num_trials))
    return [FrontRecord(**{**row, "arch_ids": tuple(row["arch_ids"])}) for row in rows]


def add_verification(connection: Connection, verification: Verification) -> None:
    """Keeps a verification; a later one in the same way replaces it."""
    columns = {column.name for column in schema.verifications.columns}
    content = {**asdict(verification), "accuracies": list(verification.accuracies)}
    values = {key: value for key, value in content.items() if key in columns}
    values["fields"] = {key: value for key, value in content.items() if key not in columns}
    statement = insert(connection, schema.verifications).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["study", "arch_id", "key"], set_=values))


def verifications(connection: Connection, study: str) -> list[Verification]:
    """Everything verified of a study, ordered by when and by architecture."""
    columns = schema.verifications.c
    statement = sa.select(schema.verifications).filter_by(study=study)
    known = {field.name for field in fields(Verification)}
    found = []
    for row in rows_of(connection, statement.order_by(columns.verified_at, columns.arch_id, columns.key)):
        content = {**row.pop("fields"), **row}
        content["accuracies"] = tuple(content["accuracies"])
        found.append(Verification(**{key: value for key, value in content.items() if key in known}))
    return found
