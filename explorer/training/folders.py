"""Image folders: a folder of the four idx files, and a tree of one folder of images per class.

A tree is decoded once at the wanted size into a memory-mapped cache (`images`). What is missing, truncated or unreadable
is counted and named, and a DataError above a stated share.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from explorer.errors import DataError
from explorer.records import digest
from explorer.training.images import Encoded, OnImages, Part, PartName, Slot, cached

logger = logging.getLogger(__name__)
IMAGE_SUFFIXES: Final = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif",
    ".jfif", ".avif",
)  # fmt: skip
IDX_FILES: Final = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
_TEST_FOLDERS: Final = ("val", "test", "validation", "valid")
#: So many files' beginnings and ends are part of a tree's fingerprint, spread evenly where there are more: some seconds.
MOST_SAMPLED: Final = 100_000
_SAMPLE_BYTES: Final = 4096
#: Files that are named where some are left out.
_MAX_NAMED: Final = 3
#: Files that one thread looks at in turn.
_CHUNK: Final = 256


@dataclass(frozen=True)
class DataInfo:
    """A data set as it is described without loading it. `id` fingerprints the content and is part of a score's key.

    `class_names`: by label, where the set names its classes.
    """

    spec: str
    id: str
    num_classes: int
    channels: int
    num_train: int
    num_test: int
    root: Path
    class_names: tuple[str, ...] = ()


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
    highest = int(train_labels.argmax())
    num_classes = int(train_labels[highest]) + 1
    if num_classes < 2:
        raise DataError(f"data {folder}: {IDX_FILES[1]}: holds one class only; at least two are expected")
    absent = sorted(set(range(num_classes)) - set(train_labels.tolist()))
    if absent:
        raise DataError(
            f"data {folder}: {IDX_FILES[1]}: no training image of class {absent[0]}, but image {highest} is of class "
            f"{num_classes - 1}; every class from 0 needs one: mend the labels"
        )
    outside = np.flatnonzero(test_labels >= num_classes)
    if len(outside):
        raise DataError(
            f"data {folder}: {IDX_FILES[3]}: label {test_labels[outside[0]]} of test image {outside[0]} is out of range "
            f"({len(outside)} are); allowed, by the training labels: 0 to {num_classes - 1}; mend the labels"
        )
    return DataInfo(
        str(folder), digest("d1", {"idx": sha.hexdigest()}), num_classes, 1, len(train_labels), len(test_labels), root
    )


def load_idx(info: DataInfo, part: PartName) -> Part:
    """Reads two of the four idx files: uint8 images (n, 1, H, W). Raises DataError."""
    import torch

    folder = Path(info.spec)
    images_name, labels_name = IDX_FILES[:2] if part == "train" else IDX_FILES[2:]
    images, labels = _read_idx(folder / images_name, 3), _read_idx(folder / labels_name, 1)
    if len(images) != len(labels):
        raise DataError(
            f"data {folder}: {images_name}: {len(images)} images but {len(labels)} labels; the files do not fit"
        )
    return Part(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())


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
    """Describes a tree by its files' names, sizes, beginnings and ends; no image is decoded. Raises DataError.

    Another image of the same size under the same name is noticed by its first or last 4 KiB, in every file of a set of up to
    MOST_SAMPLED and in that many of a larger one.
    """
    tree = _scan(folder)
    files = [file for file, _ in (*tree.train, *tree.test)]
    sampled = set(spread(len(files), MOST_SAMPLED))
    chunks = [range(start, min(start + _CHUNK, len(files))) for start in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor() as pool:  # what takes time is a disk or a network

        def seen(chunk: range) -> list[tuple[int, int]]:
            return [_seen(files[index], samples=index in sampled) for index in chunk]

        found = [one for chunk in pool.map(seen, chunks) for one in chunk]
    length = len(str(folder / "x")) - 1
    listing = sorted((str(file)[length:], *one) for file, one in zip(files, found, strict=True))
    fingerprint = digest("d1", {"tree": listing})
    names = tuple(tree.classes)
    return DataInfo(str(folder), fingerprint, len(names), 3, len(tree.train), len(tree.test), root, names)


def spread(num: int, most: int) -> list[int]:
    """At most so many of the indices below `num`, evenly from first to last."""
    found: list[int] = np.linspace(0, num - 1, min(num, most)).round().astype(int).tolist()
    return found


def _seen(file: Path, *, samples: bool) -> tuple[int, int]:
    """Size of a file, and CRC-32 of its first and last 4 KiB (0 without `samples`); (-1, 0) where it cannot be opened."""
    try:
        if not samples:
            return file.stat().st_size, 0
        opened = os.open(file, os.O_RDONLY)
        try:
            size = os.fstat(opened).st_size
            start = os.pread(opened, _SAMPLE_BYTES, 0)
            end = os.pread(opened, _SAMPLE_BYTES, max(len(start), size - _SAMPLE_BYTES))
            return size, zlib.crc32(end, zlib.crc32(start))
        finally:
            os.close(opened)
    except OSError:
        return -1, 0  # decoding counts and names it


def _scan(folder: Path) -> _Tree:
    """Finds the images: `train/` beside `val/` or `test/`, else one tree of which every tenth image is the test part.

    Raises DataError.
    """
    try:
        return _scanned(folder)
    except OSError as error:
        raise unreadable(folder, error) from None


def unreadable(folder: Path, error: OSError) -> DataError:
    """What to say of a folder that cannot be listed, or a file in it that cannot be opened."""
    return DataError(
        f"data {folder}: cannot be read: {error.filename or folder}: {error.strerror or error}; give the right path, or "
        "yourself the right to read it"
    )


def _scanned(folder: Path) -> _Tree:
    test_folder = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
    is_divided = (folder / "train").is_dir()
    if is_divided and test_folder is None and _classes_in(folder / "train"):
        # Else `train` would be a class, and whatever lies beside it the others.
        raise DataError(
            f"data {folder}: train holds folders, but there is no test part beside it; name that one of "
            f"{', '.join(_TEST_FOLDERS)}, or give {folder / 'train'} to have every tenth image cut from it"
        )
    train_folder = folder / "train" if test_folder is not None and is_divided else folder
    classes = _classes_in(train_folder)
    if len(classes) < 2:
        raise DataError(
            f"data {train_folder}: holds {len(classes)} folders; one folder of images per class is expected"
        )
    train = _images_below(train_folder, classes)
    if train_folder == folder or test_folder is None:
        return _Tree(classes, *_cut(folder, train))
    unknown = sorted(set(_classes_in(test_folder)) - set(classes))
    if unknown:
        raise DataError(f"data {test_folder}: class {unknown[0]!r} is not in {train_folder}; both must hold the same")
    return _Tree(classes, train, _images_below(test_folder, classes))


def _classes_in(folder: Path) -> list[str]:
    """Names of the folders in `folder`; hidden ones are other programs' (`.ipynb_checkpoints`)."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _cut(folder: Path, images: list[tuple[Path, int]]) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    labels = [label for _, label in images]
    tested = every_tenth(labels)
    train, test = ([pair for pair, t in zip(images, tested, strict=True) if t is part] for part in (False, True))
    kept = {label for _, label in train}
    for file, label in test:
        if label not in kept:
            raise DataError(
                f"data {file.parent}: one image only; a class without a test part of its own needs two "
                f"(class {label} of {folder})"
            )
    return train, test


