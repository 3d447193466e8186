"""A search that tests/test_kill.py kills again and again: run as a program, and imported by its workers.

    killed_search.py SPACE STORAGE LOG TRIALS WORKERS table TABLE.csv PACE_S
    killed_search.py SPACE STORAGE LOG TRIALS WORKERS train CACHE EPOCHS

Every step writes a line when it begins and when it ends: `begin|end STEP ARCH_ID PID`. With DIES_OF=ARCH_ID in its
environment, the process that begins to train this one is killed; with DIES_AFTER_EPOCHS_OF=ARCH_ID, at the end of each epoch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from explorer.arch import Arch
from explorer.evaluate import Evaluator, Plan, Steps
from explorer.records import Epoch, Latency, Score, ScoreKey, Target
from explorer.space import Space


class Logged:
    """Steps that say what they do."""

    baseline_ms: float | None = None

    def __init__(self, steps: Steps, log: Path) -> None:
        self.steps, self.log = steps, log

    def write(self, what: str, step: str, arch: Arch) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{what} {step} {arch.id} {os.getpid()}\n".encode())  # one write: no line is torn
        os.close(descriptor)

    @property
    def on_kept(self) -> Callable[[], None] | None:
        return self.steps.on_kept

    @on_kept.setter
    def on_kept(self, value: Callable[[], None] | None) -> None:
        self.steps.on_kept = value

    def prepare(self, base: Arch) -> None:
        self.steps.prepare(base)

    def close(self) -> None:
        self.steps.close()

    def finished(self, key: ScoreKey) -> None:
        self.steps.finished(key)

    def measure(self, arch: Arch, on_detail: Callable[[str], None]) -> Latency:
        self.write("begin", "measure", arch)
        found = self.steps.measure(arch, on_detail)
        self.write("end", "measure", arch)
        return found

    def train(self, arch: Arch, key: ScoreKey, on_epoch: Callable[[Epoch], None] | None) -> Score:
        step = f"train-{key.epochs}"
        self.write("begin", step, arch)
        if os.environ.get("DIES_OF") == arch.id:
            os.kill(os.getpid(), signal.SIGKILL)

        def tell(epoch: Epoch) -> None:
            if os.environ.get("DIES_AFTER_EPOCHS_OF") == arch.id:
                self.write(f"epoch-{epoch.epoch}", step, arch)
                os.kill(os.getpid(), signal.SIGKILL)
            if on_epoch is not None:
                on_epoch(epoch)

        found = self.steps.train(arch, key, tell)
        self.write("end", step, arch)
        return found


class Trained:
    """Real trainings of real proxies; latencies by arithmetic, the same at every start."""

    baseline_ms: float | None = None

    def __init__(self, plan: Plan, cache_root: Path) -> None:
        from explorer.evaluate import live

        live.KEEP_EVERY_S = 0.0  # type: ignore[misc]
        self.live, self.plan = live.Live(plan, cache_root=cache_root), plan
        self.train = self.live.train
        self.prepare = self.live.prepare
        self.close = self.live.close
        self.finished = self.live.finished

    @property
    def on_kept(self) -> Callable[[], None] | None:
        return self.live.on_kept

    @on_kept.setter
    def on_kept(self, value: Callable[[], None] | None) -> None:
        self.live.on_kept = value

    def measure(self, arch: Arch, on_detail: Callable[[str], None]) -> Latency:
        ms = 1.0 + arch.depth3 + sum(arch.windows) / 100 - arch.br / 2
        return Latency(arch.id, self.plan.target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0)


def make(space_file: str, log: str, kind: str, where: str, number: float) -> Evaluator:
    space = Space.load(space_file)
    if kind == "table":
        from explorer.evaluate.table import TableSteps, read_table, table_data, table_recipe, table_target

        table = read_table(Path(where), space)
        plan = Plan(table_target(table, space.base.image_size), None, table_recipe(table), table_data(table))
        if len(table.epochs) > 1:
            plan = replace(plan, rungs=table.epochs)
        steps: Steps = TableSteps(table, pace_s=number)
    else:
        from explorer.training.data import describe
        from explorer.training.recipe import Recipe

        few = replace(describe("contours", Path(where)), num_train=160, num_test=16)
        recipe = Recipe(epochs=int(number), batch_size=16, train_images=64, eval_images=64)
        target = Target("arithmetic", "1", "fp32", 1, space.base.image_size, "cpu", "none", "", 1, 0)
        plan = Plan(target, space.proxy_scale, recipe, few, rungs=(1, int(number)))
        steps = Trained(plan, Path(where))
    evaluator = Evaluator(plan, Logged(steps, Path(log)))
    evaluator.prepare(space.base)
    return evaluator


def main() -> None:
    from explorer import search
    from explorer.evaluate.workers import Device, Workers
    from explorer.store import Store

    space_file, storage, log, trials, workers, kind, where, number = sys.argv[1:]
    build = partial(make, space_file, log, kind, where, float(number))
    evaluator, space = build(), Space.load(space_file)
    store = Store.open(storage, create=True)
    runner = None
    if int(workers) > 1:
        runner = Workers(build, store.url, (Device("cpu", "cpu", 1),) * int(workers))
    eta = 3.0 if evaluator.plan.rungs else None
    record = search.run(
        space, evaluator, store, trials=int(trials), sampler="random", runner=runner, eta=eta, study="killed"
    )
    if runner is not None:
        runner.close()
    store.close()
    print(record.name)


if __name__ == "__main__":
    # Workers unpickle `make` by this name.
    from killed_search import main as main_of_the_module

    main_of_the_module()
