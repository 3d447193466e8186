"""`reproduce`: the paper's tables with our figures beside the paper's."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli import console, options
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from explorer.arch import Arch
    from explorer.records import Latency, Target
    from explorer.store import Store


def reproduce(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="table4, table5 or table6.")],
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Accuracies, and latencies where no backend is given.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Measure what the database lacks: auto, onnxruntime or torch.")
    ] = None,
    device: options.Device = "auto",
    precision: options.PrecisionOption = "fp32",
    batch: options.Batch = 1,
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """Show a table of the Swin-Free paper with our counts, accuracies and latencies beside the paper's."""
    from explorer import latency
    from explorer import reproduce as library
    from explorer.store import Store

    rows = library.table(name)
    archs = list({row.arch.id: row.arch for row in rows}.values())
    accuracies: dict[str, float | None] = {}
    latencies: dict[str, Latency | None] = {}
    target: Target | None = None
    origin: dict[str, Any] | None = None
    if study is not None:
        store = Store.open(storage)
        record = store.study(study)
        target = store.target(record.target_id)
        origin = {"study": record.name, **{key: record.identity[key] for key in ("recipe", "data", "proxy")}}
        for candidate in store.candidates(record):
            accuracies[candidate.arch.id] = candidate.accuracy
            latencies[candidate.arch.id] = candidate.latency
        store.close()
    if backend is not None:
        target, why = latency.resolve(
            backend, device=device, precision=options.precision_of(precision), batch=batch, image_size=224
        )
        console.note(why)
        store = Store.open(storage, create=True)
        latencies = {
            arch.id: _latency(store, arch, target, f"{index}/{len(archs)}") for index, arch in enumerate(archs, 1)
        }
        store.close()
    compared = library.compare(
        rows,
        accuracies=accuracies,
        latencies=latencies,
        on_row=lambda row: console.note(f"counting {row.arch.name}"),
    )
    if as_json:
        content = {"table": name, "target": asdict(target) if target else None, "accuracies": origin, "rows": compared}
        console.json_document(content)
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
    console.document("the paper's: RTX 3080, batch 1, TensorRT 8.5 FP16 and PyTorch 1.13 FP32; ImageNet-1K top-1")


def _latency(store: Store, arch: Arch, target: Target, place: str) -> Latency | None:
    """From the store, else measured and kept there; None, with a message, where it cannot be measured."""
    from explorer.errors import TrialError
    from explorer.evaluate import measure_arch

    known = store.latency(arch.id, target.id)
    if known is None:
        console.note(f"{place} measuring {arch.name}")
        try:
            known = measure_arch(arch, target)
        except TrialError as error:
            console.error(f"{arch.name}: {error}")
            return None
        store.add_latency(arch, target, known)
    return known


def _show(name: str, rows: list[dict[str, Any]]) -> None:
    """A table of the columns that hold something; text folds where the terminal is narrow, figures do not."""
    from rich.table import Table

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
        "ms": [_or_blank(row["latency_ms"], "{:.3f}") + "?" * (row["is_stable"] is False) for row in rows],
    }
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    shown = Table()
    for title in filled:
        shown.add_column(title.strip(), overflow="fold", no_wrap=not title.startswith("paper's "))
    for cells in zip(*filled.values(), strict=True):
        shown.add_row(*cells)
    console.table(shown)


def _or_blank(value: float | None, template: str, unit: float = 1.0) -> str:
    return "" if value is None else template.format(value / unit)
