"""Space files: where one is found, what it may hold and how it becomes a `Space`. Format `version: 1`."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, TypeVar

from pydantic import Field, PositiveInt

from explorer.arch import Arch, ProxyScale, divisors, parse_name, sizes_in, window_unit
from explorer.document import Document, Version, read
from explorer.errors import ArchError, SpaceError
from explorer.space import NO_LIMITS, Limits, Space, sizes_of

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
    depth3_divisor: PositiveInt = ProxyScale.depth3_divisor


class _SpaceFile(Document):
    version: Version
    base: str
    search: _Search
    limits: Limits = NO_LIMITS
    proxy: _Proxy = _Proxy()
    seeds: list[str] = []


def load(path: str | Path, *, image_size: int | None = None) -> Space:
    """As `Space.load`."""
    found = find(path)
    file = read(found, _SpaceFile, SpaceError)
    try:
        base = parse_name(file.base, **({} if image_size is None else {"image_size": image_size}))
    except ArchError as error:
        raise SpaceError(f"{found}: base: {error}") from None
    return _from_file(found, file, base)


SHIPPED: Final = Path(__file__).parents[1] / "spaces"


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
        limits=file.limits,
        seeds=tuple(_seed(path, index, name, base) for index, name in enumerate(file.seeds)),
    )
    _require_proxies(path, space)
    if not space.architectures:
        raise SpaceError(
            f"{path}: limits: {file.limits.model_dump(exclude_none=True)} leave no architecture; raise them"
        )
    for index, seed in enumerate(space.seeds):
        if not space.holds(seed):
            why = space.excludes(seed) or "not one of its points"
            raise SpaceError(
                f"{path}: seeds[{index}]: {seed.name} is not in the space ({why}); allowed: architectures of the space"
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
    scale = ProxyScale(from_unit, **proxy.model_dump())
    try:
        base.proxy(scale, channels=1, num_classes=2)
    except ArchError as error:
        raise SpaceError(f"{path}: proxy: {error}") from None
    except SpaceError as error:
        raise SpaceError(f"{path}: {error}") from None
    return scale


def _require_proxies(path: Path, space: Space) -> None:
    """Every choice of every stage must have a proxy, not the base's alone."""
    depths = [max(2, depth) for depth in space.base.depths]
    depths[2] = min((depth for depth in space.depth3 if depth > 1), default=2 * space.proxy_scale.depth3_divisor)
    base = replace(space.base, depths=tuple(depths))
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
        seed, given = parse_name(name, **sizes_of(base)), sizes_in(name)
    except ArchError as error:
        raise SpaceError(f"{path}: seeds[{index}]: {error}") from None
    for field, value in sizes_of(base).items():
        if given.get(field, value) != value:
            raise SpaceError(
                f"{path}: seeds[{index}]: {name}: {field} is the base's, {value}; leave it out of the name"
            )
    return seed


def _either(values: list[int]) -> str:
    return " or ".join(map(str, values)) if len(values) <= 2 else f"one of {', '.join(map(str, values))}"
