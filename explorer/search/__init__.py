"""The search: proposes architectures, has them evaluated, keeps the study. The only package that imports Optuna.

`loop` runs a study: one process decides, `workers` do. `sampling` proposes, `ladder` says who is trained further, `budget`
when it is enough. The facts and the study's members are the store's; Optuna's tables hold a copy for optuna-dashboard.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import optuna

from explorer.errors import StoreError, UserError
from explorer.evaluate import Evaluator, Plan
from explorer.evaluate.workers import Here, Runner
from explorer.records import StudyRecord, digest
from explorer.search.budget import Budget
from explorer.search.ladder import Ladder, rungs
from explorer.search.loop import Loop
from explorer.search.progress import Progress, ProgressKind
from explorer.search.sampling import SAMPLERS
from explorer.search.trials import is_ours, opened
from explorer.space import Space
from explorer.store import Store
from explorer.store.merge import differences
from explorer.store.schema import MAX_NAME
from explorer.training.data import absolute

__all__ = [
    "SAMPLERS",
    "Budget",
    "Progress",
    "ProgressKind",
    "check_run",
    "delete",
    "describe_identity",
    "run",
    "rungs",
    "study_name",
]


def describe_identity(space: Space, plan: Plan) -> dict[str, Any]:
    """What makes a study this study and no other, as JSON-ready values: space, proxy, target, recipe and data."""
    identity = {"space": {"base": space.base.name, **space.describe()}, **plan.identity()}
    copy: dict[str, Any] = json.loads(json.dumps(identity))
    return copy


def study_name(space: Space, plan: Plan) -> str:
    """The name that a study gets by itself: the same for the same identity, another for another."""
    fingerprint = digest("", describe_identity(space, plan))[1:7]
    return f"{space.name}-{plan.target.backend}-{plan.target.precision}-b{plan.target.batch}-{fingerprint}"


def check_run(
    space: Space,
    plan: Plan,
    store: Store | None,
    *,
    budget: Budget,
    sampler: str,
    study: str | None,
    seeds: int = 1,
    eta: float | None = None,
    settings: dict[str, Any] | None = None,
) -> StudyRecord:
    """The record of the study that `run` would make or take up; `store` is None where there is no database yet.

    Writes nothing. Raises UserError for bad numbers and names, StoreError when the study was made with another identity or
    seed.
    """
    budget.check()
    if seeds < 1:
        raise UserError(f"seeds: {seeds} is not a whole number of at least 1")
    if sampler not in SAMPLERS:
        raise UserError(f"sampler: {sampler!r} is not known; allowed: {', '.join(SAMPLERS)}")
    if eta is not None and len(plan.rungs) < 2:
        raise UserError(
            f"ladder: {eta:g}: a ladder needs two numbers of epochs at least, and there is {plan.recipe.epochs} alone; give more "
            "--epochs (a table: rows after several), or leave --ladder out"
        )
    if study is not None and not 0 < len(study.strip()) <= MAX_NAME:
        raise UserError(f"study: {study!r} is no name; give 1 to {MAX_NAME} characters")
    record = StudyRecord(
        name=study or study_name(space, plan),
        identity=describe_identity(space, plan),
        target_id=plan.target.id,
        recipe_id=plan.recipe.id,
        data_id=plan.data.id,
        base_id=space.base.id,
        seed=plan.seed,
        settings={
            "data": absolute(plan.data.spec),
            "data_root": str(plan.data.root.resolve()),
            "known": [arch.id for arch in space.known_networks() if space.holds(arch)],
            **(settings or {}),
        },
    )
    if store is not None:
        require_same_identity(store, record)
    return record


def run(
    space: Space,
    evaluator: Evaluator,
    store: Store,
    *,
    trials: int,
    sampler: str = "tpe",
    study: str | None = None,
    seeds: int = 1,
    eta: float | None = None,
    max_hours: float | None = None,
    epochs_budget: int | None = None,
    patience: int | None = None,
    runner: Runner | None = None,
    settings: dict[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> StudyRecord:
    """Evaluates architectures until the study holds `trials` different ones, or the whole space, or the budget is spent.

    Takes up an existing study of the same name; raises what `check_run` raises, and DataError before anything is written.
    KeyboardInterrupt ends it cleanly and goes through: everything finished is kept.

    `seeds`: trainings of every candidate. `eta`: that share of the candidates goes on from rung to rung of the plan's ladder
    of epochs (`plan.rungs`); None trains each to the end. `max_hours`, `epochs_budget`, `patience`: as `Budget` has them.
    `runner`: who does the work; this process where there is none. `settings`: kept with a new study.
    """
    plan = evaluator.plan
    budget = Budget(trials, max_hours, epochs_budget, patience)
    record = check_run(
        space, plan, store, budget=budget, sampler=sampler, study=study, seeds=seeds, eta=eta, settings=settings
    )
    ladder = None if eta is None else Ladder(plan.rungs, eta)
    if runner is None:
        evaluator.prepare(space.base)
    with store.alone(record.name):
        _require_not_foreign(store, record.name)
        store.add_study(record, space.base, plan.target, plan.recipe.model_dump())
        Loop(
            space,
            plan,
            store,
            record,
            runner or Here(evaluator, store),
            budget,
            sampler=sampler,
            num_seeds=seeds,
            ladder=ladder,
            on_progress=on_progress,
        ).run()
    return record


def require_same_identity(store: Store, record: StudyRecord) -> None:
    """Raises StoreError that names the differences where a study of that name was made with another identity or seed."""
    known = [study for study in store.studies() if study.name == record.name]
    found = list(differences(known[0].identity, record.identity)) if known else []
    if found:
        raise StoreError(
            f"study: {record.name!r} was made with another setting: {'; '.join(found)}; give another --study, or the "
            "same space, target, recipe and data"
        )
    if known and known[0].seed != record.seed:
        raise StoreError(
            f"study: {record.name!r} was made with seed {known[0].seed}, not {record.seed}; give --seed {known[0].seed}, or "
            "another --study"
        )


def delete(store: Store, name: str) -> None:
    """Forgets a study in Optuna's tables and ours; its facts stay, and so does another program's study of that name.

    Raises StoreError when there is none, or while another process searches it.
    """
    store.study(name)
    with store.alone(name), opened(store) as storage:
        if is_ours(storage, name):
            optuna.delete_study(study_name=name, storage=storage)
        store.delete_study(name)


def _require_not_foreign(store: Store, name: str) -> None:
    """Raises StoreError where Optuna's tables hold a study of this name that is not ours."""
    is_known = name in [study.name for study in store.studies()]
    with opened(store) as storage:
        if name in optuna.get_all_study_names(storage) and not (is_known and is_ours(storage, name)):
            raise StoreError(
                f"study: {name!r} is another program's Optuna study in this database; give another --study"
            )
