"""How well scores order networks whose order is known. Pure numpy; higher scores are taken as better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from explorer.fidelity.truth import Pair, Truth

#: Score of a training that diverged.
LOST: Final = float("-inf")
#: Bootstrap samples of the seeds, and the share of them that an interval holds.
NUM_DRAWS: Final = 2_000
CONFIDENCE: Final = 0.95
#: Decimals of a mean: far below one image of a million, far above rounding.
_DIGITS: Final = 12

_Scores = NDArray[np.float64]


@dataclass(frozen=True)
class WrongPair:
    """A pair that is ranked the other way round, or tied; `better` and `worse` are ids, the scores theirs."""

    better: str
    worse: str
    better_score: float
    worse_score: float

    @property
    def is_tie(self) -> bool:
        """Whether both scores are the same."""
        return self.better_score == self.worse_score


@dataclass(frozen=True)
class Ranking:
    """What scores say of a truth.

    `concordance`: share of the `num_pairs` pairs in their right order, ties counted half; `interval` holds 95 % of the
    bootstrap over seeds. `tau_b`: Kendall's, pairs of unknown order being ties of the truth. `wrong`: those not in order.
    `stated_concordance` and the like: of single comparisons, which the figures before leave out. `best_ids`: the networks
    with the highest score; `regret`: how far the level of the worst of them lies below the best level of all. `missing`:
    ids without a score, whose pairs count nowhere. `inseparable`: pairs whose proxies are one network, which count nowhere
    either. What cannot be computed is None.
    """

    truth: str
    num_pairs: int
    concordance: float | None
    interval: tuple[float, float] | None
    tau_b: float | None
    tau_b_interval: tuple[float, float] | None
    wrong: tuple[WrongPair, ...]
    num_stated: int
    stated_concordance: float | None
    stated_wrong: tuple[WrongPair, ...]
    best_ids: tuple[str, ...]
    regret: float | None
    missing: tuple[str, ...]
    inseparable: tuple[Pair, ...]


def rank_report(
    truth: Truth,
    scores: Mapping[str, Sequence[float]],
    *,
    proxies: Mapping[str, str] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Ranking:
    """How scores (one a seed, by the network's id; `LOST` where a training diverged) order the networks of `truth`.

    A network's score is the mean over its seeds, in which a lost one counts 0; where all are lost it lies below everything. One
    with a NaN (a training-free score that overflowed) is missing.
    `proxies`: what was trained for each, by id; two networks with one proxy cannot be told apart. The bootstrap draws every
    proxy's seeds anew, from `seed`; there is none where all have fewer than two.
    """
    stand_ins = {arch.id: (proxies or {}).get(arch.id, arch.id) for arch in truth.archs}
    given = {arch_id: np.asarray(scores.get(arch_id, ()), float) for arch_id in stand_ins}
    known = {arch_id: values for arch_id, values in given.items() if len(values) and not np.isnan(values).any()}
    inseparable = tuple(pair for pair in truth.pairs if stand_ins[pair.better] == stand_ins[pair.worse])
    counted = [p for p in truth.pairs if p not in inseparable and p.better in known and p.worse in known]
    main, stated = ([p for p in counted if (p.kind == "stated") == wanted] for wanted in (False, True))
    means = {arch_id: _means(values[None]) for arch_id, values in known.items()}
    draws = _drawn(known, stand_ins, num_draws, seed)
    concordance, tau_b = _concordance(main, means), _tau_b(main, means)
    best_ids, regret = _top(truth, means)
    return Ranking(
        truth.name,
        len(main),
        None if concordance is None else float(concordance[0]),
        _interval(None if draws is None else _concordance(main, draws)),
        None if tau_b is None or np.isnan(tau_b[0]) else float(tau_b[0]),
        _interval(None if draws is None else _tau_b(main, draws)),
        _wrong(main, means),
        len(stated),
        None if not stated else float(_concordance(stated, means)[0]),  # type: ignore[index]
        _wrong(stated, means),
        best_ids,
        regret,
        tuple(arch_id for arch_id in stand_ins if arch_id not in known),
        inseparable,
    )


def _means(values: _Scores) -> _Scores:
    """(draws, seeds) -> (draws,) means; a lost score counts 0, as no image is classified. Rounded, so that ties are ties."""
    is_lost = np.isneginf(values)
    means: _Scores = np.where(is_lost.all(1), LOST, np.where(is_lost, 0.0, values).mean(1).round(_DIGITS))
    return means


def _drawn(
    scores: Mapping[str, _Scores], stand_ins: Mapping[str, str], num_draws: int, seed: int
) -> dict[str, _Scores] | None:
    """(num_draws,) means of seeds drawn with replacement, for every network; one draw a proxy."""
    if all(len(values) < 2 for values in scores.values()):
        return None
    generator, drawn = np.random.default_rng(seed), dict[str, _Scores]()
    for arch_id, values in scores.items():
        if stand_ins[arch_id] not in drawn:
            drawn[stand_ins[arch_id]] = _means(values[generator.integers(len(values), size=(num_draws, len(values)))])
    return {arch_id: drawn[stand_ins[arch_id]] for arch_id in scores}


def _signs(pairs: Sequence[Pair], means: Mapping[str, _Scores]) -> NDArray[np.int8]:
    """(pairs, draws) 1 where in order, 0 where tied, -1 where the other way round."""
    better, worse = (np.array([means[getattr(pair, side)] for pair in pairs]) for side in ("better", "worse"))
    return (better > worse).astype(np.int8) - (better < worse).astype(np.int8)


def _concordance(pairs: Sequence[Pair], means: Mapping[str, _Scores]) -> _Scores | None:
    """(draws,) share in order, ties counted half."""
    if not pairs:
        return None
    concordance: _Scores = (_signs(pairs, means).mean(0) + 1) / 2
    return concordance


def _tau_b(pairs: Sequence[Pair], means: Mapping[str, _Scores]) -> _Scores | None:
    """(draws,) Kendall's tau-b between the scores and the known order of the networks in `pairs`; NaN where all tie."""
    if not pairs:
        return None
    ids = sorted({arch_id for pair in pairs for arch_id in (pair.better, pair.worse)})
    values = np.array([means[arch_id] for arch_id in ids])
    upper = np.triu_indices(len(ids), 1)
    num_untied = (values[upper[0]] != values[upper[1]]).sum(0)
    ordered = _signs(pairs, means).sum(0, dtype=np.int64)
    tau_b: _Scores = np.full(ordered.shape, np.nan)
    np.divide(ordered, np.sqrt(len(pairs) * num_untied), out=tau_b, where=num_untied > 0)
    return tau_b


def _interval(values: _Scores | None) -> tuple[float, float] | None:
    if values is None or np.isnan(values).any():
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _wrong(pairs: Sequence[Pair], means: Mapping[str, _Scores]) -> tuple[WrongPair, ...]:
    found = [WrongPair(p.better, p.worse, float(means[p.better][0]), float(means[p.worse][0])) for p in pairs]
    return tuple(pair for pair in found if pair.better_score <= pair.worse_score)


def _top(truth: Truth, means: Mapping[str, _Scores]) -> tuple[tuple[str, ...], float | None]:
    """The networks with the highest score among those with a level, and how far the worst of them is from the best level."""
    ranked = [arch.id for arch in truth.archs if arch.id in means and arch.id in truth.levels]
    if not ranked:
        return (), None
    highest = max(means[arch_id][0] for arch_id in ranked)
    best = tuple(arch_id for arch_id in ranked if means[arch_id][0] == highest)
    regret = max(truth.levels[arch_id] for arch_id in ranked) - min(truth.levels[arch_id] for arch_id in best)
    return best, float(regret) if np.isfinite(regret) else None
