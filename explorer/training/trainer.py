"""The one training loop: short proxies and full trainings differ by their recipe alone.

All randomness of an epoch is drawn from (seed, epoch), so that a training resumed at an epoch's end goes on as the
undisturbed one would have. Images stay uint8 until they are on the training's device, and are augmented there in batches;
inside an epoch nothing waits for a GPU but the look for a divergence.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from explorer.errors import RecipeError, TrainError
from explorer.records import Epoch
from explorer.training.augmentation import augment, change_color, draw_mixes, erase, mix
from explorer.training.averaging import WeightAverage, batch_norms, recompute_statistics
from explorer.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from explorer.training.data import Split
from explorer.training.feeding import batches
from explorer.training.recipe import Recipe
from explorer.training.step import Acceleration, Part, Step, autocast

__all__ = ["Acceleration", "Checkpoint", "Outcome", "learning_rate", "read_checkpoint", "require_fit", "train"]

#: Images a forward pass of the evaluation; on a GPU as many more as images of 224 pixels a side would fill, up to a limit.
EVAL_BATCH: Final = 256
EVAL_BATCH_MOST: Final = 1024
#: Steps between two looks for a divergence; looking makes a GPU wait, and costs a CPU nothing.
CHECK_EVERY_STEPS: Final = {"cpu": 1, "cuda": 20}


@dataclass(frozen=True)
class Outcome:
    """The last accuracy (0..1), seconds of training (evaluation included, resumed epochs too) and the curve."""

    accuracy: float
    train_s: float
    curve: tuple[Epoch, ...]


def train(
    module: nn.Module,
    recipe: Recipe,
    split: Split,
    *,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] | None = None,
    checkpoint: Checkpoint | None = None,
    until: int | None = None,
    acceleration: Acceleration = Acceleration(),  # noqa: B008 - frozen
) -> Outcome:
    """Trains `module` in place for the recipe's epochs; same arguments on one CPU, same accuracy (a GPU adds in any order).

    The module ends with the weights that were evaluated last. With a `checkpoint` the state is kept after epochs and
    resumed from; `until` stops after so many epochs of the recipe's schedule, and evaluates there. `acceleration` changes
    the result by rounding at most. Raises TrainError when loss, gradient or output is no longer finite or memory runs out,
    RecipeError when the kept state belongs to another training.
    """
    require_fit(recipe, split)
    with _random_state_kept(device):
        try:
            loop = _Loop(module.to(device), recipe, split, seed, device, acceleration)
            return loop.run(on_epoch, checkpoint, min(recipe.epochs, until or recipe.epochs))
        except torch.OutOfMemoryError as error:
            raise TrainError(
                f"out of memory on {device} at batch {recipe.batch_size}: {error}", "out_of_memory"
            ) from error


def require_fit(recipe: Recipe, split: Split) -> None:
    """Raises RecipeError where there are fewer images than one step needs, or none to evaluate on."""
    num_images = len(split.train_labels)
    if num_images < recipe.batch_size:
        raise RecipeError(
            f"recipe.batch_size: {recipe.batch_size} is more than the {num_images} training images; use at most {num_images}"
        )
    if not len(split.eval_labels):
        raise RecipeError("recipe: there is no image to evaluate on; give the data a held-out or a test part")


class _Loop:
    """State of one training."""

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        split: Split,
        seed: int,
        device: torch.device,
        acceleration: Acceleration,
    ) -> None:
        self.module, self.recipe, self.split, self.seed, self.device = module, recipe, split, seed, device
        self.steps_per_epoch = len(split.train_labels) // recipe.batch_size
        self.step = Step(module, recipe, device, acceleration)
        self.average = WeightAverage(module, recipe.ema) if recipe.ema is not None else None
        self.mean, self.std = (moment.to(device) for moment in _statistics(split.train_images))
        side = split.train_images.shape[-1]
        is_gpu = device.type == "cuda"
        self.eval_batch = min(EVAL_BATCH_MOST, EVAL_BATCH * max(1, 224**2 // side**2)) if is_gpu else EVAL_BATCH
        self.curve: list[Epoch] = []
        #: Whether other weights are evaluated than are trained, and those of the last evaluation until training goes on.
        self.has_others = self.average is not None or bool(recipe.precise_bn and batch_norms(module))
        self.evaluated: dict[str, Tensor] | None = None

    def run(self, on_epoch: Callable[[Epoch], None] | None, checkpoint: Checkpoint | None, num_epochs: int) -> Outcome:
        if checkpoint is not None:
            self.restore(checkpoint, num_epochs)
        kept_at = time.perf_counter()
        while len(self.curve) < num_epochs:
            epoch, start = len(self.curve) + 1, time.perf_counter()
            is_last = epoch == num_epochs
            loss = self.train_epoch(epoch - 1)
            accuracy = self.evaluate(epoch) if is_last or epoch % self.recipe.eval_every == 0 else None
            self.curve.append(Epoch(epoch, loss, accuracy, time.perf_counter() - start))
            if checkpoint is not None:
                is_due = not is_last and time.perf_counter() - kept_at >= checkpoint.every_s
                if is_due or (is_last and checkpoint.at_end):
                    self.save(checkpoint)
                    kept_at = time.perf_counter()
            if on_epoch is not None:
                on_epoch(self.curve[-1])
        if self.evaluated is not None:
            self.module.load_state_dict(self.evaluated)
        curve = tuple(self.curve[:num_epochs])
        last = curve[-1].accuracy
        assert last is not None
        return Outcome(last, sum(epoch.seconds for epoch in curve), curve)

    # -- training -----------------------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training images; the mean loss. Raises TrainError when a step is not finite."""
        self.module.train()
        self.evaluated = None
        recipe, seed = self.recipe, _mix(self.seed, epoch)
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        order = torch.randperm(len(self.split.train_labels), generator=torch.Generator().manual_seed(seed))
        side = self.split.train_images.shape[-1]
        mixes = draw_mixes(recipe, self.steps_per_epoch * recipe.accumulate, side, seed)
        mixes = None if mixes is None else mixes.to(self.device).view(self.steps_per_epoch, recipe.accumulate, -1)
        told = torch.zeros(self.steps_per_epoch, 2, device=self.device)
        num_done, num_steps = epoch * self.steps_per_epoch, recipe.epochs * self.steps_per_epoch
        feed = batches(self.split, order, recipe.batch_size, self.device)
        for step, (images, labels) in enumerate(feed):
            parts = self.parts(images, labels, None if mixes is None else mixes[step], generator)
            loss, norm = self.step(parts, learning_rate(recipe, num_done + step, num_steps))
            told[step, 0] = loss
            if norm is not None:
                told[step, 1] = norm
            if self.average is not None:
                self.average.update(num_done + step + 1)
            if (step + 1) % CHECK_EVERY_STEPS[self.device.type] == 0 or step + 1 == self.steps_per_epoch:
                self.require_finite(told[: step + 1], epoch)
        return float(told[:, 0].double().mean())

    def parts(self, images: Tensor, labels: Tensor, mixes: Tensor | None, generator: torch.Generator) -> list[Part]:
        """A batch of uint8 images augmented as the recipe says, in the parts that are run one after another."""
        found, recipe = [], self.recipe
        chunks = zip(images.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True)
        for index, (part, part_labels) in enumerate(chunks):
            pixels, share = augment(part, recipe, generator), None
            if recipe.color:
                pixels = change_color(pixels.float(), recipe.color, generator)
            pixels = self.normalized(pixels)
            if recipe.random_erasing:
                pixels = erase(pixels, recipe.random_erasing, generator)
            if mixes is not None:
                pixels, share = mix(pixels, mixes[index])
            found.append(Part(pixels, part_labels, share))
        return found

    def normalized(self, images: Tensor) -> Tensor:
        """0..255 of any type -> fp32 with mean 0 and deviation 1 a channel."""
        return (images.float() - self.mean) / self.std

    def require_finite(self, told: Tensor, epoch: int) -> None:
        """Raises TrainError for the first step of the epoch whose loss or gradient, (steps, 2), is not finite."""
        if bool(told.isfinite().all()):
            return
        step = int(told.isfinite().all(1).logical_not().nonzero()[0])
        loss, norm = told[step].tolist()
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        at = epoch * self.steps_per_epoch + step + 1
        raise TrainError(f"diverged: {what} at step {at} (epoch {epoch + 1}, seed {self.seed})", diverged_at=at)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def evaluate(self, epoch: int) -> float:
        """Share of the evaluation images that are classified correctly. Raises TrainError for an output that is not finite."""
        with self.as_evaluated():
            if self.has_others:
                self.evaluated = _copied(self.module)
            return self.accuracy(epoch)

    @torch.inference_mode()
    def accuracy(self, epoch: int) -> float:
        """That of the module as it is now, after so many epochs."""
        self.module.eval()
        correct = torch.zeros((), device=self.device)
        is_finite = torch.ones((), dtype=torch.bool, device=self.device)
        size = self.eval_batch
        for images, labels in zip(self.split.eval_images.split(size), self.split.eval_labels.split(size), strict=True):
            with autocast(self.recipe, self.device):
                logits = self.module(self.normalized(images.to(self.device)))
            is_finite &= logits.isfinite().all()
            correct += (logits.argmax(1) == labels.to(self.device)).sum()
        if not is_finite:  # the last step may break what no later step could tell
            at = epoch * self.steps_per_epoch
            message = f"diverged: the output is not finite after step {at} (epoch {epoch}, seed {self.seed})"
            raise TrainError(message, diverged_at=at)
        return float(correct) / len(self.split.eval_labels)

    @contextlib.contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """The module has the weights and statistics that are evaluated, in the body."""
        if not self.has_others:
            yield
            return
        trained = _copied(self.module)
        try:
            if self.average is not None:
                self.average.load()
            if self.recipe.precise_bn:
                with autocast(self.recipe, self.device):
                    recompute_statistics(self.module, self.plain_images(self.recipe.precise_bn))
            yield
        finally:
            self.module.load_state_dict(trained)

    def plain_images(self, num_images: int) -> Iterator[Tensor]:
        """At most so many training images without augmentation, always the same, in batches of about one size."""
        num_all = len(self.split.train_labels)
        chosen = torch.randperm(num_all, generator=torch.Generator().manual_seed(0))[:num_images]
        images = self.split.train_images
        for part in chosen.tensor_split(math.ceil(len(chosen) / self.eval_batch)):
            yield self.normalized(images[part.to(images.device)].to(self.device))

    # -- keeping ------------------------------------------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint) -> None:
        """Keeps the state: `module` are the weights that are evaluated, `trained` those to go on from where they differ."""
        state = {"key": checkpoint.key, "curve": [asdict(epoch) for epoch in self.curve], **self.step.state()}
        if self.has_others:
            if self.evaluated is None:
                with self.as_evaluated():
                    self.evaluated = _copied(self.module)
            state |= {"module": self.evaluated, "trained": self.module.state_dict()}
        else:
            state["module"] = self.module.state_dict()
        if self.average is not None:
            state["average"] = self.average.values
        write_checkpoint(state, checkpoint.path)
        if checkpoint.on_kept is not None:
            checkpoint.on_kept()

    def restore(self, checkpoint: Checkpoint, num_epochs: int) -> None:
        """Goes on from the kept state, if there is one that leads to `num_epochs` and an evaluation there."""
        if not checkpoint.path.exists():
            return
        try:
            state = read_checkpoint(checkpoint.path)
        except RecipeError:
            if checkpoint.path.exists():
                raise
            return  # another process has come to the end of the same training meanwhile
        if state.get("key") != checkpoint.key:
            raise RecipeError(
                f"{checkpoint.path}: the state of another training (other architecture, recipe, data, seed or starting weights); "
                "move it away, or train into another folder with --to"
            )
        curve = [Epoch(**row) for row in state["curve"]]
        if len(curve) > num_epochs and curve[num_epochs - 1].accuracy is None:
            return  # it went past this epoch without an evaluation: only a new training can tell its accuracy
        self.curve = curve
        self.module.load_state_dict(state.get("trained", state["module"]))
        self.step.restore(state)
        if self.average is not None:
            self.average.restore(state["average"])
        if self.has_others:
            self.evaluated = {name: value.to(self.device) for name, value in state["module"].items()}
        if len(curve) == num_epochs and curve[-1].accuracy is None:
            self.curve[-1] = replace(curve[-1], accuracy=self.evaluate(len(curve)))


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """Linear warm-up to `recipe.lr`, then a cosine to `recipe.min_lr` at the last step; `step` counts from 0."""
    warmup_steps = int(recipe.warmup * num_steps)
    if step < warmup_steps:
        return recipe.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _copied(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel, (1, C, 1, 1), over some 500 images taken evenly."""
    chosen = torch.arange(0, len(images), max(1, len(images) // 500), device=images.device)
    sample = images[chosen].float()
    return sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True).clamp_min(1e-3)


def _mix(seed: int, epoch: int) -> int:
    """One generator seed for every (seed, epoch)."""
    return (seed * 1_000_003 + epoch) % 2**63


@contextlib.contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """torch's global random state is the caller's again afterwards."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        yield
