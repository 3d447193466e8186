"""What a measured latency costs, and how well it repeats: export, build, check and timing of a network by swinexplore against
the straightforward way (torch.onnx.export and a default session or engine), in one run.

    python benchmarks/latency_speed.py                      # ONNX Runtime on the CPU; TensorRT for RTX builds for an RTX 30
    python benchmarks/latency_speed.py --device cuda --backend tensorrt --precision fp16

`cold`: a process of its own from start to number. `warm`: the next network in a process that is up. Both time with the same
loop; ours also compares graph and output with the model, the other way does not. `repeat`: the same network again and again,
with the reference beside it; the CV of its medians, and of its ratios to the reference.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import common

from explorer import latency
from explorer.arch import parse_name
from explorer.errors import BackendMissing
from explorer.latency.base import HostTimed, sample
from explorer.latency.measurer import Measurer
from explorer.model import build
from explorer.model.onnx_writer import OPSET
from explorer.records import Precision, Target

#: Largest CV of the medians of repeated measurements on a quiet machine.
GOAL_CV = 0.01
#: One fused attention leaves this many marks in a plan of TensorRT-RTX 1.7.
MARKS_PER_ATTENTION = 18


def exported(name: str, precision: Precision) -> bytes:
    """The module as torch's exporter writes it, quiet."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    arch = parse_name(name)
    module = build(arch, scatter=True).eval().to(dtype)
    image = torch.zeros(1, arch.channels, arch.image_size, arch.image_size, dtype=dtype)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with torch.no_grad():
            program = torch.onnx.export(module, (image,), dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


class _Session(HostTimed):
    """A default session of ONNX Runtime."""

    def __init__(self, onnx_bytes: bytes, provider: str) -> None:
        import numpy as np
        import onnxruntime

        self.session = onnxruntime.InferenceSession(onnx_bytes, providers=[provider])
        (image,) = self.session.get_inputs()
        dtype = np.float16 if "16" in image.type else np.float32
        self.feeds = {image.name: np.random.default_rng(0).standard_normal(image.shape).astype(dtype)}

    def run(self) -> None:
        self.session.run(None, self.feeds)


def straightforward(name: str, backend: str, device: str, precision: Precision) -> dict[str, float]:
    """Seconds from architecture to number the straightforward way, and the number."""
    start = time.perf_counter()
    onnx_bytes = exported(name, precision)
    ready = time.perf_counter()
    if backend == "tensorrt":
        latency_ms = _default_engine_ms(onnx_bytes)
    else:
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        latency_ms = sample(_Session(onnx_bytes, provider).timed).latency_ms
    return {"seconds": time.perf_counter() - start, "export_s": ready - start, "latency_ms": latency_ms}


def _default_engine_ms(onnx_bytes: bytes) -> float:
    """A default engine of TensorRT, timed as we time ours."""
    import torch

    from explorer.latency import trt_build
    from explorer.latency.cuda import Replay

    trt = trt_build.trt
    built = trt_build.build(onnx_bytes)
    runtime = trt.Runtime(trt_build.Log())
    engine = runtime.deserialize_cuda_engine(built.plan)
    context = engine.create_execution_context()
    buffers = []
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        size = tuple(context.get_tensor_shape(tensor))
        is_half = engine.get_tensor_dtype(tensor) == trt.DataType.HALF
        buffers.append(torch.randn(size, device="cuda").to(torch.float16 if is_half else torch.float32))
        context.set_tensor_address(tensor, buffers[-1].data_ptr())
    return sample(Replay(lambda stream: context.execute_async_v3(stream.cuda_stream)).timed).latency_ms


def cold(name: str, given: argparse.Namespace) -> dict[str, Any]:
    ours_s, theirs_s = [], []
    options = ["--backend", given.backend, "--device", given.device, "--precision", given.precision]
    for _ in range(given.rounds):
        ours_s.append(_seconds([sys.executable, "-m", "explorer", "-q", "measure", name, "--json", *options]))
        theirs_s.append(_seconds([sys.executable, __file__, "--straightforward", name, *options]))
    return _compared(f"{name} cold", ours_s, theirs_s)


def warm(name: str, target: Target, given: argparse.Namespace) -> dict[str, Any]:
    ours_s, theirs_s, found = [], [], None
    with Measurer(target) as measurer:
        measurer.measure(parse_name("Swin-E16x2.2.2.2-R56-P1-N10"))
        straightforward("Swin-E16x2.2.2.2-R56-P1-N10", given.backend, given.device, given.precision)
        for _ in range(given.rounds):
            start = time.perf_counter()
            found = measurer.measure(parse_name(name))
            ours_s.append(time.perf_counter() - start)
            theirs_s.append(straightforward(name, given.backend, given.device, given.precision)["seconds"])
    assert found is not None
    row = _compared(f"{name} warm", ours_s, theirs_s)
    return {
        **row,
        "invalid": found.invalid,
        "prepare_s": found.prepare_s,
        "measure_s": found.measure_s,
        "latency_ms": found.latency_ms,
    }


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def _compared(what: str, ours_s: list[float], theirs_s: list[float]) -> dict[str, Any]:
    seconds = {"ours": ours_s, "theirs": theirs_s}
    medians = {f"{who}_s": statistics.median(values) for who, values in seconds.items()}
    return {"what": what, **medians, **common.ratio(seconds, "ours", "theirs")}


def rtx_build(name: str) -> dict[str, Any]:
    """Export and build for an RTX 30 in fp16 with TensorRT for RTX, no GPU needed: our graph against torch's."""
    from explorer.latency import trt_build
    from explorer.model.onnx_graph import write_onnx

    options = trt_build.Options(compute_capabilities=("8.6",))
    depth = sum(parse_name(name).depths)

    def ours() -> bytes:
        return write_onnx(build(parse_name(name), scatter=True).eval(), batch=1, precision="fp16").SerializeToString()

    found: dict[str, Any] = {"what": f"{name} engine for RTX 30, fp16"}
    for who, write in (("ours", ours), ("theirs", lambda: exported(name, "fp16"))):
        start = time.perf_counter()
        onnx_bytes = write()
        ready = time.perf_counter()
        built = trt_build.build(onnx_bytes, options)
        found |= {
            f"{who}_export_s": ready - start,
            f"{who}_build_s": built.build_s,
            f"{who}_layers": built.num_layers,
            f"{who}_fused_attentions": built.plan.count(b"_gemm_mha_v2") / MARKS_PER_ATTENTION,
            f"{who}_engine_bytes": len(built.plan),
        }
    found["attentions"] = depth
    found["speedup"] = (found["theirs_export_s"] + found["theirs_build_s"]) / (
        found["ours_export_s"] + found["ours_build_s"]
    )
    return found


def repeat(name: str, reference: str, target: Target, times: int) -> dict[str, Any]:
    base, arch = parse_name(reference), parse_name(name)
    with Measurer(target, reference=base) as measurer:
        first = measurer.measure(base)
        found = [measurer.measure(arch) for _ in range(times)]
    medians = [one.latency_ms for one in found]
    ratios = [one.ratio for one in found if one.ratio is not None]
    return {
        "what": f"{name} measured {times} times beside {reference}",
        "latency_ms": statistics.median(medians),
        "cv_of_medians": statistics.pstdev(medians) / statistics.mean(medians),
        "cv_of_ratios": statistics.pstdev(ratios) / statistics.mean(ratios),
        "goal_cv": GOAL_CV,
        "reference_ms": first.latency_ms,
        "largest_drift": max(abs(one.reference_drift or 0.0) for one in found),
        "stable": sum(one.is_stable for one in found),
        "invalid": sum(bool(one.invalid) for one in found),
        "medians_ms": medians,
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["Swin-T", "Swin-B"])
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--straightforward", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="Folder for the JSON; default: benchmarks/results.")
    given = parser.parse_args()
    if given.straightforward:
        print(json.dumps(straightforward(given.straightforward, given.backend, given.device, given.precision)))
        return
    first = given.models[0]
    target, why = latency.resolve(given.backend, device=given.device, precision=given.precision)
    print(why)
    rows = [repeat(first, given.models[-1], target, given.repeats)] if given.repeats else []
    if given.rounds:
        # All cold ones first: a warm one leaves a CUDA context in this process, which they would find on the GPU.
        rows += [cold(name, given) for name in given.models]
        rows += [warm(name, target, given) for name in given.models]
    try:
        rows += [rtx_build(name) for name in given.models]
    except BackendMissing as error:
        print(f"no engine was built: {error}")
    common.report(
        "latency_speed", rows, device=given.device, out=given.out, target=target.describe(), rounds=given.rounds
    )


if __name__ == "__main__":
    main()
