"""What a study found, for people and programs: rows, tables, CSV, Markdown and plots.

A row has the field names that every JSON, table and column of the tool uses. rich, matplotlib and plotly are imported
where they draw.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from explorer import pareto
from explorer.arch import Arch
from explorer.complexity import arch_facts
from explorer.errors import UserError
from explorer.records import Candidate, Failure, Latency
from explorer.space import presets_like

if TYPE_CHECKING:
    from rich.table import Table

#: Points of the front that a picture names.
MAX_NAMED: Final = 20
PLOT_SUFFIXES: Final = (".png", ".html")
#: Columns of the CSV and of the wide tables, in order.
COLUMNS: Final = (
    "arch_id", "name", "windows", "shifts", "br", "depth3", "depths", "embed_dim", "accuracy", "accuracy_std", "seeds", "epochs",
    "latency_ms", "p95_ms", "cv",
    "is_stable", "invalid", "ratio", "reference_drift", "speedup", "params_trainable", "params_deployed", "flops",
    "outcome", "reason",
)  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """A study's candidates as rows: those on the front by rising latency, all of them, and the known networks.

    `left_out`: complete ones whose latency is invalid and that no front holds; `diverged`: those whose training diverged, which
    cannot stand on one either, by rising latency. `measuring`: how the measurements went.
    """

    study: str
    target: str
    front: list[Row]
    candidates: list[Row]
    references: list[Row]
    left_out: list[Row]
    diverged: list[Row]
    measuring: Row

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON of `swinexplore pareto --json`."""
        keys = ("study", "target", "front", "references", "left_out", "diverged", "measuring")
        return {key: getattr(self, key) for key in keys}


def candidate_row(candidate: Candidate, base: Latency | None) -> Row:
    """An architecture's row with its accuracy (0..1), latency and speed-up against the base; None where unknown."""
    latency = candidate.latency
    ratio = None if latency is None or base is None else latency.ratio_to(base.arch_id, base)
    return {
        **arch_facts(candidate.arch),
        "accuracy": candidate.accuracy,
        "accuracy_std": candidate.accuracy_std,
        "seeds": len(candidate.scores),
        "epochs": candidate.epochs,
        **latency_fields(latency),
        "speedup": None if ratio is None else 1 / ratio,
        "outcome": candidate.outcome,
        "reason": candidate.failure.message if candidate.failure else None,
        "failure": failure_fields(candidate.failure),
    }


def failure_fields(failure: Failure | None) -> Row | None:
    """What a row holds of a failure: its class (`kind`), the step that failed, why, how often that was tried, and the optimizer
    step at which a training diverged."""
    names = ("kind", "step", "message", "diverged_at", "attempts", "failed_at")
    return None if failure is None else {name: getattr(failure, name) for name in names}


def latency_fields(latency: Latency | None) -> Row:
    """What a row holds of a latency."""
    names = ("latency_ms", "p95_ms", "cv", "is_stable", "invalid", "ratio", "reference_drift", "rebuild_spread")
    return {name: None if latency is None else getattr(latency, name) for name in names}


def measuring(latencies: Sequence[Latency]) -> Row:
    """How measurements went: how many settled or are invalid, how far the reference drifted, how far rebuilt engines differ."""
    drifts = [latency.reference_drift for latency in latencies if latency.reference_drift is not None]
    spreads = [latency.rebuild_spread for latency in latencies if latency.rebuild_spread is not None]
    return {
        "latencies": len(latencies),
        "unstable": sum(not latency.is_stable for latency in latencies),
        "invalid": sum(bool(latency.invalid) for latency in latencies),
        "reference_drift_min": min(drifts, default=None),
        "reference_drift_max": max(drifts, default=None),
        "rebuild_spread_max": max(spreads, default=None),
        "rebuilt": len(spreads),
    }


def measuring_text(row: Row) -> str:
    """The same in a line."""
    words = [f"{row['latencies']} latencies: {row['unstable']} unstable, {row['invalid']} invalid"]
    if row["reference_drift_max"] is not None:
        words.append(f"reference drift {row['reference_drift_min']:+.1%} to {row['reference_drift_max']:+.1%}")
    if row["rebuild_spread_max"] is None:
        words.append("spread from engine to engine not measured (--rebuilds)")
    else:
        words.append(
            f"engines of one network differ by at most {row['rebuild_spread_max']:.1%} ({row['rebuilt']} rebuilt)"
        )
    return ", ".join(words)


