"""The command line as its users meet it: exit codes, documents, messages, nothing lost."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import yaml
from filelock import FileLock
from typer.testing import CliRunner, Result

from explorer import __version__, doctor
from explorer.arch import PRESETS, Arch, parse_name
from explorer.cli import app, console
from explorer.errors import MeasureError
from explorer.evaluate import live
from explorer.latency import BACKENDS, measurer, sees_gpu
from explorer.records import Latency, Target

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14]}
  br: [off, on]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
RECIPE = "epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 64\n"
TINY = "Swin-E16x1.1.1.1-R56-P1-N10"
TINY_BR = "Swin-E16x1.1.1.1-BR-R56-P1-N10"
ROW_FIELDS = {
    "arch_id", "name", "windows", "shifts", "br", "depth3", "depths", "embed_dim", "accuracy", "latency_ms",
    "params_trainable", "params_deployed", "flops",
}  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def document(*arguments: str) -> Any:
    """The one JSON document on stdout."""
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


class ByWindows:
    """In place of a Measurer, which would start a process: latencies by arithmetic, in ratio to the reference's."""

    def __init__(self, target: Target, *, reference: Arch | None = None, **settings: Any) -> None:
        self.target, self.reference, self.settings = target, reference, settings
        self.on_event: Callable[[str], None] = settings.get("on_event", lambda text: None)

    def measure(self, arch: Arch) -> Latency:
        self.on_event("timing")
        ms = 1.0 + sum(arch.windows) / 10 - arch.br / 2
        beside = {}
        if self.reference is not None:
            beside = {"reference_id": self.reference.id, "reference_ms": 1.0 + sum(self.reference.windows) / 10}
        return Latency(
            arch.id, self.target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0, images_per_s=1e3 / ms, **beside
        )

    def close(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study of three architectures."""
    folder = tmp_path_factory.mktemp("studied")
    (folder / "small.yaml").write_text(SPACE)
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(live, "Measurer", ByWindows)
        result = run(
            "search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--trials", "3", "--log-file", "log.txt"
        )
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def study(studied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(studied)
    return studied


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--space", "gone.yaml"], r"gone\.yaml: no such space file.*swinfree\.yaml"),
        (["search", "--space", "demo.yaml", "--data", "gone"], r"data: 'gone' is neither.*contours"),
        (["search", "--space", "demo.yaml", "--backend", "tflite"], r"'tflite' is not in this version; allowed: auto, tensorrt,"),
        (["search", "--space", "demo.yaml", "--backend", "tensorrt", "--device", "cpu"], r"tensorrt: does not run on cpu"),
        (["search", "--space", "demo.yaml", "--rebuilds", "0"], r"Invalid value for '--rebuilds'"),
        (["search", "--space", "demo.yaml", "--deadline", "1"], r"Invalid value for '--deadline'"),
        (["search", "--space", "demo.yaml", "--precision", "int8"], r"precision: 'int8'.*fp32, fp16, bf16"),
        (["search", "--space", "demo.yaml", "--backend", "onnxruntime", "--precision", "bf16"], r"allowed: fp32, fp16"),
        (["search", "--space", "demo.yaml", "--sampler", "best"], r"sampler: 'best'.*tpe, nsgaii.*brute"),
        (["search", "--space", "demo.yaml", "--recipe", "best"], r"recipe: 'best'.*proxy, quick"),
        (["search", "--space", "demo.yaml", "--max-latency", "-1"], r"--max-latency: -1\.0"),
        (["search", "--space", "demo.yaml", "--max-latency", "nan"], r"--max-latency: nan"),
        (["search", "--space", "demo.yaml", "--image-size", "100"], r"image_size: 100 is not a multiple"),
        (["search", "--space", "demo.yaml", "--image-size", "128"], r"proxy\.unit: 2 is more than 1, the largest number"),
        (["search", "--space", "demo.yaml", "--storage", "mysql://x/y"], r"'mysql://x/y' is not supported"),
        (["search", "--space", "demo.yaml", "--study", ""], r"study: '' is no name"),
        (["search", "--space", "demo.yaml", "--log-file", "no/such/log"], r"--log-file: no/such/log"),
        (["pareto"], r"no such database; run `swinexplore search` first"),
        (["pareto", "--max-latency", "0"], r"--max-latency: 0\.0 is not a number of milliseconds above 0"),
        (["pareto", "--format", "xml"], r"'xml' is not known; allowed: table, csv, json, md"),
        (["pareto", "--plot", "front.gif"], r"ends in '\.gif'; allowed: \.png, \.html"),
        (["pareto", "--plot", "no/front.png"], r"no: no such folder"),
        (["studies", "list"], r"no such database"),
        (["studies", "delete", "x", "--yes"], r"no such database"),
        (["inspect", "Swin-Q"], r"'Swin-Q' is no architecture; allowed: a preset \(Swin-T"),
        (["inspect", "Swin-B-W0.7.7.7"], r"windows\.stage1: 0 is not a whole number from 1 to"),
        (["inspect", "Swin-E20x1.1.1.1-H3.3.3.3"], r"num_heads\.stage1: 3 heads do not divide 20 channels; use one of"),
        (["inspect", "a1-0123"], r"no such database"),
        (["inspect", "gone.yaml"], r"gone\.yaml: no such file"),
        (["space", "gone"], r"gone: no such space file"),
        (["measure", "Swin-T", "--device", "tpu"], r"device: 'tpu'.*auto, cpu, cuda"),
        (["measure", "Swin-T", "--image-size", "100"], r"image_size: 100 is not a multiple of 32"),
        (["export", "Swin-T", "--to", "x", "--precision", "int8"], r"'int8' is not allowed; allowed: fp32, fp16, bf16"),
        (["export", "Swin-T", "--to", "x", "--batch", "0"], r"--batch: '0' is neither a whole number from 1 to 65,536 nor"),
        (["export", "Swin-T", "--to", "x", "--layout", "timm"], r"--layout: there are no trained weights to write; give --che"),
        (["reproduce", "table4", "--backend", "tflite"], r"backend: 'tflite' is not in this version"),
        (["measure", TINY, "--batch", "1,dynamic"], r"--batch: 'dynamic' is no number of images; give --dynamic-batch"),
        (["measure", TINY, "--batch", "1,,4"], r"--batch: '' is neither a whole number from 1 to 65,536 nor"),
        (["measure", TINY, "--batch", "0"], r"--batch: '0' is neither a whole number"),
        (["measure", TINY, "--dynamic-batch", "--backend", "torch"], r"dynamic batch: torch runs no graph"),
        (["measure", TINY, "--reference", "Swin-Q"], r"'Swin-Q' is no architecture"),
        (["measure", TINY, "--rebuilds", "101"], r"Invalid value for '--rebuilds'"),
        (["measure", TINY, "--deadline", "9"], r"Invalid value for '--deadline'"),
        (["reproduce", "table4", "--study", "mine"], r"no such database"),
        (["export", TINY, "--to", "x", "--checkpoint", "gone.pt"], r"gone\.pt: no such file"),
        (["train", "gone.yaml"], r"gone\.yaml: no such file"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], message: str, folder: Path) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert re.search(message, result.stderr, re.DOTALL), result.stderr
    assert list(folder.iterdir()) == [], "nothing is written"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"the document holds None, not a mapping"),
        ("version: 1\nbase: Swin-B\nserch: {}\n", r"serch: unknown key; allowed: version, base, search"),
        (
            SPACE.replace("[7, 14]", "[7, 9]"),
            r"proxy\.unit: 2 is more than 1, the largest number that divides all windows",
        ),
        (SPACE.replace("[7, 14]", "[]"), r"search\.windows\.stage1: \[\] is too short"),
        (SPACE.replace("[7, 14]", "[seven]"), r"search\.windows\.stage1\[0\]: 'seven'"),
        (SPACE.replace("version: 1", "version: 2"), r"version: 2 is not allowed; allowed: 1"),
    ],
)
def test_bad_space_file_is_told_with_its_place(content: str, message: str, folder: Path) -> None:
    (folder / "mine.yaml").write_text(content)
    result = run("search", "--space", "mine.yaml")
    assert result.exit_code == 2
    assert re.search(r"mine\.yaml: " + message, result.stderr), result.stderr
    assert [file.name for file in folder.iterdir()] == ["mine.yaml"]


def test_study_of_another_space_is_refused(study: Path) -> None:
    name = document("studies", "list", "--json")["studies"][0]["study"]
    result = run("search", "--space", "demo.yaml", "--recipe", "recipe.yaml", "--study", name)
    assert result.exit_code == 2
    assert f"'{name}' was made with another setting" in result.stderr
    assert "space.base" in result.stderr
    assert document("studies", "list", "--json")["studies"][0]["architectures"] == 3


def test_unforeseen_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    script = (
        "import sys, explorer.space, explorer.__main__\n"
        "explorer.space.Space.load = lambda *a, **k: 1 / 0\n"
        "sys.argv = ['swinexplore', 'space', 'demo.yaml']\n"
        "explorer.__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "internal error: ZeroDivisionError" in done.stderr


def test_question_that_nobody_answers_is_an_interrupt(study: Path) -> None:
    name = document("studies", "list", "--json")["studies"][0]["study"]
    result = run("studies", "delete", name)
    assert result.exit_code == 130
    assert "interrupted; everything finished is kept" in result.stderr
    assert [row["study"] for row in document("studies", "list", "--json")["studies"]] == [name]


def test_memory_that_runs_out_in_a_command_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> None:
        torch.empty(2**50, dtype=torch.float64)

    monkeypatch.setattr("explorer.training.contours.draw", draw)
    result = run("data", "prepare", "contours", "--image-size", "64")
    assert result.exit_code == 1
    assert re.match(r"error: memory ran out: .*allocate .*; use smaller images, a smaller batch", result.stderr)


# -- documents --------------------------------------------------------------------------------------------------------


def test_version_and_help_of_every_command_show_an_example() -> None:
    assert run("--version").stdout == f"swinexplore {__version__}\n"
    commands = [
        "search", "pareto", "export", "train", "space", "inspect", "measure", "profile", "reproduce", "studies", "doctor",
    ]  # fmt: skip
    for command in (
        [],
        *([name] for name in commands),
        ["studies", "list"],
        ["studies", "show"],
        ["studies", "delete"],
    ):
        result = run(*command, "--help")
        assert result.exit_code == 0
        assert "Example: swinexplore" in " ".join(result.stdout.split()), command


def test_space_document_counts_the_space(folder: Path) -> None:
    content = document("space", "swinfree.yaml", "--json")
    assert (content["raw_points"], content["architectures"]) == (1280, 480)
    assert content["search"]["depth3"] == [10, 12, 14, 16, 18]
    assert "1,280 raw points, 480 different architectures" in run("space", "swinfree").stdout


@pytest.mark.parametrize("name", PRESETS)
def test_inspect_document_has_the_names_that_stay(name: str, folder: Path) -> None:
    content = document("inspect", name.lower(), "--json")
    arch = PRESETS[name]
    assert content["name"] == name
    assert (content["windows"], content["shifts"], content["br"]) == (list(arch.windows), list(arch.shifts), arch.br)
    assert {*ROW_FIELDS} - {"accuracy", "latency_ms"} <= set(content)
    assert len(content["stages"]) == 4
    assert f"{content['params_trainable']:,}" in run("inspect", name).stdout


LATENCY_FIELDS = {field.name for field in fields(Latency)}


@pytest.fixture
def cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_measure_prints_latency_with_device_and_versions(folder: Path, cached_here: Path) -> None:
    """Real: two networks, both batches of one dynamic graph, each beside the reference, and one engine more of each."""
    names, reference = (TINY, TINY_BR), TINY_BR
    asked = ["--batch", "2,1,2", "--dynamic-batch", "--reference", reference, "--rebuilds", "2", "--deadline", "300"]
    rows = document("measure", *names, "--backend", "onnxruntime", *asked, "--json")["measurements"]
    assert [(row["name"], row["batch"]) for row in rows] == [(name, batch) for batch in (2, 1) for name in names]
    for row in rows:
        assert (ROW_FIELDS - {"accuracy"}) | LATENCY_FIELDS | {"batch", "ratio", "rebuild_spread", "target"} <= set(row)
        assert 0 < row["min_ms"] <= row["latency_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["environment"]["versions"]["onnxruntime"] == row["target"]["backend_version"]
        assert row["target"]["device"] == row["environment"]["cpu"]
        assert (row["target"]["batch"], row["target"]["options"]) == (row["batch"], "dynamic batch 1..2")
        assert row["images_per_s"] > 0
        assert row["reference_id"] == parse_name(reference).id
        assert row["ratio"] == pytest.approx(row["latency_ms"] / row["reference_ms"])
        was_disturbed = any("engine 2 of 2 was not timed" in remark for remark in row["remarks"])
        assert len(row["rebuild_medians_ms"]) == (0 if was_disturbed else 1)
        assert (row["rebuild_spread"] is None) == was_disturbed
    assert [row["ratio"] for row in rows if row["name"] == reference] == [1.0, 1.0]
    assert list(folder.iterdir()) == []


def test_measure_of_the_module_prints_a_line(folder: Path, cached_here: Path) -> None:
    text = run("measure", TINY, "--backend", "torch", "--device", "cpu")
    assert text.exit_code == 0, text.output
    assert re.search(rf"^{TINY} +[\d.]+ ms  p95 [\d.]+  cv [\d.]+%  \d+ images/s  \d+ samples", text.stdout)
    assert "batch" not in text.stdout.splitlines()[0], "one batch is told with the target"
    assert re.search(r"^torch 2\S*, fp32, batch 1, 56x56, ", text.stdout.splitlines()[-1])
    assert list(folder.iterdir()) == []


@pytest.fixture
def by_windows(monkeypatch: pytest.MonkeyPatch) -> list[ByWindows]:
    """The measurers that a command opened."""
    opened: list[ByWindows] = []

    def open_measurer(target: Target, **settings: Any) -> ByWindows:
        opened.append(ByWindows(target, **settings))
        return opened[-1]

    monkeypatch.setattr(measurer, "Measurer", open_measurer)
    return opened


def test_measure_of_several_batches_says_which(folder: Path, by_windows: list[ByWindows], cached_here: Path) -> None:
    asked = ["--batch", "1, 4", "--reference", TINY, "--rebuilds", "3", "--deadline", "77", "--backend", "onnxruntime"]
    result = run("measure", TINY_BR, *asked)
    lines = result.stdout.splitlines()
    assert [line.split()[1:3] for line in lines[:2]] == [["batch", "1"], ["batch", "4"]]
    assert all("0.868 of the reference" in line for line in lines[:2])
    assert ["fp32, batch 1, 56x56" in lines[2], "fp32, batch 4, 56x56" in lines[3], len(lines)] == [True, True, 4]
    settings = [(one.settings["rebuilds"], one.settings["deadline_s"]) for one in by_windows]
    assert settings == [(3, 77.0)] * 2
    assert {one.settings["cache_root"] for one in by_windows} == {cached_here / "swinexplore"}
    assert len({id(one.settings["worker"]) for one in by_windows}) == 1, "one worker measures all"
    assert [(one.target.batch, one.target.options) for one in by_windows] == [(1, ""), (4, "")]


@pytest.mark.parametrize("kind", ["timeout", "crash", "out_of_memory", "mismatch"])
def test_network_that_cannot_be_measured_is_told_and_the_others_measured(
    kind: str, folder: Path, by_windows: list[ByWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ByWindows.measure

    def failing(self: ByWindows, arch: Arch) -> Latency:
        if arch.br:
            raise MeasureError("the engine was lost", kind)
        return measure(self, arch)

    monkeypatch.setattr(ByWindows, "measure", failing)
    result = run("measure", TINY_BR, TINY, "--json")
    assert result.exit_code == 1
    lost, found = json.loads(result.stdout)["measurements"]
    assert (lost["name"], lost["latency_ms"], lost["kind"], lost["reason"], lost["batch"]) == (
        TINY_BR, None, kind, "the engine was lost", 1,
    )  # fmt: skip
    assert found["latency_ms"] > 0
    assert f"error: {TINY_BR}: the engine was lost" in result.stderr
    text = run("measure", TINY_BR, TINY)
    assert text.exit_code == 1
    assert len([line for line in text.stdout.splitlines() if " ms  p95 " in line]) == 1


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"invalid": "other processes kept 2.0 CPUs busy"}, "INVALID: other processes kept 2.0 CPUs busy"),
        ({"is_stable": False}, "(not stable)"),
        ({"rebuild_medians_ms": (4.0,)}, "engines differ by 5.3%"),
    ],
)
def test_measure_says_what_is_wrong_with_a_latency(
    found: dict[str, Any], said: str, folder: Path, by_windows: list[ByWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ByWindows.measure
    monkeypatch.setattr(ByWindows, "measure", lambda self, arch: replace(measure(self, arch), **found))
    result = run("measure", TINY)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].endswith(said)


def test_dry_run_tells_size_plan_and_time_and_starts_nothing(folder: Path) -> None:
    result = run("search", "--space", "swinfree.yaml", "--trials", "200", "--dry-run")
    assert result.exit_code == 0
    for part in ("1,280 raw points, 480 different", "0 of 200 architectures", "chosen because", "time     about"):
        assert part in result.stderr
    content = document("search", "--space", "swinfree.yaml", "--trials", "900", "--dry-run", "--json")
    assert (content["trials"], content["architectures"], content["raw_points"]) == (480, 480, 1280)
    assert content["seconds"] > 0
    assert list(folder.iterdir()) == []


def test_doctor_measures_on_every_backend(folder: Path, cached_here: Path) -> None:
    """Real, and no more may be said of a backend than what it did."""
    content = document("doctor", "--json")
    findings = {finding["subject"]: finding for finding in content["findings"]}
    states = {subject: finding["state"] for subject, finding in findings.items()}
    assert len(states) == len(content["findings"])
    on_every = {f"backend {backend} on {kind}" for backend, known in BACKENDS.items() for kind in known.kinds}
    assert on_every == {subject for subject in states if subject.startswith("backend ")}
    assert states["backend onnxruntime on cpu"] == states["backend torch on cpu"] == "ok"
    for backend in ("onnxruntime", "torch"):
        assert re.search(rf"[\d.]+: [\d.]+ ms for {doctor.PROBE.name}", findings[f"backend {backend} on cpu"]["detail"])
    if not sees_gpu():
        assert {states[subject] for subject in on_every if subject.endswith("on cuda")} == {"missing"}
    assert {"python", "cpu", "gpu", "tensorrt", "nvml", "nvidia-ml-py", "onnxruntime", "studies"} <= set(states)
    assert content["works"] is ("broken" not in states.values())
    assert list(folder.iterdir()) == []


@pytest.fixture
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[ByWindows]]:
    monkeypatch.setattr(doctor, "Measurer", ByWindows)
    yield ByWindows


def test_doctor_prints_a_line_for_each_thing(folder: Path, quick_doctor: type[ByWindows]) -> None:
    lines = run("doctor").stdout.splitlines()
    content = document("doctor", "--json")
    assert [line.split()[0] for line in lines] == [finding["state"] for finding in content["findings"]]
    assert all(finding["subject"] in line for line, finding in zip(lines, content["findings"], strict=True))
    assert {"ok", "missing"} >= {finding["state"] for finding in content["findings"]}


def test_doctor_tells_what_is_broken_and_goes_on(
    folder: Path, quick_doctor: type[ByWindows], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: ByWindows, arch: Arch) -> Latency:
        if self.target.backend == "torch":
            raise MeasureError("the measuring process crashed (SIGSEGV)\nmore of it", "crash")
        found = Latency(arch.id, self.target.id, 1.0, 1.0, 1.0, 0.0, 3, (1.0,) * 3, True, 0.0, 0.0)
        return replace(found, invalid="other processes kept 2.0 CPUs busy")

    monkeypatch.setattr(ByWindows, "measure", failing)
    result = run("doctor", "--json")
    content = json.loads(result.stdout)
    findings = {finding["subject"]: finding for finding in content["findings"]}
    broken = findings["backend torch on cpu"]
    assert (broken["state"], broken["detail"]) == ("broken", "the measuring process crashed (SIGSEGV)")
    assert broken["mend"]
    assert content["works"] is False
    disturbed = findings["backend onnxruntime on cpu"]
    assert disturbed["state"] == "ok"
    assert disturbed["detail"].endswith("(invalid: other processes kept 2.0 CPUs busy)")


# -- a study ----------------------------------------------------------------------------------------------------------


def test_search_logs_to_the_file(study: Path) -> None:
    log = (study / "log.txt").read_text()
    assert "[3/3]" in log


def test_pareto_document_is_a_front(study: Path) -> None:
    content = document("pareto", "--json")
    front = content["front"]
    assert {"study", "front", "references"} <= set(content)
    assert all(set(row) >= ROW_FIELDS for row in (*front, *content["references"]))
    assert [row["latency_ms"] for row in front] == sorted(row["latency_ms"] for row in front)
    assert [row["accuracy"] for row in front] == sorted(row["accuracy"] for row in front)
    assert len({row["arch_id"] for row in front}) == len(front) >= 1
    base = content["references"][0]
    assert base["name"] == "Swin-E16x2.2.2.2-R56-P1-N10"
    assert (base["speedup"], base["ratio"], base["invalid"]) == (1.0, 1.0, "")
    assert (content["left_out"], content["measuring"]["latencies"], content["measuring"]["invalid"]) == ([], 3, 0)
    limit = front[0]["latency_ms"]
    assert len(document("pareto", "--json", "--max-latency", str(limit))["front"]) == 1
    assert document("pareto", "--json", "--max-latency", str(limit / 2))["front"] == []


def test_pareto_csv_joins_lists_and_writes_booleans_as_digits(study: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("pareto", "--format", "csv").stdout)))
    front = document("pareto", "--format", "json")["front"]
    assert [row["windows"] for row in rows] == ["-".join(map(str, row["windows"])) for row in front]
    assert [row["shifts"] for row in rows] == ["-".join(str(int(s)) for s in row["shifts"]) for row in front]
    assert [row["br"] for row in rows] == [str(int(row["br"])) for row in front]
    assert [float(row["accuracy"]) for row in rows] == [row["accuracy"] for row in front]


def test_pareto_table_and_markdown_name_the_front(study: Path) -> None:
    name = document("pareto", "--json")["front"][0]["name"]
    assert name in run("pareto").stdout
    assert f"| {name} |" in run("pareto", "--format", "md").stdout


def test_plots_are_a_picture_and_a_page_of_its_own(study: Path) -> None:
    assert run("pareto", "--plot", "front.png").exit_code == 0
    assert (study / "front.png").read_bytes().startswith(b"\x89PNG")
    assert run("pareto", "--plot", "front.html").exit_code == 0
    page = (study / "front.html").read_text()
    assert document("pareto", "--json")["front"][0]["name"] in page
    assert "<script src=" not in page.replace('<script src="data:', "")


def test_studies_are_listed_shown_and_deleted(study: Path) -> None:
    assert (
        run("search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--trials", "2", "--study", "extra").exit_code
        == 0
    )
    names = [row["study"] for row in document("studies", "list", "--json")["studies"]]
    assert names[0] == "extra"
    shown = document("studies", "show", "--study", "extra", "--json")
    assert len(shown["candidates"]) == shown["architectures"] == 2
    assert shown["identity"]["target"]["backend"]
    assert shown["fronts"]
    assert "extra" in run("studies", "list").stdout
    assert "hypervolume" in run("studies", "show", "--study", "extra").stdout
    refused = CliRunner().invoke(app, ["studies", "delete", "extra"], input="n\n")
    assert refused.exit_code == 2
    assert run("studies", "delete", "extra", "--yes").exit_code == 0
    assert "extra" not in [row["study"] for row in document("studies", "list", "--json")["studies"]]


def test_search_again_as_json_lines_reuses_everything(study: Path) -> None:
    result = run("search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--trials", "3", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "end"]
    assert events[-1]["trials_done"] == 3
    assert len(events[-1]["front"]) >= 1


def test_quiet_search_prints_the_front_alone(study: Path) -> None:
    result = run("--quiet", "search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--trials", "3")
    assert result.stderr == ""
    assert "accuracy" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("3 latencies: 0 unstable, 0 invalid, ")


def test_search_hands_its_options_to_the_measurer(
    study: Path, monkeypatch: pytest.MonkeyPatch, cached_here: Path
) -> None:
    told: list[dict[str, Any]] = []

    def open_measurer(target: Target, **settings: Any) -> ByWindows:
        told.append(settings)
        return ByWindows(target, **settings)

    monkeypatch.setattr(live, "Measurer", open_measurer)
    asked = ["--trials", "1", "--batch", "2", "--rebuilds", "3", "--deadline", "77", "--study", "of-two"]
    result = run("search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--storage", "other.db", *asked)
    (study / "other.db").unlink()
    assert result.exit_code == 0, result.output
    (settings,) = told
    assert (settings["rebuilds"], settings["deadline_s"]) == (3, 77.0)
    assert settings["cache_root"] == cached_here / "swinexplore"
    assert settings["reference"].name == "Swin-E16x2.2.2.2-R56-P1-N10"


def test_status_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.status() as tell:
        tell("timing 3/7")
    assert capsys.readouterr() == ("", "")


# -- export and train -------------------------------------------------------------------------------------------------


def test_export_of_a_choice_says_where_it_came_from_and_trains(study: Path) -> None:
    chosen = document("pareto", "--json")["front"][-1]
    result = run("export", chosen["arch_id"][:10], "--to", "out", "--recipe", "recipe.yaml")
    assert result.exit_code == 0, result.output
    content = yaml.safe_load((study / "out" / "run.yaml").read_text())
    assert content["name"] == chosen["name"]
    assert content["origin"]["latency_ms"] == chosen["latency_ms"]
    assert content["origin"]["accuracy"] == chosen["accuracy"]
    assert content["recipe"]["epochs"] == 1
    model = onnx.load(study / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {prop.key: prop.value for prop in model.metadata_props}["arch_id"] == chosen["arch_id"]
    assert document("inspect", "out/run.yaml", "--json")["arch_id"] == chosen["arch_id"]

    wrong = run("train", "out/run.yaml", "--data", "contours")
    assert wrong.exit_code == 2
    assert "arch.num_classes: 10, but contours has 16 classes" in wrong.stderr


def test_trained_run_resumes_and_its_weights_go_into_the_model(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE + "flip: true\n")
    name = "Swin-E16x1.1.1.1-W2.2.2.2-R32-P2-C1-N16"
    assert run("export", name, "--to", "run", "--recipe", "recipe.yaml", "--data", "contours").exit_code == 0
    first = run("train", "run/run.yaml")
    assert first.exit_code == 0, first.output
    assert "epoch 1/1" in first.stdout
    assert "test accuracy" in first.stdout
    again = run("train", "run/run.yaml")
    assert "going on from" in again.stderr
    assert "epoch 1/1" not in again.stdout
    assert again.stdout.split("accuracy ")[-1].split()[0] == first.stdout.split("test accuracy ")[-1].split()[0]
    other = run("train", "run/run.yaml", "--epochs", "2")
    assert other.exit_code == 2
    assert "the state of another training" in other.stderr

    untrained = (folder / "run" / "model.onnx").read_bytes()
    assert run("export", "run/run.yaml", "--to", "run", "--checkpoint", "run/checkpoint.pt").exit_code == 0
    assert (folder / "run" / "model.onnx").read_bytes() != untrained
    refused = run("export", TINY, "--to", "other", "--checkpoint", "run/checkpoint.pt")
    assert refused.exit_code == 2
    assert "weights of another architecture" in refused.stderr


def test_weights_of_a_network_that_differs_in_its_shift_alone_are_refused(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    name = "Swin-E16x2.2.2.2-W2.2.2.2-R32-P2-C1-N16"
    assert run("export", name, "--to", "run", "--recipe", "recipe.yaml", "--data", "contours").exit_code == 0
    assert run("train", "run/run.yaml").exit_code == 0
    refused = run("export", name + "-S0000", "--to", "other", "--checkpoint", "run/checkpoint.pt")
    assert refused.exit_code == 2
    assert "weights of another architecture" in refused.stderr
    refused = run("export", "run/run.yaml", "--to", "other", "--recipe", "quick")
    assert refused.exit_code == 2
    assert "--recipe cannot be given with a run file" in refused.stderr
    refused = run("train", "run/run.yaml", "--to", "recipe.yaml")
    assert refused.exit_code == 2
    assert "--to: recipe.yaml: cannot be made" in refused.stderr


@pytest.mark.parametrize(
    "data", ["tree", "hf:tree", "hf:tree:some,label=kind", "contours", "hf:some/set", "x" * 300, ""]
)
def test_run_file_holds_the_full_path_of_a_folder_of_images(data: str, folder: Path) -> None:
    for name in ("tree", "contours"):  # a folder that has a set's name is not that set
        (folder / name).mkdir()
    assert run("export", TINY, "--to", "run", "--data", data).exit_code == 0
    told = yaml.safe_load((folder / "run" / "run.yaml").read_text())["data"]
    assert told == data.replace("tree", str(folder.resolve() / "tree"))


def test_divergence_of_a_training_says_what_to_do(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("epochs: 2\nbatch_size: 8\ntrain_images: 64\neval_images: 64\nlr: 1.0e+30\n")
    name = "Swin-E16x1.1.1.1-W2.2.2.2-R32-P2-C1-N16"
    assert run("export", name, "--to", "run", "--recipe", "recipe.yaml", "--data", "contours").exit_code == 0
    told = run("train", "run/run.yaml")
    assert told.exit_code == 2
    assert re.search(
        r"run/run\.yaml: diverged: the loss is nan at step \d+ \(epoch 1, seed 0\); lower recipe\.lr", told.stderr
    )
    assert "holds the epochs before" not in told.stderr
    assert not (folder / "run" / "checkpoint.pt").exists()


def test_two_trainings_are_not_kept_in_one_folder(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    name = "Swin-E16x1.1.1.1-W2.2.2.2-R32-P2-C1-N16"
    assert run("export", name, "--to", "run", "--recipe", "recipe.yaml", "--data", "contours").exit_code == 0
    with FileLock(folder / "run" / "checkpoint.lock"):
        refused = run("train", "run/run.yaml")
    assert refused.exit_code == 2
    assert "--to: run: another process trains into it" in refused.stderr
    assert run("train", "run/run.yaml").exit_code == 0


def test_training_that_cannot_be_kept_does_not_begin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (folder / "recipe.yaml").write_text(RECIPE)
    name = "Swin-E16x1.1.1.1-W2.2.2.2-R32-P2-C3-N16"
    assert run("export", name, "--to", "run", "--recipe", "recipe.yaml", "--data", "contours").exit_code == 0
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    refused = run("train", "run/run.yaml", "--repeat-grey")
    assert refused.exit_code == 2
    assert "--to: run: cannot be made, or written to: Permission denied" in refused.stderr
    assert "epoch" not in refused.stdout


def test_grey_images_for_a_network_that_takes_colour_are_refused_unless_repeated(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    name = "Swin-E16x1.1.1.1-W2.2.2.2-R32-P2-C3-N16"
    assert run("export", name, "--to", "run", "--recipe", "recipe.yaml", "--data", "contours").exit_code == 0
    refused = run("train", "run/run.yaml")
    assert refused.exit_code == 2
    assert (
        "run/run.yaml: arch.channels: 3, but contours has images of 1 channel; set arch.channels: 1, or give --repeat-grey to "
        "have the one repeated"
    ) in " ".join(refused.stderr.split())
    assert run("train", "run/run.yaml", "--repeat-grey").exit_code == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupt_inside_a_finalizer_which_python_drops_is_not_lost(name: str) -> None:
    program = f"""
import signal, time
from explorer.cli import app

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.{name})
        print("dropped", flush=True)

@app.command()
def wait():
    Finalized()
    time.sleep(60)
    print("done")

app(["wait"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr == "error: interrupted; everything finished is kept, the same command goes on\n"


def test_preset_exports_without_a_study(folder: Path) -> None:
    result = run("export", "Swin-E16x1.1.1.1-R56-P1", "--to", "a/b", "--precision", "fp16", "--batch", "2")
    assert result.exit_code == 0, result.output
    image = onnx.load(folder / "a" / "b" / "model.onnx").graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.FLOAT16
    assert [dim.dim_value for dim in image.shape.dim] == [2, 3, 56, 56]
    run_file = yaml.safe_load((folder / "a" / "b" / "run.yaml").read_text())
    assert run_file["recipe"]["epochs"] == 300
    assert parse_name(run_file["name"]).id == document("inspect", "a/b/run.yaml", "--json")["arch_id"]
