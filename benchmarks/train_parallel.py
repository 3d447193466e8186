"""Proxies per hour with several trainings at once on one device, against one after another, in one run.

    python benchmarks/train_parallel.py                   # a CPU: all threads for one training, or one thread for each of many
    python benchmarks/train_parallel.py --device cuda     # a GPU: 1, 2, 4 and 8 trainings at once

Proxies of a space's architectures, the same for all, trained by the worker processes of a search, without measurements. On a
CPU every way has the same threads in all. Starting the workers (import, data) is not counted: a search does it once.
`worker_mib` is the largest resident memory of a worker; `accuracy_difference` the largest from the first way: 0 where threads
are equal.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from common import interleaved, ratio, report

from explorer.arch import Arch
from explorer.evaluate import Evaluator, Plan
from explorer.evaluate.workers import Job, Workers, devices
from explorer.latency import resolve
from explorer.latency.environment import cpu_threads
from explorer.space import Space
from explorer.store import Store
from explorer.training.data import describe
from explorer.training.recipe import load_recipe

#: Of the trainings that start the workers; no round has it.
WARMUP_SEED = 1_000_000


def make(plan: Plan, base: Arch, cache_root: Path) -> Evaluator:
    """What a worker evaluates with."""
    evaluator = Evaluator(plan, cache_root=cache_root)
    evaluator.prepare(base)
    return evaluator


def resident_mib(pid: int) -> float:
    """Memory of a process now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


@dataclass
class Way:
    """So many trainings at once. `accuracies`: by architecture and seed."""

    workers: Workers
    store: Store
    plan: Plan
    archs: list[Arch]

    def __post_init__(self) -> None:
        self.num_rounds = 0
        self.accuracies: dict[tuple[str, int], float] = {}

    def start(self) -> None:
        """Every worker trains a little: from now on it has torch and the data."""
        self._do([Job(arch, 1, (WARMUP_SEED,), measures=False) for arch in self.archs[: self.workers.capacity]])

    def train(self) -> None:
        """All architectures, from another seed each time."""
        self._do([Job(arch, None, (self.num_rounds,), measures=False) for arch in self.archs])
        self.num_rounds += 1

    def _do(self, jobs: list[Job]) -> None:
        left, num_unfinished = list(jobs), 0
        while left or num_unfinished:
            while left and num_unfinished < self.workers.capacity:
                self.workers.submit(left.pop(0))
                num_unfinished += 1
            done = self.workers.wait(lambda arch, event: None)
            assert done is not None
            num_unfinished -= 1
            if done.candidate is None or done.candidate.accuracy is None:
                raise SystemExit(f"{done.job.arch.name}: {done.error or done.candidate}")
            self.accuracies[done.job.arch.id, done.job.seeds[0]] = done.candidate.accuracy


def proxies_of(space: Space, plan: Plan, number: int) -> list[Arch]:
    """So many architectures of the space whose proxies differ, drawn once for all."""
    archs = {plan.proxy(arch).id: arch for arch in space.archs()}
    return random.Random(0).sample(list(archs.values()), min(number, len(archs)))


def ways_of(device: str, given: list[int] | None, threads: int) -> list[tuple[int, int | None]]:
    """Trainings at once and threads of each, so that all ways have as many threads in all; None leaves them to torch."""
    if device == "cuda":
        return [(at_once, None) for at_once in given or (1, 2, 4, 8)]
    return [(at_once, max(1, threads // at_once)) for at_once in given or sorted({1, threads})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--space", default="swinfree.yaml")
    parser.add_argument("--archs", type=int, help="proxies of a round (default: 4, on a GPU 16)")
    parser.add_argument(
        "--at-once", type=int, nargs="+", help="trainings at once (default: 1 and the threads; GPU: 1 2 4 8)"
    )
    parser.add_argument(
        "--threads", type=int, default=cpu_threads(), help="CPU threads of all trainings of a way together"
    )
    parser.add_argument("--recipe", default="proxy")
    parser.add_argument("--epochs", type=int, help="default: 1, on a GPU the recipe's")
    parser.add_argument("--train-images", type=int, help="default: 512, on a GPU the recipe's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", default="silhouettes")
    parser.add_argument("--data-root", type=Path, default=Path("~/.cache/swinexplore").expanduser())
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    is_cpu = asked.device == "cpu"
    uneven = [number for number in asked.at_once or () if number < 1 or (is_cpu and asked.threads % number)]
    if uneven:
        parser.error(
            f"--at-once: {uneven[0]}: give a number from 1 on, on a CPU one that divides --threads {asked.threads}: "
            "ways with other threads in all are not compared"
        )
    epochs, images = asked.epochs or (1 if is_cpu else None), asked.train_images or (512 if is_cpu else None)
    recipe = load_recipe(asked.recipe, epochs=epochs)
    if images is not None:
        recipe = recipe.model_copy(update={"train_images": images, "eval_images": max(64, images // 4)})
    space = Space.load(asked.space)
    size = space.base.image_size
    target, _ = resolve("torch", device=asked.device, precision="fp32", batch=1, image_size=size)
    plan = Plan(target, space.proxy_scale, recipe, describe(asked.data, asked.data_root), train_device=asked.device)
    archs = proxies_of(space, plan, asked.archs or (4 if is_cpu else 16))
    pairs = ways_of(asked.device, asked.at_once, asked.threads)
    rows = measure(space.base, plan, archs, pairs, asked.rounds)
    report(
        "train_parallel",
        rows,
        device=asked.device,
        out=asked.out,
        space=asked.space,
        recipe=recipe.model_dump(exclude_defaults=True),
        data=asked.data,
        archs=[arch.name for arch in archs],
        rounds=asked.rounds,
        threads=asked.threads,
    )


def measure(
    base: Arch, plan: Plan, archs: list[Arch], pairs: list[tuple[int, int | None]], rounds: int
) -> list[dict[str, Any]]:
    """A row for every way, the first is what the others are compared with."""
    from train_parallel import make as make_there  # workers import it: they know of no __main__

    kind: Literal["cpu", "cuda"] = plan.train_device
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for at_once, threads in pairs:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            store = Store.open(str(folder / "explorer.db"), create=True)
            stack.callback(store.close)
            mine = replace(plan, train_threads=threads)
            workers = Workers(partial(make_there, mine, base, folder), store.url, devices(1, kind, at_once))
            stack.callback(workers.close)
            said = "" if threads is None else f", {threads} thread{'s' * (threads != 1)} each"
            ways[f"{at_once} at once{said}"] = Way(workers, store, mine, archs)
        for way in ways.values():
            way.start()
        runs: dict[str, Callable[[], object]] = {name: way.train for name, way in ways.items()}
        seconds = interleaved(runs, rounds=rounds, warmup=0)
        first = next(iter(ways))
        return [
            {
                "what": name,
                "train_parallel": way.workers.capacity,
                "train_threads": way.plan.train_threads,
                "proxies_per_hour": 3600 * len(archs) / statistics.median(seconds[name]),
                **ratio(seconds, name, first),
                "worker_mib": max(resident_mib(pid) for pid in way.workers.pids),
                "accuracy_difference": max(
                    abs(way.accuracies[key] - found)
                    for key, found in ways[first].accuracies.items()
                    if key in way.accuracies
                ),
                "seconds": seconds[name],
            }
            for name, way in ways.items()
        ]


if __name__ == "__main__":
    main()
