"""What the commands print: documents to stdout, messages to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_is_quiet = [False]


def configure(*, quiet: bool) -> None:
    """`quiet` silences `note` for this process."""
    _is_quiet[0] = quiet


def document(text: str) -> None:
    """A result, to stdout as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def json_document(content: Any) -> None:
    """One JSON document to stdout."""
    document(json.dumps(content, indent=2))


def json_line(content: Any) -> None:
    """One line of JSON to stdout, at once."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def table(renderable: RenderableType) -> None:
    """A rich table to stdout, as wide as it needs to be where stdout is no terminal."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    Console(file=sys.stdout, width=None if is_terminal else 200, highlight=False).print(renderable)


def note(text: str) -> None:
    """A message to stderr, unless `--quiet`."""
    if not _is_quiet[0]:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A line on stderr that tells what is going on, with a bar where the text ends in `done/total`; nothing off a terminal."""
    if _is_quiet[0] or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TimeElapsedColumn(),
        BarColumn(bar_width=16),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(text: str) -> None:
            counted = re.search(r"(\d+)/(\d+)$", text)
            done, total = (int(counted[1]), int(counted[2])) if counted else (0, None)
            bar.update(task, description=text, completed=done, total=total or None)

        yield tell


def error(text: str) -> None:
    """An error message to stderr."""
    sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()


def is_quiet() -> bool:
    """Whether messages are silenced."""
    return _is_quiet[0]
