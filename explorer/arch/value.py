"""`Arch`: one network of the Swin family as a frozen value; its canonical form, id and scaled-down proxy."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Final

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
    `unit`, so 7 -> 2 turns windows 7 and 14 into 2 and 4 and the grids 56, 28, 14, 7 into 16, 8, 4, 2. Stage 3 has its
    depth over `depth3_divisor`, rounded up: 2 keeps depths that differ by two apart.
    """

    from_unit: int
    unit: int = 2
    embed_dim: int = 32
    head_dim: int = 16
    patch_size: int = 2
    depth3_divisor: int = 1

    def to_dict(self) -> dict[str, int]:
        """The fields, `depth3_divisor` only where it divides: what tells scales apart, JSON-ready."""
        return {key: value for key, value in asdict(self).items() if key != "depth3_divisor" or value > 1}


@dataclass(frozen=True)
class Arch:
    """A Swin-like classifier. Sequences hold one value a stage, stage 1 first.

    `windows`: tokens per window side; where one does not divide its stage's grid, the grid is padded with zeros inside
    the attention. `shifts`: whether every other block of the stage shifts its windows by half a window. `br`: BatchNorm +
    ReLU in place of LayerNorm + GELU. `image_size`: pixels per side. `v2`: Swin V2's residual post-norm, scaled cosine
    attention and log-spaced continuous position bias (Liu et al. 2021, arXiv 2111.09883). `pretrained_windows`: Swin V2's
    position bias reads coordinates in units of these windows, those that the weights were trained with; 0 stands for the
    stage's own. Raises ArchError when the values make no network.
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
    v2: bool = False
    pretrained_windows: tuple[int, ...] = (0, 0, 0, 0)

    _id: ClassVar[str]
    _name: ClassVar[str]

    def __post_init__(self) -> None:
        # Id and name, once they are known. No cached_property: it would double what an architecture takes, and so would
        # attributes that come later; a search holds thousands.
        for name in ("_id", "_name"):
            object.__setattr__(self, name, "")
        for field in fields(self):
            _require_type(field.name, getattr(self, field.name), field.default)
        # 4 and 4.0 are one value, and must have one id.
        object.__setattr__(self, "mlp_ratio", float(self.mlp_ratio))
        for name in ("depths", "num_heads", "windows", "shifts", "pretrained_windows"):
            if len(getattr(self, name)) != NUM_STAGES:
                raise ArchError(f"{name}: {list(getattr(self, name))} has not one value per stage; give 4 values")
        for name in ("embed_dim", "image_size", "patch_size", "channels", "num_classes"):
            _require_count(name, getattr(self, name))
        for name in ("depths", "num_heads", "windows"):
            for stage, value in enumerate(getattr(self, name), 1):
                _require_count(f"{name}.stage{stage}", value)
        for stage, window in enumerate(self.pretrained_windows, 1):
            if window:
                _require_count(f"pretrained_windows.stage{stage}", window)
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

    @property
    def windows_per_side(self) -> tuple[int, ...]:
        """Windows per side of each stage's grid, those counted that reach into its padding."""
        return tuple(
            -(-tokens // min(window, tokens)) for window, tokens in zip(self.windows, self.tokens, strict=True)
        )

    def is_padded(self, stage: int) -> bool:
        """Whether `stage` (0-based) pads its grid, because its window does not divide it."""
        return self.tokens[stage] % min(self.windows[stage], self.tokens[stage]) != 0

    def has_shift(self, stage: int, block: int) -> bool:
        """Whether `block` (0-based) of `stage` (0-based) shifts its windows: every other block, never a single window."""
        return self.shifts[stage] and block % 2 == 1 and 1 < self.windows[stage] < self.tokens[stage]

    def canonical(self) -> Arch:
        """The one spelling of this network: a window no larger than its grid, a shift only where it does something.

        A shift does nothing where one window covers the stage, where a window is one token, and in a stage of one block,
        whose second block would be the first to shift. `pretrained_windows` is 0 wherever it changes nothing, and a unit of
        1 is 2, whose coordinates are the same.
        """
        windows = tuple(min(window, tokens) for window, tokens in zip(self.windows, self.tokens, strict=True))
        shifts = tuple(
            shift and 1 < window < tokens and depth > 1
            for shift, window, tokens, depth in zip(self.shifts, windows, self.tokens, self.depths, strict=True)
        )
        pretrained = tuple(
            max(units, 2) if self.v2 and window > 1 and units and max(units, 2) != window else 0
            for units, window in zip(self.pretrained_windows, windows, strict=True)
        )
        changed = (windows, shifts, pretrained) != (self.windows, self.shifts, self.pretrained_windows)
        return replace(self, windows=windows, shifts=shifts, pretrained_windows=pretrained) if changed else self

    @property
    def id(self) -> str:
        """`a1-` and 12 hex digits over the canonical form.

        Only values that differ from the defaults enter the hash: a field added later leaves the ids of today alone, and a
        default never changes.
        """
        if not self._id:
            object.__setattr__(self, "_id", self._hashed())
        return self._id

    def _hashed(self) -> str:
        canonical = self.canonical()
        differing = {
            f.name: getattr(canonical, f.name) for f in fields(Arch) if getattr(canonical, f.name) != f.default
        }
        digest = hashlib.sha256(json.dumps(differing, sort_keys=True).encode()).hexdigest()
        return f"a1-{digest[:12]}"

    @property
    def name(self) -> str:
        """The name in the grammar of `explorer.arch.names`: `Swin-B`, `Swin-Free-B-BR-DR14`, `Swin-B-W14.7.14.7-S0100`."""
        from explorer.arch.names import spell

        if not self._name:
            object.__setattr__(self, "_name", spell(self.canonical()))
        return self._name

    def proxy(self, scale: ProxyScale, *, channels: int, num_classes: int) -> Arch:
        """The scaled-down copy that is trained in this architecture's place: same windows per stage and shifts, and same
        depths but for a stage 3 that is divided.

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
            depths=(*canonical.depths[:2], -(-canonical.depths[2] // scale.depth3_divisor), *canonical.depths[3:]),
            num_heads=tuple(heads << stage for stage in range(NUM_STAGES)),
            windows=tuple(window // scale.from_unit * scale.unit for window in canonical.windows),
            image_size=canonical.tokens[0] // scale.from_unit * scale.unit * scale.patch_size,
            patch_size=scale.patch_size,
            channels=channels,
            num_classes=num_classes,
            pretrained_windows=(0,) * NUM_STAGES,
        )
        if proxy.canonical().shifts != proxy.shifts:
            raise SpaceError(
                f"proxy.unit: {scale.unit} turns windows {list(canonical.windows)} into {list(proxy.windows)}, and "
                f"depth3_divisor {scale.depth3_divisor} turns {canonical.depths[2]} blocks of stage 3 into {proxy.depths[2]}; "
                "a window of one token, or a stage of one block, cannot shift: use a larger unit, or a smaller divisor"
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
