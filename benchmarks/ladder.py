"""What the ladder of epochs costs and what it loses: front of the fully trained against the front of training everyone.

    python benchmarks/ladder.py [--seeds 20] [--tables synthetic adverse benchmarks/tables/swinfree-narrow.csv] [--etas 2 3 4]

Each seed is one order in which all architectures of a table arrive. `hypervolume`: that of the candidates the rule trained to
the top, relative to that of all architectures fully trained; reference point: twice the base model's latency, and the lowest
fully trained accuracy of the table. `share`: epochs trained, of those that training everyone takes. Rules, on the same rungs
and with at most the share that a search's ladder takes: `ladder` is ours; `asha` ranks by accuracy alone (Li et al. 2020),
`random` by chance.

`synthetic`, `adverse`: the networks of spaces/swinfree.yaml. The stages' blocks cost 0.20, 0.10, 0.05 and 0.03 ms each, 15 %
more with windows of 14 tokens, 25 % more with shifts, 20 % less with BatchNorm; 1 ms comes on top. After e of 9 epochs
the accuracy is A - G exp(-(e - 1) / T) plus Gaussian noise of 0.003, with
A = 0.70 + 0.004 (depth3 - 10) + 0.012 large windows + 0.008 shifts - 0.015 br + 0.006 br shift3 - 0.006 shift1 window3=14,
G = 0.28 exp(-0.15 v), T = 3 exp(-0.25 v), where v is how fast a network learns: Gaussian of 0.15 + b br - d (depth3 - 10).
Curves cross: shallow networks and those with BatchNorm lead early. `synthetic` has b = 0.15, d = 0.01. `adverse` has b = 0.6,
d = 0.04: whole groups of networks that win in the end are behind at every lower rung, and slower too.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import report

from explorer import pareto
from explorer.evaluate.table import read_table
from explorer.search.ladder import Ladder, rungs
from explorer.space import Space

TABLES = Path(__file__).parent / "tables"
RULES = ("ladder", "asha", "random")
#: What BatchNorm adds to the speed of learning (b), and what each further block takes away (d).
SYNTHETIC = {"synthetic": (0.15, 0.01), "adverse": (0.6, 0.04)}
GOAL_HYPERVOLUME, GOAL_SHARE = 0.99, 1 / 3


@dataclass(frozen=True)
class Curves:
    """A table: accuracy by epochs and latency of every architecture."""

    name: str
    accuracy: dict[str, dict[int, float]]
    latency_ms: dict[str, float]
    base_id: str

    @property
    def epochs(self) -> int:
        return max(next(iter(self.accuracy.values())))

    def hypervolume(self, arch_ids: list[str]) -> float:
        """Of these, fully trained; the reference point is the table's."""
        full = {arch_id: curve[self.epochs] for arch_id, curve in self.accuracy.items()}
        return pareto.hypervolume(
            [full[arch_id] for arch_id in arch_ids],
            [self.latency_ms[arch_id] for arch_id in arch_ids],
            reference_ms=2 * self.latency_ms[self.base_id],
            reference_accuracy=min(full.values()),
        )

    def rank_agreement(self, epochs: int) -> float:
        """Spearman's rank correlation of the accuracies after `epochs` with those after all."""
        early, late = (np.array([curve[e] for curve in self.accuracy.values()]) for e in (epochs, self.epochs))
        return float(np.corrcoef(early.argsort().argsort(), late.argsort().argsort())[0, 1])


def synthetic(name: str) -> Curves:
    """A table whose formula stands at the top of the file."""
    lead_br, lag_depth = SYNTHETIC[name]
    chance, space = np.random.default_rng(0), Space.load("swinfree.yaml")
    accuracy, latency_ms = {}, {}
    for arch in space.archs():
        blocks = zip(arch.depths, (0.20, 0.10, 0.05, 0.03), arch.windows, arch.shifts, strict=True)
        cost = sum(depth * ms * (1 + 0.15 * (window == 14) + 0.25 * shift) for depth, ms, window, shift in blocks)
        latency_ms[arch.id] = 1 + cost * (0.8 if arch.br else 1)
        learns = lead_br * arch.br - lag_depth * (arch.depth3 - 10) + chance.normal(0, 0.15)
        best = 0.70 + 0.004 * (arch.depth3 - 10) + 0.012 * sum(window == 14 for window in arch.windows[:3])
        best += 0.008 * sum(arch.shifts) - 0.015 * arch.br + 0.006 * (arch.br and arch.shifts[2])
        best -= 0.006 * (arch.shifts[0] and arch.windows[2] == 14)
        epochs = np.arange(1, 10)
        gap = 0.28 * np.exp(-0.15 * learns) * np.exp(-(epochs - 1) / (3 * np.exp(-0.25 * learns)))
        curve = best - gap + chance.normal(0, 0.003, len(epochs))
        accuracy[arch.id] = dict(zip(epochs.tolist(), curve.tolist(), strict=True))
    return Curves(name, accuracy, latency_ms, space.base.id)


