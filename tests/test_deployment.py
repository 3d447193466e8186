"""The deployed graph: agreement with the module, with torch's own exporter, and what TensorRT-RTX's compiler makes of it.

Its nodes, names and types: `test_onnx_graph.py`.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_layer_normalization import LayerNormalization
from onnx.reference.ops.op_matmul import MatMul
from onnx.reference.ops.op_reduce_mean import ReduceMean_18
from onnx.reference.ops.op_softmax import Softmax
from torch import nn

from explorer.arch import NUM_STAGES, Arch, divisors, parse_name
from explorer.errors import BuildError, ExportError, IllConditioned, MismatchError, ParityError
from explorer.latency import resolve
from explorer.latency.measurer import deployed_for
from explorer.model import build, deploy, deployment
from explorer.model.deployment import TOLERANCES
from explorer.model.onnx_graph import write_onnx
from explorer.model.swin import Swin
from explorer.records import Precision

SHIFT = "Swin-E16x2.2.2.2-R56-P1-N10"
SHIFT_BR = "Swin-E16x1.3.2.2-BR-H2.4.8.16-R56-P1-N10"
FREE = "Swin-Free-E16x1.2.3.1-R56-P1-N10"
FREE_BR = "Swin-Free-E16x1.2.3.1-BR-R56-P1-N10"
V2 = "SwinV2-E16x1.2.3.1-32-P1-N10"
V2_BR = "SwinV2-E16x1.2.2.1-BR-H2.2.4.4-32-P1-N10-F8.0.0.0"
#: Even windows: 4 of stage 1 merge into 4, 4 and 2 of the next, the last of which shifts.
EVEN = "Swin-E16x1.2.2.2-W4.4.4.2-H2.2.2.2-R32-P2-N10"
ONE_WINDOW = "Swin-E16x1.1.1.1-W32.16.8.4-BR-H2.2.2.2-R32-P1-N10"
#: Windows that do not divide the grids of 32, 16 and 4; 4 divides that of 8.
PADDED = "Swin-E16x2.2.2.2-W5.7.4.3-H2.2.2.2-R32-P1-N10"
PADDED_BR = "Swin-E16x2.2.2.2-W5.7.4.3-S1011-BR-H2.2.2.2-R32-P1-N10"
V2_PADDED = "SwinV2-E16x2.2.2.2-W5.7.4.3-H2.2.2.2-32-P1-N10"
MIXED = "Swin-E16x3.2.2.1-H2.2.4.8-W4.8.2.4-S1010-BR-R32-P1-C1-N10-M2.5"
SMALL = "Swin-E16x1.2.1.1-W4.4.4.2-H2.2.2.2-R16-P1-N10"
NAMES = (SHIFT, SHIFT_BR, FREE, FREE_BR, V2, V2_BR, EVEN, ONE_WINDOW, PADDED, PADDED_BR, V2_PADDED, MIXED)
NUMPY_TYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
Array = NDArray[Any]
SUMS = (MatMul, Softmax, LayerNormalization, ReduceMean_18)


def scattered(name: str, seed: int = 0) -> tuple[Swin, Arch]:
    arch = parse_name(name)
    return build(arch, scatter=True, seed=seed).eval(), arch


def image_of(arch: Arch, batch: int, seed: int = 99) -> torch.Tensor:
    shape = (batch, arch.channels, arch.image_size, arch.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected_of(module: nn.Module, image: torch.Tensor) -> Array:
    with torch.inference_mode():
        logits: Array = module(image).numpy()
    # Weights that give every image the same logits would hide a batch that is mixed up.
    assert logits.std() > 0.01
    assert len(logits) == 1 or logits.std(axis=0).max() > 0.01
    return logits


def wide(operator: type[OpRun]) -> type[OpRun]:
    """onnx's evaluation of an operator with sums in fp32, as kernels have them; its own sums of bf16 stop at 256 ones."""

    def run(self: OpRun, *inputs: Array | None, **attributes: Any) -> tuple[Array, ...]:
        widened = [
            each.astype(np.float32) if each is not None and each.dtype == ml_dtypes.bfloat16 else each
            for each in inputs
        ]
        results = operator._run(self, *widened, **attributes)
        return tuple(each.astype(inputs[0].dtype) for each in results[:1])  # type: ignore[union-attr]

    return type(operator.__name__.split("_")[0], (operator,), {"op_domain": "", "_run": run})


