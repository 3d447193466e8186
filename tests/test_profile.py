"""Where the time goes: parts of real profiles of ONNX Runtime and torch, TensorRT's layers, and the command."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnx import NodeProto, helper
from typer.testing import CliRunner

from explorer import latency, model
from explorer.arch import Arch, parse_name
from explorer.cli import app
from explorer.errors import BackendMissing, MeasureError
from explorer.latency.measurer import deployed_for
from explorer.latency.profile import GROUPS, OUTSIDE, WARM_UP_RUNS, Part, Profile, part_of, profile
from explorer.latency.profile_ort import node_times, parts_of_nodes
from explorer.latency.profile_torch import node_of, parts_of_events, scopes
from explorer.latency.profile_trt import PRECEDENCE, parts_of_layers
from explorer.model.onnx_writer import ROLES
from explorer.paper import TABLE_1
from explorer.records import Precision, Target

SWIN = "Swin-E16x2.2.2.2-R56-P1-N10"
FREE = "Swin-Free-E16x2.2.2.2-R56-P1-N10"
BR = "Swin-E16x2.2.2.2-BR-R56-P1-N10"
V2 = "SwinV2-E32x2.2.2.2-W7.7.7.7-R56-P1-N10"
PADDED = "Swin-E16x2.2.2.2-W5.5.5.5-R56-P1-N10"
PADDED_BR = "Swin-E16x1.1.1.1-W5.5.5.5-BR-R56-P1-N10"


def target_of(arch: Arch, backend: str, precision: Precision = "fp32", batch: int = 1) -> Target:
    target, _ = latency.resolve(backend, device="cpu", precision=precision, batch=batch, image_size=arch.image_size)
    return target


def profiled(name: str, backend: str, precision: Precision = "fp32", batch: int = 1) -> Profile:
    arch = parse_name(name)
    target = target_of(arch, backend, precision, batch)
    return profile(deployed_for(arch, target), target, runs=2)


# -- real profiles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SWIN, FREE, BR, V2, PADDED])
@pytest.mark.parametrize(
    ("backend", "precision"), [("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("torch", "fp32"), ("torch", "bf16")]
)
def test_every_part_of_a_network_is_attributed(name: str, backend: str, precision: Precision) -> None:
    found = profiled(name, backend, precision)
    shares = found.by_group()
    assert [part.node for part in found.parts if part.group == "other"] == []
    assert list(shares) == list(GROUPS)
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(found.by_stage().values()) == pytest.approx(1)
    assert all(share > 0 for share in found.by_stage().values())
    assert found.total_ms == pytest.approx(sum(part.ms for part in found.parts))
    assert found.plain_ms > 0
    arch = parse_name(name)
    assert (found.arch_id, found.num_runs) == (arch.id, 2)
    busy = {group for group, share in shares.items() if share > 0}
    expected = {
        "attention",
        "attention projections",
        "MLP",
        "activation",
        "patch merging",
        "patch embedding",
        "residual",
    }
    assert expected | {"head"} <= busy
    assert ("window shift" in busy) == any(arch.shifts)
    # A BatchNorm is folded in the graph and not in the module.
    assert ("norm" in busy) == (backend == "torch" or not arch.br)
    assert ("softmax" in busy) == (backend == "onnxruntime")
    assert any(remark.startswith("softmax") for remark in found.remarks) == (backend == "torch")


def test_batchnorm_before_padded_tokens_stays_a_norm() -> None:
    assert profiled(PADDED_BR, "onnxruntime").by_group()["norm"] > 0


def test_batch_is_profiled_as_one_inference() -> None:
    found = profiled(SWIN, "onnxruntime", batch=2)
    assert found.by_group()["other"] == 0
    assert {part.num_calls for part in found.parts} == {1}


def test_session_is_optimised_as_the_one_that_is_timed() -> None:
    parts = profiled(SWIN, "onnxruntime").parts
    fused = [part for part in parts if part.node == "stages.0.blocks.0.attn.qkv/MatMulAddFusion"]
    assert [(part.role, part.group, part.stage) for part in fused] == [("attn.qkv", "attention projections", 1)]
    inserted = [part for part in parts if part.group == "copies"]
    assert inserted
    assert all("gemm_" in part.node for part in inserted)


def test_shift_s_gather_is_said_to_hold_more_than_the_roll() -> None:
    """Where windows divide the grid it partitions too; a padded grid is only rolled."""
    for backend, moves in (("onnxruntime", "merges windows, rolls and partitions"), ("torch", "rolls and partitions")):
        (remark,) = (remark for remark in profiled(SWIN, backend).remarks if remark.startswith("window shift"))
        assert f"one gather {moves} at once" in remark
        assert "upper bound" in remark
    for name in (PADDED, FREE):
        assert not any(remark.startswith("window shift") for remark in profiled(name, "onnxruntime").remarks)


def test_module_is_left_as_it_was() -> None:
    arch = parse_name(SWIN)
    target = target_of(arch, "torch")
    deployed = deployed_for(arch, target)
    image = torch.ones(1, 3, 56, 56)
    with torch.inference_mode():
        before = deployed.module(image)
    environment = dict(os.environ)
    profile(deployed, target, runs=1)
    assert dict(os.environ) == environment
    with torch.inference_mode():
        assert torch.equal(deployed.module(image), before)
    for part in deployed.module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


def test_backend_whose_kernels_hold_several_operations_is_refused(tiny: Arch) -> None:
    target = target_of(tiny, "torch-compile")
    with pytest.raises(BackendMissing, match=r"torch-compile: its kernels span .*; profile with --backend torch$"):
        profile(deployed_for(tiny, target), target)


# -- attribution ------------------------------------------------------------------------------------------------------


def test_every_role_has_one_group_and_the_paper_s_rows_are_groups() -> None:
    grouped = [role for roles in GROUPS.values() for role in roles]
    assert len(grouped) == len(set(grouped))
    assert set(ROLES) <= set(grouped)
    assert set(PRECEDENCE) == set(grouped) - {"copy", "other"}
    assert {group for row in TABLE_1 for group in row.groups} <= set(GROUPS)


def test_part_takes_role_group_and_stage_of_its_owner() -> None:
    assert part_of("k", 1.0, "stages.2.blocks.5.attn.softmax") == Part("k", "attn.softmax", "softmax", 3, 1.0)
    assert part_of("k", 1.0, "patch_embed.norm") == Part("k", "patch_embed.norm", "norm", None, 1.0)
    assert part_of("k", 1.0, "stages.0.merge") == Part("k", "merge", "partition and merge", 1, 1.0)
    assert part_of("k", 1.0, "stages.0.blocks.0.attn.qkv", is_copy=True) == Part("k", "copy", "copies", 1, 1.0)
    assert part_of("k", 1.0, "") == Part("k", "other", "other", None, 1.0)


def test_shares_are_of_the_sum_of_the_parts() -> None:
    parts = (
        part_of("a", 1.0, "patch_embed.proj"),
        part_of("b", 2.0, "stages.0.blocks.0.mlp.fc1"),
        part_of("c", 5.0, "stages.3.blocks.0.mlp.fc2"),
    )
    found = Profile("a1-0", "t1-0", parts, 4.0, 3, ("so",))
    assert found.total_ms == 8.0
    assert {group: share for group, share in found.by_group().items() if share} == {
        "MLP": 0.875,
        "patch embedding": 0.125,
    }
    assert found.by_stage() == {"stage 1": 0.25, "stage 2": 0.0, "stage 3": 0.0, "stage 4": 0.625, OUTSIDE: 0.125}
    content = json.loads(json.dumps(found.to_dict()))
    assert content["parts"][1] == {
        "node": "b",
        "role": "mlp.fc1",
        "group": "MLP",
        "stage": 1,
        "ms": 2.0,
        "num_calls": 1,
    }
    assert (content["total_ms"], content["plain_ms"], content["num_runs"]) == (8.0, 4.0, 3)
    assert content["remarks"] == ["so"]


# -- ONNX Runtime -----------------------------------------------------------------------------------------------------


def node(op: str, name: str, inputs: str, *outputs: str) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs or [name], name=name)


#: A softmax, a skip with the norm after it and a linear layer, as we write them and as the runtime rewrites them.
OURS = [
    node("Softmax", "stages.0.blocks.0.attn.softmax", "x"),
    node("Add", "stages.0.blocks.0.skip.attn", "stages.0.blocks.0.attn.softmax y"),
    node("LayerNormalization", "stages.0.blocks.0.norm2", "stages.0.blocks.0.skip.attn"),
    node("MatMul", "stages.0.blocks.0.mlp.fc1", "stages.0.blocks.0.norm2 w"),
    node("Add", "stages.0.blocks.0.mlp.fc1.add_bias", "stages.0.blocks.0.mlp.fc1 b", "logits"),
]
OPTIMISED = [
    node("Exp", "", "x", "exp"),
    node("Div", "", "exp exp", "InsertedPrecisionFreeCast_stages.0.blocks.0.attn.softmax"),
    node("Cast", "late", "InsertedPrecisionFreeCast_stages.0.blocks.0.attn.softmax", "cast"),
    node("SkipLayerNormalization", "SkipLayerNormalization", "cast y", "stages.0.blocks.0.norm2"),
    node("Reshape", "gemm_input_reshape", "stages.0.blocks.0.norm2", "gemm_input"),
    node("Gemm", "stages.0.blocks.0.mlp.fc1/MatMulAddFusion", "gemm_input w b", "gemm_output"),
    node("Reshape", "gemm_output_reshape_token_5", "gemm_output", "logits"),
]
NAMES = [name.name or f"{name.op_type}_{index}" for index, name in enumerate(OPTIMISED, 340)]


def events(*durations_us: int) -> list[dict[str, Any]]:
    """A profile of one run for each duration, which every node takes."""
    return [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"op_name": node.op_type}}
        for us in durations_us
        for name, node in zip(NAMES, OPTIMISED, strict=True)
    ]


def test_rewritten_nodes_are_counted_by_what_they_work_towards() -> None:
    times_ms = node_times(events(*[9] * WARM_UP_RUNS, 1000), num_runs=WARM_UP_RUNS + 1)
    parts = parts_of_nodes(times_ms, OPTIMISED, OURS)
    assert [(part.node, part.role) for part in parts] == [
        ("Exp_340", "attn.softmax"),
        ("Div_341", "attn.softmax"),
        ("late", "copy"),
        ("SkipLayerNormalization", "norm2"),
        ("gemm_input_reshape", "copy"),
        ("stages.0.blocks.0.mlp.fc1/MatMulAddFusion", "mlp.fc1"),
        ("gemm_output_reshape_token_5", "copy"),
    ]
    assert {part.stage for part in parts} == {1}
    assert {part.ms for part in parts} == {1.0}


def test_what_no_node_of_ours_explains_is_other() -> None:
    stray = [node("Exp", "stray", "x", "nowhere")]
    (part,) = parts_of_nodes({"stray": ("Exp", 1.0, 1)}, stray, OURS)
    assert part.group == "other"
    (part,) = parts_of_nodes({"unknown": ("Exp", 1.0, 1)}, [], OURS)
    assert part.group == "other"


def test_a_node_s_time_is_the_median_after_the_warm_up() -> None:
    times_ms = node_times(events(*[10**6] * WARM_UP_RUNS, 1000, 5000, 2000), num_runs=WARM_UP_RUNS + 3)
    assert list(times_ms) == NAMES
    assert set(times_ms.values()) == {(node.op_type, 2.0, 1) for node in OPTIMISED}


def test_on_a_gpu_a_node_s_time_is_that_of_its_kernels() -> None:
    launch = {"cat": "Node", "name": "a_kernel_time", "dur": 7, "args": {"op_name": "Gemm"}}
    kernels = [{"cat": "Kernel", "name": "gemm", "dur": 300}, {"cat": "Kernel", "name": "bias", "dur": 200}]
    runs = WARM_UP_RUNS + 1
    assert node_times([launch, *kernels] * runs, num_runs=runs, kernels=True) == {"a": ("Gemm", 0.5, 1)}
    with pytest.raises(MeasureError, match="records no GPU kernels"):
        node_times([launch] * runs, num_runs=runs, kernels=True)


def test_profile_that_stops_short_is_refused() -> None:
    with pytest.raises(MeasureError, match="not complete: gemm_output_reshape_token_5 ran 2 times in 3"):
        node_times(events(1, 1, 1)[:-1], num_runs=3)


# -- torch ------------------------------------------------------------------------------------------------------------


def test_scopes_leave_no_hook_behind_even_where_the_module_fails(tiny: Arch) -> None:
    module = model.build(tiny).eval()
    with pytest.raises(RuntimeError), scopes(module):
        assert all(part._forward_hooks and part._forward_pre_hooks for part in module.modules())
        module(torch.ones(1, 2, 56, 56))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("scope", "operators", "expected"),
    [
        ("", ["aten::mean"], "head.mean"),
        ("head", ["aten::linear", "aten::addmm"], "head"),
        ("patch_embed", ["aten::permute"], "patch_embed"),
        ("patch_embed.norm", ["aten::layer_norm"], "patch_embed.norm"),
        ("stages.1.merging", ["aten::reshape", "aten::copy_"], "stages.1.merging"),
        ("stages.1.merging.reduction", ["aten::linear"], "stages.1.merging.reduction"),
        ("stages.0.blocks.1", ["aten::index_select"], "stages.0.blocks.1.shift"),
        ("stages.0.blocks.1", ["aten::roll"], "stages.0.blocks.1.shift"),
        ("stages.0.blocks.1", ["aten::add"], "stages.0.blocks.1.skip"),
        ("stages.0.blocks.1", ["aten::reshape", "aten::clone"], "stages.0.blocks.1.partition"),
        ("stages.0.blocks.1", ["aten::new_in_torch"], "stages.0.blocks.1.unforeseen"),
        ("stages.0.blocks.1.norm1", ["aten::native_layer_norm"], "stages.0.blocks.1.norm1"),
        ("stages.0.blocks.1.attn", ["aten::linear"], "stages.0.blocks.1.attn.qkv"),
        ("stages.0.blocks.1.attn", ["aten::index_select"], "stages.0.blocks.1.attn.bias"),
        (
            "stages.0.blocks.1.attn",
            ["aten::scaled_dot_product_attention", "aten::baddbmm"],
            "stages.0.blocks.1.attn.scores",
        ),
        (
            "stages.0.blocks.1.attn",
            ["aten::scaled_dot_product_attention", "aten::softmax", "aten::_softmax"],
            "stages.0.blocks.1.attn.softmax",
        ),
        ("stages.0.blocks.1.attn", ["aten::linalg_vector_norm"], "stages.0.blocks.1.attn.cosine"),
        ("stages.0.blocks.1.attn.cpb_mlp.0", ["aten::linear"], "stages.0.blocks.1.attn.bias"),
        ("stages.0.blocks.1.attn.proj", ["aten::linear"], "stages.0.blocks.1.attn.proj"),
        ("stages.0.blocks.1.mlp.act", ["aten::relu"], "stages.0.blocks.1.mlp.relu"),
        ("stages.0.blocks.1.mlp.act", ["aten::gelu"], "stages.0.blocks.1.mlp.gelu"),
        ("stages.0.blocks.1.mlp.fc2", ["aten::linear", "aten::addmm"], "stages.0.blocks.1.mlp.fc2"),
    ],
)
def test_operator_stands_for_a_node_of_the_graph(scope: str, operators: list[str], expected: str) -> None:
    assert node_of(scope, operators) == expected


def test_operator_that_nobody_foresaw_is_other() -> None:
    assert part_of("k", 1.0, node_of("stages.0.blocks.1", ["aten::new_in_torch"])).group == "other"


def run_of(run: int, own_us: int) -> list[Any]:
    """A run of a module with a head, whose linear layer is an addmm, as torch's profiler tells it."""

    def event(name: str, parent: Any, cpu_us: float = 0, device_us: float = 0, kind: str = "CPU") -> Any:
        return SimpleNamespace(
            id=100 * run,
            name=name,
            cpu_parent=parent,
            self_cpu_time_total=cpu_us,
            self_device_time_total=device_us,
            device_type=SimpleNamespace(name=kind),
        )

    root = event("swinexplore/", None, cpu_us=10**6, device_us=10**6)
    head = event("swinexplore/head", root, cpu_us=10**6, device_us=10**6)
    linear = event("aten::linear", head, cpu_us=own_us)
    return [
        event("aten::empty", None, cpu_us=10**6),
        root,
        head,
        linear,
        event("aten::addmm", linear, cpu_us=3 * own_us, device_us=50 * own_us),
        event("gemm", None, device_us=50 * own_us, kind="CUDA"),
        event("swinexplore/head", None, device_us=10**6, kind="CUDA"),
    ]


