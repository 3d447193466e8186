"""One contract for every latency backend: the same network, honest numbers, and errors that say what is allowed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from explorer import latency, model
from explorer.arch import Arch, parse_name
from explorer.errors import BackendMissing, BuildError
from explorer.latency import BACKENDS, environment
from explorer.latency.base import MAX_WINDOWS, STABLE_WINDOWS, WINDOW_RUNS, Runner
from explorer.model.deployment import Deployed
from explorer.records import Latency, Precision, Target

#: Largest difference of a logit from the fp32 module, in standard deviations of its logits.
TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 2e-1}
#: Shifted windows with LayerNorm, and large windows with BatchNorm.
NAMES = ("Swin-E16x2.2.2.2-R56-P1-N10", "Swin-Free-E16x1.2.1.1-BR-R56-P1-C1-N10")
SMALL = parse_name("Swin-E16x1.2.1.1-W2.2.2.1-R16-P2-N10")
needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU on this machine"),
]
COMBINATIONS = [
    pytest.param(
        backend, kind, precision, id=f"{backend}-{kind}-{precision}", marks=needs_gpu if kind == "cuda" else ()
    )
    for backend, (_, kinds, precisions, _) in BACKENDS.items()
    for kind in kinds
    for precision in precisions
]
every_combination = pytest.mark.parametrize(("backend", "kind", "precision"), COMBINATIONS)


@pytest.fixture(autouse=True)
def own_lock_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other processes of this machine neither wait for these tests nor make them wait, locked or busy."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(latency, "PAUSE_S", 0.0, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def target_for(arch: Arch, backend: str, kind: str, precision: str, batch: int = 1) -> Target:
    return latency.resolve(
        backend, device=kind, precision=cast(Precision, precision), batch=batch, image_size=arch.image_size
    )[0]


def deployed_for(arch: Arch, target: Target) -> Deployed:
    module = model.build(arch, seed=3)
    if latency.needs_graph(target):
        return model.deploy(module, arch, batch=target.batch, precision=target.precision)
    return Deployed(arch, module.eval(), target.batch, target.precision)


def input_of(arch: Arch, batch: int, seed: int) -> torch.Tensor:
    """What every runner runs on: N(0, 1) from numpy's default generator."""
    shape = (batch, arch.channels, arch.image_size, arch.image_size)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def opened(deployed: Deployed, target: Target, seed: int) -> Runner:
    return latency._open(deployed, target, seed)


@every_combination
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_runner_computes_the_logits_of_the_module(
    name: str, batch: int, backend: str, kind: str, precision: str
) -> None:
    arch = parse_name(name)
    target = target_for(arch, backend, kind, precision, batch)
    deployed = deployed_for(arch, target)
    with torch.inference_mode():
        expected = deployed.module(input_of(arch, batch, seed=5)).numpy()
    runner = opened(deployed, target, seed=5)
    logits = runner.logits()
    runner.close()
    assert logits.dtype == np.float32
    assert logits.shape == (batch, arch.num_classes)
    assert np.abs(logits - expected).max() / expected.std() <= TOLERANCES[precision]


@every_combination
def test_runner_takes_its_input_from_the_seed(backend: str, kind: str, precision: str) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed = deployed_for(SMALL, target)
    logits = []
    for seed in (1, 1, 2):
        runner = opened(deployed, target, seed)
        runner.run()
        logits.append(runner.logits())
        runner.close()
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


@every_combination
def test_module_that_is_measured_stays_as_it_was(backend: str, kind: str, precision: str) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed = deployed_for(SMALL, target)
    before = {name: value.clone() for name, value in deployed.module.state_dict().items()}
    runner = opened(deployed, target, seed=0)
    runner.run()
    runner.close()
    after = deployed.module.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert after[name].device == value.device
        assert torch.equal(after[name], value), name
    assert not deployed.module.training


@every_combination
def test_measured_latency_is_consistent_and_says_what_it_was_measured_on(
    backend: str, kind: str, precision: str
) -> None:
    target = target_for(SMALL, backend, kind, precision, batch=2)
    measured = latency.measure(deployed_for(SMALL, target), target, prepare_s=7.0)
    assert (measured.arch_id, measured.target_id) == (SMALL.id, target.id)
    assert 0 < measured.min_ms <= measured.latency_ms <= measured.p95_ms
    assert measured.cv >= 0
    assert STABLE_WINDOWS <= len(measured.window_medians_ms) <= MAX_WINDOWS
    last = measured.window_medians_ms[-STABLE_WINDOWS:]
    assert measured.min_ms <= min(last) <= measured.latency_ms <= max(last)
    assert measured.num_samples >= STABLE_WINDOWS * WINDOW_RUNS
    assert measured.prepare_s > 7.0
    # the samples are milliseconds of the seconds that the measurement took
    assert measured.num_samples * measured.min_ms / 1e3 < measured.measure_s
    assert measured.measured_at.endswith("+00:00")
    read_back = json.loads(json.dumps(measured.environment))
    assert read_back == measured.environment
    assert read_back["cpu"] == environment.cpu_model()
    assert read_back["versions"][BACKENDS[backend][0]] == target.backend_version
    assert {"torch", "numpy"} <= read_back["versions"].keys()


