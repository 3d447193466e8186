"""Space files -> dimensions -> architectures: sizes, points, look-up and every kind of bad file."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.arch import NUM_STAGES, PRESETS, Arch, ProxyScale, parse_name
from explorer.errors import SpaceError
from explorer.space import Dimension, Space, presets_like
from explorer.space.file import find, shipped

TINY = parse_name("Swin-E16x2.2.2.2-R56-P1-N10")
TINY_V2 = parse_name("SwinV2-E16x2.2.2.2-56-P1-N10")
STAGES = tuple(f"stage{stage}" for stage in range(1, NUM_STAGES + 1))
SWINFREE: dict[str, Any] = {
    "version": 1,
    "base": "Swin-B",
    "search": {
        "windows": {"stage1": [7, 14], "stage3": [7, 14]},
        "shifts": {"stage1": [False, True], "stage4": [False, True]},
        "br": [False, True],
        "depth3": [1, 2],
    },
    "proxy": {"unit": 2},
    "seeds": ["Swin-B-W7.7.14.7-DR1"],
}


def write(folder: Path, content: object, name: str = "some.yaml") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(path: str, value: object) -> dict[str, Any]:
    """A valid space file with one field set: `search.br` -> value."""
    document: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SWINFREE))
    *parents, key = path.split(".")
    inner = document
    for parent in parents:
        inner = inner[parent]
    inner[key] = value
    return document


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in SWINFREE.items() if name != key}


def error_of(path: Path) -> str:
    with pytest.raises(SpaceError) as caught:
        Space.load(path)
    return str(caught.value)


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swinfree() -> Space:
    return Space.load("swinfree.yaml")


def network(arch: Arch) -> tuple[object, ...]:
    """What is built, told without `canonical`: window and shift of every block, version, norm and depths."""
    blocks = []
    for stage in range(NUM_STAGES):
        window = min(arch.windows[stage], arch.tokens[stage])
        rolls = arch.shifts[stage] and window < arch.tokens[stage]
        blocks.append(tuple((window, rolls and block % 2 == 1) for block in range(arch.depths[stage])))
    return (arch.v2, arch.br, *blocks)


def raw_archs(space: Space) -> list[Arch]:
    """One architecture for every combination of the choices as the file gives them."""
    return [
        replace(
            space.base,
            windows=choices[:NUM_STAGES],
            shifts=choices[NUM_STAGES : 2 * NUM_STAGES],
            br=choices[-2],
            depths=(*space.base.depths[:2], choices[-1], space.base.depths[3]),
        )
        for choices in itertools.product(*space.windows, *space.shifts, space.br, space.depth3)
    ]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Small spaces around a tiny base, often with a stage of one block and windows that cover or pad their stage."""
    shift_choices = st.sampled_from([(False,), (True,), (False, True), (True, False)])
    window_choices = [
        st.lists(st.integers(1, side // 7).map(lambda n: 7 * n), min_size=1, max_size=2, unique=True)
        for side in TINY.tokens
    ]
    return Space(
        name="drawn",
        base=replace(draw(st.sampled_from([TINY, TINY_V2])), depths=draw(st.tuples(*[st.integers(1, 3)] * NUM_STAGES))),
        windows=tuple(tuple(draw(choices)) for choices in window_choices),
        shifts=tuple(draw(shift_choices) for _ in range(NUM_STAGES)),
        br=draw(shift_choices),
        depth3=tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2, unique=True))),
        proxy_scale=ProxyScale(7),
    )


def test_swinfree_space_has_480_architectures_in_1280_points(swinfree: Space) -> None:
    archs = list(swinfree.archs())
    assert (swinfree.raw_points, swinfree.architectures, len(archs)) == (1280, 480, 480)
    assert len({network(arch) for arch in archs}) == 480


@pytest.mark.parametrize("name", shipped())
def test_shipped_space_counts_what_its_raw_choices_build(name: str) -> None:
    space = Space.load(name)
    raw = raw_archs(space)
    assert space.raw_points == len(raw)
    assert space.architectures == len({network(arch) for arch in raw})


@settings(deadline=None, max_examples=60)
@given(spaces())
def test_architectures_are_those_of_the_raw_choices(space: Space) -> None:
    raw = raw_archs(space)
    archs = list(space.archs())
    assert space.raw_points == len(raw)
    assert space.architectures == len(archs) == len({network(arch) for arch in raw})
    assert {network(arch) for arch in archs} == {network(arch) for arch in raw}
    assert all(arch == arch.canonical() for arch in archs)


