"""What ranks networks without training or even building them: counts of the full-size network. No torch."""

from __future__ import annotations

from collections import Counter

from explorer.arch import NUM_STAGES, Arch
from explorer.complexity import complexity_of


def trivial_scores(arch: Arch) -> dict[str, float]:
    """`parameters` (trainable), `flops` and `tokens_seen` of the architecture itself."""
    counts = complexity_of(arch)
    return {
        "parameters": float(counts.params_trainable),
        "flops": float(counts.flops),
        "tokens_seen": tokens_seen(arch),
    }


def tokens_seen(arch: Arch) -> float:
    """Number of tokens that a token attends to, itself included: the mean over tokens, then over blocks.

    M^2 where windows do not shift. Where they do, the mask parts the windows at the border, and tokens there see fewer; tokens
    that pad a grid count nowhere.
    """
    arch = arch.canonical()
    seen = [
        _seen_along(arch.tokens[stage], arch.windows[stage], arch.windows[stage] // 2 * arch.has_shift(stage, block))
        ** 2
        for stage in range(NUM_STAGES)
        for block in range(arch.depths[stage])
    ]
    return sum(seen) / len(seen)


def _seen_along(tokens: int, window: int, shift: int) -> float:
    """As `tokens_seen` along one side of a grid: what a token sees is the product of both sides."""
    side = -(-tokens // window) * window
    groups = Counter((place // window, place >= side - shift) for place in range(tokens))
    return sum(count**2 for count in groups.values()) / tokens