@pytest.mark.parametrize("backend", BACKENDS)
def test_target_counts_the_threads_and_the_graph_version_where_there_is_a_graph(backend: str) -> None:
    target = latency.resolve(backend, device="cpu")[0]
    assert target.graph_version == (model.GRAPH_VERSION if BACKENDS[backend][3] else model.MODULE_VERSION)
    assert (target.threads, target.driver) == (environment.cpu_threads(), "")


def test_graph_that_cannot_be_loaded_is_a_build_error_and_frees_the_device() -> None:
    target = target_for(SMALL, "onnxruntime", "cpu", "fp32")
    sound = deployed_for(SMALL, target)
    with pytest.raises(BuildError, match="ONNX Runtime does not load the graph") as caught:
        latency.measure(replace(sound, onnx_bytes=b"no graph"), target)
    assert caught.value.kind == "build"
    assert SMALL.name in str(caught.value)
    assert isinstance(latency.measure(sound, target), Latency)


# -- the choice of a target -------------------------------------------------------------------------------------------


def test_auto_without_a_gpu_takes_onnxruntime_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "sees_gpu", lambda: False)
    target, why = latency.resolve()
    assert (target.backend, target.device_kind) == ("onnxruntime", "cpu")
    assert why.startswith("backend onnxruntime: chosen because torch sees no NVIDIA GPU")


def test_auto_with_a_gpu_takes_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "sees_gpu", lambda: True)
    monkeypatch.setattr(latency, "_gpu_name", lambda: "Some GPU")
    target, why = latency.resolve()
    assert (target.backend, target.device_kind, target.device, target.threads) == ("torch", "cuda", "Some GPU", 0)
    assert why.startswith("backend torch: chosen because torch sees an NVIDIA GPU")


@pytest.mark.parametrize("backend", BACKENDS)
def test_chosen_backend_is_named_with_the_device_and_the_reason(backend: str) -> None:
    _, why = latency.resolve(backend, device="cpu")
    assert why == f"backend {backend} on cpu: --device cpu asks for it"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backend": "nosuch"}, ["'nosuch'", "auto", *BACKENDS]),
        ({"device": "tpu"}, ["'tpu'", "auto", "cpu", "cuda"]),
        ({"backend": "torch", "precision": "int8"}, ["'int8'", *BACKENDS["torch"][2]]),
        ({"backend": "onnxruntime", "precision": "bf16"}, ["'bf16'", "onnxruntime", *BACKENDS["onnxruntime"][2]]),
        ({"backend": "torch", "batch": 0}, ["batch", "0", "at least 1"]),
    ],
    ids=["backend", "device", "precision", "precision-of-backend", "batch"],
)
def test_what_no_backend_can_do_is_refused_with_what_is_allowed(options: dict[str, object], told: list[str]) -> None:
    with pytest.raises(BackendMissing) as caught:
        latency.resolve(**{"device": "cpu", **options})  # type: ignore[arg-type]
    for words in told:
        assert words in str(caught.value)


@pytest.mark.parametrize("backend", [name for name, (_, kinds, _, _) in BACKENDS.items() if "cuda" not in kinds])
def test_backend_that_does_not_run_on_a_gpu_says_where_it_runs(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "sees_gpu", lambda: True)
    with pytest.raises(BackendMissing, match=f"backend {backend}: does not run on cuda; use --device cpu"):
        latency.resolve(backend, device="cuda")


def test_cuda_without_a_gpu_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "sees_gpu", lambda: False)
    with pytest.raises(BackendMissing, match=r"device cuda: torch sees no NVIDIA GPU.*--device cpu"):
        latency.resolve("torch", device="cuda")


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_whose_package_is_missing_says_how_to_install_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version_of", lambda package: "")
    with pytest.raises(BackendMissing, match=f"pip install {BACKENDS[backend][0]}"):
        latency.resolve(backend, device="cpu")


TARGET = Target("torch", "2.11", "fp32", 1, 224, "cpu", "Some CPU", "", 8, 0)
OTHERS: dict[str, object] = {
    "backend": "onnxruntime",
    "backend_version": "2.12",
    "precision": "fp16",
    "batch": 2,
    "image_size": 256,
    "device_kind": "cuda",
    "device": "Other CPU",
    "driver": "555.1",
    "threads": 4,
    "graph_version": 1,
}


@pytest.mark.parametrize("field", [field.name for field in fields(Target)])
def test_targets_that_differ_in_one_field_have_different_ids(field: str) -> None:
    assert replace(TARGET, **{field: OTHERS[field]}).id != TARGET.id  # type: ignore[arg-type]


def test_equal_targets_have_the_same_id() -> None:
    assert replace(TARGET).id == TARGET.id
    assert TARGET.id.startswith("t1-")


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_resolved_target_describes_itself_for_people(kind: str) -> None:
    target = latency.resolve("torch", device=kind, batch=2, image_size=64)[0]
    described = target.describe()
    for words in ("torch", target.backend_version, "fp32", "batch 2", "64x64", target.device):
        assert words in described
