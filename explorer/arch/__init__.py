"""One architecture of the Swin family as a frozen value: `Arch`, its canonical form, id, name and the published presets.

Swin (Liu et al. 2021, arXiv 2103.14030), Swin V2 (Liu et al. 2021, arXiv 2111.09883), Swin-Free, BR and DRx (Koo et al.
2023, arXiv 2306.13776) are all points of `Arch`. No torch here; the module is built in `explorer.model`, counted in
`explorer.complexity`.
"""

from explorer.arch.names import PRESETS, heads_for, parse_name, sizes_in
from explorer.arch.value import (
    HEAD_DIM,
    MAX_COUNT,
    NUM_STAGES,
    Arch,
    ProxyScale,
    divisors,
    window_unit,
)

__all__ = [
    "HEAD_DIM",
    "MAX_COUNT",
    "NUM_STAGES",
    "PRESETS",
    "Arch",
    "ProxyScale",
    "divisors",
    "heads_for",
    "parse_name",
    "sizes_in",
    "window_unit",
]
