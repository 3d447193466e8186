"""Frozen facts: what was measured, trained, failed, and where. Units are in the names.

A latency is keyed by architecture and `Target`; a score by proxy architecture, recipe, data, epochs and seed. Neither
knows of trials or studies: any study may use any fact. Keeping them is `explorer.store`'s business.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from explorer.arch import Arch

#: Where studies and facts live unless told otherwise.
DEFAULT_STORAGE: Final = "sqlite:///studies/explorer.db"

#: What stands in a target's options before the largest batch of a dynamic graph.
DYNAMIC: Final = "dynamic batch 1.."
#: Seconds for measuring one architecture, all engines and attempts of it included, unless told otherwise.
DEADLINE_S: Final = 900.0
Precision = Literal["fp32", "fp16", "bf16"]
#: What went wrong with one architecture.
FailureKind = Literal["export", "build", "mismatch", "measure", "diverged", "out_of_memory", "timeout", "crash"]
#: Kinds that may be the machine's fault: another try may not meet them again.
PASSING: Final = ("out_of_memory", "timeout", "crash")
#: So often a step that fails in one of these ways is tried, over all commands.
MAX_ATTEMPTS: Final = 3


def digest(prefix: str, content: dict[str, Any]) -> str:
    """`prefix-` and 12 hex digits over JSON-ready `content`, whatever the order of its keys."""
    return f"{prefix}-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Target:
    """Where a latency is measured; two latencies may be compared when their targets are equal, and only then.

    `device`: model name of the GPU or CPU. `driver`: of the GPU, empty on a CPU. `threads`: CPU threads, 0 on a GPU.
    `image_size`: pixels per side. `graph_version`: of our exporter, or of our torch module where that is run. `options`:
    what else changes a latency, as `dynamic batch` for a graph that takes any; empty for the backend's defaults.
    Clocks, temperature and load are recorded with every latency and are not part of this.
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
    options: str = ""

    @cached_property
    def id(self) -> str:
        """`t1-` and 12 hex digits over all fields; `options` counts where there are any."""
        return digest("t1", self.identity())

    def identity(self) -> dict[str, Any]:
        """All fields, but `options` only where there are any: what tells environments apart, JSON-ready."""
        return {key: value for key, value in asdict(self).items() if key != "options" or value}

    @property
    def largest_batch(self) -> int | None:
        """The largest batch that a dynamic graph is built for; None where the graph is for one batch."""
        return int(self.options.removeprefix(DYNAMIC)) if self.options.startswith(DYNAMIC) else None

    def describe(self) -> str:
        """One line for people."""
        where = f"{self.device}, {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else self.device
        size = f"{self.image_size}x{self.image_size}"
        batch = f"batch {self.batch}" + (f" ({self.options})" if self.options else "")
        return f"{self.backend} {self.backend_version}, {self.precision}, {batch}, {size}, {where}"

    def differences(self, other: Target) -> dict[str, tuple[Any, Any]]:
        """Fields in which two targets differ, with the value here and there: empty where latencies may be compared."""
        here, there = asdict(self), asdict(other)
        return {key: (here[key], there[key]) for key in here if here[key] != there[key]}


