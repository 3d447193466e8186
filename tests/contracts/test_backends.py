"""One contract for every latency backend: the same network, honest numbers, and errors that say what is allowed."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from explorer import latency, model
from explorer.arch import Arch, parse_name
from explorer.errors import BackendMissing, BuildError, MeasureError, MismatchError
from explorer.latency import BACKENDS, cuda, environment, measurement
from explorer.latency.base import MAX_WINDOWS, STABLE_WINDOWS, WINDOW_RUNS, Runner
from explorer.model.deployment import Deployed
from explorer.records import Latency, Precision, Target

#: Largest difference of a logit from the fp32 module, in standard deviations of its logits.
TOLERANCES: dict[str, float] = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 2e-1}
#: Shifted windows with LayerNorm, and large windows with BatchNorm.
NAMES = ("Swin-E16x2.2.2.2-R56-P1-N10", "Swin-Free-E16x1.2.1.1-BR-R56-P1-C1-N10")
SMALL = parse_name("Swin-E16x1.2.1.1-W2.2.2.1-R16-P2-N10")
#: Of SMALL wherever one batch will do: torch.compile compiles it once.
BATCH = 2
Kept = Callable[[Deployed, Target, int], Runner]


def marks_of(backend: str, kind: str) -> list[pytest.MarkDecorator]:
    if kind == "cuda":
        return [
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU on this machine"),
        ]
    if backend == "torch-compile":
        has_compiler = any(shutil.which(compiler) for compiler in ("g++", "clang++", "clang"))
        return [pytest.mark.slow, pytest.mark.skipif(not has_compiler, reason="torch.compile needs g++")]
    return []


COMBINATIONS = [
    pytest.param(backend, kind, precision, id=f"{backend}-{kind}-{precision}", marks=marks_of(backend, kind))
    for backend, (_, kinds, precisions, _) in BACKENDS.items()
    for kind in kinds
    for precision in precisions
]
every_combination = pytest.mark.parametrize(("backend", "kind", "precision"), COMBINATIONS)
every_combination_with_a_graph = pytest.mark.parametrize(
    ("backend", "kind", "precision"), [param for param in COMBINATIONS if BACKENDS[str(param.values[0])].runs_graph]
)
every_combination_that_compiles_no_code = pytest.mark.parametrize(
    ("backend", "kind", "precision"), [param for param in COMBINATIONS if param.values[:2] != ("torch-compile", "cpu")]
)


@pytest.fixture(autouse=True)
def own_lock_threads_and_caches(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Other processes of this machine neither wait for these tests nor make them wait, locked or busy."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(measurement, "PAUSE_S", 0.0)
    monkeypatch.setattr(measurement, "MAX_ATTEMPTS", 1)
    # What is compiled or built once serves all tests of this run, and none that ran before.
    kept = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kept / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(kept / "triton"))
    monkeypatch.setenv("HOME", str(kept))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def target_for(
    arch: Arch, backend: str, kind: str, precision: str, batch: int = BATCH, dynamic_to: int | None = None
) -> Target:
    try:
        target, _ = latency.resolve(
            backend,
            device=kind,
            precision=cast(Precision, precision),
            batch=batch,
            image_size=arch.image_size,
            dynamic_to=dynamic_to,
        )
    except BackendMissing as error:
        if kind == "cpu":
            raise
        pytest.skip(str(error))  # not every GPU, and not every machine with one, has every backend
    return target


def deployed_for(arch: Arch, target: Target, seed: int = 3) -> Deployed:
    module = model.build(arch, seed=seed)
    batch = None if target.largest_batch else target.batch
    if latency.needs_graph(target):
        return model.deploy(module, arch, batch=batch, precision=target.precision)
    return Deployed(arch, module.eval(), batch, target.precision)


def input_of(arch: Arch, batch: int, seed: int) -> torch.Tensor:
    """What every runner runs on: N(0, 1) from numpy's default generator."""
    shape = (batch, arch.channels, arch.image_size, arch.image_size)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


