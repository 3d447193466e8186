"""Weights of other implementations: layouts, resized position bias tables, refusals, and reading files safely."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from explorer.arch import Arch, parse_name
from explorer.errors import WeightsError
from explorer.model import build, export_weights, load_weights
from explorer.model.swin import Swin
from explorer.model.weights import LAYOUTS, Layout, read_weights

V1 = "Swin-E16x2.2.2.2-R56-P1-N10"
V2 = "SwinV2-E16x2.2.2.2-64-N10"
BR = "Swin-E16x2.2.2.2-BR-R56-P1-N10"
NAMES = [
    V1,
    V2,
    "Swin-E16x1.2.3.1-W5.5.4.4-S0110-R64-P2-C1-N3-M2",
    "SwinV2-E8x2.1.2.2-W5.5.3.2-96-N3-F4.3.0.1",
    "Swin-Free-E16x1.1.2.1-R56-P1-N10",
]
FOREIGN: tuple[Layout, ...] = ("timm", "torchvision", "microsoft")


def scattered(name: str, seed: int = 0) -> Swin:
    return build(parse_name(name), scatter=True, seed=seed).eval()


def differing(module: Swin, expected: dict[str, Tensor]) -> list[str]:
    found = module.state_dict()
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def copied(module: Swin) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in module.state_dict().items()}


def refuse(module: Swin, state_dict: dict[str, object], *, new_head: bool = False) -> str:
    """The message with which `state_dict` is refused, and `module` left as it was."""
    before = copied(module)
    with pytest.raises(WeightsError) as refused:
        load_weights(module, state_dict, new_head=new_head)
    assert differing(module, before) == []
    return str(refused.value)


# -- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_weights_survive_export_and_load_bit_by_bit(name: str, layout: Layout) -> None:
    module, other = scattered(name), scattered(name, seed=1)
    assert load_weights(other, export_weights(module, layout)) == layout
    assert differing(other, module.state_dict()) == []


def test_batch_norm_networks_survive_in_our_own_layout_with_their_statistics() -> None:
    module, other = scattered(BR), scattered(BR, seed=1)
    assert load_weights(other, export_weights(module, "swinexplore")) == "swinexplore"
    assert differing(other, module.state_dict()) == []


ATTENTION = {
    False: {"attn.relative_position_bias_table", "attn.qkv.bias"},
    True: {"attn.q_bias", "attn.v_bias", "attn.logit_scale", "attn.cpb_mlp.0.weight", "attn.cpb_mlp.0.bias"}
    | {"attn.cpb_mlp.2.weight"},
}
BLOCK = {
    f"{part}.{kind}" for part in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
}
MERGING = {"norm.weight", "norm.bias", "reduction.weight"}


def names_of_authors(arch: Arch, *, first_merging: int, head: str, buffers: bool) -> set[str]:
    """Written down from the authors' models; timm's differ in the stage of the patch merging and in the head."""
    names = {f"patch_embed.{part}" for part in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")}
    names |= {"norm.weight", "norm.bias", f"{head}.weight", f"{head}.bias"}
    for stage, depth in enumerate(arch.depths):
        for block in range(depth):
            inside = BLOCK | ATTENTION[arch.v2] | {"attn.qkv.weight"}
            if buffers:
                inside |= {"attn.relative_position_index"}
            if buffers and arch.v2:
                inside |= {"attn.relative_coords_table"}
            if buffers and arch.has_shift(stage, block):
                inside |= {"attn_mask"}
            names |= {f"layers.{stage}.blocks.{block}.{name}" for name in inside}
    for stage in range(first_merging, first_merging + 3):
        names |= {f"layers.{stage}.downsample.{name}" for name in MERGING}
    return names


@pytest.mark.parametrize("name", [V1, V2])
def test_layout_of_the_authors_is_theirs(name: str) -> None:
    module = scattered(name)
    exported = export_weights(module, "microsoft")
    assert exported.keys() == names_of_authors(module.arch, first_merging=0, head="head", buffers=True)
    window, per_side = module.arch.windows[0], module.arch.windows_per_side[0]
    first, shifted = "layers.0.blocks.0.", "layers.0.blocks.1."
    assert f"{first}attn_mask" not in exported
    assert exported[f"{shifted}attn_mask"].shape == (per_side**2, window**2, window**2)
    assert exported[f"{first}attn.relative_position_index"].shape == (window**2, window**2)
    assert exported[f"{first}attn.relative_position_index"].dtype == torch.int64
    if module.arch.v2:
        assert exported[f"{first}attn.relative_coords_table"].shape == (1, 2 * window - 1, 2 * window - 1, 2)
    own = module.state_dict()
    for stage in range(3):
        theirs = exported[f"layers.{stage}.downsample.reduction.weight"]
        assert torch.equal(theirs, own[f"stages.{stage + 1}.merging.reduction.weight"])


@pytest.mark.parametrize("name", [V1, V2])
def test_layout_of_timm_is_theirs(name: str) -> None:
    module = scattered(name)
    expected = names_of_authors(module.arch, first_merging=1, head="head.fc", buffers=False)
    assert export_weights(module, "timm").keys() == expected


def make_torchvision(arch: Arch) -> torch.nn.Module:
    from torchvision.models import swin_transformer as theirs

    return theirs.SwinTransformer(
        patch_size=[arch.patch_size] * 2,
        embed_dim=arch.embed_dim,
        depths=list(arch.depths),
        num_heads=list(arch.num_heads),
        window_size=[arch.windows[0]] * 2,
        num_classes=arch.num_classes,
        block=theirs.SwinTransformerBlockV2 if arch.v2 else theirs.SwinTransformerBlock,
        downsample_layer=theirs.PatchMergingV2 if arch.v2 else theirs.PatchMerging,
    )


@pytest.mark.parametrize("name", [V1, V2])
def test_layout_of_torchvision_is_theirs(name: str) -> None:
    module = scattered(name)
    expected, exported = make_torchvision(module.arch).state_dict(), export_weights(module, "torchvision")
    assert exported.keys() == expected.keys()
    for key, values in expected.items():
        assert exported[key].shape == values.shape, key
        assert exported[key].dtype == values.dtype, key
        if "relative_position_index" in key or "relative_coords_table" in key:
            torch.testing.assert_close(exported[key], values, msg=key)


def test_torchvision_s_bias_of_keys_is_zero_and_is_not_read() -> None:
    module, other = scattered(V2), scattered(V2, seed=1)
    exported = export_weights(module, "torchvision")
    bias = exported["features.1.0.attn.qkv.bias"]
    assert bias.shape == (48,)
    assert bias[:16].all()
    assert not bias[16:32].any()
    assert bias[32:].all()
    bias[16:32] = 3.0
    load_weights(other, exported)
    assert differing(other, module.state_dict()) == []


@pytest.mark.parametrize("name", ["Swin-E32x2.2.2.2-N10", "SwinV2-E32x2.2.2.2-N10"])
def test_timm_reads_our_export_for_the_authors_as_it_reads_theirs(name: str) -> None:
    pytest.importorskip("timm")
    from timm.models import swin_transformer, swin_transformer_v2

    module = scattered(name)
    arch = module.arch
    theirs = swin_transformer_v2 if arch.v2 else swin_transformer
    make = theirs.SwinTransformerV2 if arch.v2 else theirs.SwinTransformer
    peer = make(
        img_size=arch.image_size,
        window_size=arch.windows[0],
        embed_dim=arch.embed_dim,
        depths=arch.depths,
        num_heads=arch.num_heads,
        num_classes=arch.num_classes,
    ).eval()
    exported = export_weights(module, "microsoft")
    for key, values in peer.named_buffers():
        if key in exported:
            torch.testing.assert_close(exported[key], values, msg=key)
    assert {key for key in exported if key.endswith("attn_mask")} <= dict(peer.named_buffers()).keys()
    peer.load_state_dict(theirs.checkpoint_filter_fn({"model": exported}, peer))
    image = torch.randn(1, 3, arch.image_size, arch.image_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = module(image), peer(image)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("layout", ["timm", "torchvision", "microsoft"])
@pytest.mark.parametrize("name", [V1, V2])
def test_checkpoint_without_computed_buffers_loads(name: str, layout: Layout) -> None:
    module, other = scattered(name), scattered(name, seed=1)
    exported = export_weights(module, layout)
    kept = {key: v for key, v in exported.items() if not re.search(r"position_index|coords_table|attn_mask", key)}
    assert load_weights(other, kept) == layout
    assert differing(other, module.state_dict()) == []


WRAPPED: dict[str, Callable[[dict[str, Tensor]], dict[str, object]]] = {
    "model": lambda given: {"model": given, "epoch": 3, "optimizer": {"state": {}}},
    "state_dict": lambda given: {"state_dict": given, "arch": "swin"},
    "module": lambda given: {"module": given},
    "module.": lambda given: {f"module.{key}": values for key, values in given.items()},
    "_orig_mod.": lambda given: {f"_orig_mod.{key}": values for key, values in given.items()},
    "module._orig_mod.": lambda given: {f"module._orig_mod.{key}": values for key, values in given.items()},
    "model, module.": lambda given: {"model": {f"module.{key}": values for key, values in given.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrapping_is_taken_off(wrapping: str, layout: Layout) -> None:
    module, other = scattered(V2), scattered(V2, seed=1)
    assert load_weights(other, WRAPPED[wrapping](export_weights(module, layout))) == layout
    assert differing(other, module.state_dict()) == []


def test_prefixes_are_taken_off_in_any_order() -> None:
    module, other = scattered(V1), scattered(V1, seed=1)
    load_weights(other, {f"_orig_mod.module.{key}": v for key, v in export_weights(module, "timm").items()})
    assert differing(other, module.state_dict()) == []


@pytest.mark.parametrize("layout", FOREIGN)
def test_batch_norm_networks_are_not_exported_for_others(layout: Layout) -> None:
    with pytest.raises(WeightsError, match=rf"{layout}: {BR}: .*BatchNorm.*use swinexplore"):
        export_weights(scattered(BR), layout)


@pytest.mark.parametrize("layout", ["keras", "Timm", ""])
def test_export_names_the_layouts_it_knows(layout: str) -> None:
    with pytest.raises(
        WeightsError, match=f"{layout!r} is not known; allowed: swinexplore, timm, torchvision, microsoft"
    ):
        export_weights(scattered(V1), layout)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["swinexplore", "timm", "torchvision", "microsoft"])
def test_exported_tensors_are_copies(layout: Layout) -> None:
    module = scattered(V2)
    own = {values.untyped_storage().data_ptr() for values in (*module.parameters(), *module.buffers())}
    exported = export_weights(module, layout)
    assert [key for key, values in exported.items() if values.untyped_storage().data_ptr() in own] == []
    assert not any(values.requires_grad for values in exported.values())


def test_loaded_weights_are_copies() -> None:
    module, other = scattered(V1), scattered(V1, seed=1)
    load_weights(other, module.state_dict())
    with torch.no_grad():
        other.head.bias.add_(1.0)
    assert differing(other, module.state_dict()) == ["head.bias"]


# -- position bias ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swin_starts_a_swin_free_with_resized_tables(layout: Layout) -> None:
    swin = scattered("Swin-E16x2.2.2.2-R56-P1-N10")
    free = scattered("Swin-Free-E16x2.2.2.2-R56-P1-N10", seed=1)
    assert (swin.arch.windows, free.arch.windows) == ((7, 7, 7, 7), (7, 14, 14, 7))
    load_weights(free, export_weights(swin, layout))
    given, found = swin.state_dict(), free.state_dict()
    resized = [f"stages.{stage}.blocks.{block}.attn.bias_table" for stage in (1, 2) for block in (0, 1)]
    for name in resized:
        heads = given[name].shape[1]
        for head in range(heads):
            plane = given[name][:, head].reshape(1, 1, 13, 13)
            expected = F.interpolate(plane, size=(27, 27), mode="bicubic", align_corners=False)
            torch.testing.assert_close(found[name][:, head], expected.flatten(), atol=1e-6, rtol=1e-6)
    assert [name for name in given if name not in resized and not torch.equal(found[name], given[name])] == []


def test_resized_table_keeps_rows_and_columns_apart() -> None:
    swin, free = scattered("Swin-E16x1.1.1.1-R56-P1-N10"), scattered("Swin-Free-E16x1.1.1.1-R56-P1-N10", seed=1)
    rows = torch.linspace(-1, 1, 13)[:, None].expand(13, 13).reshape(-1, 1)
    given = swin.state_dict() | {"stages.1.blocks.0.attn.bias_table": rows.expand(169, 2)}
    load_weights(free, given)
    found = free.state_dict()["stages.1.blocks.0.attn.bias_table"].view(27, 27, 2)
    torch.testing.assert_close(found, found[:, :1].expand(27, 27, 2), atol=1e-6, rtol=0.0)
    assert found[-1, 0, 0] - found[0, 0, 0] > 1.8


@pytest.mark.parametrize(("given", "wanted"), [("W7.7.7.7", "W4.2.1.1"), ("W1.1.1.1", "W7.7.7.7")])
def test_tables_shrink_and_grow_between_any_windows(given: str, wanted: str) -> None:
    source = scattered(f"Swin-E16x1.1.1.1-{given}-R56-P1-N10")
    module = scattered(f"Swin-E16x1.1.1.1-{wanted}-R56-P1-N10", seed=1)
    load_weights(module, export_weights(source, "timm"))
    found = module.state_dict()["stages.0.blocks.0.attn.bias_table"]
    table = source.state_dict()["stages.0.blocks.0.attn.bias_table"].view(1, 1, 2 * source.arch.windows[0] - 1, -1)
    side = 2 * module.arch.windows[0] - 1
    torch.testing.assert_close(found.view(1, 1, side, side), F.interpolate(table, (side, side), mode="bicubic"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_swin_v2_loads_across_windows_bit_by_bit(layout: Layout) -> None:
    small, large = (
        scattered("SwinV2-E16x2.2.2.2-64-N10"),
        scattered("SwinV2-E16x2.2.2.2-W5.4.3.2-96-N10-F2.2.2.2", seed=1),
    )
    load_weights(large, export_weights(small, layout))
    assert differing(large, small.state_dict()) == []


@pytest.mark.parametrize("shape", [(168, 1), (144, 1), (169, 2), (169,)])
def test_table_that_is_no_square_of_offsets_is_refused(shape: tuple[int, ...]) -> None:
    name = "stages.1.blocks.0.attn.bias_table"
    given = scattered("Swin-E8x1.1.1.1-H1.1.1.1-R56-P1-N10").state_dict() | {name: torch.zeros(shape)}
    message = refuse(scattered("Swin-Free-E8x1.1.1.1-H1.1.1.1-R56-P1-N10", seed=1), given)
    assert f"1 misshapen ({name} {'x'.join(map(str, shape))} where 729x1 is wanted)" in message


# -- weights that do not fit ------------------------------------------------------------------------------------------

BIAS = {
    "swinexplore": "stages.1.blocks.0.mlp.fc1.bias",
    "timm": "layers.1.blocks.0.mlp.fc1.bias",
    "microsoft": "layers.1.blocks.0.mlp.fc1.bias",
    "torchvision": "features.3.0.mlp.0.bias",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [V1, V2])
def test_what_is_wrong_is_said_by_its_name_in_the_file(name: str, layout: Layout) -> None:
    module, key = scattered(name), BIAS[layout]
    given: dict[str, object] = dict(export_weights(scattered(name, seed=1), layout))
    total = len(module.state_dict())
    without = {name: values for name, values in given.items() if name != key}
    assert f"layout of {layout} do not fit {name}: 1 missing ({key}) of {total} tensors; nothing was loaded" in refuse(
        module, without
    )
    assert "1 unknown (layers.9.what.weight)" in refuse(module, given | {"layers.9.what.weight": torch.ones(1)})
    assert f"1 misshapen ({key} 3x4 where 128 is wanted)" in refuse(module, given | {key: torch.ones(3, 4)})
    assert f"1 misshapen ({key} a number where 128 is wanted)" in refuse(module, given | {key: torch.tensor(1.0)})
    both = refuse(module, without | {"head.more": torch.ones(1), "norm.weight": torch.ones(7)})
    for told in (f"1 missing ({key})", "1 unknown (head.more)", "1 misshapen (norm.weight 7 where 128 is wanted)"):
        assert told in both


def test_many_problems_are_counted_and_three_are_named() -> None:
    module = scattered(V1)
    given = dict(export_weights(scattered(V1, seed=1), "timm"))
    gone = [key for key in given if key.startswith(("layers.3.blocks.1.mlp", "norm"))]
    assert len(gone) == 6
    message = refuse(module, {key: values for key, values in given.items() if key not in gone})
    assert "6 missing (" in message
    assert sum(key in message for key in gone) == 3
    assert ", ...)" in message


@pytest.mark.parametrize(("values", "told"), [(None, "1 missing"), (torch.ones(7), "1 misshapen")])
def test_torchvision_s_one_bias_is_counted_once(values: Tensor | None, told: str) -> None:
    given = dict(export_weights(scattered(V2, seed=1), "torchvision"))
    del given["features.1.0.attn.qkv.bias"]
    if values is not None:
        given["features.1.0.attn.qkv.bias"] = values
    assert f"{told} (features.1.0.attn.qkv.bias" in refuse(scattered(V2), given)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SwinV2-E16x2.2.2.2-56-P1-N10", "missing"),
        ("Swin-E16x2.2.4.2-R56-P1-N10", r"missing \(.*\.2\.blocks\.2\.|missing \(features\.5\.2\."),
        ("Swin-E16x2.2.1.2-R56-P1-N10", r"unknown \(.*\.2\.blocks\.1\.|unknown \(features\.5\.1\."),
        ("Swin-E32x2.2.2.2-R56-P1-N10", "misshapen"),
        ("Swin-E16x2.2.2.2-H2.2.4.8-R56-P1-N10", r"2 misshapen .*169x1 where 169x2"),
        ("Swin-E16x2.2.2.2-R112-P2-N10", r"1 misshapen .*16x3x1x1 where 16x3x2x2"),
        ("Swin-E16x2.2.2.2-R56-P1-C1-N10", r"1 misshapen .*16x3x1x1 where 16x1x1x1"),
        ("Swin-E16x2.2.2.2-R56-P1-N10-M2", "misshapen"),
        ("Swin-E16x2.2.2.2-R56-P1-N11", "2 misshapen .*10x128 where 11x128"),
        (BR, "missing .*running_mean"),
    ],
)
def test_weights_of_another_network_are_refused(name: str, told: str, layout: Layout) -> None:
    message = refuse(build(parse_name(name)), dict(export_weights(scattered(V1), layout)))
    assert re.search(told, message), message
    assert parse_name(name).name in message


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "no tensor at all"),
        ({"model": {}}, "no tensor at all"),
        ({"epoch": 3, "model": [torch.ones(1)]}, "no tensor at all"),
        ({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, "it holds conv1.weight, fc.weight"),
        (torchvision.models.resnet18(num_classes=2).state_dict(), "it holds conv1.weight"),
    ],
    ids=["empty", "empty model", "list", "two tensors", "resnet18"],
)
def test_unknown_layouts_are_refused(given: dict[str, object], told: str) -> None:
    message = refuse(scattered(V1), given)
    assert "not a Swin in the layout of swinexplore, timm, torchvision, microsoft" in message
    assert told in message


# -- another head -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("headless", [False, True])
def test_new_head_keeps_the_module_s_own(layout: Layout, headless: bool) -> None:
    source, module = scattered("Swin-E16x2.2.2.2-R56-P1-N21"), scattered(V1, seed=1)
    own = copied(module)
    given = {k: v for k, v in export_weights(source, layout).items() if not (headless and k.startswith("head."))}
    refuse(module, dict(given))
    assert load_weights(module, given, new_head=True) == layout
    expected = source.state_dict() | {name: own[name] for name in ("head.weight", "head.bias")}
    assert differing(module, expected) == []


def test_new_head_of_as_many_classes_is_the_module_s_own() -> None:
    """Other labels may be as many."""
    source, module = scattered(V1), scattered(V1, seed=1)
    own = module.head.weight.clone()
    load_weights(module, export_weights(source, "timm"), new_head=True)
    assert sorted(differing(module, source.state_dict())) == ["head.bias", "head.weight"]
    assert torch.equal(module.head.weight, own)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    given = dict(export_weights(scattered(V1), "timm"))
    given["norm.bias"] = torch.full_like(given["norm.bias"], value)
    module = scattered(V1, seed=1)
    before = {key: values.clone() for key, values in module.state_dict().items()}
    with pytest.raises(WeightsError, match=r"1 not finite \(norm\.bias\)"):
        load_weights(module, given)
    assert differing(module, before) == []


@pytest.mark.parametrize(
    ("name", "others"), [("SwinV2-E16x1.1.1.1-W4.4.4.2-32-P2-N10", 3), ("SwinV2-E16x1.1.1.1-32-P2-N10", 0)]
)
def test_swin_v2_of_other_coordinates_is_told(name: str, others: int, caplog: pytest.LogCaptureFixture) -> None:
    source = build(parse_name("SwinV2-E16x1.1.1.1-32-P2-N10"), scatter=True)
    with caplog.at_level("WARNING", logger="explorer.model.weights"):
        load_weights(build(parse_name(name)), export_weights(source, "microsoft"))
    assert [
        f"{others} position biases were trained on other coordinates" in each.message for each in caplog.records
    ] == [True] * bool(others)


def test_other_hierarchical_networks_are_not_taken_for_ours() -> None:
    with pytest.raises(WeightsError, match="not a Swin in the layout of"):
        load_weights(scattered(V1), {"stages.0.blocks.0.conv_dw.weight": torch.ones(1)})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Swin-E32x2.2.2.2-R56-P1-N10", "misshapen (patch_embed.proj.weight 16x3x1x1 where 32x3x1x1 is wanted"),
        ("Swin-E16x2.2.4.2-R56-P1-N10", "missing (layers.2.blocks.2.norm1.weight"),
        (V2, "unknown (layers.0.blocks.0.attn.relative_position_bias_table"),
    ],
)
def test_new_head_excuses_nothing_else(name: str, told: str) -> None:
    message = refuse(scattered(name), dict(export_weights(scattered(V1), "timm")), new_head=True)
    assert told in message
    assert "head" not in message
    given = {k: v for k, v in export_weights(scattered(name), "timm").items() if k != "norm.bias"}
    assert "1 missing (norm.bias)" in refuse(scattered(name), given, new_head=True)


# -- files ------------------------------------------------------------------------------------------------------------


def write_safetensors(weights: dict[str, Tensor], path: Path) -> None:
    pytest.importorskip("safetensors.torch").save_file(weights, path)


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {"pth": torch.save, "safetensors": write_safetensors}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_weights_are_read_and_loaded(suffix: str, layout: Layout, tmp_path: Path) -> None:
    module, other = scattered(V2), scattered(V2, seed=1)
    path = tmp_path / f"weights.{suffix}"
    WRITERS[suffix](export_weights(module, layout), path)
    assert load_weights(other, read_weights(path)) == layout
    assert differing(other, module.state_dict()) == []


def test_training_checkpoint_is_read_with_what_stands_beside_its_weights(tmp_path: Path) -> None:
    module, other = scattered(V1), scattered(V1, seed=1)
    optimizer = torch.optim.AdamW(module.parameters()).state_dict()
    torch.save({"model": module.state_dict(), "optimizer": optimizer, "epoch": 3, "note": "x"}, tmp_path / "last.pth")
    load_weights(other, read_weights(tmp_path / "last.pth"))
    assert differing(other, module.state_dict()) == []


def refuse_file(path: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        read_weights(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_missing_file_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    assert refuse_file(tmp_path / name).endswith("no such file")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused(suffix: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    WRITERS[suffix](export_weights(scattered(V1), "timm"), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "not weights that can be read safely" in refuse_file(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_text_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("hello, these are no weights\n" * 100)
    assert "not weights that can be read safely" in refuse_file(tmp_path / name)


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def save_plain_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_plain_pickle])
@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.pkl"])
def test_code_in_a_file_does_not_run(save: Callable[[object, Path], None], name: str, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    save({"model": RunsCode(ran), "norm.bias": torch.ones(1)}, tmp_path / name)
    message = refuse_file(tmp_path / name)
    assert not ran.exists()
    assert "the file would call " in message
    pickle.loads(pickle.dumps(RunsCode(ran)))
    assert ran.exists()


def test_whole_module_in_a_file_is_refused(tmp_path: Path) -> None:
    torch.save(scattered(V1), tmp_path / "module.pth")
    assert "save the state dict alone" in refuse_file(tmp_path / "module.pth")


@pytest.mark.parametrize(("content", "kind"), [([torch.ones(1)], "list"), (torch.ones(1), "Tensor"), (3, "int")])
def test_file_that_holds_no_tensors_by_name_is_refused(content: object, kind: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert refuse_file(tmp_path / "weights.pth").endswith(f"holds {kind}, not the tensors of a model by name")


@pytest.mark.parametrize("kind", ["text", "empty", "code"])
def test_reason_of_a_refused_file_is_in_words_of_ours(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if kind == "code":
        torch.save({"model": RunsCode(tmp_path / "ran")}, path)
    else:
        path.write_text("hello" if kind == "text" else "")
    message = refuse_file(path)
    assert "\x1b" not in message
    assert "can still be loaded" not in message
    assert not re.search(r"safely: (\d+|EOFError|Ran out of input);", message)
