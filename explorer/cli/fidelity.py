"""The command `fidelity`: which proxies are trained, by whom, and what their order says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from explorer.cli import console, options
from explorer.errors import DataError, UserError
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from rich.table import Table

    from explorer.arch import Arch
    from explorer.evaluate import Evaluator, Plan
    from explorer.fidelity import Network, Progress, Report, Truth
    from explorer.fidelity.findings import Section
    from explorer.fidelity.ranking import Ranking
    from explorer.store import Store

logger = logging.getLogger("explorer.fidelity")
_TABLES: Final = "table4,table5,table6"


def fidelity(
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME|FILE", help="Proxy training: proxy, quick or a .yaml file.")
    ] = "proxy",
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of the recipe's.")] = None,
    data: Annotated[str, typer.Option("--data", metavar="SPEC", help="As `search` takes it.")] = "silhouettes",
    data_root: options.DataRoot = None,
    space: Annotated[
        str,
        typer.Option("--space", metavar="FILE", help="Space file: its base and proxy section say how to scale."),
    ] = "swinfree.yaml",
    tables: Annotated[
        str | None,
        typer.Option(
            "--tables", metavar="NAME,...", help=f"Of the Swin-Free paper; default: {_TABLES}, none with --truth."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", metavar="FILE.csv", help="Results of your own: name or arch_id, accuracy, std."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=100, help="Trainings of every proxy.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="The first of the seeds.")] = 0,
    train_parallel: options.TrainParallel = 1,
    train_threads: options.TrainThreads = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing; report what the database holds.")
    ] = False,
    storage: options.Storage = DEFAULT_STORAGE,
    log_file: Annotated[Path | None, typer.Option("--log-file", metavar="FILE", help="Also log to this file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Train the proxies of networks whose order is known, and say how well they rank them. Goes on where it stopped."""
    from explorer import fidelity as library
    from explorer.latency import sees_gpu
    from explorer.space import Space, sizes_of
    from explorer.store import Store
    from explorer.store.database import exists
    from explorer.training.data import describe
    from explorer.training.recipe import load_recipe

    if log_file is not None:
        from explorer.cli.progress import log_to

        log_to(log_file)
    loaded = Space.load(space)
    proxy_recipe = load_recipe(recipe, epochs=epochs)
    store = Store.open(storage) if report_only or exists(storage) else None
    with ExitStack() as stack:
        if store is not None:
            stack.callback(store.close)
        truths = _truths(tables, truth, sizes_of(loaded.base), store)
        info = describe(data, options.data_root(data_root))
        device: Literal["cpu", "cuda"] = "cuda" if sees_gpu() else "cpu"
        plan = library.plan_for(
            proxy_recipe,
            info,
            loaded.proxy_scale,
            seed=seed,
            train_device=device,
            train_threads=_threads(train_threads, train_parallel, device),
        )
        archs, names = _networks(truths)
        library.require_proxies(archs, plan, names)
        _require_difference(truths, plan)
        every_seed = range(seed, seed + seeds)
        if not report_only:
            store = _fill(archs, names, plan, store, every_seed, storage, train_parallel)
            stack.callback(store.close)
        assert store is not None
        found = library.report(truths, plan, store, seeds=every_seed)
        if not found.num_pairs:
            raise UserError(_nothing(found, storage))
        try:
            with console.status() as tell:
                rankers = library.rankers_of(
                    archs, plan, every_seed, lambda done, total: tell(f"ranking {done}/{total}")
                )
        except DataError as error:
            if not report_only:
                raise
            console.note(f"left out, as they need the images: synflow, naswot, grad_norm ({error})")
            rankers = library.counted(archs)
        _show(library.report(truths, plan, store, seeds=every_seed, rankers=rankers), as_json=as_json)


def _threads(asked: int | None, train_parallel: int, device: str) -> int | None:
    """CPU threads of one training; None is torch's own choice."""
    from explorer.evaluate.workers import threads_each

    return asked if asked is not None or train_parallel == 1 or device != "cpu" else threads_each(train_parallel)


