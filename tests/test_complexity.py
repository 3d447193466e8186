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
)
#: Swin-S and -B differ from these in depth and width only; their modules are counted in the last test of the list.
MODULES = (*ODD, "Swin-T", "Swin-S", "Swin-B", "Swin-B-BR", "Swin-Free-T", "Swin-Free-T-BR", "Swin-Free-B-BR-DR12")

#: Koo et al. 2023, table 6: parameters of the deployed graph in millions.
TABLE_6_PARAMS_M = {
    "Swin-B": 88.7,
    "Swin-B-BR": 88.7,
    "Swin-Free-B": 99.4,
    "Swin-Free-T": 31.6,
    "Swin-Free-S": 58.3,
    "Swin-Free-T-BR": 31.6,
    "Swin-Free-S-BR": 58.3,
    "Swin-Free-B-BR": 99.4,
    "Swin-Free-B-DR10": 69.3,
    "Swin-Free-B-DR12": 76.8,
    "Swin-Free-B-DR14": 84.4,
    "Swin-Free-B-DR16": 91.9,
    "Swin-Free-B-BR-DR12": 76.9,
    "Swin-Free-B-BR-DR14": 84.4,
    "Swin-Free-B-BR-DR16": 91.9,
}


@pytest.mark.parametrize(
    ("name", "params", "flops_G"),
    [("Swin-T", 28_288_354, 4.5), ("Swin-S", 49_606_258, 8.7), ("Swin-B", 87_768_224, 15.4)],
)
def test_swin_counts_are_those_of_its_authors(name: str, params: int, flops_G: float) -> None:
    """Liu et al. 2021, table 1 (FLOPs), and the parameters of the released models."""
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


@pytest.mark.parametrize("name", TABLE_6_PARAMS_M)
def test_deployed_parameters_are_those_of_table_6(name: str) -> None:
    assert complexity_of(PRESETS[name]).params_deployed / 1e6 == pytest.approx(TABLE_6_PARAMS_M[name], rel=5e-3)


@pytest.mark.parametrize("name", ["Swin-T", "Swin-B"])
def test_trainable_parameters_would_not_pass_for_deployed_ones(name: str) -> None:
    complexity = complexity_of(PRESETS[f"Swin-Free-{name[-1]}"])
    assert complexity.params_deployed > 1.1 * complexity.params_trainable


def graph_of(name: str, batch: int = 1) -> onnx.ModelProto:
    module = build(parse_name(name)).eval()
    return onnx.load_from_string(write_onnx(module, batch=batch, precision="fp32"))


def graph_flops(model: onnx.ModelProto) -> int:
    """Multiply-adds of all MatMul and Conv nodes, from the shapes that ONNX infers."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    flops = 0
    for node in graph.node:
        match node.op_type:
            case "MatMul":
                inner = shapes[node.input[0]][-1]
                assert inner == shapes[node.input[1]][-2] > 0
            case "Conv":
                inner = math.prod(shapes[node.input[1]][1:])
            case _:
                continue
        assert all(shapes[node.output[0]])
        flops += inner * math.prod(shapes[node.output[0]])
    return flops


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", [*ODD, "Swin-E32x2.2.2.2-R56-P1-N10"])
def test_flops_are_those_of_the_exported_graph(name: str, batch: int) -> None:
    assert graph_flops(graph_of(name, batch)) == pytest.approx(batch * complexity_of(parse_name(name)).flops, rel=1e-3)


@pytest.mark.parametrize("name", ["Swin-E24x1.2.3.1-H2.3.8.6-R56-P1-S0000-M2.5", "Swin-Free-E16x2.2.5.2-R56-P1-N10"])
def test_deployed_parameters_are_the_floats_of_the_exported_graph(name: str) -> None:
    """Without shift masks, which are not counted, and with LayerNorm, which is not folded away."""
    constants = graph_of(name).graph.initializer
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
    assert not any(stage.shift for stage in stages)
    assert [stage.shift for stage in complexity_of(PRESETS["Swin-T"]).stages] == [True, True, True, False]


def test_arch_is_counted_in_its_canonical_form() -> None:
    assert complexity_of(Arch(windows=(7, 7, 30, 7))) == complexity_of(Arch(windows=(7, 7, 14, 7)))


def test_larger_windows_cost_flops_and_position_biases() -> None:
    small, large = complexity_of(Arch()), complexity_of(Arch(windows=(7, 7, 14, 7)))
    added = 18 * 16 * (14**4 - 7**4)
    assert large.params_deployed - small.params_deployed == added
    assert large.flops - small.flops == 18 * 2 * 14**2 * (14**2 - 7**2) * 512
