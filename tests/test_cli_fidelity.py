"""`fidelity` as its users meet it: real trainings of tiny networks, resumed, in parallel, reported."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from explorer import latency
from explorer.arch import parse_name
from explorer.cli import _Boundary
from explorer.cli.fidelity import _of_pairs, fidelity
from explorer.errors import DataError
from explorer.fidelity import plan_for, rank_report, trainings, truth_of_paper
from explorer.records import MAX_ATTEMPTS, Failure, Score
from explorer.space import Space
from explorer.store import Store
from explorer.training.data import describe
from explorer.training.folders import IDX_FILES
from explorer.training.recipe import load_recipe

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[1]
SPACE = """\
version: 1
base: Swin-E16x1.1.1.1-R56-P1-N4
search:
  windows: {stage1: [7, 14]}
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
#: As SPACE, for the paper's networks: their 18 blocks of stage 3 are 3.
PAPER_SPACE = SPACE.replace("patch_size: 2}", "patch_size: 2, depth3_divisor: 6}")
TRUTH = """\
name,accuracy,std
Swin-E16x1.1.1.1-W14.7.7.7,0.82,0.001
Swin-E16x1.1.1.1,0.80,0.001
Swin-E16x1.1.2.1,0.70,
"""
OWN = ("--truth", "own.csv", "--recipe", "r.yaml", "--space", "small.yaml", "--data", "images")


