"""How good are the proposals? Hypervolume over different architectures, ours against Optuna as a plain user calls it.

Every table holds accuracy and latency of all architectures of a space, so that the true front is known:

- `synthetic`: made here, see `synthetic_table`; deterministic.
- `synthetic-noisy`: the same, but a sampler sees accuracies with normal noise of 0.3 standard deviations of the table's
  accuracies; what it found is counted with the exact ones.
- every `benchmarks/tables/NAME.csv` with the space file `NAME.yaml` beside it: recorded by the product. Its accuracies are
  what was trained, one seed, so its front holds lucky ones that no model can foresee. The `oracle` row says how much of
  that there is: it orders what is left by the same expected improvement, knowing all latencies, and of the accuracies
  what the same model makes of all of them.

Plain: `RandomSampler()`, `TPESampler()` and `NSGAIISampler()` with their defaults and a seed, on the raw choices (windows of
stages 1 to 3, shifts of stages 1 to 4, br, depth3; 1,280 points), canonical only for counting: a repeat is free for them.
Ours: as a search does, the base and the presets inside the space first, then `Proposer`; `tpe-alone` is the default without these
known networks.

Hypervolume counts up to twice the base's latency and from the lowest accuracy of the table, relative to the true front's.
`leave-one-out` rows compare the latency predictor with scikit-learn's GradientBoostingRegressor on the same rows.
`ask` rows time one ask of the default with so many candidates known, and the share of it that is not Optuna's sampler.

    python benchmarks/search_quality.py [--seeds 20] [--tables synthetic ...] [--samplers tpe plain-tpe ...]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from common import report

from explorer import pareto
from explorer.arch import Arch
from explorer.records import Candidate, Latency, Score
from explorer.search.predictor import LatencyPredictor
from explorer.search.sampling import SAMPLERS, Proposer
from explorer.search.surrogate import Effects, expected_improvement
from explorer.space import Space

TABLES = Path(__file__).parent / "tables"
COUNTS = (50, 70, 100, 200)
PLAIN = ("plain-random", "plain-tpe", "plain-nsgaii")
ALONE = "tpe-alone"
OURS = (*(sampler for sampler in SAMPLERS if sampler != "brute"), ALONE)
ORACLE = "oracle"
#: `gp` needs most of a second an ask: fewer seeds for it, as its rows say.
MAX_SEEDS = {"gp": 2}
NOISE = 0.3
#: A plain sampler that keeps to what it knows is not asked forever.
MAX_ASKS = 1000
GOAL_AT_200, GOAL_REACHED_AT = 0.999, 70


@dataclass(frozen=True)
class Table:
    """Exact accuracy and latency by architecture id; `noise` is the standard deviation of what a sampler sees."""

    name: str
    space: Space
    archs: dict[str, Arch]
    values: dict[str, tuple[float, float]]
    noise: float = 0.0

    @property
    def reference(self) -> dict[str, float]:
        base = self.values.get(self.space.base.canonical().id)
        latencies = [latency_ms for _, latency_ms in self.values.values()]
        return {
            "reference_ms": 2 * base[1] if base else 2 * statistics.median(latencies),
            "reference_accuracy": min(accuracy for accuracy, _ in self.values.values()),
        }

    def hypervolume(self, ids: list[str]) -> float:
        values = [self.values[arch_id] for arch_id in ids]
        return pareto.hypervolume([a for a, _ in values], [ms for _, ms in values], **self.reference)

    def seen(self, seed: int) -> dict[str, tuple[float, float]]:
        """What a sampler is told: one draw of the noise for every architecture."""
        noise = (
            np.random.default_rng(seed).normal(0.0, self.noise, len(self.values))
            if self.noise
            else itertools.repeat(0.0)
        )
        return {
            arch_id: (accuracy + float(error), latency_ms)
            for (arch_id, (accuracy, latency_ms)), error in zip(self.values.items(), noise, strict=False)
        }


def synthetic_table(noise_share: float, name: str) -> Table:
    """A table over swinfree.yaml's 480 architectures with a front that follows from these formulas.

    Latency = 0.4 + sum over blocks of stage_cost x window_factor x (1 + shift) + norm, in ms: stage_cost (0.30, 0.22, 0.15,
    0.12), window_factor 1 for 7 and 1.35, 1.25, 1.15 for 14 in stages 1 to 3, shift 0.12, norm 0.03, 0.004 with br.
    Accuracy = 0.6 + depth 0.04 x (1 - exp(-(depth3 - 8) / 5)) + stages (gains of `14`, `7 shifted`, `14 shifted` over `7`:
    0.004, 0.006, 0.0075; 0.006, 0.008, 0.0115; 0.016, 0.013) - 0.007 br + interactions: large windows in stages 1 and 2
    -0.003, no shift in any stage -0.012, br with depth 18 -0.004, br with window 14 in stage 3 +0.003, large window in stage
    3 with depth below 14 -0.003, and a ripple of 0.001 x sin(2.1 x stage1 + 3.7 x stage2 + 1.3 x stage3 x depth3 / 4 + br)
    over the positions of the choices, which no model of pairs can follow.
    """
    space = Space.load("swinfree.yaml")
    archs = {arch.id: arch for arch in space.archs()}
    values = {arch_id: (_accuracy(arch), _latency_ms(arch)) for arch_id, arch in archs.items()}
    deviation = statistics.pstdev(accuracy for accuracy, _ in values.values())
    return Table(name, space, archs, values, noise_share * deviation)


def _latency_ms(arch: Arch) -> float:
    costs, factors = (0.30, 0.22, 0.15, 0.12), (1.35, 1.25, 1.15, 1.0)
    blocks = (
        depth * (cost * (factor if window == 14 else 1.0) * (1 + 0.12 * shift) + (0.004 if arch.br else 0.03))
        for depth, cost, factor, window, shift in zip(
            arch.depths, costs, factors, arch.windows, arch.shifts, strict=True
        )
    )
    return 0.4 + sum(blocks)


def _accuracy(arch: Arch) -> float:
    large = [window == 14 for window in arch.windows]
    gains = ((0.0, 0.006, 0.004, 0.0075), (0.0, 0.008, 0.006, 0.0115), (0.0, 0.013, 0.016, 0.016))
    positions = [2 * is_large + shift for is_large, shift in zip(large, arch.shifts, strict=True)][:3]
    accuracy = 0.6 + 0.04 * (1 - np.exp(-(arch.depth3 - 8) / 5)) - 0.007 * arch.br
    accuracy += sum(stage[position] for stage, position in zip(gains, positions, strict=True))
    accuracy += (
        -0.003 * (large[0] and large[1]) - 0.012 * (not any(arch.shifts)) - 0.004 * (arch.br and arch.depth3 == 18)
    )
    accuracy += 0.003 * (arch.br and large[2]) - 0.003 * (large[2] and arch.depth3 < 14)
    phase = 2.1 * positions[0] + 3.7 * positions[1] + 1.3 * positions[2] * arch.depth3 / 4 + arch.br
    return float(accuracy + 0.001 * np.sin(phase))


def recorded_table(path: Path) -> Table:
    """A table of `swinexplore table`: the rows of the most epochs; every architecture of the space must be there."""
    space = Space.load(path.with_suffix(".yaml"))
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    archs, values = {}, {}
    for row in sorted(rows, key=lambda row: int(row.get("epochs") or 0)):
        arch = replace(
            space.base,
            windows=tuple(map(int, row["windows"].split("-"))),
            shifts=tuple(shift == "1" for shift in row["shifts"].split("-")),
            br=row["br"] == "1",
            depths=(*space.base.depths[:2], int(row["depth3"]), space.base.depths[3]),
        ).canonical()
        if row["accuracy"]:
            archs[arch.id], values[arch.id] = arch, (float(row["accuracy"]), float(row["latency_ms"]))
    missing = {arch.id: arch.name for arch in space.archs() if arch.id not in values}
    if missing:
        raise SystemExit(f"{path}: {len(missing)} architectures are missing, as {next(iter(missing.values()))}")
    return Table(path.stem, space, archs, values)


def tables() -> dict[str, Callable[[], Table]]:
    made: dict[str, Callable[[], Table]] = {
        "synthetic": lambda: synthetic_table(0.0, "synthetic"),
        "synthetic-noisy": lambda: synthetic_table(NOISE, "synthetic-noisy"),
    }
    recorded = {path.stem: path for path in sorted(TABLES.glob("*.csv")) if path.with_suffix(".yaml").is_file()}
    return made | {name: lambda path=path: recorded_table(path) for name, path in recorded.items()}  # type: ignore[misc]


def candidate(arch: Arch, accuracy: float, latency_ms: float) -> Candidate:
    latency = Latency(arch.id, "table", latency_ms, latency_ms, latency_ms, 0.0, 1, (latency_ms,), True, 0.0, 0.0)
    return Candidate(arch, "complete", latency, (Score(arch.id, "table", "table", 1, 0, accuracy, 0.0),))


def run_ours(table: Table, sampler: str, seed: int, count: int) -> tuple[list[str], list[float]]:
    """Ids in the order of evaluation, and seconds of every ask."""
    seen, order, seconds = table.seen(seed), [], []
    known = [] if sampler == ALONE else [arch for arch in table.space.known_networks() if table.space.holds(arch)]
    proposer = Proposer(table.space, "tpe" if sampler == ALONE else sampler, seed, [], None)
    for arch in known:
        proposer.expect(arch)
    while len(order) < count:
        start = time.perf_counter()
        arch = known.pop(0) if known else proposer.propose()
        seconds.append(time.perf_counter() - start)
        if arch is None:
            break
        order.append(arch.id)
        proposer.learn(candidate(arch, *seen[arch.id]))
    return order, seconds


def run_oracle(table: Table, seed: int, count: int) -> tuple[list[str], list[float]]:
    """What would be evaluated by one who knows more than can be known before; the seed is that of the noise alone."""
    space, seen, ids = table.space, table.seen(seed), list(table.values)
    points = [space.point(table.archs[arch_id]) for arch_id in ids]
    codes = np.array([[d.choices.index(point[d.name]) for d in space.dimensions] for point in points if point])
    effects = Effects([len(dimension.choices) for dimension in space.dimensions])
    for arch_id, row in zip(ids, codes, strict=True):
        effects.learn(arch_id, row, seen[arch_id][0])
    accuracies, latencies = effects.predict(codes), np.array([seen[arch_id][1] for arch_id in ids])
    floor, ceiling_ms = min(accuracy for accuracy, _ in seen.values()), table.reference["reference_ms"]
    order: list[int] = []
    while len(order) < count:
        known = [seen[ids[index]] for index in order]
        front = [known[index] for index in pareto.front([a for a, _ in known], [ms for _, ms in known])]
        scores = expected_improvement(accuracies, (latencies, 1e-3 * latencies), front, (floor, ceiling_ms))
        scores[order] = -1.0
        order.append(int(np.argmax(scores)))
    return [ids[index] for index in order], [0.0]


def run_plain(table: Table, sampler: str, seed: int, count: int, ids: dict[Any, str]) -> tuple[list[str], list[float]]:
    """Ids in the order in which they were first met, and seconds of every ask."""
    made = {
        "plain-random": optuna.samplers.RandomSampler,
        "plain-tpe": optuna.samplers.TPESampler,
        "plain-nsgaii": optuna.samplers.NSGAIISampler,
    }[sampler](seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=made)
    seen, order, seconds, space = table.seen(seed), {}, [], table.space
    for _ in range(MAX_ASKS):
        start = time.perf_counter()
        trial = study.ask()
        windows = tuple(trial.suggest_categorical(f"window_stage{i}", space.windows[i - 1]) for i in (1, 2, 3))
        shifts = tuple(trial.suggest_categorical(f"shift_stage{i}", space.shifts[i - 1]) for i in (1, 2, 3, 4))
        br, depth3 = trial.suggest_categorical("br", space.br), trial.suggest_categorical("depth3", space.depth3)
        seconds.append(time.perf_counter() - start)
        arch_id = ids[windows, shifts, br, depth3]
        study.tell(trial, seen[arch_id])
        order.setdefault(arch_id)
        if len(order) == count:
            break
    return list(order), seconds


def raw_ids(space: Space) -> dict[Any, str]:
    """The id of every raw point's network."""
    raw = itertools.product(
        itertools.product(*space.windows[:3]), itertools.product(*space.shifts), space.br, space.depth3
    )
    return {
        (windows, shifts, br, depth3): replace(
            space.base,
            windows=(*windows, space.windows[3][0]),
            shifts=shifts,
            br=br,
            depths=(*space.base.depths[:2], depth3, space.base.depths[3]),
        ).id
        for windows, shifts, br, depth3 in raw
    }


