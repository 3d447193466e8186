"""Swin, Swin V2 and Swin-Free as torch modules, for training.

Liu et al. 2021 (arXiv 2103.14030 and 2111.09883) and Koo et al. 2023 (arXiv 2306.13776); one set of modules for all of
them, every choice taken from an `Arch`. The graph that is deployed is written by `explorer.model.onnx_graph`, not traced
from here; weights of other implementations are `explorer.model.weights`' business.

Shape suffixes: B images, H W tokens per side, C channels, N windows of one image, L tokens of one window (M x M),
h heads, d channels of one head, T = (2M-1)^2 offsets between two tokens of a window. x_BHWC is a grid of tokens, x_NLC
stands for (B*N, L, C).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, noop_context_fn
from torchvision.ops import StochasticDepth

from explorer.arch import NUM_STAGES, Arch
from explorer.complexity import CPB_HIDDEN
from explorer.model.lanes import MOST_TOKENS, LaneAttention, lane_order

#: Added to the attention of tokens that are neighbours only through the cyclic shift (Liu et al. 2021, section 3.2).
MASK_VALUE = -100.0
#: Swin V2: the temperature of an attention is at least this (section 3.2 of arXiv 2111.09883) ...
MIN_TEMPERATURE = 0.01
#: ... and starts here, as the authors' code has it.
FIRST_TEMPERATURE = 0.1
#: Swin V2: the bound of the position bias, and the extent that offsets are scaled to.
CPB_BOUND, CPB_EXTENT = 16.0, 8
#: The start of narrow networks: what the weights that end a branch start with, of the others' deviation. docs/decisions/0012.
BRANCH_SCALE = 0.2
_BRANCH_ENDS = ("attn.proj.weight", "mlp.fc2.weight")
_POST_NORMS = ("norm1.weight", "norm2.weight")


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of a token grid of any leading shape: the BR variants' norm (Koo et al. 2023).

    While `is_recomputing` the running statistics stay: the batch has been counted.
    """

    is_recomputing = False

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        flat = x_BHWC.reshape(-1, x_BHWC.shape[-1])
        if self.is_recomputing:
            assert self.running_mean is not None
            assert self.running_var is not None
            statistics = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(flat, *statistics, self.weight, self.bias, True, eps=self.eps).view(x_BHWC.shape)
        return super().forward(flat).view(x_BHWC.shape)


def make_norm(dim: int, *, br: bool) -> nn.Module:
    """LayerNorm with Swin's epsilon, or BatchNorm where `br`."""
    return TokenBatchNorm(dim) if br else nn.LayerNorm(dim, eps=1e-5)


def partition(x_BHWC: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B*N, L, C), windows row by row; `window` divides H and W."""
    B, H, W, C = x_BHWC.shape
    if window == H == W:
        return x_BHWC.reshape(B, H * W, C)
    x = x_BHWC.view(B, H // window, window, W // window, window, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, C)


def merge(x_NLC: Tensor, window: int, tokens: int) -> Tensor:
    """(B*N, L, C) -> (B, H, W, C) with H = W = `tokens`; undoes `partition`."""
    C = x_NLC.shape[-1]
    if window == tokens:
        return x_NLC.reshape(-1, tokens, tokens, C)
    per_side = tokens // window
    x = x_NLC.view(-1, per_side, per_side, window, window, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, tokens, tokens, C)


def window_order(tokens: int, window: int, shift: int) -> Tensor:
    """(tokens^2,) the grid's tokens, counted row by row, in the order of windows after a roll by `shift`."""
    grid = torch.arange(tokens**2).view(1, tokens, tokens, 1)
    return partition(grid.roll((-shift, -shift), (1, 2)), window).flatten()


def relative_position_index(window: int) -> Tensor:
    """(L, L) rows of the bias table for every pair of tokens in one window (Liu et al. 2021, eq. 4)."""
    side = torch.arange(window)
    row, column = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="ij"))
    return (row[:, None] - row + window - 1) * (2 * window - 1) + (column[:, None] - column + window - 1)


