"""What the trainings that the store holds say of how well a proxy ranks, in one value."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from explorer.arch import Arch
from explorer.evaluate import Plan
from explorer.fidelity.filling import Training, trainings
from explorer.fidelity.rankers import Rankers
from explorer.fidelity.ranking import LOST, Ranking, rank_report
from explorer.fidelity.truth import Truth
from explorer.records import Score
from explorer.store import Store

#: The name under which the trained proxies stand beside other rankers.
PROXY: Final = "proxy"


@dataclass(frozen=True)
class Network:
    """A network of known results with what its proxy came to.

    `accuracies` (0..1): one a finished training, in the order of the seeds; `diverged_seeds`, `missing_seeds`: of the others.
    `by_seed`: what ended one way or the other, `LOST` where it diverged. `problems`: why trainings ended without an accuracy.
    `seconds`: of all its trainings together. `label`: its known result.
    """

    arch: Arch
    name: str
    proxy_id: str
    label: str
    accuracies: tuple[float, ...]
    diverged_seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...]
    by_seed: Mapping[int, float]
    problems: tuple[str, ...]
    seconds: float | None

    @property
    def scores(self) -> tuple[float, ...]:
        """As `rank_report` takes them."""
        return (*self.accuracies, *(LOST for _ in self.diverged_seeds))

    @property
    def accuracy(self) -> float | None:
        """The mean over seeds, those that diverged counted 0; None where all diverged or none is finished."""
        scores = [max(score, 0.0) for score in self.scores]
        return statistics.fmean(scores) if self.accuracies else None

    @property
    def accuracy_std(self) -> float | None:
        """Over the seeds that did not diverge; None with fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class Cost:
    """Seconds that trainings took: `mean_s` and `max_s` a configuration with all its seeds, of those with which all finished;
    `training_s` one training on average. `where`: on what; `num_trainings` that finished. None where none did.
    """

    num_trainings: int
    mean_s: float | None
    max_s: float | None
    training_s: float | None
    where: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """How each ranker orders one truth; `rankings` by the ranker's name, the trained proxies first.

    `by_seed`: the trained proxies' from one seed alone; empty where there is only one.
    """

    truth: Truth
    rankings: Mapping[str, Ranking]
    by_seed: Mapping[int, Ranking]


@dataclass(frozen=True)
class Report:
    """How well a proxy training ranks. `ranker_seconds`: of the training-free scores, a network and seed."""

    plan: Plan
    seeds: tuple[int, ...]
    networks: tuple[Network, ...]
    sections: tuple[Section, ...]
    cost: Cost
    ranker_seconds: Mapping[str, float]

    @property
    def num_pairs(self) -> int:
        """Pairs of known order that could be compared, over all sections, single comparisons included."""
        return sum(found.num_pairs + found.num_stated for s in self.sections for found in (s.rankings[PROXY],))

    @property
    def shared(self) -> tuple[tuple[str, ...], ...]:
        """Names of networks that have one proxy, and so cannot be told apart."""
        names: dict[str, list[str]] = {}
        for network in self.networks:
            names.setdefault(network.proxy_id, []).append(network.name)
        return tuple(tuple(alike) for alike in names.values() if len(alike) > 1)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; docs/fidelity.md documents it."""
        names = {network.arch.id: network.name for network in self.networks}
        return {
            "recipe_id": self.plan.recipe.id,
            "recipe": self.plan.recipe.model_dump(),
            "epochs": self.plan.recipe.epochs,
            "proxy": None if self.plan.scale is None else self.plan.scale.to_dict(),
            "data": self.plan.data.spec,
            "data_id": self.plan.data.id,
            "seeds": list(self.seeds),
            "cost": {
                "trainings": self.cost.num_trainings,
                "seconds_mean": self.cost.mean_s,
                "seconds_max": self.cost.max_s,
                "seconds_training": self.cost.training_s,
                "where": list(self.cost.where),
                "rankers_s": dict(self.ranker_seconds),
            },
            "networks": [_network_json(network) for network in self.networks],
            "one_proxy": [list(alike) for alike in self.shared],
            "sections": [
                {
                    "truth": section.truth.name,
                    "networks": len(section.truth.archs),
                    "pairs": len(section.truth.of_kind(stated=False)),
                    "stated_pairs": len(section.truth.of_kind(stated=True)),
                    "rankings": {name: _ranking_json(found, names) for name, found in section.rankings.items()},
                    "by_seed": {
                        str(seed): {"pairs": found.num_pairs, "concordance": found.concordance}
                        for seed, found in section.by_seed.items()
                    },
                }
                for section in self.sections
            ],
        }


def report(
    truths: Sequence[Truth],
    plan: Plan,
    store: Store,
    *,
    seeds: Sequence[int] = (0,),
    rankers: Rankers | None = None,
) -> Report:
    """What the store holds of the proxies' trainings, ranked against every truth, beside other rankers. Trains nothing."""
    archs = {arch.id: arch for truth in truths for arch in truth.archs}
    wanted = trainings(list(archs.values()), plan, store, seeds)
    proxies = {arch_id: plan.proxy(arch).id for arch_id, arch in archs.items()}
    of_proxy = {
        proxy_id: [training for training in wanted if training.key.arch_id == proxy_id] for proxy_id in proxies.values()
    }
    networks = tuple(_network(arch, proxies[arch.id], of_proxy[proxies[arch.id]], truths) for arch in archs.values())
    every = {PROXY: {network.arch.id: network.scores for network in networks}, **(rankers or Rankers()).scores}
    is_known = {network.arch.id for network in networks if network.scores}
    # All rankers are asked about the same pairs, those whose proxies are trained and can be told apart.
    known = {name: {key: of[key] for key in of if key in is_known} for name, of in every.items()}
    sections = tuple(
        Section(
            truth,
            {name: rank_report(truth, scores, proxies=proxies) for name, scores in known.items()},
            {seed: _of_seed(truth, networks, proxies, seed) for seed in seeds if len(seeds) > 1},
        )
        for truth in truths
    )
    return Report(plan, tuple(seeds), networks, sections, _cost(of_proxy.values()), (rankers or Rankers()).seconds)


