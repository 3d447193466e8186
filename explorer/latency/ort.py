"""ONNX Runtime: runs the exported graph on the CPU with the target's threads, or on a GPU through CUDA or TensorRT.

A provider that was asked for and does not run every node is an error: nothing falls back to the CPU.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from explorer.errors import BackendMissing, BuildError, MeasureError, ran_out_of_memory
from explorer.latency.base import Facts, HostTimed
from explorer.model.deployment import Deployed
from explorer.records import Target

try:
    import onnxruntime
except ImportError as error:
    raise BackendMissing(
        f"backend onnxruntime: the package cannot be imported ({error}); install it: pip install onnxruntime"
    ) from error

#: Backend and device -> execution provider.
PROVIDERS: Final = {
    ("onnxruntime", "cpu"): "CPUExecutionProvider",
    ("onnxruntime", "cuda"): "CUDAExecutionProvider",
    ("onnxruntime-tensorrt", "cuda"): "TensorrtExecutionProvider",
}


class OrtRunner(HostTimed):
    """A session with a random input of the graph's type, on the device; see `latency.base.Runner`.

    Timed by the host: a call returns when its output is there. The TensorRT provider builds its engine anew every time: files
    that it keeps would be loaded without a look at their digest.
    """

    def __init__(self, deployed: Deployed, target: Target, seed: int) -> None:
        assert deployed.onnx_bytes is not None
        self.name, self.device = deployed.arch.name, target.device_kind
        self.provider = PROVIDERS[target.backend, target.device_kind]
        require_provider(target.backend, self.provider)
        free_bytes = _free_bytes(target)
        start = time.perf_counter()
        try:
            self.session = onnxruntime.InferenceSession(
                deployed.onnx_bytes,
                session_options(target),
                providers=[(self.provider, provider_options(self.provider, target))],
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise BuildError(f"{self.name}: ONNX Runtime does not load the graph: {error}", _kind_of(error)) from error
        self.build_s = time.perf_counter() - start
        used = self.session.get_providers()
        if used[0] != self.provider:
            raise BuildError(f"{self.name}: ONNX Runtime runs the graph on {used[0]}, not on {self.provider}")
        (image,) = self.session.get_inputs()
        dtype = np.float16 if image.type == "tensor(float16)" else np.float32
        arch = deployed.arch
        shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
        values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)
        self.feeds = {"image": values}
        self.binding = None if target.device_kind == "cpu" else self._bind(values)
        self.peak_memory_bytes: int | None = None
        if free_bytes is not None:
            self.run()
            self.peak_memory_bytes = max(0, free_bytes - (_free_bytes(target) or 0))

    def run(self) -> None:
        """One inference; returns when its logits are there."""
        try:
            if self.binding is None:
                (self.output,) = self.session.run(["logits"], self.feeds)
            else:
                self.session.run_with_iobinding(self.binding)
                self.binding.synchronize_outputs()
        except Exception as error:  # as above
            raise MeasureError(f"{self.name}: ONNX Runtime failed while running: {error}", _kind_of(error)) from error

    def logits(self) -> np.ndarray:
        """(batch, classes) in fp32."""
        self.run()
        (logits,) = (self.output,) if self.binding is None else self.binding.copy_outputs_to_cpu()
        return np.asarray(logits, dtype=np.float32)

    def facts(self) -> Facts:
        """See `Runner.facts`."""
        record = {"provider": self.provider, "timed_by": "host clock"}
        return Facts(build_s=self.build_s, peak_memory_bytes=self.peak_memory_bytes, record=record)

    def close(self) -> None:
        """Ends the session and its threads."""
        self.binding = None
        del self.session

    def _bind(self, values: np.ndarray) -> Any:
        """Input and output on the GPU, so that a call copies neither."""
        binding = self.session.io_binding()
        self.image = onnxruntime.OrtValue.ortvalue_from_numpy(values, self.device, 0)
        binding.bind_ortvalue_input("image", self.image)
        binding.bind_output("logits", self.device)
        return binding


def _free_bytes(target: Target) -> int | None:
    """Free memory of the GPU; None on a CPU."""
    if target.device_kind == "cpu":
        return None
    from explorer.latency.cuda import free_memory_bytes

    return free_memory_bytes()


def _kind_of(error: Exception) -> str | None:
    return "out_of_memory" if ran_out_of_memory(error) else None


def require_provider(backend: str, provider: str) -> None:
    """Raises BackendMissing where the installed ONNX Runtime has no such execution provider."""
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise BackendMissing(
            f"backend {backend}: this ONNX Runtime has no {provider} (it has {', '.join(available)}); install it: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )


def session_options(target: Target) -> Any:
    """What sessions for this target are opened with."""
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if target.device_kind == "cpu":
        options.intra_op_num_threads = target.threads
    else:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def provider_options(provider: str, target: Target) -> dict[str, str]:
    """What an execution provider is told; TF32 stays off, and nothing runs in a precision that was not asked for."""
    match provider:
        case "CUDAExecutionProvider":
            return {"device_id": "0", "use_tf32": "0"}
        case "TensorrtExecutionProvider":
            return {"device_id": "0", "trt_fp16_enable": str(int(target.precision == "fp16"))}
        case _:
            return {}
