"""A search with one worker trains in its own process, and may die of a training. Nobody sees that, so what it is at stands in
the database meanwhile; what still stands there at the next start is a training that its process did not survive.
"""

from __future__ import annotations

import logging

from explorer.arch import Arch
from explorer.errors import StoreError, TrialError
from explorer.evaluate import Plan, keep_failure
from explorer.evaluate.workers import Job
from explorer.records import Failure, FailureKind, ScoreKey
from explorer.store import Store

logger = logging.getLogger(__name__)


class OwnProcess:
    """What this process is at, of one study. Where others work (`is_watched`), a death is seen and nothing is noted."""

    def __init__(self, store: Store, study: str, plan: Plan, *, is_watched: bool) -> None:
        self._store, self._study, self._plan, self._is_watched = store, study, plan, is_watched

    def epochs_of(self, job: Job) -> int:
        """What is to be noted of a job in which something may be trained: its epochs; 0 where nothing is."""
        if self._is_watched:
            return 0
        return self._plan.recipe.epochs if job.epochs is None else job.epochs

    def begin(self, job: Job) -> None:
        """Notes the job of a member."""
        if epochs := self.epochs_of(job):
            self._store.begin_work(self._study, job.arch.id, epochs)

    def kept(self, arch: Arch) -> None:
        """The training's state has been kept: no death from here on is for nothing."""
        self._store.end_work(self._study, arch.id)

    def leave(self) -> None:
        """The search ends and can say so: of nothing in work has it died."""
        if not self._is_watched:
            try:
                self._store.end_work(self._study)
            except StoreError as error:  # why the search ends is worth more
                logger.warning("an attempt will count that did not fail: %s", error)

    def count_deaths(self, seeds: tuple[int, ...]) -> None:
        """What stands there from the search before has failed once more, as if a worker had died of it.

        A process that ended before there was a latency was not training yet, one that ended after all scores no more.
        """
        error = TrialError(
            "the search's process ended while this was trained: killed, or memory ran out, or the power went"
        )
        for arch, epochs in self._store.in_work(self._study):
            job = Job(arch, epochs, seeds)
            is_measured = self._store.latency(arch.id, self._plan.target.id) is not None
            if is_measured and any(self._store.score(key) is None for key in _keys(self._plan, job)):
                failed_training(self._store, self._plan, job, "crash", error)
            self._store.end_work(self._study, arch.id)


def failed_training(store: Store, plan: Plan, job: Job, kind: FailureKind, error: TrialError) -> Failure:
    """Keeps the failure of the training that a job was at, the first whose score is missing."""
    keys = _keys(plan, job)
    key = next((key for key in keys if store.score(key) is None), keys[-1])
    return keep_failure(store, job.arch, str(key), kind, error)


def _keys(plan: Plan, job: Job) -> list[ScoreKey]:
    return [plan.score_key(job.arch, epochs=job.epochs, seed=seed) for seed in job.seeds]
