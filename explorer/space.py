"""The design space: a YAML file -> dimensions -> `Arch`.

Owns the file format (`version: 1`), where a file is found, the sampler's dimensions and the size of the space. A sampler
sees one joint window/shift choice per stage over canonical values, so that it never meets two names for one network.
Suggesting points is `explorer.search`'s business.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, PositiveInt

from explorer.arch import NUM_STAGES, PRESETS, Arch, ProxyScale, divisors, parse_name, sizes_in, window_unit
from explorer.document import Document, Version, read
from explorer.errors import ArchError, SpaceError

#: One value of a dimension, as a sampler sees it.
Choice = str | int | bool
#: One choice per dimension, by the dimension's name.
Point = Mapping[str, Choice]

_ValueT = TypeVar("_ValueT")
_Choices = Annotated[list[_ValueT], Field(min_length=1)]


class _WindowChoices(Document):
    stage1: _Choices[PositiveInt] | None = None
    stage2: _Choices[PositiveInt] | None = None
    stage3: _Choices[PositiveInt] | None = None
    stage4: _Choices[PositiveInt] | None = None


class _ShiftChoices(Document):
    stage1: _Choices[bool] | None = None
    stage2: _Choices[bool] | None = None
    stage3: _Choices[bool] | None = None
    stage4: _Choices[bool] | None = None


class _Search(Document):
    windows: _WindowChoices = _WindowChoices()
    shifts: _ShiftChoices = _ShiftChoices()
    br: _Choices[bool] | None = None
    depth3: _Choices[PositiveInt] | None = None


class _Proxy(Document):
    unit: PositiveInt = ProxyScale.unit
    embed_dim: PositiveInt = ProxyScale.embed_dim
    head_dim: PositiveInt = ProxyScale.head_dim
    patch_size: PositiveInt = ProxyScale.patch_size


class _SpaceFile(Document):
    version: Version
    base: str
    search: _Search
    proxy: _Proxy = _Proxy()
    seeds: list[str] = []


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

    @staticmethod
    def load(path: str | Path, *, image_size: int | None = None) -> Space:
        """Reads a space file: a path, else a name in `spaces/`, else one that ships with the package.

        `image_size` (pixels) replaces the base's. Raises SpaceError with file, field path, value and what is allowed.
        """
        found = find(path)
        file = read(found, _SpaceFile, SpaceError)
        try:
            base = parse_name(file.base, **({} if image_size is None else {"image_size": image_size}))
        except ArchError as error:
            raise SpaceError(f"{found}: base: {error}") from None
        return _from_file(found, file, base)

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
        """How many different networks the raw points build."""
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

    def known_networks(self) -> tuple[Arch, ...]:
        """The base model (also where the search leaves it out), the file's seeds and the presets inside the space."""
        inside = (arch for arch in presets_like(self.base) if self.point(arch) is not None)
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
        }
        return "s1-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def describe(self) -> dict[str, Any]:
        """What is searched, as JSON-ready values under the names of the space file."""
        return {
            "windows": {f"stage{i}": sorted(choices) for i, choices in enumerate(self.windows, 1)},
            "shifts": {f"stage{i}": sorted(choices) for i, choices in enumerate(self.shifts, 1)},
            "br": sorted(self.br),
            "depth3": sorted(self.depth3),
        }

    def _pairs(self, stage: int) -> list[tuple[int, bool]]:
        """Canonical (window, shift) choices of a stage, each once."""
        tokens = self.base.tokens[stage]
        pairs = itertools.product(self.windows[stage], self.shifts[stage])
        return sorted({(min(window, tokens), shift and 1 < window < tokens) for window, shift in pairs})


def presets_like(base: Arch) -> list[Arch]:
    """The published models with the input and output sizes of `base`, each once."""
    archs = (parse_name(name, **_sizes(base)) for name in PRESETS)
    return list({arch.id: arch for arch in archs}.values())


def _sizes(base: Arch) -> dict[str, int]:
    """What all architectures of a space share with its base."""
    return {field: getattr(base, field) for field in ("image_size", "patch_size", "channels", "num_classes")}


SHIPPED: Final = Path(__file__).parent / "spaces"


def find(path: str | Path) -> Path:
    """Where a space file lies: a path, `spaces/NAME` below the working folder, or inside the package.

    `.yaml` may be left out. Raises SpaceError that lists what ships with the package.
    """
    names = [str(path)] if Path(path).suffix in (".yaml", ".yml") else [str(path), f"{path}.yaml"]
    # From a source checkout the shipped files lie beside the package, in a wheel inside it.
    folders = (Path(), Path("spaces"), SHIPPED, SHIPPED.parents[1] / "spaces")
    for folder, name in itertools.product(folders, names):
        with contextlib.suppress(OSError):  # a name that no file can have
            if (folder / name).is_file():
                return folder / name
    raise SpaceError(
        f"{path}: no such space file; looked for a path, in spaces/ and in the package ({', '.join(shipped())})"
    )


