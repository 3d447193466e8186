"""The steps of an evaluation done for real: latency in a worker process, proxies trained in this one.

A measurement has its device alone, trainings share it, so that nothing of ours trains beside a measurement. A training that stops
at a rung of the ladder keeps its state in the user's cache and goes on from there; where that is gone (another machine,
a cleared cache) it starts again and comes to the same result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from explorer.arch import Arch
from explorer.errors import DataError, RecipeError
from explorer.evaluate import Plan, now
from explorer.latency import environment
from explorer.latency.cache import default_root
from explorer.latency.measurer import Measurer
from explorer.records import DEADLINE_S, Epoch, Latency, Score, ScoreKey, digest
from explorer.training.data import Split, load, resting_device

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
#: A training keeps its state this often, beside at a rung.
KEEP_EVERY_S: Final = 30.0
ABANDONED_S: Final = 86_400.0


class Live:
    """Measures and trains by a plan; holds the loaded data and the measuring worker between architectures."""

    def __init__(
        self, plan: Plan, *, rebuilds: int = 1, deadline_s: float = DEADLINE_S, cache_root: Path | None = None
    ) -> None:
        self.plan = plan
        self.baseline_ms: float | None = None
        self.on_kept: Callable[[], None] | None = None
        self._rebuilds, self._deadline_s, self._cache_root = rebuilds, deadline_s, cache_root
        self._reference: Arch | None = None
        self._measurer: Measurer | None = None
        self._loaded: Split | None = None

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

    def prepare(self, base: Arch) -> None:
        """Makes `base` the reference of all latencies; loads the data at the size of its proxy, which all share.

        Raises DataError, and RecipeError where the recipe does not fit the data.
        """
        from explorer.training.trainer import require_fit

        self._reference = base
        require_fit(self.plan.recipe, self._split(self.plan.proxy(base)))

    def measure(self, arch: Arch, on_detail: Callable[[str], None]) -> Latency:
        """The latency of the full-size architecture, measured in the worker."""
        if self._measurer is None:
            self._measurer = Measurer(
                self.plan.target,
                reference=self._reference,
                baseline_ms=self.baseline_ms,
                seed=self.plan.seed,
                rebuilds=self._rebuilds,
                deadline_s=self._deadline_s,
                cache_root=self._cache_root,
            )
        self._measurer.on_event = on_detail
        return self._measurer.measure(arch)

    def train(self, arch: Arch, key: ScoreKey, on_epoch: Callable[[Epoch], None] | None) -> Score:
        """The score of the architecture's proxy after `key.epochs` of the recipe's schedule."""
        from explorer import model
        from explorer.training.trainer import Checkpoint, read_checkpoint, train

        plan, proxy = self.plan, self.plan.proxy(arch)
        split = self._split(proxy)
        module = model.build(proxy, seed=key.seed, drop_path=plan.recipe.drop_path, init=plan.recipe.init)
        kept = Checkpoint(
            self._state_of(key),
            key=str(replace(key, epochs=plan.recipe.epochs)),
            every_s=KEEP_EVERY_S,
            at_end=key.epochs < plan.recipe.epochs,
            on_kept=self.on_kept,
        )
        if kept.path.exists():
            try:
                read_checkpoint(kept.path)
            except RecipeError as error:
                logger.warning("a kept training cannot be gone on with and starts again: %s", error)
                kept.path.unlink(missing_ok=True)
        # A CPU that latencies are measured on is not left alone by a training on the GPU either.
        devices = sorted({plan.train_device, *(("cpu",) if plan.target.device_kind == "cpu" else ())})
        with ExitStack() as held:
            for device in devices:
                held.enter_context(environment.shared(device))
            num_threads = held.enter_context(_threads(plan.train_threads))
            held.callback(_free_memory, self.device)  # also after a training that failed: a worker measures next
            outcome = train(
                module,
                plan.recipe,
                split,
                seed=key.seed,
                device=self.device,
                on_epoch=on_epoch,
                checkpoint=kept,
                until=key.epochs,
            )
        host = {
            **environment.describe_host(),
            **_gpu_of(self.device),
            "device": plan.train_device,
            "threads": num_threads,
        }
        score = Score(
            **asdict(key), accuracy=outcome.accuracy, train_s=outcome.train_s, environment=host, trained_at=now()
        )
        return replace(score, curve=outcome.curve)

    def finished(self, key: ScoreKey) -> None:
        """Removes the state of a training that came to its end."""
        if key.epochs >= self.plan.recipe.epochs:
            self._state_of(key).unlink(missing_ok=True)

    def _state_of(self, key: ScoreKey) -> Path:
        """Where a training that is not at its end keeps its state: by all that it depends on but the epochs."""
        import torch

        from explorer import model

        content = {name: value for name, value in asdict(key).items() if name != "epochs"}
        versions = {"module": model.MODULE_VERSION, "torch": torch.__version__}
        return self._states / f"{digest('training', content | versions)}.pt"

    @cached_property
    def _states(self) -> Path:
        """The folder of these states; what a killed process left half written goes after a day."""
        folder = (self._cache_root or default_root()) / "trainings"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in folder.glob("*.part"):
                if time.time() - part.stat().st_mtime > ABANDONED_S:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"cache: {folder}: cannot be made: {error.strerror}; set XDG_CACHE_HOME to another"
            ) from None
        return folder

    def _split(self, proxy: Arch) -> Split:
        """The images that all proxies of a space are trained and evaluated on; loaded once."""
        if self._loaded is None:
            info, recipe = self.plan.data, self.plan.recipe
            sizes = {"image_size": proxy.image_size, "channels": proxy.channels}
            data = load(info, **sizes, device=resting_device(info, **sizes, device=self.device))
            split = data.for_search if self.plan.part == "held-out" else data.for_verification
            self._loaded = split(recipe.train_images, recipe.eval_images)
        return self._loaded


@contextmanager
def _threads(number: int | None) -> Iterator[int]:
    """torch computes with so many CPU threads in the body, None leaves them; yields how many those are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _gpu_of(device: torch.device) -> dict[str, dict[str, str]]:
    """The GPU's model, as an environment holds it; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    import torch

    return {"gpu": {"name": torch.cuda.get_device_name(device)}}


def _free_memory(device: torch.device) -> None:
    """What torch keeps of a GPU's memory for later is needed by the measuring worker."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