def _truths(tables: str | None, file: Path | None, sizes: dict[str, int], store: Store | None) -> list[Truth]:
    """Everything that proxies are to be ranked against."""
    from explorer.fidelity import read_truth, trained_part, truths_of_paper

    text = tables if tables is not None else "" if file is not None else _TABLES
    named = [name.strip() for name in text.split(",") if name.strip()]
    if not named and file is None:
        raise UserError(f"--tables: {text!r} names no table; allowed: {_TABLES}")
    truths = truths_of_paper(named)
    if file is not None:
        own = read_truth(file, sizes=sizes, find=None if store is None else store.arch)
        truths += (*trained_part(own), own)
    return truths


def _networks(truths: Sequence[Truth]) -> tuple[list[Arch], dict[str, str]]:
    """Every network once, and the names under which files know some."""
    archs = {arch.id: arch for truth in truths for arch in truth.archs}
    return list(archs.values()), {arch_id: name for truth in truths for arch_id, name in truth.names.items()}


def _require_difference(truths: Sequence[Truth], plan: Plan) -> None:
    """Raises UserError, before anything is trained, where no pair of known order has two proxies."""
    proxies = {arch.id: plan.proxy(arch).id for truth in truths for arch in truth.archs}
    if all(proxies[pair.better] == proxies[pair.worse] for truth in truths for pair in truth.pairs):
        raise UserError(
            f"fidelity: nothing to rank: of the {len(proxies)} networks no two of known order have different proxies; give some "
            "that differ in more than a proxy leaves out: the width, and depths that depth3_divisor makes equal"
        )


def _prepared(plan: Plan, arch: Arch, cache_root: Path) -> Evaluator:
    """What a worker process trains with."""
    from explorer.evaluate import Evaluator

    evaluator = Evaluator(plan, cache_root=cache_root)
    evaluator.prepare(arch)
    return evaluator


def _fill(
    archs: Sequence[Arch],
    names: dict[str, str],
    plan: Plan,
    store: Store | None,
    seeds: Sequence[int],
    storage: str,
    train_parallel: int,
) -> Store:
    """Trains what is missing; the database, which is made once the data have proved to be readable."""
    from dataclasses import replace

    from explorer.evaluate import Evaluator
    from explorer.evaluate.workers import Here, Runner, Workers, devices
    from explorer.fidelity import run, trainings
    from explorer.store import Store

    num_all = len({plan.proxy(arch).id for arch in archs}) * len(seeds)
    num_open = num_all if store is None else sum(one.is_open for one in trainings(archs, plan, store, seeds))
    console.note(
        f"fidelity: {len(archs)} networks, {num_all} trainings of {plan.recipe.epochs} epochs of {plan.data.spec} on "
        f"{plan.train_device}, {num_all - num_open} of them known"
    )
    if store is not None and not num_open:
        return store
    cache_root = options.cache_root()
    with ExitStack() as stack:
        places = devices(1, plan.train_device, train_parallel) if train_parallel > 1 else ()
        # The GPU is the workers'; what may be wrong with the data shows here.
        first = replace(plan, train_device="cpu") if places else plan
        evaluator = stack.enter_context(Evaluator(first, cache_root=cache_root))
        evaluator.prepare(archs[0])
        store = store or Store.open(storage, create=True)
        runner: Runner = Here(evaluator, store)
        if places:
            runner = Workers(partial(_prepared, plan, archs[0], cache_root), store.url, places)
            stack.callback(runner.close)
        with console.status() as tell:
            run(archs, plan, store, runner, seeds=seeds, on_progress=_shown(tell, names, plan.recipe.epochs))
    return store


