"""An image set made by formula, nothing to download: filled shapes whose class is their outline, from easy to hard.

A class is a random closed outline, a circle with a few waves on it (in the spirit of Visual Atoms, Takashima et al., CVPR 2023).
An instance has its own turn, size, place and contrast, and a noise that hides single pixels. How far turn, size and place
may go is drawn for each image: some stand upright in the middle, so that small transformers leave their plateau within a
few hundred steps, others must be recognised by how parts that lie far from each other fit together. Drawn on any device
from random numbers that are drawn on the CPU.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

NUM_CLASSES: Final = 40
NATIVE_SIZE: Final = 64
#: Waves around an outline, one after another from 2 on, and the length of the vector of their amplitudes, in radii.
WAVES: Final = (2, 3, 4)
_AMPLITUDE: Final = 0.38
#: Radians of turn, and radius over half of the image's side, that the hardest images reach.
_MOST_TURN: Final = math.pi
_LARGEST: Final = 0.95
_SMALLEST: Final = 0.6
#: Deviation of the noise of the hardest images, in the image's range.
_NOISE: Final = 0.32
_CHUNK: Final = 50
#: Of the outlines; part of what the set is.
_OUTLINES_SEED: Final = 7


def draw(num_images: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`num_images` silhouettes from `seed`: uint8 images (num_images, 1, 64, 64) on `device` and int64 labels.

    Classes come in turn, so that every prefix is balanced. Takes about 2 s per 10,000 on one CPU core.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % NUM_CLASSES
    images = [
        _draw_chunk(chunk.to(device), torch.rand(len(chunk), 7, generator=generator).to(device), generator)
        for chunk in labels.split(_CHUNK)
    ]
    return torch.cat(images), labels.to(device)


def outlines() -> tuple[Tensor, Tensor]:
    """(NUM_CLASSES, waves) amplitudes in radii, and phases in radians, of every class."""
    generator = torch.Generator().manual_seed(_OUTLINES_SEED)
    amplitudes = torch.randn(NUM_CLASSES, len(WAVES), generator=generator) / torch.tensor(WAVES).sqrt()
    amplitudes = _AMPLITUDE * amplitudes / amplitudes.norm(dim=1, keepdim=True)
    return amplitudes, 2 * math.pi * torch.rand(NUM_CLASSES, len(WAVES), generator=generator)


def _draw_chunk(labels: Tensor, uniform: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) labels and (n, 7) random numbers -> (n, 1, 64, 64) uint8."""

    def between(column: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * uniform[:, column])[:, None, None]

    amplitudes, phases = (of_class.to(labels.device)[labels, :, None, None] for of_class in outlines())
    hardness = between(0, 0.0, 1.0)
    size = _LARGEST * torch.exp(hardness * between(1, 0.0, 1.0) * math.log(_SMALLEST / _LARGEST))
    room = hardness * (1 - size).clamp_min(0.1)
    side = torch.linspace(-1, 1, NATIVE_SIZE, device=labels.device)
    x, y = side[None, None, :] - room * between(2, -1.0, 1.0), side[None, :, None] - room * between(3, -1.0, 1.0)
    distance, turn = torch.hypot(x, y).clamp_min(1e-6), hardness * between(4, -_MOST_TURN, _MOST_TURN)
    cos, sin = x / distance, y / distance  # of the angle; of its multiples by multiplying: no image-sized cosines
    wave_cos, wave_sin = cos, sin
    radius = torch.ones_like(distance)
    for index, wave in enumerate(WAVES):
        wave_cos, wave_sin = wave_cos * cos - wave_sin * sin, wave_sin * cos + wave_cos * sin
        phase = phases[:, index] - wave * turn
        radius += amplitudes[:, index] * (phase.cos() * wave_cos - phase.sin() * wave_sin)
    inside = torch.sigmoid((size * radius - distance) * (NATIVE_SIZE * 2 / 3))
    noise = torch.randn(distance.shape, generator=generator).to(distance.device)
    image = between(5, 0.05, 0.2) + between(6, 0.4, 0.8) * inside + _NOISE * hardness * noise
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)[:, None]
