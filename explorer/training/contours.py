"""An image set made by formula, nothing to download: closed contours whose class is their global shape.

In the spirit of Visual Atoms (Takashima et al., CVPR 2023): a contour is a circle with two waves on it, and the class is
the pair of wave numbers. Every instance has its own position, size, turn, amplitudes, phase, line width, gaps, noise and
contrast, so that no short piece of the line gives the class away: its lobes must be counted around the whole contour.
Drawn on any device from random numbers that are drawn on the CPU.
"""

from __future__ import annotations

import itertools
from typing import Final

import torch
from torch import Tensor

SLOW_WAVES: Final = (2, 3, 4, 5)
FAST_WAVES: Final = (0, 7, 9, 11)
NUM_CLASSES: Final = len(SLOW_WAVES) * len(FAST_WAVES)
NATIVE_SIZE: Final = 64
_CHUNK: Final = 1_000


def draw(num_images: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`num_images` contours from `seed`: uint8 images (num_images, 1, 64, 64) on `device` and int64 labels.

    Classes come in turn, so that every prefix is balanced. Takes about 2 s per 10,000 on two CPU cores.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % NUM_CLASSES
    images = [
        _draw_chunk(chunk.to(device), torch.rand(len(chunk), 16, generator=generator).to(device), generator)
        for chunk in labels.split(_CHUNK)
    ]
    return torch.cat(images), labels.to(device)


def _draw_chunk(labels: Tensor, uniform: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) labels and (n, 16) random numbers -> (n, 1, 64, 64) uint8."""

    def between(column: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * uniform[:, column])[:, None, None]

    waves = torch.tensor(list(itertools.product(SLOW_WAVES, FAST_WAVES)), device=labels.device)[labels]
    slow, fast = waves[:, 0, None, None], waves[:, 1, None, None]
    side = torch.linspace(-1, 1, NATIVE_SIZE, device=labels.device)
    x, y = side[None, None, :] - between(0, -0.1, 0.1), side[None, :, None] - between(1, -0.1, 0.1)
    angle, distance = torch.atan2(y, x) - between(2, -0.3, 0.3), torch.hypot(x, y)
    radius = between(3, 0.5, 0.68) * (
        1
        + between(4, 0.2, 0.3) * torch.sin(slow * angle)
        + between(5, 0.08, 0.13) * torch.sin(fast * angle + between(6, -0.8, 0.8))
    )
    line = torch.exp(-(((distance - radius) / between(7, 0.03, 0.06)) ** 2))
    gap = torch.cos(angle - between(8, -torch.pi, torch.pi)) > torch.cos(between(9, 0.0, 0.3))
    noise = torch.randn(line.shape, generator=generator).to(line.device)
    image = between(10, 0.1, 0.3) + between(11, 0.5, 0.7) * line.masked_fill(gap, 0.0) + between(12, 0.01, 0.06) * noise
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)[:, None]
