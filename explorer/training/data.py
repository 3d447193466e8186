"""Image sets: described without loading, then loaded as uint8 tensors that live on the training device.

A data set is one function that returns a `Source` and one line in SOURCES; a folder is told by what lies in it. The test
part is never seen by a search: a held-out part of the training images drives it (`Data.for_search`), the test images are
for full trainings (`Data.for_training`).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from explorer.errors import DataError
from explorer.records import digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Share of the training images that drives a search, and the most that are taken.
HELD_OUT_SHARE: Final = 1 / 7
HELD_OUT_MOST: Final = 10_000
IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
IDX_FILES: Final = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@dataclass(frozen=True)
class DataInfo:
    """A data set as it is described without loading it. `id` fingerprints the content and is part of a score's key."""

    spec: str
    id: str
    num_classes: int
    channels: int
    num_train: int
    num_test: int
    root: Path


@dataclass(frozen=True)
class Split:
    """Images (n, channels, H, W) as uint8 and labels (n,) as int64, to train on and to evaluate on."""

    train_images: Tensor
    train_labels: Tensor
    eval_images: Tensor
    eval_labels: Tensor


@dataclass(frozen=True)
class Source:
    """A data set as it was read: uint8 images (n, channels, H, W) and int64 labels, training and test part."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Data:
    """A loaded data set at one image size on one device; `held_out` indexes the training images kept from training."""

    info: DataInfo
    source: Source
    held_out: Tensor

    def for_search(self, train_images: int | None, eval_images: int | None) -> Split:
        """Training images without the held-out part, evaluated on that part; at most the given numbers of each."""
        import torch

        keep = torch.ones(len(self.source.train_labels), dtype=torch.bool)
        keep[self.held_out] = False
        train = keep.nonzero().squeeze(1)[:train_images].to(self.source.train_labels.device)
        held_out = self.held_out[:eval_images].to(self.source.train_labels.device)
        return Split(
            self.source.train_images[train],
            self.source.train_labels[train],
            self.source.train_images[held_out],
            self.source.train_labels[held_out],
        )

    def for_training(self, train_images: int | None, eval_images: int | None) -> Split:
        """All training images, evaluated on the test part; at most the given numbers of each."""
        return Split(
            self.source.train_images[:train_images],
            self.source.train_labels[:train_images],
            self.source.test_images[:eval_images],
            self.source.test_labels[:eval_images],
        )


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
        return _describe_idx(folder, root)
    return _describe_tree(folder, root)


def load(info: DataInfo, *, image_size: int, channels: int, device: torch.device) -> Data:
    """Reads the set and brings it to (channels, image_size, image_size) on `device`.

    Grey images are repeated where three channels are wanted. Raises DataError for what is missing, truncated or unreadable.
    """
    import torch

    if channels != info.channels and not (info.channels == 1 and channels == 3):
        raise DataError(f"data {info.spec}: its images have {info.channels} channels, {channels} are expected; use a model with C{info.channels}")
    if info.spec in SOURCES:
        source = SOURCES[info.spec][5](info, device)
    elif (Path(info.spec) / IDX_FILES[0]).exists():
        source = _load_idx(info)
    else:
        source = _load_tree(info, image_size)
    source = Source(
        _fitted(source.train_images, image_size, channels, device),
        source.train_labels.to(device),
        _fitted(source.test_images, image_size, channels, device),
        source.test_labels.to(device),
    )
    num_train = len(source.train_labels)
    order = torch.randperm(num_train, generator=torch.Generator().manual_seed(0))
    return Data(info, source, order[: min(HELD_OUT_MOST, max(1, int(num_train * HELD_OUT_SHARE)))])


def _fitted(images: Tensor, image_size: int, channels: int, device: torch.device) -> Tensor:
    """Resizes uint8 images in chunks (antialiased) and repeats grey ones to `channels`."""
    import torch
    from torch.nn import functional as F

    if images.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        images = torch.cat(
            [
                F.interpolate(chunk.to(device).float(), size, mode="bilinear", antialias=True).round().clamp(0, 255).byte()
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
                loaded = getattr(datasets, name)(str(info.root), train=train, download=True)
            except (OSError, RuntimeError, ValueError, EOFError) as error:
                raise DataError(
                    f"data {info.spec}: not found in {info.root} and not to be downloaded ({error}); put torchvision's "
                    f"{name} there, or choose another --data (`contours` needs no download)"
                ) from None
            pixels = torch.as_tensor(np.asarray(loaded.data))
            images = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
            return images.contiguous(), torch.as_tensor(loaded.targets, dtype=torch.int64)

        info.root.mkdir(parents=True, exist_ok=True)
        return Source(*part(True), *part(False))

    return load_set


#: name: classes, channels, training images, test images, version of the content, loader.
SOURCES: Final[MappingProxyType[str, tuple[int, int, int, int, int, Callable[[DataInfo, Any], Source]]]] = MappingProxyType(
    {
        "contours": (16, 1, 14_000, 2_000, 1, _load_contours),
        "fashion-mnist": (10, 1, 60_000, 10_000, 1, _load_torchvision("FashionMNIST")),
        "cifar10": (10, 3, 50_000, 10_000, 1, _load_torchvision("CIFAR10")),
        "cifar100": (100, 3, 50_000, 10_000, 1, _load_torchvision("CIFAR100")),
    }
)


# -- a folder of four idx files ---------------------------------------------------------------------------------------


def _describe_idx(folder: Path, root: Path) -> DataInfo:
    missing = [name for name in IDX_FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"data {folder}: {', '.join(missing)} missing; a folder of idx files holds {', '.join(IDX_FILES)}")
    sha = hashlib.sha256()
    for name in IDX_FILES:
        sha.update((folder / name).read_bytes())
    train_labels, test_labels = _read_idx(folder / IDX_FILES[1], 1), _read_idx(folder / IDX_FILES[3], 1)
    if not len(train_labels) or not len(test_labels):
        raise DataError(f"data {folder}: holds no images")
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    absent = sorted(set(range(num_classes)) - set(train_labels.tolist()))
    if absent:
        raise DataError(f"data {folder}: {IDX_FILES[1]}: no training image of class {absent[0]}; every class needs one")
    return DataInfo(
        str(folder), digest("d1", {"idx": sha.hexdigest()}), num_classes, 1, len(train_labels), len(test_labels), root
    )


def _load_idx(info: DataInfo) -> Source:
    import torch

    folder = Path(info.spec)
    train_images, train_labels, test_images, test_labels = (
        _read_idx(folder / name, 3 if "images" in name else 1) for name in IDX_FILES
    )
    for name, images, labels in ((IDX_FILES[0], train_images, train_labels), (IDX_FILES[2], test_images, test_labels)):
        if len(images) != len(labels):
            raise DataError(f"data {folder}: {name}: {len(images)} images but {len(labels)} labels; the files do not fit")
    return Source(
        torch.from_numpy(train_images)[:, None],
        torch.from_numpy(train_labels).long(),
        torch.from_numpy(test_images)[:, None],
        torch.from_numpy(test_labels).long(),
    )


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """One gzip-compressed idx file of unsigned bytes with `ndim` dimensions (yann.lecun.com's format)."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"data: {path}: not a readable gzip file: {error}") from None
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes([0, 0, 8, ndim]):
        raise DataError(f"data: {path}: not an idx file of {ndim} dimensions of unsigned bytes")
    dims = struct.unpack(f">{ndim}I", content[4:header])
    if len(content) - header != int(np.prod(dims)):
        raise DataError(f"data: {path}: {len(content) - header} bytes for {'x'.join(map(str, dims))} values; truncated?")
    return np.frombuffer(content, np.uint8, offset=header).reshape(dims).copy()


# -- a tree of one folder per class -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """Image files and labels of the training and the test part; `classes` by name."""

    classes: list[str]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]


