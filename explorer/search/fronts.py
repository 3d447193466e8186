"""The front of a running study: grows candidate by candidate, and is stored with its hypervolume whenever it changes."""

from __future__ import annotations

from collections.abc import Iterable

from explorer.pareto import REFERENCE_FACTOR, Front
from explorer.records import Candidate, FrontRecord, StudyRecord
from explorer.store import Store


class StudyFront:
    """Ids by rising latency; `moved_at`: how many architectures had been evaluated when it last changed."""

    def __init__(self, store: Store, record: StudyRecord) -> None:
        self._store, self._record = store, record
        self._front = Front()
        self._reference_ms: float | None = None
        kept = store.fronts(record.name)
        self._kept = kept[-1].arch_ids if kept else ()
        self.moved_at = kept[-1].num_trials if kept else 0

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
        if self.ids and self.ids != self._kept:
            reference_ms = self._reference()
            volume = self._front.hypervolume(reference_ms)
            self._store.add_front(FrontRecord(self._record.name, num_done, self.ids, volume, reference_ms))
            self._kept, self.moved_at = self.ids, num_done

    def _reference(self) -> float:
        if self._reference_ms is None:
            base = self._store.latency(self._record.base_id, self._record.target_id)
            if base is None or base.invalid:
                return REFERENCE_FACTOR * self._front.latencies_ms[0]
            self._reference_ms = REFERENCE_FACTOR * base.latency_ms
        return self._reference_ms
