"""Measures architectures in a worker process, the device held for them, beside a reference that stays loaded.

The worker exports, builds, checks and times; it lives on from architecture to architecture and with it the reference, and is
replaced after a failure (`explorer.latency.worker`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from explorer import model
from explorer.arch import Arch
from explorer.errors import TrialError
from explorer.latency import environment, needs_graph
from explorer.latency.cache import Cache
from explorer.latency.worker import Worker
from explorer.records import Latency, Target

if TYPE_CHECKING:
    from explorer.latency.base import Runner
    from explorer.latency.measurement import Reference
    from explorer.model.deployment import Deployed

#: Seconds for one architecture, all engines and attempts of it included.
DEADLINE_S: Final = 900.0
#: A build ends itself this long before the worker would be killed, which keeps the worker.
_MARGIN_S: Final = 10.0


@dataclass(frozen=True)
class Settings:
    """How architectures are measured on one target; what a worker keeps loaded depends on nothing else.

    `reference`: timed beside every architecture; `baseline_ms`: its latency as stored. `rebuilds`: engines of each network.
    """

    target: Target
    reference: Arch | None = None
    baseline_ms: float | None = None
    seed: int = 0
    rebuilds: int = 1
    cache_root: Path | None = None
    deadline_s: float = DEADLINE_S


class Measurer:
    """Measures on one target; a context manager that ends its worker. `on_event` is told what is going on.

    `worker`: one that others use too, which is not ended. Nothing is started before the first measurement.
    """

    def __init__(
        self,
        target: Target,
        *,
        reference: Arch | None = None,
        baseline_ms: float | None = None,
        seed: int = 0,
        rebuilds: int = 1,
        cache_root: Path | None = None,
        deadline_s: float = DEADLINE_S,
        on_event: Callable[[str], None] = lambda text: None,
        worker: Worker | None = None,
    ) -> None:
        self.settings = Settings(target, reference, baseline_ms, seed, rebuilds, cache_root, deadline_s)
        self.on_event = on_event
        self._worker = worker or Worker()
        self._is_owner = worker is None

    def measure(self, arch: Arch) -> Latency:
        """The latency of `arch`. Waits for the device. Raises TrialError, ParityError and BackendMissing."""
        settings = self.settings
        with environment.exclusive(settings.target.device_kind):
            return self._worker.call(
                _measure, settings, arch, os.getpid(), deadline_s=settings.deadline_s, on_event=self.on_event
            )

    def close(self) -> None:
        """Ends the worker, where it is this measurer's own."""
        if self._is_owner:
            self._worker.close()

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def deployed_for(arch: Arch, target: Target, *, seed: int = 0) -> Deployed:
    """The full-size architecture with scattered weights as the target's backend needs it. Raises what `model.deploy` raises."""
    from explorer.model.deployment import Deployed

    module = model.build(arch, seed=seed, scatter=True)
    batch = None if target.largest_batch else target.batch
    if needs_graph(target):
        return model.deploy(module, arch, batch=batch, precision=target.precision, seed=seed)
    return Deployed(arch, module.eval(), batch, target.precision)


class _Bench:
    """What a worker keeps between calls: the reference, loaded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache = Cache(settings.cache_root) if settings.target.backend == "tensorrt" else None
        self.reference: Reference | None = None
        self.why_no_reference = ""

    def measure(self, arch: Arch, owner: int, tell: Callable[[str], None]) -> Latency:
        from explorer.latency import measurement

        settings = self.settings
        deadline = time.monotonic() + max(settings.deadline_s - _MARGIN_S, settings.deadline_s / 2)
        is_reference = settings.reference is not None and arch.id == settings.reference.id
        if settings.reference is not None and not is_reference:
            self.load_reference(settings.reference, deadline, tell)
        tell("exporting")
        start = time.perf_counter()
        deployed = deployed_for(arch, settings.target, seed=settings.seed)
        found = measurement.measure(
            deployed,
            settings.target,
            prepare_s=time.perf_counter() - start,
            seed=settings.seed,
            rebuilds=settings.rebuilds,
            reference=None if is_reference else self.reference,
            cache=self.cache,
            deadline=deadline,
            own_pids=measurement.own_pids(owner),
            on_event=tell,
            keep=self.keep_reference if is_reference else lambda runner, latency_ms: False,
        )
        if is_reference:
            drift = None if settings.baseline_ms is None else found.latency_ms / settings.baseline_ms - 1
            return replace(found, reference_id=arch.id, reference_ms=found.latency_ms, reference_drift=drift)
        if self.why_no_reference:
            return replace(found, remarks=(*found.remarks, f"no reference beside it: {self.why_no_reference}"))
        return found

    def close(self) -> None:
        """Frees the reference."""
        if self.reference is not None:
            self.reference.runner.close()

    def load_reference(self, arch: Arch, deadline: float, tell: Callable[[str], None]) -> None:
        """Loads the reference where it is not; that it cannot be is no fault of the architecture in work."""
        from explorer.latency import measurement

        if self.reference is not None or self.why_no_reference:
            return
        tell(f"loading the reference {arch.name}")
        settings = self.settings
        try:
            deployed = deployed_for(arch, settings.target, seed=settings.seed)
            runner = measurement.open_runner(
                deployed, settings.target, settings.seed, cache=self.cache, deadline=deadline, on_event=tell
            )
        except TrialError as error:
            self.why_no_reference = str(error)
            return
        self.reference = measurement.Reference(arch.id, runner, settings.baseline_ms)

    def keep_reference(self, runner: Runner, latency_ms: float) -> bool:
        """Takes over the runner of the reference, just measured itself; its latency is what drift is counted from."""
        from explorer.latency import measurement

        assert self.settings.reference is not None
        baseline_ms = self.settings.baseline_ms or latency_ms
        if self.reference is not None:
            self.reference.baseline_ms = baseline_ms
            return False
        self.reference = measurement.Reference(self.settings.reference.id, runner, baseline_ms)
        return True


_bench: list[_Bench] = []


def _measure(settings: Settings, arch: Arch, owner: int, tell: Callable[[str], None]) -> Latency:
    """Runs in the worker, which keeps one bench: that of the last settings."""
    if not _bench or _bench[0].settings != settings:
        for old in _bench:
            old.close()
        _bench[:] = [_Bench(settings)]
    return _bench[0].measure(arch, owner, tell)
