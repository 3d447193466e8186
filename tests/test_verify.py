"""Verification on real parts: a study of real trainings in a real SQLite file; latencies, but for one, by arithmetic."""

from __future__ import annotations

import gzip
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from explorer import latency
from explorer.arch import Arch
from explorer.errors import BackendMissing, DataError, DeviceLost, MeasureError, StoreError, UserError
from explorer.evaluate import Evaluator, Plan, live
from explorer.evaluate.live import Live
from explorer.records import Candidate, Failure, Latency, Score, StudyRecord, Target, latency_key
from explorer.space import Space
from explorer.store import Store
from explorer.training.data import describe
from explorer.training.folders import IDX_FILES
from explorer.training.recipe import RECIPES, Recipe
from explorer.verify import (
    Found,
    Progress,
    Verified,
    compare,
    evaluate_anew,
    front_of,
    kendall_tau_b,
    longer,
    plan_of,
    verify,
)

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N4
search:
  windows: {stage1: [7, 14]}
  br: [off, on]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
RECIPE = Recipe(epochs=1, batch_size=32, train_images=64, eval_images=64)
NAME = "a study"


def write_images(folder: Path) -> Path:
    """Four idx files: 112 and 8 images of 16 x 16 whose brightest corner is their class."""
    folder.mkdir()
    pixels = np.random.default_rng(0)
    for part, number in (("train", 112), ("t10k", 8)):
        labels = np.arange(number, dtype=np.uint8) % 4
        images = pixels.integers(0, 128, (number, 16, 16), np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = 8 * (label // 2), 8 * (label % 2)
            image[row : row + 8, column : column + 8] += 100
        of_part = [name for name in IDX_FILES if name.startswith(part)]
        for name, content in zip(of_part, (images, labels), strict=True):
            header = bytes([0, 0, 8, content.ndim]) + struct.pack(f">{content.ndim}I", *content.shape)
            (folder / name).write_bytes(gzip.compress(header + content.tobytes()))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def space(tmp_path: Path) -> Space:
    file = tmp_path / "small.yaml"
    file.write_text(SPACE)
    return Space.load(file)


@pytest.fixture
def plan(space: Space, images: Path, tmp_path: Path) -> Plan:
    target, _ = latency.resolve("onnxruntime", device="cpu", image_size=space.base.image_size)
    return Plan(target, space.proxy_scale, RECIPE, describe(str(images), tmp_path), seed=3)


def by_arithmetic(arch: Arch) -> float:
    return 1.0 + sum(arch.windows) / 100 - arch.br / 2


@dataclass
class Bench:
    """Latencies by arithmetic times `factor`, in this process. `why_not` may say what to raise instead of one."""

    factor: float = 1.0
    invalid: str = ""
    why_not: Callable[[Arch], Exception | None] = lambda arch: None

    def __post_init__(self) -> None:
        self.measured: list[str] = []
        self.references: list[Arch | None] = []

    def measure(self, arch: Arch, target: Target) -> Latency:
        self.measured.append(arch.id)
        if (error := self.why_not(arch)) is not None:
            raise error
        ms = by_arithmetic(arch) * self.factor
        return Latency(arch.id, target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0, invalid=self.invalid)


class OnBench(Live):
    """Trains for real."""

    def __init__(self, plan: Plan, bench: Bench, cache_root: Path) -> None:
        super().__init__(plan, cache_root=cache_root)
        self.bench = bench

    def measure(self, arch: Arch, on_detail: Callable[[str], None]) -> Latency:
        self.bench.references.append(self._reference)
        return self.bench.measure(arch, self.plan.target)


def record_of(space: Space, plan: Plan, **more: object) -> StudyRecord:
    identity = {"space": {"base": space.base.name, **space.describe()}, **plan.identity()}
    settings = {"data": plan.data.spec, "data_root": str(plan.data.root)}
    fields = {"settings": settings, "seed": plan.seed, **more}
    return StudyRecord(NAME, identity, plan.target.id, plan.recipe.id, plan.data.id, space.base.id, **fields)  # type: ignore[arg-type]


@pytest.fixture
def record(space: Space, plan: Plan, store: Store) -> StudyRecord:
    """A study of the whole space, each architecture more accurate than all faster ones, so that all are on its front."""
    found = record_of(space, plan)
    store.add_study(found, space.base, plan.target, plan.recipe.model_dump())
    for place, arch in enumerate(sorted(space.archs(), key=by_arithmetic)):
        key = plan.score_key(arch)
        score = Score(**asdict(key), accuracy=0.5 + place / 100, train_s=1.0)
        measured = Bench().measure(arch, plan.target)
        store.add_latency(arch, plan.target, measured)
        store.add_score(plan.proxy(arch), plan.recipe.model_dump(), score)
        store.add_member(NAME, Candidate(arch, "complete", measured, (score,)), key)
    return found


@pytest.fixture
def fastest_ms(space: Space) -> float:
    return min(by_arithmetic(arch) for arch in space.archs())


@pytest.fixture
def bench() -> Bench:
    """Where verifications measure: all is 10 % slower than in the study."""
    return Bench(1.1)


@pytest.fixture
def evaluator(plan: Plan, bench: Bench, tmp_path: Path) -> Evaluator:
    long = longer(plan)
    return Evaluator(long, OnBench(long, bench, tmp_path / "cache"))


# -- the order: pure --------------------------------------------------------------------------------------------------


@pytest.fixture
def three(space: Space) -> list[Found]:
    """A front in the study: slower is more accurate."""
    fast, middle, slow = list(space.archs())[:3]
    return [
        Found(fast, 0.5, 1.0, (0.6,), 1.0),
        Found(middle, 0.6, 2.0, (0.7,), 2.0),
        Found(slow, 0.7, 3.0, (0.8,), 3.0),
    ]


def test_order_that_holds_keeps_ranks_and_front(three: list[Found]) -> None:
    compared = compare(three)
    assert [one.rank for one in compared] == [one.verified_rank for one in compared] == [3, 2, 1]
    assert [one.is_on_front for one in compared] == [True] * 3
    assert [one.latency_change for one in compared] == [0.0] * 3


def test_member_that_is_beaten_leaves_and_names_the_best_that_beats_it(three: list[Found]) -> None:
    three[1] = replace(three[1], accuracies=(0.3, 0.5))
    three[0] = replace(three[0], accuracies=(0.7, 0.8))
    first, second, third = compare(three)
    assert (second.verified_accuracy, second.verified_rank, second.is_on_front) == (pytest.approx(0.4), 3, False)
    assert second.beaten_by == first.found.arch, "the slow one is better, but not as fast"
    assert second.verified_std == pytest.approx(0.1414, abs=1e-4)
    assert (first.is_on_front, third.is_on_front) == (True, True)
    assert first.verified_rank == 2


def test_sentences_name_who_left_and_who_leads_now(three: list[Found], plan: Plan) -> None:
    fast, middle, slow = (one.arch.name for one in three)
    three[0] = replace(three[0], accuracies=(0.9,))
    verified = Verified(NAME, plan.target, "r1-x", 1, 2, (0,), compare(three), "test")
    part = "verified accuracies are of the test part of the data, the study's of the held-out part"
    assert verified.sentences() == [
        f"2 of 3 left the front: {middle}, {slow} (beaten by {fast})",
        f"most accurate: {fast}, rank 3 in the study",
        "order of the accuracies, study against verified: Kendall tau-b -0.33",
        part,
    ]
    assert replace(verified, candidates=compare(three[1:])).sentences()[:2] == [
        "all 2 stay on the front",
        f"most accurate: {slow}, as in the study",
    ]
    lost = [replace(one, accuracies=(), problem="gone") for one in three]
    assert replace(verified, candidates=compare(lost[1:])).sentences() == [
        f"2 of 2 could not be verified: {middle}, {slow}"
    ]
    assert replace(verified, candidates=compare([*three[:2], lost[2]])).sentences()[:2] == [
        f"1 of 3 left the front: {middle} (beaten by {fast})",
        f"1 of 3 could not be verified: {slow}",
    ]
    assert replace(verified, candidates=compare(three[:1])).sentences() == ["the only member stays on the front", part]


def test_latency_alone_may_take_a_member_from_the_front(three: list[Found]) -> None:
    compared = compare([three[0], three[1], replace(three[2], verified_ms=1.5)])
    assert [one.is_on_front for one in compared] == [True, False, True]
    assert compared[2].latency_change == pytest.approx(-0.5)


def test_latency_that_was_not_measured_again_stays_the_studys(three: list[Found]) -> None:
    compared = compare([three[0], three[1], replace(three[2], verified_ms=None)])
    assert [one.is_on_front for one in compared] == [True] * 3
    assert compared[2].latency_change is None


def test_member_with_a_problem_has_no_place_and_beats_no_other(three: list[Found]) -> None:
    without_latency = replace(three[2], verified_ms=None, problem="latency: gone")
    untrained = replace(three[0], accuracies=(), problem="diverged")
    compared = compare([untrained, replace(three[1], accuracies=(0.1,)), without_latency])
    assert [one.is_on_front for one in compared] == [None, True, None]
    assert [one.verified_rank for one in compared] == [None, 2, 1]
    assert [one.rank for one in compared] == [3, 2, 1]


def test_equals_share_a_rank(three: list[Found]) -> None:
    compared = compare([replace(one, accuracy=0.5) for one in three[:2]] + three[2:])
    assert [one.rank for one in compared] == [2, 2, 1]


def test_tau_b_is_scipys() -> None:
    draw = random.Random(0)
    for length in range(2, 30):
        first, second = ([draw.randrange(6) for _ in range(length)] for _ in range(2))
        if len(set(first)) > 1 and len(set(second)) > 1:
            assert kendall_tau_b(first, second) == pytest.approx(kendalltau(first, second).statistic)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [2.0]), ([1.0, 2.0], [1.0, 1.0])])
