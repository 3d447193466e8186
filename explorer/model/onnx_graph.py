"""The deployed graph: ONNX written node by node from a module's weights, nothing traced.

BatchNorm is folded into the linear layer or convolution beside it, the query scale into the qkv weights; position bias
and shift mask are constants; LayerNormalization, Gelu and Softmax are single nodes; one window needs no partition and a
model without shift has no Slice or Concat. Every node is named after its module and role
(`stages.2.blocks.5.attn.softmax`), so that a profile can be summed by role. Written for opset 20, which ONNX Runtime and
TensorRT read. The agreement with the torch module is checked in `explorer.model.deployment`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from explorer.arch import NUM_STAGES, Arch
from explorer.model import GRAPH_VERSION
from explorer.model.swin import Block, PatchMerging, Swin
from explorer.records import Precision

#: The first opset whose Gelu is one node.
OPSET: Final = 20
#: The IR version of ONNX 1.15, the first with opset 20; TensorRT's parsers refuse much newer ones.
IR_VERSION: Final = 9

Array = NDArray[Any]
_DTYPES: Final[dict[str, tuple[int, Any]]] = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
}
GRAPH_PRECISIONS: Final = tuple(_DTYPES)


def write_onnx(module: Swin, *, batch: int, precision: Precision) -> bytes:
    """The ONNX model of `module` at a fixed `batch`: input `image` (B, channels, H, W), output `logits` (B, classes).

    `precision` is that of every tensor, input and output included (one of GRAPH_PRECISIONS). The module is not changed.
    """
    graph = _Graph(precision)
    arch = module.arch
    x = _patch_embed(graph, module, batch)
    for stage in range(NUM_STAGES):
        x = _stage(graph, module, stage, batch, x)
    x = _head(graph, module, batch, x)
    shape = [batch, arch.channels, arch.image_size, arch.image_size]
    return graph.serialize(arch, shape, [batch, arch.num_classes], x)


class _Graph:
    """Nodes and initializers in the order they are added; every tensor in one floating-point type."""

    def __init__(self, precision: Precision) -> None:
        self.element_type, self.dtype = _DTYPES[precision]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def op(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output; returns that output's name, which is the node's."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def split(self, name: str, x: str, parts: int) -> list[str]:
        """Cuts the last axis into equal `parts`; returns their names."""
        outputs = [f"{name}.{index}" for index in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], outputs, name=name, axis=-1, num_outputs=parts))
        return outputs

    def weight(self, name: str, values: Tensor | Array) -> str:
        """Adds a constant in the graph's floating-point type."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        return self._initialize(name, np.ascontiguousarray(array, dtype=self.dtype))

    def shape(self, *dims: int) -> str:
        """A constant of int64 dims, shared by all nodes that need the same."""
        return self._initialize("shape." + ".".join(map(str, dims)), np.array(dims, dtype=np.int64))

    def reshape(self, name: str, x: str, *dims: int) -> str:
        return self.op("Reshape", name, x, self.shape(*dims))

    def linear(self, name: str, x: str, weight_CK: Tensor, bias: Tensor | None) -> str:
        """(..., C) @ (C, K) + bias, as MatMul and Add."""
        x = self.op("MatMul", name, x, self.weight(f"{name}.weight", weight_CK))
        return x if bias is None else self.op("Add", f"{name}.add_bias", x, self.weight(f"{name}.bias", bias))

    def layer_norm(self, name: str, x: str, norm: nn.LayerNorm) -> str:
        scale, shift = self.weight(f"{name}.weight", norm.weight), self.weight(f"{name}.bias", norm.bias)
        return self.op("LayerNormalization", name, x, scale, shift, axis=-1, epsilon=norm.eps)

    def serialize(self, arch: Arch, input_shape: list[int], output_shape: list[int], output: str) -> bytes:
        self.nodes[-1].output[0] = "logits"
        for node in self.nodes:
            node.input[:] = ["logits" if name == output else name for name in node.input]
        graph = helper.make_graph(
            self.nodes,
            arch.name,
            [helper.make_tensor_value_info("image", self.element_type, input_shape)],
            [helper.make_tensor_value_info("logits", self.element_type, output_shape)],
            list(self.initializers.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "swinexplore"
        helper.set_model_props(model, {"arch": arch.name, "arch_id": arch.id, "graph_version": str(GRAPH_VERSION)})
        return bytes(model.SerializeToString())

    def _initialize(self, name: str, array: Array) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name


def _norm_factors(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does to a channel in eval mode: x * scale + shift, in fp64."""
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _folded(norm: nn.Module, weight_KC: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (C, K) and bias of a linear layer with the norm before it folded in, where that norm is a BatchNorm."""
    weight = weight_KC.double()
    offset = torch.zeros(len(weight), dtype=torch.float64, device=weight.device) if bias is None else bias.double()
    if isinstance(norm, nn.BatchNorm1d):
        scale, shift = _norm_factors(norm)
        weight, offset = weight * scale, offset + weight @ shift
    return weight.T, offset


def _normed(graph: _Graph, name: str, x: str, norm: nn.Module) -> str:
    """`x` through a LayerNorm; a BatchNorm is folded into what follows and adds no node."""
    return graph.layer_norm(name, x, norm) if isinstance(norm, nn.LayerNorm) else x


def _patch_embed(graph: _Graph, module: Swin, batch: int) -> str:
    arch, embed = module.arch, module.patch_embed
    weight, bias = embed.proj.weight.double(), embed.proj.bias
    assert bias is not None
    offset = bias.double()
    if isinstance(embed.norm, nn.BatchNorm1d):
        scale, shift = _norm_factors(embed.norm)
        weight, offset = weight * scale[:, None, None, None], offset * scale + shift
    weights = graph.weight("patch_embed.proj.weight", weight), graph.weight("patch_embed.proj.bias", offset)
    strides = [arch.patch_size] * 2
    x = graph.op("Conv", "patch_embed.proj", "image", *weights, kernel_shape=strides, strides=strides)
    x = graph.reshape("patch_embed.flatten", x, batch, arch.embed_dim, arch.tokens[0] ** 2)
    x = graph.op("Transpose", "patch_embed.channels_last", x, perm=[0, 2, 1])
    return _normed(graph, "patch_embed.norm", x, embed.norm)


def _stage(graph: _Graph, module: Swin, stage: int, batch: int, x: str) -> str:
    """Tokens (B, H*W, C) of the stage before -> (B, H*W, C) of this one."""
    arch = module.arch
    merging, blocks = module.stages[stage].merging, module.stages[stage].blocks
    if merging is not None:
        assert isinstance(merging, PatchMerging)
        x = _patch_merging(graph, f"stages.{stage}.merging", merging, batch, arch.tokens[stage], x)
    assert isinstance(blocks, nn.ModuleList)
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        x = _block(graph, f"stages.{stage}.blocks.{index}", block, batch, x)
    return x


def _patch_merging(graph: _Graph, name: str, merging: PatchMerging, batch: int, tokens: int, x: str) -> str:
    dim = merging.reduction.in_features // 4
    x = graph.reshape(f"{name}.split", x, batch, tokens, 2, tokens, 2, dim)
    x = graph.op("Transpose", f"{name}.gather", x, perm=[0, 1, 3, 4, 2, 5])
    x = graph.reshape(f"{name}.join", x, batch, tokens * tokens, 4 * dim)
    x = _normed(graph, f"{name}.norm", x, merging.norm)
    weight, bias = _folded(merging.norm, merging.reduction.weight, None)
    return graph.linear(f"{name}.reduction", x, weight, bias if isinstance(merging.norm, nn.BatchNorm1d) else None)


def _block(graph: _Graph, name: str, block: Block, batch: int, x: str) -> str:
    """One block on tokens (B, H*W, C)."""
    skip = x
    x = _normed(graph, f"{name}.norm1", x, block.norm1)
    x = _attention(graph, name, block, batch, x)
    x = graph.op("Add", f"{name}.skip1", skip, x)
    skip = x
    x = _normed(graph, f"{name}.norm2", x, block.norm2)
    x = graph.linear(f"{name}.mlp.fc1", x, *_folded(block.norm2, block.mlp.fc1.weight, block.mlp.fc1.bias))
    is_relu = isinstance(block.mlp.act, nn.ReLU)
    x = graph.op("Relu", f"{name}.mlp.relu", x) if is_relu else graph.op("Gelu", f"{name}.mlp.gelu", x)
    x = graph.linear(f"{name}.mlp.fc2", x, block.mlp.fc2.weight.T, block.mlp.fc2.bias)
    return graph.op("Add", f"{name}.skip2", skip, x)


def _attention(graph: _Graph, name: str, block: Block, batch: int, x: str) -> str:
    """Window attention on tokens (B, H*W, C), grid bookkeeping included."""
    attn, tokens, window = block.attn, block.tokens, block.window
    heads, dim = attn.num_heads, attn.proj.in_features
    per_side, L = tokens // window, window * window
    BN, head_dim = batch * per_side**2, dim // heads
    if block.shift:
        x = graph.reshape(f"{name}.shift.grid", x, batch, tokens, tokens, dim)
        x = _roll(graph, f"{name}.shift", x, tokens, block.shift)
    if per_side > 1:
        x = graph.reshape(f"{name}.partition.split", x, batch, per_side, window, per_side, window, dim)
        x = graph.op("Transpose", f"{name}.partition", x, perm=[0, 1, 3, 2, 4, 5])
        x = graph.reshape(f"{name}.partition.join", x, BN, L, dim)
    x = _window_attention(graph, name, block, (BN, L, heads, head_dim), x)
    if per_side > 1:
        x = graph.reshape(f"{name}.merge.split", x, batch, per_side, per_side, window, window, dim)
        x = graph.op("Transpose", f"{name}.merge", x, perm=[0, 1, 3, 2, 4, 5])
    if block.shift:
        x = graph.reshape(f"{name}.unshift.grid", x, batch, tokens, tokens, dim)
        x = _roll(graph, f"{name}.unshift", x, tokens, tokens - block.shift)
    return graph.reshape(f"{name}.merge.join", x, batch, tokens * tokens, dim) if per_side > 1 else x


def _window_attention(graph: _Graph, name: str, block: Block, sizes: tuple[int, int, int, int], x: str) -> str:
    """(B*N, L, C) -> (B*N, L, C)."""
    attn = block.attn
    BN, L, heads, head_dim = sizes
    weight_CK, bias = _folded(block.norm1, attn.qkv.weight, attn.qkv.bias)
    scale = torch.ones(weight_CK.shape[1], dtype=torch.float64, device=weight_CK.device)
    scale[: heads * head_dim] = head_dim**-0.5
    x = graph.linear(f"{name}.attn.qkv", x, weight_CK * scale, bias * scale)
    parts = graph.split(f"{name}.attn.split", x, 3)
    query, key, value = (
        graph.op(
            "Transpose",
            f"{name}.attn.{role}",
            graph.reshape(f"{name}.attn.{role}.heads", part, BN, L, heads, head_dim),
            perm=[0, 2, 3, 1] if role == "key" else [0, 2, 1, 3],
        )
        for role, part in zip(("query", "key", "value"), parts, strict=True)
    )
    x = graph.op("MatMul", f"{name}.attn.scores", query, key)
    x = _add_bias(graph, name, block, sizes, x)
    x = graph.op("Softmax", f"{name}.attn.softmax", x, axis=-1)
    x = graph.op("MatMul", f"{name}.attn.mix", x, value)
    x = graph.op("Transpose", f"{name}.attn.join", x, perm=[0, 2, 1, 3])
    x = graph.reshape(f"{name}.attn.join.heads", x, BN, L, heads * head_dim)
    return graph.linear(f"{name}.attn.proj", x, attn.proj.weight.T, attn.proj.bias)


def _add_bias(graph: _Graph, name: str, block: Block, sizes: tuple[int, int, int, int], x: str) -> str:
    """Adds position bias, and the shift mask where there is one, to the scores (B*N, h, L, L)."""
    BN, L, heads, _ = sizes
    bias_hLL = block.attn.position_bias()
    if block.attn.mask is None:
        return graph.op("Add", f"{name}.attn.bias", x, graph.weight(f"{name}.attn.bias.table", bias_hLL[None]))
    N = block.attn.mask.shape[0]
    constant = graph.weight(f"{name}.attn.bias.table", bias_hLL[None] + block.attn.mask[:, None])
    if N == BN:
        return graph.op("Add", f"{name}.attn.bias", x, constant)
    x = graph.reshape(f"{name}.attn.bias.split", x, BN // N, N, heads, L, L)
    x = graph.op("Add", f"{name}.attn.bias", x, constant)
    return graph.reshape(f"{name}.attn.bias.join", x, BN, heads, L, L)


def _roll(graph: _Graph, name: str, x: str, tokens: int, shift: int) -> str:
    """Rolls the grid (B, H, W, C) by `shift` tokens up and left."""
    for axis, side in ((1, "rows"), (2, "columns")):
        head = graph.op("Slice", f"{name}.{side}.head", x, graph.shape(0), graph.shape(shift), graph.shape(axis))
        rest = graph.op("Slice", f"{name}.{side}.rest", x, graph.shape(shift), graph.shape(tokens), graph.shape(axis))
        x = graph.op("Concat", f"{name}.{side}", rest, head, axis=axis)
    return x


def _head(graph: _Graph, module: Swin, batch: int, x: str) -> str:
    """Final norm, mean over all tokens, classifier: (B, H*W, C) -> (B, classes)."""
    x = _normed(graph, "norm", x, module.norm)
    x = graph.op("ReduceMean", "head.mean", x, graph.shape(1), keepdims=0)
    return graph.linear("head", x, *_folded(module.norm, module.head.weight, module.head.bias))
