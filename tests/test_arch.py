"""`Arch`: canonical form, ids, names that read back, refused values and the proxy."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from explorer.arch import NUM_STAGES, PRESETS, Arch, ProxyScale, divisors, heads_for, parse_name, window_unit
from explorer.errors import ArchError, SpaceError

GOLDEN_IDS: dict[str, str] = json.loads((Path(__file__).parent / "golden" / "arch_ids.json").read_text())
OFF = (False,) * NUM_STAGES


@st.composite
def archs(draw: st.DrawFn) -> Arch:
    """Valid architectures, canonical or not: windows may be larger than their grid, shifts may do nothing."""
    patch_size = draw(st.sampled_from([1, 2, 3, 4]))
    coarsest_tokens = draw(st.sampled_from([1, 2, 3, 4, 7, 8]))
    tokens = [coarsest_tokens << stage for stage in (3, 2, 1, 0)]
    windows = tuple(draw(st.sampled_from([*divisors(side), side, side + 1, side * 3])) for side in tokens)
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
        windows=windows,
        shifts=draw(st.tuples(*[st.booleans()] * NUM_STAGES) | st.sampled_from([OFF, (True,) * NUM_STAGES])),
        br=draw(st.booleans()),
        image_size=tokens[0] * patch_size,
        patch_size=patch_size,
        channels=draw(st.sampled_from([1, 3, 4])),
        num_classes=draw(st.sampled_from([1, 10, 1000])),
        mlp_ratio=draw(st.sampled_from([4.0, 2.0]) | st.integers(100, 1600).map(lambda hundredths: hundredths / 100)),
    )


def swin_224() -> st.SearchStrategy[Arch]:
    """Architectures at 224x224 whose windows are multiples of 7, as the proxy needs them."""
    windows = st.tuples(*(st.sampled_from([7 * n for n in divisors(side // 7)]) for side in (56, 28, 14, 7)))
    return st.builds(
        Arch,
        windows=windows,
        shifts=st.tuples(*[st.booleans()] * NUM_STAGES),
        br=st.booleans(),
        depths=st.tuples(*[st.integers(1, 4)] * NUM_STAGES),
    )


def attention_layout(arch: Arch) -> list[list[tuple[int, int]]]:
    """(window, shift in tokens) of every block, told without `canonical`: a shift rolls by half a window."""
    layout = []
    for stage in range(NUM_STAGES):
        window = min(arch.windows[stage], arch.tokens[stage])
        rolls = arch.shifts[stage] and window < arch.tokens[stage]
        layout.append([(window, window // 2 if rolls and block % 2 else 0) for block in range(arch.depths[stage])])
    return layout


# -- canonical form ---------------------------------------------------------------------------------------------------


def test_window_larger_than_grid_is_clamped() -> None:
    assert Arch(windows=(100, 29, 15, 8)).canonical().windows == (56, 28, 14, 7)


def test_window_as_large_as_grid_is_kept() -> None:
    assert Arch(windows=(56, 28, 14, 7)).canonical().windows == (56, 28, 14, 7)


def test_shift_is_off_where_one_window_covers_the_stage() -> None:
    assert Arch(windows=(7, 28, 15, 7)).canonical().shifts == (True, False, False, False)


def test_shift_is_off_in_a_stage_of_one_block() -> None:
    assert Arch(depths=(1, 2, 1, 2)).canonical().shifts == (False, True, False, False)


def test_canonical_arch_is_returned_as_it_is() -> None:
    arch = PRESETS["Swin-Free-B"]
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
        shifts = tuple(any(shift for _, shift in blocks) for blocks in attention_layout(candidate))
        assert candidate.canonical().shifts == shifts


@settings(deadline=None)
@given(archs())
def test_has_shift_tells_which_blocks_roll(arch: Arch) -> None:
    told = [[arch.has_shift(stage, block) for block in range(arch.depths[stage])] for stage in range(NUM_STAGES)]
    assert told == [[shift > 0 for _, shift in blocks] for blocks in attention_layout(arch)]


def test_window_of_one_token_never_shifts() -> None:
    """Half a window of one token is no token: shift on or off builds the same network."""
    on, off = Arch(windows=(1, 7, 7, 7)), Arch(windows=(1, 7, 7, 7), shifts=(False, True, True, True))
    assert attention_layout(on) == attention_layout(off)
    assert on.id == off.id
    assert not on.has_shift(0, 1)


# -- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN_IDS)
def test_id_of_a_preset_is_what_earlier_versions_stored(name: str) -> None:
    assert PRESETS[name].id == GOLDEN_IDS[name]


def test_presets_have_different_ids() -> None:
    assert len({arch.id for arch in PRESETS.values()}) == len(PRESETS)


@settings(deadline=None)
@given(archs(), st.tuples(*[st.booleans()] * NUM_STAGES), st.tuples(*[st.integers(0, 9)] * NUM_STAGES))
def test_networks_have_equal_ids_exactly_when_they_are_equal(
    arch: Arch, shifts: tuple[bool, ...], extra: tuple[int, ...]
) -> None:
    """Shifts are redrawn and windows that cover their stage grow, which may or may not change the network."""
    grown = (w + more if w >= t else w for w, t, more in zip(arch.windows, arch.tokens, extra, strict=True))
    other = replace(arch, windows=tuple(grown), shifts=shifts)
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
    ],
    ids=lambda change: "-".join(change),
)
def test_every_field_enters_the_id(change: dict[str, Any]) -> None:
    assert Arch(**change).id != Arch().id


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
    other = replace(canonical, br=not canonical.br)
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
    ],
)
def test_name_takes_the_nearest_published_size(arch: Arch, name: str) -> None:
    assert arch.name == name


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
    ],
)
def test_name_spells_these_values(name: str, expected: Arch) -> None:
    assert parse_name(name) == expected.canonical()


BAD_SUFFIXES = (
    *("", "X", "12", "W", "W7.7.7", "W7.7.7.7.7", "S", "S01", "S01110", "S0120", "BRR", "DR", "DRX", "D12", "H3.6.12"),
    *("R", "R-1", "P4.0", "C", "N", "N1E3", "M", "M4.", "M.5", "M-1", "M1E1"),
)


@pytest.mark.parametrize("suffix", BAD_SUFFIXES)
def test_bad_suffix_is_refused_with_the_suffixes_that_exist(suffix: str) -> None:
    with pytest.raises(ArchError, match=r"is no suffix; allowed: W7\.14\.14\.7, S0110, BR, DR12") as caught:
        parse_name(f"Swin-T-BR-{suffix}" if suffix else "Swin-T--BR")
    assert repr(suffix.split("-")[0].upper()) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", " ", "Swin", "Swin-", "Swin-T-", "Swin-L", "Swin-Free", "SwinV2-T", "ResNet-50", "Swin-E32", "Swin-E32x2.2.2"],
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
    ],
)
def test_suffix_given_twice_is_refused(name: str, field: str) -> None:
    with pytest.raises(ArchError, match=rf"gives {field} a second time; give it once"):
        parse_name(name)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Swin-T-W5.7.7.7", "windows.stage1: 5"),
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
        (
            {"windows": (7, 9, 7, 7)},
            "windows.stage2: 9 does not divide 28 tokens; use one of [1, 2, 4, 7, 14, 28]",
        ),
        ({"windows": (7, 7, 4, 7)}, "windows.stage3: 4 does not divide 14 tokens; use one of [1, 2, 7, 14]"),
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


# -- proxy ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(swin_224(), st.sampled_from([2, 3, 4, 7]), st.sampled_from([1, 2, 4]))
def test_proxy_keeps_windows_per_stage_shifts_depths_and_norm(arch: Arch, unit: int, patch_size: int) -> None:
    proxy = arch.proxy(ProxyScale(7, unit=unit, patch_size=patch_size), channels=1, num_classes=10)
    canonical = arch.canonical()
    for stage in range(NUM_STAGES):
        assert proxy.tokens[stage] // proxy.windows[stage] == canonical.tokens[stage] // canonical.windows[stage]
        shifts = [canonical.has_shift(stage, block) for block in range(canonical.depths[stage])]
        assert [proxy.has_shift(stage, block) for block in range(proxy.depths[stage])] == shifts
    assert (proxy.depths, proxy.br, proxy.shifts) == (canonical.depths, canonical.br, canonical.shifts)
    assert proxy == proxy.canonical()


def test_proxy_takes_its_sizes_from_the_scale() -> None:
    scale = ProxyScale(7, unit=2, embed_dim=48, head_dim=12, patch_size=2)
    proxy = PRESETS["Swin-Free-B"].proxy(scale, channels=1, num_classes=10)
    assert (proxy.embed_dim, proxy.num_heads, proxy.windows) == (48, (4, 8, 16, 32), (2, 4, 4, 2))
    assert (proxy.image_size, proxy.patch_size, proxy.tokens) == (32, 2, (16, 8, 4, 2))
    assert (proxy.channels, proxy.num_classes) == (1, 10)


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
