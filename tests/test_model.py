"""The torch modules: agreement with timm, initialisation, norms, gradients, windows and stochastic depth."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from explorer.arch import Arch, parse_name
from explorer.model import build
from explorer.model.swin import (
    MASK_VALUE,
    Block,
    Swin,
    TokenBatchNorm,
    merge,
    partition,
    relative_position_index,
    shift_mask,
)

TINY = "Swin-E16x2.2.2.2-R56-P1-N10"
TINY_BR = "Swin-E16x2.2.2.2-BR-R56-P1-N10"


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Norms 1 +- 0.2, biases +- 0.2, bias tables N(0, 1); linear weights spread what they read, unlike 0.02."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) * 0.4 - 0.2

    for name, parameter in module.named_parameters():
        if "bias_table" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        elif parameter.ndim == 1:
            parameter.copy_(uniform(parameter) + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
        else:
            spread = parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)


# -- timm -------------------------------------------------------------------------------------------------------------


def timm_key(key: str) -> str:
    for ours, theirs in (
        ("stages.", "layers."),
        ("merging", "downsample"),
        ("bias_table", "relative_position_bias_table"),
        ("head.", "head.fc."),
    ):
        key = key.replace(ours, theirs)
    return key


@pytest.fixture(scope="module")
def swin_tiny_pair() -> tuple[Swin, nn.Module]:
    """Our Swin-T and timm's, with the same random weights, in eval mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timm = pytest.importorskip("timm")
        theirs = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False).eval()
    ours = build(parse_name("Swin-T")).eval()
    randomise(ours)
    missing, unexpected = theirs.load_state_dict({timm_key(k): v for k, v in ours.state_dict().items()}, strict=False)
    assert not unexpected
    assert not [key for key in missing if "relative_position_index" not in key and "attn_mask" not in key]
    return ours, theirs


def test_logits_are_those_of_timm(swin_tiny_pair: tuple[Swin, nn.Module]) -> None:
    ours, theirs = swin_tiny_pair
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = ours(image), theirs(image)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def test_gradients_are_those_of_timm(swin_tiny_pair: tuple[Swin, nn.Module]) -> None:
    ours, theirs = swin_tiny_pair
    generator = torch.Generator().manual_seed(2)
    image, weights = torch.randn(1, 3, 224, 224, generator=generator), torch.randn(1000, generator=generator)
    for module in (ours, theirs):
        module.zero_grad()
        (module(image) * weights).sum().backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = their_gradients.pop(timm_key(name))
        assert parameter.grad is not None
        assert expected is not None
        # A third of a qkv bias is the keys', whose gradient is nothing but rounding: the softmax ignores them.
        assert (parameter.grad - expected).abs().max() <= 1e-3 * expected.abs().max(), name
    assert not their_gradients


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


def test_non_canonical_arch_builds_the_canonical_module() -> None:
    arch = parse_name(TINY)
    stretched = Arch.from_dict(arch.to_dict() | {"windows": [7, 7, 7, 70], "shifts": [True] * 4})
    assert build(stretched).arch == arch
    assert build(stretched).state_dict().keys() == build(arch).state_dict().keys()


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


@pytest.mark.parametrize("name", [TINY, TINY_BR, "Swin-Free-E16x2.2.2.2-R56-P1-C1-N10"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    arch = parse_name(name)
    module = build(arch).train()
    randomise(module)
    image = torch.randn(2, arch.channels, arch.image_size, arch.image_size, generator=torch.Generator().manual_seed(0))
    logits = module(image)
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


def naive_shift_mask(tokens: int, window: int) -> Tensor:
    """Pair by pair: two tokens of a window see each other when both wrapped around, or neither, in each direction."""
    shift, per_side = window // 2, tokens // window
    mask = torch.zeros(per_side**2, window**2, window**2)
    cells = [(row, column) for row in range(window) for column in range(window)]
    for n in range(per_side**2):
        top, left = n // per_side * window, n % per_side * window
        wrapped = [(top + row + shift >= tokens, left + column + shift >= tokens) for row, column in cells]
        for i, one in enumerate(wrapped):
            for j, other in enumerate(wrapped):
                mask[n, i, j] = 0.0 if one == other else MASK_VALUE
    return mask


@pytest.mark.parametrize(("tokens", "window"), [(4, 2), (8, 2), (8, 4), (6, 3), (14, 7), (10, 5)])
def test_shift_mask_hides_what_only_the_shift_made_neighbours(tokens: int, window: int) -> None:
    assert torch.equal(shift_mask(tokens, window), naive_shift_mask(tokens, window))


def test_shifted_block_sees_its_window_only() -> None:
    """A change of one token reaches the tokens of its shifted window, and none across the border of the grid."""
    block = build(parse_name("Swin-E16x2.1.1.1-R64-P1-W16.32.16.8-N10")).eval().stages[0].blocks[1]
    assert isinstance(block, Block)
    assert (block.tokens, block.window, block.shift) == (64, 16, 8)
    randomise(block)
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


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_drop_path_rises_linearly_to_the_last_block(drop_path: float) -> None:
    module = build(parse_name("Swin-E16x1.2.3.1-R56-P1-N10"), drop_path=drop_path)
    rates = [module.p for module in module.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([drop_path * block / 6 for block in range(7)])


def test_drop_path_drops_whole_samples_in_training_only() -> None:
    module = build(parse_name("Swin-E16x1.1.1.1-R56-P1-N10"), drop_path=1.0)
    randomise(module)
    last = module.stages[3].blocks[0]
    x_BHWC = torch.randn(2, 7, 7, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(last.train()(x_BHWC), x_BHWC)
    assert not torch.allclose(last.eval()(x_BHWC), x_BHWC)
