"""The torch modules: agreement with timm and torchvision, initialisation, gradients, windows, precisions, stochastic depth."""

from __future__ import annotations

import copy
import math
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from explorer.arch import Arch, ProxyScale, parse_name
from explorer.model import build, export_weights, load_weights
from explorer.model.swin import (
    MASK_VALUE,
    Block,
    PatchMerging,
    Swin,
    TokenBatchNorm,
    local_biases,
    merge,
    partition,
    relative_coordinates,
    relative_position_index,
    scatter_weights,
    shift_mask,
)
from explorer.model.weights import Layout

TINY = "Swin-E16x2.2.2.2-R56-P1-N10"
TINY_BR = "Swin-E16x2.2.2.2-BR-R56-P1-N10"
TINY_V2 = "SwinV2-E16x2.2.2.2-48-P1-N10"
PADDED = "Swin-E16x2.2.2.2-W7.7.7.7-R64-P1-N10"
PADDED_V2 = "SwinV2-E16x2.2.2.2-W6.6.6.6-64-P1-N10"

#: Of the logits' spread, and of the largest gradient of a tensor.
LOGITS, GRADIENTS = 1e-4, 1e-3


def random_images(arch: Arch, count: int = 1) -> Tensor:
    shape = (count, arch.channels, arch.image_size, arch.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, in units of the spread of those that are expected."""
    spread = expected.detach().float().std()
    assert spread > 0.1
    return float((found.detach().float() - expected.detach().float()).abs().max() / spread)


def run_backward(module: nn.Module, images: Tensor) -> Tensor:
    """The logits; leaves the gradients of their randomly weighted sum in the parameters, and no others."""
    module.zero_grad()
    logits = module(images)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits.float() * weights).sum().backward()
    return logits.detach()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert found.keys() == dict(module.named_parameters()).keys()
    return found


@torch.no_grad()
def exported_gradients(module: Swin, layout: Layout) -> dict[str, Tensor]:
    """The gradients of `module` by the names of another implementation: exported as if they were its weights."""
    as_weights = copy.deepcopy(module)
    for name, gradient in gradients(module).items():
        as_weights.get_parameter(name).copy_(gradient)
    return export_weights(as_weights, layout)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert expected.keys() <= found.keys()
    for name, gradient in expected.items():
        assert gradient.any(), name
        # A third of Swin's qkv bias is the keys', whose gradient is nothing but rounding: the softmax ignores them.
        assert (found[name] - gradient).abs().max() <= GRADIENTS * gradient.abs().max(), name


# -- timm and torchvision ---------------------------------------------------------------------------------------------

PEERS: tuple[Layout, ...] = ("torchvision", "timm")
COMPARED = [
    "Swin-T",
    "SwinV2-T",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("Swin-S", "SwinV2-S", "Swin-B", "SwinV2-B", "Swin-T-R448", "SwinV2-T-W8.8.8.8-512")
    ),
]
LARGE = ["Swin-S-R448", "SwinV2-S-W8.8.8.8-512", "Swin-B-R448", "SwinV2-B-W8.8.8.8-512"]


@pytest.fixture(scope="module")
def ours(request: pytest.FixtureRequest) -> Swin:
    """Our network of a name, with weights that make every part matter."""
    return build(parse_name(request.param), scatter=True).eval()


def make_peer(layout: Layout, arch: Arch, **options: object) -> nn.Module:
    """The published network of the same family and size, in eval mode, with weights of its own."""
    size = arch.name.partition("-")[2][0]
    if layout == "torchvision":
        return torchvision.models.get_model(f"swin_{'v2_' * arch.v2}{size.lower()}").eval()
    timm = pytest.importorskip("timm")
    word = {"T": "tiny", "S": "small", "B": "base"}[size]
    name = f"swinv2_{word}_window8_256" if arch.v2 else f"swin_{word}_patch4_window7_224"
    return timm.create_model(name, img_size=arch.image_size, **options).eval()


def make_timm(arch: Arch) -> nn.Module:
    """timm's network of any architecture that has one window size, in eval mode."""
    pytest.importorskip("timm")
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    options = {
        "img_size": arch.image_size,
        "patch_size": arch.patch_size,
        "in_chans": arch.channels,
        "num_classes": arch.num_classes,
        "embed_dim": arch.embed_dim,
        "depths": arch.depths,
        "num_heads": arch.num_heads,
        "window_size": arch.windows[0],
        "mlp_ratio": arch.mlp_ratio,
    }
    if arch.v2:
        return SwinTransformerV2(**options, pretrained_window_sizes=arch.pretrained_windows).eval()
    return SwinTransformer(**options).eval()


@pytest.mark.parametrize("layout", PEERS)
@pytest.mark.parametrize("ours", COMPARED, indirect=True)
def test_logits_and_gradients_are_those_of_the_peer(ours: Swin, layout: Layout) -> None:
    theirs, image = make_peer(layout, ours.arch), random_images(ours.arch)
    theirs.load_state_dict(export_weights(ours, layout))
    expected = run_backward(theirs, image)
    assert distance(run_backward(ours, image), expected) < LOGITS
    with torch.inference_mode():
        assert distance(ours(image), expected) < LOGITS
    assert_same_gradients(exported_gradients(ours, layout), gradients(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("layout", PEERS)
@pytest.mark.parametrize("ours", LARGE, indirect=True)
def test_logits_of_large_images_are_those_of_the_peer(ours: Swin, layout: Layout) -> None:
    theirs, image = make_peer(layout, ours.arch), random_images(ours.arch)
    theirs.load_state_dict(export_weights(ours, layout))
    with torch.inference_mode():
        assert distance(ours(image), theirs(image)) < LOGITS


@pytest.mark.slow
@pytest.mark.parametrize("ours", LARGE, indirect=True)
def test_gradients_of_large_images_are_those_of_timm(ours: Swin) -> None:
    theirs, image = make_peer("timm", ours.arch), random_images(ours.arch)
    theirs.load_state_dict(export_weights(ours, "timm"))
    run_backward(theirs, image)
    run_backward(ours, image)
    assert_same_gradients(exported_gradients(ours, "timm"), gradients(theirs))


@pytest.mark.parametrize("layout", PEERS)
@pytest.mark.parametrize("ours", ["Swin-T", "SwinV2-T"], indirect=True)
def test_weights_come_back_from_the_peer_bit_by_bit(ours: Swin, layout: Layout) -> None:
    theirs, returned = make_peer(layout, ours.arch), build(ours.arch, seed=1)
    theirs.load_state_dict(export_weights(ours, layout))
    assert load_weights(returned, theirs.state_dict()) == layout
    found = returned.state_dict()
    assert [name for name, values in ours.state_dict().items() if not torch.equal(values, found[name])] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Swin-T-R192", {}),
        ("Swin-T-R256", {}),
        ("Swin-T-R384", {}),
        ("SwinV2-T-W8.8.8.7-224", {}),
        ("SwinV2-T-W7.7.7.7", {"window_size": 7}),
    ],
)
def test_padded_grids_are_those_of_timm(name: str, options: dict[str, int]) -> None:
    arch = parse_name(name)
    assert any(arch.is_padded(stage) for stage in range(4))
    ours, theirs, image = build(arch, scatter=True).eval(), make_peer("timm", arch, **options), random_images(arch)
    theirs.load_state_dict(export_weights(ours, "timm"))
    with torch.inference_mode():
        assert distance(ours(image), theirs(image)) < LOGITS


@pytest.mark.parametrize(
    "name",
    [
        PADDED,
        PADDED_V2,
        "Swin-E16x2.2.2.2-W10.10.10.8-R64-P1-C1-N10",
        "Swin-E16x3.2.1.4-W5.5.5.4-R64-P2-N10-M2",
        "SwinV2-E16x2.2.2.2-W3.3.3.3-64-P1-N10",
        "SwinV2-E16x2.2.2.2-W7.7.7.7-64-P1-N10-F3.4.5.1",
        "SwinV2-E16x2.2.2.2-W16.16.16.8-64-P1-N10-F1.2.24.16",
        "SwinV2-E16x2.2.2.2-W1.1.1.1-16-P1-N10",
    ],
)
def test_small_networks_are_those_of_timm(name: str) -> None:
    arch = parse_name(name)
    ours, theirs, images = build(arch, scatter=True).eval(), make_timm(arch), random_images(arch, 2)
    theirs.load_state_dict(export_weights(ours, "timm"))
    logits = run_backward(theirs, images)
    assert distance(run_backward(ours, images), logits) < LOGITS
    with torch.inference_mode():
        assert distance(ours(images), logits) < LOGITS
    expected = gradients(theirs)
    if arch.windows == (1, 1, 1, 1):
        # Attention of one token is 1, whatever its position bias and its temperature.
        expected = {name: gradient for name, gradient in expected.items() if gradient.any()}
    assert_same_gradients(exported_gradients(ours, "timm"), expected)


def test_temperatures_are_bounded_as_in_timm() -> None:
    arch = parse_name(TINY_V2)
    ours, theirs, images = build(arch, scatter=True).eval(), make_timm(arch), random_images(arch, 2)
    attn = ours.stages[3].blocks[1].attn
    with torch.no_grad():
        attn.logit_scale.add_(3.0)
    assert attn.cosine_scale().flatten().tolist() == pytest.approx([100.0] * 8)
    theirs.load_state_dict(export_weights(ours, "timm"))
    with torch.inference_mode():
        assert distance(ours(images), theirs(images)) < LOGITS


def test_torchvision_pads_before_the_shift_and_differs() -> None:
    arch = parse_name("Swin-T-R256")
    ours, theirs, image = build(arch, scatter=True).eval(), make_peer("torchvision", arch), random_images(arch)
    theirs.load_state_dict(export_weights(ours, "torchvision"))
    with torch.inference_mode():
        assert distance(ours(image), theirs(image)) > 0.01


@pytest.mark.slow
def test_windows_of_pretraining_scale_the_offsets_as_in_timm() -> None:
    timm = pytest.importorskip("timm")
    arch = parse_name("SwinV2-B-W16.16.16.8-F12.12.12.6")
    ours, image = build(arch, scatter=True).eval(), random_images(arch)
    theirs = timm.create_model("swinv2_base_window12to16_192to256", num_classes=1000).eval()
    theirs.load_state_dict(export_weights(ours, "timm"))
    with torch.inference_mode():
        expected = theirs(image)
        assert distance(ours(image), expected) < LOGITS
        unscaled = build(parse_name("SwinV2-B-W16.16.16.8")).eval()
        load_weights(unscaled, ours.state_dict())
        assert distance(unscaled(image), expected) > 0.01


# -- initialisation ---------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_weights_whatever_torch_drew_before() -> None:
    first = build(parse_name(TINY), seed=3).state_dict()
    torch.randn(100)
    second = build(parse_name(TINY), seed=3).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_gives_other_weights_in_every_drawn_parameter() -> None:
    first, second = build(parse_name(TINY), seed=3), dict(build(parse_name(TINY), seed=4).named_parameters())
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second[name]) == (parameter.ndim == 1), name


