"""The training loop: reproducible, resumable, with a schedule, and errors that say what went wrong."""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from explorer import model
from explorer.arch import Arch, parse_name
from explorer.errors import RecipeError, TrainError
from explorer.records import Epoch
from explorer.training import trainer
from explorer.training.checkpoint import write_checkpoint
from explorer.training.data import Split
from explorer.training.recipe import Recipe
from explorer.training.step import Acceleration, parameter_groups
from explorer.training.trainer import Checkpoint, Outcome, learning_rate, read_checkpoint, train

CPU = torch.device("cpu")
NAME = "Swin-E8x1.2.1.1-W2.2.2.1-H1.1.1.1-R16-P2-C1-N4"
#: Random crops, flips and stochastic depth: everything that draws.
RECIPE = Recipe(epochs=4, batch_size=16, lr=2e-3, warmup=0.25, drop_path=0.3, flip=True, crop_padding=0.125)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slowed down by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def arch() -> Arch:
    return parse_name(NAME)


@pytest.fixture(scope="module")
def split() -> Split:
    """Four classes told by the bright quadrant; 64 images to train on and 64 to evaluate on."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(128) % 4
    images = torch.randint(0, 100, (128, 1, 16, 16), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 120
    return Split(images[:64], labels[:64], images[64:], labels[64:])


def train_swin(
    arch: Arch, split: Split, recipe: Recipe = RECIPE, *, seed: int = 0, **options: Any
) -> tuple[nn.Module, Outcome]:
    module = model.build(arch, seed=seed, drop_path=recipe.drop_path)
    return module, train(module, recipe, split, seed=seed, device=CPU, **options)


def losses(outcome: Outcome) -> list[float]:
    return [epoch.loss for epoch in outcome.curve]


def assert_same_training(left: Outcome, right: Outcome) -> None:
    assert losses(left) == losses(right)
    assert [epoch.accuracy for epoch in left.curve] == [epoch.accuracy for epoch in right.curve]


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name


# -- reproducible -----------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_score_bit_for_bit(arch: Arch, split: Split) -> None:
    first, second = train_swin(arch, split, seed=3), train_swin(arch, split, seed=3)
    assert first[1].accuracy == second[1].accuracy
    assert losses(first[1]) == losses(second[1])
    assert_same_weights(first[0], second[0])


def test_same_score_whatever_was_drawn_before(arch: Arch, split: Split) -> None:
    first = train_swin(arch, split)[1]
    torch.rand(17)
    assert losses(train_swin(arch, split)[1]) == losses(first)


def test_other_seed_gives_another_training(arch: Arch, split: Split) -> None:
    module = model.build(arch, seed=0)
    first = train(module, RECIPE, split, seed=1, device=CPU)
    second = train(model.build(arch, seed=0), RECIPE, split, seed=2, device=CPU)
    assert losses(first) != losses(second)


def test_module_is_trained_in_place(arch: Arch, split: Split) -> None:
    trained = train_swin(arch, split)[0]
    untrained = model.build(arch, seed=0)
    changed = [
        name
        for name, value in trained.named_parameters()
        if not torch.equal(value, dict(untrained.named_parameters())[name])
    ]
    assert "head.weight" in changed
    assert "patch_embed.proj.weight" in changed


@pytest.mark.parametrize("ends_by", ["return", "interrupt", "divergence"])
def test_global_random_state_is_the_callers_again(ends_by: str, arch: Arch, split: Split) -> None:
    def interrupt(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    module = model.build(arch, drop_path=RECIPE.drop_path)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    match ends_by:
        case "return":
            train(module, RECIPE, split, seed=0, device=CPU)
        case "interrupt":
            with pytest.raises(KeyboardInterrupt):
                train(module, RECIPE, split, seed=0, device=CPU, on_epoch=interrupt)
        case _:
            with pytest.raises(TrainError):
                train(module, RECIPE.model_copy(update={"lr": 1e30}), split, seed=0, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_easy_data_is_learned_far_above_chance(arch: Arch, split: Split) -> None:
    recipe = Recipe(epochs=15, batch_size=16, lr=5e-3, crop_padding=0.0, label_smoothing=0.0)
    outcome = train_swin(arch, split, recipe)[1]
    assert outcome.accuracy > 0.6
    assert outcome.curve[-1].loss < 0.8 * outcome.curve[0].loss


def test_every_epoch_is_told_and_kept_in_the_curve(arch: Arch, split: Split) -> None:
    told: list[Epoch] = []
    outcome = train_swin(arch, split, on_epoch=told.append)[1]
    assert tuple(told) == outcome.curve
    assert [epoch.epoch for epoch in told] == [1, 2, 3, 4]
    assert outcome.accuracy == told[-1].accuracy
    assert outcome.train_s == pytest.approx(sum(epoch.seconds for epoch in told))


def test_accuracy_is_the_share_of_correct_evaluation_images(split: Split) -> None:
    class AlwaysTwo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(image),), 2), 4) * self.scale.abs() + 0.1

    num = 300  # more than one evaluation batch
    labels = torch.zeros(num, dtype=torch.int64)
    labels[:90] = 2
    images = split.eval_images[:1].expand(num, -1, -1, -1)
    outcome = train(
        AlwaysTwo(),
        Recipe(epochs=1, batch_size=16),
        Split(split.train_images, split.train_labels, images, labels),
        seed=0,
        device=CPU,
    )
    assert outcome.accuracy == pytest.approx(0.3)


# -- resumed ----------------------------------------------------------------------------------------------------------


#: What a training can do beside RECIPE; each must be the same again, and after an interrupt.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "eval_every": {"eval_every": 3},
    "ema": {"ema": 0.9},
    "precise_bn": {"precise_bn": 40},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "color": {"color": 0.4},
    "random_erasing": {"random_erasing": 0.5},
    "scale": {"scale": 0.3},
    "betas": {"betas": (0.8, 0.95)},
    "all": {
        "accumulate": 2,
        "eval_every": 3,
        "ema": 0.9,
        "precise_bn": 40,
        "mixup": 0.8,
        "cutmix": 1.0,
        "color": 0.4,
        "random_erasing": 0.5,
        "scale": 0.3,
    },
}


@pytest.mark.parametrize("br", [False, True], ids=["LayerNorm", "BatchNorm"])
@pytest.mark.parametrize("feature", FEATURES)
def test_training_resumed_after_an_interrupt_equals_the_undisturbed_one(
    feature: str, br: bool, arch: Arch, split: Split, tmp_path: Path
) -> None:
    arch, recipe = replace(arch, br=br), RECIPE.model_copy(update=FEATURES[feature])
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")

    def interrupt(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    undisturbed_module, undisturbed = train_swin(arch, split, recipe)
    with pytest.raises(KeyboardInterrupt):
        train_swin(arch, split, recipe, checkpoint=checkpoint, on_epoch=interrupt)
    told: list[Epoch] = []
    module, resumed = train_swin(arch, split, recipe, checkpoint=checkpoint, on_epoch=told.append)
    assert [epoch.epoch for epoch in told] == [3, 4]
    assert_same_training(resumed, undisturbed)
    assert_same_weights(module, undisturbed_module)


@pytest.mark.parametrize("feature", [name for name in FEATURES if name not in ("plain", "eval_every")])
def test_every_feature_of_a_recipe_changes_the_training(feature: str, arch: Arch, split: Split) -> None:
    arch = replace(arch, br=True)
    plain, other = train_swin(arch, split), train_swin(arch, split, RECIPE.model_copy(update=FEATURES[feature]))
    values = dict(other[0].state_dict())
    assert any(not torch.equal(value, values[name]) for name, value in plain[0].state_dict().items())


# -- what is evaluated, and when --------------------------------------------------------------------------------------


def test_every_nth_epoch_and_the_last_are_evaluated(arch: Arch, split: Split) -> None:
    outcome = train_swin(arch, split, RECIPE.model_copy(update={"epochs": 5, "eval_every": 2}))[1]
    assert [epoch.accuracy is not None for epoch in outcome.curve] == [False, True, False, True, True]
    assert outcome.accuracy == outcome.curve[-1].accuracy


def test_training_does_not_depend_on_when_it_is_evaluated(arch: Arch, split: Split) -> None:
    arch = replace(arch, br=True)
    recipe = RECIPE.model_copy(update={"ema": 0.9, "precise_bn": 40})
    often = train_swin(arch, split, recipe)
    once = train_swin(arch, split, recipe.model_copy(update={"eval_every": 10}))
    assert losses(often[1]) == losses(once[1])
    assert often[1].accuracy == once[1].accuracy
    assert_same_weights(often[0], once[0])


def test_epoch_that_a_training_stops_at_is_evaluated_and_it_goes_on_from_there(
    arch: Arch, split: Split, tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(update={"eval_every": 4, "ema": 0.9})
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    module, whole = train_swin(arch, split, recipe)
    rung = train_swin(arch, split, recipe, checkpoint=checkpoint, until=2)[1]
    assert [epoch.accuracy is not None for epoch in rung.curve] == [False, True]
    climbed_module, climbed = train_swin(arch, split, recipe, checkpoint=checkpoint)
    assert climbed.curve[1] == rung.curve[1]
    assert (losses(climbed), climbed.accuracy) == (losses(whole), whole.accuracy)
    assert_same_weights(climbed_module, module)


@pytest.mark.parametrize("kept_at", [2, 3], ids=["at-it", "beyond-it"])
def test_epoch_that_was_passed_without_an_evaluation_is_evaluated_when_it_is_asked_for(
    kept_at: int, arch: Arch, split: Split, tmp_path: Path
) -> None:
    def interrupt(epoch: Epoch) -> None:
        if epoch.epoch == kept_at:
            raise KeyboardInterrupt

    arch = replace(arch, br=True)
    recipe = RECIPE.model_copy(update={"eval_every": 4, "ema": 0.9, "precise_bn": 40})
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    with pytest.raises(KeyboardInterrupt):
        train_swin(arch, split, recipe, checkpoint=checkpoint, on_epoch=interrupt)
    module, found = train_swin(arch, split, recipe, checkpoint=checkpoint, until=2)
    expected_module, expected = train_swin(arch, split, recipe, until=2)
    assert (losses(found), found.accuracy) == (losses(expected), expected.accuracy)
    assert_same_weights(module, expected_module)


def weights_after_steps(arch: Arch, split: Split, recipe: Recipe) -> list[dict[str, Tensor]]:
    """The floating-point state before the first and after every step of a training."""
    module = model.build(arch, seed=0, drop_path=recipe.drop_path)
    seen: list[dict[str, Tensor]] = []

    def look(*_: object) -> None:
        seen.append({name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()})

    look()
    hook = register_optimizer_step_post_hook(look)
    try:
        train(module, recipe, split, seed=0, device=CPU)
    finally:
        hook.remove()
    return seen


def test_averaged_weights_are_the_exponential_average_with_its_warm_up(arch: Arch, split: Split) -> None:
    arch = replace(arch, br=True)
    average, *after_steps = weights_after_steps(arch, split, RECIPE)
    for num_steps, weights in enumerate(after_steps, 1):
        decay = min(0.7, (1 + num_steps) / (10 + num_steps))
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
    module = train_swin(arch, split, RECIPE.model_copy(update={"ema": 0.7}))[0]
    for name, value in average.items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_precise_statistics_are_those_of_the_training_images_as_they_are(arch: Arch, split: Split) -> None:
    arch = replace(arch, br=True)
    module = train_swin(arch, split, RECIPE.model_copy(update={"precise_bn": 64}))[0]
    images = split.train_images.float()
    with torch.no_grad():
        tokens = module.get_submodule("patch_embed.proj")((images - images.mean()) / images.std()).transpose(0, 1)
    norm = module.get_submodule("patch_embed.norm")
    torch.testing.assert_close(norm.running_mean, tokens.flatten(1).mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, tokens.flatten(1).var(1), rtol=1e-4, atol=1e-5)


def test_precise_statistics_change_neither_momentum_nor_training(arch: Arch, split: Split) -> None:
    arch = replace(arch, br=True)
    plain, plain_outcome = train_swin(arch, split)
    precise, precise_outcome = train_swin(arch, split, RECIPE.model_copy(update={"precise_bn": 64}))
    assert losses(precise_outcome) == losses(plain_outcome)
    for (name, one), other in zip(plain.named_parameters(), precise.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert precise.get_submodule("norm").momentum == plain.get_submodule("norm").momentum


def test_precise_statistics_of_a_network_without_batch_norm_change_nothing(arch: Arch, split: Split) -> None:
    plain, precise = train_swin(arch, split), train_swin(arch, split, RECIPE.model_copy(update={"precise_bn": 64}))
    assert_same_training(plain[1], precise[1])
    assert_same_weights(plain[0], precise[0])


def test_checkpoint_holds_the_weights_that_were_evaluated(arch: Arch, split: Split, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    recipe = RECIPE.model_copy(update={"ema": 0.9, "precise_bn": 40})
    module = train_swin(replace(arch, br=True), split, recipe, checkpoint=checkpoint)[0]
    kept = read_checkpoint(checkpoint.path)
    for name, value in module.state_dict().items():
        assert torch.equal(kept["module"][name], value), name
    assert not torch.equal(kept["trained"]["head.weight"], kept["module"]["head.weight"])


def test_precision_of_a_gpu_is_fp32_on_a_cpu(arch: Arch, split: Split) -> None:
    outcomes = [
        train_swin(arch, split, RECIPE.model_copy(update={"precision": precision}))[1]
        for precision in ("fp32", "mixed", "fp16")
    ]
    assert_same_training(outcomes[0], outcomes[1])
    assert_same_training(outcomes[0], outcomes[2])


@pytest.mark.slow
def test_compiled_training_is_the_same_up_to_rounding(arch: Arch, split: Split) -> None:
    """Stochastic depth included: it draws the same random numbers."""
    recipe = RECIPE.model_copy(update={"epochs": 2})
    plain = train_swin(arch, split, recipe)[1]
    compiled = train_swin(arch, split, recipe, acceleration=Acceleration(compiled=True))[1]
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-3)


def test_finished_training_is_not_trained_again(arch: Arch, split: Split, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    module, first = train_swin(arch, split, checkpoint=checkpoint)
    told: list[Epoch] = []
    again, second = train_swin(arch, split, checkpoint=checkpoint, on_epoch=told.append)
    assert told == []
    assert second == first
    assert_same_weights(module, again)


def test_no_unfinished_file_is_left_beside_the_checkpoint(arch: Arch, split: Split, tmp_path: Path) -> None:
    train_swin(arch, split, checkpoint=Checkpoint(tmp_path / "checkpoint.pt", "key"))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_no_unfinished_file_is_left_where_keeping_is_interrupted(tmp_path: Path) -> None:
    class Interrupts:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint({"module": Interrupts()}, tmp_path / "checkpoint.pt")
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_that_another_process_removes_while_it_is_opened_is_none(
    arch: Arch, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has come to the end of the same training."""

    def read_too_late(path: Path) -> dict[str, Any]:
        path.unlink()
        return read_checkpoint(path)

    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    undisturbed = train_swin(arch, split, checkpoint=checkpoint)[1]
    monkeypatch.setattr(trainer, "read_checkpoint", read_too_late)
    assert_same_training(train_swin(arch, split, checkpoint=checkpoint)[1], undisturbed)


