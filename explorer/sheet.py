"""CSV files that users write: a header of column names, a line a row, every problem told with its file, line and column.

Owns the reading of recorded tables and of known results; knows nothing of what is in them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from explorer.errors import TableError


@dataclass(frozen=True)
class Row:
    """A line of a file, `file` being what messages call it; its methods raise TableError with the place."""

    file: str
    line: int
    cells: dict[str, str]

    def error(self, column: str, problem: str) -> TableError:
        """What is wrong with the cell in `column`, and how to mend it."""
        return TableError(f"{self.file}: line {self.line}: {column}: {self.cells[column]!r} {problem}")

    def number(self, column: str, problem: str) -> float:
        """The finite number in `column`; `problem` tells what one looks like."""
        text = self.cells[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or "_" in text:
            raise self.error(column, problem)
        return value


AnyRow = TypeVar("AnyRow", bound=Row)


def read_rows(
    row: Callable[[str, int, dict[str, str]], AnyRow],
    path: Path,
    what: str,
    missing: Callable[[Sequence[str]], str],
    known: Sequence[str],
) -> Iterator[AnyRow]:
    """The file's rows, blanks around values and empty lines left out; other columns than those `known` may stand in it.

    `what` the file is, in messages; `missing`: what is wrong with a header, empty where nothing is.

    Raises TableError for a file that cannot be read or is no CSV text, for a header with `missing` columns or one of the known
    twice, and for a line that has not one value a column.
    """
    file_name = f"{what} {path}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            if problem := missing(header):
                raise TableError(f"{file_name}: line 1: {problem}")
            if twice := [column for column in known if header.count(column) > 1]:
                raise TableError(f"{file_name}: line 1: column {', '.join(twice)} is there twice; keep one")
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    if len(cells) != len(header):
                        raise TableError(
                            f"{file_name}: line {reader.line_num}: {len(cells)} values under {len(header)} columns; "
                            "give each column one value"
                        )
                    stripped = (cell.strip() for cell in cells)
                    yield row(file_name, reader.line_num, dict(zip(header, stripped, strict=True)))
    except OSError as error:
        raise TableError(f"{file_name}: cannot be read: {error.strerror}; give a CSV file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{file_name}: is no CSV text file: {error}") from None
