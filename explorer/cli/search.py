"""The command `search`: options to a plan, who works and what is shown."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli import console, options
from explorer.errors import UserError
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from explorer.evaluate import Evaluator, Plan
    from explorer.evaluate.table import Table
    from explorer.space import Space

#: What says how to measure and train, and is nothing to a recorded table.
_LIVE = (
    "backend", "device", "precision", "batch", "data", "data_root", "recipe", "epochs", "rebuilds", "deadline", "train_parallel",
    "train_threads",
)  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """What a search was asked for beside the plan; fields up to `patience` are arguments of `explorer.search.run`."""

    trials: int
    sampler: str
    study: str | None
    seeds: int
    eta: float | None
    max_hours: float | None
    epochs_budget: int | None
    patience: int | None
    storage: str
    workers: int
    train_parallel: int
    train_threads: int | None

    @property
    def runners(self) -> int:
        """Processes that evaluate."""
        return self.workers * self.train_parallel

    def run_options(self) -> dict[str, Any]:
        """Arguments of `explorer.search.run`."""
        others = {"storage", "workers", "train_parallel", "train_threads"}
        return {name: value for name, value in asdict(self).items() if name not in others}


def search(
    context: typer.Context,
    space: Annotated[str, typer.Option("--space", metavar="FILE", help="Space file: a path, or a name that ships.")],
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Different architectures the study holds in the end.")
    ] = 100,
    sampler: Annotated[
        str,
        typer.Option("--sampler", help="tpe, nsgaii, nsgaiii, gp, qmc, random or brute (the whole space in order)."),
    ] = "tpe",
    seed: options.Seed = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Trainings of every candidate.")] = 1,
    ladder: Annotated[
        float | None,
        typer.Option(
            "--ladder",
            metavar="ETA",
            min=1.5,
            max=100,
            help="Train on only the best 1/ETA from rung to rung of epochs; 3 is what was measured to lose least.",
        ),
    ] = None,
    max_hours: Annotated[float | None, typer.Option("--max-hours", metavar="H", help="Stop this run by then.")] = None,
    epochs_budget: Annotated[
        int | None, typer.Option("--epochs-budget", metavar="N", min=1, help="Stop when the study has trained so many.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option("--patience", metavar="K", min=1, help="Stop when the hypervolume has not moved for K of them."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option("--workers", min=1, max=256, help="Devices of this machine, or parts of it, that share the work."),
    ] = 1,
    train_parallel: options.TrainParallel = 1,
    train_threads: options.TrainThreads = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", metavar="FILE.csv", help="Answer from a recorded table; nothing is measured or trained."
        ),
    ] = None,
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
            "--data",
            help="silhouettes, contours, fashion-mnist, cifar10, cifar100, hf:NAME, or a folder of idx files or class folders.",
        ),
    ] = "silhouettes",
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
    from explorer.space import Space

    options.check_max_latency(max_latency)
    asked = _Asked(
        trials, sampler, study, seeds, ladder, max_hours, epochs_budget, patience, storage, workers, train_parallel,
        train_threads,
    )  # fmt: skip
    loaded = Space.load(space, image_size=image_size)
    recorded = None if table is None else _read_table(context, table, loaded, seeds)
    if recorded is None:
        plan, why = _live_plan(
            loaded,
            backend=backend,
            device=device,
            precision=precision,
            batch=batch,
            data=data,
            data_root=data_root,
            recipe=recipe,
            epochs=epochs,
            seed=seed,
            max_latency=max_latency,
            eta=ladder,
        )
        plan = replace(plan, train_threads=_train_threads(asked, plan))
    else:
        plan, why = _table_plan(loaded, recorded, seed, max_latency, ladder), "nothing is measured: a recorded table"
    _tell_plan(loaded, plan, why, asked, as_json=as_json and dry_run)
    if dry_run:
        return
    if log_file is not None:
        from explorer.cli.progress import log_to

        log_to(log_file)
    settings: dict[str, Any] = {"space": str(space)} | ({} if table is None else {"table": str(table.resolve())})
    live = {"rebuilds": rebuilds, "deadline_s": deadline, "cache_root": options.cache_root()}
    _run(loaded, plan, recorded, live, asked, settings, as_json=as_json)


def _live_plan(
    space: Space,
    *,
    backend: str,
    device: str,
    precision: str,
    batch: int,
    data: str,
    data_root: Path | None,
    recipe: str,
    epochs: int | None,
    seed: int,
    max_latency: float | None,
    eta: float | None,
) -> tuple[Plan, str]:
    """What is measured and trained, and why on this backend."""
    from explorer.evaluate import Plan
    from explorer.latency import resolve, sees_gpu
    from explorer.search.ladder import rungs
    from explorer.training.data import describe
    from explorer.training.recipe import load_recipe

    proxy_recipe = load_recipe(recipe, epochs=epochs)
    info = describe(data, options.data_root(data_root))
    target, why = resolve(
        backend,
        device=device,
        precision=options.precision_of(precision),
        batch=batch,
        image_size=space.base.image_size,
    )
    plan = Plan(
        target,
        space.proxy_scale,
        proxy_recipe,
        info,
        seed,
        max_latency,
        "cuda" if sees_gpu() else "cpu",
        rungs=() if eta is None else rungs(proxy_recipe.epochs, eta),
    )
    return plan, why


def _train_threads(asked: _Asked, plan: Plan) -> int | None:
    """CPU threads of one training: those asked for, or a share where several run on a CPU; None is torch's own choice."""
    from explorer.evaluate.workers import threads_each

    if asked.train_threads is not None or asked.runners == 1 or plan.train_device != "cpu":
        return asked.train_threads
    return threads_each(asked.runners)


