"""A search with one worker trains in its own process, and may die of a training. Nobody sees that, so what it trains stands in
its study meanwhile; what still stands there at the next start is a training that its process did not survive.
"""

from __future__ import annotations

import logging
from typing import Final

from explorer.arch import Arch
from explorer.errors import StoreError
from explorer.evaluate import Plan, now
from explorer.evaluate.workers import Job
from explorer.records import ScoreKey
from explorer.store import Store

logger = logging.getLogger(__name__)

DIED: Final = "the search's process ended while this was trained: it was killed, memory ran out, or the power went"


class OwnProcess:
    """What this process trains for one study. Where others work (`is_watched`), a death is seen and nothing is noted."""

    def __init__(self, store: Store, study: str, plan: Plan, *, is_watched: bool) -> None:
        self._store, self._study, self._plan, self._is_watched = store, study, plan, is_watched
        self._noted: str | None = None

    def begin(self, job: Job) -> None:
        """A training of a member's job begins."""
        if not self._is_watched and (missing := missing_score(self._store, self._plan, job)) is not None:
            self._store.set_in_work(self._study, job.arch.id, missing)
            self._noted = job.arch.id

    def end(self, arch: Arch) -> None:
        """The training has come to its end, or its state has been kept, from which it goes on: no death is for nothing now."""
        if self._noted == arch.id:
            self.leave()

    def leave(self) -> None:
        """Nothing is being trained, as at the end of a search that can say so."""
        if self._noted is not None:
            try:
                self._store.set_in_work(self._study, self._noted, None)
                self._noted = None
            except StoreError as error:  # a training, or why the search ends, is worth more
                logger.warning("a death may count that is none: %s", error)

    def count_deaths(self) -> None:
        """What the search before was training has failed once more, as if a worker had died of it."""
        for failure in self._store.count_deaths(self._study, DIED, now()):
            logger.warning("%s: %s (attempt %d)", failure.arch_id, failure.message, failure.attempts)


def missing_score(store: Store, plan: Plan, job: Job) -> ScoreKey | None:
    """The key of the score that a job trains for, the first that is missing; None where all are there."""
    keys = (plan.score_key(job.arch, epochs=job.epochs, seed=seed) for seed in job.seeds)
    return next((key for key in keys if store.score(key) is None), None)
