"""Commands about studies: `pareto`, `studies`, `table`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli import console, options
from explorer.cli.failures import studies_failures
from explorer.errors import StoreError, UserError
from explorer.records import DEFAULT_STORAGE

#: Title of what is listed below a front.
DIVERGED = "training diverged, cannot stand on the front"

if TYPE_CHECKING:
    from explorer.records import Candidate, StudyRecord, Target
    from explorer.report import Findings
    from explorer.store import Store


def pareto(
    study: Annotated[
        list[str] | None,
        typer.Option(
            "--study", metavar="NAME", help="Study; default: the latest. Several of one environment make one front."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="ID", help="Of the studies named, those measured on this target.")
    ] = None,
    storage: options.Storage = DEFAULT_STORAGE,
    max_latency: Annotated[float | None, typer.Option("--max-latency", metavar="MS", help="Nothing slower.")] = None,
    output: Annotated[str, typer.Option("--format", help="table, csv, json or md.")] = "table",
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw a .png or .html.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show the front of a study: the most accurate architectures for their latency."""
    from explorer import report
    from explorer.store import Store

    output = "json" if as_json else output
    options.check_max_latency(max_latency)
    if output not in ("table", "csv", "json", "md"):
        raise UserError(f"--format: {output!r} is not known; allowed: table, csv, json, md")
    if plot is not None:
        report.check_plot_path(plot)
    store = Store.open(storage)
    try:
        records = _comparable(store, [store.study(name) for name in study] if study else [store.study()], target)
        found = findings_of(store, records, max_latency)
    finally:
        store.close()
    match output:
        case "json":
            console.json_document(found.to_dict())
        case "csv":
            console.document(report.to_csv(found.front))
        case "md":
            console.document(report.to_markdown(found.front))
            if found.diverged:
                reasons = "\n".join(f"- {line}" for line in report.reason_lines(found.diverged))
                console.document(f"\n{DIVERGED}:\n\n{report.to_markdown(found.diverged)}\n{reasons}")
        case _:
            console.document(f"{found.study}\n{found.target}")
            show_front(found)
            measured = [row for row in found.references if row["latency_ms"] is not None]
            if measured:
                console.table(report.to_table(measured, title="known networks"))
            console.document(report.measuring_text(found.measuring))
    for row in found.left_out:
        console.note(f"not on the front: {row['name']}: its latency is invalid: {row['invalid']}")
    if plot is not None:
        report.plot(found, plot)
        console.note(f"plot: {plot}")


def show_front(found: Findings) -> None:
    """The front, and below it what no front can hold because its training diverged, with the step."""
    from explorer.report import reason_lines, to_table

    console.table(to_table(found.front, title=f"front of {len(found.candidates)} architectures"))
    if found.diverged:
        console.table(to_table(found.diverged, title=DIVERGED))
        console.document("\n".join(reason_lines(found.diverged)))


def _comparable(store: Store, records: list[StudyRecord], target_id: str | None) -> list[StudyRecord]:
    """The studies, of those measured on `target_id` where given. Raises StoreError where they must not share a front."""
    if target_id is not None:
        kept = [record for record in records if record.target_id == target_id]
        if not kept:
            known = ", ".join(sorted({record.target_id for record in records}))
            raise StoreError(f"--target: {target_id!r} is none of the studies' targets; allowed: {known}")
        records = kept
    first, *others = list({record.name: record for record in records}.values())
    targets = {record.target_id: store.target(record.target_id) for record in (first, *others)}
    for other in others:
        differences = targets[other.target_id].differences(targets[first.target_id])
        if differences:
            raise StoreError(_refusal(first, other, differences, targets))
        for key in ("recipe", "data", "proxy"):
            if other.identity[key] != first.identity[key]:
                raise StoreError(
                    f"--study: {first.name!r} and {other.name!r} were trained with another {key}: {first.identity[key]!r} and "
                    f"{other.identity[key]!r}; their accuracies never stand on one front"
                )
    return [first, *others]


def _refusal(first: StudyRecord, other: StudyRecord, differences: dict[str, Any], targets: dict[str, Target]) -> str:
    said = "; ".join(f"{key}: {there!r} and {here!r}" for key, (here, there) in differences.items())
    choices = ", ".join(f"--target {target_id} ({target.describe()})" for target_id, target in targets.items())
    return (
        f"--study: {first.name!r} and {other.name!r} were measured in different environments ({said}); their latencies never "
        f"stand on one front; keep those of one: {choices}"
    )


def findings_of(store: Store, records: list[StudyRecord], max_latency_ms: float | None) -> Findings:
    """What comparable studies found together; compared with the base of the first."""
    from explorer.report import findings

    first = records[0]
    candidates: dict[str, Candidate] = {}
    for candidate in (c for record in records for c in store.candidates(record)):
        known = candidates.get(candidate.arch.id)
        if known is None or _says(candidate) > _says(known):
            candidates[candidate.arch.id] = candidate
    return findings(
        " + ".join(record.name for record in records),
        store.target(first.target_id).describe(),
        list(candidates.values()),
        base=store.arch(first.base_id),
        base_latency=store.latency(first.base_id, first.target_id),
        known={arch_id for record in records for arch_id in record.settings.get("known", ())},
        max_latency_ms=max_latency_ms,
    )


