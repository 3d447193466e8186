"""The benchmarks run and keep what the README quotes; their numbers are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from explorer.arch import PRESETS
from explorer.model import GRAPH_VERSION, MODULE_VERSION, node_roles

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "fields"),
    [
        (
            "model_speed",
            ["--models", "Swin-T", "--batch", "1", "--rounds", "2"],
            {"speedup_vs_timm", "speedup_vs_torchvision"},
        ),
        (
            "export_speed",
            ["--models", "Swin-T", "--rounds", "1"],
            {"share_of_time", "share_of_nodes", "logits_difference"},
        ),
        (
            "latency_speed",
            ["--models", "Swin-T", "--rounds", "0", "--repeats", "2"],
            {"cv_of_medians", "cv_of_ratios", "largest_drift", "invalid"},
        ),
        (
            "search_quality",
            [
                "--seeds",
                "1",
                "--count",
                "60",
                "--tables",
                "synthetic",
                "--samplers",
                "tpe",
                "plain-random",
                "oracle",
                "--asks",
                "20",
            ],
            {"mean_50", "min_50", "ask_ms", "best_plain", "reaches_it_at"},
        ),
        (
            "ladder",
            ["--seeds", "1", "--tables", "synthetic", "--etas", "3"],
            {"hypervolume", "share", "goal_hypervolume", "goal_share"},
        ),
        (
            "search_overhead",
            ["--trials", "60", "--samplers", "random"],
            {"ask_ms", "optuna_ms", "own_ms", "resident_mib"},
        ),
        (
            "proxy_speed",
            ["--models", "Swin-B proxy", "--batch", "8", "--steps", "1", "--rounds", "1", "--threads", "1"],
            {"speedup", "ours_images_per_s"},
        ),
        (
            "train_parallel",
            ["--archs", "2", "--at-once", "1", "--train-images", "128", "--rounds", "1"],
            {"proxies_per_hour"},
        ),
        (
            "data_cache",
            ["--images", "40", "--width", "50", "--height", "40", "--image-sizes", "32", "--rounds", "1"],
            {"images_per_s"},
        ),
    ],
)
def test_benchmark_runs_and_keeps_its_result(
    script: str, arguments: list[str], fields: set[str], tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / f"{script}-cpu.json").read_text())
    assert fields <= content["rows"][0].keys()
    assert content["host"]["versions"]["torch"]
    assert content["rows"][0]["what"].startswith(("Swin-", "synthetic", "random", "1 at once", "described"))


@pytest.mark.slow
def test_benchmark_of_the_fidelity_keeps_every_ranker_and_network(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("epochs: 1\nbatch_size: 8\ntrain_images: 16\neval_images: 16\n")
    options = ["--tables", "table4", "--recipe", "tiny.yaml", "--data", "contours", "--seeds", "2", "--storage", "f.db"]
    command = [sys.executable, str(ROOT / "benchmarks" / "fidelity.py"), *options, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "fidelity-table4-cpu.json").read_text())["rows"]}
    rankers = {"proxy", "parameters", "flops", "tokens_seen", "synflow", "naswot", "grad_norm"}
    assert {f"table4: {ranker}" for ranker in rankers} <= rows.keys()
    proxy = rows["table4: proxy"]
    assert proxy["pairs"] == rows["table4: flops"]["pairs"] == 11
    assert len(proxy["by_seed"]) == 2
    assert 0 <= proxy["concordance"] <= 1
    assert rows["Swin-B"]["truth"]
    assert len(rows["Swin-B"]["accuracies"]) == 2
    missing = subprocess.run([*command[:2], "--storage", "f.db", "--seeds", "0"], cwd=tmp_path, capture_output=True)
    assert missing.returncode == 2, "what fidelity refuses, this does"


def test_trainings_at_once_that_would_leave_threads_idle_are_refused() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "train_parallel.py"), "--at-once", "1", "2", "--threads", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--at-once: 2: give" in done.stderr


def test_kept_results_say_where_they_were_measured() -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    names = {"model_speed-cpu.json", "export_speed-cpu.json", "latency_speed-cpu.json"}
    assert {file.name for file in results} >= names
    for file in results:
        content = json.loads(file.read_text())
        assert content["host"]["cpu"], file
        assert content["host"]["versions"], file
        assert content["rows"], file
        assert (content["graph_version"], content["module_version"]) == (GRAPH_VERSION, MODULE_VERSION), file


def test_kept_result_of_the_export_reaches_its_goals_with_today_s_graph() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "export_speed-cpu.json").read_text())
    rows = {row["what"]: row for row in content["rows"]}
    assert rows["Swin-B"]["share_of_nodes"] <= rows["Swin-B"]["goal_nodes"] == 0.85
    assert rows["Swin-B"]["share_of_time"] <= rows["Swin-B"]["goal_time"] == 0.2
    assert rows["Swin-Free-B-BR"]["share_of_nodes"] <= rows["Swin-Free-B-BR"]["goal_nodes"] == 0.65
    for name in ("Swin-T", "Swin-B", "Swin-Free-B-BR"):
        assert rows[name]["ours_nodes"] == sum(node_roles(PRESETS[name]).values())
        assert rows[name]["logits_difference"] < 1e-4


def test_kept_result_of_the_latency_says_what_it_costs_and_how_well_it_repeats() -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "latency_speed-cpu.json").read_text())
    rows = {row["what"]: row for row in content["rows"]}
    (repeated,) = (row for what, row in rows.items() if "measured 10 times" in what)
    assert len(repeated["medians_ms"]) == len(repeated["ratios"]) == 10
    for name in ("Swin-T", "Swin-S"):
        assert {f"{name} cold", f"{name} warm", f"{name} engine for RTX 30, fp16"} <= rows.keys()
        engine = rows[f"{name} engine for RTX 30, fp16"]
        assert engine["ours_fused_attentions"] == engine["attentions"] == sum(PRESETS[name].depths)


def test_command_for_a_gpu_lists_its_steps_and_says_where_there_is_no_gpu() -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "on_gpu.py")]
    listed = subprocess.run([*script, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert {"tests", "table1-torch-fp32", "table6-tensorrt-fp16", "latency_speed", "model_speed"} <= set(listed)
    from explorer.latency import sees_gpu

    if not sees_gpu():
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "no NVIDIA GPU" in done.stderr