def test_operators_own_times_add_up_and_modules_and_python_do_not_count() -> None:
    recorded = [event for run, us in enumerate((1000, 9000, 2000)) for event in run_of(run, us)]
    (part,) = parts_of_events(recorded)
    assert (part.node, part.group, part.ms, part.num_calls) == ("head/aten::linear", "head", 8.0, 1)
    (part,) = parts_of_events(recorded, on_gpu=True)
    assert part.ms == 100.0


# -- TensorRT ---------------------------------------------------------------------------------------------------------


def marks(*nodes: str) -> str:
    return "\x1e".join(f"[ONNX Layer: {name}]" for name in nodes)


BLOCK = "stages.1.blocks.0"
#: Layer, its marks, and where it is counted: group and stage.
LAYERS = [
    (
        "_gemm_mha_v2_myl0_5",
        [f"{BLOCK}.attn.{role}" for role in ("heads.query", "softmax", "bias", "scores", "mix")],
        ("attention", 2),
    ),
    (
        "__myl_FcAddAddMeanSub_myl0_6",
        [f"{BLOCK}.{role}" for role in ("attn.heads.flatten", "norm2", "skip.attn", "attn.proj", "attn.proj.add_bias")],
        ("attention projections", 2),
    ),
    ("__myl_FcGelu_myl0_7", [f"{BLOCK}.mlp.gelu", f"{BLOCK}.mlp.fc1"], ("MLP", 2)),
    (
        "__myl_GathAdd_myl0_8",
        ["stages.1.blocks.1.partition.join", "stages.1.blocks.1.shift", f"{BLOCK}.skip.mlp"],
        ("window shift", 2),
    ),
    ("__myl_NormGelu_myl0_9", [f"{BLOCK}.mlp.gelu", "stages.0.blocks.0.norm2"], ("norm", 1)),
    ("__myl_Mean_myl0_10", ["norm", "head.mean"], ("norm", None)),
    ("__myl_Fc_myl0_11", ["head", "head.add_bias", "head.mean"], ("head", None)),
    ("__myl_Norm_myl0_12", ["patch_embed.norm", "patch_embed.join"], ("norm", None)),
    ("__myl_Tran_myl0_13", [f"{BLOCK}.partition", f"{BLOCK}.skip.attn"], ("partition and merge", 2)),
    ("stages.2.blocks.0.mlp.fc2 + stages.2.blocks.0.mlp.fc2.add_bias", [], ("MLP", 3)),
    (f"Reformatting CopyNode for Input Tensor 0 to {BLOCK}.attn.qkv", [], ("copies", 2)),
    ("(Unnamed Layer* 3) [Shuffle]", [], ("copies", None)),
    ("__myl_Mystery_myl0_14", [], ("other", None)),
]
IO = {
    "10": {"Bindings": ["image", "logits"]},
    "11": {"I/O Tensors": [{"Name": "image", "IOMode": "Input"}, {"Name": "logits", "IOMode": "Output"}]},
}


