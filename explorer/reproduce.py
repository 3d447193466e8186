"""The paper's tables with our figures beside the paper's: what is counted, and what a study, a backend and a profile found.

Counting needs nothing but the `Arch`; the FLOPs that the paper's own tool counts come from the public package `onnx-tool`
where it is installed. Accuracies, latencies and profiles are handed in; what nobody measured stays None.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from explorer.arch import PRESETS, Arch
from explorer.complexity import complexity_of
from explorer.errors import UserError
from explorer.paper import REFERENCE, TABLE_1, TABLES, PaperRow
from explorer.records import Latency

if TYPE_CHECKING:
    from explorer.latency.profile import Profile

#: How far our counts may lie from the paper's (tests/test_reproduce.py): parameters, FLOPs.
PARAMS_TOLERANCE: Final = 0.005
FLOPS_TOLERANCE: Final = 0.06

#: The table of shares of the run time; the others are of networks.
SHARES: Final = "table1"

Row = dict[str, Any]


def table(name: str) -> tuple[PaperRow, ...]:
    """The rows of `table4`, `table5` or `table6`; table 1 has `shares`. Raises UserError for another."""
    if name not in TABLES:
        allowed = ", ".join((SHARES, *TABLES))
        raise UserError(f"{name!r} is no table of the paper that can be reproduced; allowed: {allowed}")
    return TABLES[name]


def shares(profile: Profile | None) -> list[Row]:
    """The rows of table 1: the paper's shares of Swin-B's run time (text or None), and ours (0..1) where it was profiled."""
    ours = None if profile is None else profile.by_group()
    return [
        {
            "label": row.label,
            "groups": list(row.groups),
            "paper_tensorrt_fp16": row.tensorrt_fp16 or None,
            "paper_torch_fp32": row.torch_fp32 or None,
            "share": None if ours is None else sum(ours[group] for group in row.groups),
        }
        for row in TABLE_1
    ]


def compare(
    rows: tuple[PaperRow, ...],
    *,
    accuracies: Mapping[str, float | None] | None = None,
    latencies: Mapping[str, Latency | None] | None = None,
    reference: Latency | None = None,
    on_row: Callable[[PaperRow], None] = lambda row: None,
) -> list[Row]:
    """One row each: the paper's figures (`paper_...`, text or None) and ours; the two mappings are by arch id.

    `params_difference` and `flops_difference`: ours over the paper's, less one. `onnx_tool_flops`: as `onnx-tool` counts
    them, None where it is not installed; takes seconds a row. `on_row` is called before each.

    `ratio`: latency over Swin-B's, timed beside it where that was the reference, else over its median in `latencies` or in
    `reference`. `paper_tensorrt_ratio`, `paper_torch_ratio`: the same of the paper's, None where they cannot be read.
    """
    reference = (latencies or {}).get(PRESETS[REFERENCE].id) or reference
    reference = None if reference is None or reference.invalid else reference
    compared = []
    counted: dict[str, int | None] = {}
    for row in rows:
        on_row(row)
        counts = complexity_of(row.arch)
        if row.arch.id not in counted:
            counted[row.arch.id] = onnx_tool_flops(row.arch)
        tool_flops = counted[row.arch.id]
        latency = (latencies or {}).get(row.arch.id)
        paper = {f"paper_{key}": value or None for key, value in asdict(row).items() if key not in ("label", "name")}
        compared.append(
            {
                "label": row.label,
                "name": row.arch.name,
                "arch_id": row.arch.id,
                **paper,
                "accuracy": (accuracies or {}).get(row.arch.id),
                "latency_ms": None if latency is None else latency.latency_ms,
                "is_stable": None if latency is None else latency.is_stable,
                "invalid": latency.invalid or None if latency is not None else None,
                "ratio": None if latency is None else latency.ratio_to(PRESETS[REFERENCE].id, reference),
                "paper_tensorrt_ratio": row.tensorrt_ratio,
                "paper_torch_ratio": row.torch_ratio,
                "params_deployed": counts.params_deployed,
                "params_difference": _difference(counts.params_deployed / 1e6, row.params_m),
                "flops": counts.flops,
                "flops_difference": _difference(counts.flops / 1e9, row.flops_g),
                "onnx_tool_flops": tool_flops,
                "onnx_tool_difference": None if tool_flops is None else _difference(tool_flops / 1e9, row.flops_g),
            }
        )
    return compared


def largest_difference(rows: list[Row], key: str) -> float | None:
    """The largest absolute value under `key`, None where there is none."""
    known = [abs(row[key]) for row in rows if row[key] is not None]
    return max(known, default=None)


def onnx_tool_flops(arch: Arch) -> int | None:
    """Multiply-adds of the exported graph as `onnx-tool` counts them, element-wise operations included.

    None where the package is not installed.
    """
    if importlib.util.find_spec("onnx_tool") is None:
        return None
    import onnx_tool

    from explorer.model.onnx_graph import skeleton

    model = skeleton(arch)
    for constant in model.graph.initializer:
        if not constant.raw_data:  # the tool wants data; which, does not change a count
            constant.raw_data = bytes(4 * math.prod(constant.dims))
    counted = onnx_tool.Model(model, {"verbose": False, "constant_folding": False})
    counted.graph.shape_infer(None)
    counted.graph.profile()
    return int(counted.graph.macs[0])


def _difference(ours: float, papers: float | None) -> float | None:
    return None if papers is None else ours / papers - 1