@pytest.mark.parametrize(
    ("search", "raw_points", "architectures"),
    [
        ({}, 1, 1),
        ({"depth3": [1, 2]}, 2, 2),
        ({"shifts": {"stage3": [False, True]}, "depth3": [1]}, 2, 1),
        ({"shifts": {"stage3": [False, True]}, "depth3": [1, 2, 3]}, 6, 5),
        ({"windows": {"stage3": [7, 14]}, "shifts": {"stage3": [False, True]}, "depth3": [1, 2]}, 8, 5),
        ({"windows": {"stage4": [7]}, "shifts": {"stage4": [False, True]}, "br": [True, False]}, 4, 2),
        ({"windows": {"stage1": [7, 21, 56]}, "shifts": {"stage1": [False, True]}}, 6, 5),
    ],
)
def test_shift_is_counted_once_where_it_does_nothing(
    tmp_path: Path, search: dict[str, Any], raw_points: int, architectures: int
) -> None:
    space = Space.load(write(tmp_path, {"version": 1, "base": "Swin-T", "search": search}))
    assert (space.raw_points, space.architectures, len(list(space.archs()))) == (
        raw_points,
        architectures,
        architectures,
    )


# -- dimensions and points --------------------------------------------------------------------------------------------


def test_dimensions_join_window_and_shift_and_leave_out_single_choices(swinfree: Space) -> None:
    free_stage = ("w7", "w7-shift", "w14", "w14-shift")
    assert swinfree.dimensions == (
        Dimension("stage1", free_stage),
        Dimension("stage2", free_stage),
        Dimension("stage3", ("w7", "w7-shift", "w14")),
        Dimension("br", (False, True)),
        Dimension("depth3", (10, 12, 14, 16, 18)),
    )


def test_arch_at_a_point_has_the_choices_of_the_point(swinfree: Space) -> None:
    point = {"stage1": "w14-shift", "stage2": "w7", "stage3": "w14", "br": True, "depth3": 12}
    arch = swinfree.arch(point)
    assert (arch.windows, arch.shifts) == ((14, 7, 14, 7), (True, False, False, False))
    assert (arch.br, arch.depths, arch.embed_dim) == (True, (2, 2, 12, 2), 128)


@settings(deadline=None, max_examples=60)
@given(spaces())
def test_point_and_arch_undo_each_other(space: Space) -> None:
    for raw in raw_archs(space):
        point = space.point(raw)
        assert point is not None
        assert space.arch(point) == raw.canonical()
    single_block = {1} & {*space.base.depths[:2], space.base.depths[3], *space.depth3}
    for choices in itertools.product(*(dimension.choices for dimension in space.dimensions)):
        point = dict(zip((dimension.name for dimension in space.dimensions), choices, strict=True))
        if not single_block:  # in a stage of one block two points build the same architecture
            assert space.point(space.arch(point)) == point


@pytest.mark.parametrize(
    "name",
    [
        "Swin-T",
        "Swin-B-DR11",
        "Swin-B-W28.7.7.7",
        "Swin-B-W7.7.7.1",
        "Swin-B-N10",
        "Swin-B-R448",
        "Swin-B-M2",
        "Swin-B-H2.4.8.16",
    ],
)
def test_arch_outside_the_space_has_no_point(swinfree: Space, name: str) -> None:
    assert swinfree.point(parse_name(name)) is None


