"""Commands about image sets: `data prepare`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli import console, options
from explorer.errors import DataError

if TYPE_CHECKING:
    from explorer.training.data import Prepared

#: Classes that are listed one by one; `--json` has them all.
_MOST_CLASSES = 20

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Prepare an image set for training.",
    epilog="Example: swinexplore data prepare IMAGENET_FOLDER --image-size 64",
)


@data_app.callback()
def data() -> None:
    """Prepare an image set for training."""


@data_app.command(epilog="Example: swinexplore data prepare hf:cifar10 --image-size 32")
def prepare(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="As --data of search: a set by name, hf:NAME[:CONFIG], or a folder.")
    ],
    image_size: Annotated[
        int, typer.Option("--image-size", min=1, max=4096, help="Pixels per side, as the trained network has them.")
    ],
    channels: Annotated[
        int | None, typer.Option("--channels", min=1, max=3, help="1 or 3; default: those of the set.")
    ] = None,
    data_root: options.DataRoot = None,
    max_bad_share: Annotated[
        float,
        typer.Option(
            "--max-bad-share", min=0, max=1, help="Share of a part's images that may be left out as unreadable."
        ),
    ] = 0.01,
    as_json: options.Json = False,
) -> None:
    """Decode an image set once into its cache, and tell what it holds; started again, it goes on where it stopped.

    Search, verify and train do the same where the cache is missing.
    """
    from explorer.training.data import describe
    from explorer.training.data import prepare as prepare_data

    if channels == 2:
        raise DataError("--channels: 2 is not allowed; allowed: 1, 3")
    info = describe(spec, options.data_root(data_root))
    with _shown() as show:
        prepared = prepare_data(
            info,
            image_size=image_size,
            channels=channels or info.channels,
            max_bad_share=max_bad_share,
            on_images=show,
        )
    for text in _warnings(prepared):
        console.note(f"warning: {text}")
    if as_json:
        console.json_document(_content(prepared))
    else:
        console.document("\n".join(_lines(prepared)))


@contextmanager
def _shown() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, a line for every tenth of a part elsewhere."""
    if console.is_quiet():
        yield lambda part, done, total: None
        return
    if not sys.stderr.isatty():
        told: dict[str, int] = {}

        def tell(part: str, done: int, total: int) -> None:
            tenth = 10 * done // total
            if tenth != told.get(part, 0):
                told[part] = tenth
                console.note(f"decoding {part} images: {done:,} of {total:,}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("decoding {task.description} images"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        tasks: dict[str, Any] = {}

        def update(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(part, total=total)
            bar.update(tasks[part], completed=done)

        yield update


def _warnings(prepared: Prepared) -> list[str]:
    """What a user should know of the set."""
    said = [
        f"{len(part.bad):,} of {part.num_images + len(part.bad):,} {kind} images cannot be read and are left out: "
        + ", ".join(part.bad[:3])
        + (", ..." if len(part.bad) > 3 else "")
        for part, kind in ((prepared.train, "training"), (prepared.test, "test"))
        if part.bad
    ]
    pairs = (
        (
            prepared.held_out_duplicates,
            prepared.num_held_out,
            "held-out images are equal to one that a search trains on",
        ),
        (prepared.test_duplicates, prepared.test.num_images, "test images are equal to a training image"),
    )
    said += [f"{number:,} of {total:,} {text}: accuracies on them say less" for number, total, text in pairs if number]
    return said


def _lines(prepared: Prepared) -> list[str]:
    info, train, test = prepared.info, prepared.train, prepared.test
    lines = [
        f"{info.spec} ({info.id})",
        f"{info.num_classes:,} classes, {prepared.image_size} x {prepared.image_size} pixels, {prepared.channels} channels",
        f"{train.num_images:,} training images, {prepared.num_held_out:,} of them held out for a search; "
        f"{test.num_images:,} test images",
    ]
    if info.num_classes <= _MOST_CLASSES:
        for label, numbers in enumerate(zip(train.per_class, test.per_class, strict=True)):
            named = info.class_names[label] if info.class_names else str(label)
            lines.append(f"  class {named}: {numbers[0]:,} training, {numbers[1]:,} test")
    else:
        least, most = min(train.per_class), max(train.per_class)
        lines.append(
            f"  {least:,} to {most:,} training images a class, {min(test.per_class):,} to {max(test.per_class):,} test"
        )
    for part in (train, test):
        kept = f"in {part.cache}" if part.cache else "read anew at every start, without a cache"
        lines.append(f"{part.name}: {part.num_bytes / 1e6:,.1f} MB {kept}")
    return lines


def _content(prepared: Prepared) -> dict[str, Any]:
    """The documented JSON of `swinexplore data prepare --json`."""
    info = prepared.info
    parts: dict[str, Any] = {
        part.name: {
            **asdict(part),
            "num_images": part.num_images,
            "cache": None if part.cache is None else str(part.cache),
            "bad": list(part.bad),
            "num_bad": len(part.bad),
        }
        for part in (prepared.train, prepared.test)
    }
    return {
        "data": info.spec,
        "id": info.id,
        "num_classes": info.num_classes,
        "class_names": list(info.class_names),
        "image_size": prepared.image_size,
        "channels": prepared.channels,
        "num_held_out": prepared.num_held_out,
        "held_out_duplicates": prepared.held_out_duplicates,
        "test_duplicates": prepared.test_duplicates,
        **parts,
    }
