"""Architecture -> candidate: look facts up, else measure and train, latency first.

What is in the store is never done again, but for a latency that was measured under conditions that make it invalid, or a
step that the machine failed to do (deadline, crash, memory), a bounded number of times. A candidate over the latency limit
is not trained. How a step is done is the business of `Steps`: `live` measures and trains, `table` looks a recorded table up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from explorer.arch import Arch, ProxyScale
from explorer.errors import DeviceLost, TrainError, TrialError, ran_out_of_memory
from explorer.records import (
    DEADLINE_S,
    Candidate,
    Epoch,
    Failure,
    FailureKind,
    Latency,
    Score,
    ScoreKey,
    Target,
    latency_key,
)
from explorer.store import Store
from explorer.training.folders import DataInfo
from explorer.training.recipe import Recipe

Step = Literal["measuring", "training"]


@dataclass(frozen=True)
class Plan:
    """How a study evaluates: where latency is measured, and how, on what and from which seed a proxy is trained.

    `scale`: of the proxies; None trains the architecture itself. `max_latency_ms`: candidates over it are not trained.
    `train_device`: `cpu` or `cuda`, `train_threads`: of a CPU (None: all). `rungs`: numbers of epochs at which a training may
    stop for a while, the recipe's last; empty where each goes through. `part`: of the data, that accuracies are of.
    """

    target: Target
    scale: ProxyScale | None
    recipe: Recipe
    data: DataInfo
    seed: int = 0
    max_latency_ms: float | None = None
    train_device: Literal["cpu", "cuda"] = "cpu"
    train_threads: int | None = None
    rungs: tuple[int, ...] = ()
    part: Literal["held-out", "test"] = "held-out"

    @property
    def data_id(self) -> str:
        """Fingerprint of the data as a score is keyed by it: an accuracy on the test part is another fact."""
        return self.data.id if self.part == "held-out" else f"{self.data.id}-{self.part}"

    def proxy(self, arch: Arch) -> Arch:
        """The scaled-down architecture that is trained in place of `arch`."""
        if self.scale is None:
            return arch
        return arch.proxy(self.scale, channels=self.data.channels, num_classes=self.data.num_classes)

    def score_key(self, arch: Arch, *, epochs: int | None = None, seed: int | None = None) -> ScoreKey:
        """The key of the score that stands for `arch`, after all epochs of the recipe unless told otherwise."""
        return ScoreKey(
            self.proxy(arch).id,
            self.recipe.id,
            self.data_id,
            self.recipe.epochs if epochs is None else epochs,
            self.seed if seed is None else seed,
        )

    def identity(self) -> dict[str, Any]:
        """What a study's identity holds beside its space: proxy, target, recipe and data."""
        return {
            "proxy": None if self.scale is None else self.scale.to_dict(),
            "target": self.target.identity(),
            "recipe": self.recipe.model_dump(exclude_defaults=True),
            "data": self.data.id,
        }


class Steps(Protocol):
    """The two steps of an evaluation.

    `baseline_ms`: latency of the base model, where it is known. `on_kept`: called when the state of a training has been kept,
    from which it goes on if the process should die.
    """

    baseline_ms: float | None
    on_kept: Callable[[], None] | None

    def prepare(self, base: Arch) -> None:
        """What all evaluations of a space share. Raises UserError for what cannot work."""

    def measure(self, arch: Arch, on_detail: Callable[[str], None]) -> Latency:
        """The latency of the full-size architecture. Raises TrialError, and ParityError for a bug of ours."""

    def train(self, arch: Arch, key: ScoreKey, on_epoch: Callable[[Epoch], None] | None) -> Score:
        """The score of the architecture's proxy after `key.epochs`; goes on from where an earlier training stopped."""

    def finished(self, key: ScoreKey) -> None:
        """The score under `key` is in the store: what served to go on with its training may go."""

    def close(self) -> None:
        """Ends what was started."""


