"""Between rows of the tables and frozen facts. Columns hold what queries ask for; the rest of a latency is one JSON."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any, Final

from explorer.arch import Arch
from explorer.complexity import arch_facts
from explorer.records import Epoch, Failure, Latency, Score
from explorer.store import schema

#: Fields of a Latency that have a column of their own; all others are kept under `details`.
_COLUMNS: Final = frozenset(column.name for column in schema.latencies.columns) - {"details"}
_TUPLES: Final = ("window_medians_ms", "rebuild_medians_ms", "remarks")


def arch_values(arch: Arch) -> dict[str, Any]:
    """The row of an architecture, in canonical form."""
    return {**arch_facts(arch), "fields": arch.canonical().to_dict()}


def latency_values(latency: Latency) -> dict[str, Any]:
    """The row of a latency."""
    values = {key: list(value) if key in _TUPLES else value for key, value in asdict(latency).items()}
    details = {key: value for key, value in values.items() if key not in _COLUMNS}
    return {key: value for key, value in values.items() if key in _COLUMNS} | {"details": details}


def latency_of(row: dict[str, Any]) -> Latency:
    """A latency from its row; details that this version does not know are left out."""
    known = {field.name for field in fields(Latency)}
    values: dict[str, Any] = {**{key: value for key, value in row["details"].items() if key in known}, **row}
    del values["details"]
    for key in _TUPLES:
        values[key] = tuple(values.get(key, ()))
    return Latency(**values)


def score_values(score: Score) -> dict[str, Any]:
    """The row of a score."""
    return {**asdict(score), "curve": [asdict(epoch) for epoch in score.curve]}


def score_of(row: dict[str, Any]) -> Score:
    """A score from its row."""
    return Score(**{**row, "curve": tuple(Epoch(**epoch) for epoch in row["curve"])})


def score_until(score: Score, epochs: int) -> Score | None:
    """The score as it was after `epochs` of its training; None where the training was shorter or not evaluated then."""
    if epochs == score.epochs:
        return score
    curve = tuple(row for row in score.curve if row.epoch <= epochs)
    if epochs > score.epochs or not curve or curve[-1].epoch != epochs or curve[-1].accuracy is None:
        return None
    train_s = sum(row.seconds for row in curve)
    return replace(score, epochs=epochs, accuracy=curve[-1].accuracy, train_s=train_s, curve=curve)


def failure_values(failure: Failure) -> dict[str, Any]:
    """The row of a failure; what no database can keep of a crashed process's last words is replaced."""
    message = failure.message.replace("\0", "").encode(errors="replace").decode()
    return {**asdict(failure), "message": message}


def failure_of(row: dict[str, Any]) -> Failure:
    """A failure from its row."""
    return Failure(**row)