def shipped() -> list[str]:
    """Names of the space files that ship with the package."""
    return sorted({file.name for folder in (SHIPPED, SHIPPED.parents[1] / "spaces") for file in folder.glob("*.yaml")})


def _from_file(path: Path, file: _SpaceFile, base: Arch) -> Space:
    if any(base.pretrained_windows):
        raise SpaceError(
            f"{path}: base: {base.name}: a space has no pretrained windows (F): its proxies are trained from scratch, and "
            "they cost no latency; leave the suffix out"
        )
    windows = _per_stage(path, "windows", file.search.windows, base.windows)
    shifts = _per_stage(path, "shifts", file.search.shifts, base.shifts)
    for stage, choices in enumerate(windows):
        for window in choices:
            if window > base.tokens[stage]:
                raise SpaceError(
                    f"{path}: search.windows.stage{stage + 1}: {window} is more than the {base.tokens[stage]} tokens per side; "
                    f"use {_either(divisors(base.tokens[stage]))}, or another window up to that, whose grid is padded"
                )
    space = Space(
        name=path.stem,
        base=base,
        windows=windows,
        shifts=shifts,
        br=tuple(sorted(_distinct(path, "search.br", file.search.br or [base.br]))),
        depth3=tuple(sorted(_distinct(path, "search.depth3", file.search.depth3 or [base.depth3]))),
        proxy_scale=_proxy_scale(path, file.proxy, windows, base),
        seeds=tuple(_seed(path, index, name, base) for index, name in enumerate(file.seeds)),
    )
    _require_proxies(path, space)
    for index, seed in enumerate(space.seeds):
        if space.point(seed) is None:
            raise SpaceError(
                f"{path}: seeds[{index}]: {seed.name} is not in the space; allowed: architectures of the space"
            )
    return space


def _per_stage(
    path: Path, key: str, choices: _WindowChoices | _ShiftChoices, base: tuple[_ValueT, ...]
) -> tuple[tuple[_ValueT, ...], ...]:
    return tuple(
        _distinct(path, f"search.{key}.stage{stage}", getattr(choices, f"stage{stage}") or [own])
        for stage, own in enumerate(base, 1)
    )


def _distinct(path: Path, field: str, choices: list[_ValueT]) -> tuple[_ValueT, ...]:
    if len(set(choices)) != len(choices):
        raise SpaceError(f"{path}: {field}: {choices} holds a value twice; give each once")
    return tuple(choices)


def _proxy_scale(path: Path, proxy: _Proxy, windows: tuple[tuple[int, ...], ...], base: Arch) -> ProxyScale:
    every_window = sorted({window for choices in windows for window in choices})
    from_unit = window_unit(every_window, base.tokens)
    if proxy.unit > from_unit:
        raise SpaceError(
            f"{path}: proxy.unit: {proxy.unit} is more than {from_unit}, the largest number that divides all windows "
            f"{every_window} and grids {list(base.tokens)}; choose windows with a larger common divisor, or a smaller unit"
        )
    scale = ProxyScale(from_unit, proxy.unit, proxy.embed_dim, proxy.head_dim, proxy.patch_size)
    try:
        base.proxy(scale, channels=1, num_classes=2)
    except ArchError as error:
        raise SpaceError(f"{path}: proxy: {error}") from None
    except SpaceError as error:
        raise SpaceError(f"{path}: {error}") from None
    return scale


def _require_proxies(path: Path, space: Space) -> None:
    """Every choice of every stage must have a proxy, not the base's alone."""
    base = replace(space.base, depths=tuple(max(2, depth) for depth in space.base.depths))
    for stage, choices in enumerate(map(itertools.product, space.windows, space.shifts)):
        for window, shift in choices:
            windows, shifts = list(base.windows), list(base.shifts)
            windows[stage], shifts[stage] = window, shift
            arch = replace(base, windows=tuple(windows), shifts=tuple(shifts))
            try:
                arch.proxy(space.proxy_scale, channels=1, num_classes=2)
            except (ArchError, SpaceError) as error:
                raise SpaceError(f"{path}: search.windows.stage{stage + 1}: {window}: {error}") from None


def _seed(path: Path, index: int, name: str, base: Arch) -> Arch:
    try:
        seed, given = parse_name(name, **_sizes(base)), sizes_in(name)
    except ArchError as error:
        raise SpaceError(f"{path}: seeds[{index}]: {error}") from None
    for field, value in _sizes(base).items():
        if given.get(field, value) != value:
            raise SpaceError(
                f"{path}: seeds[{index}]: {name}: {field} is the base's, {value}; leave it out of the name"
            )
    return seed


def _spell(window: int, shift: bool) -> str:
    return f"w{window}-shift" if shift else f"w{window}"


def _read_pair(spelled: str) -> tuple[int, bool]:
    window, _, shift = spelled.removeprefix("w").partition("-")
    return int(window), shift == "shift"


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values)) if len(values) <= 2 else f"one of {', '.join(map(str, values))}"