def test_checkpoint_of_another_training_is_refused_and_kept(arch: Arch, split: Split, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    train_swin(arch, split, checkpoint=Checkpoint(path, "mine"))
    kept = path.read_bytes()
    with pytest.raises(RecipeError, match=r"checkpoint\.pt: the state of another training"):
        train_swin(arch, split, checkpoint=Checkpoint(path, "other"))
    assert path.read_bytes() == kept


class Malicious:
    """Unpickled by a careless reader, it makes the folder that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.mkdir, (self.folder,)


def write_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [write_pickle, torch.save], ids=["pickle", "torch.save"])
def test_malicious_checkpoint_is_refused_and_its_code_is_not_run(
    write: Callable[[object, Path], None], arch: Arch, split: Split, tmp_path: Path
) -> None:
    path, made = tmp_path / "checkpoint.pt", tmp_path / "made"
    write({"key": "key", "module": Malicious(made)}, path)
    with pytest.raises(RecipeError, match=r"checkpoint\.pt: not a checkpoint that can be read safely"):
        train_swin(arch, split, checkpoint=Checkpoint(path, "key"))
    assert not made.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert made.exists(), "the file was harmless: this test shows nothing"


@pytest.mark.parametrize(
    "content",
    [
        b"no checkpoint",
        b"PK\x03\x04 cut off",
        b"",
    ],
    ids=["text", "zip", "empty"],
)
def test_broken_checkpoint_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"checkpoint\.pt: not a checkpoint"):
        read_checkpoint(path)


def test_file_of_torch_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(RecipeError, match=r"other\.pt: not a checkpoint of swinexplore"):
        read_checkpoint(tmp_path / "other.pt")


# -- the schedule -----------------------------------------------------------------------------------------------------

SCHEDULE = Recipe(epochs=1, lr=0.1, min_lr=0.001, warmup=0.2)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.1 / 20),
        (9, 0.1 * 10 / 20),
        (19, 0.1),
        (20, 0.1),
        (99, 0.001),
        (100, 0.001),
        (20 + 79 / 2, (0.1 + 0.001) / 2),
    ],
    ids=["first", "half-way-up", "end-of-warm-up", "start-of-cosine", "last", "beyond", "half-way-down"],
)
def test_learning_rate_rises_linearly_then_falls_by_a_cosine(step: float, lr: float) -> None:
    assert learning_rate(SCHEDULE, step, 100) == pytest.approx(lr)  # type: ignore[arg-type]


def test_learning_rate_without_warm_up_starts_at_its_top() -> None:
    recipe = SCHEDULE.model_copy(update={"warmup": 0.0})
    rates = [learning_rate(recipe, step, 50) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.001)
    assert rates == sorted(rates, reverse=True)


def test_training_of_one_step_has_a_positive_learning_rate() -> None:
    assert 0 < learning_rate(SCHEDULE, 0, 1) <= 0.1


def grads_and_rates_of(recipe: Recipe, split: Split, arch: Arch) -> tuple[list[list[Tensor]], list[float]]:
    """Gradients and learning rates that the optimizer saw, step by step."""
    grads: list[list[Tensor]] = []
    rates: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grads.append([p.grad.clone() for p in parameters])
        rates.extend({group["lr"] for group in optimizer.param_groups})

    hook = register_optimizer_step_pre_hook(look)
    try:
        train_swin(arch, split, recipe)
    finally:
        hook.remove()
    return grads, rates


def test_optimizer_follows_the_schedule_over_all_epochs(arch: Arch, split: Split) -> None:
    _, rates = grads_and_rates_of(RECIPE, split, arch)
    assert rates == [learning_rate(RECIPE, step, 16) for step in range(16)]


# -- the step ---------------------------------------------------------------------------------------------------------


def test_accumulated_gradient_is_that_of_the_whole_batch(arch: Arch, split: Split) -> None:
    whole = Recipe(epochs=1, batch_size=64, crop_padding=0.0, grad_clip=1e9)
    (expected,), _ = grads_and_rates_of(whole, split, arch)
    (accumulated,), _ = grads_and_rates_of(whole.model_copy(update={"accumulate": 4}), split, arch)
    largest = max(float(grad.abs().max()) for grad in expected)
    for left, right in zip(expected, accumulated, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5 * largest)


def test_accumulation_gives_the_same_losses_up_to_rounding(arch: Arch, split: Split) -> None:
    recipe = Recipe(epochs=3, batch_size=32, crop_padding=0.0)
    whole = train_swin(arch, split, recipe)[1]
    parts = train_swin(arch, split, recipe.model_copy(update={"accumulate": 8}))[1]
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-3)


def test_gradient_is_clipped_to_the_recipes_norm(arch: Arch, split: Split) -> None:
    grads, _ = grads_and_rates_of(RECIPE.model_copy(update={"grad_clip": 1e-3, "epochs": 1}), split, arch)
    for step in grads:
        assert math.sqrt(sum(float(grad.square().sum()) for grad in step)) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("br", [False, True])
def test_norms_biases_and_bias_tables_are_not_decayed(br: bool, arch: Arch) -> None:
    module = model.build(replace(arch, br=br))
    decayed, others = parameter_groups(module, 0.05)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert {name for name in names.values() if name not in decayed_names} == {
        name for name in names.values() if name.endswith(".bias") or "norm" in name or "bias_table" in name
    }
    assert {"head.weight", "patch_embed.proj.weight"} <= decayed_names


@pytest.mark.parametrize("looks_every", [1, 3, 20])
@pytest.mark.parametrize("seed", [0, 5])
def test_loss_that_is_not_finite_ends_the_training_with_its_first_such_step(
    seed: int, looks_every: int, arch: Arch, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECK_EVERY_STEPS", {"cpu": looks_every})  # as rarely as on a GPU
    with pytest.raises(TrainError, match=rf"^diverged: the loss is nan at step 2 \(epoch 1, seed {seed}\)$") as caught:
        train_swin(arch, split, Recipe(epochs=2, batch_size=16, lr=1e30, warmup=0.0), seed=seed)
    assert (caught.value.kind, caught.value.diverged_at) == ("diverged", 2)


@pytest.mark.parametrize("features", [{}, {"ema": 0.9}, {"precise_bn": 64}])
def test_output_that_is_not_finite_after_the_last_step_is_a_divergence(
    features: dict[str, Any], split: Split, tmp_path: Path
) -> None:
    """One step: its loss and its gradient are finite, and what it makes of the weights is not."""
    recipe = Recipe(epochs=1, batch_size=64, lr=1e30, warmup=0.0, **features)
    kept = Checkpoint(tmp_path / "checkpoint.pt", "key")
    arch = parse_name("Swin-E8x1.2.1.1-W2.2.2.1-H1.1.1.1-R16-P2-C1-N4-BR" if "precise_bn" in features else NAME)
    with pytest.raises(
        TrainError, match=r"^diverged: the output is not finite after step 1 \(epoch 1, seed 3\)$"
    ) as caught:
        train_swin(arch, split, recipe, seed=3, checkpoint=kept)
    assert (caught.value.kind, caught.value.diverged_at) == ("diverged", 1)
    assert not kept.path.exists()


def test_step_of_a_divergence_counts_from_the_start_of_the_training(arch: Arch, split: Split) -> None:
    class FailsAt(nn.Module):
        """Its loss is infinite from the given step on."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.linear, self.step, self.done = nn.Linear(256, 4), step, 0

        def forward(self, image: Tensor) -> Tensor:
            self.done += self.training
            return self.linear(image.flatten(1)) * (torch.inf if self.done >= self.step else 1.0)

    with pytest.raises(TrainError, match=r"at step 7 \(epoch 2, seed 0\)") as caught:
        train(FailsAt(7), Recipe(epochs=3, batch_size=16), split, seed=0, device=CPU)
    assert pickle.loads(pickle.dumps(caught.value)).diverged_at == 7, "workers send what they raise"


def test_gradient_that_is_not_finite_ends_the_training_although_the_loss_is(split: Split) -> None:
    class Cusp(nn.Linear):
        """The square root of 0 has no slope."""

        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image.flatten(1)) + (self.bias - self.bias.detach()).sqrt()

    with pytest.raises(TrainError, match=r"^diverged: the gradient's norm is (inf|nan) at step 1 \(epoch 1, seed 0\)$"):
        train(Cusp(256, 4), Recipe(epochs=1, batch_size=16), split, seed=0, device=CPU)


def test_diverged_training_leaves_no_checkpoint_of_its_epoch(arch: Arch, split: Split, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    with pytest.raises(TrainError):
        train_swin(arch, split, RECIPE.model_copy(update={"lr": 1e30}), checkpoint=checkpoint)
    assert not checkpoint.path.exists()


def test_memory_that_runs_out_is_a_failure_of_its_kind(arch: Arch, split: Split) -> None:
    class Large(nn.Linear):
        def forward(self, image: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("tried to allocate 1 PiB")

    with pytest.raises(TrainError, match="out of memory on cpu at batch 16: tried to allocate") as caught:
        train(Large(4, 4), RECIPE, split, seed=0, device=CPU)
    assert caught.value.kind == "out_of_memory"


def test_batch_larger_than_the_data_is_refused_with_both_numbers(arch: Arch, split: Split) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.batch_size: 65 is more than the 64 training images"):
        train_swin(arch, split, Recipe(epochs=1, batch_size=65))


def test_training_without_evaluation_images_is_refused(arch: Arch, split: Split) -> None:
    with pytest.raises(RecipeError):
        train_swin(arch, replace(split, eval_images=split.eval_images[:0], eval_labels=split.eval_labels[:0]))