def _read_table(context: typer.Context, file: Path, space: Space, seeds: int) -> Table:
    """The table, read and checked; options that it leaves without meaning are refused."""
    from explorer.evaluate.table import read_table

    sources = {name: context.get_parameter_source(name) for name in _LIVE}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        said = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"--table: {file}: {said} cannot be given with it: nothing is measured or trained; leave out")
    if seeds > 1:
        raise UserError(f"--seeds: {seeds}: a table has one accuracy for each architecture; leave --seeds out")
    return read_table(file, space)


def _table_plan(space: Space, table: Table, seed: int, max_latency: float | None, eta: float | None) -> Plan:
    from explorer.evaluate import Plan
    from explorer.evaluate.table import table_data, table_recipe, table_target
    from explorer.search.ladder import rungs

    wanted = () if eta is None else rungs(table.epochs[-1], eta)
    nearest = {min(table.epochs, key=lambda epochs: (abs(epochs - rung), epochs)) for rung in wanted}
    return Plan(
        table_target(table, space.base.image_size),
        None,
        table_recipe(table),
        table_data(table),
        seed,
        max_latency,
        rungs=tuple(sorted(nearest)),
    )


def _evaluator(plan: Plan, table: Table | None, live: dict[str, Any]) -> Evaluator:
    """What a process evaluates with."""
    from explorer.evaluate import Evaluator

    if table is None:
        return Evaluator(plan, **live)
    from explorer.evaluate.table import TableSteps

    return Evaluator(plan, TableSteps(table))


def _prepared(space: Space, plan: Plan, table: Table | None, live: dict[str, Any]) -> Evaluator:
    """What a worker process evaluates with."""
    evaluator = _evaluator(plan, table, live)
    evaluator.prepare(space.base)
    return evaluator


