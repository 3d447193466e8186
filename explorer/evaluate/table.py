"""Answers from a recorded table: accuracy and latency of every architecture of a space, read instead of trained and measured.

Owns the CSV: one row per architecture, or one per architecture and number of epochs. Columns `windows` (`7-14-14-7`),
`shifts` (`0-0-0-0`), `br` (0 or 1), `depth3`, `accuracy` (0..1), `latency_ms` and optionally `epochs`; others are ignored,
but for `invalid`: a latency that is said to be so counts as missing. For benchmarks of samplers, for tests, and to replay a
finished study.
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from explorer.arch import NUM_STAGES, Arch
from explorer.errors import ArchError, TableError
from explorer.records import Candidate, Epoch, Latency, Score, ScoreKey, Target, digest
from explorer.sheet import Row, read_rows
from explorer.space import Space
from explorer.training.folders import DataInfo
from explorer.training.recipe import Recipe

#: What a table must have; and what it may have.
COLUMNS: Final = ("windows", "shifts", "br", "depth3", "accuracy", "latency_ms")
OPTIONAL: Final = ("epochs", "invalid")
_NO_NUMBER: Final = "is not a number; write it as 0.8125"


@dataclass(frozen=True)
class Table:
    """A recorded table of one space.

    `digest` is over the values of the space's architectures, whatever the order of rows. `epochs`: the numbers of epochs
    that every architecture has an accuracy for, rising; (1,) for a table without that column. `latency_ms` by architecture
    id, `accuracy` by (architecture id, epochs). `num_outside`: rows of architectures that are not in the space.
    """

    name: str
    digest: str
    epochs: tuple[int, ...]
    latency_ms: Mapping[str, float]
    accuracy: Mapping[tuple[str, int], float]
    num_outside: int = 0


def read_table(path: str | Path, space: Space) -> Table:
    """Reads a table that must hold every architecture of `space` and its base, in canonical form or not; what the space's
    limits exclude may be missing, and of a base outside the space the latency is enough.

    Raises TableError for a file that cannot be read, a missing column, a malformed value, rows that contradict each other
    and architectures or epochs that are missing.
    """
    path = Path(path)
    base = space.base.canonical()
    taken = {arch.id: arch for arch in (base, *space.archs())}
    wanted = {arch.id: arch for arch in taken.values() if space.holds(arch)}
    # Accuracies by architecture and epochs, latencies after 0 epochs; each with the line that gave it.
    facts: dict[tuple[str, int], tuple[float, int]] = {}
    why_not: dict[str, str] = {}
    archs: dict[tuple[str, ...], Arch] = {}  # a network's choices stand in as many rows as it has epochs
    num_outside = 0
    for row in read_rows(_Row, path, "table", _missing, (*COLUMNS, *OPTIONAL)):
        if row.choices not in archs:
            archs[row.choices] = row.arch(space.base)
        arch, epochs = archs[row.choices], row.epochs()
        is_latency_enough = arch.id == base.id and arch.id not in wanted
        if arch.id not in taken:
            num_outside += 1
        elif missing := row.missing(("latency_ms",) if is_latency_enough else ("accuracy", "latency_ms")):
            why_not[arch.id] = missing
        else:
            found = [("latency_ms", (arch.id, 0), row.latency_ms())]
            if row.cells["accuracy"]:
                found.append(("accuracy", (arch.id, epochs), row.accuracy()))
            for column, key, value in found:
                before, line = facts.setdefault(key, (value, row.line))
                if before != value:
                    raise row.error(
                        column, f"contradicts line {line}, {before!r} for the same network; keep one of the two"
                    )
    latency_ms = {arch_id: value for (arch_id, epochs), (value, _) in facts.items() if not epochs}
    accuracy = {key: value for key, (value, _) in facts.items() if key[1]}
    all_epochs = tuple(sorted({epochs for arch_id, epochs in accuracy if arch_id in wanted}))
    _require_all(path, wanted, all_epochs, accuracy, why_not)
    if base.id not in latency_ms:
        reason = f": {why_not[base.id]}" if base.id in why_not else ""
        raise TableError(
            f"table {path}: no row for the space's base, {_spell(base)}{reason}; its latency must be there"
        )
    content: list[list[object]] = [
        [arch_id, epochs, value, latency_ms[arch_id]] for (arch_id, epochs), value in sorted(accuracy.items())
    ]
    if base.id not in {arch_id for arch_id, _ in accuracy}:
        content.append([base.id, 0, None, latency_ms[base.id]])
    return Table(path.name, digest("table1", {"rows": content}), all_epochs, latency_ms, accuracy, num_outside)


def table_target(table: Table, image_size: int) -> Target:
    """The target that a table's latencies stand for: another content is another target."""
    return Target(
        backend="table",
        backend_version=table.digest,
        precision="fp32",
        batch=1,
        image_size=image_size,
        device_kind="cpu",
        device=table.name,
        driver="",
        threads=0,
        graph_version=0,
    )


