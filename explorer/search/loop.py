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
from dataclasses import replace
from typing import Any, Final, cast

from explorer.arch import Arch
from explorer.errors import DeviceLost, TrialError, UserError
from explorer.evaluate import Plan, Step, keep_failure
from explorer.evaluate.workers import KEPT, Done, Event, Job, Runner
from explorer.records import Candidate, Epoch, FailureKind, StudyRecord, latency_key
from explorer.search.budget import Budget
from explorer.search.deaths import OwnProcess, missing_score
from explorer.search.fronts import StudyFront
from explorer.search.kept import slim, without_curves
from explorer.search.ladder import Ladder
from explorer.search.pace import Pace
from explorer.search.progress import Progress, ProgressKind
from explorer.search.sampling import Proposer
from explorer.search.trials import Trials, is_settled
from explorer.space import Space
from explorer.store import Store

logger = logging.getLogger(__name__)

#: Worker processes that die one after the other before their step begins are the machine's fault.
MAX_LOST_STARTS: Final = 8
#: Facts of a larger space are used, and not counted at the start.
MAX_COUNTED: Final = 5_000


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
        self.candidates = {candidate.arch.id: slim(candidate) for candidate in store.candidates(record)}
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
        self.blocked: list[Job] = []  # their proxy is being trained for another architecture
        self.retries: dict[str, Job] = {}
        self.in_work: dict[str, Job] = {}
        self.own_process = OwnProcess(store, record.name, plan, is_watched=runner.capacity > 1)
        self.is_final = False
        self.lost_starts = 0
        self.trained = store.scored(plan.recipe.id, plan.data.id, plan.seed, plan.recipe.epochs)
        self.trained_now = set(self.trained)
        self.steps: dict[str, Step] = {}
        self.started_at = time.monotonic()
        self.pace = Pace(plan, *store.mean_seconds(plan.target.id, plan.recipe.id))
        self.why = ""

    def run(self) -> None:
        """Goes on until nothing is to be done. KeyboardInterrupt goes through; everything finished is kept."""
        self.front.rebuild(self.candidates.values(), self.num_done)
        self.report("start", message=self.first_words())
        try:
            self.own_process.count_deaths()
            self.open_queue(self.trials.catch_up(self.candidates))
            while self.start_what_may() or self.in_work:
                done = self.runner.wait(self.on_event)
                if done is not None:
                    self.finish(done)
            self.trials.add_stopped(self.candidates.values())
        except KeyboardInterrupt:
            self.report("interrupted")
            raise
        finally:
            self.own_process.leave()
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
        for candidate in list(self.candidates.values()):
            if not self.is_open(candidate):
                self.climb(candidate)
                self.candidates[candidate.arch.id] = without_curves(candidate)

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
                return self.ladder is None or _is_invalid(candidate)
            case _:
                return _is_invalid(candidate) or len(candidate.scores) < len(self.seeds)

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
        """What should be begun now; None where nothing, or nothing yet. What trains a proxy in work is put aside; so is what
        does not fit the budget any more, and nothing that would come later is begun in its place.
        """
        for waiting in self.blocked:
            if not self.trains_the_same(waiting):
                if not self.is_within_budget(waiting):
                    return None
                self.blocked.remove(waiting)
                return waiting
        while self.is_within_budget() and (job := self.chosen()) is not None:
            if not self.trains_the_same(job):
                if self.is_within_budget(job):
                    return job
                self.blocked.append(job)
                break
            self.blocked.append(job)
        return None

    def chosen(self) -> Job | None:
        """Who comes next."""
        num_asked = len(self.candidates) + sum(job.arch.id not in self.candidates for job in self.blocked)
        while self.queue:
            arch = self.queue.popleft()
            if arch.id in self.candidates or num_asked < self.num_asked or not self.space.holds(arch):
                return self.job(arch)
        if self.ladder is not None and (following := self.ladder.next()) is not None:
            return self.continued(*following)
        still = self.budget.plateau(self.num_done - self.front.moved_at)
        if still is not None:
            self.why = still
        elif num_asked < self.num_asked and (proposed := self.proposer.propose()) is not None:
            return self.job(proposed)
        # Only when all have come in is it known who may go on at the end; from then on workers need not wait.
        self.is_final = self.is_final or not (self.in_work or self.blocked)
        if not self.is_final:
            return None
        for arch_id in list(self.retries):
            if arch_id not in self.in_work:
                return self.retries.pop(arch_id)
        if self.ladder is not None and (following := self.ladder.next(final=True)) is not None:
            return self.continued(*following)
        return None

    def is_within_budget(self, job: Job | None = None) -> bool:
        """Whether anything, or this job, may be begun; notes why not."""
        hours = (time.monotonic() - self.started_at) / 3600
        seconds = 0.0
        if job is not None:
            is_trained = self.plan.proxy(job.arch).id in self.trained_now  # then only a latency is to be taken
            costs = replace(job, epochs=0) if is_trained else job
            seconds = self.pace.seconds_of(costs, self.candidates.get(job.arch.id))
        why = self.budget.spent(hours=hours, next_hours=seconds / 3600, epochs=self.spent_epochs)
        self.why = why or self.why
        return why is None

    def job(self, arch: Arch) -> Job:
        """An architecture's first job; known networks, and those that were trained fully before, go to the top at once."""
        if not self.space.holds(arch):
            return Job(arch, 0, self.seeds[:1])
        before = self.candidates.get(arch.id)
        is_whole = before is not None and before.outcome == "complete"
        if self.ladder is None or is_whole or arch.id in self.known_ids or self.plan.proxy(arch).id in self.trained:
            return Job(arch, None, self.seeds)
        reached = (before.epochs if before is not None else None) or 0
        return Job(arch, max(self.ladder.rungs[0], reached), self.seeds[:1])

    def continued(self, arch_id: str, epochs: int) -> Job:
        """The job of a candidate that the ladder chose; at the top all seeds are trained."""
        is_top = epochs >= self.plan.recipe.epochs
        return Job(self.candidates[arch_id].arch, epochs, self.seeds if is_top else self.seeds[:1])

    def trains_the_same(self, job: Job) -> bool:
        """Whether a job in work trains the very proxy that this one would: its score is waited for."""
        if not self.in_work:
            return False
        proxy_id = self.plan.proxy(job.arch).id
        return any(self.plan.proxy(other.arch).id == proxy_id for other in self.in_work.values())

    # -- what has been done --------------------------------------------------------------------------------------------

    def finish(self, done: Done) -> None:
        """Keeps what became of a job."""
        job = self.in_work.pop(done.job.arch.id)
        step = self.steps.pop(job.arch.id, None)
        candidate, error = done.candidate, done.error
        if candidate is None:
            if not isinstance(error, TrialError):
                assert error is not None
                raise error
            if step is None and self.runner.capacity > 1:
                self.lost_start(job, error)
                return
            candidate = self.crashed(job, step or "measuring", error)
        self.lost_starts = 0
        if not self.space.holds(job.arch):
            if candidate.failure is not None:
                logger.warning("the base model %s has no latency: %s", job.arch.name, candidate.failure.message)
        else:
            self.pace.learn(candidate, done.seconds)
            self.accept(candidate, job)
        if isinstance(error, DeviceLost) and self.runner.capacity == 1:
            raise UserError(f"{error}; nothing more can run in this process: the same command goes on, see `doctor`")

    def lost_start(self, job: Job, error: TrialError) -> None:
        """A worker died before its step began, which says nothing of the architecture: somebody else takes it."""
        self.lost_starts += 1
        if self.lost_starts > MAX_LOST_STARTS:
            raise UserError(
                f"--workers: {self.lost_starts} worker processes in a row died before they could begin ({error}); is there "
                "memory for so many? The same command goes on, also with fewer --workers"
            )
        self.blocked.append(job)

    def crashed(self, job: Job, step: Step, error: TrialError) -> Candidate:
        """What becomes of an architecture whose worker died: the step that it was at has failed."""
        kind: FailureKind = "out_of_memory" if error.kind == "out_of_memory" else "crash"
        latency = self.store.latency(job.arch.id, self.plan.target.id)
        key = latency_key(job.arch.id, self.plan.target.id)
        if step == "training":
            last = self.plan.score_key(job.arch, epochs=job.epochs, seed=job.seeds[-1])
            key = str(missing_score(self.store, self.plan, job) or last)
        return Candidate(job.arch, "failed", latency, failure=keep_failure(self.store, job.arch, key, kind, error))

    def accept(self, candidate: Candidate, job: Job) -> None:
        """Takes an evaluated candidate into the study, the sampler's and the ladder's knowledge and the front."""
        arch, before = candidate.arch, self.candidates[candidate.arch.id]
        failure, spent = candidate.failure, (candidate.spent_epochs, candidate.spent_s)
        self.retries.pop(arch.id, None)
        if failure is not None and failure.is_passing:
            self.retries[arch.id] = job
        has_diverged = failure is not None and failure.kind == "diverged"
        if before.may_stand_on_front and candidate.outcome in ("failed", "gated") and not has_diverged:
            # A machine that failed a further seed, or a limit that came down, takes nothing away from what is there.
            logger.warning("%s stays as it was: %s", arch.name, failure.message if failure else "over the limit now")
            candidate = before
        key = self.plan.score_key(arch, epochs=candidate.epochs or job.epochs or None)
        self.store.add_member(self.record.name, candidate, key, spent_epochs=spent[0], spent_s=spent[1])
        self.spent_epochs += spent[0]
        self.num_done += before.outcome == "pending"
        self.candidates[arch.id] = kept = replace(
            slim(candidate), spent_epochs=before.spent_epochs + spent[0], spent_s=before.spent_s + spent[1]
        )
        if kept.outcome == "complete":
            self.trained_now.add(self.plan.proxy(arch).id)
        self.proposer.learn(kept)
        self.climb(kept)
        self.candidates[arch.id] = kept = without_curves(kept)
        if is_settled(kept):
            self.trials.add(kept)
        if before.may_stand_on_front:
            self.front.rebuild(self.candidates.values(), self.num_done)
        else:
            self.front.add(kept, self.num_done)
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
        elif candidate.outcome == "gated" or (candidate.failure is not None and not candidate.failure.is_passing):
            self.ladder.forget(arch_id)  # one that is to be tried again stays in the ladder's hands

    # -- what is told --------------------------------------------------------------------------------------------------

    def on_event(self, arch: Arch, event: Event) -> None:
        """Passes on what a job is doing."""
        if isinstance(event, Epoch):
            self.report("epoch", arch=arch, step="training", epoch=event)
        elif event in ("measuring", "training"):
            step = cast(Step, event)
            self.steps[arch.id] = step
            if step == "training":
                self.own_process.begin(self.in_work[arch.id])
            self.report("step", arch=arch, step=step)
        elif event == KEPT:
            self.own_process.end(arch)
        else:
            self.report("detail", arch=arch, step="measuring", message=event)

    def first_words(self) -> str:
        """How many facts of this space are in the store already, of architectures that are not in the study."""
        latencies = {arch.id for arch, _ in self.store.measured(self.plan.target.id)}
        if not (latencies or self.trained) or self.space.architectures > MAX_COUNTED:
            return ""
        others = [arch for arch in self.space.archs() if arch.id not in self.candidates]
        measured = sum(arch.id in latencies for arch in others)
        trained = sum(self.plan.proxy(arch).id in self.trained for arch in others) if self.trained else 0
        if not measured and not trained:
            return ""
        return f"in the store already, and used: {measured} latencies and {trained} trainings of this space"

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
        opened = [c for c in self.candidates.values() if self.is_open(c) and _is_invalid(c)]
        invalid = [candidate.latency.invalid for candidate in opened if candidate.latency is not None]
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
        per_arch = self.pace.seconds_each
        left = max(0, self.num_asked - self.num_done) / self.runner.capacity
        progress = Progress(
            kind=kind,
            study=self.record.name,
            num_done=self.num_done,
            num_asked=self.num_asked,
            best_accuracy=self.front.best_accuracy,
            best_latency_ms=self.front.best_latency_ms,
            front=self.front.ids,
            hypervolume=self.front.hypervolume,
            seconds_left=None if per_arch is None else left * per_arch,
        )
        self.on_progress(replace(progress, **details))


def _is_invalid(candidate: Candidate) -> bool:
    return candidate.latency is not None and bool(candidate.latency.invalid)
