"""Augmentation, batched on the device that the images lie on: crops, flips, colour, erasing, mixing.

Every random number of an image comes from the generator of the epoch, in the same order on every device; the shares of
mixup and cutmix are drawn on the CPU, for a whole epoch at once. Nothing here waits for a GPU.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.training.recipe import Recipe

#: Aspect ratios of a random resized crop (Szegedy et al. 2015, as torchvision has it).
CROP_RATIO: Final = (3 / 4, 4 / 3)
#: Area and aspect ratio of an erased box (Zhong et al. 2017, as timm has them).
ERASED_AREA: Final = (0.02, 1 / 3)
ERASED_RATIO: Final = (0.3, 1 / 0.3)
#: Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601).
LUMA: Final = (0.299, 0.587, 0.114)


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random crop and random horizontal flip; square images (B, C, H, W) of any type, one draw an image.

    The crop is of the image padded with its edge, or where the recipe has a `scale` a part of the image, resized.
    """
    B, device, side = len(images), images.device, images.shape[-1]
    if recipe.scale is not None:
        crops = torch.rand(4, B, generator=generator, device=device)
        return _resized(images, crops, recipe.scale, _drawn_flips(B, recipe, generator, device))
    padding = int(side * recipe.crop_padding)
    rows = columns = torch.arange(side, device=device).expand(B, side)
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (2, B, 1), generator=generator, device=device)
        rows, columns = (rows + offsets - padding).clamp_(0, side - 1)
    flipped = _drawn_flips(B, recipe, generator, device)
    if flipped is not None:
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    elif not padding:
        return images
    # One gather costs a third of padding and indexing on a CPU.
    pixels = (rows[:, :, None] * side + columns[:, None, :]).view(B, 1, -1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, pixels).view(images.shape)


def _drawn_flips(B: int, recipe: Recipe, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """(B,) whether an image is flipped; None where the recipe flips none."""
    return torch.rand(B, generator=generator, device=device) < 0.5 if recipe.flip else None


def _resized(images: Tensor, uniform: Tensor, scale: float, flipped: Tensor | None) -> Tensor:
    """Random resized crops from (4, B) random numbers: a box inside each image, enlarged bilinearly to its size.

    A box too wide or too high for its area is cut to the image's side.
    """
    area = scale + (1 - scale) * uniform[0]
    ratio = torch.exp(_between(uniform[1], math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    zero = torch.zeros_like(width)
    across = width if flipped is None else torch.where(flipped, -width, width)
    x = torch.stack((across, zero, (1 - width) * (2 * uniform[2] - 1)), 1)
    y = torch.stack((zero, height, (1 - height) * (2 * uniform[3] - 1)), 1)
    grid = F.affine_grid(torch.stack((x, y), 1), list(images.shape), align_corners=False)
    pixels = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return pixels if images.is_floating_point() else pixels.round_().to(images.dtype)


def change_color(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation times 1 +- `strength`, one draw an image; (B, C, H, W) fp32 of 0..255."""
    factors = 1 + strength * (2 * torch.rand(3, len(pixels), 1, 1, 1, generator=generator, device=pixels.device) - 1)
    brightness, contrast, saturation = factors
    pixels = pixels * brightness
    pixels = torch.lerp(_grey(pixels).mean((2, 3), keepdim=True), pixels, contrast)
    return torch.lerp(_grey(pixels), pixels, saturation).clamp_(0, 255)


def _grey(pixels: Tensor) -> Tensor:
    """(B, 1, H, W) brightness."""
    if pixels.shape[1] != len(LUMA):
        return pixels.mean(1, keepdim=True)
    # A tensor of the weights would be copied to the device, which waits for it.
    grey = LUMA[0] * pixels[:, 0, None]
    for channel, weight in enumerate(LUMA[1:], 1):
        grey = grey.add(pixels[:, channel, None], alpha=weight)
    return grey


def erase(pixels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """In each image, with `probability`, one box becomes noise N(0, 1); (B, C, H, W), normalised.

    A box higher or wider than the image is cut to it.
    """
    B, side, device = len(pixels), pixels.shape[-1], pixels.device
    is_erased, area, ratio, top, left = torch.rand(5, B, 1, generator=generator, device=device)
    noise = torch.randn(pixels.shape, generator=generator, device=device)
    area = _between(area, *ERASED_AREA) * side**2
    ratio = torch.exp(_between(ratio, math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])))
    height, width = ((area * ratio).sqrt().round().clamp(1, side), (area / ratio).sqrt().round().clamp(1, side))
    top, left = (top * (side - height + 1)).floor(), (left * (side - width + 1)).floor()
    box = _box(side, top, top + height, left, left + width) & (is_erased < probability)[:, :, None]
    return torch.where(box[:, None], noise, pixels)


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _box(side: int, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(..., side, side) whether a pixel lies in the box; bounds (..., 1)."""
    line = torch.arange(side, device=top.device)
    return ((line >= top) & (line < bottom))[..., :, None] & ((line >= left) & (line < right))[..., None, :]


def draw_mixes(recipe: Recipe, num_batches: int, side: int, seed: int) -> Tensor | None:
    """How the batches of an epoch are mixed, for `mix`: (num_batches, 6) on the CPU; None where the recipe mixes none.

    A row: whether it is cutmix, the share of the own label, and the top, bottom, left and right of the other's box.
    """
    if not (recipe.mixup or recipe.cutmix):
        return None
    random = np.random.default_rng(seed)
    is_cutmix = random.random(num_batches) < (0.5 if recipe.mixup and recipe.cutmix else float(recipe.cutmix > 0))
    shares = np.where(
        is_cutmix,
        random.beta(recipe.cutmix or 1.0, recipe.cutmix or 1.0, num_batches),
        random.beta(recipe.mixup or 1.0, recipe.mixup or 1.0, num_batches),
    )
    # A box around a random centre, cut at the image's edge; the label's share is what is left of the area.
    half = np.floor(side * np.sqrt(1 - shares)) // 2
    centers = random.integers(0, side, (2, num_batches))
    top, left = np.clip(centers - half, 0, side)
    bottom, right = np.clip(centers + half, 0, side)
    shares = np.where(is_cutmix, 1 - (bottom - top) * (right - left) / side**2, shares)
    return torch.from_numpy(np.stack((is_cutmix, shares, top, bottom, left, right), 1)).float()


def mix(pixels: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes each image with that at its place in the reversed batch, by a row of `draw_mixes` on the same device.

    Returns the images and the share () of their own labels; the rest is that of the reversed batch's labels.
    """
    is_cutmix, share = row[0], row[1]
    box = _box(pixels.shape[-1], *row[2:].split(1))
    own = torch.where(is_cutmix > 0, (~box).float(), share)
    return torch.lerp(pixels.flip(0), pixels, own), share
