"""From a training module to what is deployed: the ONNX graph, checked against the module it came from.

The check runs the graph in ONNX Runtime on random input. An fp32 graph that disagrees is our bug (ParityError); a
reduced-precision one, or one of weights that blow rounding up, is a property of that architecture (MismatchError). ONNX
Runtime has no bf16 kernels, so a bf16 graph is checked twice: the fp32 graph of the same module must agree as any fp32
graph, and the bf16 graph itself, run in fp32 with every tensor rounded to bf16, which is what bf16 kernels with fp32 sums
compute.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from explorer.arch import Arch
from explorer.errors import BuildError, ExportError, IllConditioned, MismatchError, ParityError, ran_out_of_memory
from explorer.model.onnx_graph import write_onnx
from explorer.model.swin import Swin
from explorer.records import Precision

#: Largest difference of a logit, in standard deviations of all logits. fp32: rounding of re-ordered sums. fp16 and bf16:
#: 11 and 8 bits of mantissa over some hundred layers.
TOLERANCES: Final[dict[Precision, float]] = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 0.4}
#: An fp32 graph that disagrees by at most this many times what rounding alone does to the module is not held against us:
#: the weights amplify every rounding, and no graph of them would agree.
_ILL_CONDITIONED: Final = 4.0
#: Rounding in fp32 moves the logits of ordinary weights by some 1e-6 of their spread; above this a check says nothing.
_WELL_CONDITIONED: Final = 3e-5
#: Images of the check where any number may come: two batches, so that no size is left in the graph.
_DYNAMIC_BATCHES: Final = (1, 3)
#: Operators that move values and round none.
_MOVES: Final = ("Reshape", "Transpose", "Split", "Gather", "Slice", "Pad")


@dataclass(frozen=True)
class Deployed:
    """A network as it is deployed: the module in eval mode, and its ONNX graph where a backend needs one.

    `batch`: images, None where the graph takes any number. `difference`: largest difference of a logit between graph and
    module, in standard deviations of the logits; None where there is no graph.
    """

    arch: Arch
    module: nn.Module
    batch: int | None
    precision: Precision
    onnx_bytes: bytes | None = None
    difference: float | None = None


def deploy(
    module: Swin, arch: Arch, *, batch: int | None = 1, precision: Precision = "fp32", seed: int = 0
) -> Deployed:
    """Writes the ONNX graph of `module` and checks it against the module on N(0, 1) input from `seed`.

    `batch`: None writes a graph for any number of images. The module is put into eval mode and not otherwise changed.
    Raises ExportError, BuildError where ONNX Runtime refuses the graph, ParityError and MismatchError. Takes a second for
    Swin-T on two cores and a few for Swin-B.
    """
    module.eval()
    onnx_bytes = _written(module, batch, precision)
    if precision == "bf16":
        _require_agreement(module, _written(module, batch, "fp32"), batch=batch, precision="fp32", seed=seed)
        difference = _require_agreement(module, _emulated(onnx_bytes), batch=batch, precision="bf16", seed=seed)
    else:
        difference = _require_agreement(module, onnx_bytes, batch=batch, precision=precision, seed=seed)
    return Deployed(arch, module, batch, precision, onnx_bytes, difference)


def _written(module: Swin, batch: int | None, precision: Precision) -> bytes:
    try:
        return bytes(write_onnx(module, batch=batch, precision=precision).SerializeToString())
    except Exception as error:
        raise ExportError(f"{module.arch.name}: the graph could not be written: {error}") from error


def _require_agreement(module: Swin, onnx_bytes: bytes, *, batch: int | None, precision: Precision, seed: int) -> float:
    """The difference of the graph from the module, where it is tolerable."""
    batches = _DYNAMIC_BATCHES if batch is None else (batch,)
    difference = _difference(module, onnx_bytes, batches=batches, seed=seed)
    if difference <= TOLERANCES[precision]:
        return difference
    message = (
        f"{module.arch.name}: the {precision} graph differs from the model by {difference:.3g} standard deviations of its "
        f"logits; allowed: {TOLERANCES[precision]:g}"
    )
    rounding = _rounding(module, batch=batches[0], seed=seed)
    why = f"{message}; these weights are ill-conditioned: rounding in fp32 alone moves them by {rounding:.3g}"
    if precision != "fp32":
        raise IllConditioned(why) if rounding > _WELL_CONDITIONED else MismatchError(message)
    if rounding > _WELL_CONDITIONED or difference <= _ILL_CONDITIONED * rounding:
        raise IllConditioned(why)
    raise ParityError(message)


@torch.inference_mode()
def _rounding(module: Swin, *, batch: int, seed: int) -> float:
    """By how much fp32 rounding alone moves a logit of the module, in standard deviations of its logits."""
    image = _random_image(module.arch, batch, seed)
    device = next(module.parameters()).device
    exact = copy.deepcopy(module).double()(image.double().to(device))
    return float((module(image.to(device)) - exact).abs().max() / exact.std())


def _emulated(onnx_bytes: bytes) -> bytes:
    """The bf16 graph with fp32 in the place of bf16, and every output that was bf16 rounded to it."""
    model = onnx.load_from_string(onnx_bytes)
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    for constant in graph.initializer:
        if constant.data_type == TensorProto.BFLOAT16:
            widened = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(widened, constant.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Cast":  # Swin V2's cosines are fp32 from one cast to the other
            for attribute in node.attribute:
                attribute.i = TensorProto.FLOAT
        if node.op_type in _MOVES or (".attn.cosine." in node.name and not node.name.endswith(".narrow")):
            continue
        (name,) = node.output
        node.output[0] = f"{name}.exact"
        nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=TensorProto.BFLOAT16))
        nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _random_image(arch: Arch, batch: int, seed: int) -> torch.Tensor:
    """N(0, 1), (batch, channels, image_size, image_size)."""
    shape = (batch, arch.channels, arch.image_size, arch.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def _difference(module: Swin, onnx_bytes: bytes, *, batches: tuple[int, ...], seed: int) -> float:
    """The largest difference of a logit over `batches`, in standard deviations of the module's logits."""
    import onnxruntime

    arch = module.arch
    device = next(module.parameters()).device
    differences = []
    try:
        session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
        dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
        for batch in batches:
            image = _random_image(arch, batch, seed)
            expected = module(image.to(device)).float().cpu().numpy()
            (logits,) = session.run(["logits"], {"image": image.numpy().astype(dtype)})
            spread = float(expected.std()) or 1.0
            differences.append(float(np.abs(logits.astype(np.float32) - expected).max()) / spread)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        if ran_out_of_memory(error):
            raise BuildError(
                f"{arch.name}: out of memory while the graph was checked: {error}", "out_of_memory"
            ) from error
        raise BuildError(f"{arch.name}: ONNX Runtime does not run the graph: {error}") from error
    return float(np.max(differences))
