"""Counts of parameters and FLOPs against published figures, the torch module and the exported graph."""

from __future__ import annotations

import math

import onnx
import pytest

from explorer.arch import NUM_STAGES, PRESETS, Arch, parse_name
from explorer.complexity import complexity_of
from explorer.model import build
from explorer.model.onnx_graph import write_onnx

ODD = (
    "Swin-E16x1.1.1.1-R64-P1-W4.16.8.4-C1-N1",
    "Swin-E24x1.2.3.1-H2.3.8.6-R56-P1-M2.5",
    "Swin-E36x3.1.1.2-H1.2.3.4-R112-P2-W8.14.7.7-BR-N7-M0.3",
    "Swin-Free-E16x2.2.5.2-R56-P1-BR-N10",
    "Swin-E8x1.1.2.1-R96-P3-W32.4.2.1-M1",
    "Swin-E16x2.2.1.1-R64-P1-W7.9.5.3-N10",
    "Swin-E16x2.2.1.1-R64-P1-W7.9.5.3-S1000-BR-N10",
    "SwinV2-E16x1.2.2.1-64-P1-W8.8.8.8-N10",
    "SwinV2-E16x2.1.2.1-H2.2.4.4-64-P1-W5.7.8.3-BR-C1-N3-F0.3.0.4",
)
#: Swin-S and -B differ from these in depth and width only; their modules are counted in the last test of the list.
MODULES = (*ODD, "Swin-T", "Swin-S", "Swin-B", "Swin-B-BR", "Swin-Free-T", "Swin-Free-T-BR", "Swin-Free-B-BR-DR12",
           "SwinV2-T", "SwinV2-B-224", "Swin-T-R256")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "params", "flops_G"),
    [
        ("Swin-T", 28_288_354, 4.5),
        ("Swin-S", 49_606_258, 8.7),
        ("Swin-B", 87_768_224, 15.4),
        ("SwinV2-T", 28_347_154, 5.9),
        ("SwinV2-S", 49_728_418, 11.5),
        ("SwinV2-B", 87_918_816, 20.3),
    ],
)
def test_swin_counts_are_those_of_its_authors(name: str, params: int, flops_G: float) -> None:
    """Liu et al. 2021, table 1 (FLOPs; both papers), and the parameters of the released models."""
    complexity = complexity_of(PRESETS[name])
    assert complexity.params_trainable == params
    assert round(complexity.flops / 1e9, 1) == flops_G


@pytest.mark.parametrize("name", MODULES)
def test_trainable_parameters_are_those_of_the_module(name: str) -> None:
    arch = parse_name(name)
    module = build(arch)
    assert complexity_of(arch).params_trainable == sum(p.numel() for p in module.parameters())
    for stage, counted in enumerate(complexity_of(arch).stages):
        entry = module.patch_embed.parameters() if stage == 0 else ()
        own = sum(p.numel() for p in (*entry, *module.stages[stage].parameters()))
        assert counted.params_trainable == own


@pytest.mark.parametrize("name", ["Swin-T", "Swin-B"])
def test_trainable_parameters_would_not_pass_for_deployed_ones(name: str) -> None:
    complexity = complexity_of(PRESETS[f"Swin-Free-{name[-1]}"])
    assert complexity.params_deployed > 1.1 * complexity.params_trainable


def graph_of(name: str, batch: int = 1) -> onnx.ModelProto:
    module = build(parse_name(name)).eval()
    return write_onnx(module, batch=batch, precision="fp32")


