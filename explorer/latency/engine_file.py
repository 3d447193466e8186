"""A TensorRT engine for others to run, with what it is and the command that builds the same without swinexplore."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explorer.latency import environment, sees_gpu, trt_build
from explorer.model import GRAPH_VERSION
from explorer.model.deployment import Deployed

ENGINE, METADATA = "model.engine", "engine.json"


@dataclass(frozen=True)
class Engine:
    """A built engine and what is told of it."""

    plan: bytes
    metadata: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Writes both files. Raises OSError."""
        (folder / METADATA).unlink(missing_ok=True)  # never beside an engine that it is not of
        (folder / ENGINE).write_bytes(self.plan)
        (folder / METADATA).write_text(json.dumps(self.metadata, indent=2) + "\n", encoding="utf-8")


def build_engine(
    deployed: Deployed,
    onnx_file: Path,
    options: trt_build.Options,
    *,
    deadline: float | None = None,
    on_event: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Engine:
    """Builds the engine of `deployed`, whose graph will stand in `onnx_file`; nothing is written yet.

    `options.compute_capabilities`: for GPUs that are not here. Takes seconds to minutes. Raises what `trt_build.build` raises.
    """
    assert deployed.onnx_bytes is not None
    arch = deployed.arch
    # Builders time kernels on the GPU that they build for.
    held = nullcontext() if options.compute_capabilities else environment.exclusive("cuda")
    with held:
        built = trt_build.build(deployed.onnx_bytes, options, name=arch.name, deadline=deadline, on_event=on_event)
    metadata = {
        "swinexplore": environment.version_of("swinexplore"),
        "graph_version": GRAPH_VERSION,
        "arch_id": arch.id,
        "name": arch.name,
        "precision": deployed.precision,
        "batch": deployed.batch,
        "options": options.to_dict(),
        "tensorrt": trt_build.version(),
        "gpu": _gpu() if not options.compute_capabilities else None,
        "driver": environment.nvidia_driver() or None,
        "build_s": built.build_s,
        "num_layers": built.num_layers,
        "onnx_sha256": hashlib.sha256(deployed.onnx_bytes).hexdigest(),
        "engine_sha256": hashlib.sha256(built.plan).hexdigest(),
        "engine_bytes": len(built.plan),
        "compared_with_model": False,
        "trtexec": trt_build.trtexec(
            shlex.quote(str(onnx_file)),
            shlex.quote(str(onnx_file.with_name("rebuilt.engine"))),
            options,
            image=(arch.channels, arch.image_size, arch.image_size),
        ),
    }
    return Engine(built.plan, metadata)


def _gpu() -> dict[str, Any] | None:
    if not sees_gpu():
        return None
    from explorer.latency.cuda import describe

    return describe()
