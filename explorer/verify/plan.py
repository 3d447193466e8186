"""The plan of a kept study, made again on this machine, and what a verification makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from explorer import latency, pareto
from explorer.arch import ProxyScale
from explorer.document import check
from explorer.errors import BackendMissing, DataError, RecipeError, StoreError, UserError
from explorer.evaluate import Evaluator, Plan
from explorer.latency.cache import default_root
from explorer.records import Candidate, StudyRecord, Target
from explorer.store import Store
from explorer.training.data import describe
from explorer.training.recipe import Recipe

#: Backend of the studies that answer from a recorded table.
TABLE: Final = "table"
#: How much longer than the study's trainings those of a verification are.
TIMES_LONGER: Final = 2


def plan_of(
    record: StudyRecord,
    store: Store,
    *,
    data: str | None = None,
    data_root: Path | None = None,
    measures: bool = True,
) -> Plan:
    """The plan that a kept study evaluates by, on this machine.

    `data` and `data_root`: instead of those that the study keeps. `measures`: whether latencies will be measured. Raises
    UserError where the study answers from a table, where the data are others than the study's, and where latencies would be
    measured in another environment than the study's; what it raises says what to do.
    """
    target = store.target(record.target_id)
    if target.backend == TABLE:
        raise UserError(
            f"study: {record.name!r} answers from the table {record.settings.get('table', '')}: there is nothing to measure or "
            "to train; search the same space without --table, and look at the best of it there"
        )
    recipe = check(store.recipe(record.recipe_id), Recipe, RecipeError, f"study {record.name}: recipe")
    if recipe.id != record.recipe_id:
        raise StoreError(
            f"study: {record.name!r} was trained with recipe {record.recipe_id}, which this swinexplore reads as {recipe.id}; "
            "use the version that made the study"
        )
    spec = data or record.settings.get("data")
    if spec is None:
        raise DataError(f"study: {record.name!r} does not say which data it was trained on; give --data")
    root = data_root or Path(record.settings.get("data_root") or default_root())
    info = describe(spec, root)
    if info.id != record.data_id:
        raise DataError(
            f"data: {spec!r} is {info.id}, but study {record.name!r} was trained on {record.data_id}; give those with --data"
        )
    if measures:
        _require_same_target(record, target)
    scale = record.identity["proxy"]
    return Plan(
        target,
        None if scale is None else ProxyScale(**scale),
        recipe,
        info,
        record.seed,
        train_device="cuda" if latency.sees_gpu() else "cpu",
    )


def _require_same_target(record: StudyRecord, target: Target) -> None:
    """Raises BackendMissing where a latency measured here could not stand beside the study's."""
    instead = "do it on the study's machine, or say --no-latency to train alone"
    try:
        here, _ = latency.resolve(
            target.backend,
            device=target.device_kind,
            precision=target.precision,
            batch=target.batch,
            image_size=target.image_size,
            dynamic_to=target.largest_batch,
        )
    except BackendMissing as error:
        raise BackendMissing(f"{error}; study {record.name!r} was measured with it: {instead}") from None
    differences = target.differences(here)
    if differences:
        said = "; ".join(f"{key}: {there!r} there, {value!r} here" for key, (there, value) in differences.items())
        raise BackendMissing(
            f"study: {record.name!r} was measured in another environment ({said}); latencies of here cannot stand beside those: "
            f"{instead}"
        )


def longer(plan: Plan, *, recipe: Recipe | None = None, epochs: int | None = None) -> Plan:
    """The plan with another recipe, and the epochs given; with neither, twice the epochs. The schedule is stretched.

    Evaluated on the test part, which no search has seen: what was chosen by the held-out part looks better there than it is.
    """
    chosen = recipe or plan.recipe
    if epochs is None:
        epochs = chosen.epochs if recipe is not None else TIMES_LONGER * chosen.epochs
    chosen = chosen.model_copy(update={"epochs": epochs})
    return replace(plan, recipe=chosen, rungs=(), max_latency_ms=None, part="test")


def front_of(record: StudyRecord, store: Store, max_latency_ms: float | None = None) -> list[Candidate]:
    """The candidates on the study's front, by rising latency. Raises UserError where there are none."""
    standing = [candidate for candidate in store.candidates(record) if candidate.may_stand_on_front]
    fast = [c for c in standing if max_latency_ms is None or (c.latency_ms or 0.0) <= max_latency_ms]
    if not fast:
        limit = "" if max_latency_ms is None or not standing else f" of at most {max_latency_ms:g} ms"
        remedy = (
            "give a higher --max-latency"
            if limit
            else "run `swinexplore search` until one is complete and its latency valid"
        )
        raise UserError(f"study: {record.name!r} has no front{limit}: there is nothing to verify; {remedy}")
    return [
        fast[index] for index in pareto.front([c.accuracy or 0.0 for c in fast], [c.latency_ms or 0.0 for c in fast])
    ]


def prepare_beside(evaluator: Evaluator, store: Store, record: StudyRecord) -> None:
    """Prepares for the study's space: its base is timed beside every network, its drift counted from the study's latency."""
    evaluator.prepare(store.arch(record.base_id))
    base = store.latency(record.base_id, record.target_id)
    if base is not None and not base.invalid:
        evaluator.steps.baseline_ms = base.latency_ms