def test_tau_b_of_no_order_is_none(first: list[float], second: list[float]) -> None:
    assert kendall_tau_b(first, second) is None


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_plan_of_a_kept_study_is_the_one_it_was_made_by(record: StudyRecord, plan: Plan, store: Store) -> None:
    kept = store.study(NAME)
    assert plan_of(kept, store) == replace(plan, train_device="cuda" if latency.sees_gpu() else "cpu")


def test_data_may_have_moved_but_not_changed(record: StudyRecord, plan: Plan, store: Store, images: Path) -> None:
    moved = shutil.copytree(images, images.with_name("moved"))
    assert plan_of(record, store, data=str(moved)).data == replace(plan.data, spec=str(moved))
    with pytest.raises(
        DataError, match=rf"'contours' is d1-\w+, but study 'a study' was trained on {plan.data.id}; .*--data"
    ):
        plan_of(record, store, data="contours")
    with pytest.raises(DataError, match="does not say which data it was trained on; give --data"):
        plan_of(replace(record, settings={}), store)


def test_environment_other_than_the_studys_is_refused_but_for_training(
    record: StudyRecord, space: Space, plan: Plan, store: Store
) -> None:
    other = replace(plan, target=replace(plan.target, device="Another processor", threads=99))
    elsewhere = replace(record_of(space, other), name="elsewhere")
    store.add_study(elsewhere, space.base, other.target, plan.recipe.model_dump())
    with pytest.raises(
        BackendMissing, match=r"device: 'Another processor' there, .* here; threads: 99 there, .*--no-latency"
    ):
        plan_of(elsewhere, store)
    assert plan_of(elsewhere, store, measures=False).target == other.target