class Evaluator:
    """Evaluates architectures by one plan; a context manager that ends its steps' processes.

    `steps`: how; else it measures in a worker process and trains in this one, and `rebuilds`, `deadline_s` and `cache_root`
    are as `latency.measurer.Measurer` has them.
    """

    def __init__(
        self,
        plan: Plan,
        steps: Steps | None = None,
        *,
        rebuilds: int = 1,
        deadline_s: float = DEADLINE_S,
        cache_root: Path | None = None,
    ) -> None:
        self.plan = plan
        if steps is None:
            from explorer.evaluate.live import Live

            steps = Live(plan, rebuilds=rebuilds, deadline_s=deadline_s, cache_root=cache_root)
        self.steps = steps
        self.base: Arch | None = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the measuring worker."""
        self.steps.close()

    def prepare(self, base: Arch) -> None:
        """Makes `base`, a space's, the reference of all latencies and loads what all trainings share.

        Raises DataError, and RecipeError where the recipe does not fit the data.
        """
        self.base = base
        self.steps.prepare(base)

    def evaluate(
        self,
        arch: Arch,
        store: Store,
        on_step: Callable[[Step], None] = lambda step: None,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_detail: Callable[[str], None] = lambda text: None,
        *,
        epochs: int | None = None,
        seeds: tuple[int, ...] = (),
        measures: bool = True,
    ) -> Candidate:
        """Latency of `arch`, then the accuracy of its proxy, each from the store where it is there.

        `epochs`: how far to train (None: all of the recipe's, 0: not at all); `seeds`: of the trainings (empty: the plan's).
        Without `measures` the latency is neither measured nor looked up, and no latency keeps from being trained. A
        TrialError becomes a failed candidate and is kept; ParityError and UserError go through.
        """
        started = time.perf_counter()
        candidate = self._evaluate(
            arch,
            store,
            on_step,
            on_epoch,
            on_detail,
            epochs=epochs,
            seeds=seeds or (self.plan.seed,),
            measures=measures,
        )
        return replace(candidate, spent_s=time.perf_counter() - started)

    def _evaluate(
        self,
        arch: Arch,
        store: Store,
        on_step: Callable[[Step], None],
        on_epoch: Callable[[Epoch], None] | None,
        on_detail: Callable[[str], None],
        *,
        epochs: int | None,
        seeds: tuple[int, ...],
        measures: bool,
    ) -> Candidate:
        plan, candidate, key = self.plan, Candidate(arch, "pending"), ""
        trained = [0]  # epochs of the training in hand

        def count(epoch: Epoch) -> None:
            trained[0] += 1
            if on_epoch is not None:
                on_epoch(epoch)

        try:
            if measures:
                key = latency_key(arch.id, plan.target.id)
                found, is_known = self.latency(arch, store, on_step, on_detail)
                candidate = replace(candidate, latency=found, reused=int(is_known))
                if plan.max_latency_ms is not None and found.latency_ms > plan.max_latency_ms and not found.invalid:
                    return replace(candidate, outcome="gated")
            if epochs == 0:
                return candidate
            for seed in seeds:
                score_key = plan.score_key(arch, epochs=epochs, seed=seed)
                key, before, trained[0] = str(score_key), store.epochs_kept(score_key), 0
                score, is_known = self.score(arch, store, on_step, count, key=score_key)
                candidate = replace(
                    candidate,
                    scores=(*candidate.scores, score),
                    reused=candidate.reused + int(is_known and seed == seeds[0]),
                    spent_epochs=candidate.spent_epochs + (0 if is_known else score_key.epochs - before),
                )
        except _KnownFailure as known:
            return replace(candidate, outcome="failed", scores=(), failure=known.failure, reused=candidate.reused + 1)
        except (TrialError, RuntimeError, MemoryError, ValueError) as error:  # torch refuses some shapes so
            kind = _kind_of(error)
            is_measured = candidate.latency is not None or not measures
            is_of_the_device = kind == "crash" and not isinstance(error, ValueError)
            if is_of_the_device and is_measured and plan.train_device == "cuda":
                raise DeviceLost(f"the GPU broke under a training: {error}", "crash") from error
            failure = keep_failure(store, arch, key, kind, error)
            spent = candidate.spent_epochs + trained[0]
            return replace(candidate, outcome="failed", scores=(), failure=failure, spent_epochs=spent)
        is_whole = epochs is None or epochs >= plan.recipe.epochs
        return replace(candidate, outcome="complete" if is_whole else "stopped")

    def latency(
        self,
        arch: Arch,
        store: Store,
        on_step: Callable[[Step], None] = lambda step: None,
        on_detail: Callable[[str], None] = lambda text: None,
    ) -> tuple[Latency, bool]:
        """The latency of the full-size architecture, and whether it was known; an invalid one is measured again."""
        target = self.plan.target
        known = store.latency(arch.id, target.id)
        if known is not None and not known.invalid:
            return known, True
        _raise_known_failure(store, latency_key(arch.id, target.id))
        on_step("measuring")
        if self.steps.baseline_ms is None and self.base is not None:
            base = store.latency(self.base.id, target.id)
            self.steps.baseline_ms = None if base is None or base.invalid else base.latency_ms
        measured = self.steps.measure(arch, on_detail)
        store.add_latency(arch, target, measured)
        return measured, False

    def score(
        self,
        arch: Arch,
        store: Store,
        on_step: Callable[[Step], None] = lambda step: None,
        on_epoch: Callable[[Epoch], None] | None = None,
        *,
        key: ScoreKey | None = None,
    ) -> tuple[Score, bool]:
        """The score of the architecture's proxy, under `key` or after all epochs, and whether it was known."""
        key = key or self.plan.score_key(arch)
        known = store.score(key)
        if known is not None:
            return known, True
        _raise_known_failure(store, str(key))
        if (diverged := store.divergence(key)) is not None:
            raise _KnownFailure(diverged)
        on_step("training")
        score = self.steps.train(arch, key, on_epoch)
        store.add_score(self.plan.proxy(arch), self.plan.recipe.model_dump(), score)
        self.steps.finished(key)
        return score, False


def keep_failure(store: Store, arch: Arch, key: str, kind: FailureKind, error: BaseException) -> Failure:
    """Keeps why the fact under `key` is missing; the failure as it is kept, with all its attempts."""
    diverged_at = error.diverged_at if isinstance(error, TrainError) else None
    message = str(error) or type(error).__name__
    return store.add_failure(arch, Failure(arch.id, key, kind, message, now(), diverged_at=diverged_at))


def now() -> str:
    """The time, as facts carry it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _raise_known_failure(store: Store, key: str) -> None:
    failure = store.failure(key)
    if failure is not None and not failure.is_passing:
        raise _KnownFailure(failure)


def _kind_of(error: Exception) -> FailureKind:
    """The class of a failure; `crash` for what no one foresaw."""
    if isinstance(error, TrialError):
        return cast(FailureKind, error.kind)
    return "out_of_memory" if ran_out_of_memory(error) else "crash"


class _KnownFailure(TrialError):
    """A fact that is missing for good; carries why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message, failure.kind)
        self.failure = failure