def test_choice_that_the_file_leaves_out_is_the_base_s(tmp_path: Path) -> None:
    space = Space.load(write(tmp_path, {"version": 1, "base": "Swin-Free-B-BR-DR14", "search": {}}))
    assert space.arch({}) == parse_name("Swin-Free-B-BR-DR14")
    assert space.dimensions == ()


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"stage1": "w9"}, "swinfree: stage1: 'w9' is not in the space; allowed: w7, w7-shift, w14, w14-shift"),
        ({"stage3": "w14-shift"}, "swinfree: stage3: 'w14-shift' is not in the space; allowed: w7, w7-shift, w14"),
        ({"depth3": 11}, "swinfree: depth3: 11 is not in the space; allowed: 10, 12, 14, 16, 18"),
        ({"width": 1}, "swinfree: width: 1 is not in the space; allowed: stage1, stage2, stage3, br, depth3"),
    ],
)
def test_point_outside_the_space_is_refused(swinfree: Space, point: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        swinfree.arch(point)
    assert str(caught.value) == message


def test_known_networks_are_base_seeds_and_presets_inside(tmp_path: Path, swinfree: Space) -> None:
    deep = [name for name in PRESETS if name.startswith(("Swin-B", "Swin-Free-B"))]
    assert [arch.name for arch in swinfree.known_networks()] == deep
    small = Space.load(write(tmp_path, SWINFREE))
    assert [arch.name for arch in small.known_networks()] == ["Swin-B", "Swin-B-W7.7.14.7-DR1"]


def test_known_networks_take_the_sizes_of_the_base(tmp_path: Path) -> None:
    search = {"windows": {"stage2": [7, 14], "stage3": [7, 14]}, "shifts": {s: [False, True] for s in STAGES}}
    space = Space.load(write(tmp_path, {"version": 1, "base": "Swin-T-C1-N10", "search": search}))
    assert [arch.name for arch in space.known_networks()] == ["Swin-T-C1-N10", "Swin-Free-T-C1-N10"]


def test_space_id_tells_what_is_searched_not_how_it_is_written(tmp_path: Path) -> None:
    space = Space.load(write(tmp_path, SWINFREE))
    reordered = changed("search.windows.stage1", [14, 7]) | {"seeds": []}
    assert Space.load(write(tmp_path, reordered, "other.yaml")).id == space.id
    ids = {space.id}
    for path, value in [("search.depth3", [1, 2, 3]), ("search.br", [True]), ("search.windows.stage1", [7, 14, 28])]:
        ids.add(Space.load(write(tmp_path, changed(path, value) | {"seeds": []})).id)
    ids.add(Space.load(write(tmp_path, changed("base", "Swin-B-N10") | {"seeds": []})).id)
    assert len(ids) == 5


# -- Swin V2, padding and sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["T", "S", "B"])
@pytest.mark.parametrize(("family", "unit"), [("Swin", 7), ("SwinV2", 8), ("Swin-Free", 7)])
def test_every_published_size_is_a_base(tmp_path: Path, family: str, unit: int, size: str) -> None:
    space = Space.load(write(tmp_path, {"version": 1, "base": f"{family}-{size}", "search": {"br": [False, True]}}))
    assert space.base == PRESETS[f"{family}-{size}"]
    assert space.proxy_scale == ProxyScale(unit)
    assert [arch.br for arch in space.archs()] == [False, True]


def test_space_around_swin_v2_holds_swin_v2_alone(tmp_path: Path) -> None:
    search = {"windows": {"stage1": [8, 16], "stage4": [8]}, "shifts": {"stage1": [False, True]}, "depth3": [4, 6]}
    space = Space.load(write(tmp_path, {"version": 1, "base": "SwinV2-T", "search": search, "seeds": ["SwinV2-T-DR4"]}))
    assert space.dimensions == (
        Dimension("stage1", ("w8", "w8-shift", "w16", "w16-shift")),
        Dimension("depth3", (4, 6)),
    )
    assert (space.raw_points, space.architectures) == (8, 8)
    assert {arch.v2 for arch in space.archs()} == {True}
    assert space.arch({"stage1": "w16", "depth3": 4}) == parse_name("SwinV2-T-W16.8.8.8-S0110-DR4")
    assert [arch.name for arch in space.known_networks()] == ["SwinV2-T", "SwinV2-T-DR4"]


def test_swin_and_swin_v2_at_the_same_sizes_are_different_spaces(tmp_path: Path) -> None:
    """At 224 pixels both have windows of 7 tokens: nothing but the version tells them apart."""
    search = {"br": [False, True]}
    swin, v2 = (
        Space.load(write(tmp_path, {"version": 1, "base": base, "search": search}))
        for base in ("Swin-B", "SwinV2-B-224")
    )
    assert swin.describe() == v2.describe()
    assert swin.id != v2.id
    assert swin.point(v2.base) is None
    assert v2.point(swin.base) is None
    assert [arch.name for arch in swin.known_networks()] == ["Swin-B", "Swin-B-BR"]
    assert [arch.name for arch in v2.known_networks()] == ["SwinV2-B-224"]


def test_base_with_pretrained_windows_is_refused(tmp_path: Path) -> None:
    file = {"version": 1, "base": "SwinV2-B-384-W24.24.24.12-F12.12.12.6", "search": {"windows": {"stage1": [12, 24]}}}
    assert "base: SwinV2-B-W24.24.24.12-384-F12.12.12.6: a space has no pretrained windows (F)" in error_of(
        write(tmp_path, file)
    )


@pytest.mark.parametrize(
    ("name", "space_id"),
    [("demo", "s1-887ed3499df5"), ("swinfree", "s1-91cbf7131d29"), ("swinfree-large", "s1-253e817afabe")],
)
def test_ids_of_shipped_spaces_are_those_of_version_0_1(name: str, space_id: str) -> None:
    assert Space.load(f"{name}.yaml").id == space_id


def test_spaces_of_swin_and_swin_v2_have_different_ids(tmp_path: Path) -> None:
    search = {"br": [False, True]}
    first = Space.load(write(tmp_path, {"version": 1, "base": "Swin-B", "search": search}))
    second = Space.load(write(tmp_path, {"version": 1, "base": "SwinV2-B-224", "search": search}))
    assert first.id != second.id


@pytest.mark.parametrize("base", ["SwinV2-T-384", "SwinV2-T-224"])
def test_seed_without_a_size_takes_the_base_s(base: str, tmp_path: Path) -> None:
    file = {"version": 1, "base": base, "search": {"br": [False, True]}, "seeds": ["SwinV2-T-BR"]}
    assert [seed.image_size for seed in Space.load(write(tmp_path, file)).seeds] == [int(base[-3:])]


@pytest.mark.parametrize(("base", "seed"), [("SwinV2-T", "SwinV2-T-224-BR"), ("Swin-B-R448", "Swin-B-BR-R224")])
def test_seed_with_another_size_than_the_base_s_is_refused(base: str, seed: str, tmp_path: Path) -> None:
    file = {"version": 1, "base": base, "search": {"br": [False, True]}, "seeds": [seed]}
    assert f"seeds[0]: {seed}: image_size is the base's, " in error_of(write(tmp_path, file))


def test_window_that_does_not_divide_its_grid_is_searched(tmp_path: Path) -> None:
    search = {"windows": {"stage1": [7, 21], "stage2": [21]}, "shifts": {"stage1": [False, True]}}
    space = Space.load(write(tmp_path, {"version": 1, "base": "Swin-T", "search": search}))
    assert space.dimensions == (Dimension("stage1", ("w7", "w7-shift", "w21", "w21-shift")),)
    assert space.proxy_scale.from_unit == 7
    padded = space.arch({"stage1": "w21-shift"})
    assert padded == parse_name("Swin-T-W21.21.7.7")
    assert [padded.is_padded(stage) for stage in range(NUM_STAGES)] == [True, True, False, False]
    assert padded.proxy(space.proxy_scale, channels=1, num_classes=10).windows == (6, 6, 2, 2)
    assert space.point(padded) == {"stage1": "w21-shift"}


def test_window_that_shares_no_unit_with_the_grids_needs_a_smaller_unit(tmp_path: Path) -> None:
    file = {"version": 1, "base": "Swin-T", "search": {"windows": {"stage1": [7, 9]}}}
    assert "proxy.unit: 2 is more than 1, the largest number that divides all windows [7, 9]" in error_of(
        write(tmp_path, file)
    )
    space = Space.load(write(tmp_path, file | {"proxy": {"unit": 1}}))
    assert space.arch({"stage1": "w9-shift"}).windows_per_side == (7, 4, 2, 1)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("Swin-B", "SwinV2-B-224"),
        ("Swin-B-R256", "Swin-Free-B-BR-DR12-R256"),
        ("SwinV2-T", "SwinV2-B"),
        ("SwinV2-T-384", "SwinV2-B-384"),
        ("SwinV2-T-384", "Swin-T-R384"),
        ("Swin-T-R56-P1-C1-N10", "SwinV2-S-56-P1-C1-N10"),
    ],
)
def test_presets_like_a_base_are_all_presets_at_its_sizes(base: str, name: str) -> None:
    arch = parse_name(base)
    alike = presets_like(arch)
    sizes = {(each.image_size, each.patch_size, each.channels, each.num_classes) for each in alike}
    assert sizes == {(arch.image_size, arch.patch_size, arch.channels, arch.num_classes)}
    assert parse_name(name) in alike
    # SwinV2-B and SwinV2-B-224 are one network at one image size.
    assert len({each.id for each in alike}) == len(alike) == len(PRESETS) - 1