def test_backend_that_is_missing_here_is_refused_with_what_to_do(
    record: StudyRecord, space: Space, plan: Plan, store: Store
) -> None:
    other = replace(plan, target=replace(plan.target, backend="gone"))
    elsewhere = replace(record_of(space, other), name="elsewhere")
    store.add_study(elsewhere, space.base, other.target, plan.recipe.model_dump())
    with pytest.raises(BackendMissing, match=r"'gone' is not in this version.*'elsewhere'.*--no-latency"):
        plan_of(elsewhere, store)


def test_study_of_a_table_has_nothing_to_do_again(space: Space, plan: Plan, store: Store) -> None:
    recorded = replace(plan, target=replace(plan.target, backend="table"), scale=None)
    found = record_of(space, recorded, settings={"table": "front.csv"})
    store.add_study(found, space.base, recorded.target, plan.recipe.model_dump())
    with pytest.raises(UserError, match=r"'a study' answers from the table front\.csv.*without --table"):
        plan_of(found, store, measures=False)


def test_recipe_that_reads_differently_today_is_refused(record: StudyRecord, plan: Plan, store: Store) -> None:
    store.add_study(
        replace(record, name="old", recipe_id="r1-old"), plan_base(store, record), plan.target, {"epochs": 9}
    )
    with pytest.raises(StoreError, match=rf"recipe r1-old, which this swinexplore reads as {Recipe(epochs=9).id}"):
        plan_of(store.study("old"), store)