def graph_flops(model: onnx.ModelProto) -> int:
    """Multiply-adds of all MatMul nodes, from the shapes that ONNX infers."""
    shapes = shapes_of(model)
    flops = 0
    for node in model.graph.node:
        assert node.op_type not in ("Conv", "Gemm", "Einsum", "Attention")
        if node.op_type == "MatMul":
            inner = shapes[node.input[0]][-1]
            assert inner == shapes[node.input[1]][-2] > 0
            assert all(shapes[node.output[0]])
            flops += inner * math.prod(shapes[node.output[0]])
    return flops


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return shapes


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", [*ODD, "Swin-E32x2.2.2.2-R56-P1-N10"])
def test_flops_are_those_of_the_exported_graph(name: str, batch: int) -> None:
    assert graph_flops(graph_of(name, batch)) == pytest.approx(batch * complexity_of(parse_name(name)).flops, rel=1e-3)


@pytest.mark.parametrize("name", [*ODD, "Swin-T", "SwinV2-T"])
def test_flops_are_what_onnx_tool_counts_in_matrix_products(name: str) -> None:
    onnx_tool = pytest.importorskip("onnx_tool")
    counted = onnx_tool.Model(graph_of(name), {"verbose": False, "constant_folding": False})
    counted.graph.shape_infer(None)
    counted.graph.profile()
    products = sum(node.macs[0] for node in counted.graph.nodemap.values() if node.op_type == "MatMul")
    assert products == complexity_of(parse_name(name)).flops


@pytest.mark.parametrize(
    "name",
    [
        "Swin-E24x1.2.3.1-H2.3.8.6-R56-P1-S0000-M2.5",
        "Swin-Free-E16x2.2.5.2-R56-P1-N10",
        "Swin-E16x1.1.2.1-R64-P1-W7.9.5.3-S0000-N10",
        "SwinV2-E16x1.2.2.1-64-P1-W8.8.8.8-S0000-N10",
    ],
)
def test_deployed_parameters_are_the_floats_of_the_exported_graph(name: str) -> None:
    """Without shift masks, which are not counted, and with LayerNorm, which is not folded away."""
    # One bound, shared by all of Swin V2's cosines, is no parameter.
    constants = [each for each in graph_of(name).graph.initializer if each.name != "attn.cosine.least"]
    floats = sum(math.prod(each.dims) for each in constants if each.data_type == onnx.TensorProto.FLOAT)
    assert complexity_of(parse_name(name)).params_deployed == floats


@pytest.mark.parametrize("name", [*ODD, *PRESETS])
def test_totals_are_the_stages_and_the_head(name: str) -> None:
    arch = parse_name(name)
    complexity, dim = complexity_of(arch), arch.dim(NUM_STAGES - 1)
    head = dim * arch.num_classes
    assert complexity.flops == sum(stage.flops for stage in complexity.stages) + head
    for kind in ("params_trainable", "params_deployed"):
        assert (
            getattr(complexity, kind) - sum(getattr(s, kind) for s in complexity.stages)
            == head + arch.num_classes + 2 * dim
        )


def test_stages_tell_their_geometry() -> None:
    stages = complexity_of(PRESETS["Swin-Free-B-DR12"]).stages
    assert [stage.tokens for stage in stages] == [56, 28, 14, 7]
    assert [stage.window for stage in stages] == [7, 14, 14, 7]
    assert [stage.windows for stage in stages] == [64, 4, 1, 1]
    assert [stage.dim for stage in stages] == [128, 256, 512, 1024]
    assert [stage.num_heads for stage in stages] == [4, 8, 16, 32]
    assert [stage.depth for stage in stages] == [2, 2, 12, 2]
    assert [stage.padding for stage in stages] == [0, 0, 0, 0]
    assert not any(stage.shift for stage in stages)
    assert [stage.shift for stage in complexity_of(PRESETS["Swin-T"]).stages] == [True, True, True, False]


def test_arch_is_counted_in_its_canonical_form() -> None:
    assert complexity_of(Arch(windows=(7, 7, 30, 7))) == complexity_of(Arch(windows=(7, 7, 14, 7)))


def test_larger_windows_cost_flops_and_position_biases() -> None:
    small, large = complexity_of(Arch()), complexity_of(Arch(windows=(7, 7, 14, 7)))
    added = 18 * 16 * (14**4 - 7**4)
    assert large.params_deployed - small.params_deployed == added
    assert large.flops - small.flops == 18 * 2 * 14**2 * (14**2 - 7**2) * 512


