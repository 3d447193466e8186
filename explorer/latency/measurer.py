"""Measures architectures in a worker process, the device held for them, beside a reference that stays loaded.

The worker exports, builds, checks and times; it lives on from architecture to architecture and with it the reference, and is
replaced after a failure (`explorer.latency.worker`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from explorer import model
from explorer.arch import Arch
from explorer.errors import BackendMissing, IllConditioned, TrialError
from explorer.latency import environment, needs_graph
from explorer.latency.cache import Cache
from explorer.latency.worker import Worker
from explorer.records import DEADLINE_S, PASSING, Latency, Target

if TYPE_CHECKING:
    from explorer.latency.base import Runner
    from explorer.latency.measurement import Reference
    from explorer.model.deployment import Deployed

#: So often weights that cannot be checked are drawn again.
MAX_DRAWS: Final = 8
#: A build ends itself this long before the worker would be killed, which tells its reason.
_MARGIN_S: Final = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How architectures are measured on one target; what a worker keeps loaded depends on nothing else.

    `reference`: timed beside every architecture. `rebuilds`: engines of each network.
    """

    target: Target
    reference: Arch | None = None
    seed: int = 0
    rebuilds: int = 1
    cache_root: Path | None = None


@dataclass(frozen=True)
class _Call:
    """What differs from call to call. `owner`: pid of the process that asks, where it holds a CUDA context of its own.

    `until`: the deadline, of time.monotonic(), which all processes share. `baseline_ms`: of the reference. `has_reference`: it
    was loaded in this worker, though another measurer's may have taken its place since.
    """

    owner: int | None
    until: float
    baseline_ms: float | None = None
    has_reference: bool = False


class Measurer:
    """Measures on one target; a context manager that ends its worker. `on_event` is told what is going on.

    `baseline_ms`: the reference's own latency, as stored; else the first valid one that is measured here. `worker`: one that
    others use too, which is not ended. Nothing is started before the first measurement.
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
        self.settings = Settings(target, reference, seed, rebuilds, cache_root)
        self.baseline_ms, self.deadline_s, self.on_event = baseline_ms, deadline_s, on_event
        self._worker = worker or Worker()
        self._is_owner = worker is None
        self._why_no_reference = ""
        self._had_reference = False
        self._with_reference: int | None = None

    def measure(self, arch: Arch) -> Latency:
        """The latency of `arch`. Waits for the device. Raises TrialError, ParityError and BackendMissing."""
        reference = self.settings.reference
        is_reference = reference is not None and arch.id == reference.id
        with environment.exclusive(self.settings.target.device_kind):
            if reference is not None and not is_reference:
                self._load_reference(reference)
            found = self._call(_measure, arch)
        if is_reference:
            self._with_reference, self._had_reference, self._why_no_reference = self._worker.pid, True, ""
        if self.baseline_ms is None and not found.invalid and found.reference_ms is not None:
            self.baseline_ms = found.reference_ms
        if self._why_no_reference:
            return replace(found, remarks=(*found.remarks, f"no reference beside it: {self._why_no_reference}"))
        return found

    def close(self) -> None:
        """Ends the worker, where it is this measurer's own."""
        if self._is_owner:
            self._worker.close()

    def __enter__(self) -> Measurer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _load_reference(self, arch: Arch) -> None:
        """Loads the reference into a worker that has it not, in a call of its own: its faults are not the candidate's.

        Raises BackendMissing where a reference that could be loaded before cannot be any more: then the device is at fault.
        """
        if self._why_no_reference or (self._worker.pid is not None and self._worker.pid == self._with_reference):
            return
        try:
            self._call(_load, arch)
        except TrialError as error:
            if self._had_reference and error.kind in PASSING:
                raise BackendMissing(
                    f"{self.settings.target.device}: the reference {arch.name}, which was measured here before, cannot be "
                    f"loaded any more ({error}); see that the device works, then say the same command again: everything "
                    "finished is kept"
                ) from error
            self._why_no_reference = str(error)
            return
        self._with_reference, self._had_reference = self._worker.pid, True

    def _call(self, function: Callable[..., T], arch: Arch) -> T:
        has_reference = self._worker.pid is not None and self._worker.pid == self._with_reference
        until = time.monotonic() + self.deadline_s
        call = _Call(_owner_with_context(), until, self.baseline_ms, has_reference)
        return self._worker.call(
            function, self.settings, arch, call, deadline_s=self.deadline_s, on_event=self.on_event
        )


