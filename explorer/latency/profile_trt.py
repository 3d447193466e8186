"""TensorRT's layer times with its engine inspector's layers, counted by the nodes of our graph that each layer runs.

A layer is one kernel or a few, and may run nodes of many roles: `Metadata` holds a mark `[ONNX Layer: name]` for each. A
layer is counted once, whole, under the first role of PRECEDENCE that it holds: a fused attention is attention with its bias
and its softmax, a matrix product keeps the operations fused into it. Layers without marks are counted by a name of ours in
their own, as copies where theirs says so (reformats, copies, shuffles), or as other. Written after TensorRT 10 and 11; of
the inspector's JSON only `Layers` is read, which both have.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from explorer.errors import MeasureError
from explorer.latency.profile import Part, part_of, profiled_role

#: The role that a layer of several roles is counted under: the first of these that it holds.
PRECEDENCE: Final = (
    *("attn.scores", "attn.mix"),
    *("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "merging.reduction", "patch_embed.proj", "head"),
    *("attn.softmax", "shift", "unshift"),
    *("norm1", "norm2", "norm", "merging.norm", "patch_embed.norm"),
    *("mlp.gelu", "mlp.relu"),
    *("attn.cosine", "attn.bias", "attn.heads"),
    *("partition", "merge", "pad", "crop", "merging", "patch_embed"),
    "skip",
)
_MARK: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_NAME: Final = re.compile(r"[A-Za-z_][\w.]*")
_COPY: Final = re.compile(r"reformat|copy|shuffle", re.IGNORECASE)
_WHOLE: Final = "{ForeignNode["

Layer = dict[str, Any] | str


def parts_of_layers(times_ms: list[tuple[str, float]], information: str) -> tuple[list[Part], tuple[str, ...]]:
    """A part for each (layer, milliseconds per inference), and remarks.

    `information`: the engine inspector's JSON, detailed or not. Raises MeasureError where it cannot be read.
    """
    layers = _layers(information)
    parts = [_part(name, ms, layers.get(name, name)) for name, ms in times_ms]
    remarks = []
    whole_ms = sum(part.ms for part in parts if part.node.startswith(_WHOLE) and part.group == "other")
    if whole_ms:
        remarks.append(
            f"other: {whole_ms:.3f} ms in regions that this TensorRT compiled whole; it does not tell their layers apart"
        )
    if any(len({part_of(mark, 0.0, mark).group for mark in _marks(layer)}) > 1 for layer in layers.values()):
        remarks.append(
            "a layer that fuses operations is counted once: as attention, else as its matrix product, else as its softmax, "
            "shift, norm or activation"
        )
    return parts, tuple(remarks)


def _layers(information: str) -> dict[str, Layer]:
    """Layers by name; an engine whose inspection is not detailed has their names alone."""
    try:
        layers = json.loads(information)["Layers"]
        return {layer if isinstance(layer, str) else layer["Name"]: layer for layer in layers}
    except (ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"TensorRT's layer information cannot be read: {error!r}") from error


def _part(name: str, ms: float, layer: Layer) -> Part:
    """One layer, whole."""
    marks = _marks(layer)
    if name.startswith(_WHOLE):
        groups = {part_of(mark, 0.0, mark).group for mark in marks}
        return part_of(name, ms, _first(marks) if len(groups) == 1 else "")
    is_reformat = isinstance(layer, dict) and layer.get("LayerType") == "Reformat"
    if is_reformat or (not marks and _COPY.search(name)):
        return part_of(name, ms, _first(marks or _named(name)), is_copy=True)
    return part_of(name, ms, _first(marks or _named(name)))


def _marks(layer: Layer) -> list[str]:
    """Nodes of our graph that the layer says it runs."""
    return [] if isinstance(layer, str) else _MARK.findall(str(layer.get("Metadata", "")))


def _named(text: str) -> list[str]:
    """Names of ours in a layer's own, as in `stages.0.blocks.0.attn.qkv + stages.0.blocks.0.attn.qkv.add_bias`."""
    return [name for name in _NAME.findall(text) if profiled_role(name) != "other"]


def _first(nodes: list[str]) -> str:
    """The node whose role comes first; empty where there is none of ours."""
    return min((node for node in nodes if profiled_role(node) != "other"), key=_precedence, default="")


def _precedence(node: str) -> int:
    # The mean before the classifier is no matrix product.
    is_last = node.startswith("head.") and not node.startswith("head.add_bias")
    return len(PRECEDENCE) if is_last else PRECEDENCE.index(profiled_role(node))
