"""What is evaluated in place of the weights as trained: their exponential average, and exact BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential average of all floating-point state of a module, running statistics included.

    The decay rises as (1 + steps) / (10 + steps) until it reaches `decay` (TensorFlow's ExponentialMovingAverage), so that
    a short training's average is not that of its first weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
        self.values = {name: value.clone() for name, value in self._trained.items()}

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Takes the weights after so many steps into the average."""
        decay = min(self.decay, (1 + num_steps) / (10 + num_steps))
        get_ema_multi_avg_fn(decay)(list(self.values.values()), list(self._trained.values()), num_steps)

    @torch.no_grad()
    def load(self) -> None:
        """Writes the average into the module."""
        for name, value in self._trained.items():
            value.copy_(self.values[name])

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor]) -> None:
        """Goes on from the `values` of a kept training."""
        for name, value in self.values.items():
            value.copy_(values[name])


def batch_norms(module: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    """The BatchNorm layers of a module."""
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]


@torch.no_grad()
def recompute_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Makes BatchNorm's running statistics the mean over `batches` (Wu & Johnson 2021, "Precise BatchNorm").

    Leaves the module in evaluation mode: nothing else of it may draw or count.
    """
    norms = batch_norms(module)
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.train()
    try:
        for index, images in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # torch's own cumulative mean would make a GPU wait
            module(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.eval()
