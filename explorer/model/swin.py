"""Swin and Swin-Free as torch modules, for training.

Liu et al. 2021 (arXiv 2103.14030) and Koo et al. 2023 (arXiv 2306.13776); one set of modules for all of them, every
choice taken from an `Arch`. The graph that is deployed is written by `explorer.model.onnx_graph`, not traced from here.

Shape suffixes: B images, H W tokens per side, C channels, N windows of one image, L tokens of one window (M x M),
h heads, d channels of one head. x_BHWC is a grid of tokens, x_NLC stands for (B*N, L, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from explorer.arch import NUM_STAGES, Arch

#: Added to the attention of tokens that are neighbours only through the cyclic shift (Liu et al. 2021, section 3.2).
MASK_VALUE = -100.0


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of a token grid of any leading shape: the BR variants' norm (Koo et al. 2023)."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return super().forward(x_BHWC.reshape(-1, x_BHWC.shape[-1])).view(x_BHWC.shape)


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


def relative_position_index(window: int) -> Tensor:
    """(L, L) rows of the bias table for every pair of tokens in one window (Liu et al. 2021, eq. 4)."""
    side = torch.arange(window)
    row, column = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="ij"))
    return (row[:, None] - row + window - 1) * (2 * window - 1) + (column[:, None] - column + window - 1)


def shift_mask(tokens: int, window: int) -> Tensor:
    """(N, L, L) with MASK_VALUE between tokens that the cyclic shift made neighbours, 0 elsewhere."""
    shift = window // 2
    position = torch.arange(tokens)
    wrapped = (position >= tokens - shift).int()
    regions = partition((2 * wrapped[:, None] + wrapped)[None, :, :, None], window).squeeze(-1)
    return torch.where(regions[:, None, :] == regions[:, :, None], 0.0, MASK_VALUE)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned relative position bias."""

    relative_index: Tensor
    mask: Tensor | None

    def __init__(self, dim: int, num_heads: int, window: int, mask: Tensor | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_index", relative_position_index(window), persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def position_bias(self) -> Tensor:
        """(h, L, L) bias added to the attention of every window."""
        L = self.relative_index.shape[0]
        return self.bias_table[self.relative_index.flatten()].view(L, L, -1).permute(2, 0, 1)

    def forward(self, x_NLC: Tensor) -> Tensor:
        """(B*N, L, C) -> (B*N, L, C)."""
        BN, L, C = x_NLC.shape
        qkv = self.qkv(x_NLC).view(BN, L, 3, self.num_heads, C // self.num_heads)
        q_NhLd, k_NhLd, v_NhLd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.position_bias().to(q_NhLd.dtype)[None]
        if self.mask is not None:
            N = self.mask.shape[0]
            bias = (bias + self.mask.to(bias.dtype)[:, None]).repeat(BN // N, 1, 1, 1)
        x_NhLd = F.scaled_dot_product_attention(q_NhLd, k_NhLd, v_NhLd, attn_mask=bias)
        return self.proj(x_NhLd.transpose(1, 2).reshape(BN, L, C))


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


class Block(nn.Module):
    """Norm, window attention, skip; norm, MLP, skip (Liu et al. 2021, figure 3b)."""

    def __init__(self, arch: Arch, stage: int, block: int, drop_path: float) -> None:
        super().__init__()
        dim = arch.dim(stage)
        self.tokens, self.window = arch.tokens[stage], min(arch.windows[stage], arch.tokens[stage])
        self.shift = self.window // 2 if arch.has_shift(stage, block) else 0
        mask = shift_mask(self.tokens, self.window) if self.shift else None
        self.norm1 = make_norm(dim, br=arch.br)
        self.attn = WindowAttention(dim, arch.num_heads[stage], self.window, mask)
        self.norm2 = make_norm(dim, br=arch.br)
        self.mlp = Mlp(dim, int(dim * arch.mlp_ratio), br=arch.br)
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x_BHWC = x_BHWC + self.drop_path(self.attend(self.norm1(x_BHWC)))
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))

    def attend(self, x_BHWC: Tensor) -> Tensor:
        """Attention inside the windows of the grid, shifted where the block shifts."""
        if self.shift:
            x_BHWC = x_BHWC.roll((-self.shift, -self.shift), (1, 2))
        x_BHWC = merge(self.attn(partition(x_BHWC, self.window)), self.window, self.tokens)
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

    Neighbours are ordered (row, column) = (0,0), (1,0), (0,1), (1,1), as in the authors' models.
    """

    def __init__(self, dim: int, *, br: bool) -> None:
        super().__init__()
        self.norm = make_norm(4 * dim, br=br)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H/2, W/2, 2C)."""
        B, H, W, C = x_BHWC.shape
        x = x_BHWC.view(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Patch merging (none in stage 1), then the stage's blocks."""

    def __init__(self, arch: Arch, stage: int, drop_paths: list[float]) -> None:
        super().__init__()
        self.merging = PatchMerging(arch.dim(stage - 1), br=arch.br) if stage else None
        self.blocks = nn.ModuleList(Block(arch, stage, block, rate) for block, rate in enumerate(drop_paths))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) of the stage before -> (B, H, W, C) of this one."""
        if self.merging is not None:
            x_BHWC = self.merging(x_BHWC)
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return x_BHWC


class Swin(nn.Module):
    """The classifier: patch embedding, four stages, norm, mean over all tokens, linear head.

    `drop_path`: stochastic depth rate of the last block, rising linearly from 0 at the first.
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

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, image_size, image_size) -> logits (B, num_classes)."""
        x_BHWC = self.patch_embed(image)
        for stage in self.stages:
            x_BHWC = stage(x_BHWC)
        return self.head(self.norm(x_BHWC).mean((1, 2)))


@torch.no_grad()
def init_weights(module: Swin, seed: int) -> None:
    """The authors' initialisation, drawn from `seed`: N(0, 0.02) for linear weights and bias tables, zero biases.

    Their cut at +-2 is 100 standard deviations away and is left out. The weights of the patch embedding are drawn as
    torch draws those of a convolution.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.empty_like(parameter, device="cpu")
        if parameter.ndim == 4:
            bound = parameter[0].numel() ** -0.5
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
        elif parameter.ndim == 2:
            parameter.copy_(drawn.normal_(0.0, 0.02, generator=generator))
        elif name.endswith("bias"):
            parameter.zero_()
