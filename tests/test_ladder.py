"""The ladder of epochs: who goes on, at what cost, whatever the order of results."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.search.ladder import (
    MAX_SHARE,
    Ladder,
    Standing,
    fronts,
    gain_slopes,
    halving_share,
    insert,
    promotions,
    rungs,
)

#: Few different values, so that equal ones are common.
COARSE = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(1, 7).map(float)), max_size=40)
#: Accuracies after 1, 3 and 9 epochs and a latency.
CURVES = st.lists(
    st.tuples(*[st.floats(0, 1)] * 3, st.floats(0.1, 100)).map(
        lambda four: ({1: four[0], 3: four[1], 9: four[2]}, four[3])
    ),
    min_size=1,
    max_size=24,
)
Curves = list[tuple[dict[int, float], float]]


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def name(index: int) -> str:
    return f"a{index:04}"


def climb(ladder: Ladder, curves: Curves, *, final: bool = False) -> Iterator[tuple[str, int]]:
    """Trains whoever the ladder names until it names nobody."""
    while (going := ladder.next(final)) is not None:
        arch_id, epochs = going
        yield going
        curve, latency_ms = curves[int(arch_id[1:])]
        ladder.add(arch_id, epochs, curve[epochs], latency_ms)


def searched(curves: Curves, eta: float = 3.0) -> tuple[Ladder, list[tuple[str, int]]]:
    """A whole search over `curves` in their order, with its end."""
    ladder, went = Ladder((1, 3, 9), eta), []
    for index, (curve, latency_ms) in enumerate(curves):
        ladder.add(name(index), 1, curve[1], latency_ms)
        went += list(climb(ladder, curves))
    went += list(climb(ladder, curves, final=True))
    return ladder, went


def of_chance(num: int, seed: int = 0) -> Curves:
    chance = random.Random(seed)
    made = []
    for _ in range(num):
        quality = chance.random()
        curve = {epochs: quality * epochs / 10 + chance.gauss(0, 0.02) for epochs in (1, 3, 9)}
        made.append((curve, 1 + quality + chance.random()))
    return made


# -- rungs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "eta", "expected"),
    [
        (9, 3, (1, 3, 9)),
        (8, 3, (1, 3, 8)),
        (5, 3, (1, 2, 5)),
        (9, 2, (1, 2, 4, 9)),
        (9, 4, (1, 3, 9)),
        (2, 3, (1, 2)),
        (1, 3, (1,)),
        (300, 3, (1, 3, 10, 31, 96, 300)),
    ],
)
def test_rungs_are_about_eta_times_apart_and_end_at_the_full_training(
    epochs: int, eta: float, expected: tuple[int, ...]
) -> None:
    assert rungs(epochs, eta) == expected


@given(epochs=st.integers(1, 2000), eta=st.floats(1.5, 10), lowest=st.integers(1, 50))
def test_rungs_rise_from_the_lowest_to_the_full_training(epochs: int, eta: float, lowest: int) -> None:
    spaced = rungs(epochs, eta, lowest)
    assert list(spaced) == sorted(set(spaced))
    assert spaced[-1] == epochs
    assert spaced[0] == min(lowest, epochs)


@pytest.mark.parametrize("wrong", [{"eta": 1.0}, {"epochs": 0}, {"lowest": 0}])
def test_rungs_refuse_what_makes_no_ladder(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"needed|at least 1"):
        rungs(**{"epochs": 9, **wrong})  # type: ignore[arg-type]


def test_ladder_refuses_rungs_that_do_not_rise() -> None:
    with pytest.raises(ValueError, match="rise"):
        Ladder((1, 3, 3))


# -- ranks ------------------------------------------------------------------------------------------------------------


@given(COARSE)
def test_rank_is_the_number_of_fronts_that_must_be_taken_away_first(points: list[tuple[float, float]]) -> None:
    values = {name(index): point for index, point in enumerate(points)}
    left, expected = dict(values), []
    while left:
        best = [a for a, one in left.items() if not any(dominates(other, one) for other in left.values())]
        expected.append(sorted(best, key=lambda a: (values[a][1], a)))
        left = {a: one for a, one in left.items() if a not in best}
    assert fronts(values) == expected


@given(COARSE, st.randoms())
def test_fronts_do_not_depend_on_the_order_of_arrival(points: list[tuple[float, float]], chance: random.Random) -> None:
    values = {name(index): point for index, point in enumerate(points)}
    shuffled, ranked = list(values), []
    chance.shuffle(shuffled)
    for arch_id in shuffled:
        insert(ranked, arch_id, values)
    assert ranked == fronts(values)


# -- who goes on ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(CURVES)
def test_nobody_goes_on_before_one_that_dominates_it_at_its_rung(curves: Curves) -> None:
    ladder = Ladder((1, 3, 9))
    reached: dict[int, dict[str, tuple[float, float]]] = {1: {}, 3: {}, 9: {}}
    went: set[tuple[str, int]] = set()

    def add(arch_id: str, epochs: int) -> None:
        curve, latency_ms = curves[int(arch_id[1:])]
        ladder.add(arch_id, epochs, curve[epochs], latency_ms)
        reached[epochs][arch_id] = curve[epochs], latency_ms

    for index in range(len(curves)):
        add(name(index), 1)
        is_last = index == len(curves) - 1
        while (going := ladder.next(final=is_last)) is not None:
            arch_id, epochs = going
            rung = {3: 1, 9: 3}[epochs]
            better = [a for a, one in reached[rung].items() if dominates(one, reached[rung][arch_id])]
            assert all((a, epochs) in went for a in better)
            went.add(going)
            add(arch_id, epochs)


@settings(deadline=None, max_examples=40)
@given(CURVES)
def test_same_results_in_any_order_give_the_same_next_ones(curves: Curves) -> None:
    standings = [
        Standing(name(index), latency_ms, {epochs: curve[epochs] for epochs in (1, 3, 9)[: 1 + index % 3]})
        for index, (curve, latency_ms) in enumerate(curves)
    ]
    for final in (False, True):
        assert promotions(standings, (1, 3, 9), final=final) == promotions(standings[::-1], (1, 3, 9), final=final)


def test_ladder_rebuilt_from_what_was_reached_goes_on_alike() -> None:
    curves = of_chance(60)
    ladder, taken_up = Ladder((1, 3, 9)), Ladder((1, 3, 9))
    reached: dict[str, int] = {}
    for index in range(40):
        ladder.add(name(index), 1, curves[index][0][1], curves[index][1])
        reached[name(index)] = 1
        reached |= dict(climb(ladder, curves))
    assert set(reached.values()) == {1, 3, 9}
    for arch_id, epochs in sorted(reached.items(), reverse=True):
        curve, latency_ms = curves[int(arch_id[1:])]
        known = {done: accuracy for done, accuracy in curve.items() if done <= epochs}
        taken_up.add(arch_id, epochs, curve[epochs], latency_ms, curve=known)
    assert taken_up.spent_epochs == ladder.spent_epochs
    went: list[list[tuple[str, int]]] = []
    for one in (ladder, taken_up):
        for index in range(40, 60):
            one.add(name(index), 1, curves[index][0][1], curves[index][1])
        went.append(list(climb(one, curves, final=True)))
    assert went[0] == went[1] != []


def test_among_candidates_of_one_rank_the_most_accurate_then_the_farthest_goes_on() -> None:
    line = [Standing(name(index), 1.0 + index, {1: index / 10}) for index in range(9)]
    assert promotions(line, (1, 3)) == ((name(8), 3), (name(0), 3), (name(4), 3))


def test_best_third_of_a_rung_goes_on() -> None:
    falling = [Standing(name(index), 1.0 + index, {1: 0.9 - index / 100}) for index in range(9)]
    assert promotions(falling, (1, 3)) == ((name(0), 3), (name(1), 3), (name(2), 3))


def test_upper_rung_comes_first() -> None:
    ladder = Ladder((1, 3, 9))
    for index in range(6):
        ladder.add(name(index), 3, 0.5 + index / 100, 1.0, curve={1: 0.5})
    for index in range(6, 40):
        ladder.add(name(index), 1, 0.6, 2.0)
    assert ladder.next() == (name(5), 9)


def test_candidate_in_work_is_not_given_twice_until_it_is_given_back() -> None:
    ladder = Ladder((1, 3))
    for index in range(3):
        ladder.add(name(index), 1, 0.5 + index / 10, 1.0)
    spent = ladder.spent_epochs
    assert ladder.next() == (name(2), 3)
    assert ladder.next() is None
    assert ladder.spent_epochs == spent + 2
    ladder.give_back(name(2))
    assert ladder.spent_epochs == spent
    assert ladder.next() == (name(2), 3)


def test_forgotten_candidate_neither_goes_on_nor_stands_in_the_way_until_added_again() -> None:
    ladder = Ladder((1, 3))
    for index in range(6):
        ladder.add(name(index), 1, 0.5 + index / 10, 1.0)
    ladder.forget(name(5))
    assert ladder.next() == (name(4), 3)
    assert ladder.next() is None  # five are left: one third of them is one
    assert ladder.spent_epochs == 6 + 2
    ladder.add(name(5), 1, 1.0, 1.0)  # evaluated anew, as after a limit that rose
    assert ladder.next() == (name(5), 3)


def test_newer_accuracy_of_the_same_rung_counts() -> None:
    ladder = Ladder((1, 3))
    for index in range(3):
        ladder.add(name(index), 1, 0.5, 1.0 + index)
    ladder.add(name(2), 1, 0.6, 1.0)
    assert ladder.next() == (name(2), 3)
    assert ladder.spent_epochs == 3 + 2


def test_candidate_whose_lower_rungs_are_unknown_is_compared_where_it_is_known() -> None:
    ladder = Ladder((1, 3, 9))
    ladder.add("full", 9, 0.99, 0.1, free_epochs=9)
    for index in range(3):
        ladder.add(name(index), 1, 0.5 + index / 10, 1.0)
    assert ladder.next() == (name(2), 3)


def test_epochs_that_others_spent_leave_the_share_alone() -> None:
    ladder = Ladder((1, 3, 9))
    for index in range(9):
        ladder.add(name(index), 3, 0.5 + index / 100, 1.0, curve={1: 0.5}, free_epochs=3)
    assert ladder.spent_epochs == 0
    assert ladder.next() == (name(8), 9)
    assert ladder.spent_epochs == 6
    ladder.add(name(8), 9, 0.7, 1.0)
    assert ladder.spent_epochs == 6


def test_accuracy_between_two_rungs_stands_for_the_lower_one() -> None:
    ladder = Ladder((1, 3, 9), max_share=1.0)
    for index in range(3):
        ladder.add(name(index), 5, 0.5 + index / 10, 1.0, curve={1: 0.2})
    assert ladder.next() == (name(2), 9)
    assert ladder.spent_epochs == 5 + 5 + 9


@pytest.mark.parametrize(
    ("epochs", "accuracy", "latency_ms"), [(1, 0.5, 1.0), (3, float("nan"), 1.0), (3, 0.5, float("nan"))]
)
def test_what_stands_nowhere_is_refused_and_leaves_nothing(epochs: int, accuracy: float, latency_ms: float) -> None:
    ladder = Ladder((2, 6))
    with pytest.raises(ValueError, match=r"below the lowest rung|NaN"):
        ladder.add("a", epochs, accuracy, latency_ms)
    assert (ladder.share, ladder.spent_epochs, ladder.next(final=True)) == (0.0, 0, None)


def test_gain_that_grows_with_latency_is_found_over_all_rungs() -> None:
    chance = random.Random(0)
    start = {name(index): (chance.random(), 1 + 5 * chance.random()) for index in range(400)}
    middle = {arch_id: (0.2 + accuracy + 0.03 * ms, ms) for arch_id, (accuracy, ms) in start.items()}
    end = {arch_id: (0.1 + accuracy + 0.01 * ms, ms) for arch_id, (accuracy, ms) in middle.items()}
    assert gain_slopes([start, middle, end]) == pytest.approx([0.04, 0.01, 0.0], abs=1e-3)


def test_slow_networks_that_learn_late_are_still_found() -> None:
    """In the end slower is better; after one epoch all slower ones are worse, and dominated."""
    chance = random.Random(1)
    curves: Curves = []
    for _ in range(300):
        latency_ms, own = 1 + chance.random(), chance.gauss(0, 0.05)
        early = 0.5 - 0.02 * latency_ms + own
        curves.append(({1: early, 3: early + 0.04 * latency_ms, 9: early + 0.12 * latency_ms}, latency_ms))
    ladder, went = searched(curves)
    top = {arch_id for arch_id, epochs in went if epochs == 9}
    whole = fronts({name(index): (curve[9], latency_ms) for index, (curve, latency_ms) in enumerate(curves)})[0]
    assert len(top.intersection(whole)) >= 0.9 * len(whole)
    assert ladder.share <= MAX_SHARE


# -- what it costs ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(CURVES, st.sampled_from([2.0, 3.0, 4.0]))
def test_search_spends_at_most_a_third_of_full_training(curves: Curves, eta: float) -> None:
    ladder, went = searched(curves, eta)
    full = [arch_id for arch_id, epochs in went if epochs == 9]
    assert full
    assert ladder.share <= ladder.max_share + 1e-9 or len(full) == 1
    assert ladder.max_share <= MAX_SHARE or eta == 2.0


@pytest.mark.parametrize("ladder_rungs", [(1, 3, 9), (1, 3, 8)])
def test_long_search_spends_the_third_and_no_more(ladder_rungs: tuple[int, ...]) -> None:
    curves = [({**curve, 8: curve[9]}, latency_ms) for curve, latency_ms in of_chance(300)]
    ladder = Ladder(ladder_rungs)
    for index, (curve, latency_ms) in enumerate(curves):
        ladder.add(name(index), 1, curve[1], latency_ms)
        list(climb(ladder, curves))
        assert ladder.share <= MAX_SHARE or index < 3
    before = ladder.share
    went = list(climb(ladder, curves, final=True))
    assert before < ladder.share <= MAX_SHARE
    assert ladder.share > 0.3
    assert went


@settings(deadline=None, max_examples=40)
@given(CURVES)
def test_in_the_end_the_first_front_of_every_rung_has_gone_on_unless_the_share_forbids_it(curves: Curves) -> None:
    ladder, went = searched(curves)
    for rung, following in ((1, 3), (3, 9)):
        values = {
            name(index): (curve[rung], latency_ms)
            for index, (curve, latency_ms) in enumerate(curves)
            if rung == 1 or (name(index), rung) in went
        }
        stayed = [arch_id for arch_id in fronts(values)[0] if (arch_id, following) not in went]
        left = MAX_SHARE * 9 * len(curves) - ladder.spent_epochs
        assert not stayed or left < 9 - rung


@pytest.mark.parametrize("num", [1, 2, 3])
def test_smallest_search_still_trains_one_candidate_to_the_top(num: int) -> None:
    _, went = searched(of_chance(num))
    assert [epochs for _, epochs in went].count(9) == 1


def test_ladder_too_short_for_a_third_costs_what_halving_costs() -> None:
    assert Ladder((1, 3)).max_share == halving_share((1, 3), 3) == pytest.approx(5 / 9)
    assert Ladder((1, 3, 9)).max_share <= MAX_SHARE
    assert Ladder(rungs(300)).max_share < 0.03


def test_single_rung_sends_nobody_on() -> None:
    ladder = Ladder((5,))
    ladder.add("a", 5, 0.5, 1.0)
    assert (ladder.next(final=True), ladder.share) == (None, 1.0)
