"""Parameters and FLOPs of an `Arch`, by arithmetic alone: no torch, nothing built.

FLOPs are multiply-adds of matrix products and convolutions for one image, as the Swin paper counts them (Liu et al.
2021, table 1). Deployed parameters count every block's position bias as materialised, heads x M^2 x M^2, as Koo et al.
2023 (table 6) do by counting the exported graph; shift masks are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from explorer.arch import NUM_STAGES, Arch


@dataclass(frozen=True)
class StageComplexity:
    """One stage, its patch merging (or the patch embedding, for stage 1) included.

    `tokens`: per side of the grid. `windows`: how many windows the grid is cut into. `window`: tokens per window side.
    """

    tokens: int
    windows: int
    window: int
    shift: bool
    dim: int
    num_heads: int
    depth: int
    params_trainable: int
    params_deployed: int
    flops: int


@dataclass(frozen=True)
class Complexity:
    """Totals of an architecture, the classifier head included, and its stages."""

    params_trainable: int
    params_deployed: int
    flops: int
    stages: tuple[StageComplexity, ...]


def complexity_of(arch: Arch) -> Complexity:
    """Counts `arch`. Costs microseconds."""
    arch = arch.canonical()
    stages = tuple(_stage(arch, stage) for stage in range(NUM_STAGES))
    dim = arch.dim(NUM_STAGES - 1)
    head_params = 2 * dim + dim * arch.num_classes + arch.num_classes
    return Complexity(
        params_trainable=sum(stage.params_trainable for stage in stages) + head_params,
        params_deployed=sum(stage.params_deployed for stage in stages) + head_params,
        flops=sum(stage.flops for stage in stages) + dim * arch.num_classes,
        stages=stages,
    )


def _stage(arch: Arch, stage: int) -> StageComplexity:
    dim, depth, heads = arch.dim(stage), arch.depths[stage], arch.num_heads[stage]
    tokens, window = arch.tokens[stage], arch.windows[stage]
    hidden = int(dim * arch.mlp_ratio)
    linear_weights = 4 * dim * dim + 2 * dim * hidden
    block_params = linear_weights + 4 * dim + hidden + dim + 4 * dim
    bias_table, bias_deployed = (2 * window - 1) ** 2 * heads, heads * window**4
    area = tokens * tokens
    block_flops = area * linear_weights + 2 * area * window * window * dim
    entry_params, entry_flops = _entry(arch, stage)
    return StageComplexity(
        tokens=tokens,
        windows=(tokens // window) ** 2,
        window=window,
        shift=arch.shifts[stage],
        dim=dim,
        num_heads=heads,
        depth=depth,
        params_trainable=entry_params + depth * (block_params + bias_table),
        params_deployed=entry_params + depth * (block_params + bias_deployed),
        flops=entry_flops + depth * block_flops,
    )


def _entry(arch: Arch, stage: int) -> tuple[int, int]:
    """Parameters and FLOPs of what leads into a stage: patch embedding with its norm, or patch merging."""
    dim, area = arch.dim(stage), arch.tokens[stage] ** 2
    if stage == 0:
        weights = arch.channels * arch.patch_size**2 * dim
        return weights + dim + 2 * dim, area * weights
    below = arch.dim(stage - 1)
    weights = 4 * below * dim
    return weights + 2 * 4 * below, area * weights
