"""How a running search is shown: a live bar on a terminal, plain lines elsewhere, JSON lines on request."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explorer.cli import console
from explorer.errors import UserError
from explorer.records import Candidate
from explorer.report import candidate_row

if TYPE_CHECKING:
    from explorer.search import Progress

logger = logging.getLogger("explorer.search.progress")

Show = Callable[["Progress"], None]


@contextmanager
def shown(*, as_json: bool) -> Iterator[Show]:
    """What to hand every `Progress` to while a search runs."""
    if as_json:
        yield _logged(_json_line)
    elif console.is_quiet():
        yield _logged(lambda progress: None)
    elif sys.stderr.isatty():
        with _live() as show:
            yield _logged(show)
    else:
        yield _logged(_plain_line)


def _logged(show: Show) -> Show:
    """Shows, and logs the plain line for `--log-file`."""

    def show_and_log(progress: Progress) -> None:
        show(progress)
        if line := _line(progress):
            logger.info(line)

    return show_and_log


def log_to(path: Path) -> None:
    """Also writes the library's log to this file. Raises UserError where it cannot be written."""
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--log-file: {path}: cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    library = logging.getLogger("explorer")
    library.addHandler(handler)
    library.setLevel(min(library.level or logging.INFO, logging.INFO))


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.2 h`, `1.5 d`; a question mark where nothing is known."""
    if seconds is None:
        return "?"
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"


def outcome_text(candidate: Candidate) -> str:
    """What became of a candidate, in a few words."""
    latency = "" if candidate.latency_ms is None else f"{candidate.latency_ms:.2f} ms"
    is_trained = bool(candidate.scores) or (candidate.failure is not None and candidate.failure.step == "training")
    known = "  (known)" if candidate.reused >= 1 + is_trained else ""
    match candidate.outcome:
        case "complete":
            is_invalid = candidate.latency is not None and candidate.latency.invalid
            spread = "" if candidate.accuracy_std is None else f" ±{candidate.accuracy_std:.4f}"
            text = f"accuracy {candidate.accuracy:.4f}{spread}  {latency}{' (invalid)' if is_invalid else ''}"
        case "stopped":
            text = f"accuracy {candidate.accuracy:.4f} after {candidate.epochs} epochs  {latency}"
        case "gated":
            text = f"over the latency limit: {latency}"
        case _:
            failure = candidate.failure
            if failure is not None and failure.kind == "diverged":
                why = " ".join(failure.message.removeprefix("diverged:").split())
                return f"diverged: {why}; cannot stand on the front  {latency}".rstrip() + known
            again = ", tried again at the end" if failure is not None and failure.is_passing else ""
            text = f"failed: {failure.kind if failure else '?'}{again}"
    return text + known


def _json_line(progress: Progress) -> None:
    if progress.kind == "detail":
        return
    content: dict[str, Any] = {
        "event": progress.kind,
        "study": progress.study,
        "trials_done": progress.num_done,
        "trials_asked": progress.num_asked,
        "best_accuracy": progress.best_accuracy,
        "best_latency_ms": progress.best_latency_ms,
        "front": list(progress.front),
        "hypervolume": progress.hypervolume,
        "seconds_left": progress.seconds_left,
    }
    if progress.arch is not None:
        content |= {"arch_id": progress.arch.id, "name": progress.arch.name}
    if progress.step is not None:
        content["step"] = progress.step
    if progress.epoch is not None:
        content |= {"epoch": progress.epoch.epoch, "loss": progress.epoch.loss, "accuracy": progress.epoch.accuracy}
    if progress.candidate is not None:
        row = candidate_row(progress.candidate, None)
        content["candidate"] = {key: value for key, value in row.items() if key != "speedup"}
    if progress.message:
        content["message"] = progress.message
    console.json_line(content)


def _plain_line(progress: Progress) -> None:
    line = _line(progress)
    if line:
        console.note(line)


def _line(progress: Progress) -> str:
    count = f"[{progress.num_done}/{progress.num_asked}]"
    match progress.kind:
        case "trial":
            assert progress.arch is not None
            assert progress.candidate is not None
            line = f"{count} {progress.arch.name}  {outcome_text(progress.candidate)}  {_best(progress)}"
        case "start" if progress.num_done or progress.message:
            going_on = f"going on with study {progress.study}" if progress.num_done else ""
            line = f"{count} " + "; ".join(filter(None, (going_on, progress.message)))
        case "end":
            line = f"{count} done: study {progress.study}" + (f"; {progress.message}" if progress.message else "")
        case _:
            return ""
    return line


def _best(progress: Progress) -> str:
    if progress.best_accuracy is None or progress.best_latency_ms is None:
        return f"left {duration(progress.seconds_left)}"
    return (
        f"best {progress.best_accuracy:.4f} / {progress.best_latency_ms:.2f} ms  front {len(progress.front)}  "
        f"left {duration(progress.seconds_left)}"
    )


@contextmanager
def _live() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True, highlight=False),
    )
    task = bar.add_task("starting", total=None)

    def show(progress: Progress) -> None:
        line = _line(progress)
        if line:
            bar.console.print(line, markup=False)
        doing = "" if progress.arch is None or progress.step is None else f"{progress.step} {progress.arch.name}"
        if progress.epoch is not None:
            doing += f", epoch {progress.epoch.epoch}"
        if progress.kind == "detail":
            doing += f", {progress.message}"
        bar.update(
            task,
            total=progress.num_asked,
            completed=progress.num_done,
            description=f"{_best(progress)}  {doing}".strip(),
        )

    with bar:
        yield show
