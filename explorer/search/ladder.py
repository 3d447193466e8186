"""Which candidate is trained further? A ladder of epochs that understands accuracy and latency at once.

A pure rule, in the spirit of MO-ASHA (Schmucker et al. 2021, "Multi-objective Asynchronous Successive Halving"): every
candidate is trained to the lowest rung; of those that reached a rung the best 1/eta go on to the next. Best means
non-dominated rank first, all compared after the same epochs, then spread: of one rank the candidate that lies farthest
from those that went on already. Nothing is waited for, so an early candidate may go on that later ones would have
outranked; what that costs is bounded by a share of full training that the whole search never exceeds.

Slow networks tend to learn late: after the same few epochs a fast one looks better than it will be. As soon as enough
candidates are fully trained, accuracies at a rung are therefore compared plus what candidates of such a latency were seen to
gain more than others on their way up (`gain_slopes`); in a benchmark whose early leaders lose in the end, that is the
difference between 95 % and all of the front's hypervolume.

At the end of a search, when no new candidates come, what is left of that share is spent (`final`): on the candidates that
no other dominates at their rung first, then rank by rank.

The order in which results came does not matter: the answer follows from what each candidate has reached, so that a resumed
search goes on as if it had never stopped, but for gains that are fitted on all that is known at the start. Ties are broken by
the architectures' ids. No training, no store, no sampler.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

#: A search costs at most this share of training every candidate fully, or what halving alone costs where that is more.
MAX_SHARE: Final = 1 / 3
#: And at most this much more than halving alone: a long ladder needs no third.
_SLACK: Final = 1.3
#: Neighbouring rungs may lie apart by up to eta to the power of 1 + about this; more, and there is another one in between.
_STRETCH: Final = 0.25

#: Fully trained candidates from which gains are fitted, and by what factor they grow until the next fit.
_FIT_FROM, _FIT_AGAIN = 8, 1.25
#: Weight of the ridge that holds fitted slopes near 0, in units of one candidate.
_RIDGE: Final = 1.0

#: Accuracy (0..1) and latency in ms.
Values = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """A candidate on the ladder: its latency, and its accuracy (0..1) after each number of epochs where that is known."""

    arch_id: str
    latency_ms: float
    accuracies: Mapping[int, float]


def rungs(epochs: int, eta: float = 3.0, lowest: int = 1) -> tuple[int, ...]:
    """Epochs at which candidates are compared: rising from `lowest` to `epochs`, neighbours about `eta` times apart.

    Spaced evenly in the logarithm: (1, 3, 9) for 9 and eta 3, (1, 3, 8) for 8, (1, 2, 5) for 5. One rung where `lowest` is
    `epochs` or more. Raises ValueError for an eta that is not above 1 and for counts below 1.
    """
    _require(eta > 1, f"eta is {eta}; more than 1 is needed")
    _require(epochs >= 1 and lowest >= 1, f"epochs {epochs} and lowest {lowest} must be at least 1")
    if lowest >= epochs:
        return (epochs,)
    ratio = math.log(epochs / lowest)
    num_steps = max(1, math.ceil(ratio / math.log(eta) - _STRETCH))
    below = {round(lowest * math.exp(ratio * step / num_steps)) for step in range(num_steps)}
    return (*sorted(below - {epochs}), epochs)


def halving_share(rungs: Sequence[int], eta: float) -> float:
    """Epochs of successive halving as a share of training everyone to the top: 0.26 for (1, 3, 9) and eta 3."""
    steps = zip((0, *rungs), rungs, strict=False)
    return sum((end - start) / eta**level for level, (start, end) in enumerate(steps)) / rungs[-1]


def fronts(values: Mapping[str, Values]) -> list[list[str]]:
    """Ids by non-dominated rank, the first front first; each by rising latency and accuracy, equals by id.

    A candidate is dominated by one that is as fast and as accurate or better, and differs from it.
    """
    by_latency = sorted(values, key=lambda arch_id: (values[arch_id][1], -values[arch_id][0], arch_id))
    ranked: list[list[str]] = []
    falling: list[float] = []  # minus the best accuracy of each front so far: rises from front to front
    before, rank = None, 0
    for arch_id in by_latency:
        if values[arch_id] != before:
            # All before are as fast; the first front without one as accurate takes it.
            rank = bisect_right(falling, -values[arch_id][0])
            if rank == len(ranked):
                ranked.append([])
                falling.append(0.0)
            falling[rank] = -values[arch_id][0]
            before = values[arch_id]
        ranked[rank].append(arch_id)
    return ranked


def insert(ranked: list[list[str]], arch_id: str, values: Mapping[str, Values]) -> None:
    """Puts a candidate into the `fronts` of others; who is dominated now moves down a rank, and may push others on.

    Of each front only a run of neighbours moves, so that this costs far less than ranking anew.
    """

    def place(member: str) -> tuple[float, float, str]:
        return values[member][1], -values[member][0], member

    def is_dominated(front: list[str]) -> bool:
        """By the last one that is as fast: the most accurate of those."""
        index = bisect_left(front, place(arch_id), key=place)
        best = values[front[index - 1]] if index else None
        return best is not None and best[0] >= values[arch_id][0] and best != values[arch_id]

    rank = bisect_left(ranked, True, key=lambda front: not is_dominated(front))
    moving = [arch_id]
    while moving:
        if rank == len(ranked):
            ranked.append(moving)
            return
        front = ranked[rank]
        # Whom the moving ones may dominate: as slow as their fastest, and no more accurate than their most accurate.
        start = bisect_left(front, (values[moving[0]][1], -math.inf, ""), key=place)
        end = bisect_right(front, values[moving[-1]][0], key=lambda member: values[member][0])
        stay, pushed = [], []
        best: Values | None = None
        for member in sorted((*moving, *front[start:end]), key=place):
            if best is not None and best[0] >= values[member][0] and best != values[member]:
                pushed.append(member)
            else:
                stay.append(member)
                best = values[member]
        front[start:end] = stay
        moving, rank = pushed, rank + 1


def gain_slopes(levels: Sequence[Mapping[str, Values]]) -> list[float]:
    """Accuracy per ms by which slower candidates gain more from each rung to the top; `levels`: values by id at each rung.

    From rung to rung the gain is fitted as linear in accuracy and latency (ridge regression, both standardised) over those
    that are known at both; accuracy is in it because the better ones went on. Slopes of the steps above add up.
    """
    slopes, slope, persistence = [0.0] * len(levels), 0.0, 1.0
    for index in reversed(range(len(levels) - 1)):
        below, above = levels[index], levels[index + 1]
        both = sorted(below.keys() & above.keys())
        if len(both) > 1:
            at = np.array([below[arch_id] for arch_id in both])
            gains = np.array([above[arch_id][0] for arch_id in both]) - at[:, 0]
            spread = at.std(axis=0) + 1e-12
            scaled = (at - at.mean(axis=0)) / spread
            weights = (
                np.linalg.solve(scaled.T @ scaled + _RIDGE * np.eye(2), scaled.T @ (gains - gains.mean())) / spread
            )
            # What is ahead here by 1 is ahead above by 1 + the first weight.
            slope += persistence * float(weights[1])
            persistence *= max(0.1, 1 + float(weights[0]))
        slopes[index] = slope / persistence
    return slopes


def promotions(
    standings: Iterable[Standing], rungs: Sequence[int], eta: float = 3.0, *, final: bool = False
) -> tuple[tuple[str, int], ...]:
    """All that go on now, in this order, and to how many epochs each. Raises ValueError as `Ladder` does."""
    ladder = Ladder(rungs, eta)
    for standing in standings:
        epochs = max(standing.accuracies)
        ladder.add(
            standing.arch_id, epochs, standing.accuracies[epochs], standing.latency_ms, curve=standing.accuracies
        )
    return tuple(iter(lambda: ladder.next(final), None))


class Ladder:
    """Where every candidate stands, and who goes on next. Same standings, same answer, whatever their order.

    A call costs some ten microseconds to a few milliseconds at thousands of candidates. Raises ValueError for rungs that
    do not rise and for an eta that is not above 1.
    """

    def __init__(self, rungs: Sequence[int], eta: float = 3.0, *, max_share: float | None = None) -> None:
        _require(eta > 1, f"eta is {eta}; more than 1 is needed")
        rising = len(rungs) > 0 and rungs[0] >= 1 and all(a < b for a, b in itertools.pairwise(rungs))
        _require(rising, f"rungs are {list(rungs)}; whole numbers that rise are needed")
        self.rungs, self.eta = tuple(rungs), eta
        halving = halving_share(rungs, eta)
        self.max_share = max(halving, min(MAX_SHARE, _SLACK * halving)) if max_share is None else max_share
        self.spent_epochs, self._fitted = 0, 0
        self._levels = [_Level() for _ in rungs]
        self._reached: dict[str, int] = {}
        self._going_to: dict[str, int] = {}
        self._free: dict[str, int] = {}
        self._forgotten: set[str] = set()

    @property
    def share(self) -> float:
        """`spent_epochs`, those in work included, as a share of training all candidates fully; 0 without any."""
        return self.spent_epochs / (self.rungs[-1] * len(self._reached)) if self._reached else 0.0

    def add(
        self,
        arch_id: str,
        epochs: int,
        accuracy: float,
        latency_ms: float,
        *,
        curve: Mapping[int, float] | None = None,
        free_epochs: int = 0,
    ) -> None:
        """A candidate trained for `epochs`; again with newer values as often as it goes on.

        `curve`: its accuracy after other numbers of epochs, as far as known. At a lower rung for which none is known, now or
        from before, it is not compared. An accuracy between two rungs stands for the lower one where that has none.
        `free_epochs`: how many of them this search did not spend, as other studies had; remembered. Raises ValueError for
        fewer epochs than the lowest rung, and for a NaN.
        """
        _require(epochs >= self.rungs[0], f"{arch_id}: {epochs} epochs are below the lowest rung, {self.rungs[0]}")
        known = {**(curve or {}), epochs: accuracy}
        _require(
            not any(map(math.isnan, (latency_ms, *known.values()))), f"{arch_id}: a NaN has no place on the ladder"
        )
        top = bisect_right(self.rungs, epochs) - 1
        if arch_id not in self._levels[top].values:
            known.setdefault(self.rungs[top], accuracy)
        self._forgotten.discard(arch_id)
        for level, rung in zip(self._levels[: top + 1], self.rungs, strict=False):
            if rung in known:
                level.put(arch_id, (known[rung], latency_ms))
        spent = self._spent_on(arch_id)
        self._reached[arch_id] = max(epochs, self._reached.get(arch_id, 0))
        self._free[arch_id] = max(free_epochs, self._free.get(arch_id, 0))
        if self._going_to.get(arch_id, 0) <= epochs:
            self._going_to.pop(arch_id, None)
        self._recharge(arch_id, spent)

    def next(self, final: bool = False) -> tuple[str, int] | None:
        """Who goes on, and to how many epochs; None where nobody should now. It is in work then, until added again.

        `final`: no new candidates will come. Then nobody goes on whose whole way to the top is more than what is left of the
        share, and all of that is spent; one candidate is trained to the top whatever the share.
        """
        self._fit()
        chosen = self._best_share() if not final else self._best_share(final=True) or self._what_is_left()
        if chosen is None:
            return None
        arch_id, index = chosen
        self._goes_to(arch_id, self.rungs[index + 1])
        return arch_id, self.rungs[index + 1]

    def give_back(self, arch_id: str) -> None:
        """What `next` gave was not done, as where it was interrupted: it may be given again."""
        self._goes_to(arch_id, None)

    def forget(self, arch_id: str) -> None:
        """Does not go on with a candidate, as one that failed, and compares nobody with it, until it is added again. Its epochs
        stay spent.
        """
        self.give_back(arch_id)
        self._forgotten.add(arch_id)
        for level in self._levels:
            level.drop(arch_id)

    def _fit(self) -> None:
        num_full = len(self._levels[-1].known)
        if num_full >= max(_FIT_FROM, _FIT_AGAIN * self._fitted):
            self._fitted = num_full
            for level, slope in zip(self._levels, gain_slopes([level.known for level in self._levels]), strict=True):
                level.tilt(slope)

    def _best_share(self, *, final: bool = False) -> tuple[str, int] | None:
        """From the top rung down, the first of the best 1/eta that has not gone on."""
        for index in reversed(range(len(self.rungs) - 1)):
            level = self._levels[index]
            quota = level.quota(self.eta)
            for group in level.ranked:
                if quota <= 0:
                    break
                if len(level.gone.intersection(group)) < quota and (arch_id := level.waiting(group)) is not None:
                    if self._affords(arch_id, index, final=final):
                        return arch_id, index
                    if not final:
                        return None  # saved up for: lower rungs do not take it away
                    break
                quota -= len(group)
        return None

    def _what_is_left(self) -> tuple[str, int] | None:
        """The first that the share allows to finish: rank by rank, of each rank from the top rung down."""
        below = list(enumerate(self._levels[:-1]))[::-1]
        for groups in itertools.zip_longest(*(level.ranked for _, level in below), fillvalue=()):
            for (index, level), group in zip(below, groups, strict=True):
                arch_id = level.waiting(group)
                if arch_id is not None and self._affords(arch_id, index, final=True):
                    return arch_id, index
        return None

    def _affords(self, arch_id: str, index: int, *, final: bool) -> bool:
        """Whether the share allows the next step of `arch_id`; at the end, all its steps to the top."""
        top = self.rungs[-1]
        if final and not self._levels[-1].values and top not in self._going_to.values():
            return True  # an empty front is no answer
        end = top if final else self.rungs[index + 1]
        allowed = self.max_share * top * len(self._reached)
        return self.spent_epochs + end - self._bound_for(arch_id) <= allowed + 1e-6

    def _goes_to(self, arch_id: str, epochs: int | None) -> None:
        """Notes that a candidate is in work up to `epochs`, or no longer."""
        spent = self._spent_on(arch_id)
        if epochs is None:
            self._going_to.pop(arch_id, None)
        else:
            self._going_to[arch_id] = epochs
        self._recharge(arch_id, spent)

    def _recharge(self, arch_id: str, before: int) -> None:
        """Brings the epochs spent and the rungs' lists of who went on up to date."""
        self.spent_epochs += self._spent_on(arch_id) - before
        for level, following in zip(self._levels, self.rungs[1:], strict=False):
            if self._bound_for(arch_id) >= following and arch_id not in self._forgotten:
                level.gone.add(arch_id)
            else:
                level.gone.discard(arch_id)

    def _bound_for(self, arch_id: str) -> int:
        """Epochs that a candidate is or is being trained for."""
        return max(self._reached.get(arch_id, 0), self._going_to.get(arch_id, 0))

    def _spent_on(self, arch_id: str) -> int:
        return max(0, self._bound_for(arch_id) - self._free.get(arch_id, 0))