def _says(candidate: Candidate) -> int:
    """How much of a network a study says: that it is complete most, then that its training diverged, which is a result too."""
    if candidate.outcome == "complete":
        return 2
    return int(candidate.failure is not None and candidate.failure.kind == "diverged")


studies_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, show and delete studies.",
    epilog="Example: swinexplore studies list",
)


@studies_app.command("list", epilog="Example: swinexplore studies list --json")
def studies_list(storage: options.Storage = DEFAULT_STORAGE, as_json: options.Json = False) -> None:
    """List the studies of a database, the latest first."""
    from explorer.store import Store

    store = Store.open(storage)
    rows = [_summary(store, record.name) for record in store.studies()]
    store.close()
    if as_json:
        console.json_document({"studies": rows})
        return
    for row in rows:
        counts = ", ".join(f"{number} {outcome}" for outcome, number in row["outcomes"].items())
        console.document(
            f"{row['study']:44} {row['architectures']:>5} architectures ({counts or 'none'})  {row['target']}"
        )


@studies_app.command("show", epilog="Example: swinexplore studies show --study NAME")
def studies_show(
    study: options.Study = None, storage: options.Storage = DEFAULT_STORAGE, as_json: options.Json = False
) -> None:
    """Show one study: what it is made of, its architectures and how its front grew."""
    from explorer import report
    from explorer.store import Store

    store = Store.open(storage)
    record = store.study(study)
    found = findings_of(store, [record], None)
    history: list[dict[str, Any]] = [
        {"num_trials": front.num_trials, "hypervolume": front.hypervolume, "arch_ids": list(front.arch_ids)}
        for front in store.fronts(record.name)
    ]
    summary = _summary(store, record.name)
    store.close()
    if as_json:
        console.json_document(
            {
                **summary,
                "identity": record.identity,
                "candidates": found.candidates,
                "measuring": found.measuring,
                "fronts": history,
            }
        )
        return
    console.document(
        f"{record.name}\n{found.target}\ncreated {record.created_at}, recipe {record.recipe_id}, data {record.data_id}"
    )
    console.table(report.to_table(found.candidates, title="architectures"))
    console.document(report.measuring_text(found.measuring))
    for front in history:
        console.document(
            f"after {front['num_trials']:>4}: hypervolume {front['hypervolume']:.5f}, {len(front['arch_ids'])} on the front"
        )


@studies_app.command("delete", epilog="Example: swinexplore studies delete NAME --yes")
def studies_delete(
    study: Annotated[str, typer.Argument(metavar="NAME", help="The study.")],
    storage: options.Storage = DEFAULT_STORAGE,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Delete a study; what was measured and trained stays for others."""
    from explorer.search import delete
    from explorer.store import Store

    store = Store.open(storage)
    try:
        store.study(study)
        if not yes and not typer.confirm(f"Delete study {study}? Its facts stay.", err=True):
            raise StoreError(f"study: {study!r} was not deleted; say --yes to delete it")
        delete(store, study)
    finally:
        store.close()
    console.note(f"deleted study {study}; its facts stay")


studies_app.command("failures", epilog="Example: swinexplore studies failures --study NAME")(studies_failures)


@studies_app.command("merge", epilog="Example: swinexplore studies merge OTHER.db")
def studies_merge(
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Another database: a file or a URL.")],
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """Bring studies and facts from another database into this one, without doubles."""
    from explorer.store.database import exists, place_of, storage_url
    from explorer.store.merge import merge_into

    if not exists(other):
        raise StoreError(f"merge: {place_of(storage_url(other))}: no such database; give the file of another search")
    counts = asdict(merge_into(storage, other))
    if as_json:
        console.json_document(counts)
    else:
        console.document(", ".join(f"{name.replace('_', ' ')} {number}" for name, number in counts.items()))


def table(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Study; default: the latest.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE.csv", help="Write it here instead of to stdout.")
    ] = None,
    storage: options.Storage = DEFAULT_STORAGE,
) -> None:
    """Write a study's accuracies and latencies as a table that `search --table` answers from."""
    from explorer.evaluate.table import write_table
    from explorer.store import Store

    store = Store.open(storage)
    try:
        record = store.study(study)
        candidates = store.candidates(record)
        base_latency = store.latency(record.base_id, record.target_id)
        base = None if base_latency is None else (store.arch(record.base_id), base_latency)
    finally:
        store.close()
    complete = [candidate for candidate in candidates if candidate.may_stand_on_front]
    if not complete:
        raise StoreError(f"study: {record.name!r} has no architecture with a valid latency and an accuracy yet")
    text = write_table(complete, base=base)
    if to is None:
        console.document(text)
        return
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--to: {to}: cannot be written: {error.strerror}") from None
    console.note(f"{to}: {len(complete)} of {len(candidates)} architectures of {record.name}")


def _summary(store: Store, name: str) -> dict[str, Any]:
    record = store.study(name)
    candidates = store.candidates(record)
    outcomes: dict[str, int] = {}
    for candidate in candidates:
        outcomes[candidate.outcome] = outcomes.get(candidate.outcome, 0) + 1
    return {
        "study": name,
        "architectures": len(candidates),
        "outcomes": outcomes,
        "target": store.target(record.target_id).describe(),
        "target_id": record.target_id,
        "created_at": record.created_at,
    }
