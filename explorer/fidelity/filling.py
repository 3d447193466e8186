"""The trainings that a ranking needs: what the store holds of them, and the rest trained, by whoever evaluates.

Every training is a fact as a search's are, so that another run, another machine or a search finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from explorer.arch import Arch, ProxyScale
from explorer.errors import ArchError, DeviceLost, SpaceError, TrialError, UserError
from explorer.evaluate import Plan, keep_failure
from explorer.evaluate.workers import Done, Event, Job, Runner
from explorer.records import Epoch, Failure, FailureKind, Score, ScoreKey, Target
from explorer.store import Store
from explorer.training.folders import DataInfo
from explorer.training.recipe import Recipe

#: So many worker processes may die in a row before a training of theirs began.
MAX_LOST_STARTS: Final = 3
Kind = Literal["begun", "epoch", "trained", "failed"]


@dataclass(frozen=True)
class Progress:
    """One moment: `num_done` of `num_all` trainings that were missing.

    `accuracy` (0..1) where one ended, `message` where one failed.
    """

    kind: Kind
    num_done: int
    num_all: int
    arch: Arch
    seed: int | None = None
    epoch: Epoch | None = None
    accuracy: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Training:
    """One training that is wanted: `score` or `failure` where the store has it, neither where it is missing."""

    arch: Arch
    key: ScoreKey
    score: Score | None
    failure: Failure | None

    @property
    def is_diverged(self) -> bool:
        """Whether it ended without a usable network, which is a result."""
        return self.score is None and self.failure is not None and self.failure.kind == "diverged"

    @property
    def is_open(self) -> bool:
        """Whether it is still to be done, or may be tried again."""
        return self.score is None and (self.failure is None or self.failure.is_passing)


def plan_for(
    recipe: Recipe,
    data: DataInfo,
    scale: ProxyScale | None,
    *,
    seed: int = 0,
    train_device: Literal["cpu", "cuda"] = "cpu",
    train_threads: int | None = None,
) -> Plan:
    """A plan that trains and measures nothing: its target stands for no device."""
    target = Target("none", "", "fp32", 1, 1, train_device, "", "", 0, 0)
    return Plan(target, scale, recipe, data, seed, train_device=train_device, train_threads=train_threads)


def require_proxies(archs: Sequence[Arch], plan: Plan, names: dict[str, str] | None = None) -> None:
    """Raises SpaceError where one has no proxy of this plan's, or where proxies take images of different sizes."""
    sizes: dict[int, str] = {}
    for arch in archs:
        name = (names or {}).get(arch.id, arch.name)
        try:
            sizes.setdefault(plan.proxy(arch).image_size, name)
        except (ArchError, SpaceError) as error:
            raise SpaceError(f"{name}: has no proxy: {error}") from None
    if len(sizes) > 1:
        said = ", ".join(f"{size} pixels for {name}" for size, name in sorted(sizes.items()))
        raise SpaceError(
            f"proxies: they take images of {said}; all are compared on the same images: give networks of one image size"
        )


def trainings(archs: Sequence[Arch], plan: Plan, store: Store, seeds: Sequence[int]) -> list[Training]:
    """What is wanted, seed by seed: each different proxy once, under the first architecture that it stands for."""
    first: dict[str, Arch] = {}
    for arch in archs:
        first.setdefault(plan.proxy(arch).id, arch)
    keys = [(arch, plan.score_key(arch, seed=seed)) for seed in seeds for arch in first.values()]
    # A ladder may have met the divergence at one of its rungs: it is kept under fewer epochs than are wanted here.
    return [
        Training(arch, key, store.score(key), store.divergence(key) or store.failure(str(key))) for arch, key in keys
    ]


def run(
    archs: Sequence[Arch],
    plan: Plan,
    store: Store,
    runner: Runner,
    *,
    seeds: Sequence[int] = (0,),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Trains the proxies of `archs` from each seed, but for what the store holds; what is finished is kept at once.

    A training that fails is kept as a failure and the rest goes on; UserError and ParityError go through, as does
    KeyboardInterrupt.
    """
    missing = [training for training in trainings(archs, plan, store, seeds) if training.is_open]
    if missing:
        _Run(plan, store, runner, missing, on_progress).run()


@dataclass
class _Run:
    """Trainings under way."""

    plan: Plan
    store: Store
    runner: Runner
    missing: list[Training]
    on_progress: Callable[[Progress], None]
    num_done: int = 0
    num_lost: int = 0
    #: Trainings that were told to begin and are not done yet, by network: events do not tell the seed.
    begun: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        self.num_all = len(self.missing)
        waiting, num_working = self.missing[::-1], 0
        while waiting or num_working:
            while waiting and num_working < self.runner.capacity:
                training = waiting.pop()
                self.runner.submit(Job(training.arch, seeds=(training.key.seed,), measures=False))
                num_working += 1
            done = self.runner.wait(self.hear)
            assert done is not None
            num_working -= 1
            is_lost = self.is_lost(done)
            self.begun[done.job.arch.id] = max(0, self.begun[done.job.arch.id] - 1)
            if is_lost:
                waiting.append(
                    next(t for t in self.missing if (t.arch, (t.key.seed,)) == (done.job.arch, done.job.seeds))
                )
            else:
                self.finish(done)

    def hear(self, arch: Arch, event: Event) -> None:
        if event == "training":
            self.begun[arch.id] += 1
            self.tell("begun", arch)
        elif isinstance(event, Epoch):
            self.tell("epoch", arch, epoch=event)

    def is_lost(self, done: Done) -> bool:
        """Whether a worker died before its training began, which says nothing of the network."""
        is_lost = isinstance(done.error, TrialError) and self.runner.capacity > 1 and not self.begun[done.job.arch.id]
        self.num_lost = self.num_lost + 1 if is_lost else 0
        if self.num_lost > MAX_LOST_STARTS:
            raise UserError(
                f"--train-parallel: {self.num_lost} worker processes in a row died before they could begin ({done.error}); is "
                "there memory for so many? The same command goes on, also with a smaller --train-parallel"
            )
        return is_lost

    def finish(self, done: Done) -> None:
        (seed,) = done.job.seeds
        arch = done.job.arch
        self.num_done += 1
        if done.candidate is not None and done.candidate.failure is None:
            self.tell("trained", arch, seed=seed, accuracy=done.candidate.accuracy)
            return
        if done.candidate is None and not isinstance(done.error, TrialError):
            assert done.error is not None
            raise done.error
        failure = done.candidate.failure if done.candidate is not None else self.crashed(done, seed)
        assert failure is not None
        self.tell("failed", arch, seed=seed, message=f"{failure.kind}: {failure.message}")
        if isinstance(done.error, DeviceLost) and self.runner.capacity == 1:
            raise UserError(
                f"{done.error}; nothing more can run in this process: the same command goes on, see `doctor`"
            )

    def crashed(self, done: Done, seed: int) -> Failure:
        """Keeps that the process which trained has died."""
        assert isinstance(done.error, TrialError)
        kind: FailureKind = "out_of_memory" if done.error.kind == "out_of_memory" else "crash"
        key = str(self.plan.score_key(done.job.arch, seed=seed))
        return keep_failure(self.store, done.job.arch, key, kind, done.error)

    def tell(self, kind: Kind, arch: Arch, **more: Any) -> None:
        self.on_progress(Progress(kind, self.num_done, self.num_all, arch, **more))
