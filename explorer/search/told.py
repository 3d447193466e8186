"""What a sampler is told of a candidate: values and constraints. A pure rule with a little memory, no Optuna.

- `complete`: its accuracy and latency.
- `stopped` after fewer epochs: its accuracy plus the mean gain between those epochs and the whole training, by the curves of
  the complete candidates; as it is while there is none. Never more than the best accuracy of a
  complete candidate: an estimate sets no record.
- latency not to be trusted (`Latency.invalid`): the longest valid latency so far where that is longer, and no record
  either.
- `gated` and `failed`: the worst so far stands in for what is missing, and a constraint is violated. Never a failure:
  samplers do not read failures and would propose the region again and again.

Gains are those of candidates that climbed, which the ladder picks partly by luck, so they lean low.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from explorer.records import Candidate

#: Told as the latency of a failure while nothing has been measured.
UNMEASURED_MS: Final = 1e4

#: (accuracy, latency in ms), and constraints by name: more than 0 is violated.
Told = tuple[tuple[float, float], dict[str, float]]


def constraints_of(candidate: Candidate, max_latency_ms: float | None) -> dict[str, float]:
    """Constraints by name; more than 0 is violated. `latency` in ms over the limit, `failed` 1 for a failure, `excluded` 1
    for what the space's limits exclude. Always all three: Optuna's GP wants the same number of every trial.
    """
    latency_ms = valid_latency_ms(candidate)
    over = 0.0 if max_latency_ms is None or latency_ms is None else latency_ms - max_latency_ms
    return {"latency": over, "failed": float(candidate.outcome == "failed"), "excluded": 0.0}


def valid_latency_ms(candidate: Candidate) -> float | None:
    """The latency in milliseconds where it was measured and may be trusted."""
    return None if candidate.latency is None or candidate.latency.invalid else candidate.latency.latency_ms


@dataclass
class TellingRule:
    """Remembers the worst values, the best complete accuracy and the gains between rungs; every call costs the same."""

    max_latency_ms: float | None
    worst_accuracy: float | None = None
    worst_ms: float | None = None
    best_accuracy: float | None = None
    # What complete candidates gained from so many epochs to the end: sum and number; and whose curves are in it.
    _gains: dict[int, tuple[float, int]] = field(default_factory=dict)
    _counted: set[str] = field(default_factory=set)

    def learn(self, candidate: Candidate) -> None:
        """Takes in an evaluated candidate, also one seen before."""
        if candidate.outcome == "complete" and candidate.scores and candidate.arch.id not in self._counted:
            self._counted.add(candidate.arch.id)
            score = candidate.scores[0]
            for row in score.curve:
                if row.accuracy is not None and row.epoch < score.epochs:
                    total, count = self._gains.get(row.epoch, (0.0, 0))
                    self._gains[row.epoch] = (total + score.accuracy - row.accuracy, count + 1)
        if candidate.may_stand_on_front and candidate.accuracy is not None:
            self.best_accuracy = max(candidate.accuracy, self.best_accuracy or 0.0)
        if (latency_ms := valid_latency_ms(candidate)) is not None:
            self.worst_ms = max(latency_ms, self.worst_ms or 0.0)
        if candidate.accuracy is not None:
            told, _ = self.values(candidate)
            self.worst_accuracy = told if self.worst_accuracy is None else min(told, self.worst_accuracy)

    def gain(self, epochs: int) -> float:
        """Mean gain in accuracy from `epochs` to the end, over the complete candidates; 0 where none has told."""
        total, count = self._gains.get(epochs, (0.0, 1))
        return total / count

    def values(self, candidate: Candidate) -> tuple[float, float]:
        """(accuracy, latency in ms) that a sampler is told."""
        latency_ms, accuracy = valid_latency_ms(candidate), candidate.accuracy
        is_record = accuracy is not None and candidate.may_stand_on_front
        if accuracy is not None and candidate.outcome == "stopped" and candidate.epochs is not None:
            accuracy += self.gain(candidate.epochs)
        if accuracy is not None and not is_record and self.best_accuracy is not None:
            accuracy = min(accuracy, self.best_accuracy)
        if accuracy is None:
            accuracy = 0.0 if self.worst_accuracy is None else self.worst_accuracy
        if latency_ms is None and candidate.latency is not None:
            latency_ms = max(candidate.latency.latency_ms, self.worst_ms or 0.0)
        if latency_ms is None:
            latency_ms = UNMEASURED_MS if self.worst_ms is None else self.worst_ms
        return accuracy, latency_ms

    def told(self, candidate: Candidate) -> Told:
        """Values and constraints of a candidate's trial."""
        return self.values(candidate), constraints_of(candidate, self.max_latency_ms)

    def excluded(self) -> Told:
        """What an architecture over the space's limits is told as: nothing of it is ever built or measured."""
        accuracy = 0.0 if self.worst_accuracy is None else self.worst_accuracy
        return (accuracy, self.worst_ms or UNMEASURED_MS), {"latency": 0.0, "failed": 0.0, "excluded": 1.0}