def _shown(tell: Callable[[str], None], names: dict[str, str], epochs: int) -> Callable[[Progress], None]:
    """Every training as a line on stderr and in the log, and on a terminal what is being done below them."""

    def show(progress: Progress) -> None:
        name = names.get(progress.arch.id, progress.arch.name)
        match progress.kind:
            case "begun":
                tell(f"training {name}")
            case "epoch" if progress.epoch is not None:
                tell(f"training {name}: epoch {progress.epoch.epoch}/{epochs}")
            case "trained":
                line(progress, f"{name}  accuracy {progress.accuracy:.4f} from seed {progress.seed}")
            case "failed":
                line(progress, f"{name}  {progress.message}")

    def line(progress: Progress, text: str) -> None:
        text = f"[{progress.num_done}/{progress.num_all}] {text}"
        console.note(text)
        logger.info(text)

    return show


def _nothing(report: Report, storage: str) -> str:
    from explorer.store.database import place_of, storage_url

    num_finished = sum(bool(network.scores) for network in report.networks)
    failed = [(n.name, problem) for n in report.networks for problem in n.problems if ": diverged: " not in problem]
    if failed:
        remedy = (
            f"{len(failed)} trainings failed, {failed[0][0]}: {failed[0][1]}; see `swinexplore studies failures --all`, which "
            "with --forget has them tried again"
        )
    else:
        remedy = "run the command without --report-only, or with the recipe, data and seeds that were trained"
    return (
        f"fidelity: nothing to rank: {num_finished} of {len(report.networks)} networks have a finished training of recipe "
        f"{report.plan.recipe.id} on {report.plan.data.spec} from these seeds in {place_of(storage_url(storage))}, and no two of "
        f"them are of known order; {remedy}"
    )


# -- what is shown -----------------------------------------------------------------------------------------------------


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        console.json_document(report.to_json())
        return
    console.table(_network_table(report))
    console.table(_ranker_table(report))
    for section in _widest(report):
        wrong = _wrong_table(report, section)
        if wrong is not None:
            console.table(wrong)
    console.document("\n".join(_sentences(report)))


def _widest(report: Report) -> list[Section]:
    """Of the paper's truths the last, which holds all others, and that of the user's own."""
    whole = [section for section in report.sections if not section.truth.is_part]
    return [s for s in whole if not s.truth.names][-1:] + [s for s in whole if s.truth.names]


def _network_table(report: Report) -> Table:
    from rich.table import Table

    table = Table(title=f"proxies: {report.plan.recipe.epochs} epochs of {report.plan.data.spec}")
    for heading in ("network", "known result", "proxy accuracy", "std", "seeds", "seconds"):
        table.add_column(
            heading, justify="left" if heading in ("network", "known result") else "right", overflow="fold"
        )
    for network in sorted(report.networks, key=_place, reverse=True):
        missing = "" if not network.scores else "diverged"
        table.add_row(
            network.name,
            network.label,
            missing if network.accuracy is None else f"{network.accuracy:.4f}",
            "" if network.accuracy_std is None else f"{network.accuracy_std:.4f}",
            str(len(network.scores)),
            "" if network.seconds is None else f"{network.seconds:.1f}",
        )
    return table


def _place(network: Network) -> float:
    """Orders networks by accuracy, those that diverged below, those without a training last."""
    return network.accuracy if network.accuracy is not None else -1.0 if network.scores else -2.0


def _ranker_table(report: Report) -> Table:
    """Concordances, one column a truth."""
    from rich.table import Table

    from explorer.fidelity import PROXY

    table = Table(title="share of the pairs of known order that are ranked right")
    table.add_column("ranker")
    for section in report.sections:
        heading = f"{section.truth.name}, {section.rankings[PROXY].num_pairs} pairs".replace(", ", "\n")
        table.add_column(heading, justify="right")
    table.add_column("seconds a network\nand seed", justify="right")
    proxies = [section.rankings[PROXY] for section in report.sections]
    table.add_row(PROXY, *(_figure(p.concordance) for p in proxies), _figure(report.cost.training_s, 1))
    table.add_row("  95 % over seeds", *(_range(p.interval) for p in proxies), "")
    for seed in report.sections[0].by_seed:
        alone = (section.by_seed[seed].concordance for section in report.sections)
        table.add_row(f"  seed {seed} alone", *(_figure(concordance) for concordance in alone), "")
    table.add_row("  Kendall tau-b", *(_figure(p.tau_b) for p in proxies), "")
    table.add_row("  95 % over seeds", *(_range(p.tau_b_interval) for p in proxies), "")
    table.add_row("  single comparisons", *(_stated(p) for p in proxies), "", end_section=True)
    for name in report.sections[0].rankings:
        if name != PROXY:
            found = (_of_pairs(section.rankings[name], section.rankings[PROXY]) for section in report.sections)
            table.add_row(name, *found, _figure(report.ranker_seconds.get(name), 1))
    return table