def plan_base(store: Store, record: StudyRecord) -> Arch:
    return store.arch(record.base_id)


def test_longer_training_is_a_schedule_of_its_own(plan: Plan) -> None:
    assert longer(plan).recipe == RECIPE.model_copy(update={"epochs": 2})
    assert longer(plan, epochs=5).recipe == RECIPE.model_copy(update={"epochs": 5})
    assert longer(plan, recipe=RECIPES["quick"]).recipe == RECIPES["quick"]
    assert longer(plan, recipe=RECIPES["quick"], epochs=4).recipe == RECIPES["quick"].model_copy(update={"epochs": 4})
    assert longer(plan).recipe.id != plan.recipe.id
    limited = longer(replace(plan, max_latency_ms=1.0, rungs=(1,)))
    assert (limited.max_latency_ms, limited.rungs, limited.part) == (None, (), "test")


def test_score_on_the_test_part_is_another_fact(plan: Plan, space: Space) -> None:
    tested = replace(plan, part="test")
    key = tested.score_key(space.base)
    assert key == replace(plan.score_key(space.base), data_id=f"{plan.data.id}-test")
    assert tested.identity() == plan.identity()


# -- doing it ---------------------------------------------------------------------------------------------------------


def test_search_trains_where_no_test_image_is_left_and_verify_says_what_is_missing(
    record: StudyRecord, space: Space, plan: Plan, evaluator: Evaluator, store: Store, images: Path, tmp_path: Path
) -> None:
    (images / IDX_FILES[2]).unlink()
    searching = replace(plan, seed=99)
    with Evaluator(searching, OnBench(searching, Bench(), tmp_path / "cache")) as search:
        search.prepare(space.base)
        assert search.evaluate(space.base, store).outcome == "complete"
    with pytest.raises(DataError, match=IDX_FILES[2]):
        verify(record, evaluator, store)


def test_front_is_trained_longer_from_several_seeds_and_measured_again(
    record: StudyRecord, evaluator: Evaluator, store: Store, space: Space, bench: Bench
) -> None:
    before = {arch.id: store.latency(arch.id, record.target_id) for arch in space.archs()}
    verified = verify(record, evaluator, store)
    assert len(verified.candidates) == space.architectures == 4
    assert verified.seeds == (3, 4, 5)
    assert (verified.study_epochs, verified.epochs) == (1, 2)
    for one in verified.candidates:
        keys = [evaluator.plan.score_key(one.found.arch, seed=seed) for seed in (3, 4, 5)]
        scores = [store.score(key) for key in keys]
        assert one.found.accuracies == tuple(score.accuracy for score in scores if score), "trainings are facts"
        assert {key.data_id for key in keys} == {f"{record.data_id}-test"}
        assert all(8 * accuracy == int(8 * accuracy) for accuracy in one.found.accuracies), "there are 8 test images"
        assert one.latency_change == pytest.approx(0.1)
        assert not one.found.problem
    assert [one.found.arch.id for one in verified.candidates] == bench.measured, "each once, by rising latency"
    assert set(bench.references) == {space.base}
    assert {arch.id: store.latency(arch.id, record.target_id) for arch in space.archs()} == before, "the study's stay"
    kept = {v.arch_id: v for v in store.verifications(NAME)}
    for one in verified.candidates:
        row, found = kept[one.found.arch.id], one.found
        assert (row.latency_ms, row.accuracy, row.verified_ms, row.accuracies) == (
            found.latency_ms, found.accuracy, found.verified_ms, found.accuracies,
        )  # fmt: skip
    assert len(kept) == 4
    assert [c.accuracy for c in store.candidates(record)] == [one.found.accuracy for one in verified.candidates]