def findings(
    study: str,
    target: str,
    candidates: Sequence[Candidate],
    *,
    base: Arch,
    base_latency: Latency | None,
    known: Collection[str] = (),
    max_latency_ms: float | None = None,
) -> Findings:
    """The front of the complete candidates, at most `max_latency_ms` slow where given, and the rows of all.

    `known`: ids of the networks that the search began with, beside the base and the published models. Nothing is compared
    with a base whose latency is invalid.
    """
    shown_base = base_latency
    base_latency = None if base_latency is None or base_latency.invalid else base_latency
    within = [c for c in candidates if max_latency_ms is None or (c.latency_ms or 0.0) <= max_latency_ms]
    complete = [c for c in within if c.may_stand_on_front]
    diverged = sorted((c for c in within if _has_diverged(c)), key=lambda c: (c.latency_ms or 0.0, c.arch.id))
    indices = pareto.front([c.accuracy or 0.0 for c in complete], [c.latency_ms or 0.0 for c in complete])
    by_id = {candidate.arch.id: candidate for candidate in candidates}
    references = [*_references(base), *(by_id[arch_id].arch for arch_id in sorted(known) if arch_id in by_id)]
    if base.id not in by_id:
        by_id[base.id] = Candidate(base, "pending", shown_base)
    return Findings(
        study,
        target,
        [candidate_row(complete[index], base_latency) for index in indices],
        [candidate_row(candidate, base_latency) for candidate in candidates],
        [
            candidate_row(by_id.get(arch.id, Candidate(arch, "pending")), base_latency)
            for arch in {arch.id: arch for arch in references}.values()
        ],
        [candidate_row(c, base_latency) for c in candidates if c.outcome == "complete" and not c.may_stand_on_front],
        [candidate_row(c, base_latency) for c in diverged],
        measuring([c.latency for c in candidates if c.latency is not None]),
    )


def _has_diverged(candidate: Candidate) -> bool:
    return candidate.failure is not None and candidate.failure.kind == "diverged"


def _references(base: Arch) -> list[Arch]:
    """The base model and the published models of its width, at its input and output sizes."""
    alike = [arch for arch in presets_like(base) if arch.embed_dim == base.embed_dim]
    return list({arch.id: arch for arch in (base, *alike)}.values())


# -- text -------------------------------------------------------------------------------------------------------------


def to_csv(rows: Sequence[Row]) -> str:
    """Lists joined by `-`, booleans as 0 and 1, empty where nothing is known."""
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer, [column for column in COLUMNS if not rows or column in rows[0]], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({key: _csv_cell(value) for key, value in row.items() if key in writer.fieldnames} for row in rows)
    return buffer.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of the columns that people compare."""
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|" + "---|" * len(_HEADINGS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def to_table(rows: Sequence[Row], title: str = "") -> Table:
    """The same table for the terminal."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for heading in _HEADINGS:
        is_text = heading in ("name", "windows", "shifts")
        table.add_column(
            heading, justify="left" if is_text else "right", no_wrap=not is_text or heading != "name", overflow="fold"
        )
    for row in rows:
        table.add_row(*_cells(row))
    return table


def reason_lines(rows: Sequence[Row]) -> list[str]:
    """Why each has no figures, a line each: too long for a table's column."""
    return [f"{row['name']}: {' '.join((row['reason'] or '').split())}" for row in rows]


