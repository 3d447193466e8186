"""Commands that read and write weights: public checkpoints into `export` and `train`, and layouts out of `export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from explorer.arch import parse_name
from explorer.cli import app
from explorer.model import build, export_weights, load_weights
from explorer.model.weights import Layout

NAME = "Swin-E16x2.2.2.2-W2.2.2.2-R32-P2-C1-N16"
RECIPE = "epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 32\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def logits_of(file: Path, image: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image.numpy()})[0]


@pytest.mark.parametrize("name", [NAME, "SwinV2-E16x2.2.2.2-W3.4.2.2-32-P2-C1-N16"])
@pytest.mark.parametrize("layout", ["timm", "torchvision", "microsoft", "swinexplore"])
def test_public_weights_go_into_the_model(name: str, layout: Layout, folder: Path) -> None:
    module = build(parse_name(name), scatter=True, seed=5).eval()
    torch.save({"model": export_weights(module, layout)}, folder / "public.pth")
    code, _, told = run("export", name, "--to", "out", "--checkpoint", "public.pth", "--batch", "dynamic")
    assert code == 0, told
    assert f"layout of {layout}" in told
    image = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = module(image).numpy()
    found = logits_of(folder / "out" / "model.onnx", image)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_weights_come_out_in_another_layout(folder: Path) -> None:
    module = build(parse_name(NAME), scatter=True, seed=5)
    save_file(export_weights(module, "torchvision"), folder / "public.safetensors")
    code, out, _ = run("export", NAME, "--to", "out", "--checkpoint", "public.safetensors", "--layout", "microsoft")
    assert code == 0
    assert "weights.safetensors  in the layout of microsoft" in out
    written = load_file(folder / "out" / "weights.safetensors")
    expected = export_weights(module, "microsoft")
    assert written.keys() == expected.keys()
    assert all(torch.equal(values, expected[key]) for key, values in written.items())


def test_bf16_graph_is_written_after_its_check(folder: Path) -> None:
    code, _, told = run("export", NAME, "--to", "out", "--precision", "bf16")
    assert code == 0, told
    model = onnx.load(folder / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16


def test_weights_of_other_windows_are_resized_and_that_is_said(folder: Path) -> None:
    save_file(export_weights(build(parse_name(NAME), scatter=True), "timm"), folder / "public.safetensors")
    code, _, told = run(
        "export", NAME.replace("W2.2.2.2", "W2.4.4.2") + "-S0000", "--to", "out", "--checkpoint", "public.safetensors"
    )
    assert code == 0
    assert "the weights are of other windows: 4 position bias tables resized" in told


@pytest.mark.parametrize("layout", ["timm", "swinexplore"])
def test_training_starts_from_public_weights(layout: Layout, folder: Path) -> None:
    """With a learning rate of next to nothing the trained weights are the given ones."""
    (folder / "recipe.yaml").write_text(RECIPE + "lr: 1.0e-12\nmin_lr: 0.0\n")
    module = build(parse_name(NAME), scatter=True, seed=5)
    torch.save(export_weights(module, layout), folder / "public.pt")
    assert run("export", NAME, "--to", "out", "--recipe", "recipe.yaml", "--data", "contours")[0] == 0
    code, _, told = run("train", "out/run.yaml", "--weights", "public.pt")
    assert code == 0, told
    assert f"starting from public.pt, in the layout of {layout}" in told
    trained = build(parse_name(NAME))
    load_weights(trained, torch.load(folder / "out" / "checkpoint.pt", weights_only=True))
    for name, parameter in trained.named_parameters():
        torch.testing.assert_close(parameter, module.get_parameter(name), atol=1e-6, rtol=1e-6)
    code, _, told = run("train", "out/run.yaml")
    assert code == 2
    assert "the state of another training" in told


def test_swin_checkpoint_starts_a_swin_free_with_other_classes(folder: Path) -> None:
    public = build(parse_name(NAME.replace("N16", "N7")), scatter=True, seed=5)
    torch.save(export_weights(public, "microsoft"), folder / "public.pt")
    free = NAME.replace("W2.2.2.2", "W2.4.4.2") + "-S0000"
    assert run("export", free, "--to", "out", "--recipe", "recipe.yaml", "--data", "contours")[0] == 0
    code, _, told = run("train", "out/run.yaml", "--weights", "public.pt")
    assert code == 2
    assert "2 misshapen (head.weight 7x128 where 16x128 is wanted" in told
    code, _, told = run("train", "out/run.yaml", "--weights", "public.pt", "--new-head", "--checkpoint-blocks")
    assert code == 0, told
    code, _, told = run("train", "out/run.yaml", "--weights", "public.pt")
    assert code == 2
    code, _, told = run("train", "out/run.yaml", "--new-head")
    assert code == 2
    assert "--new-head: says how to start from --weights" in told


@pytest.mark.parametrize("command", ["export", "train"])
def test_bad_weights_are_one_message_and_exit_code_2(command: str, folder: Path) -> None:
    assert run("export", NAME, "--to", "run", "--recipe", "recipe.yaml", "--data", "contours")[0] == 0
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    torch.save(export_weights(build(parse_name("Swin-E16x1.1.1.1-R32-P2-C1-N16")), "timm"), folder / "small.pt")
    torch.save({"epoch": 3}, folder / "empty.pt")
    before = sorted(path.name for path in (folder / "run").iterdir())
    for file, message in (
        ("gone.pt", "gone.pt: no such file"),
        ("broken.pt", "broken.pt: not weights that can be read safely"),
        ("small.pt", "do not fit Swin-E16x2.2.2.2"),
        ("empty.pt", "it holds no tensor at all"),
    ):
        if command == "export":
            code, out, told = run("export", NAME, "--to", "out", "--checkpoint", file)
        else:
            code, out, told = run("train", "run/run.yaml", "--weights", file)
        assert code == 2, told
        assert message in told
        assert "Traceback" not in told
        assert out == ""
    assert not (folder / "out").exists()
    assert sorted(path.name for path in (folder / "run").iterdir()) == before
