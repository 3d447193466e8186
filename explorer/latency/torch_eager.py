"""torch in eager mode: the plain training module in eval mode, on the CPU or a GPU. The paper's "PyTorch" column."""

from __future__ import annotations

import copy

import numpy as np
import torch

from explorer.errors import MeasureError
from explorer.model.deployment import Deployed
from explorer.records import Target

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchRunner:
    """A copy of the module on the device with a random input; see `latency.base.Runner`."""

    def __init__(self, deployed: Deployed, target: Target, seed: int) -> None:
        self.device, dtype = torch.device(target.device_kind), DTYPES[target.precision]
        if target.threads:
            torch.set_num_threads(target.threads)
        arch = deployed.arch
        shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
        values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        try:
            self.module = copy.deepcopy(deployed.module).to(self.device, dtype).eval()
            self.image = torch.from_numpy(values).to(self.device, dtype)
        except torch.OutOfMemoryError as error:
            raise MeasureError(f"{arch.name}: out of memory on {target.device}: {error}", "out_of_memory") from error

    def run(self) -> None:
        """One inference; on a GPU it waits for the device."""
        self._forward()

    def logits(self) -> np.ndarray:
        """(batch, classes) in fp32."""
        return self._forward().float().cpu().numpy()

    def close(self) -> None:
        """Frees the module and returns the GPU's memory."""
        del self.module, self.image
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _forward(self) -> torch.Tensor:
        try:
            logits = self.module(self.image)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except torch.OutOfMemoryError as error:
            raise MeasureError(f"out of memory: {error}", "out_of_memory") from error
        except RuntimeError as error:
            if self.device.type == "cuda":
                raise  # may have broken the CUDA context: not this network's failure alone
            raise MeasureError(f"torch failed while running: {error}") from error
        assert isinstance(logits, torch.Tensor)
        return logits