def recorded(file: Path) -> Curves:
    """A recorded table, with the space file of the same name beside it."""
    space = Space.load(file.with_suffix(".yaml"))
    table = read_table(file, space)
    accuracy: dict[str, dict[int, float]] = {arch_id: {} for arch_id in table.latency_ms}
    for (arch_id, epochs), value in table.accuracy.items():
        accuracy[arch_id][epochs] = value
    return Curves(file.stem, accuracy, dict(table.latency_ms), space.base.id)


def climb(
    curves: Curves, rule: str, ladder_rungs: tuple[int, ...], eta: float, seed: int
) -> tuple[Ladder, list[str], list[float]]:
    """One search over all architectures in the seed's order: the ladder, who was fully trained, seconds of each `next`."""
    ladder, chance = Ladder(ladder_rungs, eta), random.Random(seed)
    order, full, seconds = list(curves.accuracy), [], []
    chance.shuffle(order)

    def add(arch_id: str, epochs: int) -> None:
        # With one latency for all, and accuracy drawn where chance decides, our rule is the other one.
        accuracy = chance.random() if rule == "random" else curves.accuracy[arch_id][epochs]
        ladder.add(arch_id, epochs, accuracy, curves.latency_ms[arch_id] if rule == "ladder" else 1.0)
        if epochs == curves.epochs:
            full.append(arch_id)

    def go_on(*, final: bool) -> None:
        going: tuple[str, int] | None = ("", 0)
        while going is not None:
            start = time.perf_counter()
            going = ladder.next(final)
            seconds.append(time.perf_counter() - start)
            if going is not None:
                add(*going)

    for arch_id in order:
        add(arch_id, ladder_rungs[0])
        go_on(final=False)
    go_on(final=True)
    return ladder, full, seconds


def row(curves: Curves, rule: str, eta: float, seeds: int) -> dict[str, object]:
    """Mean and worst over `seeds` orders."""
    known = sorted(next(iter(curves.accuracy.values())))
    spaced = tuple(epochs for epochs in rungs(curves.epochs, eta) if epochs in known)
    everyone, reached, shares, num_full, seconds = curves.hypervolume(list(curves.accuracy)), [], [], [], []
    for seed in range(seeds):
        ladder, full, spent = climb(curves, rule, spaced, eta, seed)
        reached.append(curves.hypervolume(full) / everyone)
        shares.append(ladder.share)
        num_full.append(len(full))
        seconds += spent
    return {
        "what": f"{curves.name} {rule} eta {eta:g}",
        "rungs": "-".join(map(str, spaced)),
        "architectures": len(curves.accuracy),
        "rank_agreement": curves.rank_agreement(spaced[0]),
        "hypervolume": statistics.fmean(reached),
        "hypervolume_min": min(reached),
        "goal_hypervolume": GOAL_HYPERVOLUME,
        "share": max(shares),
        "goal_share": GOAL_SHARE,
        "fully_trained": statistics.fmean(num_full),
        "next_us": 1e6 * statistics.median(seconds),
        "hypervolumes": reached,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="orders of arrival")
    parser.add_argument("--tables", nargs="*", help="`synthetic`, `adverse`, CSV files; default: all, those in tables/")
    parser.add_argument("--etas", type=float, nargs="*", default=[2.0, 3.0, 4.0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.tables if options.tables is not None else [*SYNTHETIC, *map(str, sorted(TABLES.glob("*.csv")))]
    rows = []
    for name in names:
        curves = synthetic(name) if name in SYNTHETIC else recorded(Path(name))
        if curves.epochs == 1:
            print(f"{name}: no column epochs, left out")
            continue
        rows += [row(curves, rule, eta, options.seeds) for eta in options.etas for rule in RULES]
    report("ladder", rows, out=options.out, seeds=options.seeds)


if __name__ == "__main__":
    main()
