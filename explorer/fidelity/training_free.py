"""Scores of an untrained network that are said to tell how well it will train; higher is better.

synflow (Tanaka et al. 2020, arXiv 2006.05467) and grad_norm as Abdelfattah et al. 2021 (arXiv 2101.08134) use them to rank
whole networks, and NASWOT (Mellor et al. 2021, arXiv 2006.04647). All work on a copy: the module is left as it was.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.arch import Arch


def synflow(module: nn.Module, arch: Arch) -> float:
    """Sum of |weight x gradient| over all linear and convolution weights, for the sum of the outputs of an image of ones.

    In float64, every parameter replaced by its absolute value. As in Abdelfattah et al. 2021 normalisation is left out
    (LayerNorm too, which would cancel the size of what it reads). Queries and keys are set to zero: left to grow without
    normalisation they overflow any float through the softmax. Attention then mixes the values by its position bias alone, in
    shares that add up to one. Nine digits count, the rest is rounding. `arch` gives the image's shape.
    """
    network = copy.deepcopy(module).double().eval()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
        for name, child in network.named_modules():
            if name.endswith("attn.qkv") and isinstance(child, nn.Linear):
                child.weight[: 2 * child.in_features].zero_()
                if child.bias is not None:
                    child.bias[: 2 * child.in_features].zero_()
    network.zero_grad(set_to_none=True)
    ones = torch.ones((1, arch.channels, arch.image_size, arch.image_size), dtype=torch.float64)
    with torch.enable_grad():
        network(ones).sum().backward()
    score = sum(float((weight * gradient).abs().sum()) for weight, gradient in _weights(network))
    return float(f"{score:.9g}")


def naswot(module: nn.Module, images: Tensor) -> float:
    """Log-determinant of the kernel that counts in how many units two images have the same sign before the activation.

    Over every ReLU and GELU that reads one row an image: in these networks the MLP of every block. BatchNorm takes the statistics
    of `images` (B, C, H, W), normalised. -inf where two images have all signs in common.
    """
    network = copy.deepcopy(module).train()
    num_images = len(images)
    kernel = torch.zeros(num_images, num_images, dtype=torch.float64, device=images.device)

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        signs = (inputs[0].reshape(num_images, -1) > 0).float()
        kernel.add_(signs @ signs.T).add_((1 - signs) @ (1 - signs).T)

    for name, child in network.named_modules():
        # The MLP behind Swin V2's position bias reads offsets, not images.
        if isinstance(child, nn.ReLU | nn.GELU) and "cpb_mlp" not in name:
            child.register_forward_pre_hook(count)
    with torch.no_grad():
        network(images)
    if len(kernel.unique(dim=0)) < num_images:  # rounding would make something of it
        return -math.inf
    return float(torch.linalg.slogdet(kernel).logabsdet)


def grad_norm(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Sum over linear and convolution weights of the length of their gradient, of the cross-entropy of one batch.

    `images` (B, C, H, W) normalised, `labels` (B,); as in training, so that BatchNorm takes the batch's statistics.
    """
    network = copy.deepcopy(module).train()
    network.zero_grad(set_to_none=True)
    with torch.enable_grad():
        F.cross_entropy(network(images), labels).backward()
    return sum(float(gradient.norm()) for _, gradient in _weights(network))


def _weights(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Of linear layers and convolutions with their gradients, as far as the output depends on them."""
    found = [module.weight for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return [(weight.detach(), weight.grad) for weight in found if weight.grad is not None]