@pytest.fixture
def opened() -> Iterator[Kept]:
    """Opens runners, which are closed after the test."""
    runners: list[Runner] = []

    def open_one(deployed: Deployed, target: Target, seed: int) -> Runner:
        runners.append(measurement.open_runner(deployed, target, seed))
        return runners[-1]

    yield open_one
    for runner in runners:
        runner.close()


# -- what every backend does ------------------------------------------------------------------------------------------


@every_combination_that_compiles_no_code
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_runner_computes_the_logits_of_the_module(
    name: str, batch: int, backend: str, kind: str, precision: str, opened: Kept
) -> None:
    arch = parse_name(name)
    target = target_for(arch, backend, kind, precision, batch)
    require_logits_of_the_module(arch, target, deployed_for(arch, target), opened)


@every_combination
def test_runner_of_a_small_network_computes_the_logits_of_the_module(
    backend: str, kind: str, precision: str, opened: Kept
) -> None:
    target = target_for(SMALL, backend, kind, precision)
    require_logits_of_the_module(SMALL, target, deployed_for(SMALL, target), opened)


def require_logits_of_the_module(arch: Arch, target: Target, deployed: Deployed, opened: Kept) -> None:
    with torch.inference_mode():
        expected = deployed.module(input_of(arch, target.batch, seed=5)).numpy()
    logits = opened(deployed, target, 5).logits()
    assert logits.dtype == np.float32
    assert logits.shape == (target.batch, arch.num_classes)
    assert np.abs(logits - expected).max() / expected.std() <= TOLERANCES[target.precision]


@every_combination
def test_runner_takes_its_input_from_the_seed(backend: str, kind: str, precision: str, opened: Kept) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed = deployed_for(SMALL, target)
    logits = []
    for seed in (1, 1, 2):
        runner = opened(deployed, target, seed)
        runner.run()
        logits.append(runner.logits())
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.array_equal(logits[0], logits[2])


@every_combination
def test_networks_of_the_same_shapes_are_told_apart(backend: str, kind: str, precision: str, opened: Kept) -> None:
    target = target_for(SMALL, backend, kind, precision)
    for seed in (3, 4):
        require_logits_of_the_module(SMALL, target, deployed_for(SMALL, target, seed), opened)


@every_combination
def test_module_that_is_measured_stays_as_it_was(backend: str, kind: str, precision: str, opened: Kept) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed = deployed_for(SMALL, target)
    before = {name: value.clone() for name, value in deployed.module.state_dict().items()}
    opened(deployed, target, 0).run()
    after = deployed.module.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert after[name].device == value.device
        assert torch.equal(after[name], value), name
    assert not deployed.module.training


@every_combination
def test_runner_times_itself_and_tells_how(backend: str, kind: str, precision: str, opened: Kept) -> None:
    target = target_for(SMALL, backend, kind, precision)
    runner = opened(deployed_for(SMALL, target), target, 0)
    runner.logits()
    times_ms = runner.timed(0.0, 5)
    assert len(times_ms) == 5
    assert min(times_ms) > 0
    assert len(runner.timed(0.05, 1)) >= 1
    facts = runner.facts()
    assert json.loads(json.dumps(facts.record)) == facts.record
    has_events = kind == "cuda" and not backend.startswith("onnxruntime")
    assert facts.record["timed_by"] == ("device events" if has_events else "host clock")
    has_graph = facts.record.get("cuda_graph", False)
    without_graph = runner.timed_without_graph(0.0, 5)
    assert (without_graph is not None and len(without_graph) == 5) if has_graph else without_graph is None
    assert (facts.build_s is not None and facts.build_s > 0) if backend != "torch" else facts.build_s is None


