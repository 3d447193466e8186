"""Optuna's sampler over a study in memory that mirrors what is known: the only place that asks Optuna.

Trials in memory cannot be changed. When enough of them are outdated (a candidate trained on, a bound that moved) or only
answers to repeats, the study is made anew from the known candidates, which keeps the cost a candidate constant and the
memory in proportion to what is known.
"""

from __future__ import annotations

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
        self._known: dict[str, tuple[Candidate, dict[str, Choice], Told]] = {}
        self._num_made = 0
        self._blank: optuna.trial.FrozenTrial | None = None
        self._make()

    def learn(self, candidate: Candidate, point: dict[str, Choice]) -> None:
        """Tells an evaluated candidate, or that a known one is worth something else now."""
        arch_id, told = candidate.arch.id, self._told(candidate)
        known = self._known.get(arch_id)
        self._known[arch_id] = (candidate, point, told if known is None else known[2])
        if arch_id in self._open:
            self._tell(self._open.pop(arch_id), told)
        elif known is None:
            self._add(point, told)
        elif known[2] != told:
            self._outdated.add(arch_id)

    def known(self, arch_id: str) -> Candidate | None:
        """The candidate that was learned of an architecture."""
        return self._known[arch_id][0] if arch_id in self._known else None

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials as the sampler sees them now; not to be changed."""
        return self._study.get_trials(deepcopy=False)

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
        if is_outdated or self._num_repeats > max(_LEAST_REPEATS, len(self._known)):
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
        for arch_id, (candidate, point, _) in self._known.items():
            told = self._told(candidate)
            self._known[arch_id] = (candidate, point, told)
            self._add(point, told)

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
