"""One run of one study: the coordinator that asks, hands jobs to a runner, decides what goes on and keeps the study.

One process decides, whatever the number of workers: no step is given to two of them, and the sampler knows of every
result. An architecture is in the study before its work begins, as `pending`, so that a killed search finds what it had
asked for and takes that up first.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from explorer.arch import Arch
from explorer.errors import TrialError
from explorer.evaluate import Plan, Step, keep_failure
from explorer.records import Candidate, Epoch, FailureKind, StudyRecord, latency_key
from explorer.search.budget import Budget
from explorer.search.fronts import StudyFront
from explorer.search.ladder import Ladder
from explorer.search.sampling import Proposer
from explorer.search.trials import Trials, is_settled
from explorer.search.workers import Done, Event, Job, Runner
from explorer.space import Space
from explorer.store import Store

logger = logging.getLogger(__name__)

ProgressKind = Literal["start", "step", "detail", "epoch", "trial", "end", "interrupted"]


@dataclass(frozen=True)
class Progress:
    """What a search reports. `trial` events carry the candidate, `step`, `detail` and `epoch` events the architecture in work.

    `message`: of `detail`, what a measurement is doing; of `start` and `end`, what a reader should know.

    `num_done` of `num_asked` architectures are in the study; `front` holds the ids on the front; `seconds_left` is None
    until something has been timed.
    """

    kind: ProgressKind
    study: str
    num_done: int
    num_asked: int
    arch: Arch | None = None
    step: Step | None = None
    epoch: Epoch | None = None
    candidate: Candidate | None = None
    best_accuracy: float | None = None
    best_latency_ms: float | None = None
    front: tuple[str, ...] = ()
    hypervolume: float | None = None
    seconds_left: float | None = None
    message: str = ""


class Loop:
    """Evaluates architectures until the budget is spent or the space used up."""

    def __init__(
        self,
        space: Space,
        plan: Plan,
        store: Store,
        record: StudyRecord,
        runner: Runner,
        budget: Budget,
        *,
        sampler: str,
        num_seeds: int,
        ladder: Ladder | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.space, self.plan, self.store, self.record, self.runner = space, plan, store, record, runner
        self.budget, self.num_asked, self.on_progress = budget, min(budget.trials, space.architectures), on_progress
        self.seeds = tuple(range(plan.seed, plan.seed + num_seeds))
        self.ladder = ladder
        self.candidates = {candidate.arch.id: _slim(candidate) for candidate in store.candidates(record)}
        self.num_done = sum(candidate.outcome != "pending" for candidate in self.candidates.values())
        self.spent_epochs = sum(candidate.spent_epochs for candidate in self.candidates.values())
        self.proposer = Proposer(
            space,
            sampler,
            plan.seed,
            [c for c in self.candidates.values() if not self.is_open(c)],
            plan.max_latency_ms,
            measured=[row for row in store.measured(plan.target.id) if row[0].id not in self.candidates],
        )
        self.trials = Trials(store, record.name, space, self.proposer.told)
        self.front = StudyFront(store, record)
        self.known = [arch for arch in space.known_networks() if space.holds(arch)]
        self.known_ids = {arch.id for arch in self.known}
        self.queue: deque[Arch] = deque()
        self.retries: deque[Arch] = deque()
        self.in_work: dict[str, Job] = {}
        self.steps: dict[str, Step] = {}
        self.started_at = time.monotonic()
        self.timed: tuple[int, float] = (0, 0.0)  # jobs that did something, and their seconds
        self.why = ""

    def run(self) -> None:
        """Goes on until nothing is to be done. KeyboardInterrupt goes through; everything finished is kept."""
        self.front.rebuild(self.candidates.values(), self.num_done)
        self.report("start", message=self.first_words())
        try:
            self.open_queue(self.trials.catch_up(self.candidates))
            while self.start_what_may() or self.in_work:
                done = self.runner.wait(self.on_event)
                if done is not None:
                    self.finish(done)
            for candidate in self.candidates.values():
                if candidate.outcome == "stopped" and candidate.arch.id not in self.trials.there:
                    self.trials.add(candidate)
        except KeyboardInterrupt:
            self.report("interrupted")
            raise
        finally:
            self.trials.close()
        self.report("end", message="; ".join(self.last_words()))

    # -- what is done next ---------------------------------------------------------------------------------------------

    def open_queue(self, unfinished: list[Arch]) -> None:
        """What comes before the sampler's proposals: work in flight when the search ended, then the known networks."""
        if not self.space.holds(self.space.base):
            self.queue.append(self.space.base)
        reopened = [candidate.arch for candidate in self.candidates.values() if self.is_open(candidate)]
        new = [arch for arch in (*unfinished, *self.known) if arch.id not in self.candidates]
        self.queue.extend({arch.id: arch for arch in (*reopened, *new)}.values())
        for arch in self.queue:
            self.proposer.expect(arch)
        for candidate in self.candidates.values():
            self.climb(candidate)

    def is_open(self, candidate: Candidate) -> bool:
        """Whether a member is to be evaluated again: unfinished work, a limit that rose, a latency or failure of a bad moment,
        more seeds than it has, or a whole training where there is no ladder any more.
        """
        limit, latency_ms = self.plan.max_latency_ms, candidate.latency_ms
        match candidate.outcome:
            case "pending":
                return True
            case "failed":
                return candidate.failure is not None and candidate.failure.is_passing
            case "gated":
                return limit is None or latency_ms is None or latency_ms <= limit
            case "stopped":
                return self.ladder is None
            case _:
                is_invalid = candidate.latency is not None and bool(candidate.latency.invalid)
                return is_invalid or len(candidate.scores) < len(self.seeds)

    def start_what_may(self) -> bool:
        """Fills the runner; whether anything was started."""
        is_any = False
        while len(self.in_work) < self.runner.capacity and (job := self.next_job()) is not None:
            if job.arch.id not in self.candidates and self.space.holds(job.arch):
                pending = Candidate(job.arch, "pending")
                self.store.add_member(self.record.name, pending, self.plan.score_key(job.arch))
                self.candidates[job.arch.id] = pending
            self.in_work[job.arch.id] = job
            self.runner.submit(job)
            is_any = True
        return is_any

    def next_job(self) -> Job | None:
        """What should be begun now; None where nothing, or nothing yet."""
        seconds = self.timed[1] / self.timed[0] if self.timed[0] else 0.0
        hours = (time.monotonic() - self.started_at) / 3600
        why = self.budget.spent(hours=hours, next_hours=seconds / 3600, epochs=self.spent_epochs)
        if why is not None:
            self.why = why
            return None
        while self.queue:
            arch = self.queue[0]
            if self.trains_the_same(arch):
                return None
            self.queue.popleft()
            if arch.id in self.candidates or len(self.candidates) < self.num_asked or not self.space.holds(arch):
                return self.job(arch)
        if self.ladder is not None and (chosen := self.ladder.next()) is not None:
            return self.continued(*chosen)
        why = self.budget.plateau(self.num_done - self.front.moved_at)
        if why is not None:
            self.why = why
        elif len(self.candidates) < self.num_asked and (arch_ := self.proposer.propose()) is not None:
            if self.trains_the_same(arch_):
                self.queue.append(arch_)
                return None
            return self.job(arch_)
        if self.in_work:
            return None
        if self.retries:
            return self.job(self.retries.popleft())
        if self.ladder is not None and (chosen := self.ladder.next(final=True)) is not None:
            return self.continued(*chosen)
        return None

    def job(self, arch: Arch) -> Job:
        """An architecture's first job; known networks, and those that were trained fully before, go to the top at once."""
        if not self.space.holds(arch):
            return Job(arch, 0, self.seeds[:1])
        before = self.candidates.get(arch.id)
        is_whole = before is not None and before.outcome == "complete"
        if self.ladder is None or is_whole or arch.id in self.known_ids:
            return Job(arch, None, self.seeds)
        return Job(arch, self.ladder.rungs[0], self.seeds if len(self.ladder.rungs) == 1 else self.seeds[:1])

    def continued(self, arch_id: str, epochs: int) -> Job:
        """The job of a candidate that the ladder chose; at the top all seeds are trained."""
        is_top = epochs >= self.plan.recipe.epochs
        return Job(self.candidates[arch_id].arch, epochs, self.seeds if is_top else self.seeds[:1])

    def trains_the_same(self, arch: Arch) -> bool:
        """Whether a job in work trains the very proxy that `arch` would: its score is waited for."""
        if not self.in_work:
            return False
        proxy_id = self.plan.proxy(arch).id
        return any(self.plan.proxy(job.arch).id == proxy_id for job in self.in_work.values())

    # -- what has been done --------------------------------------------------------------------------------------------

    def finish(self, done: Done) -> None:
        """Keeps what became of a job."""
        job = self.in_work.pop(done.job.arch.id)
        arch, step = job.arch, self.steps.pop(job.arch.id, "measuring")
        candidate = done.candidate
        if candidate is None:
            if not isinstance(done.error, TrialError):
                assert done.error is not None
                raise done.error
            candidate = self.crashed(job, step, done.error)
        if not self.space.holds(arch):
            if candidate.failure is not None:
                logger.warning("the base model %s has no latency: %s", arch.name, candidate.failure.message)
            return
        self.accept(candidate, job)
        did_something = candidate.spent_epochs > 0 or candidate.reused == 0
        if did_something:
            self.timed = self.timed[0] + 1, self.timed[1] + done.seconds

    def crashed(self, job: Job, step: Step, error: TrialError) -> Candidate:
        """What becomes of an architecture whose worker died."""
        key = latency_key(job.arch.id, self.plan.target.id)
        if step == "training":
            key = str(self.plan.score_key(job.arch, epochs=job.epochs, seed=job.seeds[0]))
        kind: FailureKind = "out_of_memory" if error.kind == "out_of_memory" else "crash"
        latency = self.store.latency(job.arch.id, self.plan.target.id)
        return Candidate(job.arch, "failed", latency, failure=keep_failure(self.store, job.arch, key, kind, error))

    def accept(self, candidate: Candidate, job: Job) -> None:
        """Takes an evaluated candidate into the study, the sampler's and the ladder's knowledge and the front."""
        arch, before = candidate.arch, self.candidates[candidate.arch.id]
        key = self.plan.score_key(arch, epochs=candidate.epochs or job.epochs or None)
        self.store.add_member(
            self.record.name, candidate, key, spent_epochs=candidate.spent_epochs, spent_s=candidate.spent_s
        )
        self.spent_epochs += candidate.spent_epochs
        self.num_done += before.outcome == "pending"
        kept = _slim(candidate)
        self.candidates[arch.id] = replace(
            kept,
            spent_epochs=before.spent_epochs + kept.spent_epochs,
            spent_s=before.spent_s + kept.spent_s,
        )
        self.proposer.learn(kept)
        if candidate.failure is not None and candidate.failure.is_passing:
            self.retries.append(arch)
        self.climb(self.candidates[arch.id])
        if is_settled(candidate):
            self.trials.add(candidate)
        if before.may_stand_on_front:
            self.front.rebuild(self.candidates.values(), self.num_done)
        else:
            self.front.add(candidate, self.num_done)
        self.report("trial", arch=arch, candidate=candidate)

    def climb(self, candidate: Candidate) -> None:
        """Tells the ladder where a candidate stands."""
        if self.ladder is None:
            return
        arch_id = candidate.arch.id
        if candidate.outcome in ("stopped", "complete") and candidate.scores:
            first = candidate.scores[0]
            curve = {row.epoch: row.accuracy for row in first.curve if row.accuracy is not None}
            free = max(0, first.epochs - candidate.spent_epochs)  # trained by other studies
            self.ladder.add(
                arch_id, first.epochs, first.accuracy, candidate.latency_ms or 0.0, curve=curve, free_epochs=free
            )
        elif candidate.outcome == "failed" and candidate.failure is not None and candidate.failure.is_passing:
            self.ladder.give_back(arch_id)
        elif candidate.outcome in ("failed", "gated"):
            self.ladder.forget(arch_id)

    # -- what is told --------------------------------------------------------------------------------------------------

    def on_event(self, arch: Arch, event: Event) -> None:
        """Passes on what a job is doing."""
        if isinstance(event, Epoch):
            self.report("epoch", arch=arch, step="training", epoch=event)
        elif event in ("measuring", "training"):
            step = cast(Step, event)
            self.steps[arch.id] = step
            self.report("step", arch=arch, step=step)
        else:
            self.report("detail", arch=arch, step="measuring", message=event)

    def first_words(self) -> str:
        """How many facts of this space are in the store already, of architectures that are not in the study."""
        others = [a for a, _ in self.store.measured(self.plan.target.id) if a.id not in self.candidates]
        measured = [arch for arch in others if self.space.holds(arch)]
        if not measured:
            return ""
        plan = self.plan
        scored = self.store.scored(plan.recipe.id, plan.data.id, plan.seed, plan.recipe.epochs)
        trained = sum(plan.proxy(arch).id in scored for arch in measured)
        return f"in the store already, and used: {len(measured)} latencies and {trained} trainings of this space"

    def last_words(self) -> list[str]:
        """What a reader should know in the end."""
        words = []
        if self.num_done >= self.space.architectures:
            words.append("every architecture of the space has been evaluated")
        elif self.why:
            words.append(self.why)
        stopped = sum(candidate.outcome == "stopped" for candidate in self.candidates.values())
        if stopped:
            words.append(f"{stopped} were stopped by the ladder after fewer epochs and are not on the front")
        invalid = [c.latency.invalid for c in self.candidates.values() if c.latency is not None and c.latency.invalid]
        if invalid:
            words.append(
                f"invalid and not on the front: {len(invalid)} latenc{'y' if len(invalid) == 1 else 'ies'} (the last: "
                f"{invalid[-1]}); the same command measures them again"
            )
        if self.proposer.predictor is not None:
            words.append(f"latencies predicted by {self.proposer.predictor.describe()}")
        return words

    def report(self, kind: ProgressKind, **details: Any) -> None:
        """Tells where the search stands."""
        left = max(0, self.num_asked - self.num_done) / self.runner.capacity
        seconds_left = left * self.timed[1] / self.timed[0] if self.timed[0] else None
        progress = Progress(
            kind=kind,
            study=self.record.name,
            num_done=self.num_done,
            num_asked=self.num_asked,
            best_accuracy=self.front.best_accuracy,
            best_latency_ms=self.front.best_latency_ms,
            front=self.front.ids,
            hypervolume=self.front.hypervolume,
            seconds_left=seconds_left,
        )
        self.on_progress(replace(progress, **details))


def _slim(candidate: Candidate) -> Candidate:
    """Without what only the store needs: a search holds thousands."""
    latency = candidate.latency
    if latency is not None:
        latency = replace(latency, environment={}, window_medians_ms=(), remarks=())
    scores = tuple(replace(score, environment={}) for score in candidate.scores)
    return replace(candidate, latency=latency, scores=scores)