@every_combination
def test_measured_latency_is_consistent_and_says_what_it_was_measured_on(
    backend: str, kind: str, precision: str
) -> None:
    target = target_for(SMALL, backend, kind, precision)
    measured = latency.measure(deployed_for(SMALL, target), target, prepare_s=7.0)
    assert (measured.arch_id, measured.target_id) == (SMALL.id, target.id)
    assert measured.p99_ms is not None
    assert measured.p90_ms is not None
    assert 0 < measured.min_ms <= measured.latency_ms <= measured.p90_ms <= measured.p95_ms <= measured.p99_ms
    assert measured.cv >= 0
    assert STABLE_WINDOWS <= len(measured.window_medians_ms) <= MAX_WINDOWS
    last = measured.window_medians_ms[-STABLE_WINDOWS:]
    assert measured.min_ms <= min(last) <= measured.latency_ms <= max(last)
    assert measured.num_samples >= STABLE_WINDOWS * WINDOW_RUNS
    assert measured.prepare_s > 7.0
    # the samples are milliseconds of the seconds that the measurement took
    assert measured.num_samples * measured.min_ms / 1e3 < measured.measure_s
    assert measured.images_per_s is not None
    assert 0 < measured.images_per_s <= BATCH * 1e3 / measured.min_ms
    assert measured.isolated_ms is not None
    assert measured.isolated_ms > 0
    assert (measured.reference_id, measured.reference_ms, measured.rebuild_medians_ms) == ("", None, ())
    assert measured.measured_at.endswith("+00:00")
    read_back = json.loads(json.dumps(asdict(measured)))["environment"]
    assert read_back == measured.environment
    assert read_back["cpu"] == environment.cpu_model()
    assert read_back["attempts"] == len(read_back["attempts_ms"])
    assert measured.latency_ms in read_back["attempts_ms"]
    assert {"torch", "numpy"} <= read_back["versions"].keys()
    if backend != "tensorrt":
        assert target.backend_version in {read_back["versions"].get(package) for package in BACKENDS[backend].packages}
    if kind == "cuda":
        assert read_back["gpu"]["name"] == target.device


# -- what runs is the model -------------------------------------------------------------------------------------------


@every_combination_with_a_graph
def test_graph_of_another_network_is_not_measured(backend: str, kind: str, precision: str) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed, other = (deployed_for(SMALL, target, seed) for seed in (3, 4))
    with pytest.raises(MismatchError, match=r"is not the model: cosine -?0\.\d+ between their logits") as caught:
        latency.measure(replace(deployed, onnx_bytes=other.onnx_bytes), target)
    assert caught.value.kind == "mismatch"
    for words in (SMALL.name, backend, precision):
        assert words in str(caught.value)


@every_combination_with_a_graph
def test_graph_whose_head_is_off_is_not_measured(backend: str, kind: str, precision: str) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed = deployed_for(SMALL, target)

    def turn(values: np.ndarray) -> np.ndarray:
        return values + np.linspace(-1, 1, values.size).reshape(values.shape)

    with pytest.raises(MismatchError, match="is not the model"):
        latency.measure(replace(deployed, onnx_bytes=with_bias(deployed, turn)), target)


@every_combination_with_a_graph
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_not_measured(value: float, backend: str, kind: str, precision: str) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed = deployed_for(SMALL, target)
    broken = replace(deployed, onnx_bytes=with_bias(deployed, lambda values: np.full_like(values, value)))
    with pytest.raises(MismatchError, match="gives logits that are not finite"):
        latency.measure(broken, target)


@every_combination_that_compiles_no_code
def test_model_that_is_not_finite_is_not_measured(backend: str, kind: str, precision: str) -> None:
    target = target_for(SMALL, backend, kind, precision)
    deployed = deployed_for(SMALL, target)
    with torch.no_grad():
        next(deployed.module.parameters()).fill_(torch.nan)
    with pytest.raises(MismatchError):
        latency.measure(deployed, target)


def with_bias(deployed: Deployed, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """The graph with another bias of its classes, which is the last constant that has as many values."""
    assert deployed.onnx_bytes is not None
    graph = onnx.load_from_string(deployed.onnx_bytes)
    biases = [constant for constant in graph.graph.initializer if list(constant.dims) == [deployed.arch.num_classes]]
    values = numpy_helper.to_array(biases[-1])
    biases[-1].CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), biases[-1].name))
    return bytes(graph.SerializeToString())


# -- a graph for any batch --------------------------------------------------------------------------------------------


