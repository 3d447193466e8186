"""Architecture -> candidate: look facts up, else measure and train, latency first.

What is in the store is never done again, but for a latency that was measured under conditions that make it invalid, or
that the machine failed to give (deadline, crash, memory). A candidate over the latency limit is not trained. Measuring, in
a worker process, and training, in this one, follow one another and hold their device, so that nothing of ours trains beside
a measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from explorer import model
from explorer.arch import Arch, ProxyScale
from explorer.errors import TrialError, ran_out_of_memory
from explorer.latency import environment
from explorer.latency.measurer import DEADLINE_S, Measurer
from explorer.records import Candidate, Epoch, Failure, FailureKind, Latency, Score, ScoreKey, Target, latency_key
from explorer.store import Store
from explorer.training.data import Split, load, resting_device
from explorer.training.folders import DataInfo
from explorer.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

Step = Literal["measuring", "training"]


@dataclass(frozen=True)
class Plan:
    """How a study evaluates: where latency is measured, and how, on what and from which seed a proxy is trained.

    `max_latency_ms`: candidates over it are not trained. `train_device`: `cpu` or `cuda`.
    """

    target: Target
    scale: ProxyScale
    recipe: Recipe
    data: DataInfo
    seed: int = 0
    max_latency_ms: float | None = None
    train_device: Literal["cpu", "cuda"] = "cpu"

    def proxy(self, arch: Arch) -> Arch:
        """The scaled-down architecture that is trained in place of `arch`."""
        return arch.proxy(self.scale, channels=self.data.channels, num_classes=self.data.num_classes)

    def score_key(self, arch: Arch) -> ScoreKey:
        """The key of the score that stands for `arch`."""
        return ScoreKey(self.proxy(arch).id, self.recipe.id, self.data.id, self.recipe.epochs, self.seed)

    def identity(self) -> dict[str, Any]:
        """What a study's identity holds beside its space: proxy, target, recipe and data."""
        return {
            "proxy": asdict(self.scale),
            "target": self.target.identity(),
            "recipe": self.recipe.model_dump(exclude_defaults=True),
            "data": self.data.id,
        }


class Evaluator:
    """Evaluates architectures by one plan; holds the loaded data and the measuring worker between them.

    A context manager that ends the worker. `rebuilds`, `deadline_s` and `cache_root`: as `latency.measurer.Measurer` has them.
    """

    def __init__(
        self, plan: Plan, *, rebuilds: int = 1, deadline_s: float = DEADLINE_S, cache_root: Path | None = None
    ) -> None:
        self.plan = plan
        self.reference: Arch | None = None
        self._measuring: dict[str, Any] = {"rebuilds": rebuilds, "deadline_s": deadline_s, "cache_root": cache_root}
        self._measurer: Measurer | None = None
        self._loaded: Split | None = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the measuring worker."""
        if self._measurer is not None:
            self._measurer.close()
            self._measurer = None

    @cached_property
    def device(self) -> torch.device:
        """Where proxies are trained."""
        import torch

        return torch.device(self.plan.train_device)

    def prepare(self, arch: Arch) -> None:
        """Makes `arch`, a space's base, the reference of all latencies; loads the data at the size of its proxy, which all share.

        Raises DataError, and RecipeError where the recipe does not fit the data.
        """
        from explorer.training.trainer import require_fit

        self.reference = arch
        require_fit(self.plan.recipe, self._split(self.plan.proxy(arch)))

    def evaluate(
        self,
        arch: Arch,
        store: Store,
        on_step: Callable[[Step], None] = lambda step: None,
        on_epoch: Callable[[Epoch], None] | None = None,
        on_detail: Callable[[str], None] = lambda text: None,
    ) -> Candidate:
        """Latency of `arch`, then the accuracy of its proxy, each from the store where it is there.

        A TrialError becomes a failed candidate and is kept; ParityError and UserError go through.
        """
        candidate = Candidate(arch, "pending")
        try:
            found, is_known = self.latency(arch, store, on_step, on_detail)
            candidate = replace(candidate, latency=found, reused=int(is_known))
            limit = self.plan.max_latency_ms
            if limit is not None and found.latency_ms > limit and not found.invalid:
                return replace(candidate, outcome="gated")
            score, is_known = self.score(arch, store, on_step, on_epoch)
        except _KnownFailure as known:
            return replace(candidate, outcome="failed", failure=known.failure, reused=candidate.reused + 1)
        except (TrialError, RuntimeError, MemoryError) as error:
            kind = _kind_of(error)
            is_score = candidate.latency is not None
            if kind == "crash" and is_score and self.plan.train_device == "cuda":
                raise  # the CUDA context of this process may be broken for all that follow
            key = str(self.plan.score_key(arch)) if is_score else latency_key(arch.id, self.plan.target.id)
            failure = Failure(arch.id, key, kind, str(error) or type(error).__name__, _now())
            store.add_failure(arch, failure)
            return replace(candidate, outcome="failed", failure=failure)
        return replace(candidate, outcome="complete", score=score, reused=candidate.reused + int(is_known))

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
        measurer = self._open_measurer(store)
        measurer.on_event = on_detail
        measured = measurer.measure(arch)
        store.add_latency(arch, target, measured)
        return measured, False

    def _open_measurer(self, store: Store) -> Measurer:
        if self._measurer is None:
            target, reference = self.plan.target, self.reference
            base = None if reference is None else store.latency(reference.id, target.id)
            baseline_ms = None if base is None or base.invalid else base.latency_ms
            self._measurer = Measurer(
                target, reference=reference, baseline_ms=baseline_ms, seed=self.plan.seed, **self._measuring
            )
        return self._measurer

    def score(
        self, arch: Arch, store: Store, on_step: Callable[[Step], None], on_epoch: Callable[[Epoch], None] | None
    ) -> tuple[Score, bool]:
        """The score of the architecture's proxy, and whether it was known."""
        key, plan = self.plan.score_key(arch), self.plan
        known = store.score(key)
        if known is not None:
            return known, True
        _raise_known_failure(store, str(key))
        on_step("training")
        from explorer.training.trainer import train

        proxy = plan.proxy(arch)
        split = self._split(proxy)
        module = model.build(proxy, seed=plan.seed, drop_path=plan.recipe.drop_path)
        with environment.exclusive(plan.train_device):
            outcome = train(module, plan.recipe, split, seed=plan.seed, device=self.device, on_epoch=on_epoch)
            _free_memory(self.device)
        host = {**environment.describe_host(), "device": plan.train_device}
        score = Score(
            **asdict(key), accuracy=outcome.accuracy, train_s=outcome.train_s, environment=host, trained_at=_now()
        )
        score = replace(score, curve=outcome.curve)
        store.add_score(proxy, plan.recipe.model_dump(), score)
        return score, False

    def _split(self, proxy: Arch) -> Split:
        """The images that all proxies of a space are trained and evaluated on; loaded once."""
        if self._loaded is None:
            info, recipe = self.plan.data, self.plan.recipe
            sizes = {"image_size": proxy.image_size, "channels": proxy.channels}
            data = load(info, **sizes, device=resting_device(info, **sizes, device=self.device))
            self._loaded = data.for_search(recipe.train_images, recipe.eval_images)
        return self._loaded


def _free_memory(device: torch.device) -> None:
    """What torch keeps of a GPU's memory for later is needed by the measuring worker."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