def test_weights_are_drawn_as_the_authors_draw_them() -> None:
    module = build(parse_name("Swin-T"))
    attn = module.stages[2].blocks[0].attn
    assert isinstance(attn.qkv, nn.Linear)
    for drawn in (attn.qkv.weight, attn.bias_table, module.head.weight):
        assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
        assert drawn.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert not attn.qkv.bias.any()
    assert isinstance(module.norm, nn.LayerNorm)
    assert (module.norm.weight == 1).all()


def test_weights_of_a_narrow_start_keep_the_spread_of_what_they_read() -> None:
    module, authors = build(parse_name("Swin-T"), init="narrow"), build(parse_name("Swin-T"))
    attn = module.stages[2].blocks[0].attn
    assert isinstance(attn.qkv, nn.Linear)
    assert isinstance(module.stages[1].merging, PatchMerging)
    assert attn.qkv.weight.std().item() == pytest.approx(384**-0.5, rel=0.05)
    assert module.stages[1].merging.reduction.weight.std().item() == pytest.approx(384**-0.5, rel=0.05)
    for last in (attn.proj, module.stages[2].blocks[0].mlp.fc2):
        assert isinstance(last, nn.Linear)
        assert last.weight.std().item() == pytest.approx(0.2 * last.in_features**-0.5, rel=0.05)
    assert module.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(module.patch_embed.proj.weight, authors.patch_embed.proj.weight)


