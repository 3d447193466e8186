"""torch itself: the training module in eval mode, eagerly or through torch.compile, on the CPU or a GPU.

On a GPU an inference is captured in a CUDA graph and replayed; the latency without one, which the paper's "PyTorch" column
shows, is kept beside it.
"""

from __future__ import annotations

import copy
import time
from typing import Any, Final

import numpy as np
import torch
import torch._dynamo.config as dynamo_config
from torch._dynamo.exc import FailOnRecompileLimitHit

from explorer.errors import BuildError, MeasureError, ran_out_of_memory
from explorer.latency import base
from explorer.latency.base import Facts
from explorer.model.deployment import Deployed
from explorer.records import Target

_MAX_COMPILED: Final = 1 << 20
DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchRunner:
    """A copy of the module on the device with a random input; see `latency.base.Runner`.

    Raises BuildError where torch.compile fails, and MeasureError.
    """

    def __init__(self, deployed: Deployed, target: Target, seed: int) -> None:
        self.device, dtype = torch.device(target.device_kind), DTYPES[target.precision]
        self.name, self.replay = deployed.arch.name, None
        self.output: Any = None
        self.captured: Any = None
        is_cuda, is_compiled = self.device.type == "cuda", target.backend == "torch-compile"
        if target.threads:
            torch.set_num_threads(target.threads)
        arch = deployed.arch
        shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
        values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        kept_bytes = _reserved_bytes() if is_cuda else 0
        try:
            self.module: Any = copy.deepcopy(deployed.module).to(self.device, dtype).eval()
            self.image = torch.from_numpy(values).to(self.device, dtype)
        except torch.OutOfMemoryError as error:
            raise MeasureError(f"{arch.name}: out of memory on {target.device}: {error}", "out_of_memory") from error
        self.build_s = self._compile() if is_compiled else None
        self.record: dict[str, Any] = {"timed_by": "host clock"}
        if is_cuda:
            from explorer.latency.cuda import Replay

            self.replay = Replay(lambda stream: self._set_output())
            self.captured = self.output  # what a replay writes to; a run without the graph makes a tensor of its own
            self.record = {
                "timed_by": "device events",
                "cuda_graph": self.replay.graph is not None,
                "why_no_graph": self.replay.why_no_graph,
            }
        self.peak_memory_bytes = torch.cuda.max_memory_reserved() - kept_bytes if is_cuda else None

    def run(self) -> None:
        """One inference; on a GPU it waits for the device."""
        if self.replay is not None:
            self.replay.run()
        else:
            self._set_output()

    def timed(self, at_least_s: float, at_least_runs: int) -> list[float]:
        """See `Runner.timed`."""
        if self.replay is not None:
            return self.replay.timed(at_least_s, at_least_runs)
        return base.timed_by_host(self.run, at_least_s, at_least_runs)

    def timed_without_graph(self, at_least_s: float, at_least_runs: int) -> list[float] | None:
        """See `Runner.timed_without_graph`."""
        if self.replay is None or self.replay.graph is None:
            return None
        return self.replay.timed(at_least_s, at_least_runs, graph=False)

    def logits(self) -> np.ndarray:
        """(batch, classes) in fp32."""
        self.run()
        is_replayed = self.replay is not None and self.replay.graph is not None
        logits: np.ndarray = (self.captured if is_replayed else self.output).float().cpu().numpy()
        return logits

    def facts(self) -> Facts:
        """See `Runner.facts`."""
        return Facts(build_s=self.build_s, peak_memory_bytes=self.peak_memory_bytes, record=self.record)

    def close(self) -> None:
        """Frees the module and returns the GPU's memory."""
        if self.replay is not None:
            self.replay.close()
        del self.module, self.image, self.output, self.captured
        if self.device.type == "cuda":
            if hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
                torch._C._cuda_clearCublasWorkspaces()  # one a stream, else the next network would find it there
            torch.cuda.empty_cache()

    def _compile(self) -> float:
        """Seconds that the compilation took: that of the first call."""
        # Nothing is compiled away silently: many networks share one forward(), and past torch's limit it would run eagerly.
        dynamo_config.recompile_limit = dynamo_config.accumulated_recompile_limit = _MAX_COMPILED
        dynamo_config.fail_on_recompile_limit_hit = True
        self.module = torch.compile(self.module, dynamic=False, fullgraph=True)
        start = time.perf_counter()
        try:
            self._set_output()
        except (MeasureError, FailOnRecompileLimitHit) as error:
            if isinstance(error, MeasureError) and error.kind == "out_of_memory":
                raise
            raise BuildError(f"{self.name}: torch.compile fails: {error}") from error
        return time.perf_counter() - start

    @torch.inference_mode()
    def _set_output(self) -> None:
        """Queues one inference; `output` holds its logits once the device has done it."""
        try:
            self.output = self.module(self.image)
        except torch.OutOfMemoryError as error:
            raise MeasureError(f"{self.name}: out of memory: {error}", "out_of_memory") from error
        except RuntimeError as error:
            kind = "out_of_memory" if ran_out_of_memory(error) else None
            raise MeasureError(f"{self.name}: torch failed while running: {error}", kind) from error


def _reserved_bytes() -> int:
    """Memory that torch holds of the GPU, after it gave back what it keeps for later; peaks are counted from here."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()