def _describe_tree(folder: Path, root: Path) -> DataInfo:
    tree = _scan(folder)
    listing = [(str(file.relative_to(folder)), file.stat().st_size) for file, _ in (*tree.train, *tree.test)]
    fingerprint = digest("d1", {"tree": sorted(listing)})
    return DataInfo(str(folder), fingerprint, len(tree.classes), 3, len(tree.train), len(tree.test), root)


def _scan(folder: Path) -> _Tree:
    """Finds the images: `train/` beside `val/` or `test/`, else one tree of which every tenth image is the test part."""
    test_folder = next((folder / name for name in ("val", "test", "validation") if (folder / name).is_dir()), None)
    train_folder = folder / "train" if test_folder is not None and (folder / "train").is_dir() else folder
    classes = sorted(entry.name for entry in train_folder.iterdir() if entry.is_dir())
    if len(classes) < 2:
        raise DataError(f"data {train_folder}: holds {len(classes)} folders; one folder of images per class is expected")
    train = _images_below(train_folder, classes)
    if train_folder == folder or test_folder is None:
        parts = [[pair for index, pair in enumerate(train) if (index % 10 == 9) is is_test] for is_test in (False, True)]
        return _Tree(classes, *parts)
    unknown = sorted({entry.name for entry in test_folder.iterdir() if entry.is_dir()} - set(classes))
    if unknown:
        raise DataError(f"data {test_folder}: class {unknown[0]!r} is not in {train_folder}; both must hold the same")
    return _Tree(classes, train, _images_below(test_folder, classes))


def _images_below(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    pairs = []
    for label, name in enumerate(classes):
        files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
        if not files:
            raise DataError(f"data {folder / name}: holds no image ({', '.join(IMAGE_SUFFIXES)}); every class needs one")
        pairs += [(file, label) for file in files]
    return pairs


def _load_tree(info: DataInfo, image_size: int) -> Source:
    """Decodes the tree once into a memory-mapped cache below `info.root`; the next load opens that."""
    import torch

    tree = _scan(Path(info.spec))
    parts: list[Tensor] = []
    for part, pairs in (("train", tree.train), ("test", tree.test)):
        cache = info.root / "trees" / f"{info.id}-{image_size}-{part}.npy"
        if not cache.exists():
            _decode([file for file, _ in pairs], image_size, cache)
        parts += [
            torch.from_numpy(np.load(cache, mmap_mode="c")),
            torch.tensor([label for _, label in pairs], dtype=torch.int64),
        ]
    return Source(*parts)


def _decode(files: list[Path], image_size: int, cache: Path) -> None:
    """Shorter side to `image_size`, centre crop, RGB; written beside `cache`, then moved there whole."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_suffix(f".{os.getpid()}.part")
    try:
        array = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(files), 3, image_size, image_size))
        with ThreadPoolExecutor() as pool:
            problems = [problem for problem in pool.map(lambda job: _decode_one(*job, image_size, array), enumerate(files)) if problem]
        if problems:
            raise DataError(f"data: {len(problems)} of {len(files)} images cannot be read; the first: {problems[0]}; mend or remove them")
        array.flush()
        unfinished.replace(cache)
    finally:
        unfinished.unlink(missing_ok=True)


def _decode_one(index: int, file: Path, image_size: int, array: np.ndarray) -> str | None:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            array[index] = np.asarray(ImageOps.fit(image.convert("RGB"), (image_size, image_size))).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{file} ({error})"
    return None