def run_onnx(graph: bytes, image: torch.Tensor, *, optimised: bool = True) -> Array:
    """Logits of ONNX Runtime; of onnx's own evaluator for a bf16 graph, for which ONNX Runtime has no kernels."""
    model = onnx.load_from_string(graph)
    (entry,) = model.graph.input
    if entry.type.tensor_type.elem_type == TensorProto.BFLOAT16:
        feed = {entry.name: image.numpy().astype(ml_dtypes.bfloat16)}
        (logits,) = ReferenceEvaluator(model, new_ops=[wide(each) for each in SUMS]).run(None, feed)
        return logits
    dtype = np.float16 if entry.type.tensor_type.elem_type == TensorProto.FLOAT16 else np.float32
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {entry.name: image.numpy().astype(dtype)})
    return logits


def difference(found: Array, expected: Array) -> float:
    """The largest, in standard deviations of what is expected."""
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float32) - expected).max() / expected.std())


def bytes_of(module: Swin, *, batch: int | None = 1, precision: Precision = "fp32") -> bytes:
    return bytes(write_onnx(module, batch=batch, precision=precision).SerializeToString())


# -- agreement with the module ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "batch"), [("fp32", 3), ("fp16", 1), ("bf16", 2)])
@pytest.mark.parametrize("name", NAMES)
def test_graph_gives_the_logits_of_the_module(name: str, batch: int, precision: Precision) -> None:
    """On another image than the product's own check, and in bf16 as the very graph that is deployed."""
    module, arch = scattered(name)
    deployed = deploy(module, arch, batch=batch, precision=precision)
    assert deployed.onnx_bytes is not None
    image = image_of(arch, batch)
    logits = run_onnx(deployed.onnx_bytes, image)
    assert logits.dtype == NUMPY_TYPES[precision]
    found = difference(logits, expected_of(module, image))
    assert found < TOLERANCES[precision]
    assert deployed.difference is not None
    assert 0 < deployed.difference < TOLERANCES[precision]
    if precision != "fp32":
        # What the check reports is of the size of what the graph does.
        assert deployed.difference / 5 < found < 5 * deployed.difference
    assert (deployed.arch, deployed.batch, deployed.precision) == (arch, batch, precision)


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_graph_gives_the_logits_of_the_module_at_any_batch(name: str) -> None:
    module, arch = scattered(name)
    deployed = deploy(module, arch, batch=None)
    assert deployed.batch is None
    assert deployed.onnx_bytes is not None
    expected = expected_of(module, image_of(arch, 5))
    for batch in (1, 2, 5):
        logits = run_onnx(deployed.onnx_bytes, image_of(arch, 5)[:batch])
        assert logits.shape == (batch, arch.num_classes)
        assert np.abs(logits - expected[:batch]).max() < TOLERANCES["fp32"] * expected.std()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", [SMALL, V2, PADDED_BR])
def test_dynamic_graph_of_half_precision_takes_any_batch(name: str, precision: Precision) -> None:
    module, arch = scattered(name)
    deployed = deploy(module, arch, batch=None, precision=precision)
    assert deployed.onnx_bytes is not None
    image = image_of(arch, 2)
    assert difference(run_onnx(deployed.onnx_bytes, image), expected_of(module, image)) < TOLERANCES[precision]


def test_graph_of_a_fixed_batch_takes_no_other() -> None:
    module, arch = scattered(FREE)
    with pytest.raises(Exception, match="Got invalid dimensions for input"):
        run_onnx(bytes_of(module, batch=2), image_of(arch, 3))


