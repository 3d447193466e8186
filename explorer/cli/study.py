"""Commands about studies: `search`, `pareto`, `studies`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli import console, options
from explorer.errors import StoreError, UserError
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from explorer.evaluate import Evaluator, Plan
    from explorer.records import Candidate, StudyRecord, Target
    from explorer.report import Findings
    from explorer.space import Space
    from explorer.store import Store


def search(
    space: Annotated[str, typer.Option("--space", metavar="FILE", help="Space file: a path, or a name that ships.")],
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Different architectures the study holds in the end.")
    ] = 100,
    sampler: Annotated[str, typer.Option("--sampler", help="tpe, nsgaii or random.")] = "tpe",
    seed: options.Seed = 0,
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Default: made from space and setting.")
    ] = None,
    storage: options.Storage = DEFAULT_STORAGE,
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "fp32",
    batch: options.Batch = 1,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Pixels per side, instead of the base's.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option("--max-latency", metavar="MS", help="Train nothing slower.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data", help="contours, fashion-mnist, cifar10, cifar100, or a folder of idx files or class folders."
        ),
    ] = "contours",
    data_root: options.DataRoot = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Proxy training: proxy, quick or a .yaml file.")] = "proxy",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of the recipe's.")] = None,
    rebuilds: options.Rebuilds = 1,
    deadline: options.Deadline = 900,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and an estimate of the time, then stop.")
    ] = False,
    log_file: Annotated[Path | None, typer.Option("--log-file", metavar="FILE", help="Also log to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
) -> None:
    """Search a space: measure latency, train proxies, keep the front. The same command goes on where it stopped."""
    from explorer.evaluate import Evaluator, Plan
    from explorer.latency import resolve, sees_gpu
    from explorer.space import Space
    from explorer.training.data import describe
    from explorer.training.recipe import load_recipe

    options.check_max_latency(max_latency)
    loaded = Space.load(space, image_size=image_size)
    proxy_recipe = load_recipe(recipe, epochs=epochs)
    info = describe(data, options.data_root(data_root))
    target, why = resolve(
        backend,
        device=device,
        precision=options.precision_of(precision),
        batch=batch,
        image_size=loaded.base.image_size,
    )
    plan = Plan(target, loaded.proxy_scale, proxy_recipe, info, seed, max_latency, "cuda" if sees_gpu() else "cpu")
    _tell_plan(loaded, plan, why, trials, sampler, study, storage, as_json=as_json and dry_run)
    if dry_run:
        return
    if log_file is not None:
        _log_to(log_file)
    evaluator = Evaluator(plan, rebuilds=rebuilds, deadline_s=deadline, cache_root=options.cache_root())
    with evaluator:
        _run(loaded, evaluator, trials, sampler, study, storage, as_json=as_json)


def _run(
    space: Space, evaluator: Evaluator, trials: int, sampler: str, study: str | None, storage: str, *, as_json: bool
) -> None:
    from explorer.cli.progress import shown
    from explorer.search import run
    from explorer.store import Store

    # What may be wrong with the data shows before a database is made.
    evaluator.prepare(space.base)
    store = Store.open(storage, create=True)
    try:
        with shown(as_json=as_json) as show:
            record = run(space, evaluator, store, trials=trials, sampler=sampler, study=study, on_progress=show)
        if not as_json:
            from explorer.report import measuring_text, to_table

            found = _findings(store, [record], evaluator.plan.max_latency_ms)
            console.table(to_table(found.front, title=f"front of {len(found.candidates)} architectures"))
            console.document(measuring_text(found.measuring))
    finally:
        store.close()


def _tell_plan(
    space: Space, plan: Plan, why: str, trials: int, sampler: str, study: str | None, storage: str, *, as_json: bool
) -> None:
    """The size of the space, the plan and an estimate of the time."""
    from explorer.cli.progress import duration
    from explorer.search import check_run, study_name
    from explorer.search.estimate import estimate
    from explorer.store import Store, exists

    name = study or study_name(space, plan)
    store = Store.open(storage) if exists(storage) else None
    check_run(space, plan, store, trials=trials, sampler=sampler, study=study)
    known = len(store.candidates(store.study(name))) if store and name in [s.name for s in store.studies()] else 0
    num_asked = min(trials, space.architectures)
    cost = estimate(space, plan, store, max(0, num_asked - known))
    if store:
        store.close()
    content: dict[str, Any] = {
        "space": space.name,
        "raw_points": space.raw_points,
        "architectures": space.architectures,
        "study": name,
        "trials": num_asked,
        "trials_done": known,
        "sampler": sampler,
        "target": plan.target.describe(),
        "recipe": plan.recipe.id,
        "epochs": plan.recipe.epochs,
        "data": plan.data.spec,
        "seed": plan.seed,
        "max_latency_ms": plan.max_latency_ms,
        "train_device": plan.train_device,
        "seconds": cost.total_s,
        "seconds_basis": cost.basis,
    }
    if as_json:
        console.json_document(content)
        return
    limit = "" if plan.max_latency_ms is None else f", nothing trained over {plan.max_latency_ms:g} ms"
    console.note(
        f"space    {space.name}: {space.raw_points:,} raw points, {space.architectures:,} different architectures"
    )
    console.note(f"study    {name} in {storage}: {known} of {num_asked} architectures done")
    console.note(f"sampler  {sampler}, seed {plan.seed}")
    console.note(f"latency  {plan.target.describe()}{limit}")
    console.note(f"         {why}")
    console.note(
        f"accuracy proxies like {plan.proxy(space.base).name}: {plan.recipe.epochs} epochs of {plan.data.spec} on "
        f"{plan.train_device}"
    )
    console.note(
        f"time     about {duration(cost.total_s)}: {duration(cost.latency_s)} a latency, {duration(cost.train_s)} a training "
        f"({cost.basis})"
    )


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
        found = _findings(store, records, max_latency)
    finally:
        store.close()
    match output:
        case "json":
            console.json_document(found.to_dict())
        case "csv":
            console.document(report.to_csv(found.front))
        case "md":
            console.document(report.to_markdown(found.front))
        case _:
            console.document(f"{found.study}\n{found.target}")
            console.table(report.to_table(found.front, title=f"front of {len(found.candidates)} architectures"))
            measured = [row for row in found.references if row["latency_ms"] is not None]
            if measured:
                console.table(report.to_table(measured, title="known networks"))
            console.document(report.measuring_text(found.measuring))
    for row in found.left_out:
        console.note(f"not on the front: {row['name']}: its latency is invalid: {row['invalid']}")
    if plot is not None:
        report.plot(found, plot)
        console.note(f"plot: {plot}")


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


def _findings(store: Store, records: list[StudyRecord], max_latency_ms: float | None) -> Findings:
    """What comparable studies found together; compared with the base of the first."""
    from explorer.report import findings

    first = records[0]
    candidates: dict[str, Candidate] = {}
    for candidate in (c for record in records for c in store.candidates(record)):
        known = candidates.get(candidate.arch.id)
        if known is None or (known.outcome != "complete" and candidate.outcome == "complete"):
            candidates[candidate.arch.id] = candidate
    return findings(
        " + ".join(record.name for record in records),
        store.target(first.target_id).describe(),
        list(candidates.values()),
        base=store.arch(first.base_id),
        base_latency=store.latency(first.base_id, first.target_id),
        max_latency_ms=max_latency_ms,
    )


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
    found = _findings(store, [record], None)
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


def _log_to(path: Path) -> None:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--log-file: {path}: cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    library = logging.getLogger("explorer")
    library.addHandler(handler)
    library.setLevel(min(library.level or logging.INFO, logging.INFO))
