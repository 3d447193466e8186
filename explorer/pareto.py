"""Pareto fronts of accuracy (up) against latency (down), and their hypervolume. Pure numpy.

A front holds no two points with the same accuracy and latency: of equals the first stays.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

#: A study's hypervolume is counted up to this multiple of the base model's latency.
REFERENCE_FACTOR: Final = 2.0


def front(accuracies: Sequence[float], latencies_ms: Sequence[float]) -> list[int]:
    """Indices of the non-dominated points, by rising latency.

    Raises ValueError for lists of different length and for a NaN, which has no place in an order. Cost n log n.
    """
    accuracy, latency_ms = _checked(accuracies, latencies_ms)
    by_latency = np.lexsort((np.arange(len(accuracy)), -accuracy, latency_ms))
    members: list[int] = []
    for index in by_latency.tolist():
        if not members or accuracy[index] > accuracy[members[-1]]:
            members.append(index)
    return members


def hypervolume(
    accuracies: Sequence[float], latencies_ms: Sequence[float], *, reference_ms: float, reference_accuracy: float = 0.0
) -> float:
    """Area between the front and the reference point, in units of accuracy x `reference_ms`: 1 is unreachable.

    Points beyond the reference add nothing. Raises ValueError as `front` does, and where `reference_ms` is not above 0.
    """
    if not reference_ms > 0:
        raise ValueError(f"reference_ms is {reference_ms}; a latency above 0 is needed")
    area, covered_from = 0.0, reference_ms
    for index in reversed(front(accuracies, latencies_ms)):
        width = covered_from - latencies_ms[index]
        height = accuracies[index] - reference_accuracy
        if width > 0 and height > 0:
            area += width * height
            covered_from = latencies_ms[index]
    return float(area / reference_ms)


class Front:
    """A front that grows point by point. The order of arrival does not matter, but that of two equals the first stays."""

    def __init__(self) -> None:
        self.ids: list[str] = []  # by rising latency, and so by rising accuracy
        self.accuracies: list[float] = []
        self.latencies_ms: list[float] = []

    def add(self, point_id: str, accuracy: float, latency_ms: float) -> bool:
        """Takes a point in if none dominates or equals it; whether it did. Cost: log n, and those that leave.

        Raises ValueError for a NaN.
        """
        if math.isnan(accuracy) or math.isnan(latency_ms):
            raise ValueError("a NaN has no place on a front: leave failed candidates out")
        faster = bisect.bisect_right(self.latencies_ms, latency_ms)  # as fast or faster
        if faster and self.accuracies[faster - 1] >= accuracy:
            return False
        start = bisect.bisect_left(self.latencies_ms, latency_ms)
        end = bisect.bisect_right(self.accuracies, accuracy, lo=start)
        for members, value in ((self.ids, point_id), (self.accuracies, accuracy), (self.latencies_ms, latency_ms)):
            members[start:end] = [value]  # type: ignore[list-item]
        return True

    def hypervolume(self, reference_ms: float) -> float:
        """As `hypervolume` of its points."""
        return hypervolume(self.accuracies, self.latencies_ms, reference_ms=reference_ms)


def _checked(accuracies: ArrayLike, latencies_ms: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    accuracy, latency_ms = np.asarray(accuracies, dtype=float), np.asarray(latencies_ms, dtype=float)
    if accuracy.shape != latency_ms.shape or accuracy.ndim != 1:
        raise ValueError(
            f"accuracies {accuracy.shape} and latencies {latency_ms.shape} must be two lists of one length"
        )
    if np.isnan(accuracy).any() or np.isnan(latency_ms).any():
        raise ValueError("a NaN has no place on a front: leave failed candidates out")
    return accuracy, latency_ms
