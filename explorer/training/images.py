"""Decoded images in a memory-mapped cache, built once, and how one encoded image becomes pixels.

A cache holds one part of a set at one size, in one order that is shuffled once for all, so that any part of it is a slice:
nothing is copied, and a set may be larger than memory. Building one can be stopped at any time and goes on from there.

How an image is decoded: turned as its EXIF orientation says, the first frame of an animation, 16 bits to the upper 8,
transparency over white, palettes and CMYK to RGB; then its shorter side to the wanted one, and the centre of the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from filelock import FileLock

from explorer.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

logger = logging.getLogger(__name__)

PartName = Literal["train", "test"]
#: Told while images are decoded: the part, how many are done, of how many.
OnImages = Callable[[PartName, int, int], None]
#: Share of a part's images that may be left out because they cannot be read.
MAX_BAD_SHARE: Final = 0.01
#: Rises whenever the same files would be decoded to other pixels, or the files of a cache hold something else.
CACHE_VERSION: Final = 1
#: Pixels that are decoded between two times that the progress is kept.
_CHUNK_BYTES: Final = 16 * 2**20
#: So many images are decoded before anyone asks why nothing moves.
_MANY: Final = 10_000
_ABANDONED_S: Final = 7 * 86_400.0
_GREY_MODES: Final = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Part:
    """One part of a set: uint8 images (n, channels, H, W) and int64 labels (n,).

    `is_shuffled`: they lie in the one random order already, so that slices of them are random parts. `hashes`: of the pixels
    (n,), where they are kept; `bad`: what was left out and why; `cache`: the file they are mapped from.
    """

    images: Tensor
    labels: Tensor
    is_shuffled: bool = False
    hashes: np.ndarray | None = None
    bad: tuple[str, ...] = ()
    cache: Path | None = None

    def between(self, start: int, stop: int | None) -> tuple[Tensor, Tensor]:
        """Images and labels from `start` to `stop` of the random order; all of them are given as they lie, uncopied."""
        number = len(self.labels)
        start, stop, _ = slice(start, stop).indices(number)
        if self.is_shuffled or (start, stop) == (0, number):
            return self.images[start:stop], self.labels[start:stop]
        indices = shuffled(number)[start:stop].to(self.labels.device)
        return self.images[indices], self.labels[indices]


def shuffled(number: int) -> Tensor:
    """0 .. number - 1 in one random order, the same at every call."""
    import torch

    return torch.randperm(number, generator=torch.Generator().manual_seed(0))


def pixel_hashes(images: Sequence[Any] | np.ndarray) -> np.ndarray:
    """One number of 64 bits for the pixels of every image."""
    return np.array([_hash(np.asarray(image)) for image in images], np.uint64)


def _hash(pixels: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "big")


# -- one image --------------------------------------------------------------------------------------------------------


def decode(content: bytes, pixels: np.ndarray) -> None:
    """Decodes an image file's `content` into `pixels` (channels, side, side). Raises what Pillow raises, and ValueError."""
    from PIL import Image, ImageOps

    channels, side, _ = pixels.shape
    with Image.open(io.BytesIO(content)) as opened:
        kind = opened.format or "image"
        # A JPEG is decoded at an eighth to a half of its size where that still is twice what is wanted.
        opened.draft(None, (2 * side, 2 * side))
        if 0 in opened.size:
            raise ValueError(f"{opened.size[0]} x {opened.size[1]} pixels")
        turned = ImageOps.exif_transpose(opened)
        image = _plain(turned, kind, channels)
        fitted = np.asarray(ImageOps.fit(image, (side, side)))
    pixels[:] = fitted[None] if channels == 1 else fitted.transpose(2, 0, 1)


def is_grey(content: bytes) -> bool:
    """Whether an image file holds one channel, by its header. Raises what Pillow raises."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return image.mode in _GREY_MODES


def _plain(image: Image, kind: str, channels: int) -> Image:
    """The image with 8 bits a channel, in one or three of them. Raises ValueError where that says nothing."""
    from PIL import Image as Pillow

    if channels == 1 and image.mode not in _GREY_MODES:
        raise ValueError(f"{image.mode} pixels in a set of grey images")
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
        image = Pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"32 bits a pixel (mode {image.mode}) with no known white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Pillow.alpha_composite(Pillow.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


# -- a part in a cache ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """The images of a part as they lie: `read` gives an image file's content by its index, `name` how a message calls it."""

    labels: np.ndarray
    read: Callable[[int], bytes]
    name: Callable[[int], str]


