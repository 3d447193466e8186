"""Nodes and initializers of an ONNX model in one floating-point type: what `explorer.model.onnx_graph` writes with.

Names of nodes are `module.role`; `role_of` is what a profile or a node count is summed by.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from explorer.arch import Arch
from explorer.model import GRAPH_VERSION
from explorer.records import Precision

#: The first opset whose Gelu is one node; ONNX Runtime, TensorRT 10 and 11 and TensorRT-RTX read it.
OPSET: Final = 20
#: The IR version of ONNX 1.15, the first with opset 20; TensorRT's parsers refuse much newer ones.
IR_VERSION: Final = 9

Array = NDArray[Any]
_TYPES: Final[dict[Precision, tuple[int, Any]]] = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
_MODULE: Final = re.compile(r"^(?:stages\.\d+\.)?(?:blocks\.\d+\.)?")
#: What stands before the last parts of a node's name; longer ones first.
ROLES: Final = (
    "patch_embed.proj",
    "patch_embed",
    "merging.reduction",
    "merging.norm",
    "merging",
    "norm1",
    "norm2",
    "norm",
    "partition",
    "merge",
    "shift",
    "unshift",
    "pad",
    "crop",
    "attn.qkv",
    "attn.heads",
    "attn.cosine",
    "attn.scores",
    "attn.bias",
    "attn.softmax",
    "attn.mix",
    "attn.proj",
    "mlp.fc1",
    "mlp.gelu",
    "mlp.relu",
    "mlp.fc2",
    "skip",
    "head",
)


def role_of(node_name: str) -> str:
    """The role of a node: `stages.2.blocks.5.attn.softmax` -> `attn.softmax`. One of ROLES, or `other` for names not ours."""
    rest = _MODULE.sub("", node_name)
    return next((role for role in ROLES if rest == role or rest.startswith(f"{role}.")), "other")


class Graph:
    """Nodes and initializers in the order they are added; every tensor in one floating-point type.

    `batch`: images, or None where any number may come. Weights on torch's meta device leave initializers without data:
    such a graph can be counted, not run.
    """

    def __init__(self, precision: Precision, batch: int | None) -> None:
        self.precision, self.batch = precision, batch
        self.element_type, self.dtype = _TYPES[precision]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def rows(self, per_image: int = 1) -> int:
        """First dim of a tensor with `per_image` rows an image, as a Reshape takes it: -1 where the batch is dynamic."""
        return -1 if self.batch is None else self.batch * per_image

    def op(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output; returns that output's name, which is the node's."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def split(self, name: str, x: str, parts: int) -> list[str]:
        """Cuts the last axis into equal `parts`; returns their names."""
        outputs = [f"{name}.{index}" for index in range(parts)]
        self.nodes.append(helper.make_node("Split", [x], outputs, name=name, axis=-1, num_outputs=parts))
        return outputs

    def weight(self, name: str, values: Tensor | Array) -> str:
        """Adds a constant in the graph's floating-point type."""
        if isinstance(values, Tensor):
            if values.is_meta:
                proto = TensorProto(name=name, data_type=self.element_type, dims=values.shape)
                self.initializers.setdefault(name, proto)
                return name
            values = values.detach().cpu().numpy()
        return self.initialize(name, np.ascontiguousarray(values, dtype=self.dtype))

    def ints(self, *values: int) -> str:
        """A constant of int64 values (dims, axes), shared by all nodes that need the same."""
        return self.initialize("ints." + ".".join(map(str, values)), np.array(values, dtype=np.int64))

    def initialize(self, name: str, array: Array) -> str:
        """Adds a constant as it is."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def reshape(self, name: str, x: str, *dims: int) -> str:
        """`x` in other dims; one of them may be -1."""
        return self.op("Reshape", name, x, self.ints(*dims))

    def transpose(self, name: str, x: str, *perm: int) -> str:
        """`x` with its axes in another order."""
        return self.op("Transpose", name, x, perm=perm)

    def gather(self, name: str, x: str, order: Tensor) -> str:
        """`x` (B, tokens, C) with its tokens in another order; nodes with the same order share its constant."""
        places = order.numpy()
        digest = hashlib.sha256(places.tobytes()).hexdigest()[:12]
        return self.op("Gather", name, x, self.initialize(f"order.{len(places)}.{digest}", places), axis=1)

    def linear(self, name: str, x: str, weight_CK: Tensor, bias: Tensor | None) -> str:
        """(..., C) @ (C, K) + bias, as MatMul and Add."""
        x = self.op("MatMul", name, x, self.weight(f"{name}.weight", weight_CK))
        return x if bias is None else self.op("Add", f"{name}.add_bias", x, self.weight(f"{name}.bias", bias))

    def layer_norm(self, name: str, x: str, norm: nn.LayerNorm) -> str:
        """LayerNorm over the last axis as one node; mean and variance in fp32 whatever the precision."""
        scale, shift = self.weight(f"{name}.weight", norm.weight), self.weight(f"{name}.bias", norm.bias)
        return self.op("LayerNormalization", name, x, scale, shift, axis=-1, epsilon=norm.eps)

    def model(self, arch: Arch, output: str) -> onnx.ModelProto:
        """The model whose logits are `output`."""
        for node in self.nodes:
            node.output[:] = ["logits" if name == output else name for name in node.output]
            node.input[:] = ["logits" if name == output else name for name in node.input]
        batch = "batch" if self.batch is None else self.batch
        image = [batch, arch.channels, arch.image_size, arch.image_size]
        graph = helper.make_graph(
            self.nodes,
            arch.name,
            [helper.make_tensor_value_info("image", self.element_type, image)],
            [helper.make_tensor_value_info("logits", self.element_type, [batch, arch.num_classes])],
            list(self.initializers.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "swinexplore"
        properties = {"arch": arch.name, "arch_id": arch.id, "precision": self.precision}
        helper.set_model_props(model, properties | {"graph_version": str(GRAPH_VERSION)})
        return model