def test_same_verification_again_reports_what_is_kept_and_needs_not_even_data(
    record: StudyRecord, evaluator: Evaluator, store: Store, bench: Bench, images: Path, tmp_path: Path
) -> None:
    first = verify(record, evaluator, store, num_seeds=2)
    rows = store.verifications(NAME)
    shutil.rmtree(images)
    told: list[Progress] = []
    nothing = Evaluator(evaluator.plan, OnBench(evaluator.plan, bench, tmp_path / "empty"))
    assert verify(record, nothing, store, num_seeds=2, on_progress=told.append) == first
    assert len(bench.measured) == 4
    assert all(progress.is_known for progress in told)
    assert told[-1].num_done == told[-1].num_all == len(told) == 4 * 3
    assert store.verifications(NAME) == rows


def test_again_measures_anew_and_trains_nothing(
    record: StudyRecord, evaluator: Evaluator, store: Store, bench: Bench
) -> None:
    first = verify(record, evaluator, store, num_seeds=1)
    bench.factor = 2.0
    told: list[Progress] = []
    second = verify(record, evaluator, store, num_seeds=1, again=True, on_progress=told.append)
    assert [one.latency_change for one in second.candidates] == [pytest.approx(1.0)] * 4
    assert [one.found.accuracies for one in second.candidates] == [one.found.accuracies for one in first.candidates]
    assert {progress.step for progress in told if progress.kind == "step"} == {"measuring"}
    assert {v.verified_ms for v in store.verifications(NAME)} == {one.found.verified_ms for one in second.candidates}


def test_stopped_verification_goes_on_where_it_was(
    record: StudyRecord, evaluator: Evaluator, store: Store, bench: Bench
) -> None:
    trained: list[tuple[str, int | None]] = []

    def stop(progress: Progress) -> None:
        if progress.kind == "trained" and not progress.is_known:
            trained.append((progress.arch.id, progress.seed))
            if len(trained) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(record, evaluator, store, num_seeds=2, on_progress=stop)
    whole = verify(record, evaluator, store, num_seeds=2, on_progress=stop)
    assert len(bench.measured) == len(set(bench.measured)) == 4
    assert len(trained) == len(set(trained)) == 4 * 2
    assert [len(one.found.accuracies) for one in whole.candidates] == [2] * 4


def test_without_latency_nothing_is_measured_and_what_is_kept_stays(
    record: StudyRecord, evaluator: Evaluator, store: Store, bench: Bench
) -> None:
    alone = verify(record, evaluator, store, num_seeds=1, measures=False)
    assert bench.measured == []
    assert {one.found.verified_ms for one in alone.candidates} == {None}
    assert all(one.is_on_front is not None for one in alone.candidates)
    measured = verify(record, evaluator, store, num_seeds=1)
    assert verify(record, evaluator, store, num_seeds=1, measures=False) == measured
    assert len(bench.measured) == 4


def test_member_that_cannot_be_measured_is_reported_and_the_rest_goes_on(
    record: StudyRecord, evaluator: Evaluator, store: Store, bench: Bench
) -> None:
    unlucky = front_of(record, store)[1].arch
    bench.why_not = lambda arch: MeasureError("the device caught fire", "timeout") if arch == unlucky else None
    verified = verify(record, evaluator, store, num_seeds=1)
    (failed,) = verified.failed
    assert (failed.found.arch, failed.is_on_front) == (unlucky, None)
    assert failed.found.problem == "latency: timeout: the device caught fire"
    assert sum(one.is_on_front is not None for one in verified.candidates) == 3
    assert any(f"1 of 4 could not be verified: {unlucky.name}" in sentence for sentence in verified.sentences())
    bench.why_not = lambda arch: None
    assert not verify(record, evaluator, store, num_seeds=1).failed, "the next time it is measured"
    assert len(bench.measured) == 5