def test_presets_that_are_one_network_at_small_grids_come_once() -> None:
    """On a grid of 8 tokens, Swin-Free's windows of 7, 4, 2 and 1 tokens are Swin's."""
    alike = presets_like(parse_name("Swin-T-R8-P1"))
    assert len({each.id for each in alike}) == len(alike)
    names = [each.name for each in alike]
    assert names.count("SwinV2-B-8-P1") == 1
    assert {"Swin-T-R8-P1", "Swin-Free-T-R8-P1"} <= set(names)


def test_presets_whose_windows_pad_are_known_where_the_space_holds_them(tmp_path: Path) -> None:
    search = {"windows": {"stage2": [7, 14], "stage3": [7, 14]}, "shifts": {s: [False, True] for s in STAGES}}
    file = {"version": 1, "base": "Swin-T-R256", "search": search, "proxy": {"unit": 1}}
    space = Space.load(write(tmp_path, file))
    assert [arch.name for arch in space.known_networks()] == ["Swin-T-R256", "Swin-Free-T-R256"]
    assert all(arch.is_padded(0) for arch in space.known_networks())


# -- the input size given by the caller -------------------------------------------------------------------------------


def test_image_size_replaces_that_of_the_base(tmp_path: Path) -> None:
    space = Space.load(write(tmp_path, {"version": 1, "base": "Swin-Free-B", "search": {}}), image_size=448)
    assert space.base == parse_name("Swin-Free-B-R448")


