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


NETWORKS = (
    "Swin-T",
    "SwinV2-T",
    "Swin-Free-T-BR",
    "Swin-E32x2.2.2.2-R256-BR-N10",
    "SwinV2-E32x2.2.2.2-W7.7.7.7-N10",
)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.float16, 5e-2), (torch.bfloat16, 0.4)], ids=str
)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_on_the_gpu_are_those_on_the_cpu(name: str, dtype: torch.dtype, tolerance: float) -> None:
    module = model.build(parse_name(name), scatter=True).eval()
    image = torch.randn(
        2, 3, module.arch.image_size, module.arch.image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = module(image)
        found = module.to("cuda", dtype)(image.to("cuda", dtype)).float().cpu()
    assert (found - expected).abs().max() <= tolerance * expected.std()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_under_autocast_has_finite_gradients(name: str, dtype: torch.dtype, checkpointing: bool) -> None:
    module = model.build(parse_name(name), scatter=True, drop_path=0.1).train().to("cuda")
    module.checkpoint_blocks(checkpointing)
    image = torch.randn(2, 3, module.arch.image_size, module.arch.image_size, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        loss = torch.nn.functional.cross_entropy(module(image), torch.tensor([0, 1], device="cuda"))
    loss.backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


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