def _run(
    space: Space,
    plan: Plan,
    table: Table | None,
    live: dict[str, Any],
    asked: _Asked,
    settings: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    from explorer.cli.progress import shown
    from explorer.cli.study import findings_of, show_front
    from explorer.evaluate.workers import Workers, devices
    from explorer.search import run
    from explorer.store import Store

    with ExitStack() as stack:
        evaluator = stack.enter_context(_evaluator(plan, table, live))
        places = devices(asked.workers, plan.train_device, asked.train_parallel) if asked.runners > 1 else ()
        # What may be wrong with the data shows before a database is made. The GPUs are the workers'.
        first = evaluator if not places else _evaluator(replace(plan, train_device="cpu"), table, live)
        first.prepare(space.base)
        store = Store.open(asked.storage, create=True)
        stack.callback(store.close)
        runner = None
        if places:
            runner = Workers(partial(_prepared, space, plan, table, live), store.url, places)
            stack.callback(runner.close)
        with shown(as_json=as_json) as show:
            record = run(
                space, evaluator, store, runner=runner, settings=settings, on_progress=show, **asked.run_options()
            )
        if not as_json:
            from explorer.report import measuring_text

            found = findings_of(store, [record], plan.max_latency_ms)
            show_front(found)
            console.document(measuring_text(found.measuring))


def _tell_plan(space: Space, plan: Plan, why: str, asked: _Asked, *, as_json: bool) -> None:
    """The size of the space, the plan and an estimate of the time."""
    from explorer.cli.progress import duration
    from explorer.search import Budget, check_run, study_name
    from explorer.search.estimate import estimate
    from explorer.store import Store
    from explorer.store.database import exists, place_of, storage_url

    name = asked.study or study_name(space, plan)
    store = Store.open(asked.storage) if exists(asked.storage) else None
    budget = Budget(asked.trials, asked.max_hours, asked.epochs_budget, asked.patience)
    check_run(
        space,
        plan,
        store,
        budget=budget,
        sampler=asked.sampler,
        study=asked.study,
        seeds=asked.seeds,
        eta=asked.eta,
    )
    members = store.candidates(store.study(name)) if store and name in [s.name for s in store.studies()] else []
    known = sum(candidate.outcome != "pending" for candidate in members)
    num_asked = min(asked.trials, space.architectures)
    cost = estimate(space, plan, store, max(0, num_asked - known), asked.seeds, asked.eta)
    # The processes of one device measure one after another.
    total_s = cost.total_s(measuring=asked.workers if plan.target.device_kind == "cuda" else 1, training=asked.runners)
    if store:
        store.close()
    content: dict[str, Any] = {
        "space": space.name,
        "raw_points": space.raw_points,
        "architectures": space.architectures,
        "study": name,
        "trials": num_asked,
        "trials_done": known,
        "sampler": asked.sampler,
        "target": plan.target.describe(),
        "recipe": plan.recipe.id,
        "epochs": plan.recipe.epochs,
        "rungs": list(plan.rungs),
        "seeds": asked.seeds,
        "workers": asked.workers,
        "train_parallel": asked.train_parallel,
        "train_threads": plan.train_threads,
        "data": plan.data.spec,
        "seed": plan.seed,
        "max_latency_ms": plan.max_latency_ms,
        "train_device": plan.train_device,
        "seconds": total_s,
        "seconds_basis": cost.basis,
    }
    if as_json:
        console.json_document(content)
        return
    limit = "" if plan.max_latency_ms is None else f", nothing trained over {plan.max_latency_ms:g} ms"
    console.note(
        f"space    {space.name}: {space.raw_points:,} raw points, {space.architectures:,} different architectures"
    )
    console.note(
        f"study    {name} in {place_of(storage_url(asked.storage))}: {known} of {num_asked} architectures done"
    )
    console.note(f"sampler  {asked.sampler}, seed {plan.seed}")
    console.note(f"latency  {plan.target.describe()}{limit}")
    console.note(f"         {why}")
    if plan.target.backend != "table":
        rungs = f" (ladder: {', '.join(map(str, plan.rungs))})" if plan.rungs else ""
        seeds = f", {asked.seeds} seeds each" if asked.seeds > 1 else ""
        console.note(
            f"accuracy proxies like {plan.proxy(space.base).name}: {plan.recipe.epochs} epochs{rungs} of {plan.data.spec} on "
            f"{plan.train_device}{seeds}"
        )
        console.note(
            f"time     about {duration(total_s)}: {duration(cost.latency_s)} a latency, {duration(cost.train_s)} a training "
            f"({cost.basis}){_sharing(asked, plan)}"
        )


def _sharing(asked: _Asked, plan: Plan) -> str:
    """How the work is shared, as the end of a line."""
    words = [f"{asked.workers} workers"] if asked.workers > 1 else []
    if asked.train_parallel > 1:
        words.append(f"{asked.train_parallel} trainings at once on {'each' if asked.workers > 1 else 'one device'}")
    if plan.train_threads is not None:
        words.append(f"{plan.train_threads} CPU thread{'s' * (plan.train_threads != 1)} each")
    return "".join(f", {word}" for word in words)
