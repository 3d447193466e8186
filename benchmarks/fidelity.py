"""How well the default proxy ranks: `swinexplore fidelity` of the paper's tables, kept as JSON with machine and versions.

    python benchmarks/fidelity.py --storage fidelity.db --seeds 2 --train-parallel 2 --train-threads 1
    python benchmarks/fidelity.py --storage fidelity.db --tables table6 --train-parallel 2 --train-threads 1

All options go to `swinexplore fidelity`; the same command goes on where it was stopped. A row a table and ranker: concordance
over the pairs of known order and over single comparisons, Kendall's tau-b, and what is ranked wrongly; then a row a network.
Other tables than 4 and 5 go to a file of their own.
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
TABLES = "table4,table5"


def rows_of(content: dict[str, Any], device: str) -> list[dict[str, Any]]:
    cost, rows = content["cost"], []
    for section in content["sections"]:
        for ranker, found in section["rankings"].items():
            row = {"what": f"{section['truth']}: {ranker}", "pairs": found["pairs"]}
            row |= {key: found[key] for key in ("concordance", "interval", "tau_b", "tau_b_interval")}
            row |= {key: found[key] for key in ("stated_pairs", "stated_concordance", "wrong")}
            if ranker == "proxy":
                row["by_seed"] = section["by_seed"]
                row |= {key: cost[key] for key in ("seconds_mean", "seconds_max", "seconds_training", "where")}
                if section["truth"] == "table4+table5":
                    row |= dict(zip(("goal_concordance", "goal_s"), GOALS[device], strict=True))
            rows.append(row)
    for network in content["networks"]:
        row = {"what": network["name"]}
        rows.append(row | {key: network[key] for key in ("truth", "accuracy", "accuracy_std", "accuracies", "seconds")})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=TABLES)
    parser.add_argument("--device", default="cpu", choices=list(GOALS), help="What this is a result of.")
    parser.add_argument("--out", type=Path, help="Folder for the JSON; default: benchmarks/results.")
    given, options = parser.parse_known_args()
    command = [sys.executable, "-m", "explorer", "fidelity", "--tables", given.tables, *options, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    content = json.loads(done.stdout)
    settings = {key: content[key] for key in ("recipe", "proxy", "data", "seeds")}
    name = "fidelity" if given.tables == TABLES else f"fidelity-{given.tables.replace(',', '-')}"
    common.report(name, rows_of(content, given.device), device=given.device, out=given.out, **settings)


if __name__ == "__main__":
    main()
