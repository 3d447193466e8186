"""Which of two networks is the more accurate when trained in full: the paper's tables, or results of one's own.

Only what is known is a pair: within a group of the paper nothing is, but for what a single comparison states, nor between
two results that their spread does not tell apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from explorer.arch import Arch, parse_name, sizes_in
from explorer.errors import ArchError, StoreError, TableError, UserError
from explorer.paper import STATED, TABLES, PaperRow
from explorer.sheet import Row, read_rows

#: Two results are of known order where they differ by more than so many standard deviations of their difference.
NUM_DEVIATIONS: Final = 2.0
#: What stands in place of an accuracy where the training diverged.
DIVERGED: Final = "diverged"
TRUTH_COLUMNS: Final = ("name", "arch_id", "accuracy", "std")
_EXAMPLE: Final = "write it as 0.8125 or 81.25"


@dataclass(frozen=True)
class Pair:
    """Two networks of known order, by their ids. `kind`: how it is known.

    `group`: the paper's groups of top-1; `stated`: single comparisons of the paper, and what follows from them; `measured`:
    results of one's own.
    """

    better: str
    worse: str
    kind: Literal["group", "stated", "measured"]


@dataclass(frozen=True)
class Truth:
    """What full trainings said of some networks.

    `labels`: what stands for the result of each, for people; `levels`: a number that orders those results, the higher the
    better, of every network of which something is known beside single comparisons. Both by the network's id. `is_part`:
    whether it stands beside a truth that holds all of it, as the pairs of which both networks trained do.
    """

    name: str
    archs: tuple[Arch, ...]
    labels: Mapping[str, str]
    levels: Mapping[str, float]
    pairs: tuple[Pair, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    is_part: bool = False

    def of_kind(self, *, stated: bool) -> tuple[Pair, ...]:
        """The pairs that single comparisons state, or all others."""
        return tuple(pair for pair in self.pairs if (pair.kind == "stated") == stated)


def truth_of_paper(tables: Sequence[str] = ("table4", "table5", "table6"), name: str = "") -> Truth:
    """The order that tables of Koo et al. 2023 give, networks that stand in several tables counted once.

    A group of one table counts in the others too, a single comparison only with the table that states it. A network whose
    order to no other is known is left out. Raises UserError for a table that is none of these.
    """
    for table in tables:
        if table not in STATED:
            raise UserError(f"tables: {table!r} is none that gives an order; allowed: {', '.join(STATED)}")
    groups = {row.arch.id: row.top1_group for rows in TABLES.values() for row in rows if row.top1_group is not None}
    rows = {row.arch.id: row for table in tables for row in TABLES[table]}
    archs = {arch_id: row.arch for arch_id, row in rows.items()}
    stated = []
    for better, worse in itertools.chain.from_iterable(STATED[table] for table in tables):
        pair = (parse_name(better), parse_name(worse))
        archs |= {arch.id: arch for arch in pair}
        stated.append((pair[0].id, pair[1].id))
    levels = {arch_id: float(groups[arch_id]) for arch_id in archs if arch_id in groups}
    grouped = [
        Pair(one, other, "group") for one, other in itertools.permutations(levels, 2) if levels[one] > levels[other]
    ]
    known = {(pair.better, pair.worse) for pair in grouped}
    implied = [Pair(*pair, "stated") for pair in sorted(_closed(known | set(stated)) - known)]
    pairs = (*grouped, *implied)
    ordered = {arch_id for pair in pairs for arch_id in (pair.better, pair.worse)}
    found = {arch_id: arch for arch_id, arch in archs.items() if arch_id in ordered}
    labels = {arch_id: _label(rows.get(arch_id), groups.get(arch_id)) for arch_id in found}
    return Truth(name or "+".join(tables), tuple(found.values()), labels, levels, pairs)


def truths_of_paper(tables: Sequence[str] = ("table4", "table5", "table6")) -> list[Truth]:
    """Each table by itself, tables 4 and 5 together (the 61 pairs), and all that are given; raises as `truth_of_paper`.

    The last holds all others. Before it stands what it says of networks that trained, where some did not.
    """
    parts: list[tuple[str, ...]] = [(table,) for table in dict.fromkeys(tables)]
    joint = [("table4", "table5"), tuple(dict.fromkeys(tables))]
    parts += [part for part in dict.fromkeys(joint) if len(part) > 1 and set(part) <= set(tables)]
    truths = [truth_of_paper(part) for part in parts]
    return [*truths[:-1], *(part for truth in truths[-1:] for part in trained_part(truth)), *truths[-1:]]


def trained_part(truth: Truth) -> tuple[Truth, ...]:
    """The pairs of which both networks trained; none where all did, or where no such pair is left.

    Whether a network diverges is another question than which of two is the more accurate, and a proxy answers the second.
    """
    pairs = tuple(p for p in truth.pairs if DIVERGED not in (truth.labels[p.better], truth.labels[p.worse]))
    if not pairs or len(pairs) == len(truth.pairs):
        return ()
    ordered = {arch_id for pair in pairs for arch_id in (pair.better, pair.worse)}
    archs = tuple(arch for arch in truth.archs if arch.id in ordered)
    return (replace(truth, name=f"{truth.name}, both trained", archs=archs, pairs=pairs, is_part=True),)


def _label(row: PaperRow | None, group: int | None) -> str:
    """`83.x`, `diverged`, or the words of the table where no group is known."""
    if group is not None:
        return f"{group}.x" if group else DIVERGED
    return row.top1 if row else ""


def _closed(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """With every pair that follows from two others."""
    closed = set(pairs)
    while True:
        new = {(a, d) for a, b in closed for c, d in closed if b == c} - closed
        if not new:
            return closed
        closed |= new


def read_truth(
    path: Path,
    *,
    sizes: Mapping[str, int] | None = None,
    find: Callable[[str], Arch] | None = None,
) -> Truth:
    """Results of one's own from a CSV file: `name` or `arch_id`, `accuracy` as share, in percent or `diverged`, optional `std`.

    `sizes`: of names that give none themselves (as `parse_name` takes them); `find`: the architecture of an id. Two results
    are of known order where they differ by more than 2 sqrt(std1^2 + std2^2). Raises TableError with line and value.
    """
    archs: dict[str, Arch] = {}
    results: dict[str, tuple[float, float]] = {}
    lines: dict[str, int] = {}
    names: dict[str, str] = {}
    for row in read_rows(_Row, path, "truth", _missing, TRUTH_COLUMNS):
        arch = row.arch(sizes or {}, find)
        if arch.id in archs:
            raise row.error(row.key, f"is the network of line {lines[arch.id]}; give each network once")
        archs[arch.id], results[arch.id], lines[arch.id] = arch, (row.accuracy(), row.std()), row.line
        names[arch.id] = row.cells[row.key]
    _require_one_unit(path, {lines[arch_id]: accuracy for arch_id, (accuracy, _) in results.items()})
    if len(archs) < 2:
        raise TableError(f"truth {path}: {len(archs)} network(s) are no order; give at least two rows")
    pairs = [
        Pair(one, other, "measured")
        for one, other in itertools.permutations(archs, 2)
        if _is_above(results[one], results[other])
    ]
    if not pairs:
        raise TableError(
            f"truth {path}: no two accuracies differ by more than {NUM_DEVIATIONS:g} standard deviations: there is no order "
            "to rank by; train longer, or from more seeds"
        )
    levels = {arch_id: accuracy for arch_id, (accuracy, _) in results.items()}
    labels = {arch_id: f"{level:g}" if math.isfinite(level) else DIVERGED for arch_id, level in levels.items()}
    return Truth(path.name, tuple(archs.values()), labels, levels, tuple(pairs), names)


def _require_one_unit(path: Path, accuracies: Mapping[int, float]) -> None:
    """Raises TableError where some accuracies (by line) can only be shares and others only percent."""
    shares = [line for line, accuracy in accuracies.items() if 0 < accuracy < 1]
    percent = [line for line, accuracy in accuracies.items() if accuracy > 1]
    if shares and percent:
        raise TableError(
            f"truth {path}: line {shares[0]}: accuracy: {accuracies[shares[0]]:g} beside {accuracies[percent[0]]:g} in line "
            f"{percent[0]}; give all as shares (0.8125) or all in percent (81.25), and what is at chance as {DIVERGED!r}"
        )


def _is_above(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the first (accuracy, deviation) is surely the higher; what diverged lies below everything else."""
    if -math.inf in (one[0], other[0]):
        return one[0] > other[0]
    return one[0] - other[0] > NUM_DEVIATIONS * math.hypot(one[1], other[1])