@dataclass(frozen=True)
class Slot:
    """Which cache: a part of the set `spec` (fingerprint `set_id`) at one size, below the folder `root`."""

    spec: str
    set_id: str
    root: Path
    part: PartName
    image_size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return self.channels, self.image_size, self.image_size

    @property
    def of_part(self) -> str:
        """How a message calls the part's images."""
        return "training" if self.part == "train" else self.part

    def file(self, suffix: str) -> Path:
        """`bin`: pixels; `npz`: labels and hashes; `json`: written last, what is there and what was left out."""
        name = f"{self.set_id}-{self.image_size}x{self.channels}-{self.part}-v{CACHE_VERSION}.{suffix}"
        return self.root / "images" / name


def cached(
    slot: Slot,
    encoded: Callable[[], Encoded],
    *,
    max_bad_share: float | None = None,
    on_images: OnImages | None = None,
) -> Part:
    """The part from its cache, which is built first where it is missing or broken; `encoded` is asked only then.

    Raises DataError where more than `max_bad_share` cannot be read (None: MAX_BAD_SHARE for a cache that is built now, and what
    was allowed then for one that is there), and where the cache cannot be written.
    """
    found = _opened(slot)
    if found is None:
        try:
            slot.file("bin").parent.mkdir(parents=True, exist_ok=True)
            with FileLock(slot.file("lock")):
                if _opened(slot) is None:
                    _remove_abandoned(slot.file("bin").parent)
                    _build(slot, encoded(), MAX_BAD_SHARE if max_bad_share is None else max_bad_share, on_images)
                found = _opened(slot)
        except OSError as error:
            raise DataError(
                f"data {slot.spec}: the cache {slot.file('bin')} cannot be written: {error.strerror or error}; free some space, "
                "or give another --data-root"
            ) from None
        if found is None:
            raise DataError(f"data {slot.spec}: the cache {slot.file('bin')} is changed by another program; try again")
    if max_bad_share is not None:
        _require_few_bad(slot, found.bad, len(found.labels) + len(found.bad), max_bad_share)
    return found


def _opened(slot: Slot) -> Part | None:
    """The part from a whole cache, else None."""
    import torch

    try:
        facts = json.loads(slot.file("json").read_text(encoding="utf-8"))
        with slot.file("npz").open("rb") as file, np.load(file) as arrays:
            labels, hashes = arrays["labels"], arrays["hashes"]
        number = len(labels)
        if facts["num_images"] != number or slot.file("bin").stat().st_size != number * math.prod(slot.shape):
            return None
        # Copy on write: torch wants arrays that may be written to, and the file stays as it is.
        pixels = np.memmap(slot.file("bin"), np.uint8, "c", shape=(number, *slot.shape))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    images, bad = torch.from_numpy(pixels), tuple(facts["bad"])
    return Part(images, torch.from_numpy(labels), True, hashes, bad, slot.file("bin"))