def test_invalid_latency_verifies_nothing(
    record: StudyRecord, evaluator: Evaluator, store: Store, bench: Bench
) -> None:
    bench.invalid = "another process had the processor"
    verified = verify(record, evaluator, store, num_seeds=1)
    assert len(verified.failed) == 4
    assert all("another process had the processor" in one.found.problem for one in verified.failed)
    assert all(len(one.found.accuracies) == 1 for one in verified.candidates), "its training counts all the same"
    assert store.verifications(NAME) == []


def test_training_that_diverges_is_a_failure_that_is_kept(
    record: StudyRecord, plan: Plan, store: Store, bench: Bench, tmp_path: Path, fastest_ms: float
) -> None:
    wild = longer(plan, recipe=RECIPE.model_copy(update={"lr": 1e30}))
    verified = verify(record, Evaluator(wild, OnBench(wild, bench, tmp_path)), store, max_latency_ms=fastest_ms)
    (failed,) = verified.failed
    assert len(verified.candidates) == 1
    assert failed.found.problem.startswith("training, seed 3: diverged: ")
    assert failed.found.accuracies == ()
    assert store.failure(str(wild.score_key(failed.found.arch, seed=3))) is not None
    assert {c.outcome for c in store.candidates(record)} == {"complete"}, "the study's own training is another"


def test_study_without_a_front_has_nothing_to_verify(record: StudyRecord, evaluator: Evaluator, store: Store) -> None:
    with pytest.raises(UserError, match=r"'a study' has no front of at most 0\.1 ms.*--max-latency"):
        verify(record, evaluator, store, max_latency_ms=0.1)
    empty = replace(record, name="empty")
    store.add_study(empty, plan_base(store, record), evaluator.plan.target, {})
    with pytest.raises(UserError, match=r"'empty' has no front: .*run `swinexplore search`"):
        verify(empty, evaluator, store)


def test_latency_is_really_measured(
    record: StudyRecord, plan: Plan, store: Store, tmp_path: Path, fastest_ms: float
) -> None:
    """The one verification whose latency is no arithmetic."""
    with Evaluator(longer(plan), cache_root=tmp_path / "cache") as evaluator:
        (one,) = verify(record, evaluator, store, num_seeds=1, max_latency_ms=fastest_ms).candidates
    assert one.found.latency_ms == pytest.approx(by_arithmetic(one.found.arch))
    if "invalid" not in one.found.problem:  # as it may be on a busy machine
        assert one.found.verified_ms is not None
        assert one.found.verified_ms > 0
        assert one.found.verified_ms != one.found.latency_ms


# -- one architecture anew --------------------------------------------------------------------------------------------


@pytest.fixture
def on_bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """In place of the measuring process of `evaluate_anew`."""
    found = Bench()

    class InThisProcess:
        def __init__(self, target: Target, **settings: object) -> None:
            self.target = target

        def measure(self, arch: Arch) -> Latency:
            return found.measure(arch, self.target)

        def close(self) -> None:
            pass

    monkeypatch.setattr(live, "Measurer", InThisProcess)
    return found


def facts(store: Store) -> list[object]:
    record = store.study(NAME)
    return [store.candidates(record), store.failures(), store.verifications(NAME), store.measured(record.target_id)]


def test_architecture_is_evaluated_anew_and_nothing_is_kept(
    record: StudyRecord, plan: Plan, store: Store, space: Space, on_bench: Bench
) -> None:
    before = facts(store)
    on_bench.factor = 3.0
    candidate = evaluate_anew(space.base, record, plan, store)
    assert candidate.outcome == "complete"
    assert candidate.latency_ms == pytest.approx(3 * by_arithmetic(space.base))
    assert candidate.scores[0].seed == plan.seed
    assert candidate.spent_epochs == plan.recipe.epochs
    assert facts(store) == before


