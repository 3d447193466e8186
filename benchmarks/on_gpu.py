"""Everything that only an NVIDIA GPU can show, in one command: the GPU tests, the paper's ratios, the benchmarks.

    make gpu        or        python benchmarks/on_gpu.py [--steps NAME ...] [--out DIR]

torch's backends run everywhere; TensorRT where its library is installed and supports the GPU, which is said either way. Every
step is a command of its own whose JSON is kept under benchmarks/results/; `on_gpu.json` says how each ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common

from explorer import latency
from explorer.errors import BackendMissing
from explorer.latency.environment import describe_host

ROOT = Path(__file__).parents[1]
TORCH = ("--backend", "torch", "--device", "cuda")
COMPILED = ("--backend", "torch-compile", "--device", "cuda")
TENSORRT = ("--backend", "tensorrt", "--device", "cuda")
#: Name -> table of the paper and options of `swinexplore reproduce`.
TABLES = {
    "table1-torch-fp32": ("table1", *TORCH),
    "table1-tensorrt-fp16": ("table1", *TENSORRT, "--precision", "fp16"),
    "table5-torch-fp32": ("table5", *TORCH),
    "table5-tensorrt-fp16": ("table5", *TENSORRT, "--precision", "fp16"),
    "table6-torch-fp32": ("table6", *TORCH),
    "table6-torch-fp16": ("table6", *TORCH, "--precision", "fp16"),
    "table6-torch-compile-fp16": ("table6", *COMPILED, "--precision", "fp16"),
    "table6-tensorrt-fp16": ("table6", *TENSORRT, "--precision", "fp16"),
}


def steps(out: Path) -> dict[str, list[str]]:
    """Name -> command; those of `reproduce` print the JSON that is kept."""
    python = sys.executable
    database = ["--storage", str(out / "on_gpu.db")]
    found = {"tests": [python, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]}
    for name, (table, *options) in TABLES.items():
        found[name] = [python, "-m", "explorer", "reproduce", table, *options, *database, "--json"]
    speed = [python, str(ROOT / "benchmarks" / "latency_speed.py"), "--device", "cuda", "--out", str(out)]
    found["latency_speed"] = [*speed, "--backend", "torch" if _why_no_tensorrt() else "tensorrt", "--precision", "fp16"]
    for name in ("model_speed", "proxy_speed", "train_parallel"):
        found[name] = [python, str(ROOT / "benchmarks" / f"{name}.py"), "--device", "cuda", "--out", str(out)]
    fidelity = [python, str(ROOT / "benchmarks" / "fidelity.py"), "--device", "cuda", "--out", str(out)]
    found["fidelity"] = [*fidelity, "--seeds", "2", "--train-parallel", "4", *database]
    return found


def _why_no_tensorrt() -> str:
    """Why TensorRT cannot run here; empty where it can."""
    try:
        latency.resolve("tensorrt", device="cuda")
    except BackendMissing as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", help="Some of the steps; default: all.")
    parser.add_argument("--list", action="store_true", help="Name the steps and stop.")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="Folder for the JSON.")
    parser.add_argument("--limit", type=float, default=3600, help="Seconds for one step.")
    given = parser.parse_args()
    if not given.list and not latency.sees_gpu():
        parser.exit(2, "torch sees no NVIDIA GPU here; see: swinexplore doctor\n")
    given.out.mkdir(parents=True, exist_ok=True)
    known = steps(given.out)
    if given.list:
        print("\n".join(known))
        return
    unknown = [name for name in given.steps or () if name not in known]
    if unknown:
        parser.exit(2, f"no step {unknown[0]!r}; there are: {', '.join(known)}\n")
    why_no_tensorrt = _why_no_tensorrt()
    ended: dict[str, dict[str, Any]] = {}
    for name in given.steps or known:
        if "tensorrt" in name and why_no_tensorrt:
            ended[name] = {"state": "not run", "reason": why_no_tensorrt}
        else:
            print(f"== {name}", flush=True)
            ended[name] = run(name, known[name], given.out, given.limit)
        _keep(given.out, ended)
    print(json.dumps(ended, indent=2))
    sys.exit(any(step["state"] not in ("done", "not run") for step in ended.values()))


def run(name: str, command: list[str], out: Path, limit_s: float) -> dict[str, Any]:
    """Runs one step; keeps the JSON of a table."""
    start = time.perf_counter()
    # A session of its own: what a benchmark starts ends with it, and does not keep the GPU busy beside the next step.
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        stdout, stderr = process.communicate(timeout=limit_s)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):  # interrupted just after its end
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            return {"state": "out of time", "seconds": round(time.perf_counter() - start, 1)}
        raise
    if name in TABLES and process.returncode == 0:
        (out / f"{name}-cuda.json").write_text(stdout, encoding="utf-8")
    last = [line for line in (stdout if name == "tests" else stderr).splitlines() if line.strip()][-3:]
    state = "done" if process.returncode == 0 else f"failed with exit code {process.returncode}"
    return {"state": state, "seconds": round(time.perf_counter() - start, 1), "last_lines": last}


def _keep(out: Path, ended: dict[str, dict[str, Any]]) -> None:
    from explorer.latency.cuda import describe

    content = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": describe_host(),
        "gpu": describe(),
        "steps": ended,
    }
    (out / "on_gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
