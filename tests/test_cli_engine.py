"""`export --what engine` as its users meet it: an engine beside the graph, what it is, and nothing half done."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from typer.testing import CliRunner, Result

from explorer.arch import parse_name
from explorer.cli import app
from explorer.latency import environment
from explorer.model import GRAPH_VERSION

pytest.importorskip("tensorrt_rtx_bindings", reason="pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs")

from explorer.latency import trt_build

pytestmark = pytest.mark.skipif(
    not trt_build.IS_RTX, reason="TensorRT is here, and builds for the GPU that is here alone"
)

NAME = "Swin-E32x1.1.1.1-H2.4.8.16-R56-P1-N10"
OTHER = "Swin-Free-E32x1.1.1.1-BR-H2.4.8.16-R56-P1-N10"
RTX_30 = ("--compute-capability", "8.6")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def export(*arguments: str, to: str = "out", name: str = NAME) -> Result:
    return run("export", name, "--to", to, "--what", "engine", *arguments)


def exported(*arguments: str, to: str = "out", name: str = NAME) -> dict[str, Any]:
    """What engine.json says, after its digests have been compared with the files."""
    result = export(*arguments, to=to, name=name)
    assert result.exit_code == 0, result.output
    content = json.loads(Path(to, "engine.json").read_text())
    for key, file in (("onnx_sha256", "model.onnx"), ("engine_sha256", "model.engine")):
        assert content[key] == hashlib.sha256(Path(to, file).read_bytes()).hexdigest()
    assert content["engine_bytes"] == Path(to, "model.engine").stat().st_size
    assert isinstance(content, dict)
    return content


def shape_of_image(file: Path) -> list[int | str]:
    image = onnx.load(file).graph.input[0].type.tensor_type
    return [dim.dim_param or dim.dim_value for dim in image.shape.dim]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


# -- what is written --------------------------------------------------------------------------------------------------


def test_engine_is_written_beside_the_graph_with_what_it_is(folder: Path) -> None:
    content = exported("--precision", "fp16", *RTX_30)
    assert sorted(file.name for file in (folder / "out").iterdir()) == [
        "engine.json",
        "model.engine",
        "model.onnx",
        "run.yaml",
    ]
    assert content["name"] == NAME
    assert content["arch_id"] == parse_name(NAME).id
    assert (content["precision"], content["batch"]) == ("fp16", 1)
    assert content["graph_version"] == GRAPH_VERSION
    assert content["tensorrt"] == trt_build.version()
    assert content["options"] == json.loads(json.dumps(trt_build.Options(compute_capabilities=("8.6",)).to_dict()))
    assert content["gpu"] is None, "it is for a GPU that is not here"
    assert content["build_s"] > 0
    assert content["num_layers"] > 0
    assert content["compared_with_model"] is False
    assert yaml.safe_load((folder / "out" / "run.yaml").read_text())["name"] == NAME


def test_engine_is_that_of_the_graph_in_the_file(folder: Path) -> None:
    exported("--precision", "fp16", *RTX_30)
    options = trt_build.Options(compute_capabilities=("8.6",))
    graph = (folder / "out" / "model.onnx").read_bytes()
    assert trt_build.build(graph, options).plan == (folder / "out" / "model.engine").read_bytes()


def test_command_says_where_the_graph_is(folder: Path) -> None:
    to = "my models/it's here"
    words = shlex.split(exported(*RTX_30, to=to)["trtexec"])
    assert words[0] == "tensorrt_rtx"
    assert f"--onnx={to}/model.onnx" in words
    assert "--computeCapabilities=86" in words
    assert "--noTF32" in words


def test_documents_name_the_files_and_the_command(folder: Path) -> None:
    result = export(*RTX_30)
    content = json.loads((folder / "out" / "engine.json").read_text())
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "out/model.onnx",
        "out/model.engine",
        "out/engine.json",
        "out/run.yaml",
    ]
    assert f"TensorRT {trt_build.version()}" in lines[1]
    assert "not compared with the model" in lines[1]
    assert lines[2].endswith(content["trtexec"])


def test_engine_for_several_gpus(folder: Path) -> None:
    content = exported("--precision", "fp16", "--compute-capability", "8.6, 12.0")
    assert content["options"]["compute_capabilities"] == ["8.6", "12.0"]
    assert "--computeCapabilities=86,120" in content["trtexec"]


@pytest.mark.parametrize(("given", "most"), [((), 32), (("--max-batch", "4"), 4), (("--max-batch", "1"), 1)])
def test_engine_for_any_batch_up_to_the_largest(given: tuple[str, ...], most: int, folder: Path) -> None:
    content = exported("--batch", "dynamic", *given, *RTX_30)
    assert content["batch"] is None
    assert content["options"]["batches"] == [1, most, most]
    for kind, batch in (("min", 1), ("opt", most), ("max", most)):
        assert f"--{kind}Shapes=image:{batch}x3x56x56" in shlex.split(content["trtexec"])
    assert shape_of_image(folder / "out" / "model.onnx") == ["batch", 3, 56, 56]


def test_engine_for_one_batch(folder: Path) -> None:
    content = exported("--batch", "2", *RTX_30)
    assert (content["batch"], content["options"]["batches"]) == (2, None)
    assert shape_of_image(folder / "out" / "model.onnx") == [2, 3, 56, 56]
    assert "Shapes" not in content["trtexec"]


def test_second_export_replaces_the_first(folder: Path) -> None:
    first = exported("--precision", "fp16", *RTX_30)
    second = exported("--precision", "fp16", "--compute-capability", "8.9", name=OTHER)
    assert (second["name"], second["options"]["compute_capabilities"]) == (OTHER, ["8.9"])
    assert first["engine_sha256"] != second["engine_sha256"]
    assert len(list((folder / "out").iterdir())) == 4
    assert exported("--precision", "fp16", *RTX_30)["engine_sha256"] == first["engine_sha256"]


def test_engine_of_a_run_file(folder: Path) -> None:
    assert run("export", NAME, "--to", "out").exit_code == 0
    content = exported(*RTX_30, name="out/run.yaml")
    assert content["name"] == NAME


def test_engine_of_an_earlier_export_is_not_left_beside_another_graph(folder: Path) -> None:
    """Or it is told: whoever runs it would run another network than the graph's."""
    exported("--precision", "fp16", *RTX_30)
    result = run("export", OTHER, "--to", "out")
    assert result.exit_code == 0
    assert not (folder / "out" / "model.engine").exists() or "model.engine is of an earlier export" in result.stderr


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what", "engines"], r"--what: 'engines' is not known; allowed: run, engine"),
        (["--what", "run", *RTX_30], r"--compute-capability: only an engine is built; say --what engine"),
        (["--what", "run", "--max-batch", "8"], r"--max-batch: only an engine is built; say --what engine"),
        (["--what", "run", "--max-batch", "8", *RTX_30], r"--compute-capability, --max-batch: only an engine is built"),
        (["--compute-capability", "9.0"], r"--compute-capability: '9\.0' is not known to RTX [\d.]+; allowed: 7\.5, 8\.0, 8\.6"),
        (["--compute-capability", "8.6,9.0"], r"'9\.0' is not known"),
        (["--compute-capability", "86"], r"'86' is not known"),
        (["--compute-capability", "8.6,"], r"'' is not known"),
        (["--max-batch", "8", *RTX_30], r"--max-batch: the engine is for one batch; say --batch dynamic"),
        (["--batch", "2", "--max-batch", "8", *RTX_30], r"--max-batch: the engine is for one batch"),
        (["--batch", "dynamic", "--max-batch", "0", *RTX_30], r"'--max-batch'.*greater than or equal to 1"),
        (["--deadline", "9", *RTX_30], r"'--deadline'.*greater than or equal to 10"),
        (["--deadline", "nan", *RTX_30], r"--deadline"),
        (["--precision", "int8", *RTX_30], r"precision: 'int8' is not allowed; allowed: fp32, fp16, bf16"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_nothing_is_written(arguments: list[str], message: str, folder: Path) -> None:
    result = export(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert re.search(message, result.stderr, re.DOTALL), result.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(environment.has_nvidia_driver(), reason="there is an NVIDIA driver here")
def test_no_gpu_here_and_none_named_is_told_with_how_to_name_one(folder: Path) -> None:
    result = export()
    assert result.exit_code == 2
    assert re.fullmatch(
        r"error: --what engine: there is no NVIDIA GPU here to build for; name one: --compute-capability (\d+\.\d)\n",
        result.stderr,
    )
    assert list(folder.iterdir()) == []
    named = result.stderr.split()[-1]
    assert named in trt_build.compute_capabilities()


@pytest.mark.skipif(environment.has_nvidia_driver(), reason="there is an NVIDIA driver here")
def test_no_gpu_for_tensorrt_is_told_with_what_builds_without_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_build, "IS_RTX", False)
    result = export()
    assert result.exit_code == 2
    assert "TensorRT for RTX does: pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs" in result.stderr
    result = export(*RTX_30)
    assert result.exit_code == 2
    assert re.search(
        r"'8\.6' is not known to [\d.]+; allowed: none: TensorRT builds for the GPU that is here", result.stderr
    )
    assert list(folder.iterdir()) == []


def test_folder_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / "file").write_text("mine")
    result = export(*RTX_30, to="file/out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: --to: file/out: cannot be written: Not a directory"
    assert [file.name for file in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "mine"


def test_engine_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / "out" / "model.engine").mkdir(parents=True)
    result = export(*RTX_30)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: --to: out: cannot be written: Is a directory"
    assert not (folder / "out" / "engine.json").exists()


def wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every deadline has passed when the build starts."""
    build = trt_build.build
    monkeypatch.setattr(trt_build, "build", lambda *given, **named: build(*given, **{**named, "deadline": 0.0}))


def test_build_that_takes_too_long_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_nothing(monkeypatch)
    result = export("--deadline", "10", *RTX_30)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert re.fullmatch(
        rf"error: {re.escape(NAME)}: the engine was not built by its deadline, after \d+ s",
        result.stderr.splitlines()[-1],
    )
    assert not (folder / "out" / "model.engine").exists()
    assert not (folder / "out" / "engine.json").exists()


def test_deadline_reaches_the_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    build = trt_build.build

    def watch(*arguments: Any, deadline: float | None = None, **named: Any) -> trt_build.Built:
        assert deadline is not None
        given.append(deadline)
        return build(*arguments, deadline=deadline, **named)

    monkeypatch.setattr(trt_build, "build", watch)
    before = time.monotonic()
    exported("--deadline", "500", *RTX_30)
    exported(*RTX_30)
    after = time.monotonic()
    assert before + 500 <= given[0] <= after + 500
    assert before + 900 <= given[1] <= after + 900


def test_failed_build_leaves_no_engine_of_another_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the folder belongs together: all of the earlier export, or nothing of its engine."""
    exported("--precision", "fp16", *RTX_30)
    wait_for_nothing(monkeypatch)
    assert export("--precision", "fp16", *RTX_30, name=OTHER).exit_code == 1
    if (folder / "out" / "model.engine").exists():
        content = json.loads((folder / "out" / "engine.json").read_text())
        assert content["onnx_sha256"] == hashlib.sha256((folder / "out" / "model.onnx").read_bytes()).hexdigest()


def test_precision_that_the_gpu_cannot_run_is_refused(folder: Path) -> None:
    result = export("--compute-capability", "7.5")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --compute-capability: 7.5 runs no fp32 matrix products")
    assert not (folder / "out").exists()
    assert exported("--precision", "fp16", "--compute-capability", "7.5")["engine_bytes"] > 0


def test_help_names_the_engine_and_its_options() -> None:
    text = " ".join(run("export", "--help").stdout.split())
    for part in ("--what", "engine", "--compute-capability", "--max-batch", "--deadline"):
        assert part in text
