"""The silhouettes made by formula: the same from the same seed, balanced, from easy to hard."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.training.silhouettes import NATIVE_SIZE, NUM_CLASSES, draw, outlines

CPU = torch.device("cpu")
Images = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def train() -> Images:
    return draw(2_400, 1, CPU)


@pytest.fixture(scope="module")
def test() -> Images:
    return draw(640, 2, CPU)


def test_images_are_grey_bytes_with_a_label_each(test: Images) -> None:
    images, labels = test
    assert (images.dtype, images.shape) == (torch.uint8, (640, 1, NATIVE_SIZE, NATIVE_SIZE))
    assert (labels.dtype, labels.shape) == (torch.int64, (640,))


def test_same_seed_draws_the_same_images() -> None:
    first, second = draw(50, 7, CPU), draw(50, 7, CPU)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    draw(10, 7, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_seed_draws_other_images_of_the_same_classes(train: Images, test: Images) -> None:
    assert torch.equal(train[1][:640], test[1])
    differs = (train[0][:640] != test[0]).flatten(1).any(1)
    assert differs.all()


def test_no_image_is_drawn_twice(train: Images, test: Images) -> None:
    drawn = [image.numpy().tobytes() for image in torch.cat([train[0], test[0]])]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("num_images", [NUM_CLASSES, 5 * NUM_CLASSES, 2_400])
def test_every_prefix_is_balanced(num_images: int, train: Images) -> None:
    counts = train[1][:num_images].bincount(minlength=NUM_CLASSES)
    assert counts.tolist() == [num_images // NUM_CLASSES] * NUM_CLASSES


def test_outlines_are_distinct_and_never_change() -> None:
    amplitudes, phases = outlines()
    assert torch.equal(amplitudes, outlines()[0])
    assert torch.equal(phases, outlines()[1])
    far = torch.cdist(amplitudes, amplitudes) + torch.cdist(phases, phases) + 1e3 * torch.eye(NUM_CLASSES)
    assert far.min() > 0.1


def test_some_images_are_easy_and_others_are_hard(train: Images, test: Images) -> None:
    """Ridge regression on 16x16 pixels, chance is 1/40: far above it, for there are easy ones, and far from knowing all."""

    def features(images: Tensor) -> Tensor:
        small = F.interpolate(images.float() / 255, (16, 16), mode="area").flatten(1)
        return torch.cat([small, torch.ones(len(small), 1)], 1)

    x, wanted = features(train[0]), F.one_hot(train[1], NUM_CLASSES).float()
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ wanted)
    accuracy = ((features(test[0]) @ weights).argmax(1) == test[1]).float().mean()
    assert 4 / NUM_CLASSES < accuracy < 0.6


def test_brightness_does_not_tell_the_class(train: Images, test: Images) -> None:
    """Nearest neighbour by mean grey level stays near chance, 1/40."""
    known, asked = train[0].float().mean((1, 2, 3)), test[0].float().mean((1, 2, 3))
    nearest = (asked[:, None] - known).abs().argmin(1)
    assert (train[1][nearest] == test[1]).float().mean() < 3 / NUM_CLASSES