@pytest.mark.parametrize("window", [1, 2, 4, 7])
def test_position_biases_of_a_narrow_start_fall_with_the_squared_distance_from_a_spot(window: int) -> None:
    reach, num_heads = window - 1, 400
    biases = local_biases((2 * window - 1) ** 2, num_heads, torch.Generator().manual_seed(0))
    grid = biases.view(2 * window - 1, 2 * window - 1, num_heads)
    torch.testing.assert_close(biases.mean(0), torch.zeros(num_heads), atol=1e-4, rtol=0)
    for axis in range(2) if window > 1 else ():
        torch.testing.assert_close(
            grid.diff(n=2, dim=axis), torch.full_like(grid.diff(n=2, dim=axis), -2.0), atol=1e-3, rtol=0
        )
        low, high = grid.select(axis, 0), grid.select(axis, -1)
        spots = (high - low)[0] / (4 * reach)  # -(reach - spot)^2 + (-reach - spot)^2 = 4 reach spot
        assert spots.std().item() == pytest.approx(1.0, rel=0.15)
        assert spots.mean().item() == pytest.approx(0.0, abs=0.2)


def test_blocks_of_a_narrow_start_look_at_other_spots_and_the_same_for_one_seed() -> None:
    arch = parse_name(TINY)
    first, same, other = (build(arch, seed=seed, init="narrow") for seed in (1, 1, 2))
    tables = [
        [block.attn.bias_table for stage in module.stages for block in stage.blocks] for module in (first, same, other)
    ]
    assert all(torch.equal(a, b) for a, b in zip(tables[0], tables[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(tables[0], tables[2], strict=True))
    assert not torch.equal(tables[0][0], tables[0][1])


def test_non_canonical_arch_builds_the_canonical_module() -> None:
    arch = parse_name(TINY)
    stretched = Arch.from_dict(arch.to_dict() | {"windows": [7, 7, 7, 70], "shifts": [True] * 4})
    assert build(stretched).arch == arch
    assert build(stretched).state_dict().keys() == build(arch).state_dict().keys()


def test_swin_v2_starts_as_the_authors_start_it() -> None:
    module = build(parse_name("SwinV2-T"))
    assert all(not norm.weight.any() for s in module.stages for b in s.blocks for norm in (b.norm1, b.norm2))
    assert all((s.merging.norm.weight == 1).all() for s in list(module.stages)[1:])
    assert (module.norm.weight == 1).all()
    assert (module.patch_embed.norm.weight == 1).all()
    attn = module.stages[2].blocks[0].attn
    assert attn.logit_scale.shape == (12, 1, 1)
    torch.testing.assert_close(attn.logit_scale, torch.full((12, 1, 1), math.log(10)))
    for drawn in (attn.cpb_mlp[0].weight, attn.cpb_mlp[2].weight, attn.qkv.weight, attn.proj.weight):
        assert drawn.std().item() == pytest.approx(0.02, rel=0.06)
    assert not any(bias.any() for bias in (attn.cpb_mlp[0].bias, attn.q_bias, attn.v_bias, attn.proj.bias))
    assert attn.qkv.bias is None


def test_swin_v2_starts_with_every_block_as_its_skip() -> None:
    module = build(parse_name(TINY_V2)).eval()
    block = module.stages[0].blocks[1]
    x_BHWC = torch.randn(2, 48, 48, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x_BHWC), x_BHWC)
    assert not torch.allclose(block.attend(x_BHWC), torch.zeros(()))


# -- scattered weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TINY, TINY_BR, TINY_V2])
def test_scattered_weights_follow_from_the_seed(name: str) -> None:
    arch = parse_name(name)
    first = build(arch, scatter=True, seed=3).state_dict()
    state = torch.get_rng_state()
    again, other = build(arch), build(arch, scatter=True, seed=4).state_dict()
    scatter_weights(again, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [key for key, values in again.state_dict().items() if not torch.equal(values, first[key])] == []
    assert [key for key in first if torch.equal(first[key], other[key]) and not key.endswith("tracked")] == []


def test_scattered_weights_follow_from_the_seed_with_stochastic_depth() -> None:
    arch = parse_name(TINY_BR)
    torch.manual_seed(0)
    first = build(arch, scatter=True, drop_path=0.5).state_dict()
    state = torch.get_rng_state()
    second = build(arch, scatter=True, drop_path=0.5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("name", [TINY, TINY_V2])
def test_scattered_weights_make_every_part_matter(name: str) -> None:
    module = build(parse_name(name), scatter=True)
    drawn = dict(module.named_parameters())
    for key, values in drawn.items():
        centre = math.log(10) if "logit_scale" in key else 1.0 if "norm" in key and key.endswith("weight") else 0.0
        if "bias_table" in key:
            assert values.std().item() == pytest.approx(1.0, rel=0.1)
        elif values.ndim == 1 or "logit_scale" in key:
            assert (values - centre).abs().max() <= 0.2 + 1e-6, key
            assert (values != centre).any(), key
        else:
            assert values.std().item() == pytest.approx(values[0].numel() ** -0.5, rel=0.2), key
    for norm in (module.norm, module.stages[1].merging.norm, module.stages[3].blocks[1].norm2):
        assert norm.weight.max() - norm.weight.min() > 0.3
        assert norm.bias.max() - norm.bias.min() > 0.3


@pytest.mark.parametrize("training", [True, False])
def test_scattered_batch_norms_know_the_data_they_saw(training: bool) -> None:
    module = build(parse_name(TINY_BR)).train(training)
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, TokenBatchNorm)}
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, norm in norms.items():
        norm.momentum = 0.05

        def keep(_norm: nn.Module, given: tuple[Tensor], name: str = name) -> None:
            seen[name] = given[0].flatten(0, -2)

        hooks.append(norm.register_forward_pre_hook(keep))
    scatter_weights(module, 0)
    for hook in hooks:
        hook.remove()
    assert len(norms) == 1 + 2 * 8 + 3 + 1
    for name, norm in norms.items():
        torch.testing.assert_close(norm.running_mean, seen[name].mean(0), atol=1e-4, rtol=1e-3, msg=name)
        torch.testing.assert_close(norm.running_var, seen[name].var(0), atol=1e-4, rtol=1e-3, msg=name)
        assert norm.momentum == 0.05
    assert all(part.training == training for part in module.modules())


# -- norms and activations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kinds"),
    [(TINY, {nn.LayerNorm, nn.GELU}), (TINY_BR, {TokenBatchNorm, nn.ReLU})],
)
def test_norms_and_activations_are_the_variant_s_alone(name: str, kinds: set[type[nn.Module]]) -> None:
    candidates = (nn.LayerNorm, nn.GELU, nn.ReLU, nn.modules.batchnorm._BatchNorm)
    assert {type(module) for module in build(parse_name(name)).modules() if isinstance(module, candidates)} == kinds


