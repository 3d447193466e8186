"""Proposals: never one twice, the whole space in the end, away from what fails; what samplers are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import pytest

from explorer.arch import Arch
from explorer.errors import UserError
from explorer.records import Candidate, Epoch, Failure, Latency, Score
from explorer.search.mirror import Mirror, make_sampler
from explorer.search.sampling import SAMPLERS, Proposer
from explorer.search.told import UNMEASURED_MS, TellingRule
from explorer.space import Limits, Space

#: `gp` needs most of a second an ask.
QUICK = tuple(sampler for sampler in SAMPLERS if sampler != "gp")
EVERY = (*QUICK, pytest.param("gp", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def space() -> Space:
    return Space.load("swinfree.yaml")


@pytest.fixture(scope="module")
def small(space: Space) -> Space:
    """24 architectures."""
    return replace(space, windows=((7,), (7,), (7, 14), (7,)), shifts=((False,), *space.shifts[1:]), depth3=(10, 12))


def latency_of(arch: Arch, latency_ms: float, invalid: str = "") -> Latency:
    return Latency(arch.id, "t", latency_ms, latency_ms, latency_ms, 0, 1, (latency_ms,), True, 0, 0, invalid=invalid)


def candidate(
    arch: Arch,
    accuracy: float | None = None,
    latency_ms: float | None = None,
    outcome: Literal["complete", "stopped", "gated", "failed", "pending"] = "complete",
    *,
    epochs: int = 9,
    invalid: str = "",
    earlier: dict[int, float] | None = None,
) -> Candidate:
    curve = tuple(Epoch(epoch, 1.0, value, 0.0) for epoch, value in (earlier or {}).items())
    return Candidate(
        arch,
        outcome,
        latency=None if latency_ms is None else latency_of(arch, latency_ms, invalid),
        scores=() if accuracy is None else (Score(arch.id, "r", "d", epochs, 0, accuracy, 0.0, curve),),
        failure=Failure(arch.id, "latency:x", "build", "no") if outcome == "failed" else None,
    )


def evaluated(arch: Arch) -> Candidate:
    """A candidate whose accuracy and latency follow from its choices, with a real trade-off between them."""
    large = sum(window == 14 for window in arch.windows)
    accuracy = 0.5 + 0.01 * arch.depth3 + 0.02 * large + 0.03 * sum(arch.shifts) - 0.01 * arch.br
    return candidate(arch, accuracy, 2.0 + 0.1 * arch.depth3 + 0.3 * large + 0.1 * sum(arch.shifts) - 0.2 * arch.br)


def ask(proposer: Proposer, count: int, evaluate: Callable[[Arch], Candidate] = evaluated) -> list[Arch]:
    """The next `count` proposals, or all that are left, each learned."""
    archs: list[Arch] = []
    while len(archs) < count and (arch := proposer.propose()) is not None:
        archs.append(arch)
        proposer.learn(evaluate(arch))
    return archs


def ids(archs: Sequence[Arch]) -> list[str]:
    return [arch.id for arch in archs]


@pytest.mark.parametrize("sampler", EVERY)
def test_every_sampler_uses_the_space_up_without_a_repeat(sampler: str, small: Space) -> None:
    proposer = Proposer(small, sampler, 0, [], None)
    archs = ask(proposer, 1000)
    assert sorted(ids(archs)) == sorted(ids(list(small.archs())))
    assert (len(archs), proposer.num_unseen, proposer.propose()) == (small.architectures, 0, None)


@pytest.mark.parametrize("sampler", EVERY)
def test_same_seed_and_history_give_the_same_proposals(sampler: str, space: Space) -> None:
    history = [evaluated(arch) for arch in list(space.archs())[::40]]
    first, second = (ids(ask(Proposer(space, sampler, 3, history, None), 6)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("sampler", [sampler for sampler in QUICK if sampler != "brute"])
def test_resumed_sampler_does_not_begin_as_it_began_before(sampler: str, space: Space) -> None:
    begun = ask(Proposer(space, sampler, 0, [], None), 8)
    far = [evaluated(arch) for arch in space.archs() if arch.id not in set(ids(begun))][:8]
    resumed = ask(Proposer(space, sampler, 0, far, None), 8)
    assert ids(begun) != ids(resumed)


@pytest.mark.parametrize("sampler", QUICK)
def test_expected_and_pending_architectures_are_not_proposed(sampler: str, small: Space) -> None:
    archs = list(small.archs())
    proposer = Proposer(small, sampler, 0, [candidate(archs[0], outcome="pending")], None)
    proposer.expect(archs[1])
    proposer.expect(archs[1])
    assert proposer.num_unseen == small.architectures - 2
    asked = []
    while (arch := proposer.propose()) is not None:  # many at once: none is answered
        asked.append(arch)
    assert sorted(ids(asked)) == sorted(ids(archs[2:]))


@pytest.mark.parametrize("sampler", EVERY)
def test_architectures_over_the_space_s_limits_are_never_proposed(sampler: str, small: Space) -> None:
    limited = replace(small, limits=Limits(flops_g=10.6))
    allowed = [arch for arch in small.archs() if limited.excludes(arch) is None]
    assert 0 < len(allowed) < small.architectures
    proposer = Proposer(limited, sampler, 0, [], None)
    assert sorted(ids(ask(proposer, 1000))) == sorted(ids(allowed))
    assert proposer.propose() is None


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii", "nsgaiii"])
def test_failing_region_is_avoided(sampler: str, space: Space) -> None:
    def evaluate(arch: Arch) -> Candidate:
        return candidate(arch, outcome="failed") if arch.windows[0] == 14 else evaluated(arch)

    archs = ask(Proposer(space, sampler, 0, [], None), 120, evaluate)
    assert sum(arch.windows[0] == 14 for arch in archs[60:]) < 15  # half of the space fails: 30 by chance


def test_default_leaves_what_is_predicted_over_the_latency_limit_for_the_end(space: Space) -> None:
    def evaluate(arch: Arch) -> Candidate:
        whole = evaluated(arch)
        assert whole.latency_ms is not None
        return whole if whole.latency_ms <= 3.8 else candidate(arch, None, whole.latency_ms, "gated")

    archs = ask(Proposer(space, "tpe", 0, [], 3.8), 100, evaluate)
    within = sum(evaluate(arch).outcome == "complete" for arch in space.archs())
    assert 100 < within < space.architectures / 2
    assert sum(evaluate(arch).outcome == "gated" for arch in archs[30:]) < 10  # 35 or more by chance


def test_default_finds_what_is_under_a_limit_that_little_is_under(space: Space) -> None:
    fastest = sorted(evaluated(arch).latency_ms or 0.0 for arch in space.archs())
    limit_ms = fastest[14]

    def evaluate(arch: Arch) -> Candidate:
        found = evaluated(arch)
        return found if (found.latency_ms or 0.0) <= limit_ms else candidate(arch, None, found.latency_ms, "gated")

    archs = ask(Proposer(space, "tpe", 0, [], limit_ms), 40, evaluate)
    within = {arch.id for arch in space.archs() if evaluate(arch).outcome == "complete"}
    assert len(within) == 19
    assert len(within & set(ids(archs))) > 15  # 2 by chance


def test_default_finds_the_best_of_a_space_early(space: Space) -> None:
    best = max((evaluated(arch) for arch in space.archs()), key=lambda c: c.accuracy or 0.0)
    fastest = min((evaluated(arch) for arch in space.archs()), key=lambda c: c.latency_ms or 0.0)
    assert {best.arch.id, fastest.arch.id} <= set(ids(ask(Proposer(space, "tpe", 0, [], None), 40)))


def test_default_draws_at_random_beside_the_known_networks_before_it_believes_its_model(space: Space) -> None:
    def upside_down(arch: Arch) -> Candidate:
        told = evaluated(arch)
        return candidate(arch, 1 - (told.accuracy or 0.0), told.latency_ms)

    def proposals(evaluate: Callable[[Arch], Candidate]) -> list[str]:
        history = [evaluate(arch) for arch in space.known_networks()]
        return ids(ask(Proposer(space, "tpe", 0, history, None), 12, evaluate))

    found, others = proposals(evaluated), proposals(upside_down)
    assert found[:4] == others[:4]
    assert found[4:] != others[4:]


def test_latencies_of_other_studies_serve_the_predictor_from_the_first_ask(space: Space) -> None:
    archs = list(space.archs())
    measured = [(arch, evaluated(arch).latency_ms or 0.0) for arch in archs[::7]]
    foreign = replace(space.base, embed_dim=96)
    proposer = Proposer(space, "tpe", 0, [], None, measured=[*measured, (foreign, 500.0)])
    assert proposer.predictor is not None
    assert proposer.predictor.num_rows == len(measured)  # another width says nothing of this one
    assert proposer.predictor.predict(archs[3]) == pytest.approx(evaluated(archs[3]).latency_ms, rel=1e-3)
    assert Proposer(space, "tpe", 0, [], None).predictor is None
    assert proposer.num_unseen == space.architectures


def test_invalid_latencies_are_not_learned_from(space: Space) -> None:
    proposer = Proposer(space, "tpe", 0, [], None)
    for arch in list(space.archs())[:20]:
        proposer.learn(candidate(arch, 0.5, 1.0, invalid="throttled"))
    assert proposer.predictor is None


def test_candidate_outside_the_space_takes_no_place_in_it(space: Space) -> None:
    outside = replace(space.base, depths=(2, 2, 6, 2))
    proposer = Proposer(space, "tpe", 0, [evaluated(outside)], None)
    assert proposer.num_unseen == space.architectures


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii", "qmc"])
def test_candidate_may_be_learned_again_with_other_values(sampler: str, space: Space) -> None:
    proposer = Proposer(space, sampler, 0, [], None)
    archs = ask(proposer, 20, lambda arch: replace(evaluated(arch), outcome="stopped"))
    for arch in archs:
        proposer.learn(evaluated(arch))
    assert proposer.num_unseen == space.architectures - 20
    later = ask(proposer, 20)
    assert not set(ids(later)) & set(ids(archs))


def test_mirror_tells_today_s_values_once_enough_are_outdated(small: Space) -> None:
    rule = TellingRule(None)
    mirror = Mirror(small, "tpe", 0, rule.told)
    archs = list(small.archs())
    for arch in archs:
        mirror.learn(candidate(arch, 0.3, 1.0), small.point(arch) or {})
    assert [trial.values for trial in mirror.trials()] == [[0.3, 1.0]] * len(archs)
    mirror.learn(candidate(archs[0], 0.6, 1.0), small.point(archs[0]) or {})
    mirror.learn(candidate(archs[1], 0.7, 1.0), small.point(archs[1]) or {})
    mirror.draw()
    assert [trial.values for trial in mirror.trials()][:3] == [[0.6, 1.0], [0.7, 1.0], [0.3, 1.0]]


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_mirror_stays_in_proportion_to_what_is_known(sampler: str, small: Space) -> None:
    proposer = Proposer(small, sampler, 0, [], None)
    ask(proposer, 20)
    mirror = proposer._mirror
    assert mirror is not None
    known = evaluated(next(small.archs()))
    for _ in range(300):
        if sampler == "tpe":
            mirror.draw()
        else:
            mirror.answer(mirror.ask(), TellingRule(None).told(known))
    assert len(mirror.trials()) < 150


def test_mirror_of_a_long_search_holds_the_best_and_the_latest(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("explorer.search.mirror.MOST_TRIALS", 100)
    mirror, archs = Mirror(space, "tpe", 0, TellingRule(None).told), list(space.archs())
    for number, arch in enumerate(archs):  # the first twenty are the front
        known = candidate(arch, 0.5 + number / 1000 if number < 20 else 0.1, 1.0 + number)
        mirror.learn(known, space.point(arch) or {})
        mirror.draw()
        assert len(mirror.trials()) <= 111
    mirror._make()
    kept = [int(trial.values[1]) - 1 for trial in mirror.trials()]
    assert kept == sorted(kept)
    assert len(kept) == 100
    assert set(range(20)) <= set(kept), "the front"
    assert set(range(len(archs) - 50, len(archs))) <= set(kept), "the latest"
    assert all(mirror.known(arch.id) is not None for arch in archs)


@pytest.mark.parametrize("sampler", ["nsgaii", "nsgaiii"])
def test_genetic_sampler_goes_on_from_the_generations_before_a_restart(sampler: str, space: Space) -> None:
    history = [evaluated(arch) for arch in list(space.archs())[::8]]
    mirror = Mirror(space, sampler, 0, TellingRule(None).told)
    for known in history:
        mirror.learn(known, space.point(known.arch) or {})
    trial = mirror.ask()
    key = f"{type(make_sampler(sampler, 0)).__name__}:generation"
    assert len(history) == 60
    assert mirror.trials()[trial.number].system_attrs[key] == 3  # three populations of 20 are known


def test_sampler_of_unknown_name_is_refused(space: Space) -> None:
    with pytest.raises(UserError, match="sampler: 'best' is not known; allowed: tpe, nsgaii, nsgaiii, gp, qmc, random"):
        Proposer(space, "best", 0, [], None)


class TestTold:
    """What a sampler is told."""

    @pytest.fixture
    def archs(self, small: Space) -> list[Arch]:
        return list(small.archs())

    def test_complete_candidate_is_told_as_it_is(self, archs: list[Arch]) -> None:
        rule = TellingRule(3.0)
        assert rule.told(candidate(archs[0], 0.7, 2.0)) == (
            (0.7, 2.0),
            {"latency": -1.0, "failed": 0.0, "excluded": 0.0},
        )

    def test_stopped_candidate_is_told_with_the_gain_that_complete_ones_showed(self, archs: list[Arch]) -> None:
        rule = TellingRule(None)
        for arch, curve, end in ((archs[0], {1: 0.3, 3: 0.4}, 0.6), (archs[1], {1: 0.4, 3: 0.6}, 0.9)):
            for _ in range(2):  # learned again, it counts once
                rule.learn(candidate(arch, end, 1.0, earlier=curve))
        assert rule.told(candidate(archs[5], 0.2, 1.0, "stopped", epochs=1))[0][0] == pytest.approx(0.2 + 0.4)
        assert rule.told(candidate(archs[5], 0.2, 1.0, "stopped", epochs=3))[0][0] == pytest.approx(0.2 + 0.25)

    def test_stopped_candidate_is_told_as_it_is_while_none_has_climbed(self, archs: list[Arch]) -> None:
        assert TellingRule(None).told(candidate(archs[0], 0.2, 1.0, "stopped", epochs=1))[0] == (0.2, 1.0)

    def test_stopped_candidate_sets_no_record(self, archs: list[Arch]) -> None:
        rule = TellingRule(None)
        rule.learn(candidate(archs[0], 0.6, 1.0, earlier={1: 0.3}))
        assert rule.told(candidate(archs[1], 0.4, 1.0, "stopped", epochs=1))[0][0] == 0.6

    def test_failure_and_what_is_over_the_limit_violate_a_constraint_with_the_worst_values(
        self, archs: list[Arch]
    ) -> None:
        rule = TellingRule(3.0)
        assert rule.told(candidate(archs[0], outcome="failed"))[0] == (0.0, UNMEASURED_MS)
        for accuracy, latency_ms in ((0.7, 1.0), (0.5, 2.0)):
            rule.learn(candidate(archs[0], accuracy, latency_ms))
        assert rule.told(candidate(archs[1], outcome="failed")) == (
            (0.5, 2.0),
            {"latency": 0.0, "failed": 1.0, "excluded": 0.0},
        )
        assert rule.told(candidate(archs[1], None, 5.0, "gated")) == (
            (0.5, 5.0),
            {"latency": 2.0, "failed": 0.0, "excluded": 0.0},
        )
        assert rule.excluded() == ((0.5, 2.0), {"latency": 0.0, "failed": 0.0, "excluded": 1.0})

    def test_latency_not_to_be_trusted_claims_no_improvement(self, archs: list[Arch]) -> None:
        rule = TellingRule(0.5)
        rule.learn(candidate(archs[0], 0.6, 2.0))
        values, constraints = rule.told(candidate(archs[1], 0.9, 1.0, invalid="another process"))
        assert values == (0.6, 2.0)
        assert constraints == {"latency": 0.0, "failed": 0.0, "excluded": 0.0}