def curves(
    table: Table, samplers: list[str], num_seeds: int, count: int
) -> Iterator[tuple[str, np.ndarray, list[float]]]:
    """For every sampler: relative hypervolume (seeds x count), and seconds of every ask."""
    true = table.hypervolume(list(table.values))
    ids = raw_ids(table.space)
    for sampler in samplers:
        rows, seconds = [], []
        for seed in range(min(num_seeds, MAX_SEEDS.get(sampler, num_seeds))):
            if sampler in PLAIN:
                order, asks = run_plain(table, sampler, seed, count, ids)
            elif sampler == ORACLE:
                order, asks = run_oracle(table, seed, count)
            else:
                order, asks = run_ours(table, sampler, seed, count)
            curve = [table.hypervolume(order[: n + 1]) / true for n in range(len(order))]
            rows.append(curve + curve[-1:] * (count - len(curve)))
            seconds += asks
        yield sampler, np.array(rows), seconds


def quality_rows(table: Table, samplers: list[str], num_seeds: int, count: int) -> list[dict[str, Any]]:
    rows, means = [], {}
    for sampler, curve, seconds in curves(table, samplers, num_seeds, count):
        means[sampler] = curve.mean(axis=0)
        row: dict[str, Any] = {"what": f"{table.name} {sampler}", "num_seeds": len(curve)}
        for at in (at for at in COUNTS if at <= count):
            row |= {f"mean_{at}": float(curve[:, at - 1].mean()), f"min_{at}": float(curve[:, at - 1].min())}
        rows.append(row | {"ask_ms": statistics.median(seconds) * 1e3})
        print(rows[-1], file=sys.stderr, flush=True)
    plain = {sampler: means[sampler][-1] for sampler in means if sampler in PLAIN}
    if plain:
        best = max(plain, key=lambda sampler: plain[sampler])
        for row, sampler in zip(rows, means, strict=True):
            reached = np.flatnonzero(means[sampler] >= plain[best])
            row |= {"best_plain": best, "best_plain_level": float(plain[best])}
            row["reaches_it_at"] = int(reached[0]) + 1 if len(reached) else None
    if "tpe" in means and count >= COUNTS[-1]:
        (ours,) = (row for row, sampler in zip(rows, means, strict=True) if sampler == "tpe")
        ours |= {"goal_200": GOAL_AT_200, "goal_reached_at": GOAL_REACHED_AT}
    return rows


