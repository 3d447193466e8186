"""`reproduce`: the paper's tables with our figures beside the paper's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.arch import PRESETS
from explorer.cli import console, options
from explorer.errors import UserError
from explorer.paper import REFERENCE
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from explorer.latency.profile import Profile
    from explorer.paper import PaperRow
    from explorer.records import Latency, Target

#: Tables whose networks the paper compares with Swin-B by latency: it is timed beside each.
_WITH_RATIO = ("table5", "table6")


def reproduce(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="table1, table4, table5 or table6.")],
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Accuracies, and latencies where no backend is given.")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="Profile (table1), or measure what the database lacks: auto, or a backend."),
    ] = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "fp32",
    batch: options.Batch = 1,
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """Show a table of the Swin-Free paper with our counts, accuracies, latencies or shares beside the paper's."""
    from explorer import reproduce as library

    target: Target | None = None
    if name != library.SHARES:
        rows = library.table(name)
    elif study is not None:
        raise UserError(f"--study: {name} is about run time alone; use --backend")
    if backend is not None:
        from explorer import latency

        target, why = latency.resolve(
            backend, device=device, precision=options.precision_of(precision), batch=batch, image_size=224
        )
        console.note(why)
    if name == library.SHARES:
        _shares(name, target, as_json=as_json)
    else:
        _networks(name, rows, target, study, storage, as_json=as_json)


def _shares(name: str, target: Target | None, *, as_json: bool) -> None:
    """Table 1: shares of Swin-B's run time."""
    from rich.table import Table

    from explorer import reproduce as library
    from explorer.cli.profile import show

    profiled: Profile | None = None
    if target is not None:
        from explorer.latency.profile import profile_arch

        console.note(f"profiling {REFERENCE}")
        profiled = profile_arch(PRESETS[REFERENCE], target, cache_root=options.cache_root())
    rows = library.shares(profiled)
    if as_json:
        content = {"table": name, "name": REFERENCE, "target": asdict(target) if target else None, "rows": rows}
        console.json_document({**content, "profile": profiled.to_dict() if profiled else None})
        return
    table = Table(f"share of {REFERENCE}'s run time", "paper's TensorRT FP16", "paper's PyTorch FP32")
    if profiled is not None:
        table.add_column("here")
    for row in rows:
        ours = () if row["share"] is None else (f"{row['share']:.1%}",)
        table.add_row(row["label"], row["paper_tensorrt_fp16"] or "", row["paper_torch_fp32"] or "", *ours)
    console.table(table)
    if profiled is None or target is None:
        console.document("here: nothing was measured; give --backend")
    else:
        console.document(f"here: {target.describe()}")
        show(profiled)
    console.document("the paper's: RTX 3080, batch 1, TensorRT 8.5 and PyTorch 1.13")


def _networks(
    name: str, rows: tuple[PaperRow, ...], target: Target | None, study: str | None, storage: str, *, as_json: bool
) -> None:
    """Tables 4 to 6: one network a row."""
    from explorer import reproduce as library

    known = _Known()
    if study is not None:
        known = _of_study(study, storage, target)
    if target is not None:
        known = _measured(name, rows, target, storage, known)
    compared = library.compare(
        rows,
        accuracies=known.accuracies,
        latencies=known.latencies,
        reference=known.reference,
        on_row=lambda row: console.note(f"counting {row.arch.name}"),
    )
    target, origin = known.target, known.origin
    if as_json:
        content = {"table": name, "target": asdict(target) if target else None, "accuracies": origin, "rows": compared}
        console.json_document(content)
        _exit_where_failed(known)
        return
    _show(name, compared)
    for key, what in (("params", "deployed parameters"), ("flops", "FLOPs"), ("onnx_tool", "FLOPs by onnx-tool")):
        largest = library.largest_difference(compared, f"{key}_difference")
        if largest is not None:
            console.document(f"{what}: at most {largest:.1%} from the paper's")
    if origin is None:
        console.document("accuracy: not known; give --study")
    else:
        console.document(
            f"accuracy: of proxies, 0 to 1, from study {origin['study']}; no ImageNet top-1 like the paper's"
        )
    console.document(f"latency: {target.describe()}" if target else "latency: not measured; give --study or --backend")
    if any(row["ratio"] is not None for row in compared):
        console.document(f"ratio: latency over {REFERENCE}'s, timed beside it where a network was measured beside it")
    console.document("the paper's: RTX 3080, batch 1, TensorRT 8.5 FP16 and PyTorch 1.13 FP32; ImageNet-1K top-1")
    _exit_where_failed(known)


def _exit_where_failed(known: _Known) -> None:
    """Exit code 1 where a network could not be measured, as `measure` has it."""
    if known.failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Known:
    """What stands beside the paper's figures, by arch id, and where it comes from.

    `reference`: the latency of Swin-B on the same target.
    """

    accuracies: dict[str, float | None] = field(default_factory=dict)
    latencies: dict[str, Latency | None] = field(default_factory=dict)
    reference: Latency | None = None
    target: Target | None = None
    origin: dict[str, Any] | None = None
    failed: int = 0


