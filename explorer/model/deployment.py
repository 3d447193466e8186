"""From a training module to what is deployed: the ONNX graph, checked against the module it came from.

The check runs the graph in ONNX Runtime on random input. An fp32 graph that disagrees is our bug (ParityError); a
reduced-precision one is a property of that architecture (MismatchError).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn

from explorer.arch import Arch
from explorer.errors import BackendMissing, BuildError, ExportError, MismatchError, ParityError
from explorer.model.onnx_graph import GRAPH_PRECISIONS, write_onnx
from explorer.model.swin import Swin
from explorer.records import Precision

#: Largest difference of a logit, in standard deviations of all logits. fp32: rounding of re-ordered sums. fp16: 11 bits
#: of mantissa over some hundred layers.
TOLERANCES: Final[dict[Precision, float]] = {"fp32": 1e-4, "fp16": 5e-2}


@dataclass(frozen=True)
class Deployed:
    """A network as it is deployed: the module in eval mode, and its ONNX graph where a backend needs one.

    `difference`: largest difference of a logit between graph and module, in standard deviations of the logits; None where
    there is no graph.
    """

    arch: Arch
    module: nn.Module
    batch: int
    precision: Precision
    onnx_bytes: bytes | None = None
    difference: float | None = None


def deploy(module: Swin, arch: Arch, *, batch: int = 1, precision: Precision = "fp32", seed: int = 0) -> Deployed:
    """Writes the ONNX graph of `module` and checks it against the module on N(0, 1) input from `seed`.

    The module is put into eval mode and not otherwise changed. Raises BackendMissing for a precision that no graph is
    written in, ExportError, BuildError where ONNX Runtime refuses the graph, ParityError and MismatchError. Takes a second
    for Swin-T on two cores and a few for Swin-B.
    """
    if precision not in GRAPH_PRECISIONS:
        allowed = ", ".join(GRAPH_PRECISIONS)
        raise BackendMissing(f"precision: {precision!r} is not written as an ONNX graph; allowed: {allowed}")
    module.eval()
    try:
        onnx_bytes = write_onnx(module, batch=batch, precision=precision)
    except Exception as error:
        raise ExportError(f"{arch.name}: the graph could not be written: {error}") from error
    difference = _difference(module, onnx_bytes, batch=batch, seed=seed)
    if not difference <= TOLERANCES[precision]:
        message = (
            f"{arch.name}: the {precision} graph differs from the model by {difference:.3g} standard deviations of its "
            f"logits; allowed: {TOLERANCES[precision]:g}"
        )
        if precision != "fp32":
            raise MismatchError(message)
        rounding = _rounding(module, batch=batch, seed=seed)
        if difference <= 10 * rounding:
            raise MismatchError(
                f"{message}; these weights are ill-conditioned: rounding alone moves them by {rounding:.3g}"
            )
        raise ParityError(message)
    return Deployed(arch, module, batch, precision, onnx_bytes, difference)


@torch.inference_mode()
def _rounding(module: Swin, *, batch: int, seed: int) -> float:
    """By how much fp32 rounding alone moves a logit of the module, in standard deviations of its logits."""
    image = _random_image(module.arch, batch, seed)
    device = next(module.parameters()).device
    exact = copy.deepcopy(module).double()(image.double().to(device))
    return float((module(image.to(device)) - exact).abs().max() / exact.std())


def _random_image(arch: Arch, batch: int, seed: int) -> torch.Tensor:
    """N(0, 1), (batch, channels, image_size, image_size)."""
    shape = (batch, arch.channels, arch.image_size, arch.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def _difference(module: Swin, onnx_bytes: bytes, *, batch: int, seed: int) -> float:
    import onnxruntime

    arch = module.arch
    image = _random_image(arch, batch, seed)
    device = next(module.parameters()).device
    expected = module(image.to(device)).float().cpu().numpy()
    try:
        session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
        dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
        (logits,) = session.run(["logits"], {"image": image.numpy().astype(dtype)})
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BuildError(f"{arch.name}: ONNX Runtime does not run the graph: {error}") from error
    spread = float(expected.std()) or 1.0
    return float(np.abs(logits.astype(np.float32) - expected).max()) / spread