@pytest.mark.parametrize(
    ("image_size", "grids"), [(256, "[64, 32, 16, 8]"), (288, "[72, 36, 18, 9]"), (384, "[96, 48, 24, 12]")]
)
def test_image_size_whose_grids_share_no_unit_with_the_windows_is_refused(image_size: int, grids: str) -> None:
    with pytest.raises(SpaceError) as caught:
        Space.load("swinfree.yaml", image_size=image_size)
    assert str(caught.value).endswith(
        f"swinfree.yaml: proxy.unit: 2 is more than 1, the largest number that divides all windows [7, 14] and grids "
        f"{grids}; choose windows with a larger common divisor, or a smaller unit"
    )


def test_image_size_whose_grids_share_no_unit_is_searched_with_a_unit_of_one(tmp_path: Path) -> None:
    file = {"version": 1, "base": "Swin-T", "search": {"br": [False, True]}, "proxy": {"unit": 1}}
    space = Space.load(write(tmp_path, file), image_size=256)
    assert [arch.name for arch in space.archs()] == ["Swin-T-R256", "Swin-T-BR-R256"]
    proxy = space.base.proxy(space.proxy_scale, channels=1, num_classes=10)
    assert (proxy.windows, proxy.tokens, proxy.windows_per_side) == ((7, 7, 7, 7), (64, 32, 16, 8), (10, 5, 3, 2))


def test_image_size_at_which_a_window_is_larger_than_its_grid_is_refused() -> None:
    with pytest.raises(SpaceError) as caught:
        Space.load("swinfree.yaml", image_size=192)
    assert str(caught.value).endswith(
        "swinfree.yaml: search.windows.stage3: 14 is more than the 12 tokens per side; use one of 1, 2, 3, 4, 6, 12, "
        "or another window up to that, whose grid is padded"
    )


def test_image_size_that_makes_no_grids_is_refused() -> None:
    with pytest.raises(SpaceError) as caught:
        Space.load("swinfree.yaml", image_size=250)
    assert str(caught.value).endswith(
        "swinfree.yaml: base: 'Swin-B': image_size: 250 is not a multiple of 32 (patch_size x 8); use 224 or 256"
    )


@pytest.mark.parametrize(("image_size", "window"), [(224, 7), (256, 8), (384, 12), (512, 16)])
def test_windows_of_swin_v2_follow_the_image_size(tmp_path: Path, image_size: int, window: int) -> None:
    file = {"version": 1, "base": "SwinV2-T", "search": {"br": [False, True]}}
    space = Space.load(write(tmp_path, file), image_size=image_size)
    assert space.base.windows == (window,) * NUM_STAGES
    assert space.proxy_scale.from_unit == window
    proxy = space.base.proxy(space.proxy_scale, channels=1, num_classes=10)
    assert (proxy.v2, proxy.windows, proxy.image_size) == (True, (2, 2, 2, 2), 32)


def test_image_size_gives_the_same_base_as_the_name_with_that_size(tmp_path: Path) -> None:
    space = Space.load(write(tmp_path, {"version": 1, "base": "Swin-B", "search": {}}), image_size=448)
    assert space.base == parse_name("Swin-B-R448")


def test_known_networks_at_another_image_size_are_those_of_that_name(tmp_path: Path) -> None:
    file = {"version": 1, "base": "Swin-B-R448", "search": {"br": [False, True]}}
    space = Space.load(write(tmp_path, file))
    assert [arch.name for arch in space.known_networks()] == ["Swin-B-R448", "Swin-B-BR-R448"]


def test_smaller_image_size_clamps_the_windows_of_the_base(tmp_path: Path) -> None:
    file = {"version": 1, "base": "Swin-B-W8.8.8.8-R256", "search": {}}
    space = Space.load(write(tmp_path, file), image_size=128)
    assert space.base.canonical().windows == (8, 8, 8, 4)


