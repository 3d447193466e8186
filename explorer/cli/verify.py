"""Commands that look once more at what a study found: `verify`, `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.arch import Arch, parse_name, sizes_in
from explorer.cli import console, options
from explorer.errors import UserError
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from rich.table import Table

    from explorer.records import Candidate, StudyRecord
    from explorer.verify import Progress, Ranked, Verified

Data = Annotated[
    str | None, typer.Option("--data", help="Where the study's data are now; default: as the study has it.")
]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Train only: for a study measured on another machine.")]


def verify(
    study: options.Study = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Trainings of every candidate.")] = 3,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Of each training; default: twice the study's, or the recipe's."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Instead of the study's: proxy, quick or a .yaml file.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option("--max-latency", metavar="MS", help="Only what is not slower in the study.")
    ] = None,
    no_latency: NoLatency = False,
    again: Annotated[bool, typer.Option("--again", help="Measure latencies that were verified already anew.")] = False,
    rebuilds: options.Rebuilds = 1,
    deadline: options.Deadline = 900,
    storage: options.Storage = DEFAULT_STORAGE,
    data: Data = None,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
) -> None:
    """Measure a study's front again and train it longer, from several seeds, evaluated on the test part: does its order hold?

    Goes on where it stopped.
    """
    from explorer import verify as library
    from explorer.evaluate import Evaluator
    from explorer.store import Store
    from explorer.training.recipe import load_recipe

    options.check_max_latency(max_latency)
    if again and no_latency:
        raise UserError("--again: measures latencies anew, and --no-latency measures none; give one of them")
    chosen = None if recipe is None else load_recipe(recipe)
    store = Store.open(storage)
    try:
        record = store.study(study)
        plan = library.plan_of(record, store, data=data, data_root=data_root, measures=not no_latency)
        plan = library.longer(plan, recipe=chosen, epochs=epochs)
        members = len(library.front_of(record, store, max_latency))
        console.note(
            f"verifying {members} of study {record.name}: {seeds} x {plan.recipe.epochs} epochs of {plan.data.spec} on "
            f"{plan.train_device}, evaluated on the {plan.part} part"
            f"{'' if no_latency else f', latency on {plan.target.describe()}'}"
        )
        evaluator = Evaluator(plan, rebuilds=rebuilds, deadline_s=deadline, cache_root=options.cache_root())
        with evaluator, console.status() as tell:
            verified = library.verify(
                record,
                evaluator,
                store,
                num_seeds=seeds,
                max_latency_ms=max_latency,
                measures=not no_latency,
                again=again,
                on_progress=_shown(tell, plan.recipe.epochs),
            )
    finally:
        store.close()
    if as_json:
        console.json_document(_content(verified))
    else:
        console.document(f"{verified.study}\n{verified.target.describe()}")
        console.table(_table(verified))
        console.document("\n".join(verified.sentences()))
    if verified.failed:
        raise typer.Exit(1)


def _shown(tell: Callable[[str], None], epochs: int) -> Callable[[Progress], None]:
    """Every result as a line on stderr, and on a terminal what is being done below them."""

    def show(progress: Progress) -> None:
        count, name = f"[{progress.num_done}/{progress.num_all}]", progress.arch.name
        seed = "" if progress.seed is None else f" from seed {progress.seed}"
        known = "  (known)" if progress.is_known else ""
        match progress.kind:
            case "measured":
                console.note(f"{count} {name}  {progress.value:.3f} ms{known}")
            case "trained":
                console.note(f"{count} {name}  accuracy {progress.value:.4f}{seed}{known}")
            case "failed":
                console.note(f"{count} {name}  failed: {progress.message}")
            case "epoch" if progress.epoch is not None:
                tell(f"training {name}{seed}: epoch {progress.epoch.epoch}/{epochs}")
            case _:
                tell(f"{progress.step} {name}{seed}{': ' * bool(progress.message)}{progress.message}")

    return show


def _content(verified: Verified) -> dict[str, Any]:
    """The documented JSON of `swinexplore verify --json`."""
    return {
        "study": verified.study,
        "target": verified.target.describe(),
        "recipe": verified.recipe_id,
        "epochs": verified.epochs,
        "study_epochs": verified.study_epochs,
        "part": verified.part,
        "seeds": list(verified.seeds),
        "tau_b": verified.tau_b,
        "left_front": [one.found.arch.id for one in verified.left_front],
        "failed": [one.found.arch.id for one in verified.failed],
        "summary": verified.sentences(),
        "candidates": [_row(one) for one in verified.candidates],
    }


def _row(one: Ranked) -> dict[str, Any]:
    from explorer.complexity import arch_facts

    return {
        **arch_facts(one.found.arch),
        "accuracy": one.found.accuracy,
        "rank": one.rank,
        "verified_accuracy": one.verified_accuracy,
        "verified_std": one.verified_std,
        "accuracies": list(one.found.accuracies),
        "verified_rank": one.verified_rank,
        "latency_ms": one.found.latency_ms,
        "verified_ms": one.found.verified_ms,
        "latency_change": one.latency_change,
        "is_on_front": one.is_on_front,
        "beaten_by": None if one.beaten_by is None else one.beaten_by.id,
        "reason": one.found.problem or None,
    }


def _table(verified: Verified) -> Table:
    from rich.table import Table

    times = f"{len(verified.seeds)} x {verified.epochs} epochs"
    against = f"against {verified.study_epochs}, {verified.part} part"
    table = Table(title=f"front of the study, verified: {times} {against}", title_justify="left")
    for heading in ("name", "accuracy", "rank", "verified", "rank now", "latency_ms", "verified_ms", "change", "front"):
        table.add_column(heading, justify="left" if heading in ("name", "front") else "right", overflow="fold")
    for one in verified.candidates:
        found, mean, spread = one.found, one.verified_accuracy, one.verified_std
        table.add_row(
            found.arch.name,
            f"{found.accuracy:.4f}",
            str(one.rank),
            "" if mean is None else f"{mean:.4f}" + ("" if spread is None else f" ±{spread:.4f}"),
            "" if one.verified_rank is None else str(one.verified_rank),
            f"{found.latency_ms:.3f}",
            "" if found.verified_ms is None else f"{found.verified_ms:.3f}",
            "" if one.latency_change is None else f"{one.latency_change:+.1%}",
            "failed" if found.problem else "stays" if one.is_on_front else "leaves",
        )
    return table


def evaluate(
    name: Annotated[str, typer.Argument(metavar="NAME|ID", help="A preset, a name, or an id from the database.")],
    study: options.Study = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Of the training; default: the study's.")
    ] = None,
    no_latency: NoLatency = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep what is found: a success ends the failure that is kept.")
    ] = False,
    rebuilds: options.Rebuilds = 1,
    deadline: options.Deadline = 900,
    storage: options.Storage = DEFAULT_STORAGE,
    data: Data = None,
    data_root: options.DataRoot = None,
    as_json: options.Json = False,
) -> None:
    """Evaluate one architecture anew as a study would, from its latency to its training; nothing is kept unless --keep.

    This is how a failure is seen again: `swinexplore studies failures` has the command for each.
    """
    from dataclasses import replace

    from explorer import verify as library
    from explorer.store import Store

    store = Store.open(storage)
    try:
        record = store.study(study)
        arch = _arch_like(name, store.arch(record.base_id), storage)
        plan = library.plan_of(record, store, data=data, data_root=data_root, measures=not no_latency)
        plan = plan if seed is None else replace(plan, seed=seed)
        console.note(
            f"evaluating {arch.name} ({arch.id}) as study {record.name}: {plan.recipe.epochs} epochs of {plan.data.spec} on "
            f"{plan.train_device}{'' if no_latency else f', latency on {plan.target.describe()}'}"
        )
        with console.status() as tell:
            candidate = library.evaluate_anew(
                arch,
                record,
                plan,
                store,
                measures=not no_latency,
                rebuilds=rebuilds,
                deadline_s=deadline,
                keep=keep,
                on_step=lambda step: tell(f"{step} {arch.name}"),
                on_epoch=lambda epoch: tell(f"training {arch.name}: epoch {epoch.epoch}/{plan.recipe.epochs}"),
                on_detail=lambda text: tell(f"measuring {arch.name}: {text}"),
            )
    finally:
        store.close()
    if as_json:
        console.json_document(_evaluated(candidate, record, keep=keep))
    elif candidate.outcome == "complete":
        console.document(_line(candidate))
    if candidate.failure is not None:
        failure = candidate.failure
        if not as_json:
            console.error(f"{arch.name}: {failure.step} failed, {failure.kind}: {failure.message}")
        raise typer.Exit(1)


def _arch_like(name: str, base: Arch, storage: str) -> Arch:
    """The architecture; a name that gives no sizes has those of the study's base. Raises UserError where they differ."""
    if name.lower().startswith("a1-") or name.endswith((".yaml", ".yml")):
        arch = options.arch_of(name, storage)
    else:
        sizes = {key: getattr(base, key) for key in ("image_size", "patch_size", "channels", "num_classes")}
        arch = parse_name(name, **{**sizes, **sizes_in(name)})
    if arch.image_size != base.image_size:
        raise UserError(
            f"{arch.name}: takes images of {arch.image_size} pixels, the study's architectures of {base.image_size}; its "
            "latency would say nothing there"
        )
    return arch


def _evaluated(candidate: Candidate, record: StudyRecord, *, keep: bool) -> dict[str, Any]:
    """The documented JSON of `swinexplore evaluate --json`."""
    from explorer.complexity import arch_facts
    from explorer.report import latency_fields

    failure = candidate.failure
    return {
        **arch_facts(candidate.arch),
        "study": record.name,
        "outcome": candidate.outcome,
        "accuracy": candidate.accuracy,
        "epochs": candidate.epochs,
        "scores": [asdict(score) for score in candidate.scores],
        **latency_fields(candidate.latency),
        "seconds": candidate.spent_s,
        "failure": None
        if failure is None
        else {key: getattr(failure, key) for key in ("step", "kind", "message", "diverged_at")},
        "kept": keep,
    }


def _line(candidate: Candidate) -> str:
    words = [candidate.arch.name, f"accuracy {candidate.accuracy:.4f} after {candidate.epochs} epochs"]
    if candidate.latency is not None:
        words.append(f"{candidate.latency.latency_ms:.3f} ms")
        words += [f"INVALID: {candidate.latency.invalid}"] * bool(candidate.latency.invalid)
    return "  ".join(words)
