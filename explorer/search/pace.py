"""What the steps of a running search take: for the time that is left, and for what may still be begun."""

from __future__ import annotations

from explorer.evaluate import Plan
from explorer.evaluate.workers import Job
from explorer.records import Candidate


class Pace:
    """Mean seconds of a latency and of an epoch, from `latency_s` and `epoch_s` of earlier searches and all jobs since."""

    def __init__(self, plan: Plan, latency_s: float | None, epoch_s: float | None) -> None:
        self._plan = plan
        self._latency = (0, 0.0) if latency_s is None else (1, latency_s)  # an earlier mean counts as one observation
        self._epochs = (0, 0.0) if epoch_s is None else (1, epoch_s)
        self._archs, self._seconds = 0, 0.0

    @property
    def seconds_each(self) -> float | None:
        """Mean seconds of all jobs for one more architecture; None until something has been done."""
        return self._seconds / self._archs if self._archs else None

    def learn(self, candidate: Candidate, seconds: float) -> None:
        """Takes in what a job took."""
        if not candidate.spent_epochs and candidate.reused:
            return
        train_s = 0.0
        for score in candidate.scores[-1:] if candidate.spent_epochs else ():
            train_s = score.train_s / score.epochs * candidate.spent_epochs
            self._epochs = self._epochs[0] + candidate.spent_epochs, self._epochs[1] + train_s
        is_new = candidate.reused == 0 or not candidate.scores
        # How much of a failed training's time the latency before it took is not known.
        is_timed = candidate.outcome != "failed" and candidate.latency is not None
        if is_new and is_timed:
            self._latency = self._latency[0] + 1, self._latency[1] + max(0.0, seconds - train_s)
        self._archs += is_new
        self._seconds += seconds

    def seconds_of(self, job: Job, known: Candidate | None) -> float:
        """What a job is expected to take: a latency where none is known, and its epochs; 0 for what was never timed."""
        has_latency = known is not None and known.latency is not None
        latency_s = 0.0 if has_latency or not self._latency[0] else self._latency[1] / self._latency[0]
        upto = self._plan.recipe.epochs if job.epochs is None else job.epochs
        done = 0 if known is None else sum(min(upto, score.epochs) for score in known.scores)
        epochs = max(0, upto * len(job.seeds) - done)
        return latency_s + (epochs * self._epochs[1] / self._epochs[0] if self._epochs[0] else 0.0)
