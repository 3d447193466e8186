"""The design space: a YAML file -> dimensions -> `Arch`.

Owns the sampler's dimensions, the limits and the size of the space; `file` owns the format and where one is found. A sampler
sees one joint window/shift choice per stage over canonical values, so that it never meets two names for one network.
Suggesting points is `explorer.search`'s business.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import PositiveFloat

from explorer.arch import NUM_STAGES, PRESETS, Arch, ProxyScale, parse_name
from explorer.complexity import complexity_of
from explorer.document import Document
from explorer.errors import SpaceError

#: One value of a dimension, as a sampler sees it.
Choice = str | int | bool
#: One choice per dimension, by the dimension's name.
Point = Mapping[str, Choice]

_FP32_BYTES: Final = 4


class Limits(Document):
    """What no architecture may exceed, computed before anything is built; None sets no limit.

    `params_m`: millions of trainable parameters. `flops_g`: billions of multiply-adds for one image. `memory_mib`: deployed
    parameters and the largest activations of one image, in fp32, as `explorer.complexity` counts them.
    """

    params_m: PositiveFloat | None = None
    flops_g: PositiveFloat | None = None
    memory_mib: PositiveFloat | None = None


NO_LIMITS: Final = Limits()


@dataclass(frozen=True)
class Dimension:
    """One categorical choice of the sampler: `stage1` .. `stage4`, `br` or `depth3`."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Space:
    """Every architecture that a search may try.

    `windows` and `shifts` hold the choices of each stage, as the file gives them (one value where nothing is searched).
    `seeds`: architectures to try first, beside the known networks.
    """

    name: str
    base: Arch
    windows: tuple[tuple[int, ...], ...]
    shifts: tuple[tuple[bool, ...], ...]
    br: tuple[bool, ...]
    depth3: tuple[int, ...]
    proxy_scale: ProxyScale
    seeds: tuple[Arch, ...] = ()
    limits: Limits = NO_LIMITS

    @staticmethod
    def load(path: str | Path, *, image_size: int | None = None) -> Space:
        """Reads a space file: a path, else a name in `spaces/`, else one that ships with the package.

        `image_size` (pixels) replaces the base's. Raises SpaceError with file, field path, value and what is allowed.
        """
        from explorer.space.file import load

        return load(path, image_size=image_size)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What a sampler chooses from; a dimension with a single choice is left out.

        `stageN` joins window and shift in canonical form: `w7`, `w7-shift`, `w14`.
        """
        stages = [
            Dimension(f"stage{stage + 1}", tuple(_spell(*pair) for pair in self._pairs(stage)))
            for stage in range(NUM_STAGES)
        ]
        every = (*stages, Dimension("br", self.br), Dimension("depth3", self.depth3))
        return tuple(dimension for dimension in every if len(dimension.choices) > 1)

    def arch(self, point: Point) -> Arch:
        """The canonical architecture at `point`. Raises SpaceError for a name or a choice that is none of the space's."""
        known = {dimension.name: dimension.choices for dimension in self.dimensions}
        for name, choice in point.items():
            if name not in known or choice not in known[name]:
                allowed = ", ".join(map(str, known[name])) if name in known else ", ".join(known)
                raise SpaceError(f"{self.name}: {name}: {choice!r} is not in the space; allowed: {allowed}")
        pairs = [
            _read_pair(str(point[f"stage{stage + 1}"])) if f"stage{stage + 1}" in point else self._pairs(stage)[0]
            for stage in range(NUM_STAGES)
        ]
        depth3 = int(point.get("depth3", self.depth3[0]))
        return replace(
            self.base,
            windows=tuple(window for window, _ in pairs),
            shifts=tuple(shift for _, shift in pairs),
            br=bool(point.get("br", self.br[0])),
            depths=(*self.base.depths[:2], depth3, self.base.depths[3]),
        ).canonical()

    def point(self, arch: Arch) -> dict[str, Choice] | None:
        """The point whose architecture is `arch`, or None where the space does not hold it."""
        arch = arch.canonical()
        values: dict[str, Choice] = {"br": arch.br, "depth3": arch.depth3}
        for stage in range(NUM_STAGES):
            pair = (arch.windows[stage], arch.shifts[stage])
            # A stage of one block is canonical without its shift; any spelling of the window then means the same.
            same = [p for p in self._pairs(stage) if p == pair or (arch.depths[stage] == 1 and p[0] == pair[0])]
            if not same:
                return None
            values[f"stage{stage + 1}"] = _spell(*same[0])
        known = {dimension.name: dimension.choices for dimension in self.dimensions}
        if any(values[name] not in choices for name, choices in known.items()):
            return None
        point = {name: values[name] for name in known}
        return point if self.arch(point).id == arch.id else None

    @property
    def raw_points(self) -> int:
        """Product of all choices as the file gives them."""
        return math.prod(map(len, (*self.windows, *self.shifts, self.br, self.depth3)))

    @cached_property
    def architectures(self) -> int:
        """How many different networks the raw points build, of those within the limits (which are then counted one by one)."""
        if self.limits != Limits():
            return sum(self.excludes(arch) is None for arch in self.archs())
        per_depth = (
            math.prod(
                len({(w, s and depth > 1) for w, s in self._pairs(stage)})
                for stage, depth in enumerate((*self.base.depths[:2], depth3, self.base.depths[3]))
            )
            for depth3 in self.depth3
        )
        return len(self.br) * sum(per_depth)

    def archs(self) -> Iterator[Arch]:
        """Every different architecture once, in the order of the dimensions."""
        seen = set()
        names = [dimension.name for dimension in self.dimensions]
        for choices in itertools.product(*(dimension.choices for dimension in self.dimensions)):
            arch = self.arch(dict(zip(names, choices, strict=True)))
            if arch.id not in seen:
                seen.add(arch.id)
                yield arch

    def excludes(self, arch: Arch) -> str | None:
        """Why the limits exclude `arch`, as `params_m 87.8 > 60`; None where they do not. Costs microseconds."""
        if self.limits == NO_LIMITS:
            return None
        counts = complexity_of(arch)
        memory = _FP32_BYTES * counts.params_deployed + counts.activation_bytes
        values = {
            "params_m": counts.params_trainable / 1e6,
            "flops_g": counts.flops / 1e9,
            "memory_mib": memory / 2**20,
        }
        for name, limit in self.limits:
            if limit is not None and values[name] > limit:
                return f"{name} {values[name]:.1f} > {limit:g}"
        return None

    def holds(self, arch: Arch) -> bool:
        """Whether `arch` is in the space and within its limits."""
        return self.point(arch) is not None and self.excludes(arch) is None

    def known_networks(self) -> tuple[Arch, ...]:
        """The base model (also where the search leaves it out), the file's seeds and the presets inside the space."""
        inside = filter(self.holds, presets_like(self.base))
        return tuple({arch.id: arch for arch in (self.base, *self.seeds, *inside)}.values())

    @cached_property
    def id(self) -> str:
        """`s1-` and 12 hex digits over what can be found in the space; the name, order and seeds do not matter."""
        left_out = {"windows", "shifts", "br", "depths", "pretrained_windows"}
        left_out |= set() if self.base.v2 else {"v2"}  # the id of a space without it leaves the field out
        content = {
            "base": {key: value for key, value in self.base.to_dict().items() if key not in left_out},
            "depths": [*self.base.depths[:2], self.base.depths[3]],
            "stages": [self._pairs(stage) for stage in range(NUM_STAGES)],
            "br": sorted(self.br),
            "depth3": sorted(self.depth3),
            **self._limits(),
        }
        return "s1-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """What is searched, as JSON-ready values under the names of the space file."""
        return {
            "windows": {f"stage{i}": sorted(choices) for i, choices in enumerate(self.windows, 1)},
            "shifts": {f"stage{i}": sorted(choices) for i, choices in enumerate(self.shifts, 1)},
            "br": sorted(self.br),
            "depth3": sorted(self.depth3),
            **self._limits(),
        }

    def _limits(self) -> dict[str, Any]:
        return {} if self.limits == NO_LIMITS else {"limits": self.limits.model_dump(exclude_none=True)}

    def _pairs(self, stage: int) -> list[tuple[int, bool]]:
        """Canonical (window, shift) choices of a stage, each once."""
        tokens = self.base.tokens[stage]
        pairs = itertools.product(self.windows[stage], self.shifts[stage])
        return sorted({(min(window, tokens), shift and 1 < window < tokens) for window, shift in pairs})


def presets_like(base: Arch) -> list[Arch]:
    """The published models with the input and output sizes of `base`, each once."""
    archs = (parse_name(name, **sizes_of(base)) for name in PRESETS)
    return list({arch.id: arch for arch in archs}.values())


def sizes_of(base: Arch) -> dict[str, int]:
    """Input and output sizes: what all architectures of a space share with its base."""
    return {field: getattr(base, field) for field in ("image_size", "patch_size", "channels", "num_classes")}


@cache  # one string for all
def _spell(window: int, shift: bool) -> str:
    return f"w{window}-shift" if shift else f"w{window}"


def _read_pair(spelled: str) -> tuple[int, bool]:
    window, _, shift = spelled.removeprefix("w").partition("-")
    return int(window), shift == "shift"
