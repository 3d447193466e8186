"""Image sets of Hugging Face: by name, or a local folder that the package `datasets` reads.

    hf:NAME                 hf:NAME:CONFIG                hf:FOLDER
    hf:NAME,image=COLUMN,label=COLUMN

The image and the label column are found by their types; one of whole numbers, truth values or texts must be named to be that of
the labels. The test part is the split `test` where it has labels, else the one for validation; where there is neither, every
tenth image of a class is cut from the training split.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from explorer.errors import BackendMissing, DataError
from explorer.records import digest
from explorer.training.folders import DataInfo, every_tenth, spread
from explorer.training.images import Encoded, OnImages, Part, PartName, Slot, cached, is_grey

#: So many images' content is part of the fingerprint, spread evenly where there are more.
MOST_SAMPLED: Final = 4096
_SIZES_AT_ONCE: Final = 10_000
#: So many images' headers tell whether the set is grey.
_HEADERS: Final = 64
_TEST_SPLITS: Final = ("test", "validation", "valid", "val")


@dataclass(frozen=True)
class _Rows:
    """A part: rows `indices` of a split, whose image column is not decoded. `labels` (n,) int64, -1 where there is none."""

    split: Any
    column: str
    indices: np.ndarray
    labels: np.ndarray

    def content(self, index: int) -> bytes:
        """An image file's content. Raises OSError and ValueError."""
        image = self.split[int(self.indices[index])][self.column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise ValueError("no image")
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    def sizes(self) -> np.ndarray:
        """(n,) int64 bytes of every image file, -1 or 0 where there is none; the files' own content is not read."""
        import pyarrow.compute as pc

        found = []
        for batch in self.split.with_format("arrow").iter(_SIZES_AT_ONCE):
            for images in batch[self.column].chunks:  # to combine them would copy the files
                sizes = pc.binary_length(images.field("bytes")).to_pylist()
                paths = images.field("path").to_pylist()
                found += [_size_of(path) if size is None else size for size, path in zip(sizes, paths, strict=True)]
        of_all = np.array(found, "<i8")
        return of_all.take(self.indices)


def _size_of(path: str | None) -> int:
    try:
        return -1 if path is None else Path(path).stat().st_size
    except OSError:
        return -1


@dataclass(frozen=True)
class _Hub:
    """A set as `datasets` holds it: names of the classes, and the rows of both parts."""

    class_names: tuple[str, ...]
    train: _Rows
    test: _Rows


def describe_hub(spec: str, root: Path) -> DataInfo:
    """Describes a set by its rows; a set that is not on this machine yet is downloaded by `datasets`, into its own cache.

    The fingerprint is that of all labels and of up to MOST_SAMPLED images' files themselves, so it is the same on every machine.
    Raises DataError, and BackendMissing where the package is not installed.
    """
    hub = _read(spec, root)
    parts = (hub.train, hub.test)
    content = {"classes": hub.class_names, "parts": [_fingerprint(rows) for rows in parts]}
    channels = 1 if _is_grey(spec, hub.train) else 3
    numbers = (len(hub.train.labels), len(hub.test.labels))
    name = _parsed(spec)[0]
    if Path(name).exists():  # it is named in a study that other folders go on with
        spec = f"hf:{Path(name).resolve()}{spec.removeprefix('hf:').removeprefix(name)}"
    return DataInfo(
        spec, digest("d1", {"hub": content}), len(hub.class_names), channels, *numbers, root, hub.class_names
    )


def load_hub(
    info: DataInfo,
    part: PartName,
    image_size: int,
    channels: int,
    *,
    max_bad_share: float | None,
    on_images: OnImages | None,
) -> Part:
    """A part of the set, decoded once into a memory-mapped cache below `info.root`. Raises DataError.

    A grey image is repeated where three channels are wanted; where one is, an image in colour counts as unreadable.
    """

    def encoded() -> Encoded:
        hub = _read(info.spec, info.root)
        rows = hub.train if part == "train" else hub.test
        _require_in_range(info, part, rows)
        return Encoded(rows.labels, rows.content, lambda index: f"{part} row {rows.indices[index]}")

    slot = Slot(info.spec, info.id, info.root, part, image_size, channels)
    return cached(slot, encoded, max_bad_share=max_bad_share, on_images=on_images)


# -- what a spec names ------------------------------------------------------------------------------------------------


def _read(spec: str, root: Path) -> _Hub:
    name, config, columns = _parsed(spec)
    splits = _splits(spec, name, config, root)
    if "train" not in splits:
        raise DataError(f"data {spec}: no split 'train'; there are: {', '.join(splits)}")
    image, label = _columns(spec, splits["train"].features, columns)
    class_names = _class_names(spec, splits["train"], label)
    train = _rows(spec, splits["train"], image, label, class_names)
    if len(class_names) < 2:
        raise DataError(f"data {spec}: {label} knows {len(class_names)} class; at least two are expected")
    for known in (known for known in _TEST_SPLITS if known in splits):
        split = splits[known]
        if image not in split.features or label not in split.features:
            continue
        if getattr(split.features[label], "names", None) != getattr(splits["train"].features[label], "names", None):
            raise DataError(
                f"data {spec}: {label} of the split {known!r} does not name the classes that 'train' does, in their order; a "
                "label must mean the same in both: mend or remove that split"
            )
        test = _rows(spec, split, image, label, class_names)
        if (test.labels >= 0).any():  # the labels of a contest are kept back as -1
            return _Hub(class_names, train, test)
    tested = np.array(every_tenth(train.labels.tolist()), bool)
    parts = (_Rows(train.split, image, np.flatnonzero(take), train.labels[take]) for take in (~tested, tested))
    return _Hub(class_names, *parts)


def _parsed(spec: str) -> tuple[str, str | None, dict[str, str]]:
    """Name or folder, configuration, and columns that were chosen. Raises DataError."""
    name, *chosen = spec.removeprefix("hf:").split(",")
    columns = {}
    for text in chosen:
        key, _, column = text.partition("=")
        if key not in ("image", "label") or not column:
            raise DataError(f"data {spec}: {text!r} says nothing; allowed after a comma: image=COLUMN, label=COLUMN")
        columns[key] = column
    config = None
    try:
        is_folder = Path(name).exists()
    except OSError as error:
        raise DataError(f"data {spec}: {name[:200]}: cannot be looked for: {error.strerror}") from None
    if not is_folder:
        name, _, config = name.partition(":")
    if not name:
        raise DataError(f"data {spec}: names no set; use hf:NAME, hf:NAME:CONFIG or hf:FOLDER")
    return name, config or None, columns


def _splits(spec: str, name: str, config: str | None, root: Path) -> Mapping[str, Any]:
    """All splits by name. Raises DataError for what cannot be found, downloaded or read."""
    try:
        import datasets
    except ImportError:
        raise BackendMissing(
            f"data {spec}: the package `datasets` is not installed; pip install 'swinexplore[huggingface]'"
        ) from None
    folder = Path(name)
    try:
        if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(name)
        elif folder.is_dir():
            # What is made of a folder belongs to this data root; what is downloaded is shared with other programs.
            found = datasets.load_dataset(name, config, cache_dir=str(root / "huggingface"))
        else:
            found = datasets.load_dataset(name, config)
    except Exception as error:  # noqa: BLE001 - `datasets` raises whatever a name, a network or a file leads to
        told = str(error).partition("\n")[0]
        raise DataError(
            f"data {spec}: not to be read or downloaded by `datasets` ({type(error).__name__}: {told}); check the name and the "
            "configuration (hf:NAME:CONFIG) and the network, or give a folder that `save_to_disk` wrote"
        ) from None
    return {"train": found} if isinstance(found, datasets.Dataset) else found


def _columns(spec: str, features: Mapping[str, Any], chosen: Mapping[str, str]) -> tuple[str, str]:
    """The image and the label column, by type where they were not chosen. Raises DataError."""
    import datasets

    found = []
    for key, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        plain = [name for name, feature in features.items() if key == "label" and _is_plain(feature)]
        column, allowed = chosen.get(key), fitting + plain
        if column is not None and column not in allowed:
            raise DataError(
                f"data {spec}: {key}={column} is no column of type {kind.__name__}; allowed: {', '.join(allowed) or 'none here'}"
            )
        if column is None and len(fitting) != 1:
            told = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
            raise DataError(
                f"data {spec}: {len(fitting) or 'no'} columns of type {kind.__name__} among {told}; "
                + (f"choose one: {spec},{key}={allowed[0]}" if allowed else "such a set cannot be classified")
            )
        found.append(column or fitting[0])
    return found[0], found[1]


def _is_plain(feature: Any) -> bool:
    """Whether a column's values may be classes, though nothing says so: whole numbers, truth values or texts."""
    dtype = getattr(feature, "dtype", "")
    return type(feature).__name__ == "Value" and (dtype in ("bool", "string", "large_string") or "int" in dtype)


def _class_names(spec: str, split: Any, label: str) -> tuple[str, ...]:
    """As the column names them, or its values in their order; numbers below 0 are none. Raises DataError where most values
    stand once.
    """
    names = getattr(split.features[label], "names", None)
    if names is not None:
        return tuple(names)
    values = split.select_columns([label]).with_format("arrow")[:][label].unique().drop_null().to_pylist()
    if 2 * len(values) > len(split):
        raise DataError(f"data {spec}: {label} has {len(values)} values in {len(split)} rows: these are no classes")
    return tuple(str(value) for value in sorted(values) if isinstance(value, str) or value >= 0)


def _numbers(spec: str, label: str, labels: Any, feature: Any, class_names: Sequence[str]) -> np.ndarray:
    """(n,) int64 numbers of the classes; -1 for what is kept back. Raises DataError for what is no class."""
    if not _is_plain(feature):
        numbers: np.ndarray = labels.to_numpy().astype(np.int64)
        return numbers
    number_of = {name: number for number, name in enumerate(class_names)}
    values = labels.to_pylist()
    for row, value in enumerate(values):
        if str(value) not in number_of and (isinstance(value, str) or value >= 0):
            raise DataError(
                f"data {spec}: {value!r} of row {row} of a split is no value that {label} has in 'train'; mend the labels"
            )
    return np.array([number_of.get(str(value), -1) for value in values], np.int64)


def _rows(spec: str, split: Any, image: str, label: str, class_names: Sequence[str]) -> _Rows:
    import datasets

    plain = split.cast_column(image, datasets.Image(decode=False)).with_format(None)
    labels = plain.with_format("arrow").select_columns([label])[:][label]
    if labels.null_count:
        raise DataError(
            f"data {spec}: {labels.null_count} of {len(labels)} rows have no {label}; every image needs one"
        )
    numbers = _numbers(spec, label, labels, split.features[label], class_names)
    return _Rows(plain.select_columns([image]), image, np.arange(len(numbers)), numbers)


def _require_in_range(info: DataInfo, part: PartName, rows: _Rows) -> None:
    """Raises DataError for a label that the set does not have: before anything is decoded, and by the row as it lies."""
    outside = np.flatnonzero((rows.labels < 0) | (rows.labels >= info.num_classes))
    if len(outside):
        raise DataError(
            f"data {info.spec}: label {rows.labels[outside[0]]} of {part} row {rows.indices[outside[0]]} is out of range "
            f"({len(outside)} are); allowed: 0 to {info.num_classes - 1}; mend the labels"
        )


def _fingerprint(rows: _Rows) -> dict[str, Any]:
    """Of all labels, and of the files of up to MOST_SAMPLED images, spread evenly; of the sizes of all where there are more."""
    total = 0
    for index in spread(len(rows.labels), MOST_SAMPLED):
        try:
            total = zlib.crc32(rows.content(index), total)
        except (OSError, ValueError):
            total = zlib.crc32(b"missing", total)  # decoding counts and names it
    labels = hashlib.sha256(rows.labels.astype("<i8").tobytes()).hexdigest()
    found = {"num": len(rows.labels), "labels": labels, "images": total}
    if len(rows.labels) > MOST_SAMPLED:
        found["sizes"] = hashlib.sha256(rows.sizes().tobytes()).hexdigest()
    return found


def _is_grey(spec: str, rows: _Rows) -> bool:
    """Whether all of some images, spread evenly, are grey. Raises DataError where none of them can be read."""
    seen = []
    for index in np.linspace(0, len(rows.labels) - 1, min(_HEADERS, len(rows.labels))).astype(int):
        try:
            seen.append(is_grey(rows.content(int(index))))
        except Exception:  # noqa: BLE001 - Pillow raises whatever a broken file leads to; decoding counts and names it
            continue
    if not seen:
        raise DataError(f"data {spec}: none of {len(rows.labels)} training images can be read; mend or replace the set")
    return all(seen)