_HEADINGS: Final = (
    "name", "windows", "shifts", "br", "depth3", "accuracy", "latency_ms", "speedup", "trainable", "deployed", "flops",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    accuracy, latency_ms, speedup = row.get("accuracy"), row.get("latency_ms"), row.get("speedup")
    is_shaky = row.get("is_stable") is False
    return [
        row["name"],
        _csv_cell(row["windows"]),
        _csv_cell(row["shifts"]),
        _csv_cell(row["br"]),
        str(row["depth3"]),
        _missing_text(row) if accuracy is None else _accuracy_text(row),
        "" if latency_ms is None else f"{latency_ms:.2f}{'!' if row.get('invalid') else '?' if is_shaky else ''}",
        "" if speedup is None else f"{speedup:.2f}x",
        f"{row['params_trainable'] / 1e6:.2f}M",
        f"{row['params_deployed'] / 1e6:.2f}M",
        f"{row['flops'] / 1e9:.2f}G",
    ]


def _missing_text(row: Row) -> str:
    """What stands in place of an accuracy: `diverged` is a result, all else that failed is only missing."""
    if not row.get("failure"):
        return ""
    return "diverged" if row["failure"]["kind"] == "diverged" else "failed"


def _accuracy_text(row: Row) -> str:
    """`0.8123`, its deviation over seeds, and after how many epochs where the training was not whole."""
    spread = "" if row.get("accuracy_std") is None else f" ±{row['accuracy_std']:.4f}"
    stopped = f" after {row['epochs']}" if row.get("outcome") == "stopped" else ""
    return f"{row['accuracy']:.4f}{spread}{stopped}"


def _csv_cell(value: Any) -> Any:
    if isinstance(value, list):
        return "-".join(str(_csv_cell(element)) for element in value)
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else value


# -- plots ------------------------------------------------------------------------------------------------------------


def check_plot_path(path: Path) -> None:
    """Raises UserError for a file ending that no plot is written as, or a folder that is not there."""
    if path.suffix not in PLOT_SUFFIXES:
        raise UserError(f"--plot: {path}: ends in {path.suffix!r}; allowed: {', '.join(PLOT_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"--plot: {path.parent}: no such folder; make it first")


def plot(found: Findings, path: Path) -> None:
    """Accuracy against latency with the front, as a PNG picture or a self-contained HTML page. Raises UserError."""
    check_plot_path(path)
    try:
        _plot_png(found, path) if path.suffix == ".png" else _plot_html(found, path)
    except OSError as error:
        raise UserError(f"--plot: {path}: cannot be written: {error.strerror}") from None


def _plotted(found: Findings) -> tuple[list[Row], list[Row]]:
    """Evaluated rows off the front, and the front's."""
    on_front = {row["arch_id"] for row in found.front}
    evaluated = [row for row in found.candidates if row["outcome"] == "complete" and not row["invalid"]]
    return [row for row in evaluated if row["arch_id"] not in on_front], found.front


def _plotted_known(found: Findings) -> list[Row]:
    """Rows of the known networks that may be shown, the base first where it may."""
    return [row for row in found.references if None not in (row["accuracy"], row["latency_ms"]) and not row["invalid"]]


def _plotted_diverged(found: Findings) -> list[Row]:
    """Rows of what diverged and has a latency that may be shown."""
    return [row for row in found.diverged if row["latency_ms"] is not None and not row["invalid"]]


def _plot_png(found: Findings, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    others, front = _plotted(found)
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(*_points(others), s=28, color="#b8bec9", label="evaluated")
    axes.plot(*_points(front), "-o", drawstyle="steps-post", color="#0b6bcb", label="front")
    if diverged := [row["latency_ms"] for row in _plotted_diverged(found)]:
        bottom = axes.get_xaxis_transform()  # x in milliseconds, y as a share of the picture: it has no accuracy
        axes.plot(diverged, [0.02] * len(diverged), "x", transform=bottom, color="#c92a2a", label="diverged")
    base_id = found.references[0]["arch_id"]
    known = _plotted_known(found)
    if published := [row for row in known if row["arch_id"] != base_id]:
        axes.scatter(
            *_points(published), marker="D", s=34, facecolors="none", edgecolors="#d9480f", label="known networks"
        )
    if known and known[0]["arch_id"] == base_id:
        name = f"base: {known[0]['name']}"
        axes.scatter(*_points(known[:1]), marker="*", s=170, color="#d9480f", zorder=3, label=name)
    for number, row in enumerate(front[:MAX_NAMED], 1):
        place = (row["latency_ms"], 100 * row["accuracy"])
        axes.annotate(str(number), place, xytext=(-11, 5), textcoords="offset points", fontsize=9)
        axes.plot([], [], " ", label=f"{number}: {row['name']}")
    axes.set(xlabel="latency (ms)", ylabel="proxy accuracy (%)")
    axes.set_title(f"{found.study}\n{found.target}", fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", ncols=2, fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)


def _plot_html(found: Findings, path: Path) -> None:
    import plotly.graph_objects as go

    others, front = _plotted(found)
    figure = go.Figure()
    for name, rows, style in (
        ("evaluated", others, {"mode": "markers", "marker": {"color": "#b8bec9"}}),
        ("front", front, {"mode": "lines+markers", "line": {"shape": "hv", "color": "#0b6bcb"}}),
        (
            "known networks",
            _plotted_known(found),
            {"mode": "markers", "marker": {"color": "#d9480f", "symbol": "diamond-open", "size": 10}},
        ),
    ):
        x, y = _points(rows)
        figure.add_scatter(x=x, y=y, name=name, text=[row["name"] for row in rows], hoverinfo="x+y+text", **style)
    if diverged := _plotted_diverged(found):
        accuracies = [100 * row["accuracy"] for row in (*others, *front)] or [0.0]
        bottom = min(accuracies) - 0.05 * (max(accuracies) - min(accuracies) + 1)
        figure.add_scatter(
            x=[row["latency_ms"] for row in diverged],
            y=[bottom] * len(diverged),
            name="diverged",
            text=[f"{row['name']}: {row['reason']}" for row in diverged],
            hoverinfo="x+text",
            mode="markers",
            marker={"color": "#c92a2a", "symbol": "x"},
        )
    figure.update_layout(
        title=f"{found.study}<br><sup>{found.target}</sup>",
        xaxis_title="latency (ms)",
        yaxis_title="proxy accuracy (%)",
    )
    figure.write_html(path, include_plotlyjs=True, full_html=True)


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["latency_ms"] for row in rows], [100 * row["accuracy"] for row in rows]
