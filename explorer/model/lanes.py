"""Attention inside windows of a few tokens, for training on a CPU: windows lie side by side in the lanes of vector units.

A proxy's windows of 2x2 tokens make products of 4x4 matrices by the ten thousand, and a batched matrix product spends
its time between them. Here the tokens of one place in every window lie together, so that each step is a long vector
operation over all windows (benchmarks/model_speed.py). Shape suffixes as in `explorer.model.swin`; M = B*N windows of a batch.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Tokens of a window, up to which this is faster.
MOST_TOKENS: Final = 4


def lane_order(order_T: Tensor, inverse_T: Tensor, num_tokens: int, batch: int) -> tuple[Tensor, Tensor]:
    """(B*T,) where each token of a batch comes from and where it goes, so that they lie in the order (L, B, N).

    `order_T`: an image's tokens in the order of its windows, (N, L) row by row, and `inverse_T` the places of its tokens in
    that order; `num_tokens`: L.
    """
    T, L = len(order_T), num_tokens
    N = T // L
    images = torch.arange(batch, device=order_T.device)
    taken = order_T.view(N, L).t()[:, None] + images[:, None] * T
    given = (inverse_T % L) * (batch * N) + inverse_T // L + images[:, None] * N
    return taken.reshape(-1), given.reshape(-1)


class LaneAttention(torch.autograd.Function):
    """Softmax attention of qkv (3, h, d, L, M) with a bias (h, L, L, N), or (h, L, L, 1) where it is one for all windows.

    `apply(qkv, bias, scale)` gives (h, d, L, M); the windows of an image follow each other in M. No second derivative.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias_hLLN: Tensor, scale: float) -> Tensor:
        """(h, d, L, M) mixed values; keeps the attention's weights."""
        q_hdLM, k_hdLM, v_hdLM = qkv.unbind(0)
        h, _, L, M = q_hdLM.shape
        weights = qkv.new_empty(h, L, L, M)
        for token in range(L):
            torch.sum(q_hdLM[:, :, token, None] * k_hdLM, 1, out=weights[:, token])
        weights.mul_(scale).view(h, L, L, -1, bias_hLLN.shape[-1]).add_(bias_hLLN[:, :, :, None])
        weights = weights.softmax(2)
        mixed = torch.empty_like(q_hdLM)
        for token in range(L):
            torch.sum(weights[:, None, token] * v_hdLM, 2, out=mixed[:, :, token])
        ctx.save_for_backward(qkv, weights)
        ctx.scale, ctx.bias_windows = scale, bias_hLLN.shape[-1]
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_hdLM: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of qkv and bias."""
        qkv, weights = ctx.saved_tensors
        q_hdLM, k_hdLM, v_hdLM = qkv.unbind(0)
        h, _, L, _ = q_hdLM.shape
        of_scores = torch.empty_like(weights)
        for token in range(L):
            torch.sum(gradient_hdLM[:, :, token, None] * v_hdLM, 1, out=of_scores[:, token])
        of_scores = torch._softmax_backward_data(of_scores, weights, 2, weights.dtype)
        of_bias = of_scores.view(h, L, L, -1, ctx.bias_windows).sum(3)
        of_scores.mul_(ctx.scale)
        of_qkv = torch.empty_like(qkv)
        for token in range(L):
            torch.sum(of_scores[:, None, token] * k_hdLM, 2, out=of_qkv[0, :, :, token])
            torch.sum(of_scores[:, None, :, token] * q_hdLM, 2, out=of_qkv[1, :, :, token])
            torch.sum(weights[:, None, :, token] * gradient_hdLM, 2, out=of_qkv[2, :, :, token])
        return of_qkv, of_bias, None
