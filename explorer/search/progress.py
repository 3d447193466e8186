"""What a running search tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from explorer.arch import Arch
from explorer.evaluate import Step
from explorer.records import Candidate, Epoch

ProgressKind = Literal["start", "step", "detail", "epoch", "trial", "end", "interrupted"]


@dataclass(frozen=True)
class Progress:
    """What a search reports. `trial` events carry the candidate, `step`, `detail` and `epoch` events the architecture in work.

    `message`: of `detail`, what a measurement is doing; of `start` and `end`, what a reader should know.

    `num_done` of `num_asked` architectures are in the study; `front` holds the ids on the front; `seconds_left` is None
    until something has been timed.
    """

    kind: ProgressKind
    study: str
    num_done: int
    num_asked: int
    arch: Arch | None = None
    step: Step | None = None
    epoch: Epoch | None = None
    candidate: Candidate | None = None
    best_accuracy: float | None = None
    best_latency_ms: float | None = None
    front: tuple[str, ...] = ()
    hypervolume: float | None = None
    seconds_left: float | None = None
    message: str = ""
