"""Batches of training images on the training's device, still uint8: gathered there, or brought there ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from explorer.training.data import Split


def batches(split: Split, order: Tensor, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images (B, C, H, W) and labels (B,) on `device`, by the indices in `order`; what fills no batch is left out."""
    parts = list(order.split(batch_size))[: len(order) // batch_size]
    if device.type == "cuda" and split.train_images.device.type == "cpu":
        yield from _brought(split, parts, device)
        return
    resting = split.train_images.device
    for part in torch.stack(parts).to(resting):
        yield split.train_images.index_select(0, part).to(device), split.train_labels[part].to(device)


def _brought(split: Split, parts: list[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images that lie on the CPU: a thread gathers the next one while a side stream copies and the GPU trains."""
    side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def gathered(part: Tensor) -> tuple[Tensor, Tensor]:
        images = split.train_images.index_select(0, part)
        labels = split.train_labels[part.to(split.train_labels.device)]
        return images.pin_memory(), labels.to("cpu").pin_memory()

    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(gathered, parts[0])
        for following in [*parts[1:], None]:
            pinned = upcoming.result()
            if following is not None:
                upcoming = reader.submit(gathered, following)
            with torch.cuda.stream(side):
                images, labels = (tensor.to(device, non_blocking=True) for tensor in pinned)
            current.wait_stream(side)
            for tensor in (images, labels):
                tensor.record_stream(current)  # its memory is not the side stream's again before it was used
            yield images, labels