@st.composite
def small_archs(draw: st.DrawFn) -> Arch:
    """Grids of 8, 16 or 24 tokens a side with any windows, those too that do not divide them, and any shifts."""
    patch, unit = draw(st.sampled_from((1, 2))), draw(st.integers(1, 3))
    embed_dim = draw(st.integers(8, 16))
    v2 = draw(st.booleans())

    def each_stage(of: Any) -> Any:
        return tuple(draw(of(stage)) for stage in range(NUM_STAGES))

    return Arch(
        embed_dim=embed_dim,
        depths=each_stage(lambda _: st.integers(1, 3)),
        num_heads=each_stage(lambda stage: st.sampled_from(divisors(embed_dim << stage)[:4])),
        windows=each_stage(lambda stage: st.integers(1, 8 * unit >> stage)),
        shifts=each_stage(lambda _: st.booleans()),
        br=draw(st.booleans()),
        image_size=8 * unit * patch,
        patch_size=patch,
        channels=draw(st.sampled_from((1, 3))),
        num_classes=draw(st.integers(2, 5)),
        mlp_ratio=draw(st.sampled_from((0.5, 1.0, 2.0))),
        v2=v2,
        pretrained_windows=each_stage(lambda _: st.integers(0, 4)) if v2 else (0,) * NUM_STAGES,
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(small_archs(), st.sampled_from((1, 2, None)), st.integers(0, 9))
def test_any_small_network_is_deployed(arch: Arch, batch: int | None, seed: int) -> None:
    deployed = deploy(build(arch, scatter=True, seed=seed), arch, batch=batch)
    onnx.checker.check_model(deployed.onnx_bytes, full_check=True)


@pytest.mark.parametrize("name", [FREE_BR, PADDED_BR, V2_BR])
def test_epsilon_of_batch_norm_is_folded(name: str) -> None:
    """Where the running variance is no larger than the epsilon, an epsilon left out would show in the logits."""
    module, arch = scattered(name)
    image = image_of(arch, 1)
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm1d)]
    for norm in norms:
        assert norm.running_var is not None
        norm.weight.data.mul_(torch.sqrt(2e-5 / (norm.running_var + norm.eps)))
        norm.running_var.fill_(1e-5)
    expected = expected_of(module, image)
    assert deploy(module, arch).difference is not None
    for norm in norms:
        norm.eps, kept = 0.0, norm.eps
        assert difference(expected_of(module, image), expected) > 0.01
        norm.eps = kept


@pytest.mark.parametrize(
    "name", [f"{name}-H2.2.2.2-{size}8-P1-N10" for name, size in
    (("Swin-E8x1.1.1.1", "R"), ("Swin-E8x1.1.1.1-BR", "R"), ("Swin-E8x1.1.1.1-W5.3.2.1-BR", "R"),
     ("SwinV2-E8x1.1.1.1-W4.4.2.1", ""), ("SwinV2-E8x1.1.1.1-W4.4.2.1-BR", ""))]
)  # fmt: skip
def test_every_parameter_reaches_the_graph(name: str) -> None:
    """A change of any one tensor of the module changes the graph.

    All but one: where the window is one token, Swin V2's position bias has one offset, whose coordinate is 0.
    """
    module, _ = scattered(name)
    before = bytes_of(module)
    unused = []
    for key, values in module.state_dict().items():
        if not values.is_floating_point():
            continue
        kept = values.clone()
        values.add_(1.0)
        if bytes_of(module) == before:
            unused.append(key)
        values.copy_(kept)
    assert bytes_of(module) == before
    assert unused == (["stages.3.blocks.0.attn.cpb_mlp.0.weight"] if module.arch.v2 else [])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", [SMALL, PADDED_BR, V2])
