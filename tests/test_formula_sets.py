"""The image sets made by formula: the same from the same seed, balanced, and learnable from shape alone."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.training import contours, silhouettes
from explorer.training.data import SOURCES

CPU = torch.device("cpu")
Images = tuple[Tensor, Tensor]


@pytest.fixture(scope="module", params=[contours, silhouettes], ids=["contours", "silhouettes"])
def made(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture(scope="module")
def train(made: ModuleType) -> Images:
    images: Images = made.draw(2_400, 1, CPU)
    return images


@pytest.fixture(scope="module")
def test(made: ModuleType) -> Images:
    images: Images = made.draw(640, 2, CPU)
    return images


def by_pixels(train: Images, test: Images, num_classes: int, ridge: float) -> float:
    """Accuracy of ridge regression on 16x16 pixels."""

    def features(images: Tensor) -> Tensor:
        small = F.interpolate(images.float() / 255, (16, 16), mode="area").flatten(1)
        return torch.cat([small, torch.ones(len(small), 1)], 1)

    x, wanted = features(train[0]), F.one_hot(train[1], num_classes).float()
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ wanted)
    return ((features(test[0]) @ weights).argmax(1) == test[1]).float().mean().item()


def test_images_are_grey_bytes_with_a_label_each(made: ModuleType, test: Images) -> None:
    images, labels = test
    assert (images.dtype, images.shape) == (torch.uint8, (640, 1, made.NATIVE_SIZE, made.NATIVE_SIZE))
    assert (labels.dtype, labels.shape) == (torch.int64, (640,))


def test_same_seed_draws_the_same_images(made: ModuleType) -> None:
    first, second = made.draw(50, 7, CPU), made.draw(50, 7, CPU)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


#: By name and version in SOURCES: mean levels of the quarters of three images, and the mean step from pixel to pixel.
DRAWN = {
    ("contours", 1): (
        [[83.90, 77.16, 78.71, 82.59], [65.36, 65.21, 66.14, 63.81], [62.00, 63.02, 61.56, 62.62]],
        14.792,
    ),
    ("silhouettes", 1): (
        [[118.62, 107.90, 105.89, 113.39], [166.85, 141.29, 155.94, 133.07], [70.87, 88.18, 84.84, 99.18]],
        42.177,
    ),
}


def test_images_are_those_that_scores_of_this_version_were_trained_on(made: ModuleType) -> None:
    """A set that draws otherwise needs another version in SOURCES: it is the fingerprint in every score's key."""
    name = made.__name__.rpartition(".")[2]
    quarters, step = DRAWN[name, SOURCES[name][4]]
    images = made.draw(60, 7, CPU)[0].float()
    torch.testing.assert_close(
        F.adaptive_avg_pool2d(images[[0, 25, 59]], 2).flatten(1), torch.tensor(quarters), atol=0.05, rtol=0
    )
    assert images.diff(dim=-1).abs().mean().item() == pytest.approx(step, abs=0.01)


def test_drawing_leaves_the_global_random_state_alone(made: ModuleType) -> None:
    before = torch.get_rng_state()
    made.draw(10, 7, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_seed_draws_other_images_of_the_same_classes(train: Images, test: Images) -> None:
    assert torch.equal(train[1][:640], test[1])
    differs = (train[0][:640] != test[0]).flatten(1).any(1)
    assert differs.all()


def test_no_image_is_drawn_twice(train: Images, test: Images) -> None:
    drawn = [image.numpy().tobytes() for image in torch.cat([train[0], test[0]])]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("rounds", [1, 5, None])
def test_every_prefix_is_balanced(rounds: int | None, made: ModuleType, train: Images) -> None:
    classes: int = made.NUM_CLASSES
    counts = train[1][: None if rounds is None else rounds * classes].bincount(minlength=classes)
    assert counts.tolist() == [2_400 // classes if rounds is None else rounds] * classes


def test_brightness_does_not_tell_the_class(made: ModuleType, train: Images, test: Images) -> None:
    """Nearest neighbour by mean grey level stays near chance."""
    known, asked = train[0].float().mean((1, 2, 3)), test[0].float().mean((1, 2, 3))
    nearest = (asked[:, None] - known).abs().argmin(1)
    assert (train[1][nearest] == test[1]).float().mean() < {16: 2, 40: 3}[made.NUM_CLASSES] / made.NUM_CLASSES


@pytest.mark.parametrize("made", [contours], indirect=True)
def test_every_contour_is_a_line_on_a_darker_ground(train: Images) -> None:
    pixels = train[0].float().flatten(1)
    assert (pixels.quantile(0.98, 1) - pixels.median(1).values).min() > 60


@pytest.mark.parametrize("made", [contours], indirect=True)
def test_pixels_tell_a_contour_far_above_chance(train: Images, test: Images) -> None:
    assert by_pixels(train, test, contours.NUM_CLASSES, ridge=1.0) > 4 / contours.NUM_CLASSES


@pytest.mark.parametrize("made", [silhouettes], indirect=True)
def test_some_silhouettes_are_easy_and_others_are_hard(train: Images, test: Images) -> None:
    """Far above chance, for there are easy ones, and far from knowing all."""
    assert 4 / silhouettes.NUM_CLASSES < by_pixels(train, test, silhouettes.NUM_CLASSES, ridge=10.0) < 0.6


def test_outlines_of_silhouettes_are_distinct_and_never_change() -> None:
    amplitudes, phases = silhouettes.outlines()
    assert torch.equal(amplitudes, silhouettes.outlines()[0])
    assert torch.equal(phases, silhouettes.outlines()[1])
    far = torch.cdist(amplitudes, amplitudes) + torch.cdist(phases, phases)
    far += 1e3 * torch.eye(silhouettes.NUM_CLASSES)
    assert far.min() > 0.1
