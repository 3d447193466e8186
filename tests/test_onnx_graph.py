"""The nodes of the deployed graph: how many there are, where, of which type and name, and what does not move a value."""

from __future__ import annotations

import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from explorer.arch import NUM_STAGES, PRESETS, Arch, parse_name
from explorer.model import GRAPH_VERSION, build
from explorer.model.onnx_graph import skeleton, write_onnx
from explorer.model.onnx_writer import OPSET, ROLES, role_of
from explorer.model.swin import Block, Swin
from explorer.records import Precision

SHIFT = "Swin-E16x2.2.2.2-H2.4.8.16-R56-P1-N10"
SHIFT_BR = "Swin-E16x2.3.2.2-BR-H2.4.8.16-R56-P1-N10"
FREE = "Swin-Free-E16x1.2.3.1-H2.4.8.16-R56-P1-N10"
FREE_BR = "Swin-Free-E16x1.2.3.1-BR-H2.4.8.16-R56-P1-N10"
V2 = "SwinV2-E16x1.2.3.1-H2.2.4.4-32-P1-N10"
V2_BR = "SwinV2-E16x1.2.3.1-BR-H2.2.4.4-32-P1-N10-F8.0.0.0"
#: Two windows a side in every stage; the last block shifts.
LAST_SHIFTS = "Swin-E16x1.1.1.2-W16.8.4.2-H2.2.2.2-R32-P1-N10"
#: Every stage one window.
ONE_WINDOW = "Swin-E16x1.2.1.1-W32.16.8.4-BR-H2.2.2.2-R32-P1-N10"
#: Windows that do not divide the grids of 32, 16 and 4; 8 is divided.
PADDED = "Swin-E16x2.2.2.2-W5.7.4.3-H2.2.2.2-R32-P1-N10"
PADDED_BR = "Swin-E16x2.2.2.2-W5.7.4.3-S1011-BR-H2.2.2.2-R32-P1-N10"
V2_PADDED_BR = "SwinV2-E16x2.2.2.2-W5.7.4.3-BR-H2.2.2.2-32-P1-N10"
MIXED = "Swin-E16x3.2.2.1-H2.2.4.8-W4.8.2.4-S1010-BR-R32-P1-C1-N10-M2.5"
NAMES = (
    SHIFT,
    SHIFT_BR,
    FREE,
    FREE_BR,
    V2,
    V2_BR,
    LAST_SHIFTS,
    ONE_WINDOW,
    PADDED,
    PADDED_BR,
    V2_PADDED_BR,
    MIXED,
)
UNPADDED = tuple(name for name in NAMES if "W5.7" not in name)
BATCH_NORMED = tuple(name for name in UNPADDED if "-BR" in name)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
ELEMENT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FLOATING = set(ELEMENT_TYPES.values()) | {TensorProto.DOUBLE}


@cache
def module_of(name: str) -> Swin:
    return build(parse_name(name), scatter=True).eval()


@cache
def model_of(name: str, batch: int | None = 1, precision: Precision = "fp32") -> onnx.ModelProto:
    return write_onnx(module_of(name), batch=batch, precision=precision)


@cache
def inferred(name: str, batch: int | None = 1, precision: Precision = "fp32") -> dict[str, onnx.TypeProto.Tensor]:
    """Type and shape of every tensor that a node writes, by the tensor's name."""
    model = onnx.shape_inference.infer_shapes(
        model_of(name, batch, precision), strict_mode=True, data_prop=True, check_type=True
    )
    found = {value.name: value.type.tensor_type for value in (*model.graph.value_info, *model.graph.output)}
    assert set(found) == {output for node in model.graph.node for output in node.output}
    return found


def node_names(name: str, *operators: str) -> list[str]:
    return [node.name for node in model_of(name).graph.node if not operators or node.op_type in operators]


def constants_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {constant.name: constant for constant in model.graph.initializer}


def blocks_where(arch: Arch, condition: Any) -> set[str]:
    """Names of the blocks for whose (stage, block) the condition holds."""
    places = ((stage, block) for stage in range(NUM_STAGES) for block in range(arch.depths[stage]))
    return {f"stages.{stage}.blocks.{block}" for stage, block in places if condition(stage, block)}


