"""The pool of unseen architectures that `tpe` chooses from, ordered by expected hypervolume improvement.

Bounded in size and in what is added an ask, so that an ask costs the same in any space and at any number of trials. The
volume is counted up to twice the base's latency, as the study's is, and from somewhat below the worst accuracy seen.
"""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from explorer import pareto
from explorer.arch import Arch
from explorer.records import Candidate
from explorer.search.predictor import LatencyPredictor
from explorer.search.surrogate import Effects, expected_improvement
from explorer.search.told import valid_latency_ms
from explorer.space import Choice, Space

POOL: Final = 256
#: Architectures made anew an ask at most, and points drawn to find them.
_NEW: Final = 16
_DRAWS: Final = 64
#: A model of fewer says little ...
_NUM_FIRST: Final = 8
#: ... and the known networks are much alike: so many beside them are drawn, at random; out of so many at most.
_NUM_DRAWN: Final = 4
_MOST_DRAWN: Final = 16
_CACHED: Final = 512
#: Volume is counted from so far below the worst accuracy, as a share of the range: the fast end of the front counts too
#: (BoTorch's rule for a reference point that nobody gave).
_MARGIN: Final = 0.1
#: A latency is taken as uncertain by at least this share.
_LEAST_ERROR: Final = 0.002

_Codes = tuple[int, ...]


class _Member(NamedTuple):
    accuracy: float
    latency_ms: float
    codes: _Codes


@dataclass
class _Entry:
    arch: Arch
    predicted_ms: float = 0.0