@every_combination_with_a_graph
def test_one_graph_runs_every_batch_up_to_its_largest(backend: str, kind: str, precision: str, opened: Kept) -> None:
    targets = [target_for(SMALL, backend, kind, precision, batch, dynamic_to=8) for batch in (1, 3, 8)]
    deployed = deployed_for(SMALL, targets[0])
    assert deployed.batch is None
    for target in targets:
        assert target.options == "dynamic batch 1..8"
        assert target.largest_batch == 8
        require_logits_of_the_module(SMALL, target, deployed, opened)


def test_dynamic_batch_is_another_target_and_told() -> None:
    fixed = target_for(SMALL, "onnxruntime", "cpu", "fp32")
    dynamic = target_for(SMALL, "onnxruntime", "cpu", "fp32", dynamic_to=8)
    assert fixed.largest_batch is None
    assert fixed.id != dynamic.id
    assert fixed.differences(dynamic) == {"options": ("", "dynamic batch 1..8")}
    assert f"batch {BATCH} (dynamic batch 1..8)" in dynamic.describe()
    assert dynamic.id != target_for(SMALL, "onnxruntime", "cpu", "fp32", dynamic_to=16).id


# -- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_target_counts_the_threads_and_the_graph_version_where_there_is_a_graph(backend: str) -> None:
    target = latency.resolve(backend, device="cpu")[0]
    assert latency.needs_graph(target) is BACKENDS[backend].runs_graph
    assert target.graph_version == (model.GRAPH_VERSION if latency.needs_graph(target) else model.MODULE_VERSION)
    assert (target.threads, target.driver) == (environment.cpu_threads(), "")


def test_graph_that_cannot_be_loaded_is_a_build_error_and_frees_the_device() -> None:
    target = target_for(SMALL, "onnxruntime", "cpu", "fp32")
    sound = deployed_for(SMALL, target)
    with pytest.raises(BuildError, match="ONNX Runtime does not load the graph") as caught:
        latency.measure(replace(sound, onnx_bytes=b"no graph"), target)
    assert caught.value.kind == "build"
    assert SMALL.name in str(caught.value)
    assert isinstance(latency.measure(sound, target), Latency)


class Greedy(torch.nn.Module):
    """Runs on no machine: a million gigabytes."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.empty(2**50, dtype=torch.uint8, device=image.device)


class Broken(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("some kernel is not there")


@pytest.mark.parametrize(("module", "kind"), [(Greedy(), "out_of_memory"), (Broken(), "measure")])
def test_module_that_fails_while_running_is_a_measure_error_of_its_kind(module: torch.nn.Module, kind: str) -> None:
    target = target_for(SMALL, "torch", "cpu", "fp32")
    with pytest.raises(MeasureError, match=SMALL.name) as caught:
        latency.measure(Deployed(SMALL, module, BATCH, "fp32"), target)
    assert caught.value.kind == kind


@pytest.mark.slow
def test_module_that_cannot_be_compiled_is_a_build_error() -> None:
    target = target_for(SMALL, "torch-compile", "cpu", "fp32")
    with pytest.raises(BuildError, match=r"(?s)torch.compile fails: .*some kernel is not there"):
        latency.measure(Deployed(SMALL, Broken(), BATCH, "fp32"), target)


class Times(torch.nn.Module):
    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3)) * self.factor


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What torch.compile was asked for, once for every graph that it made; it writes no C++."""
    graphs: list[dict[str, Any]] = []
    real = torch.compile

    def compile_graphs(module: torch.nn.Module, **options: Any) -> Any:
        def take(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
            graphs.append(options)
            return graph.forward

        return real(module, backend=take, **options)

    def refuse() -> None:
        raise AssertionError("what was compiled for another network is not thrown away")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compile_graphs)
    monkeypatch.setattr(torch._dynamo, "reset", refuse)
    # What it was before is put back after the test.
    with torch._dynamo.config.patch(
        recompile_limit=2, accumulated_recompile_limit=2, fail_on_recompile_limit_hit=False
    ):
        yield graphs


COMPILED = Target("torch-compile", "2.11", "fp32", BATCH, 16, "cpu", "Some CPU", "", 1, model.MODULE_VERSION)