def test_module_is_left_as_it_was_but_in_eval_mode(name: str, precision: Precision) -> None:
    module, arch = scattered(name)
    before = {key: values.clone() for key, values in module.state_dict().items()}
    deploy(module.train(), arch, batch=1, precision=precision)
    assert not module.training
    assert all(torch.equal(values, before[key]) for key, values in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


# -- refusals ---------------------------------------------------------------------------------------------------------


def write_other_weights(monkeypatch: pytest.MonkeyPatch, *precisions: Precision) -> None:
    """Lets `deploy` write the graph of other weights, in these precisions."""
    other, _ = scattered(SMALL, seed=1)

    def write(module: Swin, *, batch: int | None, precision: Precision) -> onnx.ModelProto:
        return write_onnx(other if precision in precisions else module, batch=batch, precision=precision)

    monkeypatch.setattr(deployment, "write_onnx", write)


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize(
    ("precision", "wrong", "error"),
    [("fp32", "fp32", ParityError), ("fp16", "fp16", MismatchError), ("bf16", "fp32", ParityError)],
)
def test_graph_of_other_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, wrong: Precision, error: type[Exception], batch: int | None
) -> None:
    """A bf16 graph is first judged by its fp32 twin."""
    module, arch = scattered(SMALL)
    write_other_weights(monkeypatch, wrong)
    with pytest.raises(error, match=f"{SMALL}: the {wrong} graph differs from the model by") as caught:
        deploy(module, arch, batch=batch, precision=precision)
    assert type(caught.value) is error
    assert "ill-conditioned" not in str(caught.value)


def test_bf16_graph_that_rounding_alone_spoils_is_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    module, arch = scattered(SMALL)
    other, _ = scattered(SMALL, seed=1)
    monkeypatch.setattr(deployment, "_emulated", lambda _: bytes_of(other))
    with pytest.raises(MismatchError, match=f"{SMALL}: the bf16 graph differs from the model by") as caught:
        deploy(module, arch, precision="bf16")
    assert type(caught.value) is MismatchError


def test_bf16_graph_of_other_weights_than_its_twin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, arch = scattered(SMALL)
    write_other_weights(monkeypatch, "bf16")
    with pytest.raises((ParityError, MismatchError)):
        deploy(module, arch, precision="bf16")


def test_weights_that_fp32_cannot_hold_are_a_mismatch() -> None:
    """Features around 10000 whose sum cancels in the head: graph and module round them, and no graph could agree."""
    module, arch = scattered(SMALL)
    assert isinstance(module.norm, nn.LayerNorm)
    module.norm.bias.data.add_(1e4)
    module.head.weight.data.sub_(module.head.weight.data.mean(1, keepdim=True))
    with pytest.raises(
        MismatchError, match="these weights are ill-conditioned: rounding in fp32 alone moves them by"
    ) as caught:
        deploy(module, arch)
    assert "the fp32 graph differs" in str(caught.value)


@pytest.mark.parametrize(
    ("precision", "error"), [("fp32", ParityError), ("fp16", MismatchError), ("bf16", ParityError)]
)
def test_graph_that_gives_nan_is_refused(precision: Precision, error: type[Exception]) -> None:
    module, arch = scattered(SMALL)
    with torch.no_grad():
        module.head.weight[0, 0] = torch.nan
    with pytest.raises(error) as caught:
        deploy(module, arch, precision=precision)
    assert type(caught.value) is error


def test_weights_too_large_for_fp16_are_a_mismatch() -> None:
    """bf16 has the range of fp32."""
    module, arch = scattered(SMALL)
    module.head.weight.data.mul_(1e6)
    with np.errstate(over="ignore"), pytest.raises(MismatchError, match="the fp16 graph differs from the model by"):
        deploy(module, arch, precision="fp16")
    assert deploy(module, arch, precision="bf16").difference is not None


def test_graph_that_does_not_run_or_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, arch = scattered(SMALL)
    whole = write_onnx(module, batch=1, precision="fp32")
    del whole.graph.node[5]
    monkeypatch.setattr(deployment, "write_onnx", lambda *_, **__: whole)
    with pytest.raises(BuildError, match=f"{SMALL}: ONNX Runtime does not run the graph: "):
        deploy(module, arch)
    monkeypatch.setattr(deployment, "write_onnx", lambda *_, **__: None)
    with pytest.raises(ExportError, match=f"{SMALL}: the graph could not be written: "):
        deploy(module, arch)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["Swin-E32x2.2.2.2-BR-R32-N10", "SwinV2-E32x2.2.2.2-BR-32-N10"])
