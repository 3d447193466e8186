"""How the order of a front changes when its members are verified. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from explorer import pareto
from explorer.arch import Arch
from explorer.records import Target


@dataclass(frozen=True)
class Found:
    """A member of a front: `accuracy` and `latency_ms` are the study's, `accuracies` (one a seed) and `verified_ms` the new.

    `verified_ms` is None where latency was not measured again: the study's counts on. `problem`: why something that was asked
    for is missing; such a candidate has no place on the verified front.
    """

    arch: Arch
    accuracy: float
    latency_ms: float
    accuracies: tuple[float, ...] = ()
    verified_ms: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Ranked:
    """A member with its places: `rank` by the study's accuracies among all, `verified_rank` by the new among those that have
    them; 1 is the most accurate and equals share a rank. `is_on_front`: of the verified values, None where they are missing.
    `beaten_by`: of those that beat it now, as fast and as accurate or better, the most accurate.
    """

    found: Found
    rank: int
    verified_rank: int | None = None
    is_on_front: bool | None = None
    beaten_by: Arch | None = None

    @property
    def verified_accuracy(self) -> float | None:
        """Mean of the new accuracies."""
        return statistics.fmean(self.found.accuracies) if self.found.accuracies else None

    @property
    def verified_std(self) -> float | None:
        """Standard deviation of the new accuracies; None with fewer than two."""
        return statistics.stdev(self.found.accuracies) if len(self.found.accuracies) > 1 else None

    @property
    def latency_change(self) -> float | None:
        """New latency over the study's, less one."""
        return None if self.found.verified_ms is None else self.found.verified_ms / self.found.latency_ms - 1


def compare(found: Sequence[Found]) -> tuple[Ranked, ...]:
    """The same members in the same order, ranked by the study's values and by the verified ones."""
    trained = [one for one in found if one.accuracies]
    means = [statistics.fmean(one.accuracies) for one in trained]
    verified_ranks = {one.arch.id: rank for one, rank in zip(trained, _ranks(means), strict=True)}
    standing = {
        one.arch.id: (one.arch, mean, one.latency_ms if one.verified_ms is None else one.verified_ms)
        for one, mean in zip(trained, means, strict=True)
        if not one.problem
    }
    points = list(standing.values())
    on_front = {points[index][0].id for index in pareto.front([p[1] for p in points], [p[2] for p in points])}
    compared = []
    for one, rank in zip(found, _ranks([one.accuracy for one in found]), strict=True):
        arch_id = one.arch.id
        is_on_front = arch_id in on_front if arch_id in standing else None
        beaten_by = None
        if is_on_front is False:
            _, accuracy, ms = standing[arch_id]
            better = [p for p in points if p[0].id in on_front and p[1] >= accuracy and p[2] <= ms]
            beaten_by = max(better, key=lambda point: point[1])[0]
        compared.append(Ranked(one, rank, verified_ranks.get(arch_id), is_on_front, beaten_by))
    return tuple(compared)


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b between two orders: -1 to 1; None for fewer than two values, or where one holds nothing but ties."""
    signs = [np.sign(np.subtract.outer(values, values)) for values in (first, second)]
    pairs = math.prod(math.sqrt(float((sign**2).sum())) for sign in signs)
    return float((signs[0] * signs[1]).sum()) / pairs if pairs else None


def _ranks(values: Sequence[float]) -> list[int]:
    """1 for the largest; equals share the rank of the first of them."""
    return [1 + sum(other > value for other in values) for value in values]


@dataclass(frozen=True)
class Verified:
    """What a verification found. `recipe_id` and `epochs` are of the longer training, `study_epochs` of the study's.

    `part`: of the data, that the verified accuracies are of; the study's are of the held-out part.
    """

    study: str
    target: Target
    recipe_id: str
    study_epochs: int
    epochs: int
    seeds: tuple[int, ...]
    candidates: tuple[Ranked, ...]
    part: str

    @property
    def tau_b(self) -> float | None:
        """Kendall's tau-b between the accuracies of the study and the verified ones."""
        trained = [one for one in self.candidates if one.verified_accuracy is not None]
        return kendall_tau_b([one.found.accuracy for one in trained], [one.verified_accuracy or 0.0 for one in trained])

    @property
    def left_front(self) -> tuple[Ranked, ...]:
        """Members that others beat by the verified values."""
        return tuple(one for one in self.candidates if one.is_on_front is False)

    @property
    def failed(self) -> tuple[Ranked, ...]:
        """Members that could not be verified."""
        return tuple(one for one in self.candidates if one.found.problem)

    def sentences(self) -> list[str]:
        """What changed, for people."""
        total, left, failed = len(self.candidates), self.left_front, self.failed
        if left:
            winners = {one.beaten_by.id: one.beaten_by.name for one in left if one.beaten_by}
            beaten = "; ".join(
                ", ".join(one.found.arch.name for one in left if one.beaten_by and one.beaten_by.id == winner)
                + f" (beaten by {name})"
                for winner, name in winners.items()
            )
            said = [f"{len(left)} of {total} left the front: {beaten}"]
        elif failed:
            said = [f"none of the {total - len(failed)} verified left the front"] * (len(failed) < total)
        else:
            said = [f"all {total} stay on the front" if total > 1 else "the only member stays on the front"]
        if failed:
            names = ", ".join(one.found.arch.name for one in failed)
            said.append(f"{len(failed)} of {total} could not be verified: {names}")
        best = next((one for one in self.candidates if one.verified_rank == 1), None)
        if best is not None and total > 1:
            before = "as in the study" if best.rank == 1 else f"rank {best.rank} in the study"
            said.append(f"most accurate: {best.found.arch.name}, {before}")
        if self.tau_b is not None:
            said.append(f"order of the accuracies, study against verified: Kendall tau-b {self.tau_b:.2f}")
        if any(one.found.accuracies for one in self.candidates):
            said.append(
                f"verified accuracies are of the {self.part} part of the data, the study's of the held-out part"
            )
        return said
