"""`search` and its neighbours at the command line, answered from recorded tables where speed matters."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from explorer.arch import Arch
from explorer.cli import app
from explorer.space import Space
from explorer.store import Store

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14], stage2: [7, 14]}
  shifts: {stage1: [off, on]}
  br: [off, on]
  depth3: [1, 2, 3]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
EPOCHS = (1, 3, 9)


def accuracy(arch: Arch, epochs: int) -> float:
    full = 0.5 + 0.03 * arch.depth3 + 0.002 * sum(arch.windows) + 0.01 * sum(arch.shifts) - 0.005 * arch.br
    return round(full * (1 - 0.5 / epochs), 6)


def latency_ms(arch: Arch) -> float:
    return round(1 + 0.5 * arch.depth3 + 0.01 * sum(arch.windows) + 0.2 * sum(arch.shifts) - 0.3 * arch.br, 6)


def rows(space: Space) -> list[dict[str, Any]]:
    return [
        {
            "windows": "-".join(map(str, arch.windows)),
            "shifts": "-".join(str(int(shift)) for shift in arch.shifts),
            "br": int(arch.br),
            "depth3": arch.depth3,
            "epochs": epochs,
            "accuracy": accuracy(arch, epochs),
            "latency_ms": latency_ms(arch),
        }
        for arch in space.archs()
        for epochs in EPOCHS
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, content[0])
        writer.writeheader()
        writer.writerows(content)
    return path


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    """A space file and its table in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "small.yaml").write_text(SPACE)
    space = Space.load("small.yaml")
    write(tmp_path / "table.csv", rows(space))
    return space


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def search(*arguments: object, code: int = 0) -> Result:
    return run("search", "--space", "small.yaml", "--table", "table.csv", *arguments, code=code)


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_search_answers_from_a_table_and_says_that_nothing_was_measured(space: Space) -> None:
    result = search("--trials", 1000)
    assert "nothing is measured: a recorded table" in result.stderr
    assert "every architecture of the space has been evaluated" in result.stderr
    found = json.loads(run("pareto", "--json").stdout)
    assert found["target"].startswith("table ")
    best = max(space.archs(), key=lambda arch: accuracy(arch, 9))
    assert found["front"][-1]["arch_id"] == best.id
    assert found["front"][-1]["accuracy"] == accuracy(best, 9)
    assert found["front"][0]["latency_ms"] == min(map(latency_ms, space.archs()))


def test_latency_predictor_is_reported_with_its_error(space: Space) -> None:
    result = search("--trials", 30)
    assert re.search(r"latencies predicted by .*leave-one-out error .*%.*of 30 latencies", result.stderr), result.stderr


@pytest.mark.parametrize("workers", [1, 3])
def test_ladder_on_a_table_spends_at_most_a_third_and_comes_near_the_front(space: Space, workers: int) -> None:
    search("--trials", 1000, "--study", "whole")
    told = events(search("--trials", 1000, "--study", "ladder", "--ladder", 3, "--workers", workers, "--json"))
    assert told[-1]["event"] == "end"
    store = Store.open()
    whole, ladder = (store.candidates(store.study(name)) for name in ("whole", "ladder"))
    # All facts of `whole` are in the database: full trainings cost nothing there, and every candidate gets its own.
    assert {candidate.outcome for candidate in ladder} == {"complete"}
    assert len(ladder) == len(whole) == space.architectures
    store.close()
    told = events(search("--trials", 1000, "--ladder", 3, "--workers", workers, "--json", "--storage", "other.db"))
    assert "were stopped by the ladder" in told[-1]["message"]
    assert told[-1]["hypervolume"] == pytest.approx(Store.open().fronts("whole")[-1].hypervolume, rel=0.03)
    store = Store.open("other.db")
    ladder = store.candidates(store.study())
    assert {candidate.outcome for candidate in ladder} == {"complete", "stopped"}
    assert sum(candidate.spent_epochs for candidate in ladder) <= 9 * space.architectures / 3
    shown = run("studies", "show", "--storage", "other.db").stdout
    assert " after 1" in shown
    store.close()


def test_over_the_latency_limit_nothing_is_trained(space: Space) -> None:
    told = events(search("--trials", 1000, "--max-latency", 2.5, "--json"))
    candidates = [event["candidate"] for event in told if event["event"] == "trial"]
    gated = [row for row in candidates if row["outcome"] == "gated"]
    assert gated
    assert {row["accuracy"] for row in gated} == {None}
    assert all((row["latency_ms"] > 2.5) == (row["outcome"] == "gated") for row in candidates)