def table_data(table: Table) -> DataInfo:
    """Stands for the data behind a table's accuracies, which nothing here knows: its id is the content's."""
    data_id = digest("d1", {"table": table.digest})
    return DataInfo(spec=table.name, id=data_id, num_classes=2, channels=1, num_train=1, num_test=1, root=Path())


def table_recipe(table: Table) -> Recipe:
    """Stands for the training behind a table: as long as its most epochs."""
    return Recipe(epochs=table.epochs[-1])


class TableSteps:
    """Measuring and training by looking a table up; every seed gives the same.

    `pace_s`: seconds that each step takes at least, for whoever wants to watch or to disturb a search.
    """

    def __init__(self, table: Table, *, pace_s: float = 0.0) -> None:
        self.table, self.pace_s = table, pace_s
        self.baseline_ms: float | None = None
        self.on_kept: Callable[[], None] | None = None

    def prepare(self, base: Arch) -> None:
        """Raises TableError where the table does not hold the space's base."""
        self._require_known(base)

    def measure(self, arch: Arch, on_detail: Callable[[str], None]) -> Latency:
        """The table's latency. Raises TableError for an architecture that it does not hold."""
        self._require_known(arch)
        time.sleep(self.pace_s)
        latency_ms = self.table.latency_ms[arch.id]
        return Latency(
            arch_id=arch.id,
            target_id=table_target(self.table, arch.image_size).id,
            latency_ms=latency_ms,
            p95_ms=latency_ms,
            min_ms=latency_ms,
            cv=0.0,
            num_samples=1,
            window_medians_ms=(latency_ms,),
            is_stable=True,
            prepare_s=0.0,
            measure_s=self.pace_s,
            environment=self._environment(),
        )

    def train(self, arch: Arch, key: ScoreKey, on_epoch: Callable[[Epoch], None] | None) -> Score:
        """The table's accuracy after `key.epochs`, with its curve up to there.

        Raises TableError for an architecture or a number of epochs that the table does not hold.
        """
        self._require_known(arch)
        if key.epochs not in self.table.epochs:
            raise TableError(
                f"table {self.table.name}: epochs: {key.epochs} are not in the table; allowed: {_listed(self.table.epochs)}"
            )
        time.sleep(self.pace_s)
        done = [epochs for epochs in self.table.epochs if epochs <= key.epochs]
        # A table holds no losses.
        curve = tuple(Epoch(epochs, 0.0, self.table.accuracy[arch.id, epochs], 0.0) for epochs in done)
        if on_epoch is not None:
            for row in curve:
                on_epoch(row)
        return Score(
            **asdict(key),
            accuracy=self.table.accuracy[arch.id, key.epochs],
            train_s=self.pace_s,
            curve=curve,
            environment=self._environment(),
        )

    def finished(self, key: ScoreKey) -> None:
        """Nothing was kept."""

    def close(self) -> None:
        """Nothing was started."""

    def _environment(self) -> dict[str, str]:
        return {"table": self.table.name, "digest": self.table.digest}

    def _require_known(self, arch: Arch) -> None:
        if arch.id not in self.table.latency_ms:
            raise TableError(
                f"table {self.table.name}: no row for {_spell(arch)}; add one, or search a space without it"
            )


def write_table(
    candidates: Iterable[Candidate], *, base: tuple[Arch, Latency] | None = None, epochs_from_curves: bool = True
) -> str:
    """The CSV of a study's complete candidates, which `read_table` takes again; mean accuracies over seeds.

    `base`: of a space that does not hold its base: a row without accuracy.

    One row for every number of epochs at which the curves of all of them have an accuracy, or for the last alone unless
    `epochs_from_curves`. A candidate whose latency is invalid is written with the reason.
    """
    complete = [candidate for candidate in candidates if candidate.outcome == "complete" and candidate.scores]
    curves = [_mean_curve(candidate.scores) for candidate in complete]
    evaluated = set.intersection(*map(set, curves)) if epochs_from_curves and curves else set()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["windows", "shifts", "br", "depth3", "epochs", "accuracy", "latency_ms", "invalid"])
    for candidate, curve in zip(complete, curves, strict=True):
        arch, latency = candidate.arch.canonical(), candidate.latency
        assert latency is not None, "a complete candidate has its latency"
        last = {candidate.scores[0].epochs: candidate.accuracy}
        for epochs, accuracy in sorted(({epochs: curve[epochs] for epochs in evaluated} | last).items()):
            row = (*_cells(arch).values(), epochs, repr(accuracy), repr(latency.latency_ms), latency.invalid)
            writer.writerow(row)
    if base is not None and base[0].id not in {candidate.arch.id for candidate in complete}:
        arch, latency = base
        epochs = max((candidate.scores[0].epochs for candidate in complete), default=1)
        writer.writerow((*_cells(arch.canonical()).values(), epochs, "", repr(latency.latency_ms), latency.invalid))
    return text.getvalue()


