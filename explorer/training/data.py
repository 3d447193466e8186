"""Image sets: described without loading, then loaded as uint8 tensors that live on the training device.

A data set is one function that returns a `Part` and one line in SOURCES; a folder is told by what lies in it, a set of
Hugging Face by `hf:`. The test part is never seen by a search: a held-out part of the training images drives it
(`Data.for_search`). The test images are for `verify` (`Data.for_verification`) and full trainings (`Data.for_training`),
and are not even read before those ask for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from filelock import FileLock

from explorer.errors import DataError
from explorer.records import digest
from explorer.training.folders import IDX_FILES, DataInfo, describe_idx, describe_tree, load_idx, load_tree, unreadable
from explorer.training.images import MAX_BAD_SHARE, OnImages, Part, PartName, pixel_hashes, shuffled

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)
#: Labels that are named where some are not trained on.
_MAX_NAMED: Final = 5
#: Share of the training images that drives a search, and the most that are taken.
HELD_OUT_SHARE: Final = 1 / 7
HELD_OUT_MOST: Final = 10_000
#: What the specs of Hugging Face's sets begin with.
HUB: Final = "hf:"


@dataclass(frozen=True)
class Split:
    """Images (n, channels, H, W) as uint8 and labels (n,) as int64, to train on and to evaluate on.

    The images may be slices of a memory-mapped file that is larger than memory: index or split them, never copy them whole.
    """

    train_images: Tensor
    train_labels: Tensor
    eval_images: Tensor
    eval_labels: Tensor


@dataclass(frozen=True)
class Source:
    """A data set at one size: the training part, and the test part, which is read when it is first asked for."""

    train: Part
    load_test: Callable[[], Part]

    @cached_property
    def test(self) -> Part:
        """Raises DataError."""
        return self.load_test()


@dataclass(frozen=True)
class Data:
    """A loaded data set at one image size on one device.

    Sets come sorted by class, so parts of them are taken in one order that is shuffled once for all. `num_held_out`: how
    many training images, the first of that order, drive a search and are not trained on there.
    """

    info: DataInfo
    source: Source
    num_held_out: int

    def for_search(self, train_images: int | None, eval_images: int | None) -> Split:
        """Training images without the held-out part, evaluated on that part; at most the given numbers of each."""
        most = self.num_held_out if eval_images is None else min(eval_images, self.num_held_out)
        return self._sound(Split(*self._without_held_out(train_images), *self.source.train.between(0, most)))

    def for_verification(self, train_images: int | None, eval_images: int | None) -> Split:
        """Trained as in a search, evaluated on the test part; at most the given numbers of each."""
        return self._sound(Split(*self._without_held_out(train_images), *self.source.test.between(0, eval_images)))

    def for_training(self, train_images: int | None, eval_images: int | None) -> Split:
        """All training images, evaluated on the test part; at most the given numbers of each."""
        return Split(*self.source.train.between(0, train_images), *self.source.test.between(0, eval_images))

    def _sound(self, split: Split) -> Split:
        lost = sorted({*split.eval_labels.unique().tolist()} - {*split.train_labels.unique().tolist()})
        if lost:
            _warn_of_untrained(self.info.spec, tuple(lost), len(split.train_labels))
        return split

    def _without_held_out(self, most: int | None) -> tuple[Tensor, Tensor]:
        return self.source.train.between(self.num_held_out, None if most is None else self.num_held_out + most)


def absolute(spec: str) -> str:
    """A folder under its full path, so that other commands find it from anywhere; else the spec as it is."""
    prefix = HUB if spec.startswith(HUB) else ""
    whole, comma, columns = spec.removeprefix(prefix).partition("," if prefix else "\0")
    before, colon, config = whole.partition(":" if prefix else "\0")
    for name, rest in ((whole, f"{comma}{columns}"), (before, f"{colon}{config}{comma}{columns}")):
        try:
            if name and spec not in SOURCES and Path(name).is_dir():
                return f"{prefix}{Path(name).resolve()}{rest}"
        except (OSError, ValueError):  # a name that no folder can have
            continue
    return spec


@cache
def _warn_of_untrained(spec: str, labels: tuple[int, ...], num_images: int) -> None:
    named = ", ".join(map(str, labels[:_MAX_NAMED])) + (", ..." if len(labels) > _MAX_NAMED else "")
    logger.warning(
        "data %s: %d classes (%s) are evaluated, but none of the %d images that are trained on is of them; give more images, "
        "or a recipe with more train_images",
        spec, len(labels), named, num_images,
    )  # fmt: skip


def describe(spec: str, root: Path) -> DataInfo:
    """What `spec` names: a set of SOURCES, `hf:` and a set of Hugging Face, a folder of the four idx files, or a tree.

    `root`: where downloaded sets and caches live. Loads nothing and downloads nothing, but for the sets of Hugging Face,
    which tell what they hold by holding it. Raises DataError.
    """
    if spec in SOURCES:
        num_classes, channels, num_train, num_test, version, _ = SOURCES[spec]
        return DataInfo(
            spec, digest("d1", {"name": spec, "version": version}), num_classes, channels, num_train, num_test, root
        )
    if spec.startswith(HUB):
        from explorer.training.hub import describe_hub

        return describe_hub(spec, root)
    folder = Path(spec)
    try:
        return _describe_folder(folder, root)
    except OSError as error:
        raise unreadable(folder, error) from None


def _describe_folder(folder: Path, root: Path) -> DataInfo:
    """Raises DataError and OSError."""
    if not folder.is_dir():
        raise DataError(
            f"data: {str(folder)!r} is neither a known set nor a folder; allowed: {', '.join(SOURCES)}, "
            "hf:NAME (a set of Hugging Face), a folder of idx .gz files, or a folder of one folder of images per class"
        )
    if any((folder / name).exists() for name in IDX_FILES):
        return describe_idx(folder, root)
    return describe_tree(folder, root)


def load(info: DataInfo, *, image_size: int, channels: int, device: torch.device) -> Data:
    """Reads the set and brings it to (channels, image_size, image_size) on `device`; the test part when it is asked for.

    Grey images are repeated where three channels are wanted. What is decoded is kept in a memory-mapped cache, which is built
    first where it is missing. Raises DataError for what is missing, truncated or unreadable, for labels out of range and for a
    class without training images.
    """
    return _load(info, image_size, channels, device)


def _load(
    info: DataInfo,
    image_size: int,
    channels: int,
    device: torch.device,
    *,
    max_bad_share: float | None = None,
    on_images: OnImages | None = None,
) -> Data:
    """As `load`; `max_bad_share` and `on_images` as `images.cached` has them."""
    if channels != info.channels and not (info.channels == 1 and channels == 3):
        raise DataError(
            f"data {info.spec}: its images have {info.channels} channels, {channels} are expected; "
            f"use a model with C{info.channels}"
        )

    def loaded(name: PartName) -> Part:
        if info.spec in SOURCES:
            part = SOURCES[info.spec][5](info, name, device)
        elif info.spec.startswith(HUB):
            from explorer.training.hub import load_hub

            part = load_hub(info, name, image_size, channels, max_bad_share=max_bad_share, on_images=on_images)
        elif (Path(info.spec) / IDX_FILES[0]).exists():
            part = load_idx(info, name)
        else:
            part = load_tree(info, name, image_size, max_bad_share=max_bad_share, on_images=on_images)
        _require_sound(info, name, part)
        images = _fitted(part.images, image_size, channels, device)
        return replace(part, images=images, labels=part.labels.to(device))

    train = loaded("train")
    num_held_out = min(HELD_OUT_MOST, max(1, int(len(train.labels) * HELD_OUT_SHARE)))
    return Data(info, Source(train, lambda: loaded("test")), num_held_out)


def _require_sound(info: DataInfo, name: PartName, part: Part) -> None:
    """Raises DataError where images and labels do not fit each other or the set's classes."""
    labels = part.labels
    if len(part.images) != len(labels) or not len(labels):
        raise DataError(
            f"data {info.spec}: {len(part.images)} images but {len(labels)} labels in the {name} part; every image needs one "
            "label"
        )
    outside = ((labels < 0) | (labels >= info.num_classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"data {info.spec}: label {int(labels[first])} of {name} image {first} is out of range ({len(outside)} are); "
            f"allowed: 0 to {info.num_classes - 1}; mend the labels"
        )
    absent = (labels.bincount(minlength=info.num_classes) == 0).nonzero()
    if name == "train" and len(absent):
        label = int(absent[0])
        named = f" ({info.class_names[label]})" if info.class_names else ""
        left_out = f"; {len(part.bad)} that cannot be read were left out" if part.bad else ""
        raise DataError(
            f"data {info.spec}: no training image of class {label}{named}{left_out}; every class needs one: add some, or remove "
            "the class"
        )
    described = info.num_train if name == "train" else info.num_test
    if len(labels) + len(part.bad) != described:
        raise DataError(
            f"data {info.spec}: {len(labels) + len(part.bad)} {name} images where {described} belong: this is another set, and "
            f"its scores would stand beside those of {info.id}; put the whole set there, or give what lies there as a folder"
        )


def resting_device(info: DataInfo, *, image_size: int, channels: int, device: torch.device) -> torch.device:
    """Where the images of a set should lie: with the training if they take at most half of its free memory."""
    import torch

    if device.type != "cuda":
        return device
    num_bytes = (info.num_train + info.num_test) * channels * image_size**2
    return device if 2 * num_bytes < torch.cuda.mem_get_info(device)[0] else torch.device("cpu")


def _fitted(images: Tensor, image_size: int, channels: int, device: torch.device) -> Tensor:
    """Resizes uint8 images in chunks (antialiased) and repeats grey ones to `channels`."""
    import torch
    from torch.nn import functional as F

    if images.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        images = torch.cat(
            [
                F.interpolate(chunk.to(device).float(), size, mode="bilinear", antialias=True)
                .round()
                .clamp(0, 255)
                .byte()
                for chunk in images.split(2_000)
            ]
        )
    images = images.to(device)
    return images if images.shape[1] == channels else images.expand(-1, channels, -1, -1).contiguous()


# -- preparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreparedPart:
    """What a part holds: images of every class by label, their pixels' bytes, what was left out, and the cache's file."""

    name: PartName
    per_class: tuple[int, ...]
    num_bytes: int
    bad: tuple[str, ...]
    cache: Path | None

    @property
    def num_images(self) -> int:
        """Of all classes."""
        return sum(self.per_class)


@dataclass(frozen=True)
class Prepared:
    """A set that is ready at one size; `num_held_out` of its training images drive a search.

    `held_out_duplicates`: how many of those equal one that is trained on, pixel by pixel; `test_duplicates`: how many test
    images equal a training image.
    """

    info: DataInfo
    image_size: int
    channels: int
    train: PreparedPart
    test: PreparedPart
    num_held_out: int
    held_out_duplicates: int
    test_duplicates: int


def prepare(
    info: DataInfo,
    *,
    image_size: int,
    channels: int,
    max_bad_share: float = MAX_BAD_SHARE,
    on_images: OnImages | None = None,
) -> Prepared:
    """Loads both parts, so that their caches are there, and counts what is in them. Raises DataError as `load` does."""
    import torch

    device = torch.device("cpu")
    data = _load(info, image_size, channels, device, max_bad_share=max_bad_share, on_images=on_images)
    train, test = data.source.train, data.source.test
    named: tuple[tuple[PartName, Part], ...] = (("train", train), ("test", test))
    hashes = _hashes_in_order(train)
    held_out, trained = hashes[: data.num_held_out], hashes[data.num_held_out :]
    parts = [
        PreparedPart(
            name,
            tuple(part.labels.bincount(minlength=info.num_classes).tolist()),
            part.images.nbytes,
            part.bad,
            part.cache,
        )
        for name, part in named
    ]
    duplicates = (
        int(np.isin(some, others).sum()) for some, others in ((held_out, trained), (_hashes_in_order(test), hashes))
    )
    return Prepared(info, image_size, channels, parts[0], parts[1], data.num_held_out, *duplicates)


def _hashes_in_order(part: Part) -> np.ndarray:
    """Of every image's pixels, in the order that parts are taken in."""
    if part.hashes is not None:
        return part.hashes
    as_they_lie = np.concatenate([pixel_hashes(chunk.numpy()) for chunk in part.images.split(2_000)])
    in_order: np.ndarray = as_they_lie[shuffled(len(as_they_lie)).numpy()]
    return in_order


# -- sets by name -----------------------------------------------------------------------------------------------------


def _load_contours(info: DataInfo, part: PartName, device: torch.device) -> Part:
    from explorer.training import contours

    number, seed = (info.num_train, 1) if part == "train" else (info.num_test, 2)
    return Part(*contours.draw(number, seed, device))


def _load_silhouettes(info: DataInfo, part: PartName, device: torch.device) -> Part:
    from explorer.training import silhouettes

    number, seed = (info.num_train, 1) if part == "train" else (info.num_test, 2)
    return Part(*silhouettes.draw(number, seed, device))


def _load_torchvision(name: str) -> Callable[[DataInfo, PartName, torch.device], Part]:
    def load_part(info: DataInfo, part: PartName, _device: torch.device) -> Part:
        import torch
        from torchvision import datasets

        try:
            info.root.mkdir(parents=True, exist_ok=True)
            with FileLock(info.root / f"{name}.lock"):  # several processes would unpack over each other
                loaded = getattr(datasets, name)(str(info.root), train=part == "train", download=True)
        except Exception as error:  # noqa: BLE001 - torchvision raises whatever a broken file or download leads to
            raise DataError(
                f"data {info.spec}: not to be read from {info.root} and not to be downloaded "
                f"({type(error).__name__}: {error}); put torchvision's {name} there, or choose another --data "
                "(`contours` needs no download)"
            ) from None
        pixels = torch.as_tensor(np.asarray(loaded.data))
        images = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
        return Part(images.contiguous(), torch.as_tensor(loaded.targets, dtype=torch.int64))

    return load_part


#: name: classes, channels, training images, test images, version of the content, loader. The version is part of the data's
#: fingerprint: it rises whenever the set would hold other images (`contours.draw` draws others, say).
SOURCES: Final[MappingProxyType[str, tuple[int, int, int, int, int, Callable[[DataInfo, PartName, Any], Part]]]] = (
    MappingProxyType(
        {
            "contours": (16, 1, 14_000, 2_000, 1, _load_contours),
            "silhouettes": (40, 1, 35_000, 4_000, 1, _load_silhouettes),
            "fashion-mnist": (10, 1, 60_000, 10_000, 1, _load_torchvision("FashionMNIST")),
            "cifar10": (10, 3, 50_000, 10_000, 1, _load_torchvision("CIFAR10")),
            "cifar100": (100, 3, 50_000, 10_000, 1, _load_torchvision("CIFAR100")),
        }
    )
)
