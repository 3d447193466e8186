"""What a search costs beside measuring and training: milliseconds an ask and memory, from the first trial to thousands.

    python benchmarks/search_overhead.py --trials 3000

A study on a real SQLite file (or --storage) whose measurements and trainings answer at once by arithmetic, in a space of 3,840
architectures. One ask is everything from one evaluated candidate to the next but those two steps: proposing, keeping
the pending member, the facts, the front and the trial in Optuna's tables. `optuna_ms` is the time inside Optuna's sampler,
`own_ms` all the rest; `cpu_ms` is the whole ask in the processor's time, which does not wait for others on this machine.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import report

from explorer.arch import Arch
from explorer.evaluate import Evaluator, Plan, now
from explorer.evaluate.workers import Here
from explorer.records import Epoch, Latency, Score, ScoreKey, Target
from explorer.search import Progress
from explorer.search.budget import Budget
from explorer.search.loop import Loop
from explorer.space import Space
from explorer.store import Store
from explorer.training.folders import DataInfo
from explorer.training.recipe import Recipe

SPACE = """\
version: 1
base: Swin-B
search:
  windows: {stage1: [7, 14], stage2: [7, 14], stage3: [7, 14]}
  shifts: {stage1: [off, on], stage2: [off, on], stage3: [off, on]}
  br: [off, on]
  depth3: [DEPTHS]
"""
TARGET = Target("arithmetic", "1", "fp32", 1, 224, "cpu", "none", "", 1, 0)
#: Trials around which a median is taken.
HALF_WINDOW = 25


class Arithmetic:
    """Steps that answer at once."""

    baseline_ms: float | None = None

    def prepare(self, base: Arch) -> None:
        pass

    def close(self) -> None:
        pass

    def finished(self, key: ScoreKey) -> None:
        pass

    def measure(self, arch: Arch, on_detail: Callable[[str], None]) -> Latency:
        ms = 1.0 + 0.1 * arch.depth3 + sum(arch.shifts) * 0.2 + sum(arch.windows) / 100 - 0.3 * arch.br
        return Latency(arch.id, TARGET.id, ms, ms, ms, 0.0, 50, (ms,) * 3, True, 0.0, 0.0, {"host": "x" * 500})

    def train(self, arch: Arch, key: ScoreKey, on_epoch: Callable[[Epoch], None] | None) -> Score:
        accuracy = 0.5 + 0.004 * arch.depth3 + 0.02 * sum(arch.shifts) + sum(arch.windows) / 1000 - 0.01 * arch.br
        curve = tuple(Epoch(epoch, 1.0, accuracy, 0.0) for epoch in range(1, key.epochs + 1))
        return Score(**asdict(key), accuracy=accuracy, train_s=0.0, curve=curve, trained_at=now())


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure(trials: int, sampler: str, storage: str, seed: int) -> list[dict[str, Any]]:
    """One row for every hundredth trial or so."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.yaml"
        file.write_text(SPACE.replace("DEPTHS", ", ".join(map(str, range(6, 46)))))
        space = Space.load(file)
        store = Store.open(storage or str(Path(folder) / "explorer.db"), create=True)
        plan = Plan(TARGET, None, Recipe(epochs=8), DataInfo("none", "d1-none", 2, 1, 1, 1, Path(folder)), seed)
        at: list[tuple[float, float, float, float]] = []  # seconds, those in Optuna's sampler, of the CPU, and MiB

        def watch(progress: Progress) -> None:
            if progress.kind == "trial":
                at.append((time.perf_counter(), loop.proposer.optuna_s, time.process_time(), resident_mib()))

        from explorer.search import check_run

        record = check_run(
            space, plan, store, budget=Budget(trials), sampler=sampler, study=f"overhead-{time.time():.0f}"
        )
        store.add_study(record, space.base, plan.target, plan.recipe.model_dump())
        runner = Here(Evaluator(plan, Arithmetic()), store)
        loop = Loop(
            space,
            plan,
            store,
            record,
            runner,
            Budget(trials),
            sampler=sampler,
            num_seeds=1,
            ladder=None,
            on_progress=watch,
        )
        gc.collect()
        loop.run()
        store.close()
    steps = [tuple((b[index] - a[index]) * 1e3 for index in range(3)) for a, b in itertools.pairwise(at)]
    rows = []
    for middle in (m for m in (50, 100, 200, 500, 1000, 1500, 2000, 2500, 3000) if m <= trials):
        some = steps[max(0, middle - HALF_WINDOW) : middle + HALF_WINDOW]
        total, optuna, cpu = (statistics.median(step[index] for step in some) for index in range(3))
        own = statistics.median(step[0] - step[1] for step in some)
        rows.append(
            {
                "what": f"{sampler} at trial {middle}", "sampler": sampler, "trial": middle,
                "ask_ms": total, "optuna_ms": optuna, "own_ms": own, "cpu_ms": cpu,
                "resident_mib": at[min(middle, len(at)) - 1][3],
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random"])
    parser.add_argument("--storage", default="", help="another database than a SQLite file in the temp folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    # Each in a process of its own: what one leaves behind would stand in the other's memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        futures = [processes.submit(measure, asked.trials, name, asked.storage, asked.seed) for name in asked.samplers]
        rows = [row for future in futures for row in future.result()]
    report(
        "search_overhead",
        rows,
        out=asked.out,
        trials=asked.trials,
        database=asked.storage.partition(":")[0] or "sqlite",
    )


if __name__ == "__main__":
    main()