def test_batch_norm_normalises_each_channel_over_all_tokens() -> None:
    x_BHWC = torch.randn(3, 4, 4, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    y_BHWC = TokenBatchNorm(5).train()(x_BHWC)
    assert y_BHWC.shape == x_BHWC.shape
    expected = (x_BHWC - x_BHWC.mean((0, 1, 2))) / (x_BHWC.var((0, 1, 2), unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(y_BHWC, expected)


@pytest.mark.parametrize("name", [TINY, TINY_BR, TINY_V2, PADDED_V2, "Swin-Free-E16x2.2.2.2-R56-P1-C1-N10"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    arch = parse_name(name)
    module = build(arch, scatter=True).train()
    logits = module(random_images(arch, 2))
    assert logits.shape == (2, 10)
    nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    without = [
        key for key, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert without == []


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "window"), [(8, 2), (6, 3), (4, 4), (5, 1)])
def test_partition_cuts_windows_row_by_row_and_merge_undoes_it(tokens: int, window: int) -> None:
    x_BHWC = torch.arange(2 * tokens * tokens * 3).view(2, tokens, tokens, 3)
    x_NLC = partition(x_BHWC, window)
    per_side = tokens // window
    expected = [
        x_BHWC[image, row * window : (row + 1) * window, column * window : (column + 1) * window].reshape(-1, 3)
        for image in range(2)
        for row in range(per_side)
        for column in range(per_side)
    ]
    assert torch.equal(x_NLC, torch.stack(expected))
    assert torch.equal(merge(x_NLC, window, tokens), x_BHWC)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_relative_index_is_one_row_per_offset(window: int) -> None:
    index = relative_position_index(window)
    cells = [(row, column) for row in range(window) for column in range(window)]
    rows_of: dict[tuple[int, int], set[int]] = {}
    for i, (row, column) in enumerate(cells):
        for j, (other_row, other_column) in enumerate(cells):
            rows_of.setdefault((row - other_row, column - other_column), set()).add(int(index[i, j]))
    assert all(len(rows) == 1 for rows in rows_of.values())
    assert sorted(min(rows) for rows in rows_of.values()) == list(range((2 * window - 1) ** 2))


def naive_coordinates(window: int, unit: int) -> list[tuple[float, float]]:
    def spaced(offset: int) -> float:
        scaled = 8 * offset / (unit - 1 if unit > 1 else 1)
        return math.copysign(math.log2(1 + abs(scaled)) / 3, scaled)

    side = range(-(window - 1), window)
    return [(spaced(row), spaced(column)) for row in side for column in side]


@pytest.mark.parametrize(("window", "unit"), [(1, 1), (1, 7), (2, 2), (7, 7), (8, 8), (5, 1), (16, 12), (6, 24)])
def test_coordinates_are_log_spaced_offsets_in_units_of_a_window(window: int, unit: int) -> None:
    found = relative_coordinates(window, unit)
    torch.testing.assert_close(found, torch.tensor(naive_coordinates(window, unit)).view(-1, 2), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["SwinV2-E16x1.1.1.1-64-W16.8.4.2-N10", "SwinV2-E16x1.1.1.1-64-W16.8.4.2-N10-F8.4.8.0"]
)
def test_position_bias_reads_the_offset_of_its_pair_of_tokens(name: str) -> None:
    module = build(parse_name(name), scatter=True)
    for stage, (window, unit) in enumerate(zip(module.arch.windows, module.arch.pretrained_windows, strict=True)):
        attn = module.stages[stage].blocks[0].attn
        rows = dict(
            zip(
                [(row, column) for row in range(1 - window, window) for column in range(1 - window, window)],
                torch.tensor(naive_coordinates(window, unit or window)),
                strict=True,
            )
        )
        cells = [(row, column) for row in range(window) for column in range(window)]
        pairs_LL2 = torch.stack([torch.stack([rows[a - c, b - d] for c, d in cells]) for a, b in cells])
        expected = 16 * torch.sigmoid(attn.cpb_mlp(pairs_LL2)).permute(2, 0, 1)
        torch.testing.assert_close(attn.position_bias(), expected, atol=1e-4, rtol=1e-4)


def naive_shift_mask(tokens: int, window: int) -> Tensor:
    """Pair by pair: two tokens of a window see each other when both wrapped around, or neither, in each direction.

    Where the window does not divide the grid, it is the padded one that wraps around.
    """
    shift, per_side = window // 2, math.ceil(tokens / window)
    side = per_side * window
    mask = torch.zeros(per_side**2, window**2, window**2)
    cells = [(row, column) for row in range(window) for column in range(window)]
    for n in range(per_side**2):
        top, left = n // per_side * window, n % per_side * window
        wrapped = [(top + row + shift >= side, left + column + shift >= side) for row, column in cells]
        for i, one in enumerate(wrapped):
            for j, other in enumerate(wrapped):
                mask[n, i, j] = 0.0 if one == other else MASK_VALUE
    return mask


@pytest.mark.parametrize(
    ("tokens", "window"), [(4, 2), (8, 2), (8, 4), (6, 3), (14, 7), (10, 5), (8, 7), (10, 4), (5, 3)]
)
def test_shift_mask_hides_what_only_the_shift_made_neighbours(tokens: int, window: int) -> None:
    assert torch.equal(shift_mask(tokens, window), naive_shift_mask(tokens, window))


def test_shifted_block_sees_its_window_only() -> None:
    """A change of one token reaches the tokens of its shifted window, and none across the border of the grid."""
    module = build(parse_name("Swin-E16x2.1.1.1-R64-P1-W16.32.16.8-N10"), scatter=True).eval()
    block = module.stages[0].blocks[1]
    assert isinstance(block, Block)
    assert (block.tokens, block.window, block.shift) == (64, 16, 8)
    x_BHWC = torch.randn(1, 64, 64, 16, generator=torch.Generator().manual_seed(0))
    changed = x_BHWC.clone()
    changed[0, 0, 10] += 1.0
    with torch.inference_mode():
        reached = (block.attend(changed) - block.attend(x_BHWC))[0].abs().amax(-1) > 1e-6
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[0:8, 8:24] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize(
    ("name", "shifts"),
    [
        (TINY, [[0, 3], [0, 3], [0, 3], [0, 0]]),
        ("Swin-E16x3.1.2.2-W14.7.14.7-S1010-R56-P1-N10", [[0, 7, 0], [0], [0, 0], [0, 0]]),
        ("Swin-Free-E16x2.2.2.2-R56-P1-N10", [[0, 0]] * 4),
    ],
)
def test_every_other_block_shifts_by_half_a_window(name: str, shifts: list[list[int]]) -> None:
    module = build(parse_name(name))
    assert [[block.shift for block in stage.blocks] for stage in module.stages] == shifts
    assert all((block.attn.mask is None) == (block.shift == 0) for stage in module.stages for block in stage.blocks)


# -- stochastic depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Swin-T", "Swin-Free-T", "Swin-T-BR", "Swin-T-W14.7.7.7-S0111"])
def test_small_windows_train_in_lanes_as_they_do_in_matrices(name: str) -> None:
    proxy = parse_name(name).proxy(ProxyScale(7, 2, embed_dim=16, head_dim=8), channels=1, num_classes=5)
    module = build(proxy, scatter=True).train()
    images = torch.randn(6, 1, proxy.image_size, proxy.image_size, generator=torch.Generator().manual_seed(0))
    found = []
    for has_lanes in (True, False):
        blocks = [block for block in module.modules() if isinstance(block, Block)]
        assert any(block.has_lanes for block in blocks) or not has_lanes
        for block in blocks:
            block.has_lanes = block.has_lanes and has_lanes
        module.zero_grad()
        logits = module(images)
        logits.square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
        found.append((logits, gradients))
    assert distance(found[0][0], found[1][0]) < LOGITS
    largest = max(float(gradient.abs().max()) for gradient in found[1][1].values() if gradient is not None)
    for key, gradient in found[1][1].items():
        other = found[0][1][key]
        assert gradient is not None
        assert other is not None
        assert (other - gradient).abs().max() < 1e-5 * largest, key


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_drop_path_rises_linearly_to_the_last_block(drop_path: float) -> None:
    module = build(parse_name("Swin-E16x1.2.3.1-R56-P1-N10"), drop_path=drop_path)
    rates = [module.p for module in module.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([drop_path * block / 6 for block in range(7)])


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    module = build(parse_name("Swin-E16x1.1.1.1-R56-P1-N10"), drop_path=1.0, scatter=True)
    last = module.stages[3].blocks[0]
    x_BHWC = torch.randn(2, 7, 7, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(last.train()(x_BHWC), x_BHWC)
    assert not torch.allclose(last.eval()(x_BHWC), x_BHWC)


# -- checkpointing ----------------------------------------------------------------------------------------------------


def trained_once(name: str, *, checkpointing: bool, drop_path: float) -> Swin:
    module = build(parse_name(name), scatter=True).train()
    for part in module.modules():
        if isinstance(part, StochasticDepth):
            part.p = drop_path
    module.checkpoint_blocks(checkpointing)
    torch.manual_seed(5)
    run_backward(module, random_images(module.arch, 4))
    return module


@pytest.mark.parametrize("drop_path", [0.0, 0.3])
@pytest.mark.parametrize("name", [TINY, TINY_BR, PADDED_V2])
def test_checkpointing_leaves_gradients_as_they_are(name: str, drop_path: float) -> None:
    expected = gradients(trained_once(name, checkpointing=False, drop_path=drop_path))
    found = gradients(trained_once(name, checkpointing=True, drop_path=drop_path))
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=1e-6, msg=key)


def test_checkpointing_leaves_running_statistics_as_they_are() -> None:
    expected = dict(trained_once(TINY_BR, checkpointing=False, drop_path=0.0).named_buffers())
    found = dict(trained_once(TINY_BR, checkpointing=True, drop_path=0.0).named_buffers())
    assert [name for name, values in expected.items() if not torch.equal(found[name], values)] == []


def test_checkpointing_leaves_gradients_of_frozen_batch_norms_as_they_are() -> None:
    found = []
    for checkpointing in (False, True):
        module = build(parse_name(TINY_BR), scatter=True).train()
        for part in module.modules():
            if isinstance(part, TokenBatchNorm):
                part.eval()
        module.checkpoint_blocks(checkpointing)
        run_backward(module, random_images(module.arch, 4))
        found.append(gradients(module))
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, atol=1e-6, rtol=1e-6, msg=key)


def test_checkpointing_computes_every_block_again_and_can_be_turned_off() -> None:
    module = build(parse_name(TINY_V2), scatter=True)
    images, calls = random_images(module.arch), []
    blocks = [block for stage in module.stages for block in stage.blocks]
    for block in blocks:
        block.register_forward_pre_hook(lambda block, _given: calls.append(block))

    def calls_a_block() -> float:
        calls.clear()
        run_backward(module, images)
        return len(calls) / len(blocks)

    assert calls_a_block() == 1
    module.checkpoint_blocks()
    assert calls_a_block() == 2
    module.checkpoint_blocks(False)
    assert calls_a_block() == 1


# -- precisions -------------------------------------------------------------------------------------------------------

#: Largest difference from fp32, in units of the logits' spread.
HALF: dict[torch.dtype, float] = {torch.bfloat16: 0.25, torch.float16: 0.03}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", [TINY, TINY_BR, TINY_V2, PADDED, PADDED_V2])
@pytest.mark.parametrize("converted", [False, True], ids=["autocast", "converted"])
def test_half_precision_logits_are_near_fp32(name: str, dtype: torch.dtype, converted: bool) -> None:
    module = build(parse_name(name), scatter=True).eval()
    images = random_images(module.arch, 2)
    with torch.inference_mode():
        expected = module(images)
        if converted:
            found = module.to(dtype)(images.to(dtype))
        else:
            with torch.autocast("cpu", dtype=dtype):
                found = module(images)
    assert found.dtype == dtype
    assert 0 < distance(found, expected) < HALF[dtype]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            id=f"{name}-{dtype}",
        )
        for name in (TINY, TINY_BR, TINY_V2, PADDED, PADDED_V2)
        for dtype in HALF
    ],
)
@pytest.mark.parametrize("converted", [False, True], ids=["autocast", "converted"])
def test_half_precision_gradients_are_finite(name: str, dtype: torch.dtype, converted: bool) -> None:
    module = build(parse_name(name), scatter=True).train()
    images = random_images(module.arch, 2)
    if converted:
        run_backward(module.to(dtype), images.to(dtype))
    else:
        with torch.autocast("cpu", dtype=dtype):
            run_backward(module, images)
    found = gradients(module)
    assert [key for key, gradient in found.items() if not gradient.isfinite().all()] == []
    assert [key for key, gradient in found.items() if not gradient.any()] == []


# -- torch.compile ----------------------------------------------------------------------------------------------------

COMPILED = "Swin-E16x2.1.1.1-W4.4.4.4-R32-P1-N10"
COMPILED_BR = "Swin-E16x2.1.1.1-W4.4.4.4-BR-R32-P1-N10"
COMPILED_V2 = "SwinV2-E16x2.1.1.1-W5.5.4.4-32-P1-N10"
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="inductor needs g++ and Python's headers on a CPU: apt-get install g++ python3-dev",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [COMPILED, COMPILED_BR, COMPILED_V2])
def test_compiled_module_trains_as_the_plain_one(name: str) -> None:
    module = build(parse_name(name), scatter=True).eval()
    images = random_images(module.arch, 2)
    logits = run_backward(module, images)
    expected = {key: gradient.clone() for key, gradient in gradients(module).items()}
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert distance(run_backward(compiled, images), logits) < LOGITS
    assert_same_gradients(gradients(module), expected)


