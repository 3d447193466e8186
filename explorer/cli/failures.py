"""`studies failures`: what failed, by class, and the command that shows each again."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli import console, options
from explorer.errors import StoreError, UserError
from explorer.records import DEFAULT_STORAGE, MAX_ATTEMPTS, PASSING, Failure, ScoreKey, StudyRecord

if TYPE_CHECKING:
    from explorer.arch import Arch
    from explorer.store import Store

#: Characters of a message that the table shows; --json has all.
_MOST = 140


def studies_failures(
    study: options.Study = None,
    every: Annotated[bool, typer.Option("--all", help="All failures of the database, not of one study.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove them, so that the next search tries again what failed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --forget: do it without asking.")] = False,
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """List what failed, by class, with the command that reproduces each; `--forget` has it tried again."""
    from explorer.store import Store

    if every and study is not None:
        raise UserError(
            "--all: asks for all failures of the database, --study for those of one study; give one of them"
        )
    store = Store.open(storage)
    try:
        record = None if every else store.study(study)
        rows = _rows(store, record, storage)
        if not as_json:
            _show(rows, "the database" if record is None else f"study {record.name}")
        forgotten = _forget(store, rows, yes=yes) if forget and rows else 0
    finally:
        store.close()
    if as_json:
        content = {"study": None if record is None else record.name, "forgotten": forgotten, "failures": rows}
        console.json_document(content)
    elif forgotten:
        console.note(f"forgot {_counted(forgotten)}; the next search tries again what failed")


def _rows(store: Store, record: StudyRecord | None, storage: str) -> list[dict[str, Any]]:
    """One row a failure: by class, and in the order of the store within one."""
    studies = [record] if record is not None else store.studies()
    members = {study.name: {failure.key for _, failure in store.failures(study.name)} for study in studies}
    rows: dict[str, dict[str, Any]] = {}
    found = store.failures() if record is None else [*store.failures(record.name), *_beside(store, record)]
    for arch, failure in found:
        holder = next((study for study in studies if failure.key in members[study.name]), None)
        holder = holder or next((study for study in studies if _would_repeat(study, failure)), None)
        rows.setdefault(failure.key, _row(arch, failure, holder, _place(store, storage)))
    counts = Counter(row["kind"] for row in rows.values())
    return sorted(rows.values(), key=lambda row: (-counts[row["kind"]], row["kind"]))


def _beside(store: Store, study: StudyRecord) -> list[tuple[Arch, Failure]]:
    """Failures of members that did not make them fail: a further seed that was given up, say."""
    members = {candidate.arch.id for candidate in store.candidates(study)}
    return [each for each in store.failures() if each[0].id in members and _would_repeat(study, each[1])]


def _row(arch: Arch, failure: Failure, study: StudyRecord | None, storage: str) -> dict[str, Any]:
    return {
        "arch_id": arch.id,
        "name": arch.name,
        "step": failure.step,
        "kind": failure.kind,
        "is_transient": failure.kind in PASSING,
        "attempts": failure.attempts,
        "max_attempts": MAX_ATTEMPTS if failure.kind in PASSING else 1,
        "is_tried_again": failure.is_passing,
        "diverged_at": failure.diverged_at,
        "message": failure.message,
        "failed_at": failure.failed_at,
        "key": failure.key,
        "command": None if study is None else _command(arch, failure, study, storage),
    }


def _would_repeat(study: StudyRecord, failure: Failure) -> bool:
    """Whether an evaluation by this study does the step that failed, be the architecture a member or not."""
    if failure.step == "measuring":
        return failure.key.endswith(f"/{study.target_id}")
    key = _score_key(failure)
    epochs = study.identity["recipe"]["epochs"]
    return (key.recipe_id, key.data_id) == (study.recipe_id, study.data_id) and key.epochs <= epochs


def _score_key(failure: Failure) -> ScoreKey:
    arch_id, recipe_id, data_id, epochs, seed = failure.key.partition(":")[2].split("/")
    return ScoreKey(arch_id, recipe_id, data_id, int(epochs), int(seed))


def _command(arch: Arch, failure: Failure, study: StudyRecord, storage: str) -> str:
    words = ["swinexplore", "evaluate", arch.id, "--study", study.name]
    if failure.step == "training" and (seed := _score_key(failure).seed) != study.seed:
        words += ["--seed", str(seed)]
    return shlex.join([*words, "--storage", storage])


def _place(store: Store, storage: str) -> str:
    """The database as a command may name it on a screen: a server's without its password."""
    return store.place if "://" in storage and not storage.startswith("sqlite:") else storage


def _show(rows: list[dict[str, Any]], where: str) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        console.document(f"{where}: nothing failed")
        return
    table = Table(title=f"{where}: {len(rows)} failed", title_justify="left")
    for heading in ("class", "step", "attempts", "id", "name", "when", "message"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "id")
    for row in rows:
        attempts = f"{row['attempts']} of {row['max_attempts']}"
        message = " ".join(row["message"].split())
        shown = message if len(message) <= _MOST else message[: _MOST - 1] + "…"
        cells = (row["kind"], row["step"], attempts, row["arch_id"], row["name"], row["failed_at"], shown)
        table.add_row(*(Text(cell) for cell in cells))
    console.table(table)
    for kind, number in Counter(row["kind"] for row in rows).items():
        console.document(f"{number} {kind}: {_what_next([row for row in rows if row['kind'] == kind])}")
    console.document("seen again by:")
    for row in rows:
        console.document("  " + (row["command"] or f"no study of this database would do it again: {row['key']}"))


def _what_next(rows: list[dict[str, Any]]) -> str:
    """What a search does with the failures of one class."""
    if not rows[0]["is_transient"]:
        return "deterministic, not tried again"
    tried_again = sum(row["is_tried_again"] for row in rows)
    if tried_again == len(rows):
        return "transient, tried again by the next search"
    if not tried_again:
        return f"transient, given up after {MAX_ATTEMPTS} attempts"
    return f"transient, {tried_again} tried again by the next search, {len(rows) - tried_again} given up"


def _forget(store: Store, rows: list[dict[str, Any]], *, yes: bool) -> int:
    """Forgets all failures shown; asks first unless told not to. Returns how many there were."""
    if not yes and not typer.confirm(f"Forget {_counted(len(rows))}? The next search tries again.", err=True):
        raise StoreError(f"{_counted(len(rows))} not forgotten; say --yes to forget them")
    return store.forget_failures(row["key"] for row in rows)


def _counted(number: int) -> str:
    return f"{number} failure{'s' * (number != 1)}"
