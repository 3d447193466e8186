"""How long a search will take: from what steps like these have cost before, else a rough guess from FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from explorer.complexity import complexity_of
from explorer.evaluate import Plan
from explorer.search.ladder import halving_share
from explorer.space import Space
from explorer.store import Store

#: Multiply-adds per second assumed where nothing has been timed: inference and training, a CPU thread and a GPU.
#: Of the order of one thread of a server CPU and of a desktop GPU; the GPU's figures are a guess.
_RATES: Final = {"cpu": (30e9, 6e9), "cuda": (3e12, 2e11)}
#: Building, exporting, checking and loading a network: seconds, and seconds per parameter.
_PREPARE_S: Final = (0.5, 7e-8)
#: Inferences of one measurement, warm-up and those of the reference included, and the least seconds that it takes.
_MEASURE_RUNS, _MEASURE_LEAST_S = 70, 2.5


@dataclass(frozen=True)
class Estimate:
    """Seconds for one latency and one whole proxy training, and how many of each; `basis` says what the seconds rest on.

    `trainings`: a shorter one counts for its share.
    """

    latency_s: float
    train_s: float
    latencies: int
    trainings: float
    basis: str

    def total_s(self, *, measuring: int = 1, training: int = 1) -> float:
        """Seconds for all of it with so many measurements, on devices of their own, and so many trainings at once.

        Trainings that share a device are counted as if none slowed another down: a lower bound.
        """
        return self.latencies * self.latency_s / measuring + self.trainings * self.train_s / training


def estimate(
    space: Space, plan: Plan, store: Store | None, num_new: int, num_seeds: int = 1, eta: float | None = None
) -> Estimate:
    """Estimates `num_new` evaluations of the size of the space's base, known facts not counted.

    With a ladder each candidate is trained for its share of the whole training, seeds at the top alone.
    """
    latency_s, epoch_s = store.mean_seconds(plan.target.id, plan.recipe.id) if store else (None, None)
    basis = "a rough guess from FLOPs" if latency_s is None or epoch_s is None else "the mean of steps timed before"
    train_s = None if epoch_s is None else epoch_s * plan.recipe.epochs
    if latency_s is None:
        counts = complexity_of(space.base)
        rate = _RATES[plan.target.device_kind][0] * max(1, plan.target.threads)
        runs_s = _MEASURE_RUNS * counts.flops * plan.target.batch / rate
        latency_s = _PREPARE_S[0] + _PREPARE_S[1] * counts.params_deployed + max(_MEASURE_LEAST_S, runs_s)
    if train_s is None:
        images = min(plan.recipe.train_images or plan.data.num_train, plan.data.num_train)
        threads = max(1, plan.train_threads or plan.target.threads) if plan.train_device == "cpu" else 1
        rate = _RATES[plan.train_device][1] * threads
        train_s = 3 * complexity_of(plan.proxy(space.base)).flops * images * plan.recipe.epochs / rate
    trainings = float(num_seeds)
    if eta is not None and len(plan.rungs) > 1:
        trainings = halving_share(plan.rungs, eta) + (num_seeds - 1) / eta ** (len(plan.rungs) - 1)
    return Estimate(latency_s, train_s, num_new, num_new * trainings, basis)
