"""Optuna's sampler over a study in memory that mirrors what is known: the only place that asks Optuna.

Trials in memory cannot be changed. When enough of them are outdated (a candidate trained on, a bound that moved) or only
answers to repeats, the study is made anew from the known candidates. It holds a bounded number of them, the best and
the latest, so that what an ask costs, in time and memory, does not grow with a long search.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import TrialState, create_trial

from explorer import pareto
from explorer.errors import UserError
from explorer.records import Candidate
from explorer.search.told import Told
from explorer.space import Choice, Space

SAMPLERS: Final = ("tpe", "nsgaii", "nsgaiii", "gp", "qmc", "random", "brute")
DIRECTIONS: Final = ("maximize", "minimize")
#: Candidates before TPE has anything to go by, as Optuna has it.
NUM_STARTUP: Final = 10
POPULATION: Final = 20
#: The study is made anew when this share of its trials is outdated, or it holds more answers to repeats than candidates.
_OUTDATED_SHARE: Final = 0.05
_LEAST_REPEATS: Final = 100
#: A study is made anew of at most so many candidates, of which at least half are the latest, and again when it has grown by a
#: tenth. TPE compares the best 25 with all others: a sample of these says as much.
MOST_TRIALS: Final = 1000
_GROWN: Final = 1.1


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The Optuna sampler behind one of SAMPLERS; `random` and `brute` need none. Raises UserError for another name."""
    match name:
        case "tpe":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*multivariate", ExperimentalWarning)
                warnings.filterwarnings("ignore", ".*constant_liar", ExperimentalWarning)
                return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=NUM_STARTUP, seed=seed)
        case "nsgaii":
            return NSGAIISampler(seed=seed, population_size=POPULATION)
        case "nsgaiii":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*NSGAIIISampler", ExperimentalWarning)
                return NSGAIIISampler(seed=seed, population_size=POPULATION)
        case "gp":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*GPSampler", ExperimentalWarning)
                return GPSampler(seed=seed, n_startup_trials=NUM_STARTUP)
        case "qmc":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*QMCSampler", ExperimentalWarning)
                return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        case "random" | "brute":
            return RandomSampler(seed=seed)
        case _:
            raise UserError(f"sampler: {name!r} is not known; allowed: {', '.join(SAMPLERS)}")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space's dimensions as Optuna sees them: all categorical."""
    return {dimension.name: CategoricalDistribution(dimension.choices) for dimension in space.dimensions}


