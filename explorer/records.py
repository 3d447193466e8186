"""Frozen facts: what was measured, trained, failed, and where. Units are in the names.

A latency is keyed by architecture and `Target`; a score by proxy architecture, recipe, data, epochs and seed. Neither
knows of trials or studies: any study may use any fact. Keeping them is `explorer.store`'s business.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from explorer.arch import Arch

#: Where studies and facts live unless told otherwise.
DEFAULT_STORAGE: Final = "sqlite:///studies/explorer.db"

Precision = Literal["fp32", "fp16", "bf16"]
#: What went wrong with one architecture; each would go wrong the same way again.
FailureKind = Literal["export", "build", "mismatch", "measure", "diverged", "out_of_memory", "crash"]


def digest(prefix: str, content: dict[str, Any]) -> str:
    """`prefix-` and 12 hex digits over JSON-ready `content`, whatever the order of its keys."""
    return f"{prefix}-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Target:
    """Where a latency is measured; two latencies may be compared when their targets are equal.

    `device`: model name of the GPU or CPU. `driver`: of the GPU, empty on a CPU. `threads`: CPU threads, 0 on a GPU.
    `image_size`: pixels per side. `graph_version`: of our exporter, or of our torch module where that is run.
    """

    backend: str
    backend_version: str
    precision: Precision
    batch: int
    image_size: int
    device_kind: Literal["cpu", "cuda"]
    device: str
    driver: str
    threads: int
    graph_version: int

    @cached_property
    def id(self) -> str:
        """`t1-` and 12 hex digits over all fields."""
        return digest("t1", asdict(self))

    def describe(self) -> str:
        """One line for people."""
        where = f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else self.device
        size = f"{self.image_size}x{self.image_size}"
        return f"{self.backend} {self.backend_version}, {self.precision}, batch {self.batch}, {size}, {where}"


@dataclass(frozen=True)
class Latency:
    """One measured latency: milliseconds per call at the target's batch.

    `latency_ms` is the median, `p95_ms` and `min_ms` come from the same samples, `cv` is their standard deviation over
    their mean, `window_medians_ms` holds the median of every
    window of samples in order. `is_stable`: the last three windows agreed and, on a CPU, other processes left it alone.
    `prepare_s`: building the module, exporting it and loading it into the backend. `environment`: host,
    versions and load at the time, as recorded.
    """

    arch_id: str
    target_id: str
    latency_ms: float
    p95_ms: float
    min_ms: float
    cv: float
    num_samples: int
    window_medians_ms: tuple[float, ...]
    is_stable: bool
    prepare_s: float
    measure_s: float
    environment: dict[str, Any] = field(default_factory=dict)
    measured_at: str = ""


@dataclass(frozen=True)
class Epoch:
    """One row of a training curve; `accuracy` (0..1) is None in epochs that were not evaluated."""

    epoch: int
    loss: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Score:
    """One trained accuracy (0..1, on the held-out part of the training set) of a proxy architecture.

    `epochs`: how many were done; the schedule's length is the recipe's. `curve`: one row an epoch.
    """

    arch_id: str
    recipe_id: str
    data_id: str
    epochs: int
    seed: int
    accuracy: float
    train_s: float
    curve: tuple[Epoch, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    trained_at: str = ""


@dataclass(frozen=True)
class ScoreKey:
    """What a score is keyed by; `arch_id` is the proxy's."""

    arch_id: str
    recipe_id: str
    data_id: str
    epochs: int
    seed: int

    def __str__(self) -> str:
        return f"score:{self.arch_id}/{self.recipe_id}/{self.data_id}/{self.epochs}/{self.seed}"


def latency_key(arch_id: str, target_id: str) -> str:
    """The key under which a missing latency's failure is kept."""
    return f"latency:{arch_id}/{target_id}"


@dataclass(frozen=True)
class Failure:
    """Why an architecture has no latency or no score. `key` names the fact that is missing (target or score key)."""

    arch_id: str
    key: str
    kind: FailureKind
    message: str
    failed_at: str = ""


@dataclass(frozen=True)
class Candidate:
    """One architecture of a study with what is known of it.

    `outcome`: `complete` has latency and score; `gated` was over the latency limit and never trained; `failed` has its
    failure; `pending` is not evaluated yet. `reused` counts the facts that were in the store already.
    """

    arch: Arch
    outcome: Literal["complete", "gated", "failed", "pending"]
    latency: Latency | None = None
    score: Score | None = None
    failure: Failure | None = None
    reused: int = 0

    @property
    def latency_ms(self) -> float | None:
        """Median latency in milliseconds, if measured."""
        return None if self.latency is None else self.latency.latency_ms

    @property
    def accuracy(self) -> float | None:
        """Proxy accuracy (0..1), if trained."""
        return None if self.score is None else self.score.accuracy


@dataclass(frozen=True)
class FrontRecord:
    """The front of a study after `num_trials` architectures; hypervolume as `explorer.pareto.hypervolume` counts it."""

    study: str
    num_trials: int
    arch_ids: tuple[str, ...]
    hypervolume: float
    reference_ms: float


@dataclass(frozen=True)
class StudyRecord:
    """A study: its name and everything that makes it this study and no other.

    `identity`: JSON-ready values under `space`, `proxy`, `target`, `recipe` and `data`. `base_id`: the base model's.
    """

    name: str
    identity: dict[str, Any]
    target_id: str
    recipe_id: str
    data_id: str
    base_id: str
    seed: int
    created_at: str = ""
