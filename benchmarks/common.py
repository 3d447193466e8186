"""What every benchmark here does: interleaved timing of things in one run, and a JSON result with machine and versions."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from explorer import __version__
from explorer.latency.environment import describe_host, version_of
from explorer.model import GRAPH_VERSION, MODULE_VERSION

RESULTS = Path(__file__).parent / "results"


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    synchronize: Callable[[], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every run, `rounds` times in turn, so that a busy machine disturbs all alike; warm-up rounds left out."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(warmup + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if synchronize is not None:
                synchronize()
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """How many times as fast `ours` is as `theirs`: medians' ratio, and the quartiles of the ratios round by round."""
    ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    medians = statistics.median(seconds[theirs]) / statistics.median(seconds[ours])
    return {"speedup": medians, "speedup_q1": low, "speedup_q3": high}


def report(
    name: str, rows: list[dict[str, Any]], *, device: str = "cpu", out: Path | None = None, **settings: Any
) -> None:
    """Prints `rows` and keeps them as JSON with the machine and all versions under `out`, else benchmarks/results/."""
    for row in rows:
        print("  ".join(f"{key} {_shown(value)}" for key, value in row.items() if not isinstance(value, list)))
    host = describe_host()
    host["versions"] |= {
        package: version for package in ("torchvision", "timm", "onnxscript") if (version := version_of(package))
    }
    if device == "cuda":
        import torch

        host["gpu"] = torch.cuda.get_device_name()
    content = {
        "benchmark": name,
        "swinexplore": __version__,
        "graph_version": GRAPH_VERSION,
        "module_version": MODULE_VERSION,
        "device": device,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "host": host,
        "rows": rows,
    }
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{device}.json"
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"kept in {file}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