def _mean_curve(scores: Sequence[Score]) -> dict[int, float]:
    """Mean accuracy over the scores by epoch, where all were evaluated."""
    curves = [{row.epoch: row.accuracy for row in score.curve if row.accuracy is not None} for score in scores]
    shared = set.intersection(*map(set, curves))
    return {epoch: statistics.fmean(curve[epoch] for curve in curves) for epoch in shared}


class _Row(Row):
    @property
    def choices(self) -> tuple[str, ...]:
        """What tells this row's network from others, as it is written."""
        return tuple(self.cells[column] for column in ("windows", "shifts", "br", "depth3"))

    def arch(self, base: Arch) -> Arch:
        """The canonical architecture: the base with this row's choices."""
        windows, shifts = self._whole("windows", NUM_STAGES), self._whole("shifts", NUM_STAGES)
        (br,), (depth3,) = self._whole("br", 1), self._whole("depth3", 1)
        for column, flags in (("shifts", shifts), ("br", (br,))):
            if any(flag > 1 for flag in flags):
                raise self.error(column, "is not made of 0 (off) and 1 (on)")
        depths = (*base.depths[:2], depth3, base.depths[3])
        try:
            arch = replace(base, windows=windows, shifts=tuple(map(bool, shifts)), br=bool(br), depths=depths)
        except ArchError as error:
            column = "windows" if str(error).startswith("windows") else "depth3"
            raise self.error(column, f"is no architecture: {error}") from None
        return arch.canonical()

    def epochs(self) -> int:
        """1 in a table without that column."""
        if "epochs" not in self.cells:
            return 1
        (epochs,) = self._whole("epochs", 1)
        if not epochs:
            raise self.error("epochs", "is not a whole number of at least 1")
        return epochs

    def missing(self, needed: tuple[str, ...]) -> str:
        """Why the row counts as missing, where it needs these columns; empty where it does not."""
        if self.cells.get("invalid", ""):
            return f"its latency in line {self.line} is invalid: {self.cells['invalid']}"
        empty = next((column for column in needed if not self.cells[column]), "")
        return f"line {self.line} has no {empty}" if empty else ""

    def accuracy(self) -> float:
        value = self.number("accuracy", _NO_NUMBER)
        if not 0 <= value <= 1:
            raise self.error("accuracy", "is not a share from 0 to 1; divide percentages by 100")
        return value

    def latency_ms(self) -> float:
        value = self.number("latency_ms", _NO_NUMBER)
        if not value > 0:
            raise self.error("latency_ms", "is not a number of milliseconds above 0")
        return value

    def _whole(self, column: str, count: int) -> tuple[int, ...]:
        parts = self.cells[column].split("-")
        if len(parts) != count or not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
            example = {"windows": "7-14-14-7", "shifts": "0-1-1-0", "br": "0 or 1"}.get(column, "12")
            what = "is not a whole number" if count == 1 else f"is not {count} whole numbers, one a stage"
            raise self.error(column, f"{what}; write it as {example}")
        return tuple(map(int, parts))


def _missing(header: Sequence[str]) -> str:
    missing = [column for column in COLUMNS if column not in header]
    if not missing:
        return ""
    return (
        f"no column {', '.join(missing)} in {', '.join(header) or 'an empty line'}; needed: {', '.join(COLUMNS)}; "
        "optional: epochs"
    )


def _require_all(
    path: Path,
    wanted: Mapping[str, Arch],
    all_epochs: tuple[int, ...],
    accuracy: Mapping[tuple[str, int], float],
    why_not: Mapping[str, str],
) -> None:
    """Raises TableError that names the first architecture without a row, or without one for some epochs."""
    known = {arch_id for arch_id, _ in accuracy}
    missing = [arch for arch_id, arch in wanted.items() if arch_id not in known]
    if missing:
        reasons = [why_not[arch.id] for arch in missing[:1] if arch.id in why_not]
        others = f" (and {len(missing) - 1} more of {len(wanted)} architectures)" if len(missing) > 1 else ""
        raise TableError(
            f"table {path}: no row for {': '.join([_spell(missing[0]), *reasons])}{others}; every architecture of the space "
            "must be there with accuracy and a valid latency"
        )
    for arch_id, arch in wanted.items():
        absent = [epochs for epochs in all_epochs if (arch_id, epochs) not in accuracy]
        if absent:
            reason = f": {why_not[arch_id]}" if arch_id in why_not else ""
            raise TableError(
                f"table {path}: epochs: no row after {_listed(absent)} for {_spell(arch)}{reason}; others have them: give every "
                f"architecture a row for each of {_listed(all_epochs)}"
            )


def _cells(arch: Arch) -> dict[str, str]:
    return {
        "windows": "-".join(map(str, arch.windows)),
        "shifts": "-".join(str(int(shift)) for shift in arch.shifts),
        "br": str(int(arch.br)),
        "depth3": str(arch.depth3),
    }


def _spell(arch: Arch) -> str:
    return ", ".join(f"{column} {value}" for column, value in _cells(arch.canonical()).items())


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
