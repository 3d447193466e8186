"""The latency predictor: exact where latency is additive, honest about its error, silent with too little to go by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from explorer.arch import Arch
from explorer.search.predictor import MIN_ROWS, LatencyPredictor, ridge_path
from explorer.space import Space


@pytest.fixture(scope="module")
def archs() -> list[Arch]:
    every = list(Space.load("swinfree.yaml").archs())
    return [every[index] for index in np.random.default_rng(0).permutation(len(every))]


def additive_ms(arch: Arch) -> float:
    """A constant and a cost for every block that depends on its stage, window, shift and norm."""
    cost = 0.0
    for stage, (depth, window, shift) in enumerate(zip(arch.depths, arch.windows, arch.shifts, strict=True)):
        cost += depth * (0.3 / (stage + 1) + 0.01 * window / (stage + 1) + 0.05 * shift + 0.02 * (not arch.br))
    return 1.5 + cost


def test_additive_latencies_are_recovered(archs: list[Arch]) -> None:
    model = LatencyPredictor.fit([(arch, additive_ms(arch)) for arch in archs[:60]])
    assert model is not None
    for arch in archs[60:]:
        assert model.predict(arch) == pytest.approx(additive_ms(arch), rel=1e-4)
    assert model.error.rms < 1e-4
    assert model.num_rows == 60


def test_multiplicative_latencies_are_followed_in_the_logarithm(archs: list[Arch]) -> None:
    def latency_ms(arch: Arch) -> float:
        return float(np.exp(0.05 * arch.depth3 + 0.2 * (arch.windows[0] == 14) - 0.3 * arch.br + 0.1 * arch.shifts[1]))

    model = LatencyPredictor.fit([(arch, latency_ms(arch)) for arch in archs[:60]])
    assert model is not None
    assert model.name.endswith("in log latency")
    assert model.predict(archs[100]) == pytest.approx(latency_ms(archs[100]), rel=1e-3)


def test_reported_error_is_that_of_latencies_never_seen(archs: list[Arch]) -> None:
    noise = np.random.default_rng(1).normal(0, 0.03, len(archs))
    rows = [(arch, additive_ms(arch) * (1 + error)) for arch, error in zip(archs, noise, strict=True)]
    model = LatencyPredictor.fit(rows[:100])
    assert model is not None
    unseen = np.array([model.predict(arch) / latency_ms - 1 for arch, latency_ms in rows[100:]])
    assert model.error.rms == pytest.approx(np.sqrt(np.mean(unseen**2)), rel=0.25)
    assert 0.02 < model.error.rms < 0.05
    assert model.error.median < model.error.rms


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_leave_one_out_error_is_that_of_leaving_every_row_out(ridge: float) -> None:
    generator = np.random.default_rng(2)
    matrix, values = generator.normal(size=(15, 4)), generator.normal(size=(15, 2))
    ((_, predictions),) = ridge_path(matrix, values, [ridge])
    for index in range(15):
        rest = np.arange(15) != index
        ((coefficients, _),) = ridge_path(matrix[rest], values[rest], [ridge])
        expected = values[rest].mean(axis=0) + (matrix[index] - matrix[rest].mean(axis=0)) @ coefficients
        assert predictions[index].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_too_few_latencies_give_no_predictor(archs: list[Arch]) -> None:
    rows = [(arch, additive_ms(arch)) for arch in archs[:MIN_ROWS]]
    assert LatencyPredictor.fit(rows[:-1]) is None
    assert LatencyPredictor.fit(rows) is not None


def test_predictions_are_above_zero_and_know_nothing_of_spelling(archs: list[Arch]) -> None:
    rows = [(arch, 1e-3 * additive_ms(arch)) for arch in archs[:20]]
    model = LatencyPredictor.fit(rows)
    assert model is not None
    assert all(model.predict(arch) > 0 for arch in archs)
    spelled = replace(archs[0], shifts=(*archs[0].shifts[:3], True))  # one window covers stage 4: the same network
    assert model.predict(spelled) == model.predict(archs[0])


def test_description_states_error_and_number_of_latencies(archs: list[Arch]) -> None:
    model = LatencyPredictor.fit([(arch, additive_ms(arch)) for arch in archs[:57]])
    assert model is not None
    assert model.describe() == (f"ridge, {model.name}: leave-one-out error 0.0 % (median), 0.0 % (rms) of 57 latencies")