class Pool:
    """Unseen architectures worth a look, and models of what is known."""

    def __init__(self, space: Space, generator: random.Random, max_latency_ms: float | None) -> None:
        self._space, self._random, self._max_latency_ms = space, generator, max_latency_ms
        sizes = [len(dimension.choices) for dimension in space.dimensions]
        self._accuracy, self._failed = Effects(sizes), Effects(sizes)
        self._num_failed = 0
        self._given = {arch.id for arch in space.known_networks()}
        self._num_drawn, self._drawn = 0, set[str]()
        self._entries: dict[_Codes, _Entry] = {}
        self._archs: OrderedDict[_Codes, Arch] = OrderedDict()
        self._complete: dict[str, _Member] = {}
        self._front: list[_Member] = []
        self._floor = 1.0
        self._base_ms: float | None = None
        self._predictor: LatencyPredictor | None = None

    def learn(self, candidate: Candidate, point: Mapping[str, Choice] | None) -> None:
        """Takes in an evaluated candidate, also one seen before; `point` is None outside the space."""
        latency_ms, arch_id = valid_latency_ms(candidate), candidate.arch.id
        if latency_ms is not None:
            self._base_ms = latency_ms if arch_id == self._space.base.id else self._base_ms
        if point is None:
            return
        codes = tuple(d.choices.index(point[d.name]) for d in self._space.dimensions)
        self._entries.pop(codes, None)
        self._num_drawn += arch_id not in self._given
        if candidate.accuracy is not None and len(self._drawn) < _NUM_DRAWN:
            self._drawn |= {arch_id} - self._given
        self._num_failed += candidate.outcome == "failed"
        self._failed.learn(arch_id, np.array(codes), float(candidate.outcome == "failed"))
        if candidate.accuracy is None:
            self._accuracy.forget(arch_id)
        else:
            self._accuracy.learn(arch_id, np.array(codes), candidate.accuracy, candidate.epochs or 1)
        was = self._complete.pop(arch_id, None)
        if candidate.may_stand_on_front and candidate.accuracy is not None and latency_ms is not None:
            self._floor = min(self._floor, candidate.accuracy)
            self._complete[arch_id] = member = _Member(candidate.accuracy, latency_ms, codes)
            self._front = _front_of([*self._front, member])
        if was in self._front:  # its place may now be another's
            self._front = _front_of(list(self._complete.values()))

    def best(
        self,
        drawn: Mapping[str, Choice] | None,
        may_propose: Callable[[Arch], bool],
        predictor: LatencyPredictor | None,
        measured: Mapping[str, tuple[Arch, float]],
    ) -> Arch | None:
        """The unseen architecture to evaluate next, or None where it is to be a random one.

        `drawn`: TPE's proposal, which joins the pool. `measured`: latencies known already, by architecture.
        """
        is_alike = len(self._accuracy) >= _NUM_FIRST and len(self._drawn) < _NUM_DRAWN and self._num_drawn < _MOST_DRAWN
        if is_alike or predictor is None or len(self._accuracy) < _NUM_FIRST or not self._front:
            return self._first(None if is_alike else drawn, may_propose, predictor, measured)
        if predictor is not self._predictor:
            self._predictor = predictor
            for entry in self._entries.values():
                entry.predicted_ms = predictor.predict(entry.arch)
        self._extend(drawn, may_propose, predictor)
        if not self._entries:
            return None
        codes = list(self._entries)
        order = np.argsort(-self._scores(codes, predictor, measured), kind="stable")
        for index in order[POOL:].tolist():
            del self._entries[codes[index]]
        for index in order[:POOL].tolist():
            arch = self._entries.pop(codes[index]).arch
            if may_propose(arch):  # others may have taken it meanwhile
                return arch
        return None

    def _first(
        self,
        drawn: Mapping[str, Choice] | None,
        may_propose: Callable[[Arch], bool],
        predictor: LatencyPredictor | None,
        measured: Mapping[str, tuple[Arch, float]],
    ) -> Arch | None:
        """TPE's proposal, or a random point, that is not predicted to be over the latency limit; None where none was found."""
        limit_ms = self._max_latency_ms
        for codes in itertools.islice(self._new_codes(drawn, ()), 1 if limit_ms is None else _DRAWS):
            if may_propose(arch := self._arch(codes)):
                least_ms = 0.0
                if arch.id in measured:
                    least_ms = measured[arch.id][1]
                elif predictor is not None:
                    least_ms = predictor.predict(arch) * (1 - 2 * max(predictor.error.rms, _LEAST_ERROR))
                if limit_ms is None or least_ms <= limit_ms:
                    return arch
        return None

    def _extend(
        self, drawn: Mapping[str, Choice] | None, may_propose: Callable[[Arch], bool], predictor: LatencyPredictor
    ) -> None:
        num_new = 0
        for codes in self._new_codes(drawn, self._front):
            if num_new == _NEW:
                break
            if codes not in self._entries and may_propose(arch := self._arch(codes)):
                self._entries[codes] = _Entry(arch, predictor.predict(arch))
                num_new += 1

    def _new_codes(self, drawn: Mapping[str, Choice] | None, front: Sequence[_Member]) -> Iterator[_Codes]:
        """TPE's proposal, then by turns a neighbour of the front (one choice changed) and a random point."""
        dimensions = self._space.dimensions
        if drawn is not None:
            yield tuple(d.choices.index(drawn[d.name]) for d in dimensions)
        for _ in range(_DRAWS // 2 if front else _DRAWS):
            if front:
                near = list(self._random.choice(front).codes)
                changed = self._random.randrange(len(dimensions))
                near[changed] = self._random.randrange(len(dimensions[changed].choices))
                yield tuple(near)
            yield tuple(self._random.randrange(len(d.choices)) for d in dimensions)

    def _arch(self, codes: _Codes) -> Arch:
        if codes not in self._archs:
            if len(self._archs) == _CACHED:
                self._archs.popitem(last=False)
            self._archs[codes] = self._space.arch(
                {d.name: d.choices[code] for d, code in zip(self._space.dimensions, codes, strict=True)}
            )
        return self._archs[codes]

    def _scores(
        self, codes: list[_Codes], predictor: LatencyPredictor, measured: Mapping[str, tuple[Arch, float]]
    ) -> np.ndarray:
        """Expected improvement times the chance not to fail; below 0 for what will rather fail, or be over the limit."""
        points, error = np.array(codes), max(predictor.error.rms, _LEAST_ERROR)
        latency_ms = np.array([entry.predicted_ms for entry in self._entries.values()])
        deviation_ms = error * latency_ms
        for index, entry in enumerate(self._entries.values()):
            if entry.arch.id in measured:
                latency_ms[index], deviation_ms[index] = measured[entry.arch.id][1], 0.0
        base_ms = predictor.predict(self._space.base) if self._base_ms is None else self._base_ms
        ceiling_ms = pareto.REFERENCE_FACTOR * base_ms
        limit_ms = ceiling_ms if self._max_latency_ms is None else min(ceiling_ms, self._max_latency_ms)
        scores = expected_improvement(
            self._accuracy.predict(points),
            (latency_ms, deviation_ms),
            [(member.accuracy, member.latency_ms) for member in self._front],
            (self._floor - _MARGIN * (self._front[-1].accuracy - self._floor), limit_ms),
        )
        if self._num_failed:
            chance = self._failed.chance_below(0.5, points)
            scores = np.where(chance < 0.5, chance - 1, scores * chance)
        if self._max_latency_ms is not None:
            least_ms = latency_ms - 2 * deviation_ms
            scores = np.where(least_ms > self._max_latency_ms, -least_ms, scores)
        return scores


def _front_of(members: list[_Member]) -> list[_Member]:
    indices = pareto.front([member.accuracy for member in members], [member.latency_ms for member in members])
    return [members[index] for index in indices]
