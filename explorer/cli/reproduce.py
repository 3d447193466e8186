"""`reproduce`: the paper's tables with our figures beside the paper's."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli import console, options
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from explorer.arch import Arch
    from explorer.records import Target
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
    latencies: dict[str, float | None] = {}
    target: Target | None = None
    if study is not None:
        store = Store.open(storage)
        record = store.study(study)
        target = store.target(record.target_id)
        for candidate in store.candidates(record):
            accuracies[candidate.arch.id] = candidate.accuracy
            latencies[candidate.arch.id] = candidate.latency_ms
        store.close()
    if backend is not None:
        target, why = latency.resolve(
            backend, device=device, precision=options.precision_of(precision), batch=batch, image_size=224
        )
        console.note(why)
        store = Store.open(storage, create=True)
        latencies = {
            arch.id: _latency_ms(store, arch, target, f"{index}/{len(archs)}") for index, arch in enumerate(archs, 1)
        }
        store.close()
    compared = library.compare(
        rows,
        accuracies=accuracies,
        latencies_ms=latencies,
        on_row=lambda row: console.note(f"counting {row.arch.name}"),
    )
    if as_json:
        console.json_document({"table": name, "target": asdict(target) if target else None, "rows": compared})
        return
    _show(name, compared)
    for key, what in (("params", "deployed parameters"), ("flops", "FLOPs"), ("onnx_tool", "FLOPs by onnx-tool")):
        largest = library.largest_difference(compared, f"{key}_difference")
        if largest is not None:
            console.document(f"{what}: at most {largest:.1%} from the paper's")
    console.document(f"latency: {target.describe()}" if target else "latency: not measured; give --study or --backend")
    console.document("the paper's: RTX 3080, batch 1, TensorRT 8.5 FP16 and PyTorch 1.13 FP32; ImageNet-1K top-1")


def _latency_ms(store: Store, arch: Arch, target: Target, place: str) -> float | None:
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
    return known.latency_ms


def _show(name: str, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    shown = Table(
        name, "network", "params", "paper", "diff", "FLOPs", "paper", "diff", "onnx-tool", "diff", "top-1 (paper)", "accuracy",
        "TensorRT ms (paper)", "PyTorch ms (paper)", "ms",
    )  # fmt: skip
    for row in rows:
        shown.add_row(
            row["label"],
            row["name"] if row["name"] != row["label"] else "",
            f"{row['params_deployed'] / 1e6:.1f}M",
            _or_blank(row["paper_params_m"], "{:.1f}M"),
            _or_blank(row["params_difference"], "{:+.1%}"),
            f"{row['flops'] / 1e9:.1f}G",
            _or_blank(row["paper_flops_g"], "{:.1f}G"),
            _or_blank(row["flops_difference"], "{:+.1%}"),
            _or_blank(row["onnx_tool_flops"], "{:.1f}G", 1e9),
            _or_blank(row["onnx_tool_difference"], "{:+.1%}"),
            row["paper_top1"] or "",
            _or_blank(row["accuracy"], "{:.4f}"),
            row["paper_tensorrt_fp16_ms"] or "",
            row["paper_torch_fp32_ms"] or "",
            _or_blank(row["latency_ms"], "{:.3f}"),
        )
    console.table(shown)


def _or_blank(value: float | None, template: str, unit: float = 1.0) -> str:
    return "" if value is None else template.format(value / unit)
