"""Where the time goes: the run time of a deployed network by operation and by stage.

Each backend's own profiler is asked in a pass of its own: ONNX Runtime's (`explorer.latency.profile_ort`), torch's
(`explorer.latency.profile_torch`), TensorRT's layer times (`explorer.latency.profile_trt`). A profiler costs time, so that
profiled times are shares of a run and never a latency; a short plain run of the same network stands beside their sum.

Every part is attributed to a node of the deployed graph by name, or to the node that the module's operation stands for, and
through its role (`explorer.model.onnx_writer`) to a group.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from explorer.arch import NUM_STAGES, Arch
from explorer.errors import BackendMissing, MeasureError
from explorer.latency import environment, needs_graph
from explorer.latency.cache import Cache
from explorer.latency.measurement import open_runner
from explorer.latency.measurer import deployed_for
from explorer.model.onnx_writer import role_of
from explorer.records import Target

if TYPE_CHECKING:
    from explorer.model.deployment import Deployed

#: Profiled runs; a part's time is its median over them.
RUNS: Final = 10
#: Runs before them that are not counted.
WARM_UP_RUNS: Final = 2
#: The plain run beside the profile is the median of so many seconds and runs, whichever ends later.
PLAIN_S: Final = 0.5
PLAIN_RUNS: Final = 5

#: The groups in the order they are shown, with the roles that each holds.
GROUPS: Final = MappingProxyType(
    {
        "window shift": ("shift", "unshift"),
        "partition and merge": ("partition", "merge", "pad", "crop"),
        "attention": ("attn.scores", "attn.bias", "attn.mix", "attn.heads", "attn.cosine"),
        "softmax": ("attn.softmax",),
        "attention projections": ("attn.qkv", "attn.proj"),
        "MLP": ("mlp.fc1", "mlp.fc2"),
        "activation": ("mlp.gelu", "mlp.relu"),
        "norm": ("norm1", "norm2", "norm", "merging.norm", "patch_embed.norm"),
        "patch merging": ("merging", "merging.reduction"),
        "patch embedding": ("patch_embed", "patch_embed.proj"),
        "residual": ("skip",),
        "head": ("head",),
        "copies": ("copy",),
        "other": ("other",),
    }
)
OUTSIDE: Final = "outside the stages"
_STAGE: Final = re.compile(r"^stages\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Part:
    """One node's share of a run: milliseconds per inference, in `num_calls` calls of a kernel or an operator.

    `node`: as the runtime names it. `role`: as `profiled_role` names it, `copy` for what the runtime
    inserted to move values, `other` for what is not ours. `group`: one of GROUPS. `stage`: 1 to 4, None outside them.
    """

    node: str
    role: str
    group: str
    stage: int | None
    ms: float
    num_calls: int = 1


@dataclass(frozen=True)
class Profile:
    """The parts of one inference at the target's batch, in the order they ran.

    `plain_ms`: median of the same network without a profiler, taken in the same command. `remarks`: how parts were counted
    that stand for several operations, for readers.
    """

    arch_id: str
    target_id: str
    parts: tuple[Part, ...]
    plain_ms: float
    num_runs: int
    remarks: tuple[str, ...] = ()

    @property
    def total_ms(self) -> float:
        """The sum of the parts in milliseconds per inference: not a latency, a profiler costs time."""
        return sum(part.ms for part in self.parts)

    def by_group(self) -> dict[str, float]:
        """The share (0..1) of every group of GROUPS, in their order; they add up to 1."""
        return self._shares(list(GROUPS), lambda part: part.group)

    def by_stage(self) -> dict[str, float]:
        """The share (0..1) of `stage 1` to `stage 4` and of what is outside them; a stage begins with its patch merging."""
        stages = [f"stage {stage}" for stage in range(1, NUM_STAGES + 1)]
        return self._shares([*stages, OUTSIDE], lambda part: f"stage {part.stage}" if part.stage else OUTSIDE)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything, shares included."""
        return {
            "arch_id": self.arch_id,
            "target_id": self.target_id,
            "num_runs": self.num_runs,
            "total_ms": self.total_ms,
            "plain_ms": self.plain_ms,
            "by_group": self.by_group(),
            "by_stage": self.by_stage(),
            "remarks": list(self.remarks),
            "parts": [asdict(part) for part in self.parts],
        }

    def _shares(self, keys: list[str], key_of: Callable[[Part], str]) -> dict[str, float]:
        shares = dict.fromkeys(keys, 0.0)
        for part in self.parts:
            shares[key_of(part)] += part.ms / self.total_ms
        return shares


