"""Does the proxy rank? Short trainings against results of full ones: the paper's tables, or a file of one's own.

`run` trains what the store does not hold, `report` says how well the accuracies order the networks whose order is known,
beside what ranks them without training. `rank_report` does the same for any scores, and is pure numpy.
"""

from __future__ import annotations

from explorer.fidelity.filling import Progress, plan_for, require_proxies, run, trainings
from explorer.fidelity.findings import PROXY, Network, Report, report
from explorer.fidelity.rankers import Rankers, counted, rankers_of
from explorer.fidelity.ranking import LOST, Ranking, WrongPair, rank_report
from explorer.fidelity.trivial import tokens_seen, trivial_scores
from explorer.fidelity.truth import Pair, Truth, read_truth, trained_part, truth_of_paper, truths_of_paper

__all__ = [
    "LOST",
    "PROXY",
    "Network",
    "Pair",
    "Progress",
    "Rankers",
    "Ranking",
    "Report",
    "Truth",
    "WrongPair",
    "counted",
    "plan_for",
    "rank_report",
    "rankers_of",
    "read_truth",
    "report",
    "require_proxies",
    "run",
    "tokens_seen",
    "trained_part",
    "trainings",
    "trivial_scores",
    "truth_of_paper",
    "truths_of_paper",
]
