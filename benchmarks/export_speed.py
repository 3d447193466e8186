"""Our export against torch.onnx.export(dynamo=True) of the same module, in one run: seconds and nodes.

    python benchmarks/export_speed.py

Both run from the module in memory to the serialised model in memory, without any parity check; timm's Swin-B through
torch's exporter stands beside them. The ratio is theirs over ours.
"""

from __future__ import annotations

import argparse
import io
import statistics
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import common
import onnx
import onnxruntime
import torch
from torch import nn

from explorer.arch import parse_name
from explorer.model import build
from explorer.model.onnx_graph import write_onnx
from explorer.model.onnx_writer import OPSET

#: The largest share of torch's nodes, and of its time, that ours may have.
GOALS = {"Swin-B": (0.85, 0.2), "Swin-Free-B-BR": (0.65, None)}


def traced(module: nn.Module, side: int) -> bytes:
    """torch's exporter, quiet."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with torch.no_grad():
            program = torch.onnx.export(
                module, (torch.zeros(1, 3, side, side),), dynamo=True, opset_version=OPSET, verbose=False
            )
    assert program is not None
    return program.model_proto.SerializeToString()


def compare(name: str, rounds: int) -> dict[str, Any]:
    arch = parse_name(name)
    module = build(arch, scatter=True).eval()
    written: dict[str, bytes] = {}

    def ours() -> None:
        written["ours"] = write_onnx(module, batch=1, precision="fp32").SerializeToString()

    def theirs() -> None:
        written["torch"] = traced(module, arch.image_size)

    seconds = common.interleaved({"ours": ours, "torch": theirs}, rounds=rounds, warmup=0)
    nodes = {which: len(onnx.load_from_string(model).graph.node) for which, model in written.items()}
    image = torch.randn(1, 3, arch.image_size, arch.image_size).numpy()
    logits = []
    for model in written.values():
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        logits.append(session.run(None, {session.get_inputs()[0].name: image})[0])
    goal_nodes, goal_time = GOALS.get(name, (None, None))
    return {
        "what": name,
        "ours_s": statistics.median(seconds["ours"]),
        "torch_s": statistics.median(seconds["torch"]),
        **common.ratio(seconds, "ours", "torch"),
        "share_of_time": statistics.median(seconds["ours"]) / statistics.median(seconds["torch"]),
        "goal_time": goal_time,
        "ours_nodes": nodes["ours"],
        "torch_nodes": nodes["torch"],
        "share_of_nodes": nodes["ours"] / nodes["torch"],
        "goal_nodes": goal_nodes,
        "logits_difference": float(abs(logits[0] - logits[1]).max() / logits[1].std()),
    }


def compare_timm(rounds: int) -> dict[str, Any]:
    """timm's Swin-B, whose own attention the exporter takes."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = timm.create_model("swin_base_patch4_window7_224").eval()
    models: list[bytes] = []
    seconds = common.interleaved({"torch": lambda: models.append(traced(module, 224))}, rounds=rounds, warmup=0)
    return {
        "what": "timm swin_base_patch4_window7_224",
        "torch_s": statistics.median(seconds["torch"]),
        "torch_nodes": len(onnx.load_from_string(models[-1]).graph.node),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["Swin-B", "Swin-Free-B-BR", "Swin-T"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Folder for the JSON; default: benchmarks/results.")
    given = parser.parse_args()
    rows = [compare(name, given.rounds) for name in given.models]
    if "Swin-B" in given.models:
        rows.append(compare_timm(given.rounds))
    common.report("export_speed", rows, out=given.out, rounds=given.rounds)


if __name__ == "__main__":
    main()