def run(*arguments: object, code: int = 0) -> Result:
    app = typer.Typer(cls=_Boundary, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(fidelity)
    app.command("other")(lambda: None)  # a single command would have no name
    result = CliRunner().invoke(app, ["fidelity", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def document(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # On a CPU, where the same training gives the same number: in this process, and in those that it starts.
    monkeypatch.setattr(latency, "sees_gpu", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0)
    for part, number in (("train", 112), ("t10k", 8)):
        contents = (pixels.integers(0, 255, (number, 16, 16), np.uint8), np.arange(number, dtype=np.uint8) % 4)
        of_part = [name for name in IDX_FILES if name.startswith(part)]
        for name, content in zip(of_part, contents, strict=True):
            header = bytes([0, 0, 8, content.ndim]) + struct.pack(f">{content.ndim}I", *content.shape)
            (images / name).write_bytes(gzip.compress(header + content.tobytes()))
    (tmp_path / "small.yaml").write_text(SPACE)
    (tmp_path / "paper.yaml").write_text(PAPER_SPACE)
    (tmp_path / "own.csv").write_text(TRUTH)
    (tmp_path / "r.yaml").write_text("epochs: 2\nbatch_size: 32\ntrain_images: 64\neval_images: 64\n")
    return tmp_path


def without_seconds(content: Any) -> Any:
    """The content but for what a clock gave."""
    if isinstance(content, dict):
        return {key: without_seconds(value) for key, value in content.items() if "second" not in key and key != "cost"}
    return [without_seconds(value) for value in content] if isinstance(content, list) else content


def test_own_results_are_ranked_by_real_trainings_which_are_kept(work: Path) -> None:
    first = run(*OWN, "--epochs", 1, "--seeds", 2, "--log-file", "fidelity.log")
    assert "3 networks, 6 trainings of 1 epochs of images on" in first.stderr
    assert "[6/6] Swin-E16x1.1.2.1  accuracy 0." in first.stderr
    assert "[6/6] Swin-E16x1.1.2.1  accuracy 0." in Path("fidelity.log").read_text()
    for heading in (
        "own.csv",
        "95 % over seeds",
        "seed 1 alone",
        "Kendall tau-b",
        "tokens_seen",
        "synflow",
        "naswot",
        "grad_norm",
    ):
        assert heading in first.stdout
    again = run(*OWN, "--epochs", 1, "--seeds", 2)
    assert "6 of them known" in again.stderr
    assert "[1/" not in again.stderr
    content = document(*OWN, "--epochs", 1, "--seeds", 2, "--report-only")
    assert [network["truth"] for network in content["networks"]] == ["0.82", "0.8", "0.7"]
    assert [len(network["accuracies"]) for network in content["networks"]] == [2, 2, 2]
    (section,) = content["sections"]
    found = section["rankings"]["proxy"]

    def share_in_order(accuracies: list[float]) -> float:
        pairs = (accuracies[0], accuracies[1]), (accuracies[0], accuracies[2]), (accuracies[1], accuracies[2])
        return sum((better > worse) + 0.5 * (better == worse) for better, worse in pairs) / 3

    concordance = share_in_order([network["accuracy"] for network in content["networks"]])
    assert (section["pairs"], found["pairs"], found["concordance"]) == (3, 3, pytest.approx(concordance))
    for seed in (0, 1):
        concordance = share_in_order([network["accuracies"][seed] for network in content["networks"]])
        assert section["by_seed"][str(seed)] == {"pairs": 3, "concordance": pytest.approx(concordance)}
    assert found["interval"][0] <= found["concordance"] <= found["interval"][1]
    # More blocks are worse here: parameters get both of their pairs wrong, and one more by the larger bias table.
    assert section["rankings"]["parameters"]["concordance"] == pytest.approx(1 / 3)


def test_one_seed_has_no_interval_and_says_so() -> None:
    result = run(*OWN, "--epochs", 1)
    assert "one seed says nothing of how far these figures vary" in result.stdout
    content = document(*OWN, "--epochs", 1, "--report-only")
    assert content["sections"][0]["rankings"]["proxy"]["interval"] is None
    assert content["sections"][0]["by_seed"] == {}


def test_report_needs_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DataError("data somewhere: is not there")

    run(*OWN, "--epochs", 1)
    with_images = document(*OWN, "--epochs", 1, "--report-only")
    monkeypatch.setattr("explorer.fidelity.rankers_of", refuse)
    result = run(*OWN, "--epochs", 1, "--report-only", "--json")
    assert "left out, as they need the images: synflow, naswot, grad_norm (data somewhere" in result.stderr
    found, expected = (of["sections"][0]["rankings"] for of in (json.loads(result.stdout), with_images))
    assert found.keys() == {"proxy", "parameters", "flops", "tokens_seen"}
    assert all(found[name] == expected[name] for name in found)


def test_killed_run_goes_on_and_comes_to_the_same_report(work: Path) -> None:
    arguments = (*OWN, "--epochs", "6", "--seeds", "3", "--train-threads", "1")
    command = [sys.executable, "-m", "explorer", "fidelity", *arguments, "--storage", "killed.db"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and num_scores("killed.db") < 2:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    kept = num_scores("killed.db")
    assert 2 <= kept < 9, "it was to be killed half way"
    resumed = run(*arguments, "--storage", "killed.db")
    assert f"9 trainings of 6 epochs of images on cpu, {kept} of them known" in resumed.stderr
    whole = document(*arguments, "--storage", "whole.db")
    assert without_seconds(document(*arguments, "--storage", "killed.db")) == without_seconds(whole)


def num_scores(file: str) -> int:
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM scores").fetchone()
    except sqlite3.OperationalError:  # not made yet
        return 0
    return int(count)


def test_several_trainings_at_once_come_to_the_same_accuracies() -> None:
    arguments = (*OWN, "--epochs", 1, "--train-threads", 1)
    alone = document(*arguments, "--storage", "alone.db")
    result = run(*arguments, "--storage", "beside.db", "--train-parallel", 2)
    assert "[3/3]" in result.stderr
    beside = document(*arguments, "--storage", "beside.db", "--report-only")
    assert without_seconds(beside) == without_seconds(alone)


def test_diverged_training_is_reported_and_ranks_last() -> None:
    Path("r.yaml").write_text("epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 64\nlr: 1.0e+30\n")
    result = run(*OWN)
    assert "diverged: Swin-E16x1.1.1.1-W14.7.7.7 (seed 0), Swin-E16x1.1.1.1 (seed 0)" in result.stdout
    content = document(*OWN, "--report-only")
    assert content["sections"][0]["rankings"]["proxy"]["concordance"] == 0.5
    assert {network["accuracy"] for network in content["networks"]} == {None}


# -- the paper's tables, on trainings that were made up ---------------------------------------------------------------


def fill(accuracy_of: dict[float, float], *, leave_out: str = "", fail: str = "") -> None:
    """The database of a run over table 4, each proxy's accuracy by its group."""
    truth = truth_of_paper(("table4",))
    plan = plan_for(load_recipe("r.yaml"), describe("images", Path("data")), Space.load("paper.yaml").proxy_scale)
    store = Store.open("paper.db", create=True)
    for training in trainings(truth.archs, plan, store, (0,)):
        key = training.key
        if training.arch.name == fail:
            store.add_failure(training.arch, Failure(training.arch.id, str(key), "diverged", "diverged: by step 3"))
        elif training.arch.name != leave_out:
            accuracy = accuracy_of[truth.levels[training.arch.id]]
            score = Score(key.arch_id, key.recipe_id, key.data_id, key.epochs, key.seed, accuracy, 40.0)
            store.add_score(plan.proxy(training.arch), plan.recipe.model_dump(), score)
    store.close()


PAPER = (
    "--tables",
    "table4",
    "--recipe",
    "r.yaml",
    "--space",
    "paper.yaml",
    "--data",
    "images",
    "--storage",
    "paper.db",
    "--report-only",
)


def test_trained_proxies_of_table_4_are_ranked_against_its_groups() -> None:
    fill({83.0: 0.6, 82.0: 0.7, 0.0: 0.2}, leave_out="Swin-B-S0100", fail="Swin-B-S0000")
    content = document(*PAPER)
    part, section = content["sections"]
    found = section["rankings"]["proxy"]
    assert (part["truth"], section["truth"]) == ("table4, both trained", "table4")
    assert (part["networks"], part["pairs"], part["rankings"]["proxy"]["concordance"]) == (3, 2, 0.0)
    # Of 11 pairs 3 are with the one that is missing; Swin-B is taken for worse than both of 82.x.
    assert (section["pairs"], found["pairs"], found["concordance"]) == (11, 8, pytest.approx(6 / 8))
    assert [(pair["better"], pair["better_score"], pair["worse_score"]) for pair in found["wrong"]] == [
        ("Swin-B", 0.6, 0.7)
    ] * 2
    assert found["missing"] == ["Swin-B-S0100"]
    assert (found["best"], found["regret"]) == (["Swin-B-S0110", "Swin-B-S0010"], 1.0)
    assert section["rankings"]["flops"]["concordance"] == 0.5
    assert section["rankings"]["flops"]["pairs"] == 8
    assert content["cost"]["seconds_mean"] == 40.0
    shown = run(*PAPER).stdout
    assert "diverged: Swin-B-S0000 (seed 0)" in shown
    assert "missing: Swin-B-S0100 (seed 0)" in shown
    assert "table4: pairs ranked wrongly" in shown
    assert "both trained: pairs" not in shown, "the same pairs twice"


def test_report_without_any_pair_is_an_error_that_says_what_to_do() -> None:
    Store.open("paper.db", create=True).close()
    result = run(*PAPER, code=2)
    assert "nothing to rank: 0 of 6 networks have a finished training" in result.stderr
    assert "run the command without --report-only" in result.stderr


def test_report_of_trainings_that_all_failed_says_why_and_how_to_try_them_again() -> None:
    truth = truth_of_paper(("table4",))
    plan = plan_for(load_recipe("r.yaml"), describe("images", Path("data")), Space.load("paper.yaml").proxy_scale)
    with closing(Store.open("paper.db", create=True)) as store:
        for training in trainings(truth.archs, plan, store, (0,)) * MAX_ATTEMPTS:
            failure = Failure(training.arch.id, str(training.key), "crash", "the worker crashed (SIGSEGV)")
            store.add_failure(training.arch, failure)
    result = run(*PAPER[:-1], code=2)
    assert "6 trainings failed, Swin-B: seed 0: crash: the worker crashed (SIGSEGV); see" in result.stderr
    assert "`swinexplore studies failures --all`, which with --forget has them tried again" in result.stderr
    assert "--report-only" not in result.stderr


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tables", "table7"), "tables: 'table7' is none that gives an order; allowed: table4, table5, table6"),
        (("--tables", ","), "--tables: ',' names no table"),
        (("--truth", "none.csv"), "truth none.csv: cannot be read: No such file"),
        (("--report-only", "--storage", "none.db"), "none.db"),
        (("--recipe", "none"), "recipe: 'none' is not known"),
        (("--data", "none"), "data: 'none' is neither a known set nor a folder"),
        (("--space", "none.yaml"), "none.yaml: no such space file"),
        (("--log-file", "none/f.log"), "--log-file: none/f.log: cannot be written"),
    ],
)
def test_bad_input_is_told_in_one_line_and_makes_no_database(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not list(Path().rglob("*.db"))


def test_fault_in_the_truth_file_names_line_and_value() -> None:
    Path("own.csv").write_text("name,accuracy\nSwin-T,0.8\nSwin-Q,0.9\n")
    assert "truth own.csv: line 3: name: 'Swin-Q' is no architecture" in run(*OWN, code=2).stderr
    Path("own.csv").write_text("name,accuracy\nSwin-E16x1.1.1.1,0.8\nSwin-E16x1.1.1.1-R112,0.9\n")
    assert "proxies: they take images of 32 pixels" in run(*OWN, code=2).stderr


def test_networks_that_share_one_proxy_are_refused_before_anything_is_trained() -> None:
    Path("own.csv").write_text("name,accuracy\nSwin-E16x1.1.1.1,0.8\nSwin-E32x1.1.1.1,0.9\n")
    assert "of the 2 networks no two of known order have different proxies" in run(*OWN, code=2).stderr
    assert not list(Path().rglob("*.db"))


def test_network_of_the_database_is_known_by_its_id() -> None:
    arch = parse_name("Swin-E16x1.1.2.1-R56-P1-N4")
    store = Store.open("ids.db", create=True)
    store.add_failure(arch, Failure(arch.id, "latency:x/y", "build", "none"))
    store.close()
    Path("own.csv").write_text(f"arch_id,name,accuracy\n{arch.id},,0.8\n,Swin-E16x1.1.1.1,0.7\n")
    content = document(*OWN, "--epochs", 1, "--storage", "ids.db")
    assert content["networks"][0]["arch_id"] == arch.id
    Path("own.csv").write_text("arch_id,accuracy\na1-000000000000,0.8\na1-1,0.7\n")
    result = run(*OWN, "--epochs", 1, "--storage", "ids.db", code=2)
    assert "line 2: arch_id: 'a1-000000000000' is no architecture of the database" in result.stderr


def test_figure_of_a_ranker_that_has_fewer_pairs_says_so() -> None:
    truth = truth_of_paper(("table4",))
    scores = {arch.id: [float(number)] for number, arch in enumerate(truth.archs)}
    proxy = rank_report(truth, scores)
    assert re.fullmatch(r"\d\.\d{3}", _of_pairs(proxy, proxy))
    fewer = rank_report(truth, {**scores, truth.archs[0].id: [float("nan")]})
    assert re.fullmatch(rf"\d\.\d{{3}} \({fewer.num_pairs} pairs\)", _of_pairs(fewer, proxy))
    assert 0 < fewer.num_pairs < proxy.num_pairs
