"""What only an NVIDIA GPU can show; `python -m pytest -m gpu` runs this and the contract tests' GPU cases."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from explorer import latency, model
from explorer.arch import PRESETS, parse_name
from explorer.cli import app
from explorer.errors import BackendMissing, MeasureError, TrialError
from explorer.latency import cuda, environment, measurement
from explorer.latency.cache import Cache
from explorer.latency.cuda import Replay
from explorer.latency.measurer import Measurer, deployed_for
from explorer.latency.nvml import Gpu
from explorer.latency.worker import Worker
from explorer.records import Latency, Precision, Target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]

Tell = Callable[[str], None]
GPU_BACKENDS = [
    pytest.param(name, marks=pytest.mark.slow if name == "torch-compile" else ())
    for name, known in latency.BACKENDS.items()
    if "cuda" in known.kinds
]
TINY, SMALL = PRESETS["Swin-T"], PRESETS["Swin-S"]


def target_of(backend: str, precision: Precision = "fp32", **options: Any) -> Target:
    """The target on this GPU; skips with the reason where the backend does not run on it."""
    try:
        return latency.resolve(backend, device="cuda", precision=precision, **options)[0]
    except BackendMissing as error:
        pytest.skip(str(error))


# -- the target -------------------------------------------------------------------------------------------------------


def test_auto_chooses_the_gpu_and_says_so() -> None:
    target, why = latency.resolve()
    assert target.backend in ("tensorrt", "torch")
    assert (target.device_kind, target.threads) == ("cuda", 0)
    assert "GPU" in why
    assert target.device == torch.cuda.get_device_name()
    assert target.driver
    if target.backend == "torch":
        assert "TensorRT does not (" in why, "which says what is missing"


def test_lock_is_that_of_this_very_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uuid = cuda.gpu_uuid()
    assert uuid
    with environment.exclusive("cuda"):
        assert [path.name for path in tmp_path.iterdir()] == [f"swinexplore-{uuid}.lock"]


def test_torch_and_nvml_speak_of_the_same_gpu() -> None:
    gpu = Gpu.find(cuda.gpu_uuid())
    if gpu is None:
        pytest.skip("NVML does not know this GPU")
    told, described = gpu.describe(), cuda.describe()
    assert told["name"] == described["name"] == torch.cuda.get_device_name()
    assert told["compute_capability"] == described["compute_capability"] == cuda.compute_capability()
    assert described["uuid"] in str(told["uuid"])


# -- replay -----------------------------------------------------------------------------------------------------------


def multiplying(num_steps: int, size: int = 1024) -> tuple[Callable[[Any], None], SimpleNamespace]:
    """Queues products of matrices and adds one to `count`; `kept` holds what the graph reads and writes."""
    kept = SimpleNamespace(
        count=torch.zeros((), device="cuda"), matrix=torch.randn(size, size, device="cuda"), output=None
    )

    def enqueue(stream: Any) -> None:
        assert torch.cuda.current_stream() == stream
        output = kept.matrix
        for _ in range(num_steps):
            output = output @ kept.matrix
        kept.output = output
        kept.count.add_(1)

    return enqueue, kept


def test_replay_captures_and_every_replay_computes() -> None:
    enqueue, kept = multiplying(2)
    replay = Replay(enqueue)
    assert replay.graph is not None
    assert replay.why_no_graph == ""
    before = int(kept.count.item())
    replay.run()
    times_ms = replay.timed(0.0, 10)
    plain_ms = replay.timed(0.0, 5, graph=False)
    torch.cuda.synchronize()
    assert int(kept.count.item()) == before + 16
    assert (len(times_ms), len(plain_ms)) == (10, 5)
    assert min(*times_ms, *plain_ms) > 0
    expected = kept.matrix @ kept.matrix @ kept.matrix
    torch.testing.assert_close(kept.output, expected, rtol=1e-3, atol=1.0)
    replay.close()


def test_events_measure_what_the_device_does() -> None:
    short, long = (Replay(multiplying(num_steps, 2048)[0]) for num_steps in (4, 40))
    short_ms, long_ms = (float(np.median(replay.timed(0.1, 20))) for replay in (short, long))
    assert long_ms > 3 * short_ms
    short.close()
    long.close()


def test_what_cannot_be_captured_is_queued_and_says_why() -> None:
    enqueue, kept = multiplying(1)

    def enqueue_and_wait(stream: Any) -> None:
        enqueue(stream)
        kept.count.item()  # waits for the device, which no capture allows

    replay = Replay(enqueue_and_wait)
    assert replay.graph is None
    assert replay.why_no_graph
    before = int(kept.count.item())
    assert len(replay.timed(0.0, 5)) == 5
    replay.run()
    assert int(kept.count.item()) == before + 6
    replay.close()


def test_closed_replay_leaves_no_memory_behind() -> None:
    def left_bytes() -> int:
        enqueue, kept = multiplying(4, 2048)
        replay = Replay(enqueue)
        replay.run()
        replay.close()
        del enqueue, kept, replay
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # one a stream, which torch keeps
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    left_bytes()
    before = left_bytes()
    assert left_bytes() <= before + 2**20


# -- measurements -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engines of this file are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_presets_are_measured_on_the_gpu(precision: Precision) -> None:
    target, _ = latency.resolve("torch", device="cuda", precision=precision)
    with Measurer(target) as measurer:
        measured = {name: measurer.measure(PRESETS[name]) for name in ("Swin-T", "Swin-B")}
    assert 0 < measured["Swin-T"].latency_ms < measured["Swin-B"].latency_ms < 1000


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_every_backend_measures_beside_a_reference_and_says_what_it_saw(
    backend: str, precision: Precision, cache: Path, shared: Worker
) -> None:
    target = target_of(backend, precision)
    with Measurer(target, reference=TINY, cache_root=cache, worker=shared) as measuring:
        base, measured = measuring.measure(TINY), measuring.measure(SMALL)
    for one in (base, measured):
        require_all_figures(one, backend)
    assert base.latency_ms < measured.latency_ms
    assert measured.reference_id == TINY.id
    assert measured.reference_ms is not None
    assert measured.reference_drift is not None
    assert measured.ratio is not None
    assert measured.ratio > 1


def require_all_figures(measured: Latency, backend: str) -> None:
    assert measured.p90_ms is not None
    assert measured.p99_ms is not None
    assert 0 < measured.min_ms <= measured.latency_ms <= measured.p90_ms <= measured.p95_ms <= measured.p99_ms
    assert measured.isolated_ms is not None
    assert measured.isolated_ms > 0
    assert measured.images_per_s is not None
    assert measured.images_per_s > 0
    told = json.loads(json.dumps(asdict(measured)))["environment"]
    assert told["gpu"]["name"] == torch.cuda.get_device_name()
    assert cuda.gpu_uuid() in told["gpu"]["uuid"]
    assert told["gpu"]["num_sms"] > 0
    if Gpu.find(cuda.gpu_uuid()) is not None:
        assert told["nvml_samples"] >= 2
        assert told["sm_mhz"]["min"] > 0
    if backend.startswith("onnxruntime"):
        assert told["backend"]["timed_by"] == "host clock"
        return
    assert told["backend"]["timed_by"] == "device events"
    assert told["backend"]["cuda_graph"] is True, told["backend"]["why_no_graph"]
    assert measured.no_graph_ms is not None
    assert measured.no_graph_ms > 0
    assert measured.peak_memory_bytes is not None
    assert measured.peak_memory_bytes > 0


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_logits_of_every_backend_are_those_of_the_model(backend: str, precision: Precision, cache: Path) -> None:
    if precision not in latency.BACKENDS[backend].precisions:
        pytest.skip(f"{backend} does not run {precision}")
    target = target_of(backend, precision, batch=2)
    deployed = deployed_for(TINY, target)
    runner = measurement.open_runner(deployed, target, 7, cache=Cache(cache))
    try:
        measurement.require_same_output(runner, deployed, target, 7)
        first = runner.logits()
        runner.timed(0.0, 10)
        np.testing.assert_array_equal(runner.logits(), first)
    finally:
        runner.close()


def test_fp32_is_not_tf32() -> None:
    target = target_of("torch", batch=2)
    deployed = deployed_for(TINY, target)
    runner = measurement.open_runner(deployed, target, 7)
    found, exact = runner.logits(), measurement.expected_logits(deployed, measured_on_cpu(target), 7)
    runner.close()
    assert np.abs(found - exact).max() <= 1e-3 * exact.std()


def measured_on_cpu(target: Target) -> Target:
    return Target(target.backend, "", "fp32", target.batch, target.image_size, "cpu", "", "", 1, 0)


def test_same_network_has_the_same_latency_every_time(shared: Worker) -> None:
    target = target_of("torch", "fp16")
    with Measurer(target, reference=TINY, worker=shared) as measuring:
        medians_ms = [measuring.measure(SMALL).latency_ms for _ in range(4)]
    assert max(medians_ms) / min(medians_ms) - 1 <= 0.03, medians_ms


# -- TensorRT ---------------------------------------------------------------------------------------------------------


def test_engine_is_built_once_and_kept(cache: Path, shared: Worker) -> None:
    events: list[str] = []
    target = target_of("tensorrt", "fp16")
    with Measurer(target, cache_root=cache, worker=shared, on_event=events.append) as measuring:
        first = measuring.measure(parse_name("Swin-E32x2.2.2.2-W7.7.7.7-N10"))
        assert any("building the engine" in text for text in events)
        events.clear()
        again = measuring.measure(parse_name("Swin-E32x2.2.2.2-W7.7.7.7-N10"))
    assert not any("building the engine" in text for text in events)
    assert first.build_s == again.build_s, "the seconds that the build once took"
    assert first.engine_bytes == again.engine_bytes
    assert first.engine_bytes is not None
    assert first.engine_bytes > 0


def test_engines_of_one_network_differ_by_a_known_spread(cache: Path, shared: Worker) -> None:
    target = target_of("tensorrt", "fp16")
    with Measurer(target, cache_root=cache, worker=shared, rebuilds=2) as measuring:
        measured = measuring.measure(parse_name("Swin-E32x2.2.2.2-W7.7.7.7-N10"))
    assert len(measured.rebuild_medians_ms) == 1
    assert measured.rebuild_spread is not None


def test_engine_past_its_deadline_fails_and_the_next_is_measured(cache: Path, shared: Worker) -> None:
    arch = parse_name("Swin-E32x2.2.2.2-W7.7.7.7-N10")
    target = target_of("tensorrt", "fp32")
    with (
        Measurer(target, cache_root=cache, worker=shared, deadline_s=0.5) as measuring,
        pytest.raises(TrialError) as caught,
    ):
        measuring.measure(PRESETS["Swin-B"])
    assert caught.value.kind == "timeout"
    with Measurer(target, cache_root=cache, worker=shared) as measuring:
        assert measuring.measure(arch).latency_ms > 0


# -- what breaks, and who else is there -------------------------------------------------------------------------------


def pid_of(tell: Tell) -> int:
    return os.getpid()


def allow_little_memory(tell: Tell) -> None:
    """Leaves torch in this process about 64 MB of the GPU's memory."""
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(64e6 / total_bytes)