def test_every_network_is_compiled_whole_however_many_there_are(compiled: list[dict[str, Any]], opened: Kept) -> None:
    runners = [opened(Deployed(SMALL, Times(factor), BATCH, "fp32"), COMPILED, 0) for factor in range(1, 13)]
    assert compiled == [{"dynamic": False, "fullgraph": True}] * len(runners)
    first = runners[0].logits()
    for factor, runner in enumerate(runners, 1):
        np.testing.assert_allclose(runner.logits(), factor * first, rtol=1e-5)
    assert len(compiled) == len(runners), "none is compiled again"


def test_network_past_the_recompile_limit_is_not_run_eagerly(
    compiled: list[dict[str, Any]], opened: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import FailOnRecompileLimitHit

    from explorer.latency import torch_module

    monkeypatch.setattr(torch_module, "_MAX_COMPILED", 2)
    with pytest.raises((BuildError, FailOnRecompileLimitHit), match="recompile_limit"):
        for factor in range(1, 5):
            opened(Deployed(SMALL, Times(factor), BATCH, "fp32"), COMPILED, 0)
    assert len(compiled) == 2


class BreaksTheGraph(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return image.mean((2, 3))


@pytest.mark.usefixtures("compiled")
def test_network_that_is_compiled_in_part_only_is_a_build_error(opened: Kept) -> None:
    with pytest.raises(BuildError, match=r"torch\.compile fails"):
        opened(Deployed(SMALL, BreaksTheGraph(), BATCH, "fp32"), COMPILED, 0)


def test_compiled_network_that_needs_too_much_memory_says_so(opened: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    with pytest.raises(MeasureError, match=SMALL.name) as caught:
        opened(Deployed(SMALL, Greedy(), BATCH, "fp32"), COMPILED, 0)
    assert caught.value.kind == "out_of_memory"


@pytest.mark.parametrize("batch", [1, None])
def test_deployed_of_another_batch_is_our_own_mistake(batch: int | None) -> None:
    target = target_for(SMALL, "onnxruntime", "cpu", "fp32", batch=2)
    with pytest.raises(AssertionError):
        measurement.open_runner(replace(deployed_for(SMALL, target), batch=batch), target)


# -- the choice of a target -------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as torch sees it, of a kind that every TensorRT runs on."""
    monkeypatch.setattr(latency, "sees_gpu", lambda: True)
    monkeypatch.setattr(latency, "_gpu_name", lambda: "Some GPU")
    monkeypatch.setattr(environment, "nvidia_driver", lambda: "555.1")
    monkeypatch.setattr(cuda, "compute_capability", lambda: "8.6")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "sees_gpu", lambda: False)


def unsupported(compute_capability: str) -> None:
    raise BackendMissing(f"backend tensorrt: does not run on GPUs of compute capability {compute_capability}")


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A TensorRT that runs on every GPU, whatever is installed."""
    library = SimpleNamespace(version=lambda: "11.4", require_supported=lambda compute_capability: None)
    monkeypatch.setattr(latency, "trt_build", library, raising=False)
    return library


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TensorRT can be imported, whatever is installed."""
    monkeypatch.delattr(latency, "trt_build", raising=False)
    monkeypatch.delitem(sys.modules, "explorer.latency.trt_build", raising=False)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("no_gpu")
def test_auto_without_a_gpu_takes_onnxruntime_and_says_why() -> None:
    target, why = latency.resolve()
    assert (target.backend, target.device_kind, target.driver) == ("onnxruntime", "cpu", "")
    assert target.threads == environment.cpu_threads()
    assert why.startswith("backend onnxruntime: chosen because torch sees no NVIDIA GPU")


@pytest.mark.usefixtures("gpu", "tensorrt")
def test_auto_with_a_gpu_takes_tensorrt_and_says_why() -> None:
    target, why = latency.resolve()
    assert (target.backend, target.backend_version, target.device_kind) == ("tensorrt", "11.4", "cuda")
    assert (target.device, target.driver, target.threads) == ("Some GPU", "555.1", 0)
    assert target.graph_version == model.GRAPH_VERSION
    assert why.startswith("backend tensorrt: chosen because torch sees an NVIDIA GPU, and TensorRT is")


@pytest.mark.usefixtures("gpu", "no_tensorrt")
def test_auto_with_a_gpu_and_no_tensorrt_takes_torch_and_says_what_is_missing() -> None:
    target, why = latency.resolve()
    assert (target.backend, target.device_kind, target.device, target.threads) == ("torch", "cuda", "Some GPU", 0)
    assert target.graph_version == model.MODULE_VERSION
    assert why.startswith("backend torch: chosen because torch sees an NVIDIA GPU")
    assert "no TensorRT can be imported; install it: pip install tensorrt" in why


@pytest.mark.usefixtures("gpu")
def test_auto_with_a_gpu_that_tensorrt_does_not_run_on_takes_torch_and_says_so(tensorrt: SimpleNamespace) -> None:
    tensorrt.require_supported = unsupported
    target, why = latency.resolve()
    assert (target.backend, target.device_kind) == ("torch", "cuda")
    assert "does not run on GPUs of compute capability 8.6" in why


@pytest.mark.usefixtures("gpu", "tensorrt")
def test_auto_takes_the_device_that_was_asked_for() -> None:
    target, why = latency.resolve(device="cpu")
    assert (target.backend, target.device_kind) == ("onnxruntime", "cpu")
    assert why.startswith("backend onnxruntime: chosen because --device cpu asks for it")
    assert latency.resolve("torch")[0].device_kind == "cuda"
    assert latency.resolve("tensorrt")[0].device_kind == "cuda"


@pytest.mark.parametrize("backend", [name for name, known in BACKENDS.items() if "cpu" in known.kinds])
def test_chosen_backend_is_named_with_the_device_and_the_reason(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    _, why = latency.resolve(backend, device="cpu")
    assert why == f"backend {backend} on cpu: --device cpu asks for it"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"backend": "nosuch"}, ["'nosuch'", "auto", *BACKENDS]),
        ({"device": "tpu"}, ["'tpu'", "auto", "cpu", "cuda"]),
        ({"backend": "torch", "precision": "int8"}, ["'int8'", *BACKENDS["torch"].precisions]),
        ({"backend": "onnxruntime", "precision": "bf16"}, ["'bf16'", "onnxruntime", "fp32, fp16"]),
        ({"backend": "torch", "batch": 0}, ["batch", "0", "at least 1"]),
        ({"backend": "torch", "dynamic_to": 8}, ["dynamic batch", "torch runs no graph"]),
        ({"backend": "onnxruntime", "batch": 9, "dynamic_to": 8}, ["batch", "9", "8", "largest"]),
        ({"backend": "tensorrt"}, ["tensorrt", "does not run on cpu", "--device cuda"]),
        ({"backend": "onnxruntime-tensorrt"}, ["onnxruntime-tensorrt", "does not run on cpu", "--device cuda"]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("tensorrt")
def test_what_no_backend_can_do_is_refused_with_what_is_allowed(options: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(BackendMissing) as caught:
        latency.resolve(**{"device": "cpu", **options})
    for words in told:
        assert words in str(caught.value)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("backend", BACKENDS)
def test_cuda_without_a_gpu_is_refused_with_a_way_out(backend: str) -> None:
    with pytest.raises(BackendMissing, match=r"device cuda: torch sees no NVIDIA GPU.*--device cpu"):
        latency.resolve(backend, device="cuda")


@pytest.mark.usefixtures("no_gpu", "tensorrt")
@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-tensorrt"])
def test_backend_for_gpus_alone_says_that_none_is_here_and_what_to_do(backend: str) -> None:
    with pytest.raises(BackendMissing) as caught:
        latency.resolve(backend)
    for words in (f"backend {backend}: needs an NVIDIA GPU", "doctor", "--backend onnxruntime or torch", "export"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("no_gpu", "no_tensorrt")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_missing_tensorrt_is_told_before_a_missing_gpu(device: str) -> None:
    with pytest.raises(BackendMissing) as caught:
        latency.resolve("tensorrt", device=device)
    if device == "cpu":
        assert "does not run on cpu" in str(caught.value)
        return
    for words in ("no TensorRT can be imported", "pip install tensorrt", "tried tensorrt: ", "tensorrt_rtx: "):
        assert words in str(caught.value)
    assert "NVIDIA GPU, and torch" not in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_gpu_that_tensorrt_for_rtx_does_not_run_on_is_refused_with_those_that_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trt_build = pytest.importorskip("explorer.latency.trt_build", exc_type=BackendMissing)
    if not trt_build.IS_RTX:
        pytest.skip("this TensorRT is not the one for RTX")
    monkeypatch.setattr(cuda, "compute_capability", lambda: "7.0")
    with pytest.raises(BackendMissing) as caught:
        latency.resolve("tensorrt")
    for words in ("does not run on GPUs of compute capability 7.0", "8.6", "pip install tensorrt"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("backend", ["onnxruntime", "onnxruntime-tensorrt"])
def test_onnxruntime_without_the_provider_for_gpus_says_how_to_install_it(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from explorer.latency import ort

    monkeypatch.setattr(environment, "version_of", lambda package: "1.30")
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendMissing) as caught:
        latency.resolve(backend, device="cuda")
    for words in (f"backend {backend}:", ort.PROVIDERS[backend, "cuda"], "pip install onnxruntime-gpu"):
        assert words in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_onnxruntime_of_the_cpu_is_not_taken_to_the_gpu_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime": "1.30"}
    monkeypatch.setattr(environment, "version_of", lambda package: versions.get(package, ""))
    target, why = latency.resolve("onnxruntime")
    assert (target.device_kind, target.backend_version) == ("cpu", "1.30")
    assert "runs on the CPU" in why


@pytest.mark.usefixtures("gpu")
def test_onnxruntime_tensorrt_needs_the_package_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnxruntime": "1.30"}
    monkeypatch.setattr(environment, "version_of", lambda package: versions.get(package, ""))
    with pytest.raises(BackendMissing, match="pip install onnxruntime-gpu"):
        latency.resolve("onnxruntime-tensorrt")


@pytest.mark.parametrize("backend", [name for name, known in BACKENDS.items() if "cpu" in known.kinds])
def test_backend_whose_package_is_missing_says_how_to_install_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version_of", lambda package: "")
    with pytest.raises(BackendMissing, match=f"pip install {BACKENDS[backend].packages[0]}"):
        latency.resolve(backend, device="cpu")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("device", "compiler"), [("cpu", "g++"), ("cuda", "gcc")])
def test_torch_compile_without_a_compiler_says_how_to_install_one(
    device: str, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendMissing) as caught:
        latency.resolve("torch-compile", device=device)
    for words in ("backend torch-compile", f"({compiler})", "apt-get install"):
        assert words in str(caught.value)
    assert latency.resolve("torch", device=device)[0].backend == "torch", "which compiles nothing"


@pytest.mark.usefixtures("gpu")
def test_torch_compile_on_a_gpu_without_triton_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(latency, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match="pip install triton"):
        latency.resolve("torch-compile")
    assert latency.resolve("torch-compile", device="cpu")[0].device_kind == "cpu", "where it needs none"


# -- what a target is -------------------------------------------------------------------------------------------------

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
    "options": "dynamic batch 1..8",
}


@pytest.mark.parametrize("field", [field.name for field in fields(Target)])
def test_targets_that_differ_in_one_field_have_different_ids(field: str) -> None:
    other = replace(TARGET, **{field: OTHERS[field]})  # type: ignore[arg-type]
    assert other.id != TARGET.id
    assert TARGET.differences(other) == {field: (getattr(TARGET, field), OTHERS[field])}


def test_equal_targets_have_the_same_id() -> None:
    assert replace(TARGET).id == TARGET.id
    assert replace(TARGET).differences(TARGET) == {}


def test_id_of_a_target_without_options_is_what_stores_already_hold() -> None:
    assert TARGET.id == "t1-de1b4dfec373"
    assert replace(TARGET, options="dynamic batch 1..8").id == "t1-15fbe6abef50"


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=marks_of("torch", "cuda"))])
def test_resolved_target_describes_itself_for_people(kind: str) -> None:
    target = latency.resolve("torch", device=kind, batch=2, image_size=64)[0]
    described = target.describe()
    for words in ("torch", target.backend_version, "fp32", "batch 2", "64x64", target.device):
        assert words in described
