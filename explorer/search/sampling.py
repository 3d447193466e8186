"""Which architecture next? Optuna's samplers behind one ask that never proposes the same network twice.

A sampler works on a study in memory, made anew from the facts at every start (`mirror.py`). A proposal that is known
already is answered there with its known values, so that the sampler moves on, and is neither stored nor charged; after a
bounded number of such answers a random unseen architecture is taken. What each candidate is told as is `told.py`'s rule.

`tpe`, the default, is multivariate TPE whose proposals compete: they join a bounded pool of unseen architectures
(neighbours of the front, random ones), and of the pool the one of largest expected hypervolume improvement is taken
(`pool.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

from explorer.arch import Arch
from explorer.records import Candidate
from explorer.search.kept import without_curves
from explorer.search.mirror import DIRECTIONS, SAMPLERS, Mirror, distributions, make_sampler
from explorer.search.pool import Pool
from explorer.search.predictor import LatencyPredictor
from explorer.search.told import TellingRule, Told, valid_latency_ms
from explorer.space import Space

__all__ = ["DIRECTIONS", "SAMPLERS", "Proposer", "distributions", "make_sampler"]

#: Known architectures answered in a row before a random unseen one is taken; `gp` needs a second for each answer.
MAX_KNOWN_ANSWERS: Final = {"nsgaii": 50, "nsgaiii": 50, "qmc": 50, "gp": 3}
#: Random points tried before the unseen ones are listed.
RANDOM_TRIES: Final = 200
#: The latency predictor is fitted again when its rows have grown by this share: a constant cost a row, over time.
REFIT_SHARE: Final = 0.1


class Proposer:
    """Proposes unseen architectures of a space and learns from candidates. Same seed and history, same proposals.

    `history`: evaluated candidates; pending ones are only not proposed. `measured`: further (architecture, latency_ms) of
    the same target, for the latency predictor alone. `num_unseen`: architectures within the space's limits that are
    neither known nor expected. Raises UserError for an unknown sampler.
    """

    def __init__(
        self,
        space: Space,
        sampler: str,
        seed: int,
        history: Sequence[Candidate],
        max_latency_ms: float | None,
        *,
        measured: Sequence[tuple[Arch, float]] = (),
    ) -> None:
        # A sampler seeded alike after every restart would repeat its first proposals.
        seed = (seed * 1_000_003 + len(history)) % 2**32
        make_sampler(sampler, seed)
        self.space, self.sampler, self.num_unseen = space, sampler, space.architectures
        self._random = random.Random(seed)
        self._taken: set[str] = set()
        self._rule = TellingRule(max_latency_ms)
        self._in_order: Iterator[Arch] | None = space.archs() if sampler == "brute" else None
        self._mirror = None if sampler in ("random", "brute") else Mirror(space, sampler, seed, self._rule.told)
        self._pool = Pool(space, self._random, max_latency_ms) if sampler == "tpe" else None
        self._unseen: list[Arch] | None = None
        self._latencies = {arch.id: (arch, ms) for arch, ms in measured if _is_relative(arch, space.base)}
        self._predictor: LatencyPredictor | None = None
        self._predicted_from = 0
        for candidate in history:
            self.learn(candidate)

    @property
    def predictor(self) -> LatencyPredictor | None:
        """Fitted to the valid latencies known so far; at most a tenth of them came after."""
        if len(self._latencies) >= max(1.0, self._predicted_from * (1 + REFIT_SHARE)):
            self._predictor = LatencyPredictor.fit(list(self._latencies.values()))
            self._predicted_from = len(self._latencies)
        return self._predictor

    @property
    def optuna_s(self) -> float:
        """Seconds spent inside Optuna's sampler so far: the rest of an ask is our own."""
        return 0.0 if self._mirror is None else self._mirror.optuna_s

    def expect(self, arch: Arch) -> None:
        """The architecture is asked or in work: it is never proposed again."""
        if arch.id not in self._taken:
            self._taken.add(arch.id)
            self.num_unseen -= self.space.point(arch) is not None and not self._excluded(arch)

    def learn(self, candidate: Candidate) -> None:
        """Adds an evaluated candidate, or replaces what was known of its architecture; outside the space it only counts
        for the latency predictor.
        """
        self.expect(candidate.arch)
        if candidate.outcome == "pending":
            return
        self._rule.learn(candidate)
        candidate = without_curves(candidate)
        latency_ms = valid_latency_ms(candidate)
        if latency_ms is not None and _is_relative(candidate.arch, self.space.base):
            self._latencies[candidate.arch.id] = (candidate.arch, latency_ms)
        point = self.space.point(candidate.arch)
        if point is not None and self._mirror is not None:
            self._mirror.learn(candidate, point)
        if self._pool is not None:
            self._pool.learn(candidate, point)

    def told(self, candidate: Candidate) -> Told:
        """(accuracy, latency_ms) and constraints by name (above 0: violated) that a sampler is told of a candidate now."""
        return self._rule.told(candidate)

    def propose(self) -> Arch | None:
        """An architecture neither known nor expected, which is expected from now on; None when there is none left."""
        if self.num_unseen <= 0:
            return None
        arch = self._next()
        self.expect(arch)
        return arch

    def _next(self) -> Arch:
        if self._in_order is not None:
            return next(arch for arch in self._in_order if self._may_propose(arch))
        if self._pool is not None:
            return self._best_of_pool() or self._random_unseen()
        return self._asked() or self._random_unseen()

    def _asked(self) -> Arch | None:
        """The sampler's next proposal that is unseen, or None when it keeps to what is known."""
        for _ in range(MAX_KNOWN_ANSWERS.get(self.sampler, 0)):
            assert self._mirror is not None
            trial = self._mirror.ask()
            arch = self.space.arch(trial.params)
            if self._may_propose(arch):
                self._mirror.keep(arch.id, trial)
                return arch
            known = self._mirror.known(arch.id)
            if known is not None:
                self._mirror.answer(trial, self._rule.told(known))
            else:
                self._mirror.answer(trial, self._rule.excluded() if self._excluded(arch) else None)
        return None

    def _best_of_pool(self) -> Arch | None:
        assert self._pool is not None
        assert self._mirror is not None
        point = self._mirror.draw()
        if point is not None and self._excluded(self.space.arch(point)):
            self._mirror.exclude(point, self._rule.excluded())
        return self._pool.best(point, self._may_propose, self.predictor, self._latencies)

    def _may_propose(self, arch: Arch) -> bool:
        return arch.id not in self._taken and not self._excluded(arch)

    def _excluded(self, arch: Arch) -> bool:
        return self.space.excludes(arch) is not None

    def _random_unseen(self) -> Arch:
        for _ in range(RANDOM_TRIES if self._unseen is None else 0):
            arch = self.space.arch({d.name: self._random.choice(d.choices) for d in self.space.dimensions})
            if self._may_propose(arch):
                return arch
        if self._unseen is None:
            self._unseen = [arch for arch in self.space.archs() if self._may_propose(arch)]
            self._random.shuffle(self._unseen)
        while not self._may_propose(arch := self._unseen.pop()):
            pass
        return arch


def _is_relative(arch: Arch, base: Arch) -> bool:
    """Whether two architectures differ in depths, windows, shifts and norm alone."""
    return all(
        getattr(arch, field) == getattr(base, field)
        for field in (
            "embed_dim",
            "num_heads",
            "image_size",
            "patch_size",
            "channels",
            "num_classes",
            "mlp_ratio",
            "v2",
        )
    )
