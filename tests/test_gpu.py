"""What only an NVIDIA GPU can show; `python -m pytest -m gpu` runs this and the contract tests' GPU cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from explorer import latency, model
from explorer.arch import PRESETS, parse_name
from explorer.cli import app
from explorer.evaluate import measure_arch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


def test_auto_chooses_the_gpu_and_says_so() -> None:
    target, why = latency.resolve()
    assert (target.backend, target.device_kind, target.threads) == ("torch", "cuda", 0)
    assert "GPU" in why
    assert target.device == torch.cuda.get_device_name()
    assert target.driver


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_presets_are_measured_on_the_gpu(precision: latency.Precision) -> None:
    target, _ = latency.resolve("torch", device="cuda", precision=precision)
    measured = {name: measure_arch(PRESETS[name], target) for name in ("Swin-T", "Swin-B")}
    assert 0 < measured["Swin-T"].latency_ms < measured["Swin-B"].latency_ms < 1000


def test_training_on_the_gpu_learns_and_repeats_itself(tmp_path: Path) -> None:
    from explorer.training.data import describe, load
    from explorer.training.recipe import Recipe
    from explorer.training.trainer import train

    device = torch.device("cuda")
    arch = parse_name("Swin-E32x2.2.2.2-W2.4.4.2-S0000-R32-P2-C1-N16")
    data = load(describe("contours", tmp_path), image_size=32, channels=1, device=device)
    recipe = Recipe(epochs=8, lr=3e-3)
    outcomes = [train(model.build(arch), recipe, data.for_search(None, None), seed=0, device=device) for _ in range(2)]
    assert outcomes[0].accuracy > 0.3, "chance is 1/16"
    assert abs(outcomes[0].accuracy - outcomes[1].accuracy) < 0.05


def test_search_runs_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["search", "--space", "demo.yaml", "--recipe", "quick", "--trials", "3", "--json"])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["event"], last["trials_done"]) == ("end", 3)
