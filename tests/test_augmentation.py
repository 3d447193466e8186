"""Augmentation: what each part does to an image, and that everything is drawn from the given generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.training.augmentation import augment, change_color, draw_mixes, erase, mix
from explorer.training.recipe import Recipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- crops and flips --------------------------------------------------------------------------------------------------


def columns(num_images: int, side: int = 16) -> Tensor:
    """Images whose pixel values count the columns from 1."""
    return torch.arange(1, side + 1, dtype=torch.uint8).expand(num_images, 1, side, side).contiguous()


def augmented(images: Tensor, *, seed: int = 0, **fields: Any) -> Tensor:
    return augment(images, Recipe(epochs=1, **fields), generator(seed))


def test_crop_moves_an_image_by_at_most_the_padding_and_repeats_its_edge() -> None:
    images = columns(200)
    moved = augmented(images, crop_padding=0.125)  # 2 pixels
    allowed = {
        offset: (torch.arange(1, 17) + offset).clamp(1, 16).to(torch.uint8).expand(16, 16) for offset in range(-2, 3)
    }
    seen = {offset for image in moved for offset, expected in allowed.items() if torch.equal(image[0], expected)}
    assert all(any(torch.equal(image[0], expected) for expected in allowed.values()) for image in moved)
    assert seen == set(allowed)


def test_crop_moves_rows_as_it_moves_columns() -> None:
    images = columns(200).transpose(2, 3).contiguous()
    first_rows = augmented(images, crop_padding=0.125)[:, 0, 0, 0]
    assert set(first_rows.tolist()) == {1, 2, 3}
    last_rows = augmented(images, crop_padding=0.125)[:, 0, -1, 0]
    assert set(last_rows.tolist()) == {14, 15, 16}


def test_every_channel_of_an_image_moves_alike() -> None:
    images = torch.cat([columns(50), columns(50) + 100, columns(50) + 200], 1)
    moved = augmented(images, crop_padding=0.125, flip=True)
    assert moved.shape == images.shape
    assert torch.equal(moved[:, 0] + 100, moved[:, 1])
    assert torch.equal(moved[:, 0] + 200, moved[:, 2])


def test_no_image_is_flipped_unless_the_recipe_says_so() -> None:
    images = columns(100)
    assert torch.equal(augmented(images, crop_padding=0.0), images)


def test_about_half_of_the_images_are_flipped_where_the_recipe_says_so() -> None:
    images = columns(400)
    flipped = augmented(images, crop_padding=0.0, flip=True)
    is_flipped = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (is_flipped | (flipped == images).flatten(1).all(1)).all()
    assert 140 < int(is_flipped.sum()) < 260


def test_same_generator_state_gives_the_same_images() -> None:
    images = columns(50)
    options = {"crop_padding": 0.125, "flip": True}
    assert torch.equal(augmented(images, seed=1, **options), augmented(images, seed=1, **options))
    assert not torch.equal(augmented(images, seed=1, **options), augmented(images, seed=2, **options))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_keeps_type_and_input(dtype: torch.dtype) -> None:
    images = columns(10).to(dtype)
    before = images.clone()
    assert augmented(images, crop_padding=0.125, flip=True).dtype == dtype
    assert torch.equal(images, before)


def test_crop_is_that_of_the_padded_image_at_the_drawn_offsets() -> None:
    images = torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=generator(1))
    padded = F.pad(images.float(), (4,) * 4, mode="replicate").to(torch.uint8)
    tops, lefts = torch.randint(0, 9, (2, 30, 1), generator=generator()).squeeze(2).tolist()
    expected = [image[:, t : t + 16, left : left + 16] for image, t, left in zip(padded, tops, lefts, strict=True)]
    assert torch.equal(augmented(images, crop_padding=0.25), torch.stack(expected))


# -- random resized crops ---------------------------------------------------------------------------------------------


def ramp(num_images: int, side: int = 32) -> Tensor:
    """Two channels whose values are the row and the column of a pixel's centre, as shares of the side."""
    line = (torch.arange(side) + 0.5) / side
    image = torch.stack((line[:, None].expand(side, side), line.expand(side, side)))
    return image.expand(num_images, -1, -1, -1).contiguous()


def test_resized_crop_is_a_box_inside_the_image_of_the_area_that_the_recipe_allows() -> None:
    found = augmented(ramp(500), scale=0.25)
    inner = found[:, :, 8:-8, 8:-8]  # half of the box in each direction, away from where the edge is repeated
    heights, widths = (2 * (inner[:, k].amax((1, 2)) - inner[:, k].amin((1, 2))) * 16 / 15 for k in (0, 1))
    areas, ratios = heights * widths, widths / heights
    assert 0.25 - 1e-3 <= areas.min() < 0.3
    assert 0.9 < areas.max() <= 1 + 1e-3
    assert 3 / 4 - 1e-2 <= ratios.min() < 0.85
    assert 1.2 < ratios.max() <= 4 / 3 + 1e-2
    assert found.min() >= 0.5 / 32 - 1e-5
    assert found.max() <= 1 - 0.5 / 32 + 1e-5


def test_resized_crops_lie_all_over_the_image() -> None:
    centers = augmented(ramp(500), scale=0.1).mean((2, 3))
    assert centers.amin() < 0.3
    assert centers.amax() > 0.7


def test_resized_crop_of_the_whole_area_and_its_mirror() -> None:
    images = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8, generator=generator(1))
    left_to_right = augmented(ramp(400), scale=0.5, flip=True)[:, 1]
    rises = left_to_right[:, 16, -1] > left_to_right[:, 16, 0]
    assert 140 < int(rises.sum()) < 260
    assert augmented(images, scale=1.0).dtype == torch.uint8
    assert augmented(images, scale=1.0).shape == images.shape


