"""One architecture evaluated as a study does, with nothing known of it: how a failure is reproduced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from explorer.arch import Arch
from explorer.errors import DeviceLost
from explorer.evaluate import Evaluator, Plan, Step, now
from explorer.records import DEADLINE_S, Candidate, Epoch, Failure, StudyRecord
from explorer.store import Store
from explorer.verify.plan import prepare_beside


def evaluate_anew(
    arch: Arch,
    record: StudyRecord,
    plan: Plan,
    store: Store,
    *,
    measures: bool = True,
    rebuilds: int = 1,
    deadline_s: float = DEADLINE_S,
    keep: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_detail: Callable[[str], None] = lambda text: None,
) -> Candidate:
    """Evaluates `arch` as the study does, whatever is known of it: nothing is taken from the store or the user's cache.

    `measures`: else the proxy is trained alone. `keep`: what is found goes to the store by its rules: a fact that is missing is
    added and ends the failure that stood for it, a failure is added or counts as one more attempt; else nothing is written.
    """
    with TemporaryDirectory(prefix="swinexplore-") as folder:
        root = Path(folder)
        apart = Store.open(str(root / "anew.db"), create=True)
        try:
            with Evaluator(plan, rebuilds=rebuilds, deadline_s=deadline_s, cache_root=root) as evaluator:
                prepare_beside(evaluator, store, record)
                try:
                    candidate = evaluator.evaluate(arch, apart, on_step, on_epoch, on_detail, measures=measures)
                except DeviceLost as error:  # a search ends here, and this is its report
                    candidate = _crashed(arch, plan, apart, error)
        finally:
            apart.close()
    if keep:
        _keep(candidate, plan, store)
    return candidate


def _crashed(arch: Arch, plan: Plan, store: Store, error: DeviceLost) -> Candidate:
    """A candidate whose training took the GPU with it."""
    failure = Failure(arch.id, str(plan.score_key(arch)), "crash", str(error), now())
    return Candidate(arch, "failed", store.latency(arch.id, plan.target.id), failure=failure)


def _keep(candidate: Candidate, plan: Plan, store: Store) -> None:
    if candidate.latency is not None:
        store.add_latency(candidate.arch, plan.target, candidate.latency)
    for score in candidate.scores:
        store.add_score(plan.proxy(candidate.arch), plan.recipe.model_dump(), score)
    if candidate.failure is not None:
        store.add_failure(candidate.arch, candidate.failure)
