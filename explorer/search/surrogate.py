"""What is worth evaluating next: expected hypervolume improvement of unseen architectures. Pure numpy, no Optuna.

Accuracy and the risk of failing have Bayesian linear models over choices and pairs of choices, kept as sums, so that one
more candidate costs the same after 100 as after 3,000, and a changed one is taken out and put in again. Accuracies after
fewer epochs count in proportion to them, each rung around its own mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.signedinteger[Any]]

#: More features than this, and pairs are left out: the cost of a fit grows with the cube.
MAX_FEATURES: Final = 400
#: Noise variance over prior variance of a choice's effect and of a pair's, chosen by the evidence.
_MAIN_RIDGES: Final = (0.03, 0.3, 3.0)
_PAIR_RIDGES: Final = (0.3, 3.0, 30.0, 1e6)
#: Prior knowledge of the noise, in observations; keeps a perfect fit from being believed.
_NOISE_ROWS: Final = 1.0
#: The noise variance that they would show, as a share of the variance of what is observed.
_PRIOR_NOISE: Final = 0.05
#: The ridges are chosen again when the rows have grown by this share.
_REFIT: Final = 0.1


class Effects:
    """Bayesian linear regression on the choices of a point and their pairs, in sums (Bishop 2006, section 3.3 and 3.5).

    A point is its choices' indices. `sizes`: number of choices of every dimension.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        groups: list[tuple[int, ...]] = [(dimension,) for dimension in range(len(sizes))]
        pairs = list(itertools.combinations(range(len(sizes)), 2))
        self.num_main = sum(sizes)
        if self.num_main + sum(sizes[a] * sizes[b] for a, b in pairs) <= MAX_FEATURES:
            groups += pairs
        self._sizes, self._groups = tuple(sizes), groups
        self._offsets = [0, *itertools.accumulate(math.prod(sizes[d] for d in group) for group in groups)]
        self._rungs: dict[int, _Sums] = {}
        self._rows: dict[str, tuple[Codes, float, int]] = {}
        self._ridges: tuple[float, float] | None = None
        self._chosen_at = 0

    def __len__(self) -> int:
        return len(self._rows)

    def learn(self, arch_id: str, codes: Codes, value: float, rung: int = 1) -> None:
        """Adds an observation, in place of an earlier one of the same architecture. `rung`: epochs behind it."""
        self.forget(arch_id)
        columns = self._columns(codes[None, :])[0].astype(np.int32)  # thousands are kept
        self._rungs.setdefault(rung, _Sums(self._offsets[-1])).add(columns, value, 1)
        self._rows[arch_id] = (columns, value, rung)

    def forget(self, arch_id: str) -> None:
        """Takes an architecture's observation out, if there is one."""
        if arch_id in self._rows:
            columns, value, rung = self._rows.pop(arch_id)
            self._rungs[rung].add(columns, value, -1)
            if not self._rungs[rung].count:
                del self._rungs[rung]

    def predict(self, codes: Codes) -> tuple[Array, Array]:
        """Mean and standard deviation of what would be observed at points (rows x dimensions) on the largest rung."""
        top = self._rungs[max(self._rungs)]
        weights = {rung: rung / max(self._rungs) for rung in self._rungs}
        gram = sum(weights[rung] * sums.centred_gram for rung, sums in self._rungs.items())
        moment = sum(weights[rung] * sums.centred_moment for rung, sums in self._rungs.items())
        square = float(sum(weights[rung] * sums.centred_square for rung, sums in self._rungs.items()))
        num_rows = float(sum(weights[rung] * sums.count for rung, sums in self._rungs.items()))
        assert isinstance(gram, np.ndarray)
        assert isinstance(moment, np.ndarray)
        if self._ridges is None or len(self) >= self._chosen_at * (1 + _REFIT):
            self._ridges = self._best_ridges(gram, moment, square, num_rows)
            self._chosen_at = len(self)
        precision = self._precision(self._ridges, gram)
        inverse = np.linalg.inv(precision)
        coefficients = inverse @ moment
        noise = _noise(square, moment, coefficients, num_rows)
        columns = self._columns(codes)
        rows = np.zeros((len(codes), self._offsets[-1]))
        rows[np.arange(len(codes))[:, None], columns] = 1.0
        rows -= top.features / top.count
        spread = np.einsum("ij,ij->i", rows @ inverse, rows)
        return top.total / top.count + rows @ coefficients, np.sqrt(noise * (1 + 1 / top.count + spread))

    def chance_below(self, level: float, codes: Codes) -> Array:
        """Probability that less than `level` would be observed."""
        mean, deviation = self.predict(codes)
        return _normal_cdf((level - mean) / np.maximum(deviation, 1e-12))

    def _columns(self, codes: Codes) -> Codes:
        columns = np.empty((len(codes), len(self._groups)), dtype=np.int64)
        for index, group in enumerate(self._groups):
            column = codes[:, group[0]]
            for dimension in group[1:]:
                column = column * self._sizes[dimension] + codes[:, dimension]
            columns[:, index] = self._offsets[index] + column
        return columns

    def _best_ridges(self, gram: Array, moment: Array, square: float, num_rows: float) -> tuple[float, float]:
        has_pairs = len(self._groups) > len(self._sizes)
        choices = itertools.product(_MAIN_RIDGES, _PAIR_RIDGES if has_pairs else _PAIR_RIDGES[:1])
        return max(choices, key=lambda ridges: self._evidence(ridges, gram, moment, square, num_rows))

    def _precision(self, ridges: tuple[float, float], gram: Array) -> Array:
        return gram + np.diag(self._ridge(ridges))

    def _ridge(self, ridges: tuple[float, float]) -> Array:
        return np.repeat(ridges, [self.num_main, self._offsets[-1] - self.num_main])

    def _evidence(
        self, ridges: tuple[float, float], gram: Array, moment: Array, square: float, num_rows: float
    ) -> float:
        """Log evidence up to a constant."""
        precision = self._precision(ridges, gram)
        log_determinant = 2 * float(np.log(np.diagonal(np.linalg.cholesky(precision))).sum())
        log_prior = float(np.log(self._ridge(ridges)).sum())
        noise = _noise(square, moment, np.asarray(np.linalg.solve(precision, moment), dtype=np.float64), num_rows)
        return -0.5 * ((num_rows + _NOISE_ROWS) * math.log(noise) + log_determinant - log_prior)