# -- colour -----------------------------------------------------------------------------------------------------------


def colored(num_images: int) -> Tensor:
    return torch.rand(num_images, 3, 4, 4, generator=generator(1)) * 100 + 50


def test_color_changes_brightness_contrast_and_saturation_by_the_drawn_factors() -> None:
    pixels = colored(6)
    found = change_color(pixels, 0.4, generator())
    factors = 1 + 0.4 * (2 * torch.rand(3, 6, 1, 1, 1, generator=generator()) - 1)
    luma = torch.tensor([0.299, 0.587, 0.114])
    for image, changed, (brightness, contrast, saturation) in zip(pixels, found, factors.unbind(1), strict=True):
        expected = image * brightness
        mean = torch.einsum("chw,c->hw", expected, luma).mean()
        expected = mean + (expected - mean) * contrast
        grey = torch.einsum("chw,c->hw", expected, luma)
        torch.testing.assert_close(changed, (grey + (expected - grey) * saturation).clamp(0, 255))


def test_color_of_every_image_changes_by_itself_and_stays_in_range() -> None:
    pixels = colored(1).expand(50, -1, -1, -1) * 1.7
    found = change_color(pixels, 0.9, generator())
    assert len({float(image.sum()) for image in found}) == 50
    assert found.min() >= 0
    assert found.max() == 255


def test_color_of_a_grey_image_has_no_saturation() -> None:
    pixels = colored(20)[:, :1]
    found = change_color(pixels, 0.4, generator())
    brightness, contrast, _ = 1 + 0.4 * (2 * torch.rand(3, 20, 1, 1, 1, generator=generator()) - 1)
    mean = (pixels * brightness).mean((2, 3), keepdim=True)
    torch.testing.assert_close(found, (mean + (pixels * brightness - mean) * contrast).clamp(0, 255))


# -- erasing ----------------------------------------------------------------------------------------------------------


def erased(num_images: int, probability: float, side: int = 32) -> Tensor:
    """(num_images, side, side) where an image of a value that noise does not take was changed."""
    pixels = torch.full((num_images, 2, side, side), 100.0)
    changed = erase(pixels, probability, generator()) != 100
    assert torch.equal(changed[:, 0], changed[:, 1])
    return changed[:, 0]


def test_share_of_the_images_has_one_box_erased() -> None:
    boxes = erased(800, 0.25)
    assert 150 < int(boxes.flatten(1).any(1).sum()) < 250
    for box in boxes[boxes.flatten(1).any(1)]:
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns), "not a box"
        for line in (rows, columns):
            first, last = line.nonzero()[0], line.nonzero()[-1]
            assert int(line.sum()) == int(last - first) + 1


def test_erased_boxes_have_the_areas_of_the_paper_and_lie_everywhere() -> None:
    boxes = erased(2_000, 1.0)
    shares = boxes.flatten(1).float().mean(1)
    assert shares.min() >= 0.015
    assert 0.3 < shares.max() <= 0.35
    assert boxes.any(0).all()


def test_erased_pixels_are_noise() -> None:
    pixels = torch.full((200, 1, 32, 32), 100.0)
    found = erase(pixels, 1.0, generator())
    noise = found[found != 100]
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_box_larger_than_a_tiny_image_is_cut_to_it(side: int) -> None:
    assert erased(50, 1.0, side).flatten(1).any(1).all()


# -- mixup and cutmix -------------------------------------------------------------------------------------------------


def test_recipe_without_mixing_draws_none() -> None:
    assert draw_mixes(Recipe(epochs=1), 5, 8, 0) is None


def mixes_of(num: int, side: int = 16, seed: int = 0, **fields: Any) -> Tensor:
    found = draw_mixes(Recipe(epochs=1, **fields), num, side, seed)
    assert found is not None
    return found


def test_mixup_is_the_mean_of_two_images_by_the_share() -> None:
    pixels = torch.rand(6, 3, 16, 16, generator=generator())
    for row in mixes_of(5, mixup=0.8):
        found, share = mix(pixels, row)
        torch.testing.assert_close(found, share * pixels + (1 - share) * pixels.flip(0))
        assert 0 <= share <= 1


def test_cutmix_puts_a_box_of_one_image_into_the_other_and_the_share_is_the_rest_of_the_area() -> None:
    pixels = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 16)
    sizes = set()
    for row in mixes_of(40, cutmix=1.0):
        found, share = mix(pixels, row)
        is_other = (found != pixels)[0, 0]
        rows, columns = is_other.any(1), is_other.any(0)
        assert torch.equal(is_other, rows[:, None] & columns)
        assert torch.equal(found, torch.where(is_other, pixels.flip(0), pixels))
        assert float(share) == pytest.approx(1 - float(is_other.float().mean()))
        sizes.add(int(is_other.sum()))
    assert len(sizes) > 10


def test_both_are_chosen_half_and_half() -> None:
    is_cutmix = mixes_of(1_000, mixup=0.8, cutmix=1.0)[:, 0]
    assert 420 < int(is_cutmix.sum()) < 580
    assert mixes_of(50, mixup=0.8)[:, 0].sum() == 0
    assert mixes_of(50, cutmix=1.0)[:, 0].sum() == 50


def test_shares_follow_the_beta_distribution_of_the_alpha() -> None:
    shares = mixes_of(4_000, mixup=0.5)[:, 1]
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * 0.5 + 1)), abs=0.01)


def test_mixes_depend_on_the_seed_alone() -> None:
    fields = {"mixup": 0.8, "cutmix": 1.0}
    assert torch.equal(mixes_of(20, seed=3, **fields), mixes_of(20, seed=3, **fields))
    assert not torch.equal(mixes_of(20, seed=3, **fields), mixes_of(20, seed=4, **fields))