def block_of(node_name: str) -> str:
    return ".".join(node_name.split(".")[:4])


# -- how many nodes ---------------------------------------------------------------------------------------------------


def expected_counts(arch: Arch, precision: Precision) -> Counter[str]:
    """All nodes but those that re-order (Reshape, Transpose), counted from the papers' figures."""
    blocks = sum(arch.depths)
    padded = sum(depth for stage, depth in enumerate(arch.depths) if arch.is_padded(stage))
    merges, last = NUM_STAGES - 1, NUM_STAGES - 1
    counts = Counter(
        {
            # patches; qkv, scores, mix, projection, two of the MLP; merging; head
            "MatMul": 1 + 6 * blocks + merges + 1,
            # biases of the linear layers but the merging's; position bias and two skips a block
            "Add": 1 + (4 + 1 + 2) * blocks + 1,
            "Split": blocks,
            "Softmax": blocks,
            "Relu" if arch.br else "Gelu": blocks,
            "ReduceMean": 1,
        }
    )
    if arch.br:
        counts["Add"] += merges  # what the folded norm leaves of its shift
        if not arch.v2:
            counts.update({"Mul": padded, "Add": padded})
    else:
        counts["LayerNormalization"] = 1 + 2 * blocks + merges + 1
    if arch.v2:
        counts.update({"ReduceL2": 2 * blocks, "Max": 2 * blocks, "Div": 2 * blocks, "Mul": blocks})
        counts["Cast"] = 0 if precision == "fp32" else 4 * blocks
    # One gather before a shifted block and one after it, the merging's where one follows, none before the mean.
    rolls = 2 * len(blocks_where(arch, arch.has_shift))
    rolls -= arch.has_shift(last, arch.depths[last] - 1) and not arch.is_padded(last)
    counts.update({"Pad": padded, "Slice": padded, "Gather": rolls})
    return +counts


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_graph_has_exactly_the_nodes_that_compute_the_network(name: str, precision: Precision) -> None:
    counts = Counter(node.op_type for node in model_of(name, 1, precision).graph.node)
    del counts["Reshape"], counts["Transpose"]
    assert counts == expected_counts(parse_name(name), precision)


@pytest.mark.parametrize("name", [name for name in PRESETS if "-DR" not in name and "-S" not in name])
def test_presets_have_exactly_the_nodes_that_compute_the_network(name: str) -> None:
    counts = Counter(node.op_type for node in skeleton(PRESETS[name]).graph.node)
    del counts["Reshape"], counts["Transpose"]
    assert counts == expected_counts(PRESETS[name], "fp32")


@pytest.mark.parametrize("name", BATCH_NORMED)
def test_batch_norm_leaves_no_node_where_nothing_is_padded(name: str) -> None:
    roles = Counter(role_of(node) for node in node_names(name))
    assert not {"norm", "norm1", "norm2", "merging.norm"} & roles.keys()
    assert not [node for node in node_names(name) if "norm" in node]
    assert "BatchNormalization" not in {node.op_type for node in model_of(name).graph.node}