def predictor_rows(table: Table, sizes: tuple[int, ...] = (20, 60, 200)) -> list[dict[str, Any]]:
    """Relative leave-one-out errors of the latency predictor and of gradient boosting, on random rows of the table."""
    from sklearn.ensemble import GradientBoostingRegressor

    rows = []
    for size in sizes:
        chosen = np.random.default_rng(size).permutation(list(table.values))[:size].tolist()
        known = [(table.archs[arch_id], table.values[arch_id][1]) for arch_id in chosen]
        model = LatencyPredictor.fit(known)
        assert model is not None
        features = np.array([[*a.windows, *a.shifts, a.br, a.depth3] for a, _ in known], dtype=float)
        latencies = np.array([latency_ms for _, latency_ms in known])
        boosted = []
        for index in range(size):
            rest = np.arange(size) != index
            fitted = GradientBoostingRegressor(random_state=0).fit(features[rest], latencies[rest])
            boosted.append(fitted.predict(features[index : index + 1])[0])
        errors = np.abs(np.array(boosted) / latencies - 1)
        unseen = [arch_id for arch_id in table.values if arch_id not in set(chosen)]
        held_out = [abs(model.predict(table.archs[a]) / table.values[a][1] - 1) for a in unseen] or [0.0]
        rows.append(
            {
                "what": f"{table.name} leave-one-out of {size}",
                "model": model.describe(),
                "ours_median": model.error.median,
                "ours_rms": model.error.rms,
                "ours_rms_of_all_others": float(np.sqrt(np.mean(np.square(held_out)))),
                "boosting_median": float(np.median(errors)),
                "boosting_rms": float(np.sqrt(np.mean(errors**2))),
            }
        )
    return rows