def test_batch_norms_of_a_single_token_stay_in_the_range_of_fp16(name: str, seed: int) -> None:
    module = build(parse_name(name), seed=seed, scatter=True)
    assert deploy(module, module.arch, precision="fp16").difference is not None


# -- bf16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SHIFT, FREE_BR, V2, PADDED_BR])
def test_bf16_is_checked_with_rounded_tensors(name: str) -> None:
    """The rounding is seen in the logits, and ONNX Runtime leaves its casts alone."""
    module, arch = scattered(name)
    image = image_of(arch, 2)
    expected = expected_of(module, image)
    twin = bytes_of(module, batch=2)
    rounded = deployment._emulated(bytes_of(module, batch=2, precision="bf16"))
    found = run_onnx(rounded, image)
    assert 100 * difference(run_onnx(twin, image), expected) < difference(found, expected) < TOLERANCES["bf16"]
    assert difference(found, expected) > 2**-9
    assert np.array_equal(found, found.astype(ml_dtypes.bfloat16).astype(np.float32))
    # Sums in another order may round one step otherwise; casts that are gone would move far more.
    assert difference(run_onnx(rounded, image, optimised=False), found) < 0.1 * difference(found, expected)


def test_every_value_of_the_emulated_graph_is_a_bf16_number() -> None:
    """But those of Swin V2's cosines, which are fp32 in the bf16 graph too."""
    module, arch = scattered(V2)
    model = onnx.load_from_string(deployment._emulated(bytes_of(module, precision="bf16")))
    values = [node.output[0] for node in write_onnx(module, batch=1, precision="bf16").graph.node]
    for node in model.graph.node:
        model.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(each) for each in node.output if each != "logits"
        )
    outputs = dict(
        zip(
            [each.name for each in model.graph.output],
            ReferenceEvaluator(model).run(None, {"image": deployment_image(arch)}),
            strict=True,
        )
    )
    exact = {
        key
        for key in values
        if not np.array_equal(outputs[key], outputs[key].astype(ml_dtypes.bfloat16), equal_nan=False)
    }
    blocks = [key for key, each in module.named_modules() if key.count(".") == 3 and ".blocks." in key]
    kept = {
        f"{block}.attn.cosine.{inner}"
        for block in blocks
        for inner in ("query", "key", "query.length", "key.length", "query.scale")
    }
    # The bound of 1e-12 is no bf16 number either, but no length here is that small.
    assert (
        kept <= exact <= kept | {f"{block}.attn.cosine.{side}.least" for block in blocks for side in ("query", "key")}
    )


def deployment_image(arch: Arch) -> Array:
    """An image of bf16 numbers."""
    image: Array = image_of(arch, 1).bfloat16().float().numpy()
    return image


# -- torch's exporter -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "Swin-E16x1.2.1.1-R56-P1-N10",
        "Swin-Free-E16x1.1.2.1-R56-P1-N10",
        "SwinV2-E16x1.2.1.1-32-P1-N10",
        "Swin-E16x1.2.1.1-W5.7.4.3-BR-R32-P1-N10",
    ],
)
def test_graph_gives_the_logits_of_the_graph_that_torch_traces(name: str) -> None:
    pytest.importorskip("onnxscript", reason="pip install onnxscript")
    module, arch = scattered(name)
    image = image_of(arch, 2)
    with torch.no_grad():
        program = torch.onnx.export(module, (image,), dynamo=True, verbose=False)
    assert program is not None
    traced = program.model_proto
    operators = [len(model.graph.node) for model in (traced, write_onnx(module, batch=2, precision="fp32"))]
    assert operators[0] > operators[1]
    found = run_onnx(traced.SerializeToString(), image)
    assert difference(run_onnx(bytes_of(module, batch=2), image), found) < TOLERANCES["fp32"]


# -- TensorRT-RTX -----------------------------------------------------------------------------------------------------

#: One fused attention leaves this many marks in the plan of TensorRT-RTX 1.7.
MARKS_PER_ATTENTION = 18


