"""`Arch`: canonical form, ids, names that read back, refused values and the proxy."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from explorer.arch import NUM_STAGES, PRESETS, Arch, ProxyScale, divisors, heads_for, parse_name, sizes_in, window_unit
from explorer.errors import ArchError, SpaceError

GOLDEN_IDS: dict[str, str] = json.loads((Path(__file__).parent / "golden" / "arch_ids.json").read_text())
OFF = (False,) * NUM_STAGES
#: Ids that version 0.1 gave, as its studies hold them: every suffix of its names, alone or with others.
IDS_OF_0_1 = {
    "Swin-S": "a1-b9344a4288db",
    "Swin-B-BR": "a1-0432f4533802",
    "Swin-Free-T": "a1-51353caf0b98",
    "Swin-Free-B-DR12": "a1-251afcc3ff55",
    "Swin-B-W14.7.14.7-S0100": "a1-9880c571081c",
    "Swin-T-W28.28.14.7-BR-DR9-H1.2.4.8": "a1-294a213c9608",
    "Swin-E64x1.2.3.4-R448-P8-C1-N10-M2.5": "a1-05bb8d81eae5",
    "Swin-E16x2.2.2.2-R56-P1-N10": "a1-1c578cdc3754",
    "Swin-T-W8.8.8.8-R256": "a1-4e53546f3061",
}
#: Ids of Swin V2 and of padded windows, which 0.1 did not have.
IDS_OF_0_2 = {
    "SwinV2-T": "a1-2e017f81cafd",
    "SwinV2-S": "a1-28c32ad4c79b",
    "SwinV2-B": "a1-c8ddbc4d83d1",
    "SwinV2-B-224": "a1-a8365f67d285",
    "SwinV2-B-W24.24.24.12-384-F12.12.12.6": "a1-b8a32a9f394b",
    "Swin-T-W5.7.7.7": "a1-c26e68ef711a",
    "Swin-B-R256": "a1-78a7a814058f",
}


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    """Valid architectures, canonical or not: windows may pad their grid or be larger, shifts may do nothing.

    Units of Swin V2's position bias are given to Swin too, where they mean nothing. One token is left out: its bias has
    the coordinates of a unit of two tokens.
    """
    patch_size = draw(st.sampled_from([1, 2, 3, 4]))
    coarsest_tokens = draw(st.sampled_from([1, 2, 3, 4, 7, 8]))
    tokens = [coarsest_tokens << stage for stage in (3, 2, 1, 0)]
    windows = tuple(
        draw(st.sampled_from([*divisors(side), side, side + 1, side * 3]) | st.integers(1, side)) for side in tokens
    )
    eighth = (coarsest_tokens,) * NUM_STAGES
    embed_dim = draw(st.sampled_from([16, 32, 48, 80, 96, 128]) | st.integers(1, 40))
    own_heads = heads_for(embed_dim)
    choices = [st.sampled_from(divisors(embed_dim << stage)) for stage in range(NUM_STAGES)]
    drawn_heads = draw(st.tuples(*choices))
    divides = all((embed_dim << stage) % heads == 0 for stage, heads in enumerate(own_heads))
    return Arch(
        embed_dim=embed_dim,
        depths=draw(
            st.tuples(*[st.integers(1, 4)] * NUM_STAGES)
            | st.integers(1, 20).map(lambda depth3: (2, 2, depth3, 2))
            | st.sampled_from([(2, 2, 6, 2), (2, 2, 18, 2)])
        ),
        num_heads=own_heads if divides and draw(st.booleans()) else drawn_heads,
        windows=draw(st.sampled_from([windows, windows, eighth, (7,) * NUM_STAGES, (7, 14, 14, 7)])),
        shifts=draw(st.tuples(*[st.booleans()] * NUM_STAGES) | st.sampled_from([OFF, (True,) * NUM_STAGES])),
        br=draw(st.booleans()),
        image_size=tokens[0] * patch_size,
        patch_size=patch_size,
        channels=draw(st.sampled_from([1, 3, 4])),
        num_classes=draw(st.sampled_from([1, 10, 1000])),
        mlp_ratio=draw(st.sampled_from([4.0, 2.0]) | st.integers(100, 1600).map(lambda hundredths: hundredths / 100)),
        v2=draw(st.booleans()),
        pretrained_windows=draw(st.just((0,) * NUM_STAGES) | units(windows)),
    )


def units(windows: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """Units of Swin V2's position bias: the windows' own, spelled out or as 0, or others."""
    return st.tuples(*(st.sampled_from([0, max(2, window), 6, 12]) | st.integers(2, 40) for window in windows))


def swin_224() -> st.SearchStrategy[Arch]:
    """Architectures at 224x224 whose windows are multiples of 7, as the proxy needs them; some pad the grid."""
    windows = st.tuples(*(st.integers(1, side // 7).map(lambda n: 7 * n) for side in (56, 28, 14, 7)))
    return st.builds(
        Arch,
        windows=windows,
        shifts=st.tuples(*[st.booleans()] * NUM_STAGES),
        br=st.booleans(),
        depths=st.tuples(*[st.integers(1, 4)] * NUM_STAGES),
        v2=st.booleans(),
    )


def attention_layout(arch: Arch) -> list[list[tuple[int, int, int]]]:
    """(window, shift in tokens, unit of the position bias) of every block, told without `canonical`.

    A shift rolls by half a window. The unit is 0 in Swin, whose bias has none, and where a window holds no two tokens.
    """
    layout = []
    for stage in range(NUM_STAGES):
        window = min(arch.windows[stage], arch.tokens[stage])
        rolls = arch.shifts[stage] and window < arch.tokens[stage]
        unit = (arch.pretrained_windows[stage] or window) if arch.v2 and window > 1 else 0
        layout.append(
            [(window, window // 2 if rolls and block % 2 else 0, unit) for block in range(arch.depths[stage])]
        )
    return layout


# -- canonical form ---------------------------------------------------------------------------------------------------


def test_window_larger_than_grid_is_clamped() -> None:
    assert Arch(windows=(100, 29, 15, 8)).canonical().windows == (56, 28, 14, 7)


def test_window_as_large_as_grid_is_kept() -> None:
    assert Arch(windows=(56, 28, 14, 7)).canonical().windows == (56, 28, 14, 7)


def test_window_that_does_not_divide_its_grid_is_kept_and_may_shift() -> None:
    canonical = Arch(windows=(9, 27, 4, 5)).canonical()
    assert canonical.windows == (9, 27, 4, 5)
    assert canonical.shifts == (True,) * NUM_STAGES


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"v2": False, "pretrained_windows": (12, 12, 12, 6)}, (0, 0, 0, 0)),
        ({"pretrained_windows": (12, 12, 12, 6)}, (12, 12, 12, 6)),
        ({"pretrained_windows": (8, 12, 8, 6)}, (0, 12, 0, 6)),
        ({"windows": (1, 8, 8, 1), "pretrained_windows": (12, 12, 12, 6)}, (0, 12, 12, 0)),
        ({"windows": (8, 8, 8, 16), "pretrained_windows": (0, 0, 0, 8)}, (0, 0, 0, 0)),
        ({"windows": (8, 8, 8, 16), "pretrained_windows": (0, 0, 0, 16)}, (0, 0, 0, 16)),
    ],
    ids=["no-v2", "all-differ", "own-windows", "windows-of-one-token", "clamped-to-the-unit", "unit-of-the-unclamped"],
)
def test_pretrained_window_is_kept_exactly_where_it_changes_the_bias(
    values: dict[str, Any], expected: tuple[int, ...]
) -> None:
    arch = Arch(**{"image_size": 256, "windows": (8, 8, 8, 8), "v2": True} | values)
    assert arch.canonical().pretrained_windows == expected


def test_shift_is_off_where_one_window_covers_the_stage() -> None:
    assert Arch(windows=(7, 28, 15, 7)).canonical().shifts == (True, False, False, False)


def test_shift_is_off_in_a_stage_of_one_block() -> None:
    assert Arch(depths=(1, 2, 1, 2)).canonical().shifts == (False, True, False, False)


@pytest.mark.parametrize("name", ["Swin-Free-B", "SwinV2-B-384-W24.24.24.12-F12.12.12.6", "Swin-T-W5.7.7.7"])
def test_canonical_arch_is_returned_as_it_is(name: str) -> None:
    arch = parse_name(name)
    assert arch.canonical() is arch


@settings(deadline=None)
@given(archs())
def test_canonical_form_is_its_own_canonical_form(arch: Arch) -> None:
    assert arch.canonical().canonical() == arch.canonical()


@settings(deadline=None)
@given(archs())
def test_canonical_form_has_the_same_attention_layout(arch: Arch) -> None:
    assert attention_layout(arch.canonical()) == attention_layout(arch)


@settings(deadline=None)
@given(archs(), archs())
def test_canonical_shift_is_on_exactly_where_some_block_shifts(arch: Arch, other: Arch) -> None:
    for candidate in (arch, other):
        shifts = tuple(any(shift for _, shift, _ in blocks) for blocks in attention_layout(candidate))
        assert candidate.canonical().shifts == shifts


@settings(deadline=None)
@given(archs())
def test_has_shift_tells_which_blocks_roll(arch: Arch) -> None:
    told = [[arch.has_shift(stage, block) for block in range(arch.depths[stage])] for stage in range(NUM_STAGES)]
    assert told == [[shift > 0 for _, shift, _ in blocks] for blocks in attention_layout(arch)]


def test_window_of_one_token_never_shifts() -> None:
    """Half a window of one token is no token: shift on or off builds the same network."""
    on, off = Arch(windows=(1, 7, 7, 7)), Arch(windows=(1, 7, 7, 7), shifts=(False, True, True, True))
    assert attention_layout(on) == attention_layout(off)
    assert on.id == off.id
    assert not on.has_shift(0, 1)


# -- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "per_side", "padded"),
    [
        ((7, 7, 7, 7), (8, 4, 2, 1), (False, False, False, False)),
        ((56, 28, 14, 7), (1, 1, 1, 1), (False, False, False, False)),
        ((100, 29, 15, 8), (1, 1, 1, 1), (False, False, False, False)),
        ((21, 21, 13, 4), (3, 2, 2, 2), (True, True, True, True)),
        ((55, 9, 14, 1), (2, 4, 1, 7), (True, True, False, False)),
        ((8, 8, 8, 8), (7, 4, 2, 1), (False, True, True, False)),
    ],
)
def test_windows_per_side_and_padding_at_224(
    windows: tuple[int, ...], per_side: tuple[int, ...], padded: tuple[bool, ...]
) -> None:
    arch = Arch(windows=windows)
    assert arch.windows_per_side == per_side
    assert tuple(arch.is_padded(stage) for stage in range(NUM_STAGES)) == padded


@settings(deadline=None)
@given(archs())
def test_windows_cover_the_grid_with_none_to_spare(arch: Arch) -> None:
    for stage, (tokens, per_side) in enumerate(zip(arch.tokens, arch.windows_per_side, strict=True)):
        window = min(arch.windows[stage], tokens)
        assert (per_side - 1) * window < tokens <= per_side * window
        assert arch.is_padded(stage) == (per_side * window > tokens)
    assert arch.canonical().windows_per_side == arch.windows_per_side


# -- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN_IDS)
def test_id_of_a_preset_is_what_earlier_versions_stored(name: str) -> None:
    assert PRESETS[name].id == GOLDEN_IDS[name]


@pytest.mark.parametrize(("name", "expected"), (IDS_OF_0_1 | IDS_OF_0_2).items())
def test_id_of_a_name_never_changes(name: str, expected: str) -> None:
    assert parse_name(name).id == expected


def test_presets_have_different_ids() -> None:
    assert len({arch.id for arch in PRESETS.values()}) == len(PRESETS)


@settings(deadline=None)
@given(archs(), st.tuples(*[st.booleans()] * NUM_STAGES), st.tuples(*[st.integers(0, 9)] * NUM_STAGES), st.data())
def test_networks_have_equal_ids_exactly_when_they_are_equal(
    arch: Arch, shifts: tuple[bool, ...], extra: tuple[int, ...], data: st.DataObject
) -> None:
    """Shifts and units are redrawn and windows that cover their stage grow, which may or may not change the network."""
    grown = (w + more if w >= t else w for w, t, more in zip(arch.windows, arch.tokens, extra, strict=True))
    kept_or_other = st.just(arch.pretrained_windows) | units(arch.canonical().windows)
    other = replace(arch, windows=tuple(grown), shifts=shifts, pretrained_windows=data.draw(kept_or_other))
    assert (other.id == arch.id) == (attention_layout(other) == attention_layout(arch))


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 64},
        {"depths": (2, 2, 16, 2)},
        {"num_heads": (2, 8, 16, 32)},
        {"windows": (7, 7, 14, 7)},
        {"shifts": (True, True, False, True)},
        {"br": True},
        {"image_size": 448},
        {"image_size": 112, "patch_size": 2},
        {"channels": 1},
        {"num_classes": 10},
        {"mlp_ratio": 3.0},
        {"v2": True},
        {"windows": (7, 7, 9, 7)},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_field_enters_the_id(change: dict[str, Any]) -> None:
    assert Arch(**change).id != Arch().id


def test_pretrained_windows_enter_the_id_of_swin_v2_alone() -> None:
    units = (12, 12, 12, 6)
    assert Arch(v2=True, pretrained_windows=units).id != Arch(v2=True).id
    assert Arch(v2=True, pretrained_windows=units).id != Arch(v2=True, pretrained_windows=(12, 12, 12, 5)).id
    assert Arch(pretrained_windows=units).id == Arch().id


def test_arch_that_0_1_stored_has_the_id_that_it_had() -> None:
    stored = {key: value for key, value in Arch().to_dict().items() if key not in ("v2", "pretrained_windows")}
    assert Arch.from_dict(stored) == Arch()
    assert Arch.from_dict(stored).id == GOLDEN_IDS["Swin-B"]


def test_ids_of_equal_values_are_equal_whatever_number_type_they_came_in() -> None:
    from_json, by_name = (
        Arch.from_dict({"embed_dim": 96, "num_heads": [3, 6, 12, 24], "mlp_ratio": 2}),
        Arch(embed_dim=96, num_heads=(3, 6, 12, 24), mlp_ratio=2.0),
    )
    assert from_json == by_name
    assert from_json.id == by_name.id


# -- names ------------------------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(archs())
def test_name_reads_back_as_the_canonical_arch(arch: Arch) -> None:
    assert parse_name(arch.name) == arch.canonical()


@settings(deadline=None)
@given(archs())
def test_names_are_equal_exactly_when_ids_are(arch: Arch) -> None:
    canonical = arch.canonical()
    assert arch.name == canonical.name
    for other in (replace(canonical, br=not canonical.br), replace(canonical, v2=not canonical.v2)):
        assert other.id != arch.id
        assert other.name != arch.name


@settings(deadline=None)
@given(archs())
def test_name_reads_back_in_lower_case(arch: Arch) -> None:
    assert parse_name(arch.name.lower()) == arch.canonical()


@pytest.mark.parametrize("mlp_ratio", [3.14159265, 0.01, 2 / 3])
def test_name_reads_back_with_a_long_mlp_ratio(mlp_ratio: float) -> None:
    assert parse_name(Arch(mlp_ratio=mlp_ratio).name).mlp_ratio == mlp_ratio


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_named_as_published(name: str) -> None:
    assert PRESETS[name].name == name
    assert parse_name(name) == PRESETS[name]


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        (Arch(embed_dim=96, num_heads=(3, 6, 12, 24), depths=(2, 2, 9, 2)), "Swin-T-DR9"),
        (Arch(embed_dim=96, num_heads=(3, 6, 12, 24), depths=(2, 2, 10, 2)), "Swin-S-DR10"),
        (Arch(depths=(2, 2, 6, 2)), "Swin-B-DR6"),
        (Arch(depths=(2, 3, 18, 2)), "Swin-E128x2.3.18.2"),
        (Arch(windows=(7, 14, 14, 7), shifts=OFF, num_heads=(2, 4, 8, 16)), "Swin-Free-B-H2.4.8.16"),
        (Arch(v2=True, image_size=256, windows=(8,) * 4, depths=(2, 2, 6, 2)), "SwinV2-B-DR6"),
        (Arch(v2=True, image_size=256, windows=(8,) * 4, depths=(1, 1, 2, 1)), "SwinV2-E128x1.1.2.1"),
    ],
)
def test_name_takes_the_nearest_published_size(arch: Arch, name: str) -> None:
    assert arch.name == name


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        (Arch(v2=True), "SwinV2-B-224"),
        (Arch(v2=True, windows=(7, 14, 14, 7), shifts=OFF), "SwinV2-B-W7.14.14.7-S0000-224"),
        (Arch(v2=True, image_size=256), "SwinV2-B-W7.7.7.7"),
        (Arch(v2=True, image_size=256, windows=(8, 8, 8, 8)), "SwinV2-B"),
        (Arch(v2=True, image_size=256, windows=(8, 8, 8, 99)), "SwinV2-B"),
        (Arch(v2=True, image_size=256, windows=(16, 16, 16, 8)), "SwinV2-B-W16.16.16.8"),
        (Arch(v2=True, image_size=256, windows=(16, 16, 16, 16)), "SwinV2-B-W16.16.16.8"),
        (
            Arch(v2=True, image_size=384, windows=(24,) * 4, pretrained_windows=(12, 12, 12, 6)),
            "SwinV2-B-W24.24.24.12-384-F12.12.12.6",
        ),
        (
            Arch(v2=True, image_size=384, windows=(12,) * 4, pretrained_windows=(12, 12, 8, 6)),
            "SwinV2-B-384-F0.0.8.6",
        ),
        (Arch(v2=True, br=True, image_size=512, patch_size=8, channels=1), "SwinV2-B-W7.7.7.7-BR-512-P8-C1"),
        (Arch(windows=(5, 7, 7, 7)), "Swin-B-W5.7.7.7"),
        (Arch(image_size=256), "Swin-B-R256"),
        (Arch(image_size=256, windows=(8, 8, 8, 8)), "Swin-B-W8.8.8.8-R256"),
        (Arch(image_size=256, windows=(7, 14, 14, 7), shifts=OFF), "Swin-Free-B-R256"),
    ],
)
def test_name_leaves_out_what_the_family_has_of_its_own(arch: Arch, name: str) -> None:
    assert arch.name == name
    assert parse_name(name) == arch.canonical()


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("SwinV2-T", 8),
        ("SwinV2-T-256", 8),
        ("SwinV2-T-R256", 8),
        ("SwinV2-T-224", 7),
        ("SwinV2-T-192", 6),
        ("SwinV2-T-384", 12),
        ("SwinV2-T-64", 2),
        ("SwinV2-T-32", 1),
        ("SwinV2-T-P2", 16),
        ("SwinV2-T-224-P2", 14),
    ],
)
def test_windows_of_swin_v2_are_an_eighth_of_the_grid(name: str, window: int) -> None:
    arch = parse_name(name)
    assert arch.windows == (window,) * NUM_STAGES
    assert arch.windows_per_side == (8, 4, 2, 1)
    assert not any(arch.is_padded(stage) for stage in range(NUM_STAGES))


def test_windows_of_swin_v2_follow_the_size_that_the_caller_gives() -> None:
    assert parse_name("SwinV2-B", image_size=224) == PRESETS["SwinV2-B-224"]
    assert parse_name("SwinV2-B-224", image_size=256) == PRESETS["SwinV2-B"]
    assert parse_name("SwinV2-B", patch_size=8).windows == (4, 4, 4, 4)
    assert parse_name("SwinV2-B-W8.8.8.8", image_size=224).windows == (8, 8, 8, 7)


@pytest.mark.parametrize(
    ("bare", "spelled"),
    [("Swin-T-448", "Swin-T-R448"), ("Swin-Free-S-BR-448", "Swin-Free-S-BR-R448"), ("SwinV2-S-384", "SwinV2-S-R384")],
)
def test_image_size_reads_with_and_without_its_letter(bare: str, spelled: str) -> None:
    assert parse_name(bare) == parse_name(spelled)
    assert parse_name(bare).image_size == int(bare[-3:])
    assert parse_name(bare).name == (bare if bare.startswith("SwinV2") else spelled)


@pytest.mark.parametrize("family", ["Swin", "SwinV2", "Swin-Free"])
def test_sizes_have_the_published_widths_and_depths(family: str) -> None:
    sizes = {size: PRESETS[f"{family}-{size}"] for size in "TSB"}
    assert {size: arch.embed_dim for size, arch in sizes.items()} == {"T": 96, "S": 96, "B": 128}
    assert {size: arch.depths for size, arch in sizes.items()} == {
        "T": (2, 2, 6, 2),
        "S": (2, 2, 18, 2),
        "B": (2, 2, 18, 2),
    }
    assert {size: arch.num_heads[0] for size, arch in sizes.items()} == {"T": 3, "S": 3, "B": 4}
    assert {arch.v2 for arch in sizes.values()} == {family == "SwinV2"}


def test_presets_of_swin_v2_are_the_published_models() -> None:
    base, small_image = PRESETS["SwinV2-B"], PRESETS["SwinV2-B-224"]
    assert (base.image_size, base.windows, base.tokens) == (256, (8, 8, 8, 8), (64, 32, 16, 8))
    assert (small_image.image_size, small_image.windows, small_image.tokens) == (224, (7, 7, 7, 7), (56, 28, 14, 7))
    for arch in (base, small_image):
        assert (arch.shifts, arch.br, arch.pretrained_windows) == ((True, True, True, False), False, (0, 0, 0, 0))
    assert replace(small_image, v2=False) == PRESETS["Swin-B"]


def test_presets_are_the_published_models() -> None:
    tiny, base, free = PRESETS["Swin-T"], PRESETS["Swin-B"], PRESETS["Swin-Free-B-BR-DR14"]
    assert (tiny.embed_dim, tiny.depths, tiny.num_heads) == (96, (2, 2, 6, 2), (3, 6, 12, 24))
    assert PRESETS["Swin-S"].depths == (2, 2, 18, 2)
    assert (base.embed_dim, base.depths, base.num_heads) == (128, (2, 2, 18, 2), (4, 8, 16, 32))
    assert (base.windows, base.shifts, base.br) == ((7, 7, 7, 7), (True, True, True, False), False)
    assert (free.windows, free.shifts, free.br, free.depths) == ((7, 14, 14, 7), OFF, True, (2, 2, 14, 2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Swin-B-W14.7.14.7-S0100", Arch(windows=(14, 7, 14, 7), shifts=(False, True, False, False))),
        ("Swin-T-H1.2.4.8", Arch(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8))),
        ("Swin-E64x1.2.3.4-M2.5", Arch(embed_dim=64, depths=(1, 2, 3, 4), num_heads=(2, 4, 8, 16), mlp_ratio=2.5)),
        ("  swin-b-r448-p8-c1-n7 ", Arch(image_size=448, patch_size=8, channels=1, num_classes=7)),
        ("Swin-Free-B-W7.7.7.7", Arch(shifts=OFF)),
        ("Swin-Free-B-S0100", Arch(windows=(7, 14, 14, 7), shifts=(False, True, False, False))),
        ("Swin-T-W5.9.4.3", Arch(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), windows=(5, 9, 4, 3))),
        (" swinv2-b-224-s0100 ", Arch(v2=True, shifts=(False, True, False, False))),
        ("SwinV2-B-W7.7.7.7-BR", Arch(v2=True, image_size=256, br=True)),
        ("SwinV2-B-F0.0.0.0-224", Arch(v2=True)),
        ("SwinV2-B-224-F7.7.7.7", Arch(v2=True)),
        ("SwinV2-B-F12.0.12.6-224", Arch(v2=True, pretrained_windows=(12, 0, 12, 6))),
        (
            "SwinV2-E64x1.2.3.4-64-P1",
            Arch(
                embed_dim=64,
                depths=(1, 2, 3, 4),
                num_heads=(2, 4, 8, 16),
                windows=(8, 8, 8, 8),
                image_size=64,
                patch_size=1,
                v2=True,
            ),
        ),
    ],
)
def test_name_spells_these_values(name: str, expected: Arch) -> None:
    assert parse_name(name) == expected.canonical()


BAD_SUFFIXES = (
    *("", "X", "W", "W7.7.7", "W7.7.7.7.7", "S", "S01", "S01110", "S0120", "BRR", "DR", "DRX", "D12", "H3.6.12"),
    *("R", "R-1", "P4.0", "C", "N", "N1E3", "M", "M4.", "M.5", "M-1", "M1E1"),
    *("F", "F12", "F12.12.12", "F12.12.12.6.6", "F12.12.12.X", "F-1.0.0.0", "224R", "RR224", "224.0", "2²4", "V2"),
)


@pytest.mark.parametrize("family", ["Swin", "SwinV2"])
@pytest.mark.parametrize("suffix", BAD_SUFFIXES)
def test_bad_suffix_is_refused_with_the_suffixes_that_exist(suffix: str, family: str) -> None:
    with pytest.raises(ArchError, match=r"is no suffix; allowed: W7\.14\.14\.7, S0110, BR, DR12") as caught:
        parse_name(f"{family}-T-BR-{suffix}" if suffix else f"{family}-T--BR")
    assert repr(suffix.split("-")[0].upper()) in str(caught.value)
    assert str(caught.value).endswith("R224, P4, C3, N1000, M4, F12.12.12.6")


@pytest.mark.parametrize("name", ["Swin-T-F12.12.12.6", "Swin-Free-B-BR-F7.7.7.7", "swin-b-f0.0.0.0"])
def test_pretrained_windows_of_a_family_without_them_are_refused(name: str) -> None:
    with pytest.raises(ArchError) as caught:
        parse_name(name)
    assert str(caught.value) == f"{name!r}: F is a suffix of SwinV2 alone; leave it out"


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "Swin", "Swin-", "Swin-T-", "Swin-L", "Swin-Free", "ResNet-50", "Swin-E32", "Swin-E32x2.2.2"),
        *("SwinV2", "SwinV2-", "SwinV2-T-", "SwinV2-L", "SwinV2-224", "SwinV2T", "SwinV2-E32"),
        *("SwinV3-T", "Swin-V2-T", "SwinV2-Free-T", "Swin-Free-V2-T"),
    ],
)
def test_what_is_no_name_is_refused_with_the_presets(name: str) -> None:
    with pytest.raises(ArchError, match="is no architecture; allowed: a preset") as caught:
        parse_name(name)
    assert repr(name) in str(caught.value)
    assert all(preset in str(caught.value) for preset in PRESETS)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Swin-T-BR-BR", "br"),
        ("Swin-T-DR4-DR4", "depth3"),
        ("Swin-T-R448-R224", "image_size"),
        ("Swin-T-S0000-S0000", "shifts"),
        ("Swin-T-448-448", "image_size"),
        ("SwinV2-T-224-R224", "image_size"),
        ("SwinV2-T-F12.12.12.6-F0.0.0.0", "pretrained_windows"),
    ],
)
def test_suffix_given_twice_is_refused(name: str, field: str) -> None:
    with pytest.raises(ArchError, match=rf"gives {field} a second time; give it once"):
        parse_name(name)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Swin-T-W0.7.7.7", "windows.stage1: 0"),
        ("Swin-T-W7.7.1000001.7", "windows.stage3: 1000001"),
        ("Swin-T-225", "image_size: 225"),
        ("Swin-T-12", "image_size: 12"),
        ("SwinV2-T-225", "image_size: 225"),
        ("SwinV2-T-0", "image_size: 0"),
        ("SwinV2-T-P0", "patch_size: 0"),
        ("SwinV2-T-F12.1000001.12.6", "pretrained_windows.stage2: 1000001"),
        ("Swin-T-H5.6.12.24", "num_heads.stage1: 5"),
        ("Swin-T-R225", "image_size: 225"),
        ("Swin-T-DR0", "depths.stage3: 0"),
        ("Swin-T-M17", "mlp_ratio: 17.0"),
        ("Swin-E0x1.1.1.1", "embed_dim: 0"),
    ],
)
def test_name_of_an_impossible_network_tells_the_name_and_the_field(name: str, field: str) -> None:
    with pytest.raises(ArchError) as caught:
        parse_name(name)
    assert str(caught.value).startswith(f"{name!r}: {field} ")


def test_number_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(ArchError):
        parse_name("Swin-E" + "9" * 5000 + "x1.1.1.1")


def test_absurdly_wide_arch_is_refused_at_once() -> None:
    program = "from explorer.arch import parse_name\nparse_name('Swin-E99999999999x1.1.1.1')"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=4, check=False)
    assert "ArchError" in finished.stderr


# -- refused values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windows": (7, 0, 7, 7)}, "windows.stage2: 0 is not a whole number from 1 to 1,000,000"),
        ({"windows": (7, 7, -4, 7)}, "windows.stage3: -4 is not a whole number from 1 to 1,000,000"),
        (
            {"pretrained_windows": (12, 12, 6)},
            "pretrained_windows: [12, 12, 6] has not one value per stage; give 4 values",
        ),
        (
            {"pretrained_windows": (0, -6, 0, 0)},
            "pretrained_windows.stage2: -6 is not a whole number from 1 to 1,000,000",
        ),
        ({"pretrained_windows": (0, 0, 6.0, 0)}, "pretrained_windows.stage3: 6.0 is not a whole number"),
        ({"pretrained_windows": (False, 0, 0, 0)}, "pretrained_windows.stage1: False is not a whole number"),
        (
            {"v2": True, "pretrained_windows": (0, 0, 0, 1_000_001)},
            "pretrained_windows.stage4: 1000001 is not a whole number from 1 to 1,000,000",
        ),
        (
            {"num_heads": (4, 8, 16, 48)},
            "num_heads.stage4: 48 heads do not divide 1024 channels; use one of "
            "[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]",
        ),
        ({"image_size": 230}, "image_size: 230 is not a multiple of 32 (patch_size x 8); use 224 or 256"),
        ({"image_size": 16}, "image_size: 16 is not a multiple of 32 (patch_size x 8); use 32"),
        ({"depths": (2, 2, 18)}, "depths: [2, 2, 18] has not one value per stage; give 4 values"),
        ({"shifts": (True,) * 5}, "shifts: [True, True, True, True, True] has not one value per stage; give 4 values"),
        ({"depths": (2, 0, 18, 2)}, "depths.stage2: 0 is not a whole number from 1 to 1,000,000"),
        ({"depths": (2, 2, True, 2)}, "depths.stage3: True is not a whole number"),
        ({"windows": (7, 7, 7, "7")}, "windows.stage4: '7' is not a whole number"),
        ({"windows": (7, 7, 7, 7.0)}, "windows.stage4: 7.0 is not a whole number"),
        ({"embed_dim": True}, "embed_dim: True is not a whole number"),
        ({"embed_dim": -96}, "embed_dim: -96 is not a whole number from 1 to 1,000,000"),
        ({"image_size": 224.0}, "image_size: 224.0 is not a whole number"),
        ({"patch_size": 0}, "patch_size: 0 is not a whole number from 1 to 1,000,000"),
        ({"channels": None}, "channels: None is not a whole number"),
        ({"num_classes": 0}, "num_classes: 0 is not a whole number from 1 to 1,000,000"),
        ({"mlp_ratio": 0.0}, "mlp_ratio: 0.0 is not in the range (0, 16]"),
        ({"mlp_ratio": 16.5}, "mlp_ratio: 16.5 is not in the range (0, 16]"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio: nan is not in the range (0, 16]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_invalid_value_is_refused_with_field_value_and_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchError) as caught:
        Arch(**values)
    assert str(caught.value) == message


WRONG_TYPES: tuple[dict[str, Any], ...] = (
    {"br": 1},
    {"br": "no"},
    {"shifts": (0, 1, 0, 1)},
    {"shifts": ("off",) * 4},
    {"windows": 7},
    {"mlp_ratio": "4"},
    {"mlp_ratio": True},
    {"v2": 2},
    {"v2": None},
    {"pretrained_windows": 12},
    {"pretrained_windows": None},
)


@pytest.mark.parametrize("values", WRONG_TYPES, ids=str)
def test_value_of_a_wrong_type_is_refused_at_construction(values: dict[str, Any]) -> None:
    with pytest.raises(ArchError, match=next(iter(values))):
        Arch(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"window": [7, 7, 7, 7]},
            "window: no field of an architecture; allowed: embed_dim, depths, num_heads, windows",
        ),
        ({"windows": "7777"}, "windows: '7777' is not a list of 4 values, one per stage"),
        ({"windows": None}, "windows: None is not a list of 4 values, one per stage"),
        ({"windows": [7, 7, 7, 7.0]}, "windows.stage4: 7.0 is not a whole number"),
        ({"windows": [7, 7, 7, True]}, "windows.stage4: True is not a whole number"),
        ({"windows": [7, 7, 7]}, "windows: [7, 7, 7] has not one value per stage; give 4 values"),
        ({"shifts": [0, 1, 0, 1]}, "shifts.stage1: 0 is not true or false"),
        ({"br": 1}, "br: 1 is not true or false"),
        ({"br": "true"}, "br: 'true' is not true or false"),
        ({"embed_dim": True}, "embed_dim: True is not a whole number"),
        ({"embed_dim": "128"}, "embed_dim: '128' is not a whole number"),
        ({"mlp_ratio": True}, "mlp_ratio: True is not a number"),
        ({"mlp_ratio": "4"}, "mlp_ratio: '4' is not a number"),
        ({"v2": 1}, "v2: 1 is not true or false"),
        ({"v2": "true"}, "v2: 'true' is not true or false"),
        ({"pretrained_windows": 12}, "pretrained_windows: 12 is not a list of 4 values, one per stage"),
        ({"pretrained_windows": [0, 0, 0, "6"]}, "pretrained_windows.stage4: '6' is not a whole number"),
        ({"pretrained_window": [0, 0, 0, 6]}, "pretrained_window: no field of an architecture; allowed: embed_dim"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_from_dict_refuses_unknown_fields_and_wrong_types(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchError) as caught:
        Arch.from_dict(values)
    assert str(caught.value).startswith(message)


@settings(deadline=None)
@given(archs())
def test_from_dict_reads_what_to_dict_wrote_through_json(arch: Arch) -> None:
    read = Arch.from_dict(json.loads(json.dumps(arch.to_dict())))
    assert read == arch
    assert read.id == arch.id
    assert hash(read) == hash(arch)


def test_divisors_and_window_unit() -> None:
    assert divisors(28) == [1, 2, 4, 7, 14, 28]
    assert window_unit([7, 14], (56, 28, 14, 7)) == 7
    assert window_unit([7, 8], (56, 28, 14, 7)) == 1
    assert window_unit([8, 16], (64, 32, 16, 8)) == 8
    assert window_unit([7, 21, 49], (56, 28, 14, 7)) == 7
    assert window_unit([12, 18], (96, 48, 24, 12)) == 6


# -- proxy ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(swin_224(), st.sampled_from([2, 3, 4, 7]), st.sampled_from([1, 2, 4]))
def test_proxy_keeps_windows_per_stage_shifts_depths_and_norm(arch: Arch, unit: int, patch_size: int) -> None:
    proxy = arch.proxy(ProxyScale(7, unit=unit, patch_size=patch_size), channels=1, num_classes=10)
    canonical = arch.canonical()
    for stage in range(NUM_STAGES):
        per_side = math.ceil(canonical.tokens[stage] / canonical.windows[stage])
        assert math.ceil(proxy.tokens[stage] / proxy.windows[stage]) == per_side == proxy.windows_per_side[stage]
        assert proxy.is_padded(stage) == canonical.is_padded(stage)
        shifts = [canonical.has_shift(stage, block) for block in range(canonical.depths[stage])]
        assert [proxy.has_shift(stage, block) for block in range(proxy.depths[stage])] == shifts
    assert (proxy.depths, proxy.br, proxy.shifts) == (canonical.depths, canonical.br, canonical.shifts)
    assert proxy.v2 == canonical.v2
    assert proxy == proxy.canonical()


def test_proxy_divides_the_depth_of_stage_3_and_keeps_different_depths_apart() -> None:
    scale = ProxyScale(7, depth3_divisor=2)
    proxies = [parse_name(f"Swin-Free-B-DR{x}").proxy(scale, channels=1, num_classes=10) for x in (10, 12, 14, 16, 18)]
    assert [proxy.depths for proxy in proxies] == [(2, 2, depth, 2) for depth in (5, 6, 7, 8, 9)]


def test_scales_are_told_apart_by_a_divisor_only_where_there_is_one() -> None:
    assert "depth3_divisor" not in ProxyScale(7).to_dict()
    assert ProxyScale(**ProxyScale(7, depth3_divisor=2).to_dict()) == ProxyScale(7, depth3_divisor=2)


def test_proxy_takes_its_sizes_from_the_scale() -> None:
    scale = ProxyScale(7, unit=2, embed_dim=48, head_dim=12, patch_size=2)
    proxy = PRESETS["Swin-Free-B"].proxy(scale, channels=1, num_classes=10)
    assert (proxy.embed_dim, proxy.num_heads, proxy.windows) == (48, (4, 8, 16, 32), (2, 4, 4, 2))
    assert (proxy.image_size, proxy.patch_size, proxy.tokens) == (32, 2, (16, 8, 4, 2))
    assert (proxy.channels, proxy.num_classes) == (1, 10)


@pytest.mark.parametrize(
    ("name", "unit", "windows", "image_size"),
    [
        ("SwinV2-T", 8, (2, 2, 2, 2), 32),
        ("SwinV2-S", 8, (2, 2, 2, 2), 32),
        ("SwinV2-B", 8, (2, 2, 2, 2), 32),
        ("SwinV2-B-224", 7, (2, 2, 2, 2), 32),
        ("SwinV2-T-W16.16.16.8", 8, (4, 4, 4, 2), 32),
        ("SwinV2-T-W24.24.16.8", 8, (6, 6, 4, 2), 32),
        ("SwinV2-B-W24.24.24.12-384-F12.12.12.6", 12, (4, 4, 4, 2), 32),
        ("Swin-T-W21.21.7.7", 7, (6, 6, 2, 2), 32),
        ("Swin-B-W49.7.7.7-R448", 7, (14, 2, 2, 2), 64),
    ],
)
def test_proxy_has_windows_and_grids_in_the_unit_of_the_proxy(
    name: str, unit: int, windows: tuple[int, ...], image_size: int
) -> None:
    arch = parse_name(name)
    proxy = arch.proxy(ProxyScale(unit), channels=1, num_classes=10)
    assert (proxy.windows, proxy.image_size) == (windows, image_size)
    assert proxy.windows_per_side == arch.windows_per_side
    assert (proxy.v2, proxy.depths, proxy.shifts) == (arch.v2, arch.depths, arch.shifts)
    assert proxy == proxy.canonical()


def test_proxy_of_a_padded_window_pads_by_as_many_windows() -> None:
    """21 of 56 tokens: three windows a side, the third for a third in the padding; 6 of 16 in the proxy."""
    arch = Arch(windows=(21, 7, 7, 7))
    proxy = arch.proxy(ProxyScale(7), channels=1, num_classes=10)
    assert (proxy.tokens[0], proxy.windows[0], proxy.windows_per_side[0]) == (16, 6, 3)
    assert arch.is_padded(0)
    assert proxy.is_padded(0)
    assert proxy.has_shift(0, 1)


def test_proxy_has_no_pretrained_windows() -> None:
    """It is trained from scratch, on windows that no weights were trained with."""
    proxy = parse_name("SwinV2-B-224-F12.12.12.6").proxy(ProxyScale(7), channels=1, num_classes=10)
    assert proxy.pretrained_windows == (0, 0, 0, 0)


@settings(deadline=None)
@given(swin_224(), swin_224())
def test_different_networks_have_different_proxies(arch: Arch, other: Arch) -> None:
    assume(arch.id != other.id)
    scale = ProxyScale(7)
    proxies = [each.proxy(scale, channels=1, num_classes=10).id for each in (arch, other)]
    assert proxies[0] != proxies[1]


@pytest.mark.parametrize(
    ("arch", "scale", "message"),
    [
        (Arch(windows=(8, 7, 7, 7)), ProxyScale(7), "proxy: windows.stage1: 8 is not a multiple of 7"),
        (Arch(windows=(7, 7, 14, 1)), ProxyScale(7), "proxy: windows.stage4: 1 is not a multiple of 7"),
        (Arch(), ProxyScale(8), "proxy: windows.stage1: 7 is not a multiple of 8"),
        (Arch(image_size=256), ProxyScale(7), "proxy: tokens.stage1: 64 is not a multiple of 7"),
        (PRESETS["SwinV2-T"], ProxyScale(7), "proxy: windows.stage1: 8 is not a multiple of 7"),
        (Arch(windows=(21, 21, 9, 7)), ProxyScale(7), "proxy: windows.stage3: 9 is not a multiple of 7"),
        (
            Arch(v2=True),
            ProxyScale(7, unit=1),
            "proxy.unit: 1 turns windows [7, 7, 7, 7] into [1, 1, 1, 1], and ",
        ),
        (
            Arch(image_size=256, windows=(16, 16, 16, 8)),
            ProxyScale(16),
            "proxy: windows.stage4: 8 is not a multiple of 16",
        ),
        (Arch(), ProxyScale(7, embed_dim=32, head_dim=12), "proxy.head_dim: 12 does not divide proxy.embed_dim 32; "),
    ],
)
def test_proxy_that_cannot_be_scaled_is_refused(arch: Arch, scale: ProxyScale, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        arch.proxy(scale, channels=1, num_classes=10)
    assert str(caught.value).startswith(message)
    assert "use " in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"), [("SwinV2-T-F1.0.0.0", "SwinV2-T-F2.0.0.0"), ("SwinV2-T-W2.8.8.8-F1.0.0.0", "SwinV2-T-W2.8.8.8")]
)
def test_pretrained_window_of_one_token_is_that_of_two(one: str, other: str) -> None:
    """Both give the same coordinates: offsets are divided by the window less one, at least 1."""
    assert parse_name(one).id == parse_name(other).id


@pytest.mark.parametrize(
    ("name", "sizes"), [("SwinV2-T-384-N10", {"image_size": 384, "num_classes": 10}), ("Swin-B-BR", {})]
)
def test_sizes_in_a_name_are_those_it_spells(name: str, sizes: dict[str, int]) -> None:
    assert sizes_in(name) == sizes