def _of_seed(truth: Truth, networks: Sequence[Network], proxies: Mapping[str, str], seed: int) -> Ranking:
    scores = {network.arch.id: (network.by_seed[seed],) for network in networks if seed in network.by_seed}
    return rank_report(truth, scores, proxies=proxies)


def _network(arch: Arch, proxy_id: str, found: Sequence[Training], truths: Sequence[Truth]) -> Network:
    label = next((truth.labels[arch.id] for truth in truths if truth.labels.get(arch.id)), "")
    name = next((truth.names[arch.id] for truth in truths if arch.id in truth.names), arch.name)
    done = [training.score for training in found if training.score is not None]
    problems = [(t.key.seed, t.failure) for t in found if t.score is None and t.failure is not None]
    return Network(
        arch,
        name,
        proxy_id,
        label,
        tuple(score.accuracy for score in done),
        tuple(training.key.seed for training in found if training.is_diverged),
        tuple(t.key.seed for t in found if t.score is None and not t.is_diverged),
        {
            t.key.seed: LOST if t.score is None else t.score.accuracy
            for t in found
            if t.score is not None or t.is_diverged
        },
        tuple(f"seed {seed}: {failure.kind}: {failure.message}" for seed, failure in problems),
        sum(score.train_s for score in done) if done else None,
    )


def _cost(found: Iterable[Sequence[Training]]) -> Cost:
    of_proxies = [[training.score for training in of_proxy] for of_proxy in found]
    scores = [score for of_proxy in of_proxies for score in of_proxy if score is not None]
    if not scores:
        return Cost(0, None, None, None, ())
    # Of a training that diverged no seconds are kept, and of one that is missing there are none.
    whole = [[score.train_s for score in of_proxy if score is not None] for of_proxy in of_proxies if all(of_proxy)]
    totals = [sum(seconds) for seconds in whole]
    return Cost(
        len(scores),
        statistics.fmean(totals) if totals else None,
        max(totals, default=None),
        statistics.fmean(score.train_s for score in scores),
        tuple(sorted({_where(score) for score in scores})),
    )


def _where(score: Score) -> str:
    """On what a score was trained, as far as it says."""
    host = score.environment
    if host.get("device") == "cuda":
        return str(host.get("gpu", {}).get("name", "cuda"))
    threads = host.get("threads")
    counted = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    return f"{host.get('cpu', 'cpu')}{counted}"


def _network_json(network: Network) -> dict[str, Any]:
    return {
        "arch_id": network.arch.id,
        "name": network.name,
        "proxy_id": network.proxy_id,
        "truth": network.label,
        "accuracy": network.accuracy,
        "accuracy_std": network.accuracy_std,
        "accuracies": list(network.accuracies),
        "diverged_seeds": list(network.diverged_seeds),
        "missing_seeds": list(network.missing_seeds),
        "problems": list(network.problems),
        "seconds": network.seconds,
    }


def _ranking_json(found: Ranking, names: Mapping[str, str]) -> dict[str, Any]:
    def wrong(pairs: Iterable[Any]) -> list[dict[str, Any]]:
        return [
            {
                "better": names[pair.better],
                "worse": names[pair.worse],
                "better_score": _finite(pair.better_score),
                "worse_score": _finite(pair.worse_score),
            }
            for pair in pairs
        ]

    return {
        "pairs": found.num_pairs,
        "concordance": found.concordance,
        "interval": None if found.interval is None else list(found.interval),
        "tau_b": found.tau_b,
        "tau_b_interval": None if found.tau_b_interval is None else list(found.tau_b_interval),
        "wrong": wrong(found.wrong),
        "stated_pairs": found.num_stated,
        "stated_concordance": found.stated_concordance,
        "stated_wrong": wrong(found.stated_wrong),
        "best": [names[arch_id] for arch_id in found.best_ids],
        "regret": found.regret,
        "missing": [names[arch_id] for arch_id in found.missing],
        "inseparable": [[names[pair.better], names[pair.worse]] for pair in found.inseparable],
    }


def _finite(score: float) -> float | None:
    """JSON knows no infinity: null is a score that was lost."""
    return score if math.isfinite(score) else None
