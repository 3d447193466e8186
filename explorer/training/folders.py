"""Image folders: a folder of the four idx files, and a tree of one folder of images per class.

A tree is decoded once at the wanted size into a memory-mapped cache. Everything that is missing, truncated or unreadable
is a DataError that names it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import math
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from explorer.errors import DataError
from explorer.records import digest

if TYPE_CHECKING:
    from torch import Tensor

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
class Source:
    """A data set as it was read: uint8 images (n, channels, H, W) and int64 labels, training and test part."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


# -- a folder of four idx files ---------------------------------------------------------------------------------------


def describe_idx(folder: Path, root: Path) -> DataInfo:
    """Describes a folder of idx files from its labels. Raises DataError."""
    missing = [name for name in IDX_FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"data {folder}: {', '.join(missing)} missing; a folder of idx files holds {', '.join(IDX_FILES)}"
        )
    sha = hashlib.sha256()
    for name in IDX_FILES:
        sha.update((folder / name).read_bytes())
    train_labels, test_labels = _read_idx(folder / IDX_FILES[1], 1), _read_idx(folder / IDX_FILES[3], 1)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    if num_classes < 2:
        raise DataError(f"data {folder}: {IDX_FILES[1]}: holds one class only; at least two are expected")
    absent = sorted(set(range(num_classes)) - set(train_labels.tolist()))
    if absent:
        raise DataError(f"data {folder}: {IDX_FILES[1]}: no training image of class {absent[0]}; every class needs one")
    return DataInfo(
        str(folder), digest("d1", {"idx": sha.hexdigest()}), num_classes, 1, len(train_labels), len(test_labels), root
    )


def load_idx(info: DataInfo) -> Source:
    """Reads the four idx files: uint8 images (n, 1, H, W). Raises DataError."""
    import torch

    folder = Path(info.spec)
    train_images, train_labels, test_images, test_labels = (
        _read_idx(folder / name, 3 if "images" in name else 1) for name in IDX_FILES
    )
    for name, images, labels in ((IDX_FILES[0], train_images, train_labels), (IDX_FILES[2], test_images, test_labels)):
        if len(images) != len(labels):
            raise DataError(
                f"data {folder}: {name}: {len(images)} images but {len(labels)} labels; the files do not fit"
            )
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
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: {path}: not a readable gzip file: {error}") from None
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes([0, 0, 8, ndim]):
        raise DataError(f"data: {path}: not an idx file of {ndim} dimensions of unsigned bytes")
    dims = struct.unpack(f">{ndim}I", content[4:header])
    if len(content) - header != math.prod(dims):
        raise DataError(
            f"data: {path}: {len(content) - header} bytes for {'x'.join(map(str, dims))} values; truncated?"
        )
    if 0 in dims:
        raise DataError(f"data: {path}: {'x'.join(map(str, dims))} values; it holds no images")
    return np.frombuffer(content, np.uint8, offset=header).reshape(dims).copy()


# -- a tree of one folder per class -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """Image files and labels of the training and the test part; `classes` by name."""

    classes: list[str]
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]


def describe_tree(folder: Path, root: Path) -> DataInfo:
    """Describes a tree by its file names and sizes; no image is opened. Raises DataError."""
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
        raise DataError(
            f"data {train_folder}: holds {len(classes)} folders; one folder of images per class is expected"
        )
    train = _images_below(train_folder, classes)
    if train_folder == folder or test_folder is None:
        return _Tree(classes, *_cut(folder, train))
    unknown = sorted({entry.name for entry in test_folder.iterdir() if entry.is_dir()} - set(classes))
    if unknown:
        raise DataError(f"data {test_folder}: class {unknown[0]!r} is not in {train_folder}; both must hold the same")
    return _Tree(classes, train, _images_below(test_folder, classes))


def _cut(folder: Path, images: list[tuple[Path, int]]) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Every tenth image of a class, and at least the last of each, becomes the test part."""
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label, pairs in itertools.groupby(images, key=lambda pair: pair[1]):
        of_class = list(pairs)
        if len(of_class) < 2:
            raise DataError(
                f"data {of_class[0][0].parent}: one image only; a class without a test part of its own needs two "
                f"(class {label} of {folder})"
            )
        tested = set(range(9, len(of_class), 10)) or {len(of_class) - 1}
        for index, pair in enumerate(of_class):
            (test if index in tested else train).append(pair)
    return train, test


def _images_below(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    pairs = []
    for label, name in enumerate(classes):
        files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
        if not files:
            raise DataError(
                f"data {folder / name}: holds no image ({', '.join(IMAGE_SUFFIXES)}); every class needs one"
            )
        pairs += [(file, label) for file in files]
    return pairs


def load_tree(info: DataInfo, image_size: int) -> Source:
    """Decodes the tree once into a memory-mapped cache below `info.root`; the next load opens that."""
    import torch

    tree = _scan(Path(info.spec))
    parts: list[Tensor] = []
    for part, pairs in (("train", tree.train), ("test", tree.test)):
        cache = info.root / "trees" / f"{info.id}-{image_size}-{part}.npy"
        files = [file for file, _ in pairs]
        parts += [
            torch.from_numpy(_cached(cache, files, image_size)),
            torch.tensor([label for _, label in pairs], dtype=torch.int64),
        ]
    return Source(*parts)


def _cached(cache: Path, files: list[Path], image_size: int) -> np.ndarray:
    """The decoded images, from the cache where it is whole; a broken one is made anew."""

    def opened() -> np.ndarray:
        array: np.ndarray = np.load(cache, mmap_mode="c")
        return array

    with contextlib.suppress(OSError, ValueError, EOFError):
        return opened()
    try:
        _decode(files, image_size, cache)
        return opened()
    except OSError as error:
        raise DataError(
            f"data: the cache {cache} cannot be written: {error.strerror}; give another --data-root"
        ) from None


def _decode(files: list[Path], image_size: int, cache: Path) -> None:
    """Shorter side to `image_size`, centre crop, RGB; written beside `cache`, then moved there whole."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_suffix(f".{os.getpid()}.part")
    try:
        array = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (len(files), 3, image_size, image_size))

        def decode(index: int) -> str | None:
            return _decode_one(files[index], array[index])

        with ThreadPoolExecutor() as pool:
            problems = [problem for problem in pool.map(decode, range(len(files))) if problem]
        if problems:
            raise DataError(
                f"data: {len(problems)} of {len(files)} images cannot be read; the first: {problems[0]}; mend or remove them"
            )
        array.flush()
        unfinished.replace(cache)
    finally:
        unfinished.unlink(missing_ok=True)


def _decode_one(file: Path, pixels: np.ndarray) -> str | None:
    """Decodes `file` into `pixels` (3, side, side); what was wrong with it, if anything."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            pixels[:] = np.asarray(ImageOps.fit(image.convert("RGB"), pixels.shape[1:])).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{file} ({error})"
    return None
