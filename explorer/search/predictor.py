"""Latency of architectures never measured, from those that were: ridge regression over per-block costs. Pure numpy.

A network's latency is close to the sum of its blocks', and a block's depends on its stage, window, shift and norm: the
features are, for every stage, its depth under what its blocks are. Feature set, scale and strength of the ridge are chosen
by leave-one-out error, which ridge regression has in closed form (Hastie et al. 2009, section 7.10). A prediction is never
a measurement: it orders what is measured next.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from explorer.arch import NUM_STAGES, Arch

#: Fewer rows cannot tell the constant from the blocks of a space with a choice in every stage.
MIN_ROWS: Final = 8
#: Penalties on squared coefficients; the features are block counts, so a coefficient is the cost of one block.
RIDGES: Final = (1e-6, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Array = NDArray[np.float64]
_FeatureSet = Literal["per-block additive", "per-block additive with norm", "per-block pairwise"]
_FEATURE_SETS: Final[tuple[_FeatureSet, ...]] = (
    "per-block additive",
    "per-block additive with norm",
    "per-block pairwise",
)
_Key = tuple[object, ...]


class PredictionError(NamedTuple):
    """Relative leave-one-out error, as shares of the measured latency: median of the absolute values, root mean square."""

    median: float
    rms: float


@dataclass(frozen=True)
class LatencyPredictor:
    """A fitted model. `name` says which; `error` is its leave-one-out error over `num_rows` latencies.

    The model is the one of smallest error among 36, so its error leans a little low.
    """

    name: str
    error: PredictionError
    num_rows: int
    _feature_set: _FeatureSet
    _is_log: bool
    _columns: dict[_Key, int]
    _means: Array
    _coefficients: Array
    _constant: float

    @staticmethod
    def fit(rows: Sequence[tuple[Arch, float]]) -> LatencyPredictor | None:
        """The best model of `rows` (architecture, milliseconds above 0); None with fewer than MIN_ROWS.

        Architectures must differ in depths, windows, shifts and norm alone. Cost: rows x features^2.
        """
        if len(rows) < MIN_ROWS:
            return None
        latencies_ms = np.array([latency_ms for _, latency_ms in rows])
        fitted = (_fit(rows, latencies_ms, feature_set) for feature_set in _FEATURE_SETS)
        return min(fitted, key=lambda model: model.error.rms)

    def predict(self, arch: Arch) -> float:
        """Predicted latency in milliseconds, above 0."""
        row = np.zeros(len(self._columns))
        for key, value in _features(arch.canonical(), self._feature_set):
            if key in self._columns:
                row[self._columns[key]] = value
        prediction = self._constant + float((row - self._means) @ self._coefficients)
        return float(np.exp(prediction)) if self._is_log else max(prediction, 1e-9)

    def describe(self) -> str:
        """One line for people."""
        return (
            f"ridge, {self.name}: leave-one-out error {self.error.median:.1%} (median), {self.error.rms:.1%} (rms) of "
            f"{self.num_rows} latencies"
        ).replace("%", " %")


def ridge_path(matrix: Array, targets: Array, ridges: Sequence[float]) -> list[tuple[Array, Array]]:
    """For every ridge the coefficients and the leave-one-out predictions of linear regression with a free constant.

    `matrix`: rows x features, `targets`: rows x targets. The constant is not penalised. One eigendecomposition serves all.
    """
    centred, centred_targets = matrix - matrix.mean(axis=0), targets - targets.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred)
    eigenvalues = np.maximum(eigenvalues, 0.0)[:, None]
    projected = centred @ vectors
    moments, squares = projected.T @ centred_targets, projected**2
    path = []
    for ridge in ridges:
        rotated = moments / (eigenvalues + ridge)
        leverage = 1 / len(targets) + squares @ (1 / (eigenvalues + ridge))
        residuals = centred_targets - projected @ rotated
        path.append((vectors @ rotated, targets - residuals / np.maximum(1 - leverage, 1e-9)))
    return path


def _fit(rows: Sequence[tuple[Arch, float]], latencies_ms: Array, feature_set: _FeatureSet) -> LatencyPredictor:
    columns, matrix = _matrix([arch.canonical() for arch, _ in rows], feature_set)
    targets = np.stack([latencies_ms, np.log(latencies_ms)], axis=1)
    best: tuple[PredictionError, bool, Array] | None = None
    for coefficients, predictions in ridge_path(matrix, targets, RIDGES):
        # A fold may lack all that a row is made of: its prediction is bounded, or one such fold would decide.
        logs = np.clip(predictions[:, 1], targets[:, 1].min() - 3, targets[:, 1].max() + 3)
        for is_log, left_out_ms in ((False, predictions[:, 0]), (True, np.exp(logs))):
            relative = np.abs(left_out_ms / latencies_ms - 1)
            error = PredictionError(float(np.median(relative)), float(np.sqrt(np.mean(relative**2))))
            if best is None or error.rms < best[0].rms:
                best = error, is_log, coefficients[:, int(is_log)]
    assert best is not None
    error, is_log, chosen = best
    return LatencyPredictor(
        name=feature_set + (" in log latency" if is_log else ""),
        error=error,
        num_rows=len(rows),
        _feature_set=feature_set,
        _is_log=is_log,
        _columns=columns,
        _means=matrix.mean(axis=0),
        _coefficients=chosen,
        _constant=float(targets[:, int(is_log)].mean()),
    )


def _matrix(archs: Sequence[Arch], feature_set: _FeatureSet) -> tuple[dict[_Key, int], Array]:
    columns: dict[_Key, int] = {}
    entries = [
        [(columns.setdefault(key, len(columns)), value) for key, value in _features(arch, feature_set)]
        for arch in archs
    ]
    matrix = np.zeros((len(archs), len(columns)))
    for row, filled in zip(matrix, entries, strict=True):
        for column, value in filled:
            row[column] = value
    return columns, matrix


def _features(arch: Arch, feature_set: _FeatureSet) -> list[tuple[_Key, float]]:
    """Named values of a canonical architecture: block counts, and the norm for what is outside the blocks."""
    kinds = [(arch.windows[stage], arch.shifts[stage]) for stage in range(NUM_STAGES)]
    features: list[tuple[_Key, float]] = [(("br",), float(arch.br))]
    for stage, (depth, kind) in enumerate(zip(arch.depths, kinds, strict=True)):
        features.append(((stage, "blocks"), depth))
        features.append(((stage, "br blocks"), depth * float(arch.br)))
        features.append(((stage, *kind), depth))
        if feature_set != "per-block additive":
            features.append(((stage, *kind, arch.br), depth))
    if feature_set == "per-block pairwise":
        for first, second in itertools.combinations(range(NUM_STAGES), 2):
            features.append(((first, *kinds[first], second, *kinds[second]), 1.0))
    return features