@pytest.mark.parametrize("name", BATCH_NORMED)
def test_every_linear_layer_is_one_product_and_one_bias_after_folding(name: str) -> None:
    nodes = model_of(name).graph.node
    linear = {key for key, each in module_of(name).named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    linear = {key for key in linear if "cpb_mlp" not in key}
    for key in linear:
        assert [node.op_type for node in nodes if node.name in (key, f"{key}.add_bias")] == ["MatMul", "Add"]


@pytest.mark.parametrize("name", [PADDED_BR, V2_PADDED_BR, SHIFT_BR])
def test_scale_and_shift_of_a_batch_norm_stay_before_padding_alone(name: str) -> None:
    """Swin V2's norms stand after the attention and always fold."""
    arch = parse_name(name)
    expected = set() if arch.v2 else blocks_where(arch, lambda stage, _: arch.is_padded(stage))
    assert (name == PADDED_BR) == bool(expected)
    kept = {node.name: node.op_type for node in model_of(name).graph.node if "norm" in node.name}
    assert kept == {f"{block}.norm1.scale": "Mul" for block in expected} | {
        f"{block}.norm1.shift": "Add" for block in expected
    }


@pytest.mark.parametrize("name", NAMES)
def test_position_bias_and_mask_are_one_constant_and_one_addition(name: str) -> None:
    module, model = module_of(name), model_of(name, 3)
    constants = constants_of(model)
    added = {node.name: node for node in model.graph.node if ".attn.bias" in node.name and node.op_type == "Add"}
    blocks = {key: each for key, each in module.named_modules() if isinstance(each, Block)}
    assert set(added) == {f"{key}.attn.bias" for key in blocks}
    for key, block in blocks.items():
        (table,) = [constants[each] for each in added[f"{key}.attn.bias"].input if each in constants]
        windows = (-(-block.tokens // block.window)) ** 2 if block.shift else 1
        assert list(table.dims) == [windows, block.attn.num_heads, block.window**2, block.window**2]
        expected = block.attn.position_bias()[None]
        if block.shift:
            assert block.attn.mask is not None
            expected = expected + block.attn.mask[:, None]
        assert np.array_equal(numpy_helper.to_array(table), expected.detach().numpy())


@pytest.mark.parametrize("name", [SHIFT, FREE, PADDED])
def test_query_scale_is_in_the_weights(name: str) -> None:
    module, constants = module_of(name), constants_of(model_of(name))
    for key, block in module.named_modules():
        if not isinstance(block, Block):
            continue
        dim = block.attn.proj.in_features
        scale = torch.ones(3 * dim, dtype=torch.float64)
        scale[:dim] = (dim // block.attn.num_heads) ** -0.5
        weight = numpy_helper.to_array(constants[f"{key}.attn.qkv.weight"])
        assert np.array_equal(weight, (block.attn.qkv.weight.double().T * scale).float().detach().numpy())
    assert not [node for node in model_of(name).graph.node if node.op_type in ("Mul", "Div", "Sqrt", "Pow")]


def test_epsilon_of_layer_norm_is_the_module_s() -> None:
    norms = [node for node in model_of(SHIFT).graph.node if node.op_type == "LayerNormalization"]
    epsilons = {attribute.f for node in norms for attribute in node.attribute if attribute.name == "epsilon"}
    assert epsilons == {np.float32(1e-5).item()}


# -- where tokens are re-ordered --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [FREE, FREE_BR, ONE_WINDOW])
def test_model_without_shift_and_padding_moves_tokens_by_reshape_and_transpose_alone(name: str) -> None:
    moves = {"Slice", "Concat", "Pad", "Gather", "GatherND", "ScatterND", "Roll", "Expand", "Tile"}
    assert not moves & {node.op_type for node in model_of(name).graph.node}


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_rolled_around_the_blocks_that_shift_alone(name: str) -> None:
    """Rolled back after a block is: before the next one, or by the merging."""
    arch = parse_name(name)
    rolled = [each for each in node_names(name, "Gather") if role_of(each) == "shift"]
    assert sorted(block_of(each) for each in rolled) == sorted(blocks_where(arch, arch.has_shift))
    back = [each for each in node_names(name, "Gather") if role_of(each) != "shift"]
    expected = set()
    for stage, depth in enumerate(arch.depths):
        for block in range(depth):
            if not arch.has_shift(stage, block):
                continue
            if arch.is_padded(stage):
                expected.add(f"stages.{stage}.blocks.{block}.unshift")
            elif block + 1 < depth:
                expected.add(f"stages.{stage}.blocks.{block + 1}.unshift")
            elif stage + 1 < NUM_STAGES:
                expected.add(f"stages.{stage + 1}.merging.gather")
    assert sorted(back) == sorted(expected)


@pytest.mark.parametrize("name", [PADDED, PADDED_BR, V2_PADDED_BR])
def test_padding_stands_where_windows_do_not_divide_the_grid_alone(name: str) -> None:
    arch = parse_name(name)
    expected = blocks_where(arch, lambda stage, _: arch.is_padded(stage))
    assert expected != blocks_where(arch, lambda *_: True)
    for role in ("pad", "crop"):
        assert {block_of(each) for each in node_names(name) if role_of(each) == role} == expected


#: Every Transpose outside the attention, written down by hand from what `explorer.model.onnx_graph` promises.
MERGINGS = [f"stages.{stage}.merging.gather" for stage in (1, 2, 3)]
OUTSIDE_ATTENTION = {
    # Stages 2 to 4 are entered through one re-ordering each; windows of 7 hold no whole 2x2 neighbours, so that those of
    # stage 1 are merged first.
    "Swin-Free-B": ["patch_embed.gather", "stages.0.merge", *MERGINGS],
    # What a shift begins or ends is a gather, the mergings included, since every stage before one ends shifted.
    "Swin-T": ["patch_embed.gather"],
    # Windows of 8, 4, 2 and 1 become one another by merging inside them.
    "Swin-E16x2.2.2.2-W8.4.2.1-S0000-H2.2.2.2-R32-P1": ["patch_embed.gather", *MERGINGS],
    ONE_WINDOW: ["patch_embed.gather", *MERGINGS],
    # From one window to several.
    "Swin-E16x1.1.1.1-W32.8.8.2-H2.2.2.2-R32-P1": ["patch_embed.gather", *MERGINGS],
    # The last block's order is that of the mean.
    LAST_SHIFTS: ["patch_embed.gather", *MERGINGS],
    # In and out of each of the six padded attentions. The blocks of stage 3, the second of which shifts, are not padded.
    PADDED: [
        "patch_embed.gather",
        *MERGINGS[:2],
        *(f"stages.{s}.blocks.{b}.{move}" for s in (0, 1, 3) for b in (0, 1) for move in ("partition", "merge")),
    ],
}


@pytest.mark.parametrize("name", OUTSIDE_ATTENTION)
def test_transposes_outside_the_attention_are_those_that_layouts_need(name: str) -> None:
    nodes = skeleton(parse_name(name)).graph.node
    found = [node.name for node in nodes if node.op_type == "Transpose" and ".attn." not in node.name]
    assert sorted(found) == sorted(OUTSIDE_ATTENTION[name])
    inside = [node for node in nodes if node.op_type == "Transpose" and ".attn." in node.name]
    assert len(inside) == 4 * sum(parse_name(name).depths)


@pytest.mark.parametrize("name", NAMES)
def test_one_window_needs_no_partition(name: str) -> None:
    arch = parse_name(name)
    single = blocks_where(arch, lambda stage, _: arch.windows[stage] == arch.tokens[stage])
    moved = [each for each in node_names(name, "Transpose", "Gather", "Slice", "Pad") if ".attn." not in each]
    assert single.isdisjoint(block_of(each) for each in moved)
    assert {"partition", "merge"}.isdisjoint(role_of(each) for each in node_names(name) if block_of(each) in single)


def chains_of(name: str, batch: int) -> Iterator[list[onnx.NodeProto]]:
    """All longest chains of Reshape, Transpose and Gather nodes in which every tensor has one reader."""
    nodes = model_of(name, batch).graph.node
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for each in node.input:
            readers[each].append(node)
    moves = {node.output[0]: node for node in nodes if node.op_type in ("Reshape", "Transpose", "Gather")}
    for node in moves.values():
        if node.input[0] in moves and len(readers[node.input[0]]) == 1:
            continue
        chain = [node]
        while len(after := readers[chain[-1].output[0]]) == 1 and after[0].output[0] in moves:
            chain += after
        yield chain


def leaves_order(
    chain: list[onnx.NodeProto], shapes: dict[str, list[int]], constants: dict[str, onnx.TensorProto]
) -> bool:
    """Whether the chain writes its numbers in the order in which it read them."""
    shape = shapes[chain[0].input[0]]
    before = np.arange(np.prod(shape))
    x = before.reshape(shape)
    for node in chain:
        match node.op_type:
            case "Transpose":
                x = x.transpose(next(each.ints for each in node.attribute if each.name == "perm"))
            case "Gather":
                x = x.take(numpy_helper.to_array(constants[node.input[1]]), axis=1)
            case _:
                x = x.reshape(shapes[node.output[0]])
        assert list(x.shape) == shapes[node.output[0]]
    return np.array_equal(x.ravel(), before)


def idle_chains(name: str, batch: int) -> list[list[str]]:
    """All stretches of chains that begin and end with a Transpose or a Gather and change nothing."""
    model, idle = model_of(name, batch), []
    constants = constants_of(model)
    shapes = {key: [dim.dim_value for dim in each.shape.dim] for key, each in inferred(name, batch).items()}
    shapes["image"] = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    for chain in chains_of(name, batch):
        places = [place for place, node in enumerate(chain) if node.op_type != "Reshape"]
        stretches = [chain[first : last + 1] for first in places for last in places if first <= last]
        idle += [[node.name for node in each] for each in stretches if leaves_order(each, shapes, constants)]
    return idle


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_no_chain_of_transposes_leaves_values_where_they_were(name: str, batch: int) -> None:
    chains = list(chains_of(name, batch))
    assert max(len(chain) for chain in chains) > 2
    moves = [node for node in model_of(name, batch).graph.node if node.op_type in ("Reshape", "Transpose", "Gather")]
    assert sum(len(chain) for chain in chains) == len(moves)
    assert idle_chains(name, batch) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_reshape_changes_the_shape(name: str) -> None:
    shapes = {key: [dim.dim_value for dim in each.shape.dim] for key, each in inferred(name, 2).items()}
    reshapes = [node for node in model_of(name, 2).graph.node if node.op_type == "Reshape" and node.input[0] in shapes]
    assert len(reshapes) > 4 * sum(parse_name(name).depths)
    assert [node.name for node in reshapes if shapes[node.input[0]] == shapes[node.output[0]]] == []


def test_chains_that_cancel_would_be_found() -> None:
    shapes = {
        "x": [2, 12],
        "a": [2, 3, 4],
        "b": [2, 4, 3],
        "c": [2, 12],
        "d": [2, 3, 4],
        "e": [2, 4, 3],
        "f": [2, 3, 4],
    }
    split, swap = onnx.helper.make_node("Reshape", ["x", ""], ["a"]), ("Transpose", [0, 2, 1])
    there = onnx.helper.make_node(swap[0], ["a"], ["b"], perm=swap[1])
    again = onnx.helper.make_node(swap[0], ["d"], ["e"], perm=swap[1])
    back = onnx.helper.make_node(swap[0], ["b"], ["f"], perm=swap[1])
    join, cut = onnx.helper.make_node("Reshape", ["b", ""], ["c"]), onnx.helper.make_node("Reshape", ["c", ""], ["d"])
    assert leaves_order([split, there, back], shapes, {})
    assert not leaves_order([split, there, join], shapes, {})
    assert not leaves_order([split, there, join, cut, again], shapes, {})


def test_windows_of_one_token_need_no_transpose() -> None:
    nodes = skeleton(parse_name("Swin-E16x1.1.1.1-W1.1.4.4-H2.2.2.2-R32-P1")).graph.node
    outside = [node.name for node in nodes if node.op_type == "Transpose" and ".attn." not in node.name]
    assert [each for each in outside if each.startswith(("stages.0.", "stages.1.blocks"))] == []


@pytest.mark.parametrize("name", ["Swin-B-W14.14.14.7-S0000", "SwinV2-T-W8.16.16.8-S0000"])
def test_windows_that_grow_across_a_merging_are_partitioned_after_it(name: str) -> None:
    """One transpose for both would have 10 dims, more than TensorRT takes."""
    nodes = skeleton(parse_name(name)).graph.node
    outside = [node.name for node in nodes if node.op_type == "Transpose" and ".attn." not in node.name]
    assert outside == ["patch_embed.gather", MERGINGS[0], "stages.1.blocks.0.partition", *MERGINGS[1:]]
    assert max(len(node.attribute[0].ints) for node in nodes if node.op_type == "Transpose") <= 8


# -- types and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "precision"), [(1, "fp32"), (3, "fp16"), (3, "bf16"), (None, "fp32"), (None, "bf16")]
)
@pytest.mark.parametrize("name", NAMES)
def test_graph_passes_the_full_check(name: str, batch: int | None, precision: Precision) -> None:
    model = model_of(name, batch, precision)
    onnx.checker.check_model(model, full_check=True)
    arch = parse_name(name)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    version = str(GRAPH_VERSION)
    assert properties == {"arch": arch.name, "arch_id": arch.id, "graph_version": version, "precision": precision}
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    images = "batch" if batch is None else batch
    dims = [[each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim] for value in ends(model)]
    assert dims == [[images, arch.channels, arch.image_size, arch.image_size], [images, arch.num_classes]]


def ends(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_the_type_of_the_graph(name: str, precision: Precision, batch: int | None) -> None:
    """But Swin V2's cosines in half precision: fp32 from the cast before them to the cast after them."""
    model, own = model_of(name, batch, precision), ELEMENT_TYPES[precision]
    assert {value.type.tensor_type.elem_type for value in ends(model)} == {own}
    kept, constants = set(), set()
    if parse_name(name).v2 and precision != "fp32":
        cosines = [node for node in model.graph.node if role_of(node.name) == "attn.cosine"]
        kept = {node.name for node in cosines if not node.name.endswith(".narrow")}
        constants = {node.name + ".value" for node in cosines if node.name.endswith("query.scale")}
        constants.add("attn.cosine.least")
        assert len(kept) == 9 * sum(parse_name(name).depths)
    values = {key: each.elem_type for key, each in inferred(name, batch, precision).items()}
    floating = {each.name: each.data_type for each in model.graph.initializer if each.data_type in FLOATING}
    assert {key for key, element_type in values.items() if element_type != own} == kept
    assert {key for key, element_type in floating.items() if element_type != own} == constants
    assert {values[key] for key in kept} | {floating[key] for key in constants} <= {TensorProto.FLOAT}
    others = {each.data_type for each in model.graph.initializer} - FLOATING
    assert others == {TensorProto.INT64}


@pytest.mark.parametrize("name", NAMES)
def test_weights_do_not_depend_on_the_batch(name: str) -> None:
    def weights(batch: int | None) -> dict[str, bytes]:
        constants = constants_of(model_of(name, batch)).values()
        return {each.name: each.SerializeToString() for each in constants if each.data_type == TensorProto.FLOAT}

    expected = weights(1)
    assert len(expected) > 20
    assert weights(2) == expected
    assert weights(None) == expected


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_a_dynamic_graph_are_those_of_a_fixed_one_but_for_the_first_dim(name: str) -> None:
    fixed, dynamic = inferred(name, 2), inferred(name, None)
    assert fixed.keys() == dynamic.keys()
    for key, each in dynamic.items():
        dims = [dim.dim_value for dim in each.shape.dim]
        assert dims[0] == 0, key
        assert dims[1:] == [dim.dim_value for dim in fixed[key].shape.dim][1:], key


# -- names and roles --------------------------------------------------------------------------------------------------

LINEAR, ORDER, ROLL = {"MatMul", "Add"}, {"Reshape", "Transpose"}, {"Gather", "Reshape"}
#: Operators by role, over all of NAMES.
OPERATORS = {
    "patch_embed.proj": LINEAR,
    "patch_embed": ORDER | {"LayerNormalization"},
    "merging.reduction": LINEAR,
    "merging.norm": {"LayerNormalization"},
    "merging": ORDER | {"Gather"},
    "norm1": {"LayerNormalization", "Mul", "Add"},
    "norm2": {"LayerNormalization"},
    "norm": {"LayerNormalization"},
    "partition": ORDER,
    "merge": ORDER,
    "shift": ROLL,
    "unshift": {"Gather"},
    "pad": {"Pad", "Reshape"},
    "crop": {"Slice", "Reshape"},
    "attn.qkv": LINEAR,
    "attn.heads": ORDER | {"Split"},
    "attn.cosine": {"Cast", "ReduceL2", "Max", "Div", "Mul"},
    "attn.scores": {"MatMul"},
    "attn.bias": {"Add", "Reshape"},
    "attn.softmax": {"Softmax"},
    "attn.mix": {"MatMul"},
    "attn.proj": LINEAR,
    "mlp.fc1": LINEAR,
    "mlp.gelu": {"Gelu"},
    "mlp.relu": {"Relu"},
    "mlp.fc2": LINEAR,
    "skip": {"Add"},
    "head": LINEAR | {"ReduceMean", "Reshape"},
}


def test_roles_hold_the_operators_that_their_names_say() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for name in NAMES:
        for precision in ("fp32", "fp16"):
            for node in model_of(name, 3, precision).graph.node:
                found[role_of(node.name)].add(node.op_type)
    assert found == OPERATORS
    assert set(ROLES) == set(OPERATORS)


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_named_once_and_after_its_module(name: str, batch: int | None) -> None:
    module, nodes = module_of(name), model_of(name, batch, "fp16").graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert [each for each in names if role_of(each) not in ROLES] == []
    stages = {key for key, _ in module.named_modules() if key.startswith("stages.") and key.count(".") == 1}
    inner = {key for key, _ in module.named_modules() if key.startswith("stages.") and key.count(".") == 3}
    for each in names:
        if each.startswith("stages."):
            # After the module stands the role, which for what happens in a block is under that block's name.
            place = block_of(each) if ".blocks." in each else ".".join(each.split(".")[:2])
            assert place in (inner if ".blocks." in each else stages)
            assert each.removeprefix(f"{place}.").startswith(role_of(each))
        else:
            assert each.split(".")[0] in ("patch_embed", "norm", "head")
    blocks = {key for key, each in module.named_modules() if isinstance(each, Block)}
    assert {block_of(each) for each in names if ".blocks." in each} == blocks


@pytest.mark.parametrize(
    ("node", "role"),
    [
        ("stages.2.blocks.5.attn.softmax", "attn.softmax"),
        ("stages.12.blocks.10.attn.qkv.add_bias", "attn.qkv"),
        ("stages.0.merge.split", "merge"),
        ("stages.1.merging.reduction", "merging.reduction"),
        ("stages.1.merging.gather", "merging"),
        ("patch_embed.norm", "patch_embed"),
        ("head.mean", "head"),
        ("norm", "norm"),
        ("", "other"),
        ("stages.0.blocks.0", "other"),
        ("stages.0.blocks.0.attn", "other"),
        ("stages.0.blocks.0.attn.softmaxed", "other"),
        ("/stages.0/blocks.0/attn/Softmax", "other"),
        ("stages.0.blocks.0.mlp.gelu_1", "other"),
    ],
)
def test_role_of_a_node(node: str, role: str) -> None:
    assert role_of(node) == role


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("name", NAMES)
def test_order_of_inputs_is_the_order_of_nodes(name: str, batch: int | None) -> None:
    """A node reads what stands before it, every constant is read and every output but the logits too."""
    model = model_of(name, batch)
    known = {"image"} | {constant.name for constant in model.graph.initializer}
    read: set[str] = set()
    for node in model.graph.node:
        assert set(node.input) <= known, node.name
        known |= set(node.output)
        read |= set(node.input)
    assert known - read == {"logits"}


# -- skeleton ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "precision"), [(1, "fp16"), (3, "fp32"), (3, "bf16"), (None, "fp32"), (None, "bf16")]
)
@pytest.mark.parametrize("name", NAMES)
def test_skeleton_is_the_graph_without_its_weights(name: str, precision: Precision, batch: int | None) -> None:
    real, bare = model_of(name, batch, precision), skeleton(parse_name(name), batch=batch, precision=precision)
    assert [(node.name, node.op_type, list(node.input), list(node.output)) for node in bare.graph.node] == [
        (node.name, node.op_type, list(node.input), list(node.output)) for node in real.graph.node
    ]
    assert list(bare.graph.node) == list(real.graph.node)
    assert ends(bare) == ends(real)
    weights = {key for key, each in constants_of(real).items() if each.data_type == ELEMENT_TYPES[precision]}
    weights = {key for key in weights if ".cosine." not in key}
    assert len(weights) > 20
    assert constants_of(bare).keys() == constants_of(real).keys()
    for key, each in constants_of(bare).items():
        full = constants_of(real)[key]
        assert (list(each.dims), each.data_type) == (list(full.dims), full.data_type)
        has_data = bool(each.raw_data or each.float_data or each.int32_data or each.int64_data)
        assert has_data == (key not in weights)
        assert each == full or key in weights or key.endswith("cosine.query.scale.value")


@pytest.mark.parametrize("name", ["Swin-B", "SwinV2-B", "Swin-Free-B-BR"])
def test_skeleton_of_a_large_network_costs_next_to_nothing(name: str) -> None:
    """Its weights alone are 350 MB."""
    tracemalloc.start()
    bare = skeleton(PRESETS[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bare.ByteSize() < 1_000_000
    assert peak < 20_000_000