@pytest.mark.parametrize("version", ["10", "11"])
def test_fused_layer_is_counted_once_by_precedence(version: str) -> None:
    layers = [{"Name": name, "LayerType": "kgen", "Metadata": marks(*nodes)} for name, nodes, _ in LAYERS]
    information = json.dumps({"Layers": layers, **IO[version]})
    parts, remarks = parts_of_layers([(name, 0.5) for name, *_ in LAYERS], information)
    assert [(part.group, part.stage) for part in parts] == [place for *_, place in LAYERS]
    assert [part.node for part in parts] == [name for name, *_ in LAYERS]
    assert sum(part.ms for part in parts) == 0.5 * len(LAYERS)
    assert len(remarks) == 1
    assert "counted once" in remarks[0]


def test_reformat_is_a_copy_though_it_is_marked() -> None:
    layer = {"Name": "x", "LayerType": "Reformat", "Metadata": marks(f"{BLOCK}.attn.qkv")}
    (part,), remarks = parts_of_layers([("x", 1.0)], json.dumps({"Layers": [layer]}))
    assert (part.group, part.stage) == ("copies", 2)
    assert remarks == ()


def test_layers_that_are_only_named_or_missing_are_counted_by_their_names() -> None:
    """As an engine is told that was not built with detailed verbosity."""
    information = json.dumps({"Layers": [f"{BLOCK}.norm1", "mystery"], "Bindings": []})
    parts, remarks = parts_of_layers([(f"{BLOCK}.norm1", 1.0), ("mystery", 1.0), (f"{BLOCK}.shift", 2.0)], information)
    assert [part.group for part in parts] == ["norm", "other", "window shift"]
    assert remarks == ()