def test_padded_stage_tells_its_windows_and_its_padding() -> None:
    stages = complexity_of(parse_name("Swin-T-R256")).stages
    assert [stage.tokens for stage in stages] == [64, 32, 16, 8]
    assert [stage.windows for stage in stages] == [100, 25, 9, 4]
    assert [stage.padding for stage in stages] == [6, 3, 5, 6]


# -- activation memory ------------------------------------------------------------------------------------------------

#: Operators that change the layout and hold no new values, and those that may write over what they read.
MOVES = {"Reshape", "Transpose", "Split", "Slice", "Concat", "Pad", "Cast"}
IN_PLACE = {"Add", "Mul", "Div", "Gelu", "Relu", "Softmax", "Max"}


def peak_bytes(model: onnx.ModelProto, stage: int) -> int:
    """The most bytes alive at once in the blocks of a stage, node by node, with what `MOVES` moves counted once."""
    shapes = shapes_of(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    holds: dict[str, tuple[str, ...]] = {}  # the values that a tensor is a view of
    sizes: dict[str, int] = {}
    last_use: dict[str, int] = {}

    def base(name: str) -> tuple[str, ...]:
        return holds.get(name, (name,))

    for index, node in enumerate(model.graph.node):
        inputs = [each for each in node.input if each not in constants]
        for output in node.output:
            if node.op_type in MOVES and inputs:
                # Parts of one tensor are kept apart, so that queries, keys and values are freed on their own.
                holds[output] = (
                    (output,) if node.op_type == "Split" else tuple(b for each in inputs for b in base(each))
                )
            sizes[output] = 4 * math.prod(shapes[output])
        for each in inputs:
            for value in base(each):
                last_use[value] = index
    alive: dict[str, int] = {}
    peak = 0
    for index, node in enumerate(model.graph.node):
        inputs = {value for each in node.input if each not in constants for value in base(each)} & alive.keys()
        finished = {value for value in inputs if last_use[value] == index}
        in_place = node.op_type == "Split" or node.op_type in IN_PLACE
        reused = next((v for v in finished if alive[v] >= sizes[node.output[0]]), None) if in_place else None
        if reused is not None:
            del alive[reused]
        alive |= {output: sizes[output] for output in node.output if base(output) == (output,)}
        if node.name.startswith(f"stages.{stage}.blocks."):
            peak = max(peak, sum(alive.values()))
        for value in finished:
            alive.pop(value, None)
    return peak


@pytest.mark.parametrize(
    "name",
    [
        "Swin-E32x2.2.2.2-H2.4.8.16-R56-P1-N10",
        "Swin-Free-E32x2.2.2.2-H4.8.16.32-R56-P1-N10",
        "Swin-E32x1.1.2.1-W56.28.14.7-R56-P1-N10-M1",
        "Swin-E16x1.1.1.1-W7.14.7.7-R56-P1-N10-M0.5-S0000",
    ],
)
def test_activation_memory_is_what_the_graph_keeps_alive(name: str) -> None:
    model, arch = graph_of(name), parse_name(name)
    for stage, counted in enumerate(complexity_of(arch).stages):
        assert counted.activation_bytes == pytest.approx(peak_bytes(model, stage), rel=1e-6), stage


def test_activation_memory_of_a_network_is_its_largest_stage_s() -> None:
    complexity = complexity_of(PRESETS["Swin-Free-B"])
    assert complexity.activation_bytes == max(stage.activation_bytes for stage in complexity.stages)
    # skip, queries, keys, values (4 x 28x28x256) and the scores of 14x14 windows (784 x 196 x 8), in fp32
    assert complexity.stages[1].activation_bytes == 4 * (4 * 784 * 256 + 784 * 196 * 8)