def _figure(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _of_pairs(found: Ranking, proxy: Ranking) -> str:
    return _figure(found.concordance) + f" ({found.num_pairs} pairs)" * (found.num_pairs != proxy.num_pairs)


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _stated(found: Ranking) -> str:
    """`12 of 15`, ties counted half."""
    if found.stated_concordance is None:
        return ""
    return f"{found.stated_concordance * found.num_stated:g} of {found.num_stated}"


def _wrong_table(report: Report, section: Section) -> Table | None:
    """The pairs that the proxies rank wrongly, single comparisons last; None where there are none."""
    from rich.table import Table

    from explorer.fidelity import PROXY

    found = section.rankings[PROXY]
    if not (found.wrong or found.stated_wrong):
        return None
    networks = {network.arch.id: network for network in report.networks}
    table = Table(title=f"{section.truth.name}: pairs ranked wrongly")
    for heading in ("the better network", "known", "accuracy", "the worse network", "known", "accuracy"):
        table.add_column(heading, justify="right" if heading == "accuracy" else "left", overflow="fold")
    for pair in (*found.wrong, *found.stated_wrong):
        better, worse = networks[pair.better], networks[pair.worse]
        table.add_row(
            *(better.name, better.label, _accuracy(pair.better_score)),
            *(worse.name, worse.label, _accuracy(pair.worse_score)),
        )
    return table


def _accuracy(score: float) -> str:
    return f"{score:.4f}" if score >= 0 else "diverged"


def _sentences(report: Report) -> list[str]:
    """What else there is to say, for people."""
    from explorer.fidelity import PROXY

    said = []
    names = {network.arch.id: network for network in report.networks}
    for section in report.sections:
        found = section.rankings[PROXY]
        best = [f"{names[arch_id].name} ({names[arch_id].label})" for arch_id in found.best_ids]
        if best and found.regret is not None:
            said.append(f"{section.truth.name}: ranked first: {', '.join(best)}; {found.regret:g} below the best known")
        if found.inseparable:
            pairs = ", ".join(f"{names[pair.better].name} and {names[pair.worse].name}" for pair in found.inseparable)
            said.append(f"{section.truth.name}: not counted, as their proxies are one network: {pairs}")
    cost, num_seeds = report.cost, len(report.seeds)
    if cost.mean_s is not None and cost.max_s is not None:
        said.append(
            f"cost: {cost.mean_s:.1f} s a configuration, {cost.max_s:.1f} s at most, with {num_seeds} "
            f"seed{'s' * (num_seeds > 1)} of {report.plan.recipe.epochs} epochs, on {'; '.join(cost.where)}"
        )
    if num_seeds == 1:
        said.append("one seed says nothing of how far these figures vary: there is no interval; give --seeds")
    if report.shared:
        said.append("one proxy stands for: " + "; ".join(", ".join(alike) for alike in report.shared))
    diverged = [f"{n.name} (seed {', '.join(map(str, n.diverged_seeds))})" for n in report.networks if n.diverged_seeds]
    said += [f"diverged: {', '.join(diverged)}"] * bool(diverged)
    for network in report.networks:
        said += [f"{network.name}: {problem}" for problem in network.problems if ": diverged: " not in problem]
    missing = [f"{n.name} (seed {', '.join(map(str, n.missing_seeds))})" for n in report.networks if n.missing_seeds]
    said += [f"missing: {', '.join(missing)}"] * bool(missing)
    return said
