"""Names of architectures, and the published ones by name (`PRESETS`).

Grammar, which reads back (`parse_name(arch.name) == arch.canonical()`; case does not matter when reading):

```
name   = family "-" size { "-" suffix }
family = "Swin" | "SwinV2" | "Swin-Free"
size   = "T" | "S" | "B" | "E" embed_dim "x" depth1 "." depth2 "." depth3 "." depth4
suffix = "W" window1 "." ... "." window4     windows that are not the family's own
       | "S" four digits 0 or 1              shift per stage, where it is not the family's own
       | "BR"                                BatchNorm and ReLU for LayerNorm and GELU
       | "DR" n                              n blocks in stage 3
       | "H" heads1 "." ... "." heads4       heads that are not embed_dim/32, doubled at every stage
       | [ "R" ] image_size                  written without the R in SwinV2's names, as in its paper
       | "P" patch_size | "C" channels | "N" num_classes | "M" mlp_ratio
       | "F" window1 "." ... "." window4     SwinV2: windows that its position bias was trained with, 0 for the own
```

A family's own windows: 7.7.7.7 (Swin), 7.14.14.7 (Swin-Free), an eighth of stage 1's grid in every stage (SwinV2: 8 at
256 pixels, 7 at 224); its own image size: 224, 256 for SwinV2.
"""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from explorer.arch.value import HEAD_DIM, NUM_STAGES, Arch
from explorer.errors import ArchError

_SIZES: Final = MappingProxyType({"T": (96, (2, 2, 6, 2)), "S": (96, (2, 2, 18, 2)), "B": (128, (2, 2, 18, 2))})
#: Stage-3 depth from which a width of 96 is spelled as a shallower S rather than a deeper T.
_SMALL_FROM_DEPTH3: Final = 10
_IMAGE_SIZES: Final = MappingProxyType({"Swin": 224, "SwinV2": 256, "Swin-Free": 224})
_FREE_WINDOWS: Final = (7, 14, 14, 7)
_N: Final = r"\d{1,9}"
_FOUR: Final = rf"{_N}(?:\.{_N}){{3}}"
_SUFFIX: Final = re.compile(
    rf"(?P<windows>W{_FOUR})|(?P<shifts>S[01]{{4}})|(?P<br>BR)|DR(?P<depth3>{_N})|(?P<heads>H{_FOUR})|R?(?P<image_size>{_N})"
    rf"|P(?P<patch_size>{_N})|C(?P<channels>{_N})|N(?P<num_classes>{_N})|M(?P<mlp_ratio>{_N}(?:\.\d{{1,20}})?)"
    rf"|(?P<pretrained>F{_FOUR})",
    re.ASCII,
)
_NAME: Final = re.compile(
    rf"(?P<family>SWINV2|SWIN-FREE|SWIN)-(?P<size>[TSB]|E(?P<dim>{_N})X(?P<depths>{_FOUR}))(?P<rest>(?:-.+)?)", re.ASCII
)
_FAMILIES: Final = MappingProxyType({family.upper(): family for family in _IMAGE_SIZES})


