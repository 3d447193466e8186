"""The network: torch modules for training, the deployed graph for everything else.

`build` makes the module of an `Arch`, `deploy` its checked ONNX graph. torch is imported on the first call, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from explorer.arch import Arch
from explorer.records import Precision

if TYPE_CHECKING:
    from torch import Tensor

    from explorer.model.deployment import Deployed
    from explorer.model.swin import Swin
    from explorer.model.weights import Layout

#: How the weights of a training start: as the Swin authors', or drawn by the width of their layers.
Init = Literal["authors", "narrow"]
#: Rises whenever the same module would be written as another graph; part of the key of every latency measured on one.
GRAPH_VERSION: Final = 2
#: Rises whenever the torch module of an architecture runs other operations; part of the key of latencies measured on it.
MODULE_VERSION: Final = 1


def build(arch: Arch, *, seed: int = 0, drop_path: float = 0.0, init: Init = "authors", scatter: bool = False) -> Swin:
    """The torch module of `arch` on the CPU in fp32, initialised as the Swin authors do from `seed`.

    `drop_path`: stochastic depth rate of the last block (0..1). `init`: `narrow` starts narrow networks that train
    briefly, see `explorer.model.swin.init_weights`. `scatter`: weights for a network that is measured and not
    trained: every part then shows in its logits, so that the check of its graph misses none.
    """
    import torch

    from explorer.model.swin import Swin, init_weights, scatter_weights

    with torch.random.fork_rng(devices=[]):  # torch's layers draw weights of their own first
        module = Swin(arch.canonical(), drop_path)
    if scatter:
        scatter_weights(module, seed)
    else:
        init_weights(module, seed, narrow=init == "narrow")
    return module


def deploy(
    module: Swin, arch: Arch, *, batch: int | None = 1, precision: Precision = "fp32", seed: int = 0
) -> Deployed:
    """See `explorer.model.deployment.deploy`."""
    from explorer.model.deployment import deploy as deploy_module

    return deploy_module(module, arch, batch=batch, precision=precision, seed=seed)


def load_weights(module: Swin, state_dict: Mapping[str, Any], *, new_head: bool = False) -> Layout:
    """See `explorer.model.weights.load_weights`."""
    from explorer.model import weights

    return weights.load_weights(module, state_dict, new_head=new_head)


def export_weights(module: Swin, layout: Layout) -> dict[str, Tensor]:
    """See `explorer.model.weights.export_weights`."""
    from explorer.model import weights

    return weights.export_weights(module, layout)


def node_roles(arch: Arch, *, batch: int | None = 1, precision: Precision = "fp32") -> dict[str, int]:
    """How many nodes of the deployed graph play each role (`attn.softmax`, `shift`, ...), in the graph's order."""
    from collections import Counter

    from explorer.model.onnx_graph import skeleton
    from explorer.model.onnx_writer import role_of

    return dict(Counter(role_of(node.name) for node in skeleton(arch, batch=batch, precision=precision).graph.node))
