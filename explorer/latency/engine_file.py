"""Writes a TensorRT engine for others to run, with what it is and the command that builds the same without swinexplore."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from explorer.latency import environment, sees_gpu, trt_build
from explorer.model import GRAPH_VERSION
from explorer.model.deployment import Deployed

ENGINE, METADATA = "model.engine", "engine.json"


def write_engine(
    deployed: Deployed,
    onnx_file: Path,
    options: trt_build.Options,
    *,
    deadline: float | None = None,
    on_event: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Builds the engine of `onnx_file`, which holds `deployed`, and writes it beside it; returns its metadata.

    `options.compute_capabilities`: for GPUs that are not here. Takes seconds to minutes. Raises what `trt_build.build` raises,
    and OSError.
    """
    assert deployed.onnx_bytes is not None
    arch = deployed.arch
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
            shlex.quote(str(onnx_file)), options, image=(arch.channels, arch.image_size, arch.image_size)
        ),
    }
    (onnx_file.parent / ENGINE).write_bytes(built.plan)
    (onnx_file.parent / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return metadata


def _gpu() -> dict[str, Any] | None:
    if not sees_gpu():
        return None
    from explorer.latency.cuda import describe

    return describe()