@dataclass(frozen=True)
class Latency:
    """One measured latency: milliseconds per call at the target's batch, calls back to back as trtexec times them.

    `latency_ms` is the median of the samples that `min_ms` and the percentiles come from, `cv` is their standard deviation
    over their mean, `window_medians_ms` holds the median of every window of samples in order. `is_stable`: the last three
    windows agreed. `invalid`: why it may not stand on a front (another process, a throttled clock), empty where it may.
    `remarks`: what else a reader should know. `isolated_ms`: host time of one call, nothing queued beside it;
    `no_graph_ms`: as `latency_ms` without a CUDA graph. `images_per_s`: throughput at the batch. `engine_bytes`, `build_s`:
    size of what the backend built and seconds it took; `peak_memory_bytes`: device memory that the network needed.
    `reference_ms`: the base model (`reference_id`) timed just before; `reference_drift`: by what share that differs from the
    base model's own latency. `rebuild_medians_ms`: one latency for every further engine built of the same network.
    `prepare_s`: building the module, exporting it and loading it into the backend. `environment`: host, device, versions,
    clocks and load at the time. What a backend does not tell is None.
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
    invalid: str = ""
    remarks: tuple[str, ...] = ()
    p90_ms: float | None = None
    p99_ms: float | None = None
    isolated_ms: float | None = None
    no_graph_ms: float | None = None
    images_per_s: float | None = None
    engine_bytes: int | None = None
    build_s: float | None = None
    peak_memory_bytes: int | None = None
    reference_id: str = ""
    reference_ms: float | None = None
    reference_drift: float | None = None
    rebuild_medians_ms: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Latency over that of the reference, timed beside it."""
        return None if self.reference_ms is None else self.latency_ms / self.reference_ms

    def ratio_to(self, base_id: str, base: Latency | None) -> float | None:
        """Latency over that of the architecture `base_id`: as timed beside it where that was the reference, else over
        `base`, its own on the same target; None where neither is known.
        """
        if self.reference_id == base_id and self.ratio is not None:
            return self.ratio
        return None if base is None else self.latency_ms / base.latency_ms

    @property
    def rebuild_spread(self) -> float | None:
        """(Largest - smallest) / smallest median over all engines built of this network; None where one was built."""
        medians = (self.latency_ms, *self.rebuild_medians_ms)
        return (max(medians) - min(medians)) / min(medians) if self.rebuild_medians_ms else None


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
    """Why an architecture has no latency or no score. `key` names the fact that is missing (target or score key).

    `attempts`: how often the step was tried; counted by the store. `diverged_at`: of a training that diverged, the optimizer
    step, counted from 1 over all epochs.
    """

    arch_id: str
    key: str
    kind: FailureKind
    message: str
    failed_at: str = ""
    attempts: int = 1
    diverged_at: int | None = None

    @property
    def is_passing(self) -> bool:
        """Whether it may be the machine's fault and has not been tried often enough: such a step is tried again."""
        return self.kind in PASSING and self.attempts < MAX_ATTEMPTS

    @property
    def step(self) -> Literal["measuring", "training"]:
        """The step that failed."""
        return "measuring" if self.key.startswith("latency:") else "training"


@dataclass(frozen=True)
class Candidate:
    """One architecture of a study with what is known of it.

    `outcome`: `complete` has latency and scores of all epochs; `stopped` was trained for fewer, its turn to go on has not
    come; `gated` was over the latency limit and never trained; `failed` has its failure; `pending` is asked and not
    evaluated yet. `scores`: one for every seed, all after the same epochs. `reused` counts the facts that were in the store
    already; `spent_epochs` and `spent_s` what the study had to train and wait for this one.
    """

    arch: Arch
    outcome: Literal["complete", "stopped", "gated", "failed", "pending"]
    latency: Latency | None = None
    scores: tuple[Score, ...] = ()
    failure: Failure | None = None
    reused: int = 0
    spent_epochs: int = 0
    spent_s: float = 0.0

    @property
    def latency_ms(self) -> float | None:
        """Median latency in milliseconds, if measured."""
        return None if self.latency is None else self.latency.latency_ms

    @property
    def may_stand_on_front(self) -> bool:
        """Whether both figures are there, the training was whole and the latency is valid."""
        return self.outcome == "complete" and self.latency is not None and not self.latency.invalid

    @property
    def accuracy(self) -> float | None:
        """Proxy accuracy (0..1), if trained: the mean over seeds."""
        return statistics.fmean(score.accuracy for score in self.scores) if self.scores else None

    @property
    def accuracy_std(self) -> float | None:
        """Standard deviation of the accuracy over seeds; None with fewer than two."""
        return statistics.stdev(score.accuracy for score in self.scores) if len(self.scores) > 1 else None

    @property
    def epochs(self) -> int | None:
        """Epochs of training behind the accuracy."""
        return self.scores[0].epochs if self.scores else None


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
    `settings`: what else another command needs to go on with the study, as where its data lie; not part of the identity.
    """

    name: str
    identity: dict[str, Any]
    target_id: str
    recipe_id: str
    data_id: str
    base_id: str
    seed: int
    created_at: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verification:
    """A candidate looked at once more: its latency measured again, its proxy trained longer and from several seeds.

    `key` names how (recipe, epochs and seeds). `latency_ms` and `accuracy` are those of the study, `verified_ms` and
    `accuracies` (one a seed) the new ones; `verified_ms` is None where latency was not measured again.
    """

    study: str
    arch_id: str
    key: str
    latency_ms: float
    accuracy: float
    verified_ms: float | None
    accuracies: tuple[float, ...]
    verified_at: str = ""
