"""What a training is made of: `Recipe`, the built-in recipes and the run file of a full training. No torch here.

A recipe holds everything that shapes the result but the architecture, the data and the seed. The proxy and the full
training are the same loop with two recipes.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from explorer.arch import Arch
from explorer.document import Document, Version, check, read
from explorer.errors import ArchError, RecipeError
from explorer.records import digest

_Share = Annotated[float, Field(ge=0.0, lt=1.0)]
_Probability = Annotated[float, Field(ge=0.0, le=1.0)]
#: torch's generators take no larger seed.
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
#: A YAML list is a tuple here; its items stay strict.
_Pair = Annotated[tuple[_Share, _Share], Field(strict=False)]


class Recipe(Document):
    """AdamW with linear warm-up and cosine decay over `epochs`, label smoothing and augmentation.

    `batch_size`: images per optimizer step, cut into `accumulate` equal parts that are run one after another. `lr`: at the
    end of the warm-up, for this batch size. `warmup`: share of all steps. `betas`: AdamW's. `init`: the weights to start from,
    as `explorer.model.build` has them; `narrow` is for narrow networks and short trainings.

    Augmentation, all of it batched on the training's device. `crop_padding`: pixels, as a share of the image's side, by
    which a random crop may move it. `scale`: in its place, random resized crops whose share of the image's area is at
    least this. `color`: brightness, contrast and saturation change by factors of up to 1 +- this. `random_erasing`:
    probability that a box of an image is replaced by noise (Zhong et al. 2017). `mixup`, `cutmix`: alpha of the
    distribution that shares are drawn from (Zhang et al. 2017, Yun et al. 2019), 0 for none; with both, every batch is
    mixed by one of them, chosen half and half. There is no RandAugment: its operations run on one image at a time.

    `train_images`: at most that many are used (None: all). `eval_every`: epochs from one evaluation to the next; the last
    is evaluated too. `ema`: decay a step of an exponential average of the weights, which is evaluated in their place.
    `precise_bn`: from so many training images BatchNorm's statistics are computed anew before an evaluation; 0 keeps the
    running ones. `precision`: `mixed` means bf16 autocast on a GPU that has it, `fp16` fp16 autocast with a scaled loss on
    a GPU; fp32 elsewhere.
    """

    epochs: PositiveInt
    batch_size: PositiveInt = 128
    accumulate: PositiveInt = 1
    lr: PositiveFloat = 1e-3
    min_lr: NonNegativeFloat = 1e-5
    warmup: _Share = 0.1
    betas: _Pair = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.05
    label_smoothing: _Share = 0.1
    init: Literal["authors", "narrow"] = "authors"
    drop_path: _Share = 0.0
    grad_clip: PositiveFloat = 5.0
    flip: bool = False
    crop_padding: _Share = 0.0625
    scale: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    color: _Share = 0.0
    random_erasing: _Probability = 0.0
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    train_images: PositiveInt | None = None
    eval_images: PositiveInt | None = None
    eval_every: PositiveInt = 1
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    precise_bn: NonNegativeInt = 0
    precision: Literal["mixed", "fp16", "fp32"] = "mixed"

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is more than lr {self.lr}; use at most that")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide batch_size {self.batch_size}")
        if (self.mixup or self.cutmix) and self.accumulate == self.batch_size:
            raise ValueError(
                f"accumulate: {self.accumulate} leaves parts of 1 image, and mixup and cutmix need a second one in the part; "
                "use less, or no mixing"
            )
        if self.precise_bn == 1:
            raise ValueError("precise_bn: 1 image has no spread; use 0 (keep the running statistics) or at least 2")
        return self

    @property
    def id(self) -> str:
        """`r1-` and 12 hex digits over all fields that differ from the defaults, which therefore never change."""
        return digest("r1", self.model_dump(exclude_defaults=True))


#: Built-in recipes. `imagenet` follows Liu et al. 2021, section 4.1, with changes of colour (0.4, as where the authors'
#: code has no RandAugment) in place of RandAugment.
RECIPES: Final = MappingProxyType(
    {
        "proxy": Recipe(
            epochs=2,
            batch_size=32,
            lr=2e-3,
            min_lr=2e-5,
            warmup=0.25,
            betas=(0.9, 0.99),
            label_smoothing=0.0,
            init="narrow",
            grad_clip=1.0,
            crop_padding=0.0,
            train_images=24_000,
            eval_images=8_000,
        ),
        "quick": Recipe(epochs=3, batch_size=48, lr=3e-3, warmup=0.15, train_images=1_600, eval_images=800),
        "imagenet": Recipe(
            epochs=300,
            batch_size=1024,
            accumulate=8,
            lr=1e-3,
            warmup=20 / 300,
            drop_path=0.5,
            flip=True,
            crop_padding=0.0,
            scale=0.08,
            color=0.4,
            random_erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
        ),
    }
)


def load_recipe(name: str, *, epochs: int | None = None) -> Recipe:
    """A built-in recipe by name, or one from a YAML file; `epochs` replaces its schedule's length. Raises RecipeError."""
    if name in RECIPES:
        recipe = RECIPES[name]
    elif Path(name).suffix in (".yaml", ".yml"):
        recipe = read(Path(name), Recipe, RecipeError)
    else:
        raise RecipeError(f"recipe: {name!r} is not known; allowed: {', '.join(RECIPES)}, or a .yaml file")
    if epochs is not None and epochs < 1:
        raise RecipeError(f"epochs: {epochs} is not a whole number of at least 1")
    return recipe if epochs is None else recipe.model_copy(update={"epochs": epochs})


class RunFile(Document):
    """A full training as `swinexplore export` writes it and `swinexplore train` reads it.

    `arch`: every field of the architecture. `data`: as for `--data`, or None where it is given at training time. `origin`:
    where the choice came from; for people, not read by the training.
    """

    version: Version
    name: str
    arch: dict[str, Any]
    recipe: Recipe
    data: str | None = None
    seed: _Seed = 0
    origin: dict[str, Any] = {}

    def architecture(self, source: str) -> Arch:
        """The `arch` field as a canonical Arch. Raises RecipeError, opened by `source`."""
        is_older = not _NEWER_FIELDS & set(self.arch)
        missing = sorted(set(Arch().to_dict()) - set(self.arch) - (_NEWER_FIELDS if is_older else set()))
        if missing:
            raise RecipeError(f"{source}: arch: {', '.join(missing)} missing; a run file names every field")
        try:
            return Arch.from_dict(self.arch).canonical()
        except ArchError as error:
            raise RecipeError(f"{source}: arch.{error}") from None


#: Fields of an architecture that run files of version 0.1 do not have, none of them; they mean the defaults.
_NEWER_FIELDS: Final = frozenset({"v2", "pretrained_windows"})


def load_run(path: Path) -> RunFile:
    """Reads a run file; raises RecipeError with file, field path, value and what is allowed."""
    run = read(path, RunFile, RecipeError)
    run.architecture(str(path))
    return run


def write_run(run: RunFile, path: Path) -> None:
    """Writes `run` as YAML with a heading that says how to use it."""
    check(run.model_dump(), RunFile, RecipeError, str(path))
    text = yaml.safe_dump(run.model_dump(), sort_keys=False, default_flow_style=None, width=100)
    heading = (
        f"# A training run written by swinexplore. Start or resume it: swinexplore train {path.name} --data DATA\n"
    )
    path.write_text(heading + text, encoding="utf-8")
