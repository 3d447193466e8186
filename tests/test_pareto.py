"""Fronts and hypervolumes against brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.pareto import front, hypervolume

#: Few different values, so that ties and duplicates are drawn often.
COARSE = st.tuples(st.integers(0, 5).map(float), st.integers(1, 5).map(float))
FINE = st.tuples(
    st.floats(0.0, 1.0, allow_subnormal=False), st.floats(1e-3, 1e3, allow_nan=False, allow_infinity=False)
)
POINTS = st.lists(COARSE, max_size=12) | st.lists(FINE, max_size=12)


def split(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [accuracy for accuracy, _ in points], [latency_ms for _, latency_ms in points]


def non_dominated(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices that no other point beats in one value without losing in the other; of equals the first."""

    def is_beaten(index: int) -> bool:
        accuracy, latency_ms = points[index]
        return any(
            (other[0] >= accuracy and other[1] <= latency_ms) and (other != points[index] or position < index)
            for position, other in enumerate(points)
            if position != index
        )

    return {index for index in range(len(points)) if not is_beaten(index)}


@settings(deadline=None)
@given(POINTS)
def test_front_holds_exactly_the_non_dominated_points(points: list[tuple[float, float]]) -> None:
    assert set(front(*split(points))) == non_dominated(points)


@settings(deadline=None)
@given(POINTS)
def test_front_rises_in_latency_and_accuracy(points: list[tuple[float, float]]) -> None:
    accuracies, latencies_ms = split(points)
    members = front(accuracies, latencies_ms)
    for faster, slower in itertools.pairwise(members):
        assert latencies_ms[faster] < latencies_ms[slower]
        assert accuracies[faster] < accuracies[slower]


@settings(deadline=None)
@given(POINTS, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_the_order_of_the_points(points: list[tuple[float, float]], random: Random) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)
    assert [points[i] for i in front(*split(points))] == [shuffled[i] for i in front(*split(shuffled))]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(0.5, 1.0)], [0]),
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], [0]),
        ([(0.5, 2.0), (0.5, 1.0)], [1]),
        ([(0.4, 1.0), (0.5, 1.0)], [1]),
        ([(0.9, 3.0), (0.5, 1.0), (0.7, 2.0)], [1, 2, 0]),
        ([(0.9, 1.0), (0.5, 2.0), (0.7, 3.0)], [0]),
        ([(0.0, 1.0)], [0]),
    ],
)
def test_front_of_hand_made_points(points: list[tuple[float, float]], expected: list[int]) -> None:
    assert front(*split(points)) == expected


@pytest.mark.parametrize("points", [[(math.nan, 1.0)], [(0.5, 1.0), (0.5, math.nan)]])
def test_nan_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="NaN"):
        front(*split(points))
    with pytest.raises(ValueError, match="NaN"):
        hypervolume(*split(points), reference_ms=2.0)


@pytest.mark.parametrize(("accuracies", "latencies_ms"), [([0.5], []), ([0.5, 0.6], [1.0]), ([[0.5]], [[1.0]])])
def test_lists_that_do_not_match_are_refused(accuracies: list[float], latencies_ms: list[float]) -> None:
    with pytest.raises(ValueError, match="two lists of one length"):
        front(accuracies, latencies_ms)


def grid_area(points: Sequence[tuple[float, float]], reference_ms: int, reference_accuracy: int) -> int:
    """Unit cells between reference and points with whole coordinates that some point dominates."""
    return sum(
        any(accuracy >= row + 1 and latency_ms <= column for accuracy, latency_ms in points)
        for column in range(reference_ms)
        for row in range(reference_accuracy, 6)
    )


@settings(deadline=None)
@given(st.lists(COARSE, max_size=8), st.integers(1, 7), st.integers(0, 3))
def test_hypervolume_is_the_dominated_area_of_a_grid(
    points: list[tuple[float, float]], reference_ms: int, reference_accuracy: int
) -> None:
    found = hypervolume(*split(points), reference_ms=float(reference_ms), reference_accuracy=float(reference_accuracy))
    assert found == pytest.approx(grid_area(points, reference_ms, reference_accuracy) / reference_ms, abs=1e-12)


@settings(deadline=None)
@given(st.lists(FINE, max_size=8), FINE, st.floats(0.1, 1e3))
def test_hypervolume_never_falls_with_another_point(
    points: list[tuple[float, float]], another: tuple[float, float], reference_ms: float
) -> None:
    before = hypervolume(*split(points), reference_ms=reference_ms)
    after = hypervolume(*split([*points, another]), reference_ms=reference_ms)
    assert 0.0 <= before <= after + 1e-12
    assert after < 1.0 + 1e-12


@pytest.mark.parametrize(
    ("points", "reference_accuracy", "expected"),
    [
        ([], 0.0, 0.0),
        ([(0.8, 5.0)], 0.0, 0.8 * 0.5),
        ([(0.8, 5.0), (0.8, 5.0)], 0.0, 0.8 * 0.5),
        ([(0.8, 5.0), (0.4, 2.0)], 0.0, 0.8 * 0.5 + 0.4 * 0.3),
        ([(0.8, 5.0), (0.4, 2.0)], 0.5, 0.3 * 0.5),
        ([(0.8, 5.0), (0.7, 6.0)], 0.0, 0.8 * 0.5),
        ([(0.8, 10.0)], 0.0, 0.0),
        ([(0.9, 12.0), (0.5, 5.0)], 0.0, 0.5 * 0.5),
        ([(1.0, 0.0)], 0.0, 1.0),
    ],
)
def test_hypervolume_of_hand_made_fronts(
    points: list[tuple[float, float]], reference_accuracy: float, expected: float
) -> None:
    found = hypervolume(*split(points), reference_ms=10.0, reference_accuracy=reference_accuracy)
    assert found == pytest.approx(expected)