class _Level:
    """One rung: what is known of all that reached it, who went on, and the fronts, kept up with every new candidate.

    `values` are those compared: the accuracy that is `known`, plus `slope` times the latency.
    """

    def __init__(self) -> None:
        self.known: dict[str, Values] = {}
        self.values: dict[str, Values] = {}
        self.slope = 0.0
        self.gone: set[str] = set()
        self.ranked: list[list[str]] = []

    def put(self, arch_id: str, known: Values) -> None:
        """Adds a candidate; its new values where it is there."""
        if arch_id not in self.known:
            self.known[arch_id] = known
            self.values[arch_id] = known[0] + self.slope * known[1], known[1]
            insert(self.ranked, arch_id, self.values)
        elif self.known[arch_id] != known:
            self.known[arch_id] = known
            self.tilt(self.slope)

    def drop(self, arch_id: str) -> None:
        self.gone.discard(arch_id)
        if self.known.pop(arch_id, None) is not None:
            self.tilt(self.slope)

    def tilt(self, slope: float) -> None:
        """Ranks all anew, their accuracies `slope` per ms higher."""
        self.slope = slope
        self.values = {arch_id: (accuracy + slope * ms, ms) for arch_id, (accuracy, ms) in self.known.items()}
        self.ranked = fronts(self.values)

    def quota(self, eta: float) -> int:
        """How many of the rung's best go on."""
        return math.floor(len(self.values) / eta + 1e-9)

    def waiting(self, group: Sequence[str]) -> str | None:
        """Of one rank, the waiting candidate farthest from all that went on, else the most accurate; None without any.

        Distances are Euclidean, each objective scaled by its range over the rank. Along a front the nearest of a set is a
        neighbour in latency, so that a rank costs m log m.
        """
        if self.gone.issuperset(group):
            return None
        at = np.array([self.values[arch_id] for arch_id in group])
        scaled = at / (np.ptp(at, axis=0) + 1e-12)
        is_gone = np.array([arch_id in self.gone for arch_id in group])
        waiting, others = scaled[~is_gone], scaled[is_gone]
        if not len(others):
            return max(reversed(group), key=lambda arch_id: self.values[arch_id][0])
        after = np.searchsorted(others[:, 1], waiting[:, 1])
        neighbours = (others[index.clip(0, len(others) - 1)] for index in (after - 1, after))
        nearest = np.minimum(*(np.hypot(*(waiting - neighbour).T) for neighbour in neighbours))
        return group[int(np.flatnonzero(~is_gone)[np.argmax(nearest)])]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