# -- where files are found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.yaml", "mine", "spaces/mine.yaml"])
def test_file_is_found_in_the_spaces_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "spaces").mkdir()
    written = write(tmp_path / "spaces", SWINFREE, "mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert find(name).resolve() == written.resolve()
    assert Space.load(name).name == "mine"


def test_path_goes_before_spaces_folder_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    in_package = find("swinfree")
    assert tmp_path not in in_package.resolve().parents
    (tmp_path / "spaces").mkdir()
    in_folder = write(tmp_path / "spaces", SWINFREE, "swinfree.yaml")
    assert find("swinfree").resolve() == in_folder
    at_path = write(tmp_path, SWINFREE, "swinfree.yaml")
    assert find("swinfree").resolve() == at_path
    assert find(str(in_folder)) == in_folder


@pytest.mark.parametrize("name", shipped())
def test_shipped_space_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert Space.load(name).architectures > 1


@pytest.mark.parametrize("name", ["nosuch", "nosuch.yaml", "folder", "", "a\0b"])
def test_missing_file_is_refused_with_the_spaces_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpaceError) as caught:
        Space.load(name)
    assert str(caught.value).startswith(f"{name}: no such space file; looked for a path, in spaces/ and in the package")
    assert "demo.yaml, swinfree-large.yaml, swinfree.yaml" in str(caught.value)


def test_name_too_long_for_a_file_is_refused() -> None:
    with pytest.raises(SpaceError):
        Space.load("a" * 300)


# -- bad files --------------------------------------------------------------------------------------------------------


BAD_FIELDS: tuple[tuple[str, object, str], ...] = (
    # unknown keys
    ("sed", 1, "sed: unknown key; allowed: version, base, search, limits, proxy, seeds"),
    ("search.wndows", {}, "search.wndows: unknown key; allowed: windows, shifts, br, depth3"),
    (
        "search.windows.stage5",
        [7],
        "search.windows.stage5: unknown key; allowed: stage1, stage2, stage3, stage4",
    ),
    ("proxy.units", 2, "proxy.units: unknown key; allowed: unit, embed_dim, head_dim, patch_size"),
    ("search.1", [7], "search.1: unknown key; allowed: windows, shifts, br, depth3"),
    # versions and bases
    ("version", 2, "version: 2 is not allowed; allowed: 1"),
    ("version", "1", "version: '1' is not a whole number; allowed: 1"),
    ("version", None, "version: None is not a whole number; allowed: 1"),
    ("base", "ResNet-50", "base: 'ResNet-50' is no architecture; allowed: a preset (Swin-T, "),
    ("base", "Swin-B-X", "base: 'Swin-B-X': 'X' is no suffix; allowed: W7.14.14.7"),
    ("base", "Swin-B-F12.12.12.6", "base: 'Swin-B-F12.12.12.6': F is a suffix of SwinV2 alone; leave it out"),
    ("base", "SwinV2-B-250", "base: 'SwinV2-B-250': image_size: 250 is not a multiple of 32 (patch_size x 8); use 224"),
    ("base", 5, "base: 5: input should be a valid string"),
    # wrong types
    ("search", None, "search: None is not a mapping; its keys are: windows"),
    ("search.windows", [7, 14], "search.windows: [7, 14] is not a mapping; its keys are: stage1"),
    ("search.windows.stage1", 7, "search.windows.stage1: 7: input should be a valid list"),
    ("search.windows.stage1", ["7"], "search.windows.stage1[0]: '7': input should be a valid integer"),
    ("search.windows.stage1", [7, True], "search.windows.stage1[1]: True: input should be a valid integer"),
    ("search.windows.stage1", [7.0], "search.windows.stage1[0]: 7.0: input should be a valid integer"),
    ("search.windows.stage1", [None], "search.windows.stage1[0]: None: input should be a valid integer"),
    ("search.shifts.stage2", [0, True], "search.shifts.stage2[0]: 0: input should be a valid boolean"),
    ("search.shifts.stage2", ["on?"], "search.shifts.stage2[0]: 'on?': input should be a valid boolean"),
    ("search.br", True, "search.br: True: input should be a valid list"),
    ("search.depth3", ["ten"], "search.depth3[0]: 'ten': input should be a valid integer"),
    ("seeds", "Swin-B", "seeds: 'Swin-B': input should be a valid list"),
    ("seeds", [1], "seeds[0]: 1: input should be a valid string"),
    ("proxy.unit", "2", "proxy.unit: '2': input should be a valid integer"),
    # values that no architecture can have
    (
        "search.windows.stage1",
        [7, 57],
        "search.windows.stage1: 57 is more than the 56 tokens per side; use one of 1, 2, 4, 7, 8, 14, 28, 56, or "
        "another window up to that, whose grid is padded",
    ),
    (
        "search.windows.stage4",
        [14],
        "search.windows.stage4: 14 is more than the 7 tokens per side; use 1 or 7, or another window up to that, whose "
        "grid is padded",
    ),
    ("search.windows.stage3", [0], "search.windows.stage3[0]: 0: input should be greater than 0"),
    ("search.depth3", [10, 0], "search.depth3[1]: 0: input should be greater than 0"),
    # choices
    ("search.windows.stage1", [], "search.windows.stage1: [] is too short; give at least 1 value(s)"),
    ("search.br", [], "search.br: [] is too short; give at least 1 value(s)"),
    ("search.windows.stage2", [7, 14, 7], "search.windows.stage2: [7, 14, 7] holds a value twice; give each once"),
    ("search.shifts.stage2", [True, True], "search.shifts.stage2: [True, True] holds a value twice; give each once"),
    ("search.depth3", [10, 10], "search.depth3: [10, 10] holds a value twice; give each once"),
    ("search.br", [False, False], "search.br: [False, False] holds a value twice; give each once"),
    # the proxy
    (
        "search.windows.stage1",
        [7, 8],
        "proxy.unit: 2 is more than 1, the largest number that divides all windows [7, 8",
    ),
    (
        "search.windows.stage1",
        [7, 9],
        "proxy.unit: 2 is more than 1, the largest number that divides all windows [7, 9, 14] and grids [56, 28, 14, 7]"
        "; choose windows with a larger common divisor, or a smaller unit",
    ),
    ("proxy.unit", 8, "proxy.unit: 8 is more than 7, the largest number that divides all windows [7, 14]"),
    ("proxy.unit", 0, "proxy.unit: 0: input should be greater than 0"),
    ("proxy.head_dim", 5, "proxy.head_dim: 5 does not divide proxy.embed_dim 32; use one of [1, 2, 4, 8, 16, 32]"),
    # seeds
    ("seeds", ["Swin-B-DR1", "Swin-T"], "seeds[1]: Swin-T is not in the space"),
    ("seeds", ["ResNet"], "seeds[0]: 'ResNet' is no architecture; allowed: a preset"),
    (
        "seeds",
        ["Swin-B-W5.7.7.7-DR1"],
        "seeds[0]: Swin-B-W5.7.7.7-DR1 is not in the space (not one of its points); allowed: architectures of",
    ),
    ("seeds", ["Swin-B-W0.7.7.7"], "seeds[0]: 'Swin-B-W0.7.7.7': windows.stage1: 0 is not a whole number from 1 to"),
    ("seeds", ["SwinV2-B-224-DR1"], "seeds[0]: SwinV2-B-DR1-224 is not in the space"),
)


