"""The front of a running study: grows candidate by candidate, and is stored with its hypervolume whenever either changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from explorer.pareto import REFERENCE_FACTOR, Front
from explorer.records import Candidate, FrontRecord, StudyRecord
from explorer.store import Store


class StudyFront:
    """Ids by rising latency; `moved_at`: how many architectures had been evaluated when its hypervolume last changed."""

    def __init__(self, store: Store, record: StudyRecord) -> None:
        self._store, self._record = store, record
        self._front = Front()
        self._reference_ms: float | None = None
        self._kept: FrontRecord | None = None
        self.moved_at = 0
        for front in store.fronts(record.name):
            self._remember(front)

    @property
    def ids(self) -> tuple[str, ...]:
        """On the front, by rising latency."""
        return tuple(self._front.ids)

    @property
    def best_accuracy(self) -> float | None:
        """Of all on the front; None while it is empty."""
        return self._front.accuracies[-1] if self._front.ids else None

    @property
    def best_latency_ms(self) -> float | None:
        """Of all on the front; None while it is empty."""
        return self._front.latencies_ms[0] if self._front.ids else None

    @property
    def hypervolume(self) -> float | None:
        """Up to REFERENCE_FACTOR times the base's latency; None while that is unknown."""
        return None if self._reference_ms is None else self._front.hypervolume(self._reference_ms)

    def add(self, candidate: Candidate, num_done: int) -> None:
        """Takes in a candidate that was not on the front before; stores the front where that changes it."""
        if candidate.may_stand_on_front:
            self._front.add(candidate.arch.id, candidate.accuracy or 0.0, candidate.latency_ms or 0.0)
            self._keep(num_done)

    def rebuild(self, candidates: Iterable[Candidate], num_done: int) -> None:
        """The front of all candidates, as where one on it has changed."""
        self._front = Front()
        for candidate in candidates:
            if candidate.may_stand_on_front:
                self._front.add(candidate.arch.id, candidate.accuracy or 0.0, candidate.latency_ms or 0.0)
        self._keep(num_done)

    def _keep(self, num_done: int) -> None:
        if not self.ids and self._kept is None:
            return
        reference_ms = self._reference()
        front = FrontRecord(self._record.name, num_done, self.ids, self._front.hypervolume(reference_ms), reference_ms)
        if self._kept is None or replace(front, num_trials=self._kept.num_trials) != self._kept:
            self._store.add_front(front)
            self._remember(front)

    def _remember(self, front: FrontRecord) -> None:
        before = self._kept
        if before is None or (front.hypervolume, front.reference_ms) != (before.hypervolume, before.reference_ms):
            self.moved_at = front.num_trials
        self._kept = front

    def _reference(self) -> float:
        if self._reference_ms is None:
            base = self._store.latency(self._record.base_id, self._record.target_id)
            if base is None or base.invalid:
                fastest = self.best_latency_ms
                return (
                    self._kept.reference_ms if fastest is None and self._kept else REFERENCE_FACTOR * (fastest or 0.0)
                )
            self._reference_ms = REFERENCE_FACTOR * base.latency_ms
        return self._reference_ms