def widened(x: Tensor) -> Tensor:
    """`x` in fp32, or in what it is where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit_length(x: Tensor) -> Tensor:
    """`x` over its length along the last axis, in fp32 at least; zero stays zero, in its gradient too.

    The key of a padded token is zero, and F.normalize divides its gradient by 1e-12: infinite in half precision.
    """
    x = widened(x)
    length = x.norm(dim=-1, keepdim=True)
    return x / torch.where(length > 1e-12, length, 1.0)


def relative_coordinates(window: int, unit: int) -> Tensor:
    """(T, 2) log-spaced offsets between two tokens of a window, in windows of `unit` tokens (arXiv 2111.09883, eq. 4).

    Offsets of a whole window are 8 before the logarithm, whatever its size; log2 is divided by that of 8.
    """
    offsets = torch.arange(1 - window, window, dtype=torch.float32) / max(unit - 1, 1) * CPB_EXTENT
    spaced = offsets.sign() * (offsets.abs() + 1).log2() / math.log2(CPB_EXTENT)
    return torch.stack(torch.meshgrid(spaced, spaced, indexing="ij"), -1).view(-1, 2)


def shift_mask(tokens: int, window: int) -> Tensor:
    """(N, L, L) with MASK_VALUE between tokens that the cyclic shift made neighbours, 0 elsewhere.

    Where the window does not divide `tokens`, the regions are those of the padded grid, as timm has them.
    """
    side, shift = -(-tokens // window) * window, window // 2
    wrapped = (torch.arange(side) >= side - shift).int()
    regions = partition((2 * wrapped[:, None] + wrapped)[None, :, :, None], window).squeeze(-1)
    return torch.where(regions[:, None, :] == regions[:, :, None], 0.0, MASK_VALUE)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a relative position bias.

    The bias is a learned table (Swin, Swin-Free) or an MLP of the offsets (Swin V2, whose attention is also a cosine
    with a learned temperature a head, and whose keys have no bias).
    """

    relative_index: Tensor
    coordinates: Tensor
    mask: Tensor | None

    def __init__(self, dim: int, num_heads: int, window: int, mask: Tensor | None, *, v2: bool, cpb_unit: int) -> None:
        super().__init__()
        self.num_heads, self.v2 = num_heads, v2
        self.qkv = nn.Linear(dim, 3 * dim, bias=not v2)
        self.proj = nn.Linear(dim, dim)
        if v2:
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
            self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), -math.log(FIRST_TEMPERATURE)))
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, CPB_HIDDEN), nn.ReLU(), nn.Linear(CPB_HIDDEN, num_heads, bias=False)
            )
            self.register_buffer("coordinates", relative_coordinates(window, cpb_unit), persistent=False)
        else:
            self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_index", relative_position_index(window), persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def position_bias(self) -> Tensor:
        """(h, L, L) bias added to the attention of every window."""
        table_Th = CPB_BOUND * torch.sigmoid(widened(self.cpb_mlp(self.coordinates))) if self.v2 else self.bias_table
        L = self.relative_index.shape[0]
        # Rows of heads: selecting columns, with its backward, costs a fraction of indexing (benchmarks/model_speed.py).
        return table_Th.t().index_select(1, self.relative_index.view(-1)).view(-1, L, L)

    def qkv_bias(self) -> Tensor:
        """(3C,) bias of queries, keys and values."""
        if not self.v2:
            return self.qkv.bias
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

    def cosine_scale(self) -> Tensor:
        """(h, 1, 1) what Swin V2's cosines are multiplied with: the inverse temperature."""
        return widened(self.logit_scale).clamp(max=-math.log(MIN_TEMPERATURE)).exp()

    def forward(self, x_NLC: Tensor) -> Tensor:
        """(B*N, L, C) -> (B*N, L, C)."""
        BN, L, C = x_NLC.shape
        qkv = F.linear(x_NLC, self.qkv.weight, self.qkv_bias()).view(BN, L, 3, self.num_heads, C // self.num_heads)
        is_plain = x_NLC.device.type == "cpu" and torch.is_grad_enabled()
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q_NhLd, k_NhLd, v_NhLd = (qkv.contiguous() if is_plain else qkv).unbind(0)
        if self.v2:
            q_NhLd = (unit_length(q_NhLd) * self.cosine_scale()).to(v_NhLd.dtype)
            k_NhLd = unit_length(k_NhLd).to(v_NhLd.dtype)
        bias_NhLL = self.position_bias()[None] + (0.0 if self.mask is None else self.mask[:, None])
        bias_NhLL = bias_NhLL.to(v_NhLd.dtype)
        scale = 1.0 if self.v2 else q_NhLd.shape[-1] ** -0.5
        if is_plain:
            x_NhLd = plain_attention(q_NhLd, k_NhLd, v_NhLd, bias_NhLL, scale)
        else:
            if self.mask is not None:
                bias_NhLL = bias_NhLL.repeat(BN // len(bias_NhLL), 1, 1, 1)
            x_NhLd = F.scaled_dot_product_attention(q_NhLd, k_NhLd, v_NhLd, attn_mask=bias_NhLL, scale=scale)
        return self.proj(x_NhLd.transpose(1, 2).reshape(BN, L, C))

    def in_lanes(self, x_TC: Tensor) -> Tensor:
        """(L*M, C) -> (L*M, C): `forward` of Swin and Swin-Free for tokens in the order of `explorer.model.lanes`."""
        C, L = x_TC.shape[1], self.relative_index.shape[0]
        qkv = torch.addmm(self.qkv.bias[:, None], self.qkv.weight, x_TC.t())
        bias_hLLN = self.position_bias()[..., None]
        if self.mask is not None:
            bias_hLLN = bias_hLLN + self.mask.permute(1, 2, 0)
        shape = (3, self.num_heads, C // self.num_heads, L, -1)
        x_hdLM: Tensor = LaneAttention.apply(qkv.view(shape), bias_hLLN, (C // self.num_heads) ** -0.5)
        return self.proj(x_hdLM.view(C, -1).t())


def plain_attention(q_NhLd: Tensor, k_NhLd: Tensor, v_NhLd: Tensor, bias_NhLL: Tensor, scale: float) -> Tensor:
    """Softmax attention (B*N, h, L, d) with a bias for every window of an image, or one for all.

    For training on a CPU, where scaled_dot_product_attention has no kernel whose bias has a gradient, and what it does
    instead costs more (benchmarks/model_speed.py).
    """
    BN, h, L, _ = q_NhLd.shape
    q, k, v = (x.flatten(0, 1) for x in (q_NhLd, k_NhLd, v_NhLd))
    scores = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=scale)
    scores = scores.view(-1, len(bias_NhLL), h, L, L).add_(bias_NhLL).view(BN * h, L, L)
    return torch.bmm(scores.softmax(-1), v).view(BN, h, L, -1)


class Mlp(nn.Module):
    """Two linear layers around GELU, or ReLU where `br`."""

    def __init__(self, dim: int, hidden: int, *, br: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.ReLU() if br else nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(self.act(self.fc1(x_BHWC)))


class _Reordered(torch.autograd.Function):
    """Rows in another order, forth and back by one gather each; the general gradient of a gather adds them up."""

    @staticmethod
    def forward(x_BTC: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        return x_BTC.index_select(1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient_BTC: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient_BTC.index_select(1, inverse), None, None


class Block(nn.Module):
    """Window attention and MLP, each with a norm and a skip.

    The norm stands before the sub-layer (Liu et al. 2021, figure 3b), in Swin V2 after it, before the skip is added.
    """

    order: Tensor | None
    inverse: Tensor | None

    def __init__(self, arch: Arch, stage: int, block: int, drop_path: float) -> None:
        super().__init__()
        dim = arch.dim(stage)
        self.v2 = arch.v2
        self.tokens, self.window = arch.tokens[stage], min(arch.windows[stage], arch.tokens[stage])
        self.shift = self.window // 2 if arch.has_shift(stage, block) else 0
        self.padding = -self.tokens % self.window
        self.has_lanes = self.window**2 <= MOST_TOKENS and self.padding == 0 and not self.v2
        is_gathered = (self.shift > 0 or self.has_lanes) and self.padding == 0
        order = window_order(self.tokens, self.window, self.shift) if is_gathered else None
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", None if order is None else order.argsort(), persistent=False)
        mask = shift_mask(self.tokens, self.window) if self.shift else None
        self.norm1 = make_norm(dim, br=arch.br)
        self.attn = WindowAttention(
            dim,
            arch.num_heads[stage],
            self.window,
            mask,
            v2=arch.v2,
            cpb_unit=arch.pretrained_windows[stage] or self.window,
        )
        self.norm2 = make_norm(dim, br=arch.br)
        self.mlp = Mlp(dim, int(dim * arch.mlp_ratio), br=arch.br)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if self.v2:
            x_BHWC = x_BHWC + self.drop_path(self.norm1(self.attend(x_BHWC)))
            return x_BHWC + self.drop_path(self.norm2(self.mlp(x_BHWC)))
        x_BHWC = x_BHWC + self.drop_path(self.attend(self.norm1(x_BHWC)))
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))

    def attend(self, x_BHWC: Tensor) -> Tensor:
        """Attention inside the windows of the grid, shifted where the block shifts.

        Where windows do not divide the grid it is padded with zeros below and on the right, after the shift: timm's
        convention (torchvision pads before the shift).
        """
        is_plain = x_BHWC.device.type == "cpu" and x_BHWC.dtype == torch.float32 and torch.is_grad_enabled()
        is_plain = is_plain and not torch.compiler.is_compiling()
        if self.order is not None and self.inverse is not None and self.has_lanes and is_plain:
            taken, given = lane_order(self.order, self.inverse, self.window**2, len(x_BHWC))
            x_TC = _Reordered.apply(x_BHWC.reshape(1, -1, x_BHWC.shape[-1]), taken, given)[0]
            return _Reordered.apply(self.attn.in_lanes(x_TC)[None], given, taken).view(x_BHWC.shape)
        if self.shift and self.order is not None and self.inverse is not None:
            x_BTC = _Reordered.apply(x_BHWC.flatten(1, 2), self.order, self.inverse)
            x_NLC = self.attn(x_BTC.reshape(-1, self.window**2, x_BTC.shape[-1])).view(x_BTC.shape)
            return _Reordered.apply(x_NLC, self.inverse, self.order).view(x_BHWC.shape)
        if self.shift:
            x_BHWC = x_BHWC.roll((-self.shift, -self.shift), (1, 2))
        if self.padding:
            x_BHWC = F.pad(x_BHWC, (0, 0, 0, self.padding, 0, self.padding))
        x_BHWC = merge(self.attn(partition(x_BHWC, self.window)), self.window, self.tokens + self.padding)
        if self.padding:
            x_BHWC = x_BHWC[:, : self.tokens, : self.tokens]
        return x_BHWC.roll((self.shift, self.shift), (1, 2)) if self.shift else x_BHWC


class PatchEmbed(nn.Module):
    """Cuts the image into patches and projects each to the first stage's width."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.proj = nn.Conv2d(arch.channels, arch.embed_dim, arch.patch_size, arch.patch_size)
        self.norm = make_norm(arch.embed_dim, br=arch.br)

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, image_size, image_size) -> (B, H, W, C)."""
        return self.norm(self.proj(image).permute(0, 2, 3, 1).contiguous())


class PatchMerging(nn.Module):
    """Halves the grid and doubles the width: 2x2 neighbours side by side, norm, linear (Liu et al. 2021, section 3.1).

    Neighbours are ordered (row, column) = (0,0), (1,0), (0,1), (1,1), as in the authors' models. Swin V2's norm follows
    the linear layer.
    """

    def __init__(self, dim: int, *, br: bool, v2: bool) -> None:
        super().__init__()
        self.v2 = v2
        self.norm = make_norm(2 * dim if v2 else 4 * dim, br=br)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H/2, W/2, 2C)."""
        B, H, W, C = x_BHWC.shape
        x = x_BHWC.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
        return self.norm(self.reduction(x)) if self.v2 else self.reduction(self.norm(x))


_Contexts = Callable[[], tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]]


def _contexts(block: nn.Module) -> _Contexts:
    """Makes the contexts of a checkpointed block's forward pass and of its repetition, which counts no batch again."""
    norms = [module for module in block.modules() if isinstance(module, TokenBatchNorm) and module.training]
    if not norms:
        return noop_context_fn

    @contextlib.contextmanager
    def repetition() -> Iterator[None]:
        for norm in norms:
            norm.is_recomputing = True
        try:
            yield
        finally:
            for norm in norms:
                norm.is_recomputing = False

    return lambda: (contextlib.nullcontext(), repetition())


class Stage(nn.Module):
    """Patch merging (none in stage 1), then the stage's blocks."""

    def __init__(self, arch: Arch, stage: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.checkpointing = False
        self.merging = PatchMerging(arch.dim(stage - 1), br=arch.br, v2=arch.v2) if stage else None
        self.blocks = nn.ModuleList(Block(arch, stage, block, rate) for block, rate in enumerate(drop_paths))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) of the stage before -> (B, H, W, C) of this one."""
        if self.merging is not None:
            x_BHWC = self.merging(x_BHWC)
        for block in self.blocks:
            if not (self.checkpointing and torch.is_grad_enabled()):
                x_BHWC = block(x_BHWC)
            elif torch.compiler.is_compiling():  # takes no contexts, and writes a BatchNorm's statistics once by itself
                x_BHWC = checkpoint(block, x_BHWC, use_reentrant=False)
            else:
                x_BHWC = checkpoint(block, x_BHWC, use_reentrant=False, context_fn=_contexts(block))
        return x_BHWC


class Swin(nn.Module):
    """The classifier: patch embedding, four stages, norm, mean over all tokens, linear head.

    `drop_path`: stochastic depth rate of the last block, rising linearly from 0 at the first. Works with autocast to bf16
    and fp16, under torch.compile, and converted to half precision.
    """

    def __init__(self, arch: Arch, drop_path: float = 0.0) -> None:
        super().__init__()
        self.arch = arch
        num_blocks = sum(arch.depths)
        rates = [drop_path * block / max(1, num_blocks - 1) for block in range(num_blocks)]
        starts = [sum(arch.depths[:stage]) for stage in range(NUM_STAGES)]
        self.patch_embed = PatchEmbed(arch)
        self.stages = nn.ModuleList(
            Stage(arch, stage, rates[start : start + arch.depths[stage]]) for stage, start in enumerate(starts)
        )
        self.norm = make_norm(arch.dim(NUM_STAGES - 1), br=arch.br)
        self.head = nn.Linear(arch.dim(NUM_STAGES - 1), arch.num_classes)

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """Whether training keeps only the input of every block and computes the rest again in the backward pass.

        Same gradients, less memory, more time.
        """
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.checkpointing = enabled

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, image_size, image_size) -> logits (B, num_classes)."""
        x_BHWC = self.patch_embed(image)
        for stage in self.stages:
            x_BHWC = stage(x_BHWC)
        return self.head(self.norm(x_BHWC).mean((1, 2)))


@torch.no_grad()
def init_weights(module: Swin, seed: int, *, narrow: bool = False) -> None:
    """The authors' initialisation, drawn from `seed`: N(0, 0.02) for linear weights and bias tables, zero biases.

    Their cut at +-2 is 100 standard deviations away and is left out. The weights of the patch embedding are drawn as
    torch draws those of a convolution. Swin V2's norms start at zero, so that every block starts as its skip.

    `narrow`: for narrow networks that train briefly. Linear weights of blocks and mergings are N(0, 1/fan-in), so that their
    branches say something: 0.02 is 1/sqrt(2,500), and a proxy of 16 channels sits on a plateau for it. Those that end a branch
    are `BRANCH_SCALE` of that, so that forty branches do not drown the image in what they know nothing of yet. Bias tables
    are `local_biases`.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.empty_like(parameter, device="cpu")
        if parameter.ndim == 4:
            bound = parameter[0].numel() ** -0.5
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
        elif parameter.ndim == 2:
            if narrow and name.endswith("bias_table"):
                parameter.copy_(local_biases(parameter.shape[0], parameter.shape[1], generator))
                continue
            is_scaled = narrow and name.startswith("stages.")
            is_last = is_scaled and name.endswith(_BRANCH_ENDS)
            deviation = parameter.shape[1] ** -0.5 * (BRANCH_SCALE if is_last else 1.0) if is_scaled else 0.02
            parameter.copy_(drawn.normal_(0.0, deviation, generator=generator))
        elif name.endswith("bias") or (module.arch.v2 and ".blocks." in name and name.endswith(_POST_NORMS)):
            parameter.zero_()


def local_biases(num_places: int, num_heads: int, generator: torch.Generator) -> Tensor:
    """(places, heads) position biases with which every head looks at its own spot, N(0, 1) tokens away in both directions.

    Minus the squared distance from there, as the positional attention of d'Ascoli et al. 2021 (ConViT) starts as a convolution;
    docs/decisions/0012. What a place means is all that a window of V1 knows of its image's geometry.
    """
    reach = (math.isqrt(num_places) - 1) // 2
    side = torch.arange(-reach, reach + 1.0)
    places = torch.cartesian_prod(side, side)
    spots = torch.randn(num_heads, 2, generator=generator)
    bias = -(places[:, None] - spots).square().sum(-1)
    return bias - bias.mean(0)


@torch.no_grad()
def scatter_weights(module: Swin, seed: int) -> None:
    """Weights for checks and measurements of an untrained network: drawn so that every part shows in the logits.

    Norms 1 +- 0.2, biases +- 0.2, bias tables N(0, 1), temperatures e^(+-0.2) around the first, linear weights that keep
    the spread of what they read. A BatchNorm's running statistics are those of random images, as many as give it 64 values a
    channel, and two at least.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        uniform = torch.rand(parameter.shape, generator=generator) * 0.4 - 0.2
        if "bias_table" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        elif "logit_scale" in name:
            parameter.copy_(uniform - math.log(FIRST_TEMPERATURE))
        elif parameter.ndim > 1:
            spread = parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        else:
            parameter.copy_(uniform + (0.0 if name.endswith("bias") else 1.0))
    norms = [norm for norm in module.modules() if isinstance(norm, TokenBatchNorm)]
    if norms:
        momentum, was_training = norms[0].momentum, module.training
        module.eval()  # no stochastic depth
        for norm in norms:
            norm.train().momentum = 1.0
        images = max(2, 64 // module.arch.tokens[-1] ** 2)
        shape = (images, module.arch.channels, module.arch.image_size, module.arch.image_size)
        module(torch.randn(shape, generator=generator).to(parameter))
        for norm in norms:
            norm.momentum = momentum
        module.train(was_training)