def _noise(square: float, moment: Array, coefficients: Array, num_rows: float) -> float:
    """Noise variance: what is left of the sum of squares, and the prior's share."""
    left = max(square - float(moment @ coefficients), 0.0)
    return (left + _NOISE_ROWS * (_PRIOR_NOISE * square / num_rows + 1e-12)) / (num_rows + _NOISE_ROWS)


class _Sums:
    """Sums over the observations of one rung."""

    def __init__(self, num_features: int) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.features, self.moment = np.zeros(num_features), np.zeros(num_features)
        self.gram = np.zeros((num_features, num_features))

    def add(self, columns: Codes, value: float, sign: int) -> None:
        self.count += sign
        self.total += sign * value
        self.squares += sign * value**2
        self.features[columns] += sign
        self.moment[columns] += sign * value
        self.gram[np.ix_(columns, columns)] += sign

    @property
    def centred_gram(self) -> Array:
        return self.gram - np.outer(self.features, self.features) / self.count

    @property
    def centred_moment(self) -> Array:
        return self.moment - self.features * (self.total / self.count)

    @property
    def centred_square(self) -> float:
        return max(self.squares - self.total**2 / self.count, 0.0)


def expected_improvement(
    accuracy: tuple[Array, Array],
    latency_ms: tuple[Array, Array],
    front: Sequence[tuple[float, float]],
    reference: tuple[float, float],
) -> Array:
    """Expected growth of the hypervolume, in accuracy x ms, exact for two independent normal objectives.

    `accuracy` and `latency_ms`: means and standard deviations. `front`: (accuracy, latency_ms) by rising latency, and
    accuracy. `reference`: (accuracy, latency_ms) that volume is counted from. Between two neighbours of the front the
    volume gained is (accuracy above the left one) x (time by which the latency undercuts the right one, within the strip):
    the sum over strips of two products (Emmerich et al. 2011 in two dimensions).
    """
    floor, ceiling_ms = reference
    inside = [(a, ms) for a, ms in front if a > floor and ms < ceiling_ms]
    levels = np.array([floor, *(a for a, _ in inside)])
    ends_ms = np.array([*(ms for _, ms in inside), ceiling_ms])
    gains = _expected_excess(accuracy[0][:, None], accuracy[1][:, None], levels)
    # E[(end - latency)+]: a latency mirrored at 0 exceeds the mirrored end.
    undercuts = _expected_excess(-latency_ms[0][:, None], latency_ms[1][:, None], -ends_ms)
    return np.asarray((gains * np.diff(undercuts, axis=1, prepend=0.0)).sum(axis=1))


def _expected_excess(mean: Array, deviation: Array, level: Array) -> Array:
    """E[(Y - level)+] of a normal Y."""
    deviation = np.maximum(deviation, 1e-12)
    z = (mean - level) / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return np.asarray(deviation * (z * _normal_cdf(z) + density)).clip(0.0)


def _normal_cdf(z: Array) -> Array:
    """Abramowitz and Stegun 26.2.17: within 7.5e-8."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * series
    return np.asarray(np.where(z >= 0, 1 - tail, tail))
