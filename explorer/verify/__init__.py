"""Looks once more at what a study found: its front measured again and trained longer, or one architecture evaluated anew.

A front holds the lucky among equals: short trainings from one seed, latencies of one day. `verify` trains its members
longer and from several seeds, evaluates them on the test part, which no search sees, and measures them again;
`order.compare` says how the order changes. The trainings are facts in the store and the results its verifications, so that
a verification that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from explorer.arch import Arch
from explorer.errors import TrialError
from explorer.evaluate import Evaluator, Plan, Step, now
from explorer.records import Candidate, Epoch, StudyRecord, Verification
from explorer.store import Store
from explorer.verify.anew import evaluate_anew
from explorer.verify.order import Found, Ranked, Verified, compare, kendall_tau_b
from explorer.verify.plan import front_of, longer, plan_of, prepare_beside

#: Trainings of every candidate.
SEEDS: Final = 3
ProgressKind = Literal["step", "epoch", "detail", "measured", "trained", "failed"]

__all__ = [
    "SEEDS",
    "Found",
    "Progress",
    "ProgressKind",
    "Ranked",
    "Verified",
    "compare",
    "evaluate_anew",
    "front_of",
    "kendall_tau_b",
    "longer",
    "plan_of",
    "verify",
]


@dataclass(frozen=True)
class Progress:
    """One moment of a verification. `num_done` of `num_all` measurements and trainings; `arch` is what it is about.

    `seed`: of the training. `is_known`: it was kept from before. `value`: ms where measured, accuracy (0..1) where trained.
    """

    kind: ProgressKind
    num_done: int
    num_all: int
    arch: Arch
    step: Step
    seed: int | None = None
    epoch: Epoch | None = None
    value: float | None = None
    is_known: bool = False
    message: str = ""


def verification_key(plan: Plan, seeds: Sequence[int]) -> str:
    """How members were verified: recipe, epochs, seeds and the part that was evaluated on."""
    return f"{plan.recipe.id}/{plan.recipe.epochs}/{seeds[0]}-{seeds[-1]}/{plan.part}"


def verify(
    record: StudyRecord,
    evaluator: Evaluator,
    store: Store,
    *,
    num_seeds: int = SEEDS,
    max_latency_ms: float | None = None,
    measures: bool = True,
    again: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Verified:
    """Measures the front's members again and trains each from `num_seeds` seeds by the evaluator's plan, as `longer` makes it.

    What an earlier verification in the same way kept is not done again; `again` measures all latencies anew. A TrialError
    is a member's problem and the rest goes on; ParityError, UserError and DeviceLost go through, as does KeyboardInterrupt:
    everything finished is kept.
    """
    members = front_of(record, store, max_latency_ms)
    plan = evaluator.plan
    seeds = tuple(range(plan.seed, plan.seed + num_seeds))
    run = _Run(record, evaluator, store, seeds, measures=measures, again=again, on_progress=on_progress)
    run.num_all = len(members) * (num_seeds + measures)
    run.prepare(members)
    found = [run.measured(member) for member in members]
    found = [run.trained(one) for one in found]
    epochs = (record.identity["recipe"]["epochs"], plan.recipe.epochs)
    return Verified(record.name, plan.target, plan.recipe.id, *epochs, seeds, compare(found), plan.part)


@dataclass
class _Run:
    """One verification under way."""

    record: StudyRecord
    evaluator: Evaluator
    store: Store
    seeds: tuple[int, ...]
    measures: bool
    again: bool
    on_progress: Callable[[Progress], None]
    num_all: int = 0
    num_done: int = 0
    key: str = ""
    kept: dict[str, Verification] = field(default_factory=dict)

    def prepare(self, members: Sequence[Candidate]) -> None:
        """Loads data and names the reference, where anything is left to do."""
        self.key = verification_key(self.evaluator.plan, self.seeds)
        self.kept = {v.arch_id: v for v in self.store.verifications(self.record.name) if v.key == self.key}
        keys = [self.evaluator.plan.score_key(m.arch, seed=seed) for m in members for seed in self.seeds]
        is_trained = all(self.store.score(key) is not None for key in keys)
        is_measured = not self.measures or all(self.known_ms(member.arch) is not None for member in members)
        if not (is_trained and is_measured):
            prepare_beside(self.evaluator, self.store, self.record)

    def known_ms(self, arch: Arch) -> float | None:
        """The latency that an earlier verification kept, unless all is to be measured again."""
        kept = self.kept.get(arch.id)
        return None if kept is None or (self.again and self.measures) else kept.verified_ms

    def measured(self, member: Candidate) -> Found:
        """The member with its latency, measured again where it is not known."""
        assert member.accuracy is not None
        assert member.latency_ms is not None
        found = Found(member.arch, member.accuracy, member.latency_ms, verified_ms=self.known_ms(member.arch))
        if not self.measures:
            return found
        if found.verified_ms is not None:
            self.tell("measured", found.arch, "measuring", value=found.verified_ms, is_known=True, done=1)
            return found
        self.tell("step", found.arch, "measuring")
        try:
            ms = self.evaluator.steps.measure(found.arch, lambda text: self.detail(found.arch, text))
        except TrialError as error:
            return self.failed(found, "measuring", f"latency: {error.kind}: {error}", done=1)
        if ms.invalid:
            return self.failed(
                found, "measuring", f"latency: measured as {ms.latency_ms:.3f} ms, invalid: {ms.invalid}", done=1
            )
        found = replace(found, verified_ms=ms.latency_ms)
        self.keep(found)
        self.tell("measured", found.arch, "measuring", value=ms.latency_ms, done=1)
        return found

    def trained(self, found: Found) -> Found:
        """The member with the accuracy of every seed; trainings that are facts already are not done again."""
        for position, seed in enumerate(self.seeds):
            candidate = self.train(found.arch, seed)
            if candidate.failure is not None:
                failure = candidate.failure
                message = f"{failure.step}, seed {seed}: {failure.kind}: {failure.message}"
                problem = f"{found.problem}; {message}" if found.problem else message
                return self.failed(replace(found, accuracies=()), "training", problem, done=len(self.seeds) - position)
            (score,) = candidate.scores
            found = replace(found, accuracies=(*found.accuracies, score.accuracy))
            is_known = candidate.spent_epochs == 0
            self.tell("trained", found.arch, "training", seed=seed, value=score.accuracy, is_known=is_known, done=1)
        if not found.problem:
            self.keep(found)
        return found

    def train(self, arch: Arch, seed: int) -> Candidate:
        """One training; the latency that the study knows is not measured for it."""
        return self.evaluator.evaluate(
            arch,
            self.store,
            on_step=lambda step: self.tell("step", arch, step, seed=seed),
            on_epoch=lambda epoch: self.tell("epoch", arch, "training", seed=seed, epoch=epoch),
            seeds=(seed,),
        )

    def keep(self, found: Found) -> None:
        """Keeps what is known of a member by now, unless it is kept already."""
        kept = self.kept.get(found.arch.id)
        accuracies = found.accuracies or (kept.accuracies if kept else ())
        if kept is not None and (kept.accuracies, kept.verified_ms) == (accuracies, found.verified_ms):
            return
        self.kept[found.arch.id] = Verification(
            self.record.name,
            found.arch.id,
            self.key,
            found.latency_ms,
            found.accuracy,
            found.verified_ms,
            accuracies,
            now(),
        )
        self.store.add_verification(self.kept[found.arch.id])

    def failed(self, found: Found, step: Step, problem: str, *, done: int) -> Found:
        self.tell("failed", found.arch, step, message=problem, done=done)
        return replace(found, problem=problem)

    def detail(self, arch: Arch, text: str) -> None:
        self.tell("detail", arch, "measuring", message=text)

    def tell(self, kind: ProgressKind, arch: Arch, step: Step, *, done: int = 0, **more: Any) -> None:
        self.num_done += done
        self.on_progress(Progress(kind, self.num_done, self.num_all, arch, step, **more))
