"""Image sets: described without loading, then loaded as uint8 tensors that live on the training device.

A data set is one function that returns a `Source` and one line in SOURCES; a folder is told by what lies in it. The test
part is never seen by a search: a held-out part of the training images drives it (`Data.for_search`), the test images are
for full trainings (`Data.for_training`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from filelock import FileLock

from explorer.errors import DataError
from explorer.records import digest
from explorer.training.folders import IDX_FILES, DataInfo, Source, describe_idx, describe_tree, load_idx, load_tree

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Share of the training images that drives a search, and the most that are taken.
HELD_OUT_SHARE: Final = 1 / 7
HELD_OUT_MOST: Final = 10_000


@dataclass(frozen=True)
class Split:
    """Images (n, channels, H, W) as uint8 and labels (n,) as int64, to train on and to evaluate on."""

    train_images: Tensor
    train_labels: Tensor
    eval_images: Tensor
    eval_labels: Tensor


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
        images, labels = self.source.train_images, self.source.train_labels
        order = _shuffled(labels)
        train, held_out = order[self.num_held_out :][:train_images], order[: self.num_held_out][:eval_images]
        return Split(*_part(images, labels, train), *_part(images, labels, held_out))

    def for_training(self, train_images: int | None, eval_images: int | None) -> Split:
        """All training images, evaluated on the test part; at most the given numbers of each."""
        source = self.source
        train = _part(source.train_images, source.train_labels, _shuffled(source.train_labels)[:train_images])
        test = _part(source.test_images, source.test_labels, _shuffled(source.test_labels)[:eval_images])
        return Split(*train, *test)


def _shuffled(labels: Tensor) -> Tensor:
    """Indices of all images in one random order, the same at every call."""
    import torch

    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).to(labels.device)


def _part(images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Images and labels at `indices`; all of them as they lie, so that a set larger than memory is not copied."""
    return (images, labels) if len(indices) == len(labels) else (images[indices], labels[indices])


def describe(spec: str, root: Path) -> DataInfo:
    """What `spec` names: a set of SOURCES, a folder of the four idx files, or an ImageFolder tree.

    `root`: where downloaded sets and caches live. Loads nothing and downloads nothing. Raises DataError.
    """
    if spec in SOURCES:
        num_classes, channels, num_train, num_test, version, _ = SOURCES[spec]
        return DataInfo(
            spec, digest("d1", {"name": spec, "version": version}), num_classes, channels, num_train, num_test, root
        )
    folder = Path(spec)
    if not folder.is_dir():
        raise DataError(
            f"data: {spec!r} is neither a known set nor a folder; allowed: {', '.join(SOURCES)}, "
            "a folder of idx .gz files, or a folder of one folder of images per class"
        )
    if any((folder / name).exists() for name in IDX_FILES):
        return describe_idx(folder, root)
    return describe_tree(folder, root)


def load(info: DataInfo, *, image_size: int, channels: int, device: torch.device) -> Data:
    """Reads the set and brings it to (channels, image_size, image_size) on `device`.

    Grey images are repeated where three channels are wanted. Raises DataError for what is missing, truncated or unreadable.
    """

    if channels != info.channels and not (info.channels == 1 and channels == 3):
        raise DataError(
            f"data {info.spec}: its images have {info.channels} channels, {channels} are expected; "
            f"use a model with C{info.channels}"
        )
    if info.spec in SOURCES:
        source = SOURCES[info.spec][5](info, device)
    elif (Path(info.spec) / IDX_FILES[0]).exists():
        source = load_idx(info)
    else:
        source = load_tree(info, image_size)
    for images, labels in ((source.train_images, source.train_labels), (source.test_images, source.test_labels)):
        if len(images) != len(labels) or not len(labels):
            raise DataError(
                f"data {info.spec}: {len(images)} images but {len(labels)} labels; every image needs one label"
            )
    source = Source(
        _fitted(source.train_images, image_size, channels, device),
        source.train_labels.to(device),
        _fitted(source.test_images, image_size, channels, device),
        source.test_labels.to(device),
    )
    num_train = len(source.train_labels)
    return Data(info, source, min(HELD_OUT_MOST, max(1, int(num_train * HELD_OUT_SHARE))))


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


# -- sets by name -----------------------------------------------------------------------------------------------------


def _load_contours(info: DataInfo, device: torch.device) -> Source:
    from explorer.training import contours

    return Source(*contours.draw(info.num_train, 1, device), *contours.draw(info.num_test, 2, device))


def _load_torchvision(name: str) -> Callable[[DataInfo, torch.device], Source]:
    def load_set(info: DataInfo, _device: torch.device) -> Source:
        import torch
        from torchvision import datasets

        def part(train: bool) -> tuple[Tensor, Tensor]:
            try:
                info.root.mkdir(parents=True, exist_ok=True)
                with FileLock(info.root / f"{name}.lock"):  # several processes would unpack over each other
                    loaded = getattr(datasets, name)(str(info.root), train=train, download=True)
            except Exception as error:  # noqa: BLE001 - torchvision raises whatever a broken file or download leads to
                raise DataError(
                    f"data {info.spec}: not to be read from {info.root} and not to be downloaded "
                    f"({type(error).__name__}: {error}); put torchvision's {name} there, or choose another --data "
                    "(`contours` needs no download)"
                ) from None
            pixels = torch.as_tensor(np.asarray(loaded.data))
            images = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
            return images.contiguous(), torch.as_tensor(loaded.targets, dtype=torch.int64)

        return Source(*part(True), *part(False))

    return load_set


#: name: classes, channels, training images, test images, version of the content, loader. The version is part of the data's
#: fingerprint: it rises whenever the set would hold other images (`contours.draw` draws others, say).
SOURCES: Final[MappingProxyType[str, tuple[int, int, int, int, int, Callable[[DataInfo, Any], Source]]]] = (
    MappingProxyType(
        {
            "contours": (16, 1, 14_000, 2_000, 1, _load_contours),
            "fashion-mnist": (10, 1, 60_000, 10_000, 1, _load_torchvision("FashionMNIST")),
            "cifar10": (10, 3, 50_000, 10_000, 1, _load_torchvision("CIFAR10")),
            "cifar100": (100, 3, 50_000, 10_000, 1, _load_torchvision("CIFAR100")),
        }
    )
)