def test_file_that_the_bad_ones_start_from_is_good(tmp_path: Path) -> None:
    space = Space.load(write(tmp_path, SWINFREE))
    assert (space.raw_points, space.name) == (2**6, "some")


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS, ids=[f"{f}={v}" for f, v, _ in BAD_FIELDS])
def test_bad_field_is_refused_with_file_field_value_and_what_is_allowed(
    tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = write(tmp_path, changed(field, value))
    error = error_of(path)
    assert error.startswith(f"{path}: ")
    assert message in error


@pytest.mark.parametrize("key", ["version", "base", "search"])
def test_missing_key_is_refused(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, without(key))
    assert error_of(path) == f"{path}: {key}: is missing; it is required"


def test_every_bad_field_is_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, changed("search.br", "on") | {"version": 3})
    lines = error_of(path).splitlines()
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in lines] == ["version", "search.br"]


@pytest.mark.parametrize("version", [True, 1.0])
def test_version_of_a_wrong_type_is_refused(tmp_path: Path, version: object) -> None:
    assert "version: " in error_of(write(tmp_path, changed("version", version)))


VALID = "version: 1\nbase: Swin-B\nsearch:\n  br: [off, on]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the document holds None, not a mapping; its keys are: version, base, search, limits, proxy, seeds"),
        ("# nothing\n", "the document holds None, not a mapping"),
        ("- 1\n- 2\n", "the document holds [1, 2], not a mapping"),
        ("Swin-B\n", "the document holds 'Swin-B', not a mapping"),
        (VALID + "  br: [on]\n", "not a valid YAML document: line 5: 'br' is given twice; give it once"),
        (VALID + "version: 1\n", "not a valid YAML document: line 5: 'version' is given twice; give it once"),
        (VALID + "---\nbase: Swin-T\n", "not a valid YAML document: expected a single document"),
        (VALID + "seeds: [Swin-B\n", "not a valid YAML document: "),
        ("\tversion: 1\n", "not a valid YAML document: "),
        (VALID + "seeds: *unknown\n", "not a valid YAML document: found undefined alias"),
        (VALID + "? [1, 2]\n: 3\n", "not a valid YAML document: "),
        (VALID + "1: 2\n", "[1]: 1: keys should be strings"),
        ("[" * 20_000, "not a valid YAML document: "),
        ("search: {depth3: [" + "9" * 5000 + "]}", "not a valid YAML document: "),
        ("\0\0\0", "not a valid YAML document: unacceptable character"),
        ("#" * (1 << 20) + "\n" + VALID, "larger than 1 MiB; is this the right file?"),
        (VALID + "proxy: &self\n  unit: *self\n", "proxy.unit: {'unit': {'unit': {'unit': {...}}}}: input should be a valid integer"),  # noqa: E501
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_text_that_is_no_space_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert error_of(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("content", [bytes(range(256)), b"\xff\xfe\x00version", b"version: 1 # \xe9\n"])
def test_binary_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.yaml"
    path.write_bytes(content)
    assert error_of(path) == f"{path}: not a text file in UTF-8"


@pytest.mark.parametrize("field", ["version: ", "version: 1\nbase: ", "version: 1\nbase: Swin-B\nsearch: "])
def test_python_tag_is_refused_and_nothing_runs(tmp_path: Path, field: str) -> None:
    witness = tmp_path / "witness"
    path = write(tmp_path, f"{field}!!python/object/apply:pathlib.Path.touch [!!python/object:pathlib.Path {{}}]\n")
    assert error_of(path).startswith(
        f"{path}: not a valid YAML document: could not determine a constructor for the tag"
    )
    path = write(tmp_path, f"{field}!!python/object/apply:os.system ['touch {witness}']\n")
    assert "python/object/apply:os.system" in error_of(path)
    assert not witness.exists()


def test_anchors_are_read(tmp_path: Path) -> None:
    text = "version: 1\nbase: Swin-B\nsearch:\n  windows: {stage1: &both [7, 14], stage2: *both}\n"
    assert Space.load(write(tmp_path, text)).windows == ((7, 14), (7, 14), (7,), (7,))


def test_yaml_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["  stage1: &a0 [7, 7, 7, 7, 7, 7, 7, 7, 7, 7]"]
    lines += [f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    path = write(tmp_path, "version: 1\nbase: Swin-B\nsearch:\n" + "\n".join(lines) + "\n")
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from explorer.space import Space\n"
        "Space.load(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    assert "explorer.errors.SpaceError" in finished.stderr
    assert len(finished.stderr) < 10_000


def test_stage_that_a_divisor_leaves_one_block_cannot_shift(tmp_path: Path) -> None:
    search = {"shifts": {"stage3": [False, True]}, "depth3": [2, 18]}
    file = {"version": 1, "base": "Swin-B", "search": search, "proxy": {"depth3_divisor": 2}}
    message = error_of(write(tmp_path, file))
    assert "depth3_divisor 2" in message
    assert "turns 2 blocks of stage 3 into 1" in message


def test_choice_without_a_proxy_is_refused_though_the_base_has_one(tmp_path: Path) -> None:
    search = {"windows": {"stage1": [7, 14]}, "shifts": {"stage1": [False, True]}}
    file = {"version": 1, "base": "Swin-Free-B", "search": search, "proxy": {"unit": 1}}
    message = error_of(write(tmp_path, file))
    assert "search.windows.stage1: 7: proxy.unit: 1" in message
    assert "cannot shift" in message


def test_size_of_a_swin_v2_seed_that_is_not_the_bases_is_refused(tmp_path: Path) -> None:
    file = {"version": 1, "base": "SwinV2-B", "search": {"br": [False, True]}, "seeds": ["SwinV2-B-BR-384"]}
    assert "seeds[0]: SwinV2-B-BR-384: image_size is the base's, 256; leave it out" in error_of(write(tmp_path, file))


def test_size_of_a_seed_that_is_not_the_bases_is_refused(tmp_path: Path) -> None:
    file = {"version": 1, "base": "Swin-B", "search": {"br": [False, True]}, "seeds": ["Swin-B-BR-R448"]}
    assert "seeds[0]: Swin-B-BR-R448: image_size is the base's, 224" in error_of(write(tmp_path, file))