def test_table_written_from_a_study_answers_a_search_alike(space: Space) -> None:
    search("--trials", 1000, "--study", "first")
    assert run("table", "first").stdout.startswith("windows,shifts,br,depth3,epochs,accuracy,latency_ms")
    run("table", "--to", "again.csv")
    run("search", "--space", "small.yaml", "--table", "again.csv", "--trials", 1000, "--study", "second")
    one, two = (json.loads(run("pareto", "--study", name, "--json").stdout)["front"] for name in ("first", "second"))
    assert [row["arch_id"] for row in one] == [row["arch_id"] for row in two]
    assert [row["accuracy"] for row in one] == [row["accuracy"] for row in two]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("depth3: [1, 2, 3]", "depth3: [1, 3]"),
        lambda text: text + "limits: {params_m: 0.61}\n",
    ],
    ids=["base outside", "limits"],
)
def test_table_of_a_space_without_its_base_or_with_limits_answers_a_search_alike(
    change: Callable[[str], str], space: Space
) -> None:
    Path("other.yaml").write_text(change(SPACE))
    other = Space.load("other.yaml")
    assert other.architectures < space.architectures
    first = ("search", "--space", "other.yaml", "--trials", 1000, "--study")
    run(*first, "first", "--table", "table.csv")
    run("table", "--to", "again.csv")
    run(*first, "second", "--table", "again.csv")
    one, two = (json.loads(run("pareto", "--study", name, "--json").stdout) for name in ("first", "second"))
    assert len(one["front"]) > 1
    for key in ("arch_id", "accuracy", "latency_ms", "speedup"):
        assert [row[key] for row in one["front"]] == [row[key] for row in two["front"]]
    if not other.holds(other.base):
        without_base = [line for line in Path("again.csv").read_text().splitlines() if ",2," not in line]
        Path("without.csv").write_text("\n".join(without_base))
        refused = run(*first, "third", "--table", "without.csv", code=2)
        assert "no row for the space's base, windows 7-7-7-7" in refused.stderr


def test_known_networks_are_references_and_drawn(space: Space) -> None:
    seed = next(arch for arch in space.archs() if arch.br and arch.depth3 == 3 and 14 in arch.windows)
    Path("small.yaml").write_text(f"{SPACE}seeds: [{seed.name}]\n")
    told = events(search("--trials", 3, "--json"))
    assert [event["candidate"]["arch_id"] for event in told if event["event"] == "trial"][:2] == [
        space.base.id,
        seed.id,
    ]
    run("pareto", "--plot", "front.html")
    run("pareto", "--plot", "front.png")
    found = json.loads(run("pareto", "--json").stdout)
    assert [row["arch_id"] for row in found["references"]] == [space.base.id, seed.id]
    drawn = Path("front.html").read_text().partition('"name":"known networks"')[2]
    assert seed.name in drawn
    assert space.base.name in drawn


