"""ONNX Runtime's profile, node by node of the graph that it made of ours.

The runtime fuses nodes, spells some out and inserts others. Its own optimised graph is saved beside the profile, and every
node is counted by these rules, the first that fits:

1. a node of ours, or one named after a node of ours (`stages.0.blocks.0.attn.qkv/MatMulAddFusion`), has that node's role;
2. casts, reorderings and reshapes under other names are copies;
3. anything else works towards the first tensor of ours downstream of it and has the role of its node: the Exp and the Div of
   a softmax without a kernel in this precision are softmax, a skip fused with the norm after it is norm.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime

from explorer.errors import BuildError, MeasureError
from explorer.latency import ort
from explorer.latency.profile import WARM_UP_RUNS, Part, part_of
from explorer.model.deployment import Deployed
from explorer.records import Target

_MOVES: Final = ("Cast", "ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost", "Identity")
_MOVES_UNLESS_OURS: Final = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
_SUFFIX: Final = "_kernel_time"
#: A cast that the runtime took back leaves its name on a tensor that was ours.
_UNCAST: Final = "InsertedPrecisionFreeCast_"

Event = dict[str, Any]


def profile_onnxruntime(
    deployed: Deployed, target: Target, *, runs: int, seed: int
) -> tuple[list[Part], tuple[str, ...]]:
    """Parts of the deployed graph and remarks; the session is optimised as the one that latency is measured with.

    Raises BuildError and MeasureError. On a GPU the parts are kernels, which needs a build of ONNX Runtime that records
    them.
    """
    assert deployed.onnx_bytes is not None
    with TemporaryDirectory(prefix="swinexplore-profile-") as folder:
        events, optimised = _recorded(deployed, target, Path(folder), runs=runs, seed=seed)
    ours = onnx.load_from_string(deployed.onnx_bytes).graph
    times_ms = node_times(events, num_runs=WARM_UP_RUNS + runs, kernels=target.device_kind == "cuda")
    parts = parts_of_nodes(times_ms, optimised.node, ours.node)
    return parts, _remarks(optimised.node)


def _recorded(
    deployed: Deployed, target: Target, folder: Path, *, runs: int, seed: int
) -> tuple[list[Event], onnx.GraphProto]:
    """The profile's events, warm-up included, and the optimised graph without its weights."""
    options = ort.session_options(target)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    name = ort.PROVIDERS[target.backend, target.device_kind]
    provider = (name, ort.provider_options(name, target))
    try:
        session = onnxruntime.InferenceSession(deployed.onnx_bytes, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BuildError(f"{deployed.arch.name}: ONNX Runtime does not load the graph: {error}") from error
    arch, dtype = deployed.arch, np.float16 if target.precision == "fp16" else np.float32
    shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)
    try:
        for _ in range(WARM_UP_RUNS + runs):
            session.run(["logits"], {"image": values})
    except Exception as error:  # as above
        raise MeasureError(f"ONNX Runtime failed while running: {error}") from error
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events, onnx.load(folder / "optimised.onnx", load_external_data=False).graph


def node_times(events: Iterable[Event], *, num_runs: int, kernels: bool = False) -> dict[str, tuple[str, float, int]]:
    """By node as the profile names it, in the order of execution: operator, milliseconds per inference, calls.

    `num_runs`: runs in `events`; the first WARM_UP_RUNS are dropped, of the others the median counts. `kernels`: a node's
    time is that of the GPU kernels after it, not the host's for queueing them. Raises MeasureError.
    """
    operators: dict[str, str] = {}
    times_us: dict[str, list[float]] = defaultdict(list)
    name, has_kernels = "", False
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"].removesuffix(_SUFFIX)
            operators[name] = event["args"]["op_name"]
            times_us[name].append(0.0 if kernels else event["dur"])
        elif event["cat"] == "Kernel" and kernels and name:
            has_kernels = True
            times_us[name][-1] += event["dur"]
    if kernels and not has_kernels:
        raise MeasureError("this build of ONNX Runtime records no GPU kernels; use --backend torch or --device cpu")
    found = {}
    for name, durations in times_us.items():
        if len(durations) % num_runs:
            raise MeasureError(
                f"ONNX Runtime's profile is not complete: {name} ran {len(durations)} times in {num_runs}"
            )
        per_run = np.array(durations).reshape(num_runs, -1).sum(axis=1)[min(WARM_UP_RUNS, num_runs - 1) :]
        found[name] = (operators[name], float(np.median(per_run)) / 1e3, len(durations) // num_runs)
    return found


def parts_of_nodes(
    times_ms: dict[str, tuple[str, float, int]],
    optimised: Sequence[onnx.NodeProto],
    ours: Sequence[onnx.NodeProto],
) -> list[Part]:
    """`times_ms` as `node_times` gives them, counted by the rules above; `optimised` and `ours` in topological order."""
    owners = _Owners(optimised, ours)
    named = {node.name: node for node in optimised if node.name}
    unnamed: dict[str, deque[onnx.NodeProto]] = defaultdict(deque)
    for node in optimised:
        if not node.name:
            unnamed[node.op_type].append(node)
    parts = []
    for name, (operator, ms, num_calls) in times_ms.items():
        if name in named:
            owner, is_copy = owners.of(named[name])
        elif unnamed[operator]:  # the profile calls them `Exp_347`, in the graph's order
            owner, is_copy = owners.of(unnamed[operator].popleft())
        else:
            owner, is_copy = "", False
        parts.append(part_of(name, ms, owner, is_copy=is_copy, num_calls=num_calls))
    return parts


class _Owners:
    """Which node of our graph a node of the optimised one belongs to."""

    def __init__(self, optimised: Sequence[onnx.NodeProto], ours: Sequence[onnx.NodeProto]) -> None:
        self.names = {node.name for node in ours}
        self.tensors = {tensor: node.name for node in ours for tensor in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in optimised:
            for tensor in node.input:
                self.readers[tensor].append(node)

    def of(self, node: onnx.NodeProto) -> tuple[str, bool]:
        """The owner, empty where there is none, and whether `node` is a copy."""
        if node.name in self.names:
            return node.name, False
        named_after = self._named_after(node.name)
        is_copy = node.op_type in _MOVES or (not named_after and node.op_type in _MOVES_UNLESS_OURS)
        return named_after or self._downstream(node), is_copy

    def _named_after(self, name: str) -> str:
        cuts = [match.start() for match in re.finditer("[/_]", name)]
        return next((name[:cut] for cut in reversed(cuts) if name[:cut] in self.names), "")

    def _downstream(self, node: onnx.NodeProto) -> str:
        waiting, seen = deque([node]), set()
        while waiting:
            for tensor in waiting.popleft().output:
                owner = self.tensors.get(tensor.removeprefix(_UNCAST))
                if owner is not None:
                    return owner
                if tensor not in seen:
                    seen.add(tensor)
                    waiting.extend(self.readers[tensor])
        return ""


def _remarks(optimised: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    num_fused = sum(node.op_type.startswith("Skip") for node in optimised)
    return (f"norm: {num_fused} with the skip connection before fused into it",) if num_fused else ()
