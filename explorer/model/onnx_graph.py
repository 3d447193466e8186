"""The deployed graph: ONNX written node by node from a module's weights, nothing traced.

BatchNorm is folded into the linear layer or convolution beside it, the query scale into the qkv weights; position bias,
shift mask, Swin V2's bias MLP and temperatures are constants; LayerNormalization, Gelu and Softmax are single nodes.

Everything but the attention works on single tokens, so tokens stay in the order of their windows (`_Layout`) from block to
block and are re-ordered only where the next block's windows lie differently: one gather where a shift begins or ends; a
stage without shift is partitioned once, where it is entered, together with the patch merging (in a second step where
windows grow across it: TensorRT's transposes have 8 dims); one window needs nothing, nor do windows of one token. Stages
whose windows do not divide the grid keep the grid's order, and pad, partition, merge and crop inside each attention; a
BatchNorm before such an attention stays as a scale and a shift, since folding it would change the padded tokens.

Every node is named after its module and role (`stages.2.blocks.5.attn.softmax`; roles: `explorer.model.onnx_writer`). The
agreement with the torch module is checked in `explorer.model.deployment`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from explorer.arch import NUM_STAGES, Arch
from explorer.model.onnx_writer import Graph
from explorer.model.swin import Block, PatchMerging, Swin, window_order
from explorer.records import Precision


def write_onnx(module: Swin, *, batch: int | None, precision: Precision) -> onnx.ModelProto:
    """The ONNX model of `module`: input `image` (B, channels, H, W), output `logits` (B, classes).

    `batch`: a fixed B, or None for any. `precision` is that of every tensor, input and output included; Swin V2's cosines
    are taken in fp32 between two casts. The module is not changed.
    """
    graph = Graph(precision, batch)
    x, layout = _patch_embed(graph, module)
    for stage in range(NUM_STAGES):
        x, layout = _stage(graph, module, stage, x, layout)
    return graph.model(module.arch, _head(graph, module, x))


def skeleton(arch: Arch, *, batch: int | None = 1, precision: Precision = "fp32") -> onnx.ModelProto:
    """The graph of `arch` with initializers that have dims and no data: to count nodes, in a fraction of a second."""
    with torch.device("meta"):
        module = Swin(arch.canonical())
    return write_onnx(module, batch=batch, precision=precision)


@dataclass(frozen=True)
class _Layout:
    """The order of a grid's tokens: window by window, rolled up and left by `shift` before. One window is the grid's own.

    `tokens`: per side. Grid order has the shape (B, tokens^2, C), any other (B*N, window^2, C).
    """

    tokens: int
    window: int
    shift: int = 0

    @property
    def per_side(self) -> int:
        return self.tokens // self.window

    def order(self) -> Tensor:
        """(tokens^2,) the token of the grid, counted row by row, at each place of this layout."""
        return window_order(self.tokens, self.window, self.shift)

    def places(self) -> Tensor:
        """(tokens^2,) the place in this layout of each token of the grid: the inverse of `order`."""
        return self.order().argsort()

    @property
    def is_grid_order(self) -> bool:
        """Whether tokens stand row by row: one window, and windows of one token, whose dims alone differ."""
        return self.window in (1, self.tokens)


def _grid(tokens: int) -> _Layout:
    return _Layout(tokens, tokens)


def _wanted(block: nn.Module) -> _Layout:
    """The layout in which `block` takes its tokens."""
    assert isinstance(block, Block)
    return _grid(block.tokens) if block.padding else _Layout(block.tokens, block.window, block.shift)


# -- norms ------------------------------------------------------------------------------------------------------------


def _norm_factors(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does to a channel in eval mode: x * scale + shift, in fp64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _folded(
    weight_KC: Tensor, bias: Tensor | None, *, before: nn.Module | None = None, after: nn.Module | None = None
) -> tuple[Tensor, Tensor | None]:
    """Weights (C, K) and bias of a linear layer with the norms around it folded in, where they are BatchNorms."""
    if isinstance(before, nn.BatchNorm1d):
        scale, shift = _norm_factors(before)
        offset = weight_KC.double() @ shift
        weight_KC, bias = weight_KC * scale, offset if bias is None else offset + bias
    if isinstance(after, nn.BatchNorm1d):
        scale, shift = _norm_factors(after)
        weight_KC, bias = weight_KC * scale[:, None], shift if bias is None else shift + bias * scale
    return weight_KC.T, bias


def _normed(graph: Graph, name: str, x: str, norm: nn.Module) -> str:
    """`x` through a LayerNorm; a BatchNorm is folded into what stands beside it and adds no node."""
    return graph.layer_norm(name, x, norm) if isinstance(norm, nn.LayerNorm) else x


# -- tokens and grids -------------------------------------------------------------------------------------------------


def _patch_embed(graph: Graph, module: Swin) -> tuple[str, _Layout]:
    """Image -> tokens in the order that the first block wants.

    The convolution's patches do not overlap, so it is a linear layer on them; opset 20 has no bf16 Conv.
    """
    arch, embed = module.arch, module.patch_embed
    layout = _wanted(_blocks(module, 0)[0])
    n, w, p = layout.per_side, layout.window, arch.patch_size
    weight_KC = embed.proj.weight.flatten(1)
    if n > 1:
        x = graph.reshape("patch_embed.split", "image", graph.rows(), arch.channels, n, w, p, n, w, p)
        x = graph.transpose("patch_embed.gather", x, 0, 2, 5, 3, 6, 1, 4, 7)
    else:
        x = graph.reshape("patch_embed.split", "image", graph.rows(), arch.channels, w, p, w, p)
        x = graph.transpose("patch_embed.gather", x, 0, 2, 4, 1, 3, 5)
    x = graph.reshape("patch_embed.join", x, graph.rows(n * n), w * w, weight_KC.shape[1])
    x = graph.linear("patch_embed.proj", x, *_folded(weight_KC, embed.proj.bias, after=embed.norm))
    return _normed(graph, "patch_embed.norm", x, embed.norm), layout


def _blocks(module: Swin, stage: int) -> nn.ModuleList:
    blocks = module.stages[stage].blocks
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _stage(graph: Graph, module: Swin, stage: int, x: str, layout: _Layout) -> tuple[str, _Layout]:
    """Tokens of the stage before -> tokens of this one."""
    merging, blocks = module.stages[stage].merging, _blocks(module, stage)
    if isinstance(merging, PatchMerging):
        x, layout = _patch_merging(graph, stage, merging, x, layout, _wanted(blocks[0]))
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        name, wanted = f"stages.{stage}.blocks.{index}", _wanted(block)
        x = _arranged(graph, name, x, layout, wanted, module.arch.dim(stage))
        x, layout = _block(graph, name, block, x), wanted
    return x, layout


def _arranged(graph: Graph, name: str, x: str, old: _Layout, new: _Layout, dim: int) -> str:
    """Tokens in the layout `new`; no node where that is the `old` one, one gather where a shift is between them."""
    if old == new:
        return x
    B, n, w = graph.rows(), new.per_side, new.window
    if old.shift != new.shift:
        x = graph.reshape(f"{name}.shift.flatten", x, B, old.tokens**2, dim)
        x = graph.gather(f"{name}.{'shift' if new.shift else 'unshift'}", x, old.places()[new.order()])
    else:
        x = _in_grid_order(graph, name, x, old, dim)
        if not new.is_grid_order:
            x = graph.reshape(f"{name}.partition.split", x, B, n, w, n, w, dim)
            x = graph.transpose(f"{name}.partition", x, 0, 1, 3, 2, 4, 5)
    return graph.reshape(f"{name}.partition.join", x, graph.rows(n * n), w * w, dim)


def _in_grid_order(graph: Graph, name: str, x: str, old: _Layout, dim: int) -> str:
    """Tokens of unshifted windows row by row, in whatever dims."""
    if old.is_grid_order:
        return x
    n, w = old.per_side, old.window
    x = graph.reshape(f"{name}.merge.split", x, graph.rows(), n, n, w, w, dim)
    return graph.transpose(f"{name}.merge", x, 0, 1, 3, 2, 4, 5)


def _patch_merging(
    graph: Graph, stage: int, merging: PatchMerging, x: str, old: _Layout, new: _Layout
) -> tuple[str, _Layout]:
    """Tokens of the finer grid in the layout `old` -> tokens of the coarser one and their layout, `new` where it can be.

    2x2 neighbours of an unshifted window of even size lie in that window; those of others are found in the grid.
    """
    name, dim, B = f"stages.{stage}.merging", merging.reduction.in_features // 4, graph.rows()
    n, w = new.per_side, new.window
    out = new
    if old.shift:
        x = graph.reshape(f"{name}.flatten", x, B, old.tokens**2, dim)
        row, column = new.order() // new.tokens, new.order() % new.tokens
        corner = 2 * row * old.tokens + 2 * column
        neighbours = torch.stack((corner, corner + old.tokens, corner + 1, corner + old.tokens + 1), 1)
        x = graph.gather(f"{name}.gather", x, old.places()[neighbours.flatten()])
    else:
        if old.window % 2 and old.per_side > 1:
            x, old = _in_grid_order(graph, f"stages.{stage - 1}", x, old, dim), _grid(old.tokens)
        o, half = old.per_side, old.window // 2
        if (o, half) == (n, w):
            x = graph.reshape(f"{name}.split", x, graph.rows(n * n), w, 2, w, 2, dim)
            x = graph.transpose(f"{name}.gather", x, 0, 1, 3, 4, 2, 5)
        elif o > 1:
            x = graph.reshape(f"{name}.split", x, B, o, o, half, 2, half, 2, dim)
            x = graph.transpose(f"{name}.gather", x, 0, 1, 3, 2, 5, 6, 4, 7)
            out = _grid(new.tokens)
        else:
            x = graph.reshape(f"{name}.split", x, B, n, w, 2, n, w, 2, dim)
            x = graph.transpose(f"{name}.gather", x, 0, 1, 4, 2, 5, 6, 3, 7)
    x = graph.reshape(f"{name}.join", x, graph.rows(out.per_side**2), out.window**2, 4 * dim)
    if merging.v2:
        weight, bias = _folded(merging.reduction.weight, None, after=merging.norm)
        return _normed(graph, f"{name}.norm", graph.linear(f"{name}.reduction", x, weight, bias), merging.norm), out
    x = _normed(graph, f"{name}.norm", x, merging.norm)
    weight, bias = _folded(merging.reduction.weight, None, before=merging.norm)
    return graph.linear(f"{name}.reduction", x, weight, bias), out


# -- blocks -----------------------------------------------------------------------------------------------------------


def _block(graph: Graph, name: str, block: Block, x: str) -> str:
    """One block on tokens in the layout that it wants; norms before the sub-layers, in Swin V2 after them."""
    before1, after1 = (None, block.norm1) if block.v2 else (block.norm1, None)
    before2, after2 = (None, block.norm2) if block.v2 else (block.norm2, None)
    skip = x
    x = _attention(graph, name, block, x if block.v2 else _attention_norm(graph, name, block, x), before1, after1)
    x = graph.op("Add", f"{name}.skip.attn", skip, _normed(graph, f"{name}.norm1", x, block.norm1) if block.v2 else x)
    skip = x
    x = x if block.v2 else _normed(graph, f"{name}.norm2", x, block.norm2)
    x = graph.linear(f"{name}.mlp.fc1", x, *_folded(block.mlp.fc1.weight, block.mlp.fc1.bias, before=before2))
    is_relu = isinstance(block.mlp.act, nn.ReLU)
    x = graph.op("Relu", f"{name}.mlp.relu", x) if is_relu else graph.op("Gelu", f"{name}.mlp.gelu", x)
    x = graph.linear(f"{name}.mlp.fc2", x, *_folded(block.mlp.fc2.weight, block.mlp.fc2.bias, after=after2))
    return graph.op("Add", f"{name}.skip.mlp", skip, _normed(graph, f"{name}.norm2", x, block.norm2) if block.v2 else x)


def _attention_norm(graph: Graph, name: str, block: Block, x: str) -> str:
    """The norm before the attention; a BatchNorm stays, as a scale and a shift, where tokens are padded after it."""
    if block.padding and isinstance(block.norm1, nn.BatchNorm1d):
        scale, shift = _norm_factors(block.norm1)
        x = graph.op("Mul", f"{name}.norm1.scale", x, graph.weight(f"{name}.norm1.weight", scale))
        return graph.op("Add", f"{name}.norm1.shift", x, graph.weight(f"{name}.norm1.bias", shift))
    return _normed(graph, f"{name}.norm1", x, block.norm1)


def _attention(graph: Graph, name: str, block: Block, x: str, before: nn.Module | None, after: nn.Module | None) -> str:
    if not block.padding:
        return _window_attention(graph, name, block, x, before, after)
    B, tokens, w, dim = graph.rows(), block.tokens, block.window, block.attn.proj.in_features
    n, side = (tokens + block.padding) // w, tokens + block.padding
    rolled = _Layout(tokens, tokens, block.shift)
    if block.shift:
        x = graph.gather(f"{name}.shift", x, rolled.order())
    x = graph.reshape(f"{name}.pad.grid", x, B, tokens, tokens, dim)
    x = graph.op("Pad", f"{name}.pad", x, graph.ints(0, 0, 0, 0, 0, block.padding, block.padding, 0))
    x = graph.reshape(f"{name}.partition.split", x, B, n, w, n, w, dim)
    x = graph.transpose(f"{name}.partition", x, 0, 1, 3, 2, 4, 5)
    x = graph.reshape(f"{name}.partition.join", x, graph.rows(n * n), w * w, dim)
    x = _window_attention(graph, name, block, x, None, after)
    x = graph.reshape(f"{name}.merge.split", x, B, n, n, w, w, dim)
    x = graph.transpose(f"{name}.merge", x, 0, 1, 3, 2, 4, 5)
    x = graph.reshape(f"{name}.merge.join", x, B, side, side, dim)
    x = graph.op("Slice", f"{name}.crop", x, graph.ints(0, 0), graph.ints(tokens, tokens), graph.ints(1, 2))
    x = graph.reshape(f"{name}.crop.flatten", x, B, tokens * tokens, dim)
    return graph.gather(f"{name}.unshift", x, rolled.places()) if block.shift else x


def _window_attention(
    graph: Graph, name: str, block: Block, x: str, before: nn.Module | None, after: nn.Module | None
) -> str:
    """(B*N, L, C) -> (B*N, L, C)."""
    attn, L = block.attn, block.window**2
    heads, dim = attn.num_heads, attn.proj.in_features
    BN, d = graph.rows(((block.tokens + block.padding) // block.window) ** 2), dim // heads
    weight_CK, bias = _folded(attn.qkv.weight, attn.qkv_bias(), before=before)
    assert bias is not None
    if not attn.v2:
        scale = torch.ones_like(bias, dtype=torch.float64)
        scale[:dim] = d**-0.5
        weight_CK, bias = weight_CK * scale, bias * scale
    query, key, value = graph.split(f"{name}.attn.heads.split", graph.linear(f"{name}.attn.qkv", x, weight_CK, bias), 3)
    # One head needs no transpose: its axis may stand before the tokens' from the start.
    split, perm = ((BN, 1, L, d), (0, 1, 2, 3)) if heads == 1 else ((BN, L, heads, d), (0, 2, 1, 3))
    query = graph.reshape(f"{name}.attn.heads.query.split", query, *split)
    key = graph.reshape(f"{name}.attn.heads.key.split", key, *split)
    value = graph.reshape(f"{name}.attn.heads.value.split", value, *split)
    if attn.v2:
        query = _cosine(graph, f"{name}.attn.cosine.query", query, attn.cosine_scale().view(1, 1, heads, 1))
        key = _cosine(graph, f"{name}.attn.cosine.key", key, None)
    key = graph.transpose(f"{name}.attn.heads.key", key, perm[0], perm[1], perm[3], perm[2])
    if heads > 1:
        query = graph.transpose(f"{name}.attn.heads.query", query, *perm)
        value = graph.transpose(f"{name}.attn.heads.value", value, *perm)
    x = graph.op("MatMul", f"{name}.attn.scores", query, key)
    x = _add_bias(graph, name, block, x)
    x = graph.op("Softmax", f"{name}.attn.softmax", x, axis=-1)
    x = graph.op("MatMul", f"{name}.attn.mix", x, value)
    if heads > 1:
        x = graph.transpose(f"{name}.attn.heads.join", x, *perm)
    x = graph.reshape(f"{name}.attn.heads.flatten", x, BN, L, dim)
    return graph.linear(f"{name}.attn.proj", x, *_folded(attn.proj.weight, attn.proj.bias, after=after))


def _cosine(graph: Graph, name: str, x: str, scale: Tensor | None) -> str:
    """`x` (B*N, L, h, d) with its last axis at length 1 times `scale` (a head), computed in fp32."""
    is_half = graph.precision != "fp32"
    if is_half:
        x = graph.op("Cast", f"{name}.widen", x, to=onnx.TensorProto.FLOAT)
    length = graph.op("ReduceL2", f"{name}.length", x, graph.ints(-1), keepdims=1)
    # torch's F.normalize has the same bound; a padded token's key has length 0.
    least = graph.initialize("attn.cosine.least", np.array(1e-12, dtype=np.float32))
    length = graph.op("Max", f"{name}.least", length, least)
    if scale is None:
        x = graph.op("Div", name, x, length)
    else:
        constant = graph.initialize(f"{name}.scale.value", _fp32(scale))
        x = graph.op("Mul", name, x, graph.op("Div", f"{name}.scale", constant, length))
    return graph.op("Cast", f"{name}.narrow", x, to=graph.element_type) if is_half else x


def _fp32(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if values.is_meta:
        return np.ones(values.shape, dtype=np.float32)
    return values.detach().cpu().numpy().astype(np.float32)


def _add_bias(graph: Graph, name: str, block: Block, x: str) -> str:
    """Adds position bias, and the shift mask where there is one, to the scores (B*N, h, L, L)."""
    heads, L = block.attn.num_heads, block.window**2
    bias_hLL = block.attn.position_bias()
    if block.attn.mask is None:
        return graph.op("Add", f"{name}.attn.bias", x, graph.weight(f"{name}.attn.bias.table", bias_hLL[None]))
    N = block.attn.mask.shape[0]
    constant = graph.weight(f"{name}.attn.bias.table", bias_hLL[None] + block.attn.mask[:, None])
    if graph.batch == 1:
        return graph.op("Add", f"{name}.attn.bias", x, constant)
    x = graph.reshape(f"{name}.attn.bias.split", x, graph.rows(), N, heads, L, L)
    x = graph.op("Add", f"{name}.attn.bias", x, constant)
    return graph.reshape(f"{name}.attn.bias.join", x, graph.rows(N), heads, L, L)


def _head(graph: Graph, module: Swin, x: str) -> str:
    """Final norm, mean over all tokens in whatever order, classifier: tokens -> (B, classes)."""
    tokens, dim = module.arch.tokens[-1], module.arch.dim(NUM_STAGES - 1)
    x = _normed(graph, "norm", x, module.norm)
    layout = _wanted(_blocks(module, NUM_STAGES - 1)[-1])
    if layout.per_side > 1:
        x = graph.reshape("head.tokens", x, graph.rows(), tokens * tokens, dim)
    x = graph.op("ReduceMean", "head.mean", x, graph.ints(1), keepdims=0)
    return graph.linear("head", x, *_folded(module.head.weight, module.head.bias, before=module.norm))
