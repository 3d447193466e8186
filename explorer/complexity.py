"""Parameters and FLOPs of an `Arch`, by arithmetic alone: no torch, nothing built.

FLOPs are multiply-adds of matrix products and convolutions for one image, as the Swin paper counts them (Liu et al.
2021, table 1); tokens that pad a grid are counted where attention computes them. Deployed parameters count every block's
position bias as materialised, heads x M^2 x M^2, as Koo et al. 2023 (table 6) do by counting the exported graph; shift
masks are not counted, nor is the scale and shift that a padded BatchNorm leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from explorer.arch import NUM_STAGES, Arch

#: Hidden channels of the MLP that makes Swin V2's position bias (Liu et al. 2021, arXiv 2111.09883, section 3.2).
CPB_HIDDEN: Final = 512
_FP32_BYTES: Final = 4


@dataclass(frozen=True)
class StageComplexity:
    """One stage, its patch merging (or the patch embedding, for stage 1) included.

    `tokens`: per side of the grid. `windows`: how many windows the grid is cut into, `window`: tokens per side of one,
    `padding`: tokens by which the grid's sides grow for that. `activation_bytes`: peak of the activations of one image in
    fp32 at inference, where changes of layout cost none and element-wise operations work in place.
    """

    tokens: int
    windows: int
    window: int
    padding: int
    shift: bool
    dim: int
    num_heads: int
    depth: int
    params_trainable: int
    params_deployed: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True)
class Complexity:
    """Totals of an architecture, the classifier head included, and its stages; `activation_bytes` is the largest stage's."""

    params_trainable: int
    params_deployed: int
    flops: int
    activation_bytes: int
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
        activation_bytes=max(stage.activation_bytes for stage in stages),
        stages=stages,
    )


def _stage(arch: Arch, stage: int) -> StageComplexity:
    dim, depth, heads = arch.dim(stage), arch.depths[stage], arch.num_heads[stage]
    tokens, window, per_side = arch.tokens[stage], arch.windows[stage], arch.windows_per_side[stage]
    hidden = int(dim * arch.mlp_ratio)
    attention_weights, mlp_weights = 4 * dim * dim, 2 * dim * hidden
    norms = 4 * dim
    block_params = attention_weights + 4 * dim + mlp_weights + hidden + dim + norms
    bias_trainable, bias_deployed = (2 * window - 1) ** 2 * heads, heads * window**4
    if arch.v2:
        # No bias for the keys, one temperature a head, and an MLP of two coordinates; deployed, the keys' bias is zero.
        bias_trainable = CPB_HIDDEN * (2 + 1 + heads) + heads - dim
        bias_deployed += heads
    area, padded_area = tokens**2, (per_side * window) ** 2
    scores = padded_area * window**2
    entry_params, entry_flops = _entry(arch, stage)
    return StageComplexity(
        tokens=tokens,
        windows=per_side**2,
        window=window,
        padding=per_side * window - tokens,
        shift=arch.shifts[stage],
        dim=dim,
        num_heads=heads,
        depth=depth,
        params_trainable=entry_params + depth * (block_params + bias_trainable),
        params_deployed=entry_params + depth * (block_params + bias_deployed),
        flops=entry_flops + depth * (padded_area * attention_weights + 2 * scores * dim + area * mlp_weights),
        activation_bytes=_FP32_BYTES
        * max(
            area * dim + 4 * padded_area * dim,  # skip, tokens, queries, keys and values
            area * dim + 3 * padded_area * dim + scores * heads,  # skip, queries, keys and values, scores
            area * (2 * dim + hidden),  # skip, tokens before or after, hidden channels
        ),
    )


def _entry(arch: Arch, stage: int) -> tuple[int, int]:
    """Parameters and FLOPs of what leads into a stage: patch embedding with its norm, or patch merging."""
    dim, area = arch.dim(stage), arch.tokens[stage] ** 2
    if stage == 0:
        weights = arch.channels * arch.patch_size**2 * dim
        return weights + dim + 2 * dim, area * weights
    below = arch.dim(stage - 1)
    weights = 4 * below * dim
    return weights + 2 * (dim if arch.v2 else 4 * below), area * weights


def arch_facts(arch: Arch) -> dict[str, Any]:
    """What is known of an architecture without running it; lists are lists, counts are whole numbers."""
    arch, counts = arch.canonical(), complexity_of(arch)
    return {
        "arch_id": arch.id,
        "name": arch.name,
        "windows": list(arch.windows),
        "shifts": list(arch.shifts),
        "br": arch.br,
        "depth3": arch.depth3,
        "depths": list(arch.depths),
        "embed_dim": arch.embed_dim,
        "params_trainable": counts.params_trainable,
        "params_deployed": counts.params_deployed,
        "flops": counts.flops,
    }
