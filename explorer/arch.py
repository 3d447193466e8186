"""One architecture of the Swin family as a frozen value: `Arch`, its canonical form, id, name and the published presets.

Swin (Liu et al. 2021, arXiv 2103.14030), Swin-Free, BR and DRx (Koo et al. 2023, arXiv 2306.13776) are all points of
`Arch`. No torch here; the module is built in `explorer.model`, counted in `explorer.complexity`.

Name grammar, which reads back (`parse_name(arch.name) == arch.canonical()`; case does not matter when reading):

```
name   = family "-" size { "-" suffix }
family = "Swin" | "Swin-Free"
size   = "T" | "S" | "B" | "E" embed_dim "x" depth1 "." depth2 "." depth3 "." depth4
suffix = "W" window1 "." ... "." window4     windows that are not the family's own
       | "S" four digits 0 or 1              shift per stage, where it is not the family's own
       | "BR"                                BatchNorm and ReLU for LayerNorm and GELU
       | "DR" n                              n blocks in stage 3
       | "H" heads1 "." ... "." heads4       heads that are not embed_dim/32, doubled at every stage
       | "R" image_size | "P" patch_size | "C" channels | "N" num_classes | "M" mlp_ratio
```
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from explorer.errors import ArchError, SpaceError

NUM_STAGES: Final = 4
#: Dimensions of one attention head in every published Swin (Liu et al. 2021, section 3.3).
HEAD_DIM: Final = 32
#: Far above anything that could be built; keeps arithmetic on nonsense from taking forever.
MAX_COUNT: Final = 1_000_000


@dataclass(frozen=True)
class ProxyScale:
    """How an architecture is scaled down for short proxy trainings; the number of windows per stage stays.

    `from_unit` is what all windows and token grids of the space are multiples of (7 for Swin at 224); it becomes
    `unit`, so 7 -> 2 turns windows 7 and 14 into 2 and 4 and the grids 56, 28, 14, 7 into 16, 8, 4, 2.
    """

    from_unit: int
    unit: int = 2
    embed_dim: int = 32
    head_dim: int = 16
    patch_size: int = 2


@dataclass(frozen=True)
class Arch:
    """A Swin-like classifier. Sequences hold one value a stage, stage 1 first.

    `windows`: tokens per window side. `shifts`: whether every other block of the stage shifts its windows by half a
    window. `br`: BatchNorm + ReLU in place of LayerNorm + GELU. `image_size`: pixels per side. Raises ArchError when the
    values make no network.
    """

    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    windows: tuple[int, ...] = (7, 7, 7, 7)
    shifts: tuple[bool, ...] = (True, True, True, True)
    br: bool = False
    image_size: int = 224
    patch_size: int = 4
    channels: int = 3
    num_classes: int = 1000
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_type(field.name, getattr(self, field.name), field.default)
        # 4 and 4.0 are one value, and must have one id.
        object.__setattr__(self, "mlp_ratio", float(self.mlp_ratio))
        for name in ("depths", "num_heads", "windows", "shifts"):
            if len(getattr(self, name)) != NUM_STAGES:
                raise ArchError(f"{name}: {list(getattr(self, name))} has not one value per stage; give 4 values")
        for name in ("embed_dim", "image_size", "patch_size", "channels", "num_classes"):
            _require_count(name, getattr(self, name))
        for name in ("depths", "num_heads", "windows"):
            for stage, value in enumerate(getattr(self, name), 1):
                _require_count(f"{name}.stage{stage}", value)
        if not 0 < self.mlp_ratio <= 16:
            raise ArchError(f"mlp_ratio: {self.mlp_ratio} is not in the range (0, 16]")
        if self.embed_dim * self.mlp_ratio < 1:
            raise ArchError(
                f"mlp_ratio: {self.mlp_ratio} leaves no hidden channel; use at least {1 / self.embed_dim:g}"
            )
        coarsest = self.patch_size * 2 ** (NUM_STAGES - 1)
        if self.image_size % coarsest:
            below = self.image_size // coarsest * coarsest
            near = " or ".join(str(size) for size in (below, below + coarsest) if size)
            raise ArchError(
                f"image_size: {self.image_size} is not a multiple of {coarsest} (patch_size x 8); use {near}"
            )
        for stage in range(NUM_STAGES):
            if self.dim(stage) % self.num_heads[stage]:
                raise ArchError(
                    f"num_heads.stage{stage + 1}: {self.num_heads[stage]} heads do not divide {self.dim(stage)} channels; "
                    f"use one of {divisors(self.dim(stage))}"
                )
            if self.windows[stage] < self.tokens[stage] and self.tokens[stage] % self.windows[stage]:
                raise ArchError(
                    f"windows.stage{stage + 1}: {self.windows[stage]} does not divide {self.tokens[stage]} tokens; "
                    f"use one of {divisors(self.tokens[stage])}"
                )

    def dim(self, stage: int) -> int:
        """Channels of `stage` (0-based): embed_dim, doubled at every stage."""
        return self.embed_dim << stage

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens per side of each stage's grid."""
        return tuple(self.image_size // (self.patch_size << stage) for stage in range(NUM_STAGES))

    @property
    def depth3(self) -> int:
        """Blocks in stage 3."""
        return self.depths[2]

    def has_shift(self, stage: int, block: int) -> bool:
        """Whether `block` (0-based) of `stage` (0-based) shifts its windows: every other block, never a single window."""
        return self.shifts[stage] and block % 2 == 1 and 1 < self.windows[stage] < self.tokens[stage]

    def canonical(self) -> Arch:
        """The one spelling of this network: a window no larger than its grid, a shift only where it does something.

        A shift does nothing where one window covers the stage, where a window is one token, and in a stage of one block,
        whose second block would be the first to shift.
        """
        windows = tuple(min(window, tokens) for window, tokens in zip(self.windows, self.tokens, strict=True))
        shifts = tuple(
            shift and 1 < window < tokens and depth > 1
            for shift, window, tokens, depth in zip(self.shifts, windows, self.tokens, self.depths, strict=True)
        )
        return (
            self if (windows, shifts) == (self.windows, self.shifts) else replace(self, windows=windows, shifts=shifts)
        )

    @cached_property
    def id(self) -> str:
        """`a1-` and 12 hex digits over the canonical form.

        Only values that differ from the defaults enter the hash: a field added later leaves the ids of today alone, and a
        default never changes.
        """
        canonical = self.canonical()
        differing = {
            f.name: getattr(canonical, f.name) for f in fields(Arch) if getattr(canonical, f.name) != f.default
        }
        digest = hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()
        return f"a1-{digest[:12]}"

    @cached_property
    def name(self) -> str:
        """The name in the grammar at the top of this file: `Swin-B`, `Swin-Free-B-BR-DR14`, `Swin-B-W14.7.14.7-S0100`."""
        return _name(self.canonical())

    def proxy(self, scale: ProxyScale, *, channels: int, num_classes: int) -> Arch:
        """The scaled-down copy that is trained in this architecture's place: same depths, windows per stage and shifts.

        Raises SpaceError where windows or grids are no multiples of `scale.from_unit`, or the width cannot hold the heads.
        """
        canonical = self.canonical()
        for field, values in (("windows", canonical.windows), ("tokens", canonical.tokens)):
            for stage, value in enumerate(values, 1):
                if value % scale.from_unit:
                    raise SpaceError(
                        f"proxy: {field}.stage{stage}: {value} is not a multiple of {scale.from_unit}, the unit that the "
                        f"proxy scales; use multiples of {scale.from_unit}"
                    )
        if scale.embed_dim % scale.head_dim:
            raise SpaceError(
                f"proxy.head_dim: {scale.head_dim} does not divide proxy.embed_dim {scale.embed_dim}; "
                f"use one of {divisors(scale.embed_dim)}"
            )
        heads = scale.embed_dim // scale.head_dim
        proxy = replace(
            canonical,
            embed_dim=scale.embed_dim,
            num_heads=tuple(heads << stage for stage in range(NUM_STAGES)),
            windows=tuple(window // scale.from_unit * scale.unit for window in canonical.windows),
            image_size=canonical.tokens[0] // scale.from_unit * scale.unit * scale.patch_size,
            patch_size=scale.patch_size,
            channels=channels,
            num_classes=num_classes,
        )
        if proxy.canonical().shifts != proxy.shifts:
            raise SpaceError(
                f"proxy.unit: {scale.unit} turns windows {list(canonical.windows)} into {list(proxy.windows)}, and a window "
                "of one token cannot shift; use a larger unit"
            )
        return proxy

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values (tuples become lists)."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Arch:
        """The inverse of `to_dict`. Raises ArchError for an unknown field or a wrong type."""
        known = [field.name for field in fields(Arch)]
        for key in values:
            if key not in known:
                raise ArchError(f"{key}: no field of an architecture; allowed: {', '.join(known)}")
        fields_given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return Arch(**fields_given)


def divisors(number: int) -> list[int]:
    """All divisors of `number`, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def window_unit(archs_windows: list[int], tokens: tuple[int, ...]) -> int:
    """The largest number that divides all given windows and grids (7 for Swin at 224)."""
    return math.gcd(*archs_windows, *tokens)


def _require_count(name: str, value: int) -> None:
    if not 1 <= value <= MAX_COUNT:
        raise ArchError(f"{name}: {value} is not a whole number from 1 to {MAX_COUNT:,}")


def _require_type(key: str, value: object, default: object) -> None:
    """Checks `value` against the type of the field's default; sequences element by element."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple):
            raise ArchError(f"{key}: {value!r} is not a list of 4 values, one per stage")
        for stage, element in enumerate(value, 1):
            _require_type(f"{key}.stage{stage}", element, default[0])
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArchError(f"{key}: {value!r} is not a number")
    elif type(value) is not type(default):
        wanted = {bool: "true or false", int: "a whole number"}[type(default)]
        raise ArchError(f"{key}: {value!r} is not {wanted}")


# -- names ------------------------------------------------------------------------------------------------------------

_SIZES: Final = MappingProxyType({"T": (96, (2, 2, 6, 2)), "S": (96, (2, 2, 18, 2)), "B": (128, (2, 2, 18, 2))})
#: Stage-3 depth from which a width of 96 is spelled as a shallower S rather than a deeper T.
_SMALL_FROM_DEPTH3: Final = 10
_FAMILY_WINDOWS: Final = MappingProxyType({"Swin": (7, 7, 7, 7), "Swin-Free": (7, 14, 14, 7)})
_N: Final = r"\d{1,9}"
_FOUR: Final = rf"{_N}(?:\.{_N}){{3}}"
_SUFFIX: Final = re.compile(
    rf"(?P<windows>W{_FOUR})|(?P<shifts>S[01]{{4}})|(?P<br>BR)|DR(?P<depth3>{_N})|(?P<heads>H{_FOUR})|R(?P<image_size>{_N})"
    rf"|P(?P<patch_size>{_N})|C(?P<channels>{_N})|N(?P<num_classes>{_N})|M(?P<mlp_ratio>{_N}(?:\.\d{{1,20}})?)"
)
_NAME: Final = re.compile(
    rf"(?P<family>SWIN(?:-FREE)?)-(?P<size>[TSB]|E(?P<dim>{_N})X(?P<depths>{_FOUR}))(?P<rest>(?:-.+)?)"
)


def heads_for(embed_dim: int) -> tuple[int, ...]:
    """Heads per stage as published: 32 channels a head in stage 1, doubled at every stage; one head below 32 channels."""
    first = max(1, embed_dim // HEAD_DIM)
    return tuple(first << stage for stage in range(NUM_STAGES))


def _name(arch: Arch) -> str:
    free = replace(arch, windows=_FAMILY_WINDOWS["Swin-Free"], shifts=(False,) * NUM_STAGES) if _fits(arch) else None
    family = "Swin-Free" if free is not None and free.canonical() == arch else "Swin"
    size, own_depths = _size_of(arch)
    parts = [family, size]
    if family == "Swin":
        if arch.windows != tuple(min(7, tokens) for tokens in arch.tokens):
            parts.append("W" + ".".join(map(str, arch.windows)))
        if arch.shifts != replace(arch, shifts=(True,) * NUM_STAGES).canonical().shifts:
            parts.append("S" + "".join(str(int(shift)) for shift in arch.shifts))
    if arch.br:
        parts.append("BR")
    if arch.depths != own_depths:
        parts.append(f"DR{arch.depth3}")
    if arch.num_heads != heads_for(arch.embed_dim):
        parts.append("H" + ".".join(map(str, arch.num_heads)))
    for letter, field in (("R", "image_size"), ("P", "patch_size"), ("C", "channels"), ("N", "num_classes")):
        if getattr(arch, field) != getattr(Arch, field):
            parts.append(f"{letter}{getattr(arch, field)}")
    if arch.mlp_ratio != Arch.mlp_ratio:
        parts.append("M" + f"{Decimal(repr(arch.mlp_ratio)):f}".removesuffix(".0"))
    return "-".join(parts)


def _fits(arch: Arch) -> bool:
    """Whether the Swin-Free windows are possible on this architecture's grids."""
    return all(w >= t or t % w == 0 for w, t in zip(_FAMILY_WINDOWS["Swin-Free"], arch.tokens, strict=True))


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
    match = _NAME.fullmatch(name.strip().upper())
    if match is None:
        raise ArchError(
            f"{name[:80]!r} is no architecture; allowed: a preset ({', '.join(PRESETS)}) or a name like "
            "Swin-B-W14.7.14.7-S0010-BR-DR12 (grammar: docs/names.md)"
        )
    family = "Swin-Free" if match["family"] == "SWIN-FREE" else "Swin"
    dim, depths = _SIZES[match["size"]] if match["size"] in _SIZES else (int(match["dim"]), _numbers(match["depths"]))
    values: dict[str, Any] = {
        "embed_dim": dim,
        "depths": depths,
        "num_heads": heads_for(dim),
        "windows": _FAMILY_WINDOWS[family],
        "shifts": (family == "Swin",) * NUM_STAGES,
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
    try:
        return Arch(**(values | sizes)).canonical()
    except ArchError as error:
        raise ArchError(f"{name!r}: {error}") from None


def _parse_suffix(name: str, suffix: str) -> tuple[str, Any]:
    match = _SUFFIX.fullmatch(suffix)
    if match is None or match.lastgroup is None:
        raise ArchError(
            f"{name!r}: {suffix!r} is no suffix; allowed: W7.14.14.7, S0110, BR, DR12, H4.8.16.32, R224, P4, C3, N1000, M4"
        )
    key, text = match.lastgroup, match[match.lastgroup]
    match key:
        case "br":
            return "br", True
        case "shifts":
            return "shifts", tuple(digit == "1" for digit in text[1:])
        case "windows":
            return "windows", _numbers(text[1:])
        case "heads":
            return "num_heads", _numbers(text[1:])
        case "mlp_ratio":
            return key, float(text)
        case _:
            return key, int(text)


def _numbers(dotted: str) -> tuple[int, ...]:
    return tuple(int(number) for number in dotted.split("."))


#: Published models by name (Liu et al. 2021; Koo et al. 2023, table 6).
PRESETS: Final = MappingProxyType(
    {
        name: parse_name(name)
        for name in (
            "Swin-T",
            "Swin-S",
            "Swin-B",
            "Swin-B-BR",
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
