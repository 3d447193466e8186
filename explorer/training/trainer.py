"""The one training loop: short proxies and full trainings differ by their recipe alone.

All randomness of an epoch is drawn from (seed, epoch), so that a training resumed at an epoch's end goes on as the
undisturbed one would have. Data live on the device; augmentation is batched there.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import DataError, RecipeError, TrainError
from explorer.records import Epoch
from explorer.training.data import Split
from explorer.training.recipe import Recipe

EVAL_BATCH = 256
#: A diverged loss is looked for this often; looking makes a GPU wait.
CHECK_EVERY_STEPS = 20


@dataclass(frozen=True)
class Outcome:
    """The last accuracy (0..1), seconds of training (evaluation included, resumed epochs too) and the curve."""

    accuracy: float
    train_s: float
    curve: tuple[Epoch, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state, and `key`, which a state to resume from must carry.

    `every_s`: least seconds between two times that it is kept; `at_end`: whether the last epoch's is.
    """

    path: Path
    key: str
    every_s: float = 0.0
    at_end: bool = True


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
) -> Outcome:
    """Trains `module` in place for the recipe's epochs; same arguments on one CPU, same accuracy (a GPU adds in any order).

    With a `checkpoint` the state is kept after epochs and resumed from; `until` stops after so many epochs of the recipe's
    schedule. Raises TrainError when the loss is no longer
    finite or memory runs out, RecipeError when the kept state belongs to another training.
    """
    require_fit(recipe, split)
    with _random_state_kept(device):
        try:
            loop = _Loop(module.to(device), recipe, split, seed, device)
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

    def __init__(self, module: nn.Module, recipe: Recipe, split: Split, seed: int, device: torch.device) -> None:
        self.module, self.recipe, self.split, self.seed, self.device = module, recipe, split, seed, device
        self.steps_per_epoch = len(split.train_labels) // recipe.batch_size
        self.optimizer = torch.optim.AdamW(_parameter_groups(module, recipe.weight_decay), lr=recipe.lr, fused=True)
        self.mean, self.std = (moment.to(device) for moment in _statistics(split.train_images))
        self.curve: list[Epoch] = []

    def run(self, on_epoch: Callable[[Epoch], None] | None, checkpoint: Checkpoint | None, num_epochs: int) -> Outcome:
        if checkpoint is not None:
            self.restore(checkpoint)
        kept_at = time.perf_counter()
        while len(self.curve) < num_epochs:
            start = time.perf_counter()
            loss = self.train_epoch(len(self.curve))
            accuracy = self.evaluate()
            self.curve.append(Epoch(len(self.curve) + 1, loss, accuracy, time.perf_counter() - start))
            is_last = len(self.curve) == num_epochs
            if checkpoint is not None:
                is_due = not is_last and time.perf_counter() - kept_at >= checkpoint.every_s
                if is_due or (is_last and checkpoint.at_end):
                    self.save(checkpoint)
                    kept_at = time.perf_counter()
            if on_epoch is not None:
                on_epoch(self.curve[-1])
        curve = tuple(self.curve[:num_epochs])
        last = curve[-1].accuracy
        assert last is not None
        return Outcome(last, sum(epoch.seconds for epoch in curve), curve)

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training images; the mean loss. Raises TrainError when it is not finite."""
        self.module.train()
        torch.manual_seed(_mix(self.seed, epoch))
        generator = torch.Generator(self.device).manual_seed(_mix(self.seed, epoch))
        order = torch.randperm(
            len(self.split.train_labels), generator=torch.Generator().manual_seed(_mix(self.seed, epoch))
        )
        total, recipe = torch.zeros((), device=self.device), self.recipe
        for step in range(self.steps_per_epoch):
            batch = order[step * recipe.batch_size : (step + 1) * recipe.batch_size].to(self.split.train_labels.device)
            self.set_lr(epoch * self.steps_per_epoch + step)
            total += self.train_step(batch, generator)
            if (step + 1) % CHECK_EVERY_STEPS == 0 or step + 1 == self.steps_per_epoch:
                self.require_finite(total, epoch, step)
        return float(total) / self.steps_per_epoch

    def train_step(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """One optimizer step on the images `batch` indexes; their mean loss, on the device."""
        total = torch.zeros((), device=self.device)
        for part in batch.chunk(self.recipe.accumulate):
            images = augment(self.split.train_images[part].to(self.device), self.recipe, generator)
            labels = self.split.train_labels[part].to(self.device)
            with self.autocast():
                logits = self.module(self.normalized(images))
                loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
            (loss / self.recipe.accumulate).backward()
            total += loss.detach() / self.recipe.accumulate
        nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    @torch.inference_mode()
    def evaluate(self) -> float:
        """Share of the evaluation images that are classified correctly."""
        self.module.eval()
        correct = torch.zeros((), device=self.device)
        for images, labels in zip(
            self.split.eval_images.split(EVAL_BATCH), self.split.eval_labels.split(EVAL_BATCH), strict=True
        ):
            with self.autocast():
                correct += (
                    self.module(self.normalized(images.to(self.device))).argmax(1) == labels.to(self.device)
                ).sum()
        return float(correct) / len(self.split.eval_labels)

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 -> fp32 with mean 0 and deviation 1 a channel."""
        return (images.float() - self.mean) / self.std

    def set_lr(self, step: int) -> None:
        lr = learning_rate(self.recipe, step, self.recipe.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if (
            self.device.type == "cuda"
            and self.recipe.precision == "mixed"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        ):
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def require_finite(self, loss: Tensor, epoch: int, step: int) -> None:
        if not math.isfinite(float(loss)):
            at = epoch * self.steps_per_epoch + step + 1
            raise TrainError(f"diverged: the loss is {float(loss)} by step {at} (epoch {epoch + 1}, seed {self.seed})")

    def save(self, checkpoint: Checkpoint) -> None:
        state = {
            "key": checkpoint.key,
            "curve": [asdict(epoch) for epoch in self.curve],
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = checkpoint.path.with_suffix(f".{os.getpid()}.part")
        try:
            torch.save(state, unfinished)
            unfinished.replace(checkpoint.path)
        except (OSError, RuntimeError) as error:  # torch's writer tells a full disk as a RuntimeError
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise DataError(
                f"{checkpoint.path}: the state of the training cannot be written: {_first_line(error)}; free some space, or "
                "use another folder"
            ) from None

    def restore(self, checkpoint: Checkpoint) -> None:
        if not checkpoint.path.exists():
            return
        state = read_checkpoint(checkpoint.path)
        if state.get("key") != checkpoint.key:
            raise RecipeError(
                f"{checkpoint.path}: the state of another training (other architecture, recipe, data, seed or starting weights); "
                "move it away, or train into another folder with --to"
            )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = [Epoch(**row) for row in state["curve"]]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state kept at `path`, read without running any code in it. Raises RecipeError for a file that is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file leads to
        raise RecipeError(f"{path}: not a checkpoint that can be read safely: {_first_line(error)}") from None
    if not isinstance(state, dict) or "module" not in state:
        raise RecipeError(f"{path}: not a checkpoint of swinexplore")
    return state


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """Linear warm-up to `recipe.lr`, then a cosine to `recipe.min_lr` at the last step; `step` counts from 0."""
    warmup_steps = int(recipe.warmup * num_steps)
    if step < warmup_steps:
        return recipe.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random crop after padding with the edge, and random horizontal flip; (B, C, H, W) of any type, one draw an image."""
    B, _, _, side = images.shape
    padding = int(side * recipe.crop_padding)
    if padding:
        padded = F.pad(images.float(), (padding,) * 4, mode="replicate").to(images.dtype)
        offsets = torch.randint(0, 2 * padding + 1, (2, B, 1), generator=generator, device=images.device)
        rows, columns = offsets + torch.arange(side, device=images.device)
        images = padded[torch.arange(B, device=images.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        images = images.permute(0, 3, 1, 2)
    if recipe.flip:
        flipped = torch.rand(B, generator=generator, device=images.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return images


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Norms, biases, position biases and temperatures are not decayed, as in the Swin authors' code."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_kept = parameter.ndim <= 1 or any(part in name for part in ("bias_table", "cpb_mlp", "logit_scale"))
        (others if is_kept else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation a channel, (1, C, 1, 1), over some 500 images taken evenly."""
    sample = images[:: max(1, len(images) // 500)].float()
    return sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True).clamp_min(1e-3)


def _mix(seed: int, epoch: int) -> int:
    """One generator seed for every (seed, epoch)."""
    return (seed * 1_000_003 + epoch) % 2**63


@contextlib.contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """torch's global random state is the caller's again afterwards."""
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        yield
