"""ONNX Runtime on the CPU: runs the exported graph with the target's number of threads."""

from __future__ import annotations

import numpy as np

from explorer.errors import BackendMissing, BuildError, MeasureError
from explorer.model.deployment import Deployed
from explorer.records import Target

try:
    import onnxruntime
except ImportError as error:
    raise BackendMissing(
        f"backend onnxruntime: the package cannot be imported ({error}); install it: pip install onnxruntime"
    ) from error


class OrtRunner:
    """A session on the CPU with a random input of the graph's type; see `latency.base.Runner`."""

    def __init__(self, deployed: Deployed, target: Target, seed: int) -> None:
        assert deployed.onnx_bytes is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                deployed.onnx_bytes, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise BuildError(f"{deployed.arch.name}: ONNX Runtime does not load the graph: {error}") from error
        (image,) = self.session.get_inputs()
        dtype = np.float16 if image.type == "tensor(float16)" else np.float32
        self.feeds = {"image": np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32).astype(dtype)}

    def run(self) -> None:
        """One inference."""
        self._run()

    def logits(self) -> np.ndarray:
        """(batch, classes) in fp32."""
        return self._run().astype(np.float32)

    def close(self) -> None:
        """Ends the session and its threads."""
        del self.session

    def _run(self) -> np.ndarray:
        try:
            (logits,) = self.session.run(["logits"], self.feeds)
        except Exception as error:  # as above
            raise MeasureError(f"ONNX Runtime failed while running: {error}") from error
        assert isinstance(logits, np.ndarray)
        return logits