@pytest.mark.parametrize("is_marked", [False, True])
def test_region_compiled_whole_is_other_and_said_to_be(is_marked: bool) -> None:
    """TensorRT for RTX tells one layer for the whole network."""
    name = "{ForeignNode[patch_embed.split...head.add_bias]}"
    nodes = ("patch_embed.split", f"{BLOCK}.attn.scores", "head") if is_marked else ()
    parts, remarks = parts_of_layers([(name, 2.5)], json.dumps({"Layers": [{"Name": name, "Metadata": marks(*nodes)}]}))
    assert [(part.group, part.stage, part.ms) for part in parts] == [("other", None, 2.5)]
    assert remarks[0].startswith("other: 2.500 ms in regions that this TensorRT compiled whole")


@pytest.mark.parametrize("information", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": [{"Metadata": ""}]}'])
def test_unreadable_layer_information_is_an_error(information: str) -> None:
    with pytest.raises(MeasureError, match="layer information cannot be read"):
        parts_of_layers([("a", 1.0)], information)


# -- the command ------------------------------------------------------------------------------------------------------


def test_command_shows_groups_stages_and_both_sums() -> None:
    result = CliRunner().invoke(app, ["profile", SWIN, "--backend", "onnxruntime", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{parse_name(SWIN).name} (a1-")
    shown = {line[:24].strip(): line for line in lines}
    assert {"window shift", "attention", "softmax", "norm", "stage 1", "stage 4", OUTSIDE, "copies"} <= set(shown)
    assert "other" not in shown
    assert any(line.endswith("█" * 40) for line in lines)
    assert " ms  of 10 profiled runs" in shown["sum of the parts"]
    assert "without a profiler, which costs time" in shown["plain run"]
    assert "upper bound" in result.stdout
    assert result.stderr.startswith("backend onnxruntime")


def test_command_s_json_holds_every_part() -> None:
    result = CliRunner().invoke(
        app, ["--quiet", "profile", FREE, "--backend", "torch", "--device", "cpu", "--batch", "2", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    content = json.loads(result.stdout)
    assert content["name"] == parse_name(FREE).name
    assert (content["target"]["backend"], content["target"]["batch"]) == ("torch", 2)
    assert list(content["by_group"]) == list(GROUPS)
    assert content["by_group"]["window shift"] == 0
    assert sum(part["ms"] for part in content["parts"]) == pytest.approx(content["total_ms"])
    assert "stages.0.blocks.0.attn.qkv/aten::linear" in {part["node"] for part in content["parts"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Swine-T"], "Swine-T"),
        (["Swin-T", "--backend", "vulkan"], "'vulkan'"),
        (["Swin-T", "--backend", "onnxruntime", "--device", "cpu", "--precision", "bf16"], "'bf16'"),
        (["Swin-T", "--backend", "torch-compile", "--device", "cpu"], "profile with --backend torch"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["--quiet", "profile", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
