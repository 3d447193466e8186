"""The deployed graph: agreement with the module, its structure, and what the real TensorRT-RTX compiler makes of it."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from explorer.arch import NUM_STAGES, Arch, parse_name
from explorer.errors import BackendMissing, MismatchError, ParityError
from explorer.model import GRAPH_VERSION, build, deploy, deployment
from explorer.model.deployment import TOLERANCES
from explorer.model.onnx_graph import write_onnx
from explorer.model.swin import Swin

SHIFT = "Swin-E16x2.2.2.2-R56-P1-N10"
SHIFT_BR = "Swin-E16x2.2.2.2-BR-R56-P1-N10"
FREE = "Swin-Free-E16x1.2.3.1-R56-P1-N10"
FREE_BR = "Swin-Free-E16x1.2.3.1-BR-R56-P1-N10"
MIXED = "Swin-E16x3.2.2.1-H2.2.4.8-W8.16.4.8-S1010-BR-R64-P1-C1-N3-M2.5"
NAMES = (SHIFT, SHIFT_BR, FREE, FREE_BR, MIXED)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Moves all weights and running statistics off their initial values: what the graph leaves out then shows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for name, parameter in module.named_parameters():
        if "bias_table" in name:
            parameter.copy_(normal(parameter))
        elif parameter.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * normal(parameter))
        else:
            parameter.copy_(normal(parameter) * parameter[0].numel() ** -0.5)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm1d):
            assert each.running_mean is not None
            assert each.running_var is not None
            each.running_mean.copy_(0.5 * normal(each.running_mean))
            each.running_var.copy_(1.0 + torch.rand(each.running_var.shape, generator=generator))


def random_module(name: str, seed: int = 0) -> tuple[Swin, Arch]:
    arch = parse_name(name)
    module = build(arch).eval()
    randomise(module, seed)
    return module, arch


@cache
def graph_of(name: str, batch: int = 1) -> onnx.GraphProto:
    module, _ = random_module(name)
    return onnx.load_from_string(write_onnx(module, batch=batch, precision="fp32")).graph


# -- agreement with the module ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_graph_gives_the_logits_of_the_module(name: str, batch: int, precision: Literal["fp32", "fp16"]) -> None:
    module, arch = random_module(name)
    deployed = deploy(module, arch, batch=batch, precision=precision)
    shape = (batch, arch.channels, arch.image_size, arch.image_size)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(99))
    with torch.inference_mode():
        expected = module(image).numpy()
    session = onnxruntime.InferenceSession(deployed.onnx_bytes, providers=["CPUExecutionProvider"])
    dtype = np.float16 if precision == "fp16" else np.float32
    (logits,) = session.run(["logits"], {"image": image.numpy().astype(dtype)})
    assert logits.dtype == dtype
    assert logits.shape == (batch, arch.num_classes)
    assert expected.std() > 0.01
    assert np.abs(logits.astype(np.float32) - expected).max() < TOLERANCES[precision] * expected.std()
    assert deployed.difference is not None
    assert 0 < deployed.difference < TOLERANCES[precision]
    assert (deployed.arch, deployed.batch, deployed.precision) == (arch, batch, precision)


def test_epsilon_of_layer_norm_is_the_module_s() -> None:
    norms = [node for node in graph_of(SHIFT).node if node.op_type == "LayerNormalization"]
    epsilons = {attribute.f for node in norms for attribute in node.attribute if attribute.name == "epsilon"}
    assert epsilons == {np.float32(1e-5).item()}


def test_epsilon_of_batch_norm_is_folded() -> None:
    """Where the running variance is no larger than the epsilon, an epsilon left out would show in the logits."""
    module, arch = random_module(FREE_BR)
    assert isinstance(module.norm, nn.BatchNorm1d)
    assert module.norm.running_var is not None
    module.norm.running_var.fill_(1e-5)
    assert deploy(module, arch).difference is not None


@pytest.mark.parametrize("name", ["Swin-E16x2.1.1.1-R56-P1-N10", "Swin-E16x2.1.1.1-BR-R56-P1-N10"])
def test_every_parameter_reaches_the_graph(name: str) -> None:
    """A change of any one tensor of the module changes the graph."""
    module, _ = random_module(name)
    before = write_onnx(module, batch=1, precision="fp32")
    unused = []
    for key, values in module.state_dict().items():
        if not values.is_floating_point():
            continue
        values.add_(1.0)
        if write_onnx(module, batch=1, precision="fp32") == before:
            unused.append(key)
        values.sub_(1.0)
    assert unused == []


@pytest.mark.parametrize("name", [SHIFT, SHIFT_BR])
def test_module_is_left_as_it_was_but_in_eval_mode(name: str) -> None:
    module, arch = random_module(name)
    before = {key: values.clone() for key, values in module.state_dict().items()}
    deploy(module.train(), arch, batch=1, precision="fp16")
    assert not module.training
    assert all(torch.equal(values, before[key]) for key, values in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_bf16_is_refused_with_the_precisions_that_exist() -> None:
    module, arch = random_module(FREE)
    with pytest.raises(BackendMissing, match=r"precision: 'bf16' is not written as an ONNX graph; allowed: fp32, fp16"):
        deploy(module, arch, precision="bf16")


@pytest.mark.parametrize(("precision", "error"), [("fp32", ParityError), ("fp16", MismatchError)])
def test_graph_of_other_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: Literal["fp32", "fp16"], error: type[Exception]
) -> None:
    module, arch = random_module(FREE)
    other, _ = random_module(FREE, seed=1)

    def write_other(_: Swin, *, batch: int, precision: Literal["fp32", "fp16"]) -> bytes:
        return write_onnx(other, batch=batch, precision=precision)

    monkeypatch.setattr(deployment, "write_onnx", write_other)
    with pytest.raises(error, match=f"{FREE}: the {precision} graph differs from the model by") as caught:
        deploy(module, arch, precision=precision)
    assert type(caught.value) is error


@pytest.mark.parametrize(("precision", "error"), [("fp32", ParityError), ("fp16", MismatchError)])
def test_graph_that_gives_nan_is_refused(precision: Literal["fp32", "fp16"], error: type[Exception]) -> None:
    module, arch = random_module(FREE)
    with torch.no_grad():
        module.head.weight[0, 0] = torch.nan
    with pytest.raises(error):
        deploy(module, arch, precision=precision)


# -- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "precision"), [(1, "fp16"), (3, "fp32")])
@pytest.mark.parametrize("name", NAMES)
def test_graph_passes_the_full_check(name: str, batch: int, precision: Literal["fp32", "fp16"]) -> None:
    module, arch = random_module(name)
    model = onnx.load_from_string(write_onnx(module, batch=batch, precision=precision))
    onnx.checker.check_model(model, full_check=True)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties == {"arch": arch.name, "arch_id": arch.id, "graph_version": str(GRAPH_VERSION)}
    assert [(value.name) for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]


@pytest.mark.parametrize("name", NAMES)
def test_one_softmax_gelu_and_norm_per_place(name: str) -> None:
    arch = parse_name(name)
    num_blocks = sum(arch.depths)
    counts = Counter(node.op_type for node in graph_of(name).node)
    assert counts["Softmax"] == num_blocks
    assert (counts["Gelu"], counts["Relu"]) == ((0, num_blocks) if arch.br else (num_blocks, 0))
    # two a block, one a merging, one after the patch embedding and one before the head
    assert counts["LayerNormalization"] == (0 if arch.br else 2 * num_blocks + NUM_STAGES - 1 + 2)
    assert counts["BatchNormalization"] == 0
    assert not {"Erf", "Sqrt", "Pow", "Div", "Gather", "ScatterND", "Cast", "Expand"} & counts.keys()
    assert counts["Conv"] == 1


@pytest.mark.parametrize("name", [FREE, FREE_BR])
def test_model_without_shift_has_no_slice_or_concat(name: str) -> None:
    assert not {"Slice", "Concat"} & {node.op_type for node in graph_of(name).node}


@pytest.mark.parametrize("name", [SHIFT, MIXED])
def test_slices_stand_in_the_blocks_that_shift_alone(name: str) -> None:
    arch = parse_name(name)
    expected = {
        f"stages.{stage}.blocks.{block}"
        for stage in range(NUM_STAGES)
        for block in range(arch.depths[stage])
        if arch.has_shift(stage, block)
    }
    sliced = [node.name for node in graph_of(name).node if node.op_type in ("Slice", "Concat")]
    assert {".".join(name.split(".")[:4]) for name in sliced} == expected


@pytest.mark.parametrize("name", NAMES)
def test_partition_stands_where_there_are_several_windows_alone(name: str) -> None:
    arch = parse_name(name)
    several = {stage for stage in range(NUM_STAGES) if arch.windows[stage] < arch.tokens[stage]}
    names = [node.name for node in graph_of(name).node]
    for kind in (".partition", ".merge"):
        assert {int(name.split(".")[1]) for name in names if f"{kind}." in f"{name}."} == several


@pytest.mark.parametrize("name", NAMES)
def test_node_names_are_unique_and_start_with_their_module(name: str) -> None:
    module, _ = random_module(name)
    names = [node.name for node in graph_of(name, batch=3).node]
    assert len(set(names)) == len(names)
    modules = {key for key, _ in module.named_modules() if key}
    roots = {"patch_embed", "norm", "head"} | {
        key for key in modules if key.startswith("stages.") and key.count(".") > 1
    }
    assert [name for name in names if not any(name == root or name.startswith(f"{root}.") for root in roots)] == []
    assert {f"stages.{s}.blocks.{b}" for s, st in enumerate(module.stages) for b in range(len(st.blocks))} == {
        ".".join(name.split(".")[:4]) for name in names if ".blocks." in name
    }


# -- TensorRT-RTX -----------------------------------------------------------------------------------------------------

#: One fused attention leaves this many marks in the plan of TensorRT-RTX 1.7.
MARKS_PER_ATTENTION = 18


def build_plan(onnx_bytes: bytes) -> bytes:
    """The engine of TensorRT-RTX for an RTX 30 (compute capability 8.6), built without a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs")
    import tensorrt_rtx_bindings.tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(f"{severity}: {message}")

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(onnx_bytes)
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, log.lines[-5:]
    return bytes(plan)