def _of_study(study: str, storage: str, target: Target | None) -> _Known:
    """What a study found; its latencies where no `target` is to be measured."""
    from explorer.store import Store

    store, base = Store.open(storage), PRESETS[REFERENCE]
    try:
        record = store.study(study)
        candidates = store.candidates(record)
        known = _Known(
            {candidate.arch.id: candidate.accuracy for candidate in candidates},
            origin={"study": record.name, **{key: record.identity[key] for key in ("recipe", "data", "proxy")}},
        )
        if target is not None:
            return known
        return replace(
            known,
            latencies={candidate.arch.id: candidate.latency for candidate in candidates},
            reference=store.latency(base.id, record.target_id),
            target=store.target(record.target_id),
        )
    finally:
        store.close()


def _measured(name: str, rows: tuple[PaperRow, ...], target: Target, storage: str, known: _Known) -> _Known:
    """Latencies from the store, else measured and kept there; None, with a message, where one cannot be measured."""
    from explorer.errors import TrialError
    from explorer.latency.measurer import Measurer
    from explorer.store import Store

    archs = {row.arch.id: row.arch for row in rows}
    base = PRESETS[REFERENCE]
    store = Store.open(storage, create=True)
    try:
        latencies = {arch_id: store.latency(arch_id, target.id) for arch_id in archs}
        reference = store.latency(base.id, target.id)
        missing = [arch for arch in archs.values() if not _is_valid(latencies[arch.id])]
        with Measurer(
            target,
            reference=base if name in _WITH_RATIO else None,
            baseline_ms=reference.latency_ms if reference is not None and _is_valid(reference) else None,
            cache_root=options.cache_root(),
        ) as measurer:
            failed = 0
            for index, arch in enumerate(missing, 1):
                console.note(f"{index}/{len(missing)} measuring {arch.name}")
                try:
                    found = measurer.measure(arch)
                except TrialError as error:
                    console.error(str(error) if arch.name in str(error) else f"{arch.name}: {error}")
                    failed += 1
                    continue
                store.add_latency(arch, target, found)
                latencies[arch.id] = found
    finally:
        store.close()
    return replace(known, latencies=latencies, reference=reference, target=target, failed=failed)


def _is_valid(latency: Latency | None) -> bool:
    return latency is not None and not latency.invalid


def _show(name: str, rows: list[dict[str, Any]]) -> None:
    """A table of the columns that hold something; text folds where the terminal is narrow, figures do not."""
    from rich.table import Table

    has_ratio = any(row["ratio"] is not None for row in rows)
    columns = {
        name: [row["label"] + (f"\n{row['name']}" if row["name"] != row["label"] else "") for row in rows],
        "params": [f"{row['params_deployed'] / 1e6:.1f}M" for row in rows],
        "paper's": [_or_blank(row["paper_params_m"], "{:.1f}M") for row in rows],
        "diff": [_or_blank(row["params_difference"], "{:+.1%}") for row in rows],
        "FLOPs": [f"{row['flops'] / 1e9:.1f}G" for row in rows],
        "paper's ": [_or_blank(row["paper_flops_g"], "{:.1f}G") for row in rows],
        "diff ": [_or_blank(row["flops_difference"], "{:+.1%}") for row in rows],
        "onnx-tool": [_or_blank(row["onnx_tool_flops"], "{:.1f}G", 1e9) for row in rows],
        "diff  ": [_or_blank(row["onnx_tool_difference"], "{:+.1%}") for row in rows],
        "paper's top-1": [row["paper_top1"] or "" for row in rows],
        "accuracy": [_or_blank(row["accuracy"], "{:.4f}") for row in rows],
        "paper's TensorRT ms": [row["paper_tensorrt_fp16_ms"] or "" for row in rows],
        "paper's PyTorch ms": [row["paper_torch_fp32_ms"] or "" for row in rows],
        "paper's TensorRT ratio": [
            _or_blank(row["paper_tensorrt_ratio"] if has_ratio else None, "{:.2f}") for row in rows
        ],
        "paper's PyTorch ratio": [_or_blank(row["paper_torch_ratio"] if has_ratio else None, "{:.2f}") for row in rows],
        "ratio": [_or_blank(row["ratio"], "{:.2f}") for row in rows],
        "ms": [_or_blank(row["latency_ms"], "{:.3f}") + _doubt(row) for row in rows],
    }
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    shown = Table()
    for title in filled:
        shown.add_column(title.strip(), overflow="fold", no_wrap=not title.startswith("paper's "))
    for cells in zip(*filled.values(), strict=True):
        shown.add_row(*cells)
    console.table(shown)


def _doubt(row: dict[str, Any]) -> str:
    """`!` for an invalid latency, `?` for one that did not settle."""
    return "!" if row["invalid"] is not None else "?" * (row["is_stable"] is False)


def _or_blank(value: float | None, template: str, unit: float = 1.0) -> str:
    return "" if value is None else template.format(value / unit)