def every_tenth(labels: Sequence[int]) -> list[bool]:
    """Which images become the test part of a set that has none: every tenth of a class, and at least the last of each."""
    number_of: dict[int, int] = {}
    tested = []
    for label in labels:
        number_of[label] = number_of.get(label, 0) + 1
        tested.append(number_of[label] % 10 == 0)
    last = {label: index for index, label in enumerate(labels)}
    for label, number in number_of.items():
        if number < 10:
            tested[last[label]] = True
    return tested


def _images_below(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    pairs, others = [], []
    for label, name in enumerate(classes):
        # A link to nowhere is an image that is missing: it is counted where images are decoded.
        found = sorted(_files_below(folder / name))
        files = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
        others += [file for file in found if file.suffix.lower() not in IMAGE_SUFFIXES]
        if not files:
            raise DataError(
                f"data {folder / name}: holds no image ({', '.join(IMAGE_SUFFIXES)}); every class needs one"
            )
        pairs += [(file, label) for file in files]
    if others:
        _warn_of_others(folder, len(others), tuple(str(file.relative_to(folder)) for file in others[:_MAX_NAMED]))
    return pairs


@cache
def _warn_of_others(folder: Path, number: int, names: tuple[str, ...]) -> None:
    logger.warning(
        "data %s: left out %d files whose names are not those of images (%s): %s%s",
        folder, number, " ".join(IMAGE_SUFFIXES), ", ".join(names), ", ..." if number > len(names) else "",
    )  # fmt: skip


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file under `folder`, but hidden ones and those in hidden folders; links to folders are not followed.

    Raises DataError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"data {error.filename}: cannot be read: {error.strerror}; mend its permissions, or remove it")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def load_tree(
    info: DataInfo, part: PartName, image_size: int, *, max_bad_share: float | None, on_images: OnImages | None
) -> Part:
    """A part of the tree, decoded once into a memory-mapped cache below `info.root`; the next load opens that."""

    def encoded() -> Encoded:
        tree = _scan(Path(info.spec))
        pairs, described = (tree.train, info.num_train) if part == "train" else (tree.test, info.num_test)
        if len(pairs) != described:
            raise DataError(
                f"data {info.spec}: {len(pairs)} {part} images where {described} were just found; wait until it is complete"
            )
        labels = np.array([label for _, label in pairs], np.int64)
        return Encoded(labels, lambda index: pairs[index][0].read_bytes(), lambda index: str(pairs[index][0]))

    slot = Slot(info.spec, info.id, info.root, part, image_size, info.channels)
    return cached(slot, encoded, max_bad_share=max_bad_share, on_images=on_images)