def num_fused(plan: bytes) -> float:
    return plan.count(b"_gemm_mha_v2") / MARKS_PER_ATTENTION


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("Swin-E32x2.2.2.2-H2.4.8.16-R56-P1-N10", 1),
        ("Swin-E32x2.2.2.2-H2.4.8.16-R56-P1-N10", 3),
        ("Swin-E32x2.2.2.2-BR-H2.4.8.16-R56-P1-N10", 1),
        ("Swin-Free-E32x1.1.2.1-BR-H2.4.8.16-R56-P1-N10", 3),
        ("Swin-Free-E64x1.1.2.1-R56-P1-N10", 1),
    ],
)
def test_tensorrt_builds_the_fp16_graph_with_every_attention_fused(name: str, batch: int) -> None:
    module, arch = random_module(name)
    deployed = deploy(module, arch, batch=batch, precision="fp16")
    assert deployed.onnx_bytes is not None
    assert num_fused(build_plan(deployed.onnx_bytes)) == sum(arch.depths)


def test_tensorrt_leaves_fp32_attention_unfused() -> None:
    """So that the count above tells something."""
    module, arch = random_module("Swin-Free-E32x1.1.1.1-H2.4.8.16-R56-P1-N10")
    deployed = deploy(module, arch, precision="fp32")
    assert deployed.onnx_bytes is not None
    assert num_fused(build_plan(deployed.onnx_bytes)) == 0
