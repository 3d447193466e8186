"""The kept state of a training: where it lies, and reading and writing it safely."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from explorer.errors import DataError, RecipeError


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state, and `key`, which a state to resume from must carry.

    `every_s`: least seconds between two times that it is kept; `at_end`: whether the last epoch's is; `on_kept` is called
    each time.
    """

    path: Path
    key: str
    every_s: float = 0.0
    at_end: bool = True
    on_kept: Callable[[], None] | None = None


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Replaces the file at `path` by `state` in one step. Raises DataError where it cannot be written."""
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save(state, unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer tells a full disk as a RuntimeError
        raise DataError(
            f"{path}: the state of the training cannot be written: {_first_line(error)}; free some space, or "
            "use another folder"
        ) from None
    finally:  # after an interrupt too
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state kept at `path`, read without running any code in it. Raises RecipeError for a file that is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch.load raises whatever the broken file leads to
        raise RecipeError(f"{path}: not a checkpoint that can be read safely: {_first_line(error)}") from None
    if not isinstance(state, dict) or "module" not in state:
        raise RecipeError(f"{path}: not a checkpoint of swinexplore")
    return state


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