def break_the_context(tell: Tell) -> None:
    """An index out of bounds: no kernel runs in this process afterwards."""
    values = torch.zeros(4, device="cuda")
    values[torch.tensor([10**6], device="cuda")] = 1.0
    torch.cuda.synchronize()


def test_measurer_survives_memory_that_runs_out() -> None:
    target = target_of("torch")
    with Worker() as worker, Measurer(target, worker=worker) as measuring:
        before = worker.call(pid_of)
        worker.call(allow_little_memory)
        with pytest.raises(MeasureError, match="out of memory") as caught:
            measuring.measure(PRESETS["Swin-B"])
        assert caught.value.kind == "out_of_memory"
        assert measuring.measure(TINY).latency_ms > 0
        assert worker.pid not in (None, before)


def test_batch_that_no_gpu_holds_is_out_of_memory_and_the_next_is_measured() -> None:
    arch = parse_name("Swin-E32x2.2.2.2-W7.7.7.7-N10")
    with Worker() as worker:
        with (
            Measurer(target_of("torch", batch=2**40), worker=worker) as measuring,
            pytest.raises(MeasureError) as caught,
        ):
            measuring.measure(arch)
        assert caught.value.kind == "out_of_memory"
        with Measurer(target_of("torch"), worker=worker) as measuring:
            assert measuring.measure(arch).latency_ms > 0


