"""Every exception of swinexplore, on one screen.

```
ExplorerError
├── UserError     bad input: the message says what, the value, what is allowed and how to fix it; exit code 2
│   ├── ArchError        a name, an id or a shape that is no architecture of ours
│   ├── SpaceError       a space file
│   ├── RecipeError      a training recipe or a run file
│   ├── BackendMissing   a latency backend or a device that this machine lacks
│   ├── StoreError       a database or a study in it
│   ├── DataError        a data set
│   ├── TableError       a recorded table of accuracies and latencies
│   └── WeightsError     a checkpoint that cannot be read safely, or does not fit
├── TrialError    this architecture failed; stored with its reason; the study goes on
│   ├── ExportError      no ONNX graph could be written
│   ├── BuildError       the backend could not load the graph
│   ├── MismatchError    a graph differs from the model for want of precision
│   │   └── IllConditioned   ... of these weights, which rounding alone moves too far to say anything of the graph
│   ├── MeasureError     the latency could not be measured
│   ├── TrainError       training diverged or ran out of memory
│   └── DeviceLost       the GPU broke under a training: what follows in this process would fail too
└── ParityError   the fp32 deployed graph disagrees with the model: our bug; the study stops
```
"""

from __future__ import annotations


class ExplorerError(Exception):
    """Root of all errors raised on purpose."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch, ONNX Runtime or TensorRT says that memory ran out."""
    text = str(error).lower()
    words = ("out of memory", "outofmemory", "allocate memory", "failed to allocate", "bad_alloc", "not enough memory")
    return isinstance(error, MemoryError) or any(word in text for word in words)


class UserError(ExplorerError):
    """Bad input. The command line prints the message alone and exits with code 2."""


class ArchError(UserError):
    """A name, an id or a combination of values that is no architecture of the family."""


class SpaceError(UserError):
    """A space file with a problem; the message holds file, field path, value and what is allowed."""


class RecipeError(UserError):
    """A recipe or a run file with a problem."""


class BackendMissing(UserError):
    """A latency backend, precision or device that is not available here; the message names what to install."""


class TableError(UserError):
    """A recorded table with a problem; the message holds file, line, column, value and what is allowed."""


class StoreError(UserError):
    """A database that is missing, foreign, corrupt or too new, or a study that does not fit."""


class DataError(UserError):
    """A data set that is missing, truncated or unreadable."""


class WeightsError(UserError):
    """Weights that cannot be read safely, are in no known layout, or do not fit the architecture; nothing was loaded."""


class TrialError(ExplorerError):
    """One architecture failed, and would fail again. `kind` is the class of failure that the store keeps."""

    kind = "measure"

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or type(self).kind


class ExportError(TrialError):
    """The deployed graph could not be written."""

    kind = "export"


class BuildError(TrialError):
    """The backend could not load the deployed graph."""

    kind = "build"


class MismatchError(TrialError):
    """A graph or engine differs from the model by more than its tolerance for want of precision, reduced or fp32's own."""

    kind = "mismatch"


class IllConditioned(MismatchError):
    """Rounding alone moves the logits of these weights further than any graph may: drawn weights are drawn again."""


class MeasureError(TrialError):
    """The latency could not be measured; kind `measure` or `out_of_memory`."""


class TrainError(TrialError):
    """Training did not end with a usable model; kind `diverged` or `out_of_memory`.

    `diverged_at`: the optimizer step, counted from 1 over all epochs, after which loss, gradient or output was not finite.
    """

    kind = "diverged"

    def __init__(self, message: str, kind: str | None = None, diverged_at: int | None = None) -> None:
        super().__init__(message, kind)
        self.diverged_at = diverged_at


class DeviceLost(TrialError):
    """The GPU broke under a training, and what follows in this process would fail too; kind `crash`."""

    kind = "crash"


class ParityError(ExplorerError):
    """The fp32 deployed graph disagrees with the model. A bug of ours; nothing measured on it may be kept."""
