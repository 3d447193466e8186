"""One optimizer step: loss, gradients, clipping, AdamW; on a GPU recorded once as a CUDA graph and replayed.

A proxy is so small that a GPU waits for Python most of the time: a graph launches a whole step at once. It holds the same
kernels in the same order as the step it was recorded from, so that the result does not depend on it. `compiled` fuses
kernels: the result is the same up to rounding, and random numbers are drawn as without it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.training.recipe import Recipe

logger = logging.getLogger(__name__)
#: Steps before a graph is recorded: libraries choose their kernels and allocate in them.
WARMUP_STEPS: Final = 3


@dataclass(frozen=True)
class Acceleration:
    """What may make a training on a GPU faster: `graphs` replays steps as a CUDA graph, `compiled` runs torch.compile.

    Compiling takes a minute or so and pays in long trainings. It is done on a CPU too.
    """

    graphs: bool = True
    compiled: bool = False


@dataclass(frozen=True)
class Part:
    """Images (B, C, H, W) as the network takes them, their labels (B,) and the share () of their own labels if mixed."""

    images: Tensor
    labels: Tensor
    share: Tensor | None


class Step:
    """Steps of one training: holds the optimizer, the scale of an fp16 loss and the recorded graph."""

    def __init__(self, module: nn.Module, recipe: Recipe, device: torch.device, acceleration: Acceleration) -> None:
        self.module, self.recipe, self.device = module, recipe, device
        self.parameters = list(module.parameters())
        self.optimizer = torch.optim.AdamW(
            parameter_groups(module, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas, fused=True
        )
        # A graph reads the rate from memory; without a graph it is the same number.
        self.lr = torch.tensor(recipe.lr, device=device) if device.type == "cuda" else None
        is_scaled = recipe.precision == "fp16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type) if is_scaled else None
        self.forward: Callable[[Tensor], Tensor] = module
        if acceleration.compiled:
            # Sizes as numbers: where another network was compiled before, torch makes them symbols, and compiles for minutes.
            self.forward = torch.compile(module, dynamic=False, options={"fallback_random": True})
        self.is_recordable = acceleration.graphs and device.type == "cuda" and not is_scaled and recipe.accumulate == 1
        # A checkpointed block keeps the state of the random numbers on the CPU, which a graph cannot do.
        self.is_recordable &= not any(getattr(part, "checkpointing", False) for part in module.modules())
        self._recorded: _Recorded | None = None
        self._side: torch.cuda.Stream | None = None
        self._num_steps = 0

    def __call__(self, parts: Sequence[Part], lr: float) -> tuple[Tensor, Tensor | None]:
        """One step at the rate `lr` on the parts of a batch; their mean loss and the gradient's norm, on the device.

        The norm is None where the loss is scaled: infinite gradients only lower the scale there, and the step is left out.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.lr is None else self.lr
        if self.lr is not None:
            self.lr.fill_(lr)
        if not self.is_recordable:
            return self._run(parts)
        self._num_steps += 1
        if self._num_steps <= WARMUP_STEPS:
            return self._run_aside(parts)
        if self._recorded is None and not self._record(parts[0]):
            return self._run(parts)
        assert self._recorded is not None
        return self._recorded.replay(parts[0])

    def _record(self, part: Part) -> bool:
        """Records a step; where that fails, memory that a graph needs of its own say, training goes on without one."""
        try:
            self._recorded = _Recorded.of(self, part)
        except RuntimeError as error:
            logger.warning("no CUDA graph of a training step can be recorded, so that it is slower: %s", error)
            self.is_recordable = False
            self.optimizer.zero_grad(set_to_none=True)
            for group in self.optimizer.param_groups:
                group["capturable"] = False
        return self.is_recordable

    def _run(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros((), device=self.device)
        for part in parts:
            with autocast(self.recipe, self.device):
                loss = self._loss(self.forward(part.images), part)
            share = loss / len(parts)
            (share if self.scaler is None else self.scaler.scale(share)).backward()
            total += loss.detach() / len(parts)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.grad_clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm if self.scaler is None else None

    def _loss(self, logits: Tensor, part: Part) -> Tensor:
        smoothing = self.recipe.label_smoothing
        own = F.cross_entropy(logits, part.labels, label_smoothing=smoothing)
        if part.share is None:
            return own
        return torch.lerp(F.cross_entropy(logits, part.labels.flip(0), label_smoothing=smoothing), own, part.share)

    def _run_aside(self, parts: Sequence[Part]) -> tuple[Tensor, Tensor | None]:
        """A step on a side stream, as is due before a graph is recorded."""
        self._side = side = self._side or torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            told = self._run(parts)
        current.wait_stream(side)
        return told

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        scaler = {} if self.scaler is None else {"scaler": self.scaler.state_dict()}
        return {"optimizer": self.optimizer.state_dict(), **scaler}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from the `state` of a kept training, before the first step."""
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["capturable"] = False  # true again once a graph is recorded
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


class _Recorded:
    """A step as a CUDA graph: it reads its images from, and writes its loss to, memory that stays where it is."""

    def __init__(self, graph: torch.cuda.CUDAGraph, part: Part, told: tuple[Tensor, Tensor | None]) -> None:
        self._graph, self._part, self._told = graph, part, told

    @classmethod
    def of(cls, step: Step, part: Part) -> _Recorded:
        """Records a step; recording does not compute, so that it changes nothing."""
        share = None if part.share is None else part.share.clone()
        static = Part(part.images.clone(), part.labels.clone(), share)
        for group in step.optimizer.param_groups:
            group["capturable"] = True
        graph = torch.cuda.CUDAGraph()
        # Another thread may allocate meanwhile: the one that reads images does.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            told = step._run([static])
        return cls(graph, static, told)

    def replay(self, part: Part) -> tuple[Tensor, Tensor | None]:
        self._part.images.copy_(part.images)
        self._part.labels.copy_(part.labels)
        if self._part.share is not None and part.share is not None:
            self._part.share.copy_(part.share)
        self._graph.replay()
        return self._told


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The precision that networks run in: the recipe's on a GPU that has it, fp32 elsewhere."""
    if device.type == "cuda":
        if recipe.precision == "fp16":
            return torch.autocast("cuda", dtype=torch.float16)
        if recipe.precision == "mixed" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Norms, biases, position biases and temperatures are not decayed, as in the Swin authors' code."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_kept = parameter.ndim <= 1 or any(part in name for part in ("bias_table", "cpb_mlp", "logit_scale"))
        (others if is_kept else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