def test_known_failure_is_seen_again_whatever_is_kept_of_it(
    record: StudyRecord, plan: Plan, store: Store, space: Space, on_bench: Bench
) -> None:
    key = latency_key(space.base.id, plan.target.id)
    store.add_failure(space.base, Failure(space.base.id, key, "build", "as kept"))
    on_bench.why_not = lambda arch: MeasureError("as seen again")
    failure = evaluate_anew(space.base, record, plan, store).failure
    assert failure is not None
    assert (failure.kind, failure.message, failure.step) == ("measure", "as seen again", "measuring")
    kept = store.failure(key)
    assert kept is not None
    assert kept.message == "as kept"


def test_success_that_is_kept_ends_the_failure(
    record: StudyRecord, plan: Plan, store: Store, space: Space, on_bench: Bench
) -> None:
    arch = replace(space.base, depths=(1, 1, 1, 1)).canonical()
    store.add_failure(arch, Failure(arch.id, latency_key(arch.id, plan.target.id), "timeout", "too slow"))
    evaluate_anew(arch, record, plan, store)
    assert len(store.failures()) == 1
    candidate = evaluate_anew(arch, record, plan, store, keep=True)
    assert store.failures() == []
    assert store.latency(arch.id, plan.target.id) == candidate.latency
    assert store.score(plan.score_key(arch)) == candidate.scores[0]
    assert arch.id not in {member.arch.id for member in store.candidates(record)}


def test_failure_that_is_kept_counts_as_one_more_attempt(
    record: StudyRecord, plan: Plan, store: Store, space: Space, on_bench: Bench
) -> None:
    arch = replace(space.base, depths=(1, 1, 1, 1)).canonical()
    on_bench.why_not = lambda arch: MeasureError("again", "timeout")
    for attempts in (1, 2):
        evaluate_anew(arch, record, plan, store, keep=True)
        kept = store.failure(latency_key(arch.id, plan.target.id))
        assert kept is not None
        assert (kept.kind, kept.attempts) == ("timeout", attempts)


def test_error_that_no_one_foresaw_is_a_crash(
    record: StudyRecord, plan: Plan, store: Store, space: Space, on_bench: Bench
) -> None:
    on_bench.why_not = lambda arch: RuntimeError("the ceiling came down")
    failure = evaluate_anew(space.base, record, plan, store).failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("crash", "the ceiling came down")


@pytest.mark.parametrize("measures", [False, True])
def test_training_that_takes_the_gpu_with_it_is_a_failure_to_look_at(
    record: StudyRecord, plan: Plan, store: Store, space: Space, on_bench: Bench, monkeypatch: pytest.MonkeyPatch,
    measures: bool,
) -> None:  # fmt: skip
    def break_down(*_: object) -> None:
        raise DeviceLost("the GPU broke under a training: an illegal access")

    monkeypatch.setattr(Live, "train", break_down)
    failure = evaluate_anew(space.base, record, plan, store, measures=measures).failure
    assert failure is not None
    assert (failure.kind, failure.key) == ("crash", str(plan.score_key(space.base)))
    assert "illegal access" in failure.message


def test_training_alone_measures_nothing(
    record: StudyRecord, plan: Plan, store: Store, space: Space, on_bench: Bench
) -> None:
    candidate = evaluate_anew(space.base, record, plan, store, measures=False)
    assert on_bench.measured == []
    assert (candidate.latency, candidate.outcome) == (None, "complete")
    assert candidate.spent_s >= candidate.scores[0].train_s > 0
    wild = replace(plan, recipe=RECIPE.model_copy(update={"lr": 1e30}))
    failure = evaluate_anew(space.base, record, wild, store, measures=False).failure
    assert failure is not None
    assert (failure.kind, failure.key) == ("diverged", str(wild.score_key(space.base)))
    assert failure.arch_id == space.base.id