class Mirror:
    """What one sampler knows. `told` says what a candidate is told as today; `optuna_s` counts seconds inside Optuna."""

    def __init__(self, space: Space, sampler: str, seed: int, told: Callable[[Candidate], Told]) -> None:
        self.optuna_s = 0.0
        self._space, self._sampler_name, self._seed, self._told = space, sampler, seed, told
        self._distributions = distributions(space)
        self._known: dict[str, tuple[Candidate, dict[str, Choice]]] = {}
        self._told_as: dict[str, tuple[float, ...]] = {}
        self._num_made = 0
        self._blank: optuna.trial.FrozenTrial | None = None
        self._make()

    def learn(self, candidate: Candidate, point: dict[str, Choice]) -> None:
        """Tells an evaluated candidate, or that a known one is worth something else now."""
        arch_id, told = candidate.arch.id, self._told(candidate)
        is_known = arch_id in self._known
        self._known[arch_id] = (candidate, point)
        self._told_as.setdefault(arch_id, _flat(told))
        if arch_id in self._open:
            self._tell(self._open.pop(arch_id), told)
        elif not is_known:
            self._add(point, told)
        elif self._told_as[arch_id] != _flat(told):
            self._outdated.add(arch_id)

    def known(self, arch_id: str) -> Candidate | None:
        """The candidate that was learned of an architecture."""
        return self._known[arch_id][0] if arch_id in self._known else None

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials as the sampler sees them now; not to be changed."""
        return self._study.get_trials(deepcopy=False)

    @property
    def _num_trials(self) -> int:
        return len(self.trials())

    def ask(self) -> optuna.Trial:
        """A proposal that must be answered or kept; its `params` are a point of the space."""
        self._freshen()
        start = time.perf_counter()
        trial = self._study.ask(self._distributions)
        self.optuna_s += time.perf_counter() - start
        return trial

    def keep(self, arch_id: str, trial: optuna.Trial) -> None:
        """The trial is in work: `learn` will answer it."""
        self._open[arch_id] = trial

    def answer(self, trial: optuna.Trial, told: Told | None) -> None:
        """Answers a proposal that is not taken; None where nothing is known of it yet."""
        self._num_repeats += 1
        self._tell(trial, told)

    def _tell(self, trial: optuna.Trial, told: Told | None) -> None:
        if told is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            values, constraints = told
            for name, value in constraints.items():
                trial.set_constraint(name, value)
            self._count_generation(self._study.tell(trial, values).system_attrs)

    def draw(self) -> dict[str, Choice] | None:
        """A proposal of TPE that needs no answer; None while it has too little to go by.

        One RUNNING trial, asked for once, stands for all draws: what is not taken leaves nothing behind.
        """
        self._freshen()
        if len(self._known) < NUM_STARTUP:
            return None
        start = time.perf_counter()
        if self._blank is None:
            number = self._study.ask().number
            self._blank = self._study.get_trials(deepcopy=False)[number]
        point = self._study.sampler.sample_relative(self._study, self._blank, self._distributions)
        self.optuna_s += time.perf_counter() - start
        return point or None

    def exclude(self, point: dict[str, Choice], told: Told) -> None:
        """Tells that a drawn point is outside the space's limits."""
        self._add(point, told)
        self._num_repeats += 1

    def _freshen(self) -> None:
        is_outdated = len(self._outdated) >= max(1.0, _OUTDATED_SHARE * len(self._known))
        is_full = len(self._known) > MOST_TRIALS and self._num_trials > MOST_TRIALS * _GROWN + self._num_repeats
        is_full = is_full and self._sampler_name != "qmc"  # it learns nothing, and would begin another sequence
        if is_outdated or is_full or self._num_repeats > max(_LEAST_REPEATS, min(len(self._known), MOST_TRIALS)):
            self._make()

    def _make(self) -> None:
        """The study as it would be had today's values been told from the start, with another stretch of random numbers."""
        seed = int(np.random.SeedSequence([self._seed, self._num_made]).generate_state(1)[0])
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would log every study made
        self._study = optuna.create_study(directions=DIRECTIONS, sampler=make_sampler(self._sampler_name, seed))
        self._num_made += 1
        self._open: dict[str, optuna.Trial] = {}
        self._blank = None
        self._outdated: set[str] = set()
        self._num_repeats = 0
        self._generation, self._generation_count = 0, 0
        told = {arch_id: self._told(candidate) for arch_id, (candidate, _) in self._known.items()}
        self._told_as = {arch_id: _flat(each) for arch_id, each in told.items()}
        for arch_id in _best_and_latest(told):
            self._add(self._known[arch_id][1], told[arch_id])

    def _add(self, point: dict[str, Choice], told: Told) -> None:
        values, constraints = told
        attributes = self._next_generation()
        self._study.add_trial(
            create_trial(
                values=values,
                params=point,
                distributions=self._distributions,
                constraints=constraints,
                system_attrs=attributes,
            )
        )
        # The study copied what it was given, and that is most of what a trial holds: one copy will do.
        trial = self.trials()[-1]
        trial.params, trial.distributions = point, self._distributions
        self._count_generation(attributes)

    @property
    def _generation_key(self) -> str | None:
        """Where a genetic sampler of Optuna 5 keeps a trial's generation; a trial without is in none of its populations."""
        sampler = self._study.sampler
        return f"{type(sampler).__name__}:generation" if self._sampler_name.startswith("nsga") else None

    def _next_generation(self) -> dict[str, int]:
        key = self._generation_key
        return {} if key is None else {key: self._generation + (self._generation_count >= POPULATION)}

    def _count_generation(self, attributes: dict[str, int]) -> None:
        generation = attributes.get(self._generation_key or "", -1)
        if generation > self._generation:
            self._generation, self._generation_count = generation, 0
        self._generation_count += generation == self._generation


def _flat(told: Told) -> tuple[float, ...]:
    """To compare; a dict for each of thousands would take more than all the rest."""
    values, constraints = told
    return (*values, *constraints.values())


def _best_and_latest(told: dict[str, Told]) -> list[str]:
    """Those of which a study is made anew, in their order: front after front of what violates nothing, then the latest."""
    if len(told) <= MOST_TRIALS:
        return list(told)
    left = [
        arch_id for arch_id, (_, constraints) in told.items() if not any(value > 0 for value in constraints.values())
    ]
    chosen: set[str] = set()
    while left and len(chosen) < MOST_TRIALS // 2:
        values = [told[arch_id][0] for arch_id in left]
        best = {left[index] for index in pareto.front(*zip(*values, strict=True))}
        chosen |= set(sorted(best)[: MOST_TRIALS // 2 - len(chosen)])
        left = [arch_id for arch_id in left if arch_id not in best]
    latest = (arch_id for arch_id in reversed(told) if arch_id not in chosen)
    chosen |= set(itertools.islice(latest, MOST_TRIALS - len(chosen)))
    return [arch_id for arch_id in told if arch_id in chosen]
