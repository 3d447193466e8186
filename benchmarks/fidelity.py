"""How well the default proxy ranks: `swinexplore fidelity` of tables 4 and 5, kept as JSON with machine and versions.

    python benchmarks/fidelity.py --storage fidelity.db --seeds 2 --train-parallel 2 --train-threads 1

All options go to `swinexplore fidelity`; the same command goes on where it was stopped. A row a table and ranker: concordance
over the pairs of known order, Kendall's tau-b, and what the proxy ranks wrongly; then a row a network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import common

#: Of the project: concordance over the 61 pairs of tables 4 and 5, and seconds a configuration.
GOALS = {"cpu": (0.80, 180.0), "cuda": (0.90, 40.0)}


def rows_of(content: dict[str, Any], device: str) -> list[dict[str, Any]]:
    cost, rows = content["cost"], []
    for section in content["sections"]:
        for ranker, found in section["rankings"].items():
            row = {"what": f"{section['truth']}: {ranker}", "pairs": found["pairs"]}
            row |= {key: found[key] for key in ("concordance", "interval", "tau_b", "tau_b_interval")}
            if ranker == "proxy":
                goal, goal_s = GOALS[device]
                row |= {"goal_concordance": goal, "goal_s": goal_s, "seconds_mean": cost["seconds_mean"]}
                row |= {"seconds_max": cost["seconds_max"], "where": cost["where"], "wrong": found["wrong"]}
            rows.append(row)
    for network in content["networks"]:
        row = {"what": network["name"]}
        rows.append(row | {key: network[key] for key in ("truth", "accuracy", "accuracy_std", "accuracies", "seconds")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="table4,table5")
    parser.add_argument("--device", default="cpu", choices=list(GOALS), help="What this is a result of.")
    parser.add_argument("--out", type=Path, help="Folder for the JSON; default: benchmarks/results.")
    given, options = parser.parse_known_args()
    command = [sys.executable, "-m", "explorer", "fidelity", "--tables", given.tables, *options, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    content = json.loads(done.stdout)
    settings = {key: content[key] for key in ("recipe", "proxy", "data", "seeds")}
    common.report("fidelity", rows_of(content, given.device), device=given.device, out=given.out, **settings)


if __name__ == "__main__":
    main()