def ask_rows(sizes: tuple[int, ...], asks: int = 21) -> list[dict[str, Any]]:
    """One ask of the default with so many candidates known, in a space of 5,220 architectures."""
    space = replace(Space.load("swinfree-large.yaml"), depth3=tuple(range(2, 60, 2)))
    archs = list(itertools.islice(space.archs(), 0, None))
    order = np.random.default_rng(0).permutation(len(archs))
    proposer, known, rows = Proposer(space, "tpe", 0, [], None), 0, []
    for size in sizes:
        for index in order[known:size].tolist():
            proposer.learn(candidate(archs[index], _accuracy(archs[index]), _latency_ms(archs[index])))
        known = size
        proposer.propose()
        seconds, own, learned = [], [], []
        for _ in range(asks):
            start, inside = time.perf_counter(), proposer.optuna_s
            arch = proposer.propose()
            seconds.append(time.perf_counter() - start)
            own.append(seconds[-1] - (proposer.optuna_s - inside))
            assert arch is not None
            start = time.perf_counter()
            proposer.learn(candidate(arch, _accuracy(arch), _latency_ms(arch)))
            learned.append(time.perf_counter() - start)
        medians = {"ask_ms": seconds, "own_ms": own, "learn_ms": learned}
        rows.append({"what": f"ask with {size} known"} | {k: statistics.median(v) * 1e3 for k, v in medians.items()})
    return rows


def main() -> None:
    made = tables()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--count", type=int, default=COUNTS[-1], help="different architectures a run")
    parser.add_argument("--tables", nargs="+", choices=list(made), default=list(made))
    choices = [*PLAIN, *OURS, ORACLE]
    parser.add_argument("--samplers", nargs="+", choices=choices, default=choices)
    parser.add_argument(
        "--asks", nargs="*", type=int, default=[100, 1000, 3000], help="known candidates to time an ask at"
    )
    parser.add_argument("--no-predictor", action="store_true", help="leave out the comparison with scikit-learn")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("error")
    rows = []
    for name in given.tables:
        table = made[name]()
        rows += quality_rows(table, given.samplers, given.seeds, min(given.count, len(table.values)))
        if not given.no_predictor:
            rows += predictor_rows(table)
    rows += ask_rows(tuple(sorted(given.asks)))
    report("search_quality", rows, out=given.out, seeds=given.seeds, noise=NOISE, max_asks=MAX_ASKS)


if __name__ == "__main__":
    main()
