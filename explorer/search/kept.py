"""What a search keeps in memory of a candidate, of which it may hold thousands: the rest is in the store."""

from __future__ import annotations

import sys
from dataclasses import replace

from explorer.records import Candidate


def slim(candidate: Candidate) -> Candidate:
    """Without what only the store needs; with the curves, for those who learn from them."""
    latency = candidate.latency
    if latency is not None:
        target_id = sys.intern(latency.target_id)  # one string for all, as below
        latency = replace(
            latency, environment={}, window_medians_ms=(), remarks=(), measured_at="", target_id=target_id
        )
    scores = tuple(
        replace(
            score,
            environment={},
            trained_at="",
            recipe_id=sys.intern(score.recipe_id),
            data_id=sys.intern(score.data_id),
        )
        for score in candidate.scores
    )
    return replace(candidate, latency=latency, scores=scores)


def without_curves(candidate: Candidate) -> Candidate:
    """Once sampler and ladder have learned from them."""
    return replace(candidate, scores=tuple(replace(score, curve=()) for score in candidate.scores))