def _remove_abandoned(folder: Path) -> None:
    """What builds left that no one went on with, of sets that have changed since."""
    for file in (*folder.glob("*.part"), *folder.glob("*.progress")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > _ABANDONED_S:
                file.unlink()


def _build(slot: Slot, encoded: Encoded, max_bad_share: float, on_images: OnImages | None) -> None:
    """Decodes what is not decoded yet, leaves out what cannot be, and gives the cache its name at the very end."""
    build = _Build(slot, encoded, shuffled(len(encoded.labels)).numpy())
    build.go_on(on_images)
    bad = sorted(build.bad)
    named = tuple(build.bad[row] for row in bad)
    number = len(encoded.labels)
    _require_few_bad(slot, named, number, max_bad_share)
    rows = _without(bad, number)
    build.progress.unlink(missing_ok=True)  # from here on the unfinished file is no longer one to go on with
    with build.unfinished.open("r+b") as file:
        size = math.prod(slot.shape)
        for row, source in enumerate(rows):
            if row != source:
                file.seek(source * size)
                pixels = file.read(size)
                file.seek(row * size)
                file.write(pixels)
        file.truncate(len(rows) * size)
    temporary = slot.file("npz.part")
    with temporary.open("wb") as file:
        np.savez(file, labels=encoded.labels[build.order[rows]].astype(np.int64), hashes=build.hashes[rows])
    temporary.replace(slot.file("npz"))
    build.unfinished.replace(slot.file("bin"))
    facts = {"data": slot.spec, "id": slot.set_id, "num_images": len(rows), "num_described": number, "bad": named}
    temporary = slot.file("json.part")
    temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    temporary.replace(slot.file("json"))
    if bad:
        logger.warning(
            "data %s: %s of %s %s images cannot be read and are left out: %s; %s has all",
            slot.spec, f"{len(bad):,}", f"{number:,}", slot.of_part, _first(named), slot.file("json"),
        )  # fmt: skip


def _without(bad: Sequence[int], number: int) -> np.ndarray:
    """Where the image of every row that stays comes from: the last ones fill the places of what is left out."""
    rows = np.arange(number - len(bad))
    kept = set(range(number - len(bad), number)) - set(bad)
    holes = [row for row in bad if row < len(rows)]
    rows[holes] = sorted(kept)
    return rows


def _require_few_bad(slot: Slot, bad: Sequence[str], number: int, max_bad_share: float) -> None:
    if not len(bad) <= max_bad_share * number or (bad and len(bad) == number):
        raise DataError(
            f"data {slot.spec}: {len(bad)} of {number} {slot.of_part} images cannot be read, more than the share of "
            f"{max_bad_share:g} that may be left out: {_first(bad)}; mend or remove them, or allow more: "
            "swinexplore data prepare --max-bad-share"
        )


def _first(bad: Sequence[str], most: int = 3) -> str:
    return ", ".join(bad[:most]) + (", ..." if len(bad) > most else "")


@dataclass
class _Build:
    """A cache under way: the pixels in `unfinished`, and beside it a line of JSON for every chunk that is there."""

    slot: Slot
    encoded: Encoded
    order: np.ndarray
    bad: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.unfinished, self.progress = self.slot.file("part"), self.slot.file("progress")
        self.hashes = np.zeros(len(self.order), np.uint64)
        self.is_done = np.zeros(len(self.order), bool)

    def go_on(self, on_images: OnImages | None) -> None:
        """Decodes the rows that no earlier build did; those that could not be read then are tried again."""
        self._restore()
        number, part = len(self.order), self.slot.part
        todo = np.flatnonzero(~self.is_done)
        if len(todo) >= _MANY and on_images is None:
            logger.warning(
                "data %s: %s %s images are decoded once into %s; `swinexplore data prepare` shows how far it is",
                self.slot.spec, f"{len(todo):,}", self.slot.of_part, self.slot.file("bin").parent,
            )  # fmt: skip
        size = max(1, _CHUNK_BYTES // math.prod(self.slot.shape))
        with ThreadPoolExecutor() as pool, self.unfinished.open("r+b") as pixels, self.progress.open("a") as progress:
            for start in range(0, len(todo), size):
                rows = todo[start : start + size]
                self._decode(rows, pool, pixels)
                bad = {row: self.bad[row] for row in rows.tolist() if row in self.bad}
                done = {"rows": rows.tolist(), "hashes": self.hashes[rows].tolist(), "bad": list(bad.items())}
                progress.write(json.dumps(done) + "\n")
                progress.flush()
                if on_images is not None:
                    on_images(part, number - len(todo) + min(start + size, len(todo)), number)

    def _restore(self) -> None:
        """What an earlier build kept; a last line that was cut off does not count."""
        if not self.unfinished.exists():
            self.progress.unlink(missing_ok=True)
            self.unfinished.touch()
        if not self.progress.exists():
            return
        try:
            lines = self.progress.read_text().splitlines(keepends=True)
            if lines and not lines[-1].endswith("\n"):
                del lines[-1]
                self.progress.write_text("".join(lines))
            for line in lines:
                done = json.loads(line)
                self.hashes[done["rows"]] = np.array(done["hashes"], np.uint64)
                self.is_done[done["rows"]] = True
                self.is_done[[row for row, _ in done["bad"]]] = False
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):
            logger.warning("%s is damaged: all images are decoded anew", self.progress)
            self.hashes[:], self.is_done[:] = 0, False
            self.progress.unlink()

    def _decode(self, rows: np.ndarray, pool: ThreadPoolExecutor, file: Any) -> None:
        pixels = np.zeros((len(rows), *self.slot.shape), np.uint8)

        def decode_row(index: int) -> str | None:
            return self._problem(int(self.order[rows[index]]), pixels[index])

        for index, problem in enumerate(pool.map(decode_row, range(len(rows)))):
            row = int(rows[index])
            if problem is None:
                self.hashes[row], self.is_done[row] = _hash(pixels[index]), True
            else:
                self.bad[row] = problem
            file.seek(row * pixels[index].nbytes)
            file.write(pixels[index].tobytes())
        file.flush()
        os.fsync(file.fileno())  # the progress must not be ahead of the pixels, even where the power fails

    def _problem(self, index: int, pixels: np.ndarray) -> str | None:
        """Decodes an image; what was wrong with it, if anything."""
        from PIL import UnidentifiedImageError

        try:
            decode(self.encoded.read(index), pixels)
        except MemoryError:
            raise
        except UnidentifiedImageError:
            return f"{self.encoded.name(index)} (no image that can be read)"
        except Exception as error:  # noqa: BLE001 - Pillow raises whatever a broken file leads to
            words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            return f"{self.encoded.name(index)} ({words.partition(chr(10))[0]})"
        return None