def test_hypervolume_is_told_by_a_search_that_goes_on(space: Space) -> None:
    first = events(search("--trials", 6, "--json"))
    command = [sys.executable, "-m", "explorer", "search", "--space", "small.yaml", "--table", "table.csv"]
    again = subprocess.run([*command, "--trials", "8", "--json"], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in again.stdout.splitlines()]
    assert first[-1]["hypervolume"] == told[0]["hypervolume"] > 0
    assert all(event["hypervolume"] >= told[0]["hypervolume"] for event in told)
    assert "created" not in again.stderr, "a line of Optuna's own"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "torch", "--data", "contours"], "--backend, --data cannot be given with it"),
        (["--train-parallel", "2"], "--train-parallel cannot be given with it: nothing is measured or trained"),
        (["--train-threads", "1"], "--train-threads cannot be given with it: nothing is measured or trained"),
        (["--seeds", "2"], "a table has one accuracy for each architecture; leave --seeds out"),
        (["--max-hours", "-1"], "max_hours: -1.0 is not a number above 0"),
        (["--sampler", "best"], "sampler: 'best' is not known; allowed: tpe, nsgaii, nsgaiii, gp, qmc, random, brute"),
        (["--max-latency", "0"], "--max-latency: 0.0 is not a number of milliseconds above 0"),
        (["--table", "gone.csv"], "gone.csv"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_be_is_refused_before_a_database_is_made(
    arguments: list[str], message: str, dry_run: bool, space: Space
) -> None:
    result = search(*arguments, *(["--dry-run"] if dry_run else []), code=2)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not Path("studies").exists()


def test_ladder_of_one_number_of_epochs_is_refused(space: Space, tmp_path: Path) -> None:
    write(tmp_path / "table.csv", [row for row in rows(space) if row["epochs"] == 9])
    result = search("--ladder", 3, code=2)
    assert "ladder: 3: a ladder needs two numbers of epochs at least, and there is 9 alone" in result.stderr


def test_ladder_climbs_the_rungs_of_its_eta_not_every_row_of_the_table(space: Space, tmp_path: Path) -> None:
    every = [
        {**row, "epochs": epochs, "accuracy": row["accuracy"] * (1 - 0.01 * (9 - epochs))}
        for row in rows(space)
        if row["epochs"] == 9
        for epochs in range(1, 10)
    ]
    write(tmp_path / "table.csv", every)
    content = json.loads(search("--ladder", 3, "--dry-run", "--json").stdout)
    assert content["rungs"] == [1, 3, 9]


def test_missing_row_is_an_error_that_names_it(space: Space, tmp_path: Path) -> None:
    write(tmp_path / "table.csv", rows(space)[3:])
    result = search(code=2)
    assert "no row for" in result.stderr
    assert not Path("studies").exists()


def test_merged_database_holds_both_and_doubles_nothing(space: Space) -> None:
    search("--trials", 10, "--study", "shared", "--storage", "one.db", "--sampler", "random")
    search("--trials", 14, "--study", "shared", "--storage", "two.db", "--sampler", "brute")
    search("--trials", 3, "--study", "alone", "--storage", "two.db")
    found = json.loads(run("studies", "merge", "two.db", "--storage", "one.db", "--json").stdout)
    store = Store.open("one.db")
    assert {study.name for study in store.studies()} == {"shared", "alone"}
    members = store.candidates(store.study("shared"))
    assert len(members) == len({member.arch.id for member in members}) == 10 + found["members"] - 3
    store.close()
    again = json.loads(run("studies", "merge", "two.db", "--storage", "one.db", "--json").stdout)
    assert (again["latencies"], again["scores"], again["members"], again["studies"]) == (0, 0, 0, 0)
    told = events(search("--trials", len(members) + 2, "--study", "shared", "--storage", "one.db", "--json"))
    assert sum(event["event"] == "trial" for event in told) == 2, "goes on with what both had"
    assert "no such database" in run("studies", "merge", "three.db", code=2).stderr


def test_whole_command_line_runs_on_postgresql(space: Space, postgres_url: str) -> None:
    where = ["--storage", postgres_url]
    search("--trials", 12, "--workers", 2, "--ladder", 3, *where)
    search("--trials", 20, *where, "--ladder", 3)
    assert json.loads(run("studies", "list", "--json", *where).stdout)["studies"][0]["architectures"] == 20
    assert json.loads(run("pareto", "--json", *where).stdout)["front"]
    name = json.loads(run("studies", "list", "--json", *where).stdout)["studies"][0]["study"]
    run("studies", "merge", postgres_url, "--storage", "file.db")
    assert Store.open("file.db").study(name).name == name
    run("studies", "delete", name, "--yes", *where)
    assert json.loads(run("studies", "list", "--json", *where).stdout)["studies"] == []


@pytest.mark.slow
def test_workers_measure_and_train_for_real_and_share_one_study(space: Space) -> None:
    Path("recipe.yaml").write_text("epochs: 3\nbatch_size: 16\ntrain_images: 32\neval_images: 32\n")
    told = events(
        run(
            "search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--data", "contours", "--backend", "torch",
            "--trials", 4, "--workers", 2, "--ladder", 3, "--seeds", 2, "--json",
        )
    )  # fmt: skip
    assert told[-1]["event"] == "end"
    store = Store.open()
    candidates = store.candidates(store.study())
    assert len(candidates) == 4
    assert {candidate.outcome for candidate in candidates} <= {"complete", "stopped"}
    assert all(candidate.latency_ms and candidate.accuracy is not None for candidate in candidates)
    complete = [candidate for candidate in candidates if candidate.outcome == "complete"]
    assert complete
    assert all(len(candidate.scores) == 2 and candidate.accuracy_std is not None for candidate in complete)
    store.close()