def part_of(node: str, ms: float, owner: str, *, is_copy: bool = False, num_calls: int = 1) -> Part:
    """The part `node`, counted where `owner` belongs: a node of the deployed graph, or empty where none is known.

    `is_copy`: it only moves values for the runtime; of its owner it has the stage.
    """
    role = "copy" if is_copy else profiled_role(owner)
    group = next(group for group, roles in GROUPS.items() if role in roles)
    stage = _STAGE.match(owner)
    return Part(node, role, group, int(stage.group(1)) + 1 if stage else None, ms, num_calls)


def profiled_role(node: str) -> str:
    """The role of a node of the deployed graph, the embedding's norm told apart: it is a norm like all others."""
    return "patch_embed.norm" if node.startswith("patch_embed.norm") else role_of(node)


def profile_arch(
    arch: Arch, target: Target, *, runs: int = RUNS, seed: int = 0, cache_root: Path | None = None
) -> Profile:
    """Builds `arch` with scattered weights, deploys it as the target's backend needs it and profiles it.

    The device is held exclusively meanwhile. Raises BackendMissing, and what `deployed_for` and `profile` raise.
    """
    _require_profiler(target)
    deployed = deployed_for(arch, target, seed=seed)
    cache = Cache(cache_root) if target.backend == "tensorrt" else None
    with environment.exclusive(target.device_kind):
        return profile(deployed, target, runs=runs, seed=seed, cache=cache)


def profile(
    deployed: Deployed, target: Target, *, runs: int = RUNS, seed: int = 0, cache: Cache | None = None
) -> Profile:
    """Profiles `runs` inferences of `deployed` on `target`, on the input that its latency is measured with.

    The module of `deployed` is not changed. Takes seconds. Raises BackendMissing where the backend's kernels cannot be told
    apart, BuildError and MeasureError.
    """
    assert runs >= 1
    _require_profiler(target)
    plain_ms = _plain_ms(deployed, target, seed, cache)
    match target.backend:
        case "onnxruntime":
            from explorer.latency.profile_ort import profile_onnxruntime

            parts, remarks = profile_onnxruntime(deployed, target, runs=runs, seed=seed)
        case "torch":
            from explorer.latency.profile_torch import profile_torch

            parts, remarks = profile_torch(deployed, target, runs=runs, seed=seed)
        case "tensorrt":
            from explorer.latency.profile_trt import parts_of_layers
            from explorer.latency.trt import layer_times

            parts, remarks = parts_of_layers(*layer_times(deployed, target, runs=runs, seed=seed, cache=cache))
        case other:
            raise AssertionError(f"no backend {other}")
    if not sum(part.ms for part in parts) > 0:
        raise MeasureError(f"{deployed.arch.name}: the profiler of {target.backend} recorded no time")
    remarks = (*_remarks(deployed.arch, target, parts), *remarks)
    return Profile(deployed.arch.id, target.id, tuple(parts), plain_ms, runs, remarks)


def _require_profiler(target: Target) -> None:
    instead = {"torch-compile": "torch", "onnxruntime-tensorrt": "tensorrt"}.get(target.backend)
    if instead is not None:
        raise BackendMissing(
            f"backend {target.backend}: its kernels span operations of several kinds and it does not tell them apart; "
            f"profile with --backend {instead}"
        )


def _plain_ms(deployed: Deployed, target: Target, seed: int, cache: Cache | None) -> float:
    """Median of a few runs without a profiler, timed as a latency is, in milliseconds."""
    runner = open_runner(deployed, target, seed, cache=cache)
    try:
        for _ in range(WARM_UP_RUNS):
            runner.run()
        return float(np.median(runner.timed(PLAIN_S, PLAIN_RUNS)))
    finally:
        runner.close()


def _remarks(arch: Arch, target: Target, parts: list[Part]) -> tuple[str, ...]:
    """What holds for every backend that runs our graph, and for the module."""
    remarks = []
    stages = range(NUM_STAGES)
    is_gathered = any(
        arch.has_shift(stage, block) and arch.tokens[stage] % arch.windows[stage] == 0
        for stage in stages
        for block in range(arch.depths[stage])
    )
    if is_gathered:
        moves = "merges windows, rolls and partitions" if needs_graph(target) else "rolls and partitions"
        remarks.append(
            f"window shift: one gather {moves} at once and counts whole, so that the share is an upper bound of the roll's"
        )
    if not any(part.group == "softmax" for part in parts):
        remarks.append("softmax: runs inside the attention's kernels and counts as attention")
    return tuple(remarks)