class _Row(Row):
    @property
    def key(self) -> str:
        """The column that says which network: `name`, or `arch_id` where that is empty."""
        return "name" if self.cells.get("name") else "arch_id"

    def arch(self, sizes: Mapping[str, int], find: Callable[[str], Arch] | None) -> Arch:
        text = self.cells.get(self.key, "")
        if not text:
            raise TableError(f"{self.file}: line {self.line}: neither name nor arch_id; give one of them")
        try:
            if self.key == "name":
                return parse_name(text, **{**sizes, **sizes_in(text)})
            if find is None:
                raise self.error("arch_id", "cannot be looked up: there is no database; give names instead")
            return find(text)
        except ArchError as error:
            raise self.error(self.key, f"is no architecture: {error}") from None
        except StoreError as error:
            raise self.error("arch_id", f"is no architecture of the database: {error}") from None

    def accuracy(self) -> float:
        if self.cells["accuracy"] == DIVERGED:
            return -math.inf
        value = self.number("accuracy", f"is not a number, nor {DIVERGED!r}; {_EXAMPLE}")
        if not 0 <= value <= 100:
            raise self.error("accuracy", f"is not between 0 and 100; {_EXAMPLE}, or {DIVERGED!r}")
        return value

    def std(self) -> float:
        if not self.cells.get("std"):
            return 0.0
        value = self.number("std", f"is not a number; {_EXAMPLE}")
        if value < 0:
            raise self.error("std", "is below 0; give a standard deviation, or leave it empty")
        return value


def _missing(header: Sequence[str]) -> str:
    if "accuracy" in header and {"name", "arch_id"} & set(header):
        return ""
    return f"{', '.join(header) or 'an empty line'} are not the columns; needed: accuracy, and name or arch_id; optional: std"