def test_measurer_survives_a_broken_context() -> None:
    target = target_of("torch")
    with Worker() as worker, Measurer(target, worker=worker) as measuring:
        first = measuring.measure(TINY)
        before = worker.pid
        with pytest.raises(MeasureError) as caught:
            worker.call(break_the_context)
        assert caught.value.kind == "crash"
        again = measuring.measure(TINY)
        assert worker.pid not in (None, before)
    assert again.latency_ms == pytest.approx(first.latency_ms, rel=0.1)
    assert torch.ones(2, device="cuda").sum().item() == 2, "this process has seen nothing of it"


COMPUTE = """
import torch
matrix = torch.randn(4096, 4096, device="cuda")
torch.cuda.synchronize()
print("computing", flush=True)
while True:
    matrix @ matrix
    torch.cuda.synchronize()
"""


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[str]]:
    """Another process that computes on the GPU."""
    process = subprocess.Popen([sys.executable, "-c", COMPUTE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "computing"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_measurement_beside_a_stranger_is_invalid_and_names_it(stranger: subprocess.Popen[str], shared: Worker) -> None:
    gpu = Gpu.find(cuda.gpu_uuid())
    listed = None if gpu is None else gpu.all_processes()
    if listed is None or stranger.pid not in {process.pid for process in listed}:
        pytest.skip("NVML does not list the processes of this system")
    with Measurer(target_of("torch"), worker=shared) as measuring:
        measured = measuring.measure(TINY)
    computed = f"pid {stranger.pid} computed on the GPU meanwhile"
    untold = rf"pid {stranger.pid} is on the GPU( \(.*? GB\))?, and NVML does not tell whether it computes"
    assert computed in measured.invalid or re.search(untold, measured.invalid), measured.invalid
    assert stranger.pid in {process["pid"] for process in measured.environment["foreign_processes"]}
    assert measured.environment["attempts"] == measurement.MAX_ATTEMPTS


def test_our_own_processes_are_no_strangers(shared: Worker) -> None:
    torch.ones(2, device="cuda").sum().item()  # this process is on the GPU too
    with Measurer(target_of("torch"), worker=shared) as measuring:
        measured = measuring.measure(TINY)
    assert "on the GPU" not in measured.invalid


# -- networks and training --------------------------------------------------------------------------------------------

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


#: Trainings of a few seconds, LayerNorm and BatchNorm.
SMALL_NETWORKS = ("Swin-E16x2.2.2.2-W2.4.4.2-R32-P2-C1-N16", "Swin-E16x2.2.2.2-W2.4.4.2-R32-P2-C1-N16-BR")


def small_training(
    name: str,
    root: Path,
    *,
    images_on: str = "cuda",
    checkpoint: Path | None = None,
    until: int | None = None,
    **options: Any,
) -> tuple[torch.nn.Module, list[float], float]:
    """A training's module, losses and accuracy: 30 steps an epoch, so that graphs are recorded and replayed."""
    from explorer.training.data import describe, load
    from explorer.training.recipe import Recipe
    from explorer.training.step import Acceleration
    from explorer.training.trainer import Checkpoint, train

    fields = {"epochs": 3, "batch_size": 64, "lr": 1e-3, "drop_path": 0.2, "flip": True, "train_images": 1_920}
    recipe = Recipe(**fields | {name: value for name, value in options.items() if name in Recipe.model_fields})
    given = {name: value for name, value in options.items() if name not in Recipe.model_fields}
    acceleration = Acceleration(**given)
    split = load(describe("contours", root), image_size=32, channels=1, device=torch.device(images_on)).for_search(
        recipe.train_images, 512
    )
    module = model.build(parse_name(name), seed=0, drop_path=recipe.drop_path)
    kept = None if checkpoint is None else Checkpoint(checkpoint, "key")
    outcome = train(
        module,
        recipe,
        split,
        seed=0,
        device=torch.device("cuda"),
        checkpoint=kept,
        until=until,
        acceleration=acceleration,
    )
    return module, [epoch.loss for epoch in outcome.curve], outcome.accuracy


@pytest.mark.parametrize("precision", ["mixed", "fp32"])
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_training_by_a_graph_is_the_training_without_one(name: str, precision: str, tmp_path: Path) -> None:
    """Stochastic depth included: the graph draws the same random numbers."""
    _, with_graph, accuracy = small_training(name, tmp_path, precision=precision, graphs=True)
    _, without, expected = small_training(name, tmp_path, precision=precision, graphs=False)
    assert with_graph == pytest.approx(without, rel=1e-2)
    assert accuracy == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_compiled_training_on_the_gpu_is_the_training_as_it_is(name: str, tmp_path: Path) -> None:
    _, compiled, _ = small_training(name, tmp_path, precision="fp32", compiled=True)
    _, plain, _ = small_training(name, tmp_path, precision="fp32")
    assert compiled == pytest.approx(plain, rel=2e-2)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ema": 0.95, "precise_bn": 512, "eval_every": 2},
        {"mixup": 0.8, "cutmix": 1.0, "color": 0.4, "random_erasing": 0.25, "scale": 0.5},
        {"accumulate": 2},
        {"precision": "fp16"},
    ],
    ids=["plain", "averaged", "augmented", "accumulated", "fp16"],
)
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_training_on_the_gpu_goes_on_where_it_stopped(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    _, undisturbed, accuracy = small_training(name, tmp_path, **fields)
    kept = tmp_path / "checkpoint.pt"
    small_training(name, tmp_path, checkpoint=kept, until=1, **fields)
    _, resumed, resumed_accuracy = small_training(name, tmp_path, checkpoint=kept, **fields)
    assert resumed == pytest.approx(undisturbed, rel=1e-2)
    assert resumed_accuracy == pytest.approx(accuracy, abs=0.05)
    assert undisturbed[-1] < undisturbed[0]


def test_images_that_lie_on_the_cpu_train_as_those_on_the_gpu(tmp_path: Path) -> None:
    _, here, _ = small_training(SMALL_NETWORKS[0], tmp_path, images_on="cuda")
    _, brought, _ = small_training(SMALL_NETWORKS[0], tmp_path, images_on="cpu")
    assert brought == pytest.approx(here, rel=1e-2)


@pytest.mark.parametrize("graphs", [False, True])
def test_step_does_not_wait_for_the_gpu(graphs: bool) -> None:
    from explorer.training.recipe import Recipe
    from explorer.training.step import Acceleration, Part, Step

    device = torch.device("cuda")
    module = model.build(parse_name(SMALL_NETWORKS[1]), drop_path=0.2).to(device)
    step = Step(module, Recipe(epochs=1), device, Acceleration(graphs=graphs))
    part = Part(torch.randn(64, 1, 32, 32, device=device), torch.arange(64, device=device) % 16, None)
    for _ in range(5):  # warmed up and, where it is, recorded
        step([part], 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            loss, norm = step([part], 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.is_recordable == graphs, "it was not recorded"
    assert norm is not None
    assert torch.isfinite(loss + norm)


def test_augmentation_does_not_wait_for_the_gpu() -> None:
    from explorer.training.augmentation import augment, change_color, draw_mixes, erase, mix
    from explorer.training.recipe import Recipe

    device = torch.device("cuda")
    recipe = Recipe(epochs=1, flip=True, scale=0.5, mixup=0.8, cutmix=1.0)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, device=device)
    generator = torch.Generator(device).manual_seed(0)
    rows = draw_mixes(recipe, 2, 32, 0)
    assert rows is not None
    rows = rows.to(device)
    found = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in rows:
            pixels = change_color(augment(images, recipe, generator).float(), 0.4, generator)
            found.append(mix(erase(pixels, 0.5, generator), row)[0])
        found.append(augment(images, recipe.model_copy(update={"scale": None}), generator).float())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(pixels.isfinite().all()) for pixels in found)


@pytest.mark.parametrize("graphs", [False, True])
def test_divergence_on_the_gpu_is_told_with_its_first_step(graphs: bool, tmp_path: Path) -> None:
    with pytest.raises(TrialError, match=r"^diverged: the loss is \S+ at step 2 \(epoch 1, seed 0\)") as caught:
        small_training(SMALL_NETWORKS[0], tmp_path, lr=1e30, warmup=0.0, graphs=graphs)
    assert caught.value.kind == "diverged"


def test_search_runs_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["search", "--space", "demo.yaml", "--recipe", "quick", "--trials", "3", "--json"])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["event"], last["trials_done"]) == ("end", 3)