@pytest.mark.slow
def test_compiled_checkpointing_counts_a_batch_once() -> None:
    found = []
    for checkpointing in (False, True):
        module = build(parse_name(COMPILED_BR), scatter=True).train()
        module.checkpoint_blocks(checkpointing)
        torch.compiler.reset()
        run_backward(torch.compile(module, backend="aot_eager"), random_images(module.arch, 2))
        found.append({key: values.clone() for key, values in module.state_dict().items()})
    for key, values in found[0].items():
        torch.testing.assert_close(found[1][key], values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "checkpointing"), [("aot_eager", True), pytest.param("inductor", False, marks=needs_compiler)]
)
def test_compiled_training_has_the_gradients_of_the_plain_one(
    backend: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module = build(parse_name(COMPILED), scatter=True).train()
    images = random_images(module.arch, 2)
    run_backward(module, images)
    expected = {key: gradient.clone() for key, gradient in gradients(module).items()}
    module.checkpoint_blocks(checkpointing)
    torch.compiler.reset()
    run_backward(torch.compile(module, backend=backend), images)
    assert_same_gradients(gradients(module), expected)


@pytest.mark.slow
@needs_compiler
def test_inductor_computes_the_logits_of_the_plain_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module = build(parse_name(COMPILED_V2), scatter=True).eval()
    images = random_images(module.arch, 2)
    torch.compiler.reset()
    with torch.inference_mode():
        assert distance(torch.compile(module, backend="inductor")(images), module(images)) < LOGITS
