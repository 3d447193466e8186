"""Which architecture next? Optuna's samplers behind one ask that never proposes the same network twice.

The sampler works on a study in memory, made anew from the facts at every start. A proposal that is known already is
answered there with its known values, so that the sampler moves on, and is neither stored nor charged; after a bounded
number of such answers a random unseen architecture is taken. What can never work, or is over the latency limit, is told
with a violated constraint and the worst values seen, never as a failure: samplers do not read failures, and would
propose it again and again.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from explorer.arch import Arch
from explorer.errors import UserError
from explorer.records import Candidate
from explorer.space import Choice, Space

SAMPLERS: Final = ("tpe", "nsgaii", "random", "brute")
#: Known architectures answered in a row before a random unseen one is taken.
MAX_KNOWN_ANSWERS: Final = 50
#: Random points tried before the unseen ones are listed.
RANDOM_TRIES: Final = 200
#: Told as the latency of a failure while nothing has been measured.
UNMEASURED_MS: Final = 1e4
DIRECTIONS: Final = ("maximize", "minimize")


@dataclass(frozen=True)
class Proposal:
    """An architecture to evaluate and its point in the space."""

    arch: Arch
    point: dict[str, Choice]


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Multivariate TPE (`tpe`), `nsgaii` or `random`. Raises UserError for another name."""
    match name:
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # `multivariate` is marked experimental
                return TPESampler(multivariate=True, seed=seed)
        case "nsgaii":
            return NSGAIISampler(seed=seed, population_size=20)
        case "random":
            return RandomSampler(seed=seed)
        case "brute":
            return RandomSampler(seed=seed)  # never asked: `Proposer` goes through the space itself
        case _:
            raise UserError(f"sampler: {name!r} is not known; allowed: {', '.join(SAMPLERS)}")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space's dimensions as Optuna sees them: all categorical."""
    return {dimension.name: CategoricalDistribution(dimension.choices) for dimension in space.dimensions}


def told_constraints(candidate: Candidate, max_latency_ms: float | None) -> dict[str, float]:
    """Constraints by name; more than 0 is violated. `latency` in ms over the limit, `failed` 1 for a failure."""
    over = 0.0
    is_valid = candidate.latency is not None and not candidate.latency.invalid
    if max_latency_ms is not None and candidate.latency_ms is not None and is_valid:
        over = candidate.latency_ms - max_latency_ms
    return {"latency": over, "failed": float(candidate.outcome == "failed")}


class Proposer:
    """Proposes unseen architectures of a space and learns from candidates. Same seed and history, same proposals."""

    def __init__(
        self, space: Space, sampler: str, seed: int, history: Sequence[Candidate], max_latency_ms: float | None
    ) -> None:
        self.space, self.max_latency_ms = space, max_latency_ms
        self.in_order = space.archs() if sampler == "brute" else None
        self.distributions = distributions(space)
        self.known: dict[str, Candidate] = {}
        self.num_unseen = space.architectures
        self.worst: tuple[float | None, float | None] = (None, None)
        # A sampler seeded alike after every restart would repeat its first proposals.
        seed = (seed * 1_000_003 + len(history)) % 2**32
        self.random = random.Random(seed)
        self.mirror = optuna.create_study(directions=DIRECTIONS, sampler=make_sampler(sampler, seed))
        self.open: dict[str, optuna.Trial] = {}
        for candidate in history:
            self.learn(candidate)

    def learn(self, candidate: Candidate) -> None:
        """Adds an evaluated candidate to what the sampler knows; one outside the space only to what is not proposed."""
        arch, point = candidate.arch, self.space.point(candidate.arch)
        if arch.id not in self.known and point is not None:
            self.num_unseen -= 1
        self.known[arch.id] = candidate
        accuracies = [a for a in (self.worst[0], candidate.accuracy) if a is not None]
        latencies = [ms for ms in (self.worst[1], candidate.latency_ms) if ms is not None]
        self.worst = min(accuracies, default=None), max(latencies, default=None)
        if arch.id in self.open:
            self._answer(self.open.pop(arch.id), candidate)
        elif point is not None:
            self.mirror.add_trial(
                create_trial(
                    values=self.told_values(candidate),
                    params=point,
                    distributions=self.distributions,
                    constraints=told_constraints(candidate, self.max_latency_ms),
                )
            )

    def propose(self) -> Proposal | None:
        """An architecture that is not known yet; None when the space holds no more."""
        if not self.num_unseen:
            return None
        if self.in_order is not None:
            return self.given(next(arch for arch in self.in_order if arch.id not in self.known))
        for _ in range(MAX_KNOWN_ANSWERS):
            trial = self.mirror.ask(self.distributions)
            arch = self.space.arch(trial.params)
            if arch.id not in self.known:
                self.open[arch.id] = trial
                return Proposal(arch, dict(trial.params))
            self._answer(trial, self.known[arch.id])
        return self.given(self._random_unseen())

    def given(self, arch: Arch) -> Proposal | None:
        """The proposal of an architecture chosen by others; None where the space does not hold it."""
        point = self.space.point(arch)
        return None if point is None else Proposal(arch, point)

    def told_values(self, candidate: Candidate) -> tuple[float, float]:
        """(accuracy, latency in ms) that a sampler is told; the worst so far stands in for what a candidate lacks."""
        accuracy = self.worst[0] if candidate.accuracy is None else candidate.accuracy
        latency_ms = self.worst[1] if candidate.latency_ms is None else candidate.latency_ms
        return 0.0 if accuracy is None else accuracy, UNMEASURED_MS if latency_ms is None else latency_ms

    def _answer(self, trial: optuna.Trial, candidate: Candidate) -> None:
        for name, value in told_constraints(candidate, self.max_latency_ms).items():
            trial.set_constraint(name, value)
        self.mirror.tell(trial, self.told_values(candidate))

    def _random_unseen(self) -> Arch:
        for _ in range(RANDOM_TRIES):
            arch = self.space.arch(
                {dimension.name: self.random.choice(dimension.choices) for dimension in self.space.dimensions}
            )
            if arch.id not in self.known:
                return arch
        return self.random.choice([arch for arch in self.space.archs() if arch.id not in self.known])