def build_plan(onnx_bytes: bytes, batches: tuple[int, int, int] | None = None) -> bytes:
    """The engine of TensorRT-RTX for an RTX 30 (compute capability 8.6), built without a GPU.

    `batches`: for a dynamic graph, the smallest, usual and largest.
    """
    pytest.importorskip("tensorrt_rtx_bindings", reason="pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs")
    from explorer.latency import trt_build

    if not trt_build.IS_RTX:
        pytest.skip("TensorRT is here, and builds for the GPU that is here alone")
    return trt_build.build(onnx_bytes, trt_build.Options(batches=batches, compute_capabilities=("8.6",))).plan


def num_fused(plan: bytes) -> float:
    return plan.count(b"_gemm_mha_v2") / MARKS_PER_ATTENTION


RTX_SHIFT = "Swin-E32x1.2.2.1-H2.4.8.16-R56-P1-N10"
RTX_BR = "Swin-E32x1.2.2.1-BR-H2.4.8.16-R56-P1-N10"
RTX_FREE = "Swin-Free-E64x1.1.2.1-R56-P1-N10"
RTX_FREE_BR = "Swin-Free-E32x1.1.2.1-BR-H2.4.8.16-R56-P1-N10"
RTX_V2 = "SwinV2-E32x1.2.2.1-H2.4.8.16-64-P1-N10"
RTX_V2_BR = "SwinV2-E32x1.2.2.1-BR-H2.4.8.16-64-P1-N10"
RTX_PADDED = "Swin-E32x1.2.2.1-H2.4.8.16-BR-R64-P1-N10"
RTX_V2_PADDED = "SwinV2-E32x1.2.2.1-W5.5.5.5-H2.4.8.16-64-P1-N10"


@pytest.mark.parametrize(
    ("name", "batch", "precision"),
    [
        (RTX_SHIFT, 3, "fp16"),
        (RTX_SHIFT, 3, "bf16"),
        (RTX_BR, 1, "bf16"),
        (RTX_FREE, 1, "fp16"),
        (RTX_FREE_BR, 3, "fp16"),
        (RTX_V2, 1, "fp16"),
        (RTX_V2, 1, "bf16"),
        (RTX_V2_BR, 1, "bf16"),
        (RTX_PADDED, 3, "bf16"),
        (RTX_V2_PADDED, 1, "fp16"),
    ],
)
def test_tensorrt_builds_the_graph_with_every_attention_fused(name: str, batch: int, precision: Precision) -> None:
    module, arch = scattered(name)
    plan = build_plan(bytes_of(module, batch=batch, precision=precision))
    assert num_fused(plan) == sum(arch.depths)


@pytest.mark.parametrize(
    ("name", "precision"),
    [(RTX_SHIFT, "fp16"), (RTX_V2, "bf16"), (RTX_PADDED, "fp16")],
)
def test_tensorrt_builds_the_dynamic_graph_with_every_attention_fused(name: str, precision: Precision) -> None:
    module, arch = scattered(name)
    plan = build_plan(bytes_of(module, batch=None, precision=precision), (1, 4, 8))
    assert num_fused(plan) == sum(arch.depths)


@pytest.mark.parametrize(
    "name", ["Swin-Free-E32x1.1.1.1-H2.4.8.16-R56-P1-N10", "SwinV2-E32x1.1.1.1-H2.4.8.16-32-P1-N10"]
)
def test_tensorrt_leaves_fp32_attention_unfused(name: str) -> None:
    """So that the counts above tell something."""
    module, _ = scattered(name)
    assert num_fused(build_plan(bytes_of(module))) == 0


def test_weights_that_no_check_can_use_are_drawn_again_for_a_measurement() -> None:
    """A narrow network with BatchNorm whose weights of seed 0 rounding alone moves too far."""
    arch = parse_name("Swin-E16x2.2.10.2-W14.7.7.7-S0010-BR-R112-P2-N100")
    with pytest.raises(IllConditioned, match="rounding in fp32 alone moves them by"):
        deploy(build(arch, seed=0, scatter=True), arch, seed=0)
    target, _ = resolve("onnxruntime", image_size=arch.image_size)
    assert 0 < deployed_for(arch, target, seed=0).difference < 1e-4