def _owner_with_context() -> int | None:
    """This process, where torch has begun to use a GPU in it."""
    torch = sys.modules.get("torch")
    return os.getpid() if torch is not None and torch.cuda.is_initialized() else None


def deployed_for(arch: Arch, target: Target, *, seed: int = 0) -> Deployed:
    """The full-size architecture with scattered weights as the target's backend needs it. Raises what `model.deploy` raises.

    A narrow and deep network with BatchNorm may draw weights that rounding alone moves too far for any check: they are drawn
    again, from the seeds that follow.
    """
    from explorer.model.deployment import Deployed

    batch = None if target.largest_batch else target.batch
    if not needs_graph(target):
        return Deployed(arch, model.build(arch, seed=seed, scatter=True).eval(), batch, target.precision)
    last: IllConditioned | None = None
    for draw in range(MAX_DRAWS):
        module = model.build(arch, seed=seed + draw, scatter=True)
        try:
            return model.deploy(module, arch, batch=batch, precision=target.precision, seed=seed)
        except IllConditioned as error:
            last = error
    assert last is not None
    raise last


class _Bench:
    """What a worker keeps between calls: the reference, loaded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache = Cache(settings.cache_root) if settings.target.backend == "tensorrt" else None
        self.reference: Reference | None = None

    def measure(self, arch: Arch, call: _Call, tell: Callable[[str], None]) -> Latency:
        from explorer.latency import measurement

        settings = self.settings
        is_reference = settings.reference is not None and arch.id == settings.reference.id
        lost = ""
        if settings.reference is not None and not is_reference and call.has_reference:
            try:
                self.load_reference(settings.reference, call, tell)
            except TrialError as error:  # not this architecture's fault
                lost = f"no reference beside it: {error}"
        if self.reference is not None:
            self.reference.baseline_ms = call.baseline_ms
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
            deadline=call.until - _MARGIN_S,
            own_pids=measurement.own_pids(call.owner),
            on_event=tell,
            keep=self.keep_reference if is_reference else lambda runner: False,
        )
        if is_reference:
            drift = None if call.baseline_ms is None else found.latency_ms / call.baseline_ms - 1
            return replace(found, reference_id=arch.id, reference_ms=found.latency_ms, reference_drift=drift)
        return replace(found, remarks=(*found.remarks, lost)) if lost else found

    def load_reference(self, arch: Arch, call: _Call, tell: Callable[[str], None]) -> None:
        """Loads the reference, where it is not, and compares its output with the model's, as every network's is."""
        from explorer.latency import measurement

        if self.reference is not None:
            return
        tell(f"loading the reference {arch.name}")
        target, seed = self.settings.target, self.settings.seed
        deployed = deployed_for(arch, target, seed=seed)
        runner = measurement.open_runner(
            deployed, target, seed, cache=self.cache, deadline=call.until - _MARGIN_S, on_event=tell
        )
        try:
            measurement.require_same_output(runner, deployed, target, seed)
        except BaseException:
            runner.close()
            raise
        self.reference = measurement.Reference(arch.id, runner)

    def keep_reference(self, runner: Runner) -> bool:
        """Takes over the runner of the reference, just measured itself."""
        from explorer.latency import measurement

        assert self.settings.reference is not None
        if self.reference is not None:
            return False
        self.reference = measurement.Reference(self.settings.reference.id, runner)
        return True

    def close(self) -> None:
        """Frees the reference."""
        if self.reference is not None:
            self.reference.runner.close()


_bench: list[_Bench] = []


def _bench_of(settings: Settings) -> _Bench:
    """The worker keeps one bench: that of the last settings."""
    if not _bench or _bench[0].settings != settings:
        for old in _bench:
            old.close()
        _bench[:] = [_Bench(settings)]
    return _bench[0]


def _measure(settings: Settings, arch: Arch, call: _Call, tell: Callable[[str], None]) -> Latency:
    """Runs in the worker."""
    return _bench_of(settings).measure(arch, call, tell)


def _load(settings: Settings, arch: Arch, call: _Call, tell: Callable[[str], None]) -> None:
    """Runs in the worker."""
    _bench_of(settings).load_reference(arch, call, tell)