def heads_for(embed_dim: int) -> tuple[int, ...]:
    """Heads per stage as published: 32 channels a head in stage 1, doubled at every stage; one head below 32 channels."""
    first = max(1, embed_dim // HEAD_DIM)
    return tuple(first << stage for stage in range(NUM_STAGES))


def spell(arch: Arch) -> str:
    """The name of a canonical `arch`; `Arch.name` is this."""
    free = replace(arch, windows=_FREE_WINDOWS, shifts=(False,) * NUM_STAGES).canonical()
    family = "SwinV2" if arch.v2 else "Swin-Free" if free == arch else "Swin"
    size, own_depths = _size_of(arch)
    parts = [family, size]
    if family != "Swin-Free":
        if replace(arch, windows=_own_windows(family, arch.tokens[0])).canonical().windows != arch.windows:
            parts.append("W" + ".".join(map(str, arch.windows)))
        if arch.shifts != replace(arch, shifts=(True,) * NUM_STAGES).canonical().shifts:
            parts.append("S" + "".join(str(int(shift)) for shift in arch.shifts))
    if arch.br:
        parts.append("BR")
    if arch.depths != own_depths:
        parts.append(f"DR{arch.depth3}")
    if arch.num_heads != heads_for(arch.embed_dim):
        parts.append("H" + ".".join(map(str, arch.num_heads)))
    if arch.image_size != _IMAGE_SIZES[family]:
        parts.append(f"{'' if arch.v2 else 'R'}{arch.image_size}")
    for letter, field in (("P", "patch_size"), ("C", "channels"), ("N", "num_classes")):
        if getattr(arch, field) != getattr(Arch, field):
            parts.append(f"{letter}{getattr(arch, field)}")
    if arch.mlp_ratio != Arch.mlp_ratio:
        parts.append("M" + f"{Decimal(repr(arch.mlp_ratio)):f}".removesuffix(".0"))
    if any(arch.pretrained_windows):
        parts.append("F" + ".".join(map(str, arch.pretrained_windows)))
    return "-".join(parts)


def _own_windows(family: str, tokens: int) -> tuple[int, ...]:
    """The windows that a family's name stands for, where stage 1 has `tokens` tokens per side."""
    if family == "SwinV2":
        return (max(1, tokens >> (NUM_STAGES - 1)),) * NUM_STAGES
    return _FREE_WINDOWS if family == "Swin-Free" else Arch.windows


def _size_of(arch: Arch) -> tuple[str, tuple[int, ...]]:
    """The size's letter (or spelled-out form) and the depths that it stands for."""
    for size in ("T", "S") if arch.depth3 < _SMALL_FROM_DEPTH3 else ("S", "B"):
        dim, depths = _SIZES[size]
        if arch.embed_dim == dim and (*arch.depths[:2], arch.depths[3]) == (*depths[:2], depths[3]):
            return size, depths
    dim, depths = _SIZES["B"]
    if arch.embed_dim == dim and (*arch.depths[:2], arch.depths[3]) == (*depths[:2], depths[3]):
        return "B", depths
    return f"E{arch.embed_dim}x" + ".".join(map(str, arch.depths)), arch.depths


def parse_name(name: str, **sizes: int) -> Arch:
    """The architecture that `name` spells, in canonical form.

    `sizes` (`image_size`, `patch_size`, `channels`, `num_classes`) replace those of the name before it becomes canonical:
    a shift that does nothing at 224 may do something at 448. Raises ArchError when the name spells no architecture.
    """
    match = _match(name)
    family = _FAMILIES[match["family"]]
    dim, depths = _SIZES[match["size"]] if match["size"] in _SIZES else (int(match["dim"]), _numbers(match["depths"]))
    values: dict[str, Any] = {
        "embed_dim": dim,
        "depths": depths,
        "num_heads": heads_for(dim),
        "shifts": (family != "Swin-Free",) * NUM_STAGES,
        "image_size": _IMAGE_SIZES[family],
        "v2": family == "SwinV2",
    }
    seen: set[str] = set()
    for suffix in match["rest"].split("-")[1:]:
        key, value = _parse_suffix(name, suffix)
        if key in seen:
            raise ArchError(f"{name!r}: {suffix!r} gives {key} a second time; give it once")
        seen.add(key)
        if key == "depth3":
            key, value = "depths", (*depths[:2], value, depths[3])
        values[key] = value
    if "pretrained_windows" in seen and not values["v2"]:
        raise ArchError(f"{name!r}: F is a suffix of SwinV2 alone; leave it out")
    values |= sizes
    try:
        # Whether the sizes make a network is Arch's business: it is asked before the windows are derived from them.
        arch = Arch(**values)
        own = _own_windows(family, arch.tokens[0])
        return (arch if "windows" in values else replace(arch, windows=own)).canonical()
    except ArchError as error:
        raise ArchError(f"{name!r}: {error}") from None


def sizes_in(name: str) -> dict[str, int]:
    """The sizes (`image_size`, `patch_size`, `channels`, `num_classes`) that `name` itself gives. Raises ArchError."""
    suffixes = dict(_parse_suffix(name, suffix) for suffix in _match(name)["rest"].split("-")[1:])
    return {key: suffixes[key] for key in ("image_size", "patch_size", "channels", "num_classes") if key in suffixes}


def _match(name: str) -> re.Match[str]:
    match = _NAME.fullmatch(name.strip().upper())
    if match is None:
        raise ArchError(
            f"{name[:80]!r} is no architecture; allowed: a preset ({', '.join(PRESETS)}) or a name like "
            "Swin-B-W14.7.14.7-S0010-BR-DR12 (grammar: docs/names.md)"
        )
    return match


def _parse_suffix(name: str, suffix: str) -> tuple[str, Any]:
    match = _SUFFIX.fullmatch(suffix)
    if match is None or match.lastgroup is None:
        raise ArchError(
            f"{name!r}: {suffix!r} is no suffix; allowed: W7.14.14.7, S0110, BR, DR12, H4.8.16.32, R224, P4, C3, N1000, M4, "
            "F12.12.12.6"
        )
    key, text = match.lastgroup, match[match.lastgroup]
    match key:
        case "br":
            return "br", True
        case "shifts":
            return "shifts", tuple(digit == "1" for digit in text[1:])
        case "windows":
            return "windows", _numbers(text[1:])
        case "pretrained":
            return "pretrained_windows", _numbers(text[1:])
        case "heads":
            return "num_heads", _numbers(text[1:])
        case "mlp_ratio":
            return key, float(text)
        case _:
            return key, int(text)


def _numbers(dotted: str) -> tuple[int, ...]:
    return tuple(int(number) for number in dotted.split("."))


#: Published models by name (Liu et al. 2021, both papers; Koo et al. 2023, table 6, whose SwinV2-B is at 224).
PRESETS: Final = MappingProxyType(
    {
        name: parse_name(name)
        for name in (
            "Swin-T",
            "Swin-S",
            "Swin-B",
            "Swin-B-BR",
            "SwinV2-T",
            "SwinV2-S",
            "SwinV2-B",
            "SwinV2-B-224",
            "Swin-Free-T",
            "Swin-Free-S",
            "Swin-Free-B",
            "Swin-Free-T-BR",
            "Swin-Free-S-BR",
            "Swin-Free-B-BR",
            "Swin-Free-B-DR10",
            "Swin-Free-B-DR12",
            "Swin-Free-B-DR14",
            "Swin-Free-B-DR16",
            "Swin-Free-B-BR-DR12",
            "Swin-Free-B-BR-DR14",
            "Swin-Free-B-BR-DR16",
        )
    }
)
