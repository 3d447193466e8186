"""The search on real parts: a small space, real trainings, a real SQLite file; measurements, where the search's own rules
are tested, by arithmetic.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning

from explorer import latency, search
from explorer.arch import Arch
from explorer.complexity import complexity_of
from explorer.errors import DataError, MeasureError, ParityError, RecipeError, StoreError, TrainError, UserError
from explorer.evaluate import Evaluator, Plan, live
from explorer.evaluate.workers import Done, Event, Here, Job
from explorer.records import DEADLINE_S, MAX_ATTEMPTS, Candidate, Epoch, Failure, Latency, Score, ScoreKey, Target
from explorer.search import Progress
from explorer.search.fronts import StudyFront
from explorer.search.pace import Pace
from explorer.search.sampling import SAMPLERS, distributions
from explorer.search.trials import Trials, opened
from explorer.space import Space
from explorer.store import Store
from explorer.store.merge import merge
from explorer.training.data import describe
from explorer.training.recipe import Recipe

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14], stage2: [7, 14]}
  br: [off, on]
  depth3: [1, 2]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
RECIPE = Recipe(epochs=1, batch_size=32, train_images=64, eval_images=64)


@pytest.fixture
def space(tmp_path: Path) -> Space:
    file = tmp_path / "small.yaml"
    file.write_text(SPACE)
    return Space.load(file)


@pytest.fixture
def plan(space: Space, tmp_path: Path) -> Plan:
    target, _ = latency.resolve("onnxruntime", image_size=space.base.image_size)
    few = replace(describe("contours", tmp_path), num_train=160, num_test=16)
    return Plan(target, space.proxy_scale, RECIPE, few)


def by_arithmetic(arch: Arch) -> float:
    return 1.0 + arch.depth3 + sum(arch.windows) / 100 - arch.br / 2


@dataclass
class Bench:
    """Where every measurer of a test measures: by arithmetic, in this process. `why_not` may say what to raise instead."""

    measured: list[str] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)
    num_closed: int = 0
    why_not: Callable[[Arch], Exception | None] = lambda arch: None

    def __call__(self, target: Target, **settings: Any) -> BenchMeasurer:
        self.opened.append(settings)
        return BenchMeasurer(self, target)


class BenchMeasurer:
    """In place of `live.Measurer`, which would start a process."""

    def __init__(self, bench: Bench, target: Target) -> None:
        self.bench, self.target = bench, target
        self.on_event: Callable[[str], None] = lambda text: None

    def measure(self, arch: Arch) -> Latency:
        self.bench.measured.append(arch.id)
        self.on_event("timing")
        if (error := self.bench.why_not(arch)) is not None:
            raise error
        ms = by_arithmetic(arch)
        return Latency(arch.id, self.target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0)

    def close(self) -> None:
        self.bench.num_closed += 1


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench()
    monkeypatch.setattr(live, "Measurer", found)
    return found


@pytest.fixture
def fast_measurement(bench: Bench) -> list[str]:
    """The ids in the order they were measured, by arithmetic."""
    return bench.measured


@pytest.fixture
def real(plan: Plan, tmp_path: Path) -> Iterator[Evaluator]:
    """Measures in a worker."""
    with Evaluator(plan, cache_root=tmp_path / "cache") as evaluator:
        yield evaluator


def optuna_trials(store: Store, name: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=store.url).trials


def test_study_holds_as_many_different_architectures_as_asked(
    space: Space, plan: Plan, store: Store, real: Evaluator
) -> None:
    """The one whole search that really measures: base, candidates beside it, training, front."""
    record = search.run(space, real, store, trials=3)
    candidates = store.candidates(record)
    assert len({candidate.arch.id for candidate in candidates}) == 3
    assert [candidate.outcome for candidate in candidates] == ["complete"] * 3
    assert candidates[0].arch == space.base
    assert all(
        c.latency_ms and c.latency_ms > 0 and c.accuracy is not None and 0 <= c.accuracy <= 1 for c in candidates
    )
    measured = [candidate.latency for candidate in candidates if candidate.latency is not None]
    assert {one.reference_id for one in measured} == {space.base.id}, "each is timed beside the base"
    assert measured[0].ratio == 1.0
    assert all(one.ratio for one in measured)
    if not measured[0].invalid:  # as it may be on a busy machine
        assert all(one.reference_drift is not None for one in measured[1:]), "counted from the base's own latency"
    assert all(one.environment["versions"]["onnxruntime"] == plan.target.backend_version for one in measured)
    may_stand = {candidate.arch.id for candidate in candidates if candidate.may_stand_on_front}
    for front in store.fronts(record.name)[-1:]:
        assert set(front.arch_ids) <= may_stand
        assert 0 <= front.hypervolume < 1


def test_optuna_sees_one_complete_trial_per_architecture_with_named_objectives(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    record = search.run(space, Evaluator(plan), store, trials=5)
    study = optuna.load_study(study_name=record.name, storage=store.url)
    assert study.metric_names == ["accuracy", "latency_ms"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5
    by_id = {candidate.arch.id: candidate for candidate in store.candidates(record)}
    for trial in study.trials:
        candidate = by_id[trial.user_attrs["arch_id"]]
        assert trial.values == [candidate.accuracy, candidate.latency_ms]
        assert space.arch(trial.params) == candidate.arch


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_space_that_is_used_up_ends_the_search_and_says_so(
    sampler: str, space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    events: list[Progress] = []
    record = search.run(space, Evaluator(plan), store, trials=1000, sampler=sampler, on_progress=events.append)
    assert len(store.candidates(record)) == space.architectures == len(set(fast_measurement)) == len(fast_measurement)
    assert events[-1].kind == "end"
    assert "every architecture" in events[-1].message


def test_same_command_again_does_nothing_again(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    first = search.run(space, Evaluator(plan), store, trials=4)
    again = search.run(space, Evaluator(plan), store, trials=4)
    assert first.name == again.name
    assert len(fast_measurement) == 4
    more = search.run(space, Evaluator(plan), store, trials=6, sampler="random")
    assert more.name == first.name
    assert len(fast_measurement) == len(set(fast_measurement)) == len(store.candidates(more)) == 6


def test_second_study_reuses_the_facts_of_the_first(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(plan), store, trials=6, study="one")
    trained: list[str] = []
    two = search.run(
        space,
        Evaluator(plan),
        store,
        trials=6,
        study="two",
        on_progress=lambda p: trained.append(p.arch.id) if p.kind == "step" and p.arch else None,
    )
    assert trained == []
    assert len(store.candidates(two)) == 6


def test_candidate_over_the_latency_limit_is_not_trained(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    trained: set[str] = set()

    def watch(progress: Progress) -> None:
        if progress.step == "training" and progress.arch:
            trained.add(progress.arch.id)

    record = search.run(
        space, Evaluator(replace(plan, max_latency_ms=2.5)), store, trials=space.architectures, on_progress=watch
    )
    candidates = store.candidates(record)
    gated = {c.arch.id for c in candidates if c.outcome == "gated"}
    assert gated == {c.arch.id for c in candidates if c.latency_ms and c.latency_ms > 2.5}
    assert gated
    assert not gated & trained
    constraints = {t.user_attrs["arch_id"]: t.constraints for t in optuna_trials(store, record.name)}
    assert all(constraints[arch_id]["latency"] > 0 for arch_id in gated)


def test_raised_latency_limit_trains_what_was_gated(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(replace(plan, max_latency_ms=2.5)), store, trials=6)
    record = search.run(space, Evaluator(plan), store, trials=6)
    candidates = store.candidates(record)
    assert [candidate.outcome for candidate in candidates] == ["complete"] * 6
    assert len(fast_measurement) == 6


def test_failing_architecture_is_kept_with_its_reason_and_the_study_goes_on(
    space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    bench.why_not = lambda arch: MeasureError(f"{arch.name}: the device caught fire") if arch.br else None
    record = search.run(space, Evaluator(plan), store, trials=space.architectures)
    candidates = store.candidates(record)
    failed = [candidate for candidate in candidates if candidate.outcome == "failed"]
    assert {candidate.arch.br for candidate in failed} == {True}
    assert len(failed) == sum(arch.br for arch in space.archs())
    assert all(c.failure and "caught fire" in c.failure.message and c.failure.kind == "measure" for c in failed)
    trials = optuna_trials(store, record.name)
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert sum(trial.constraints.get("failed", 0) > 0 for trial in trials) == len(failed)
    search.run(space, Evaluator(plan), store, trials=space.architectures, study="another")
    assert len(bench.measured) == space.architectures, "a failure that will happen again is not tried again"


@pytest.mark.parametrize("kind", ["timeout", "crash", "out_of_memory"])
def test_what_may_be_the_machines_fault_is_tried_again_at_the_end(
    kind: str, space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    bench.why_not = lambda arch: MeasureError("it is gone", kind) if len(bench.measured) == 2 else None
    outcomes: list[tuple[str, str]] = []

    def watch(progress: Progress) -> None:
        if progress.candidate is not None:
            outcomes.append((progress.candidate.arch.id, progress.candidate.outcome))

    record = search.run(space, Evaluator(plan), store, trials=4, on_progress=watch)
    assert [outcome for _, outcome in outcomes] == ["complete", "failed", "complete", "complete", "complete"]
    assert outcomes[1][0] == outcomes[-1][0]
    assert [candidate.outcome for candidate in store.candidates(record)] == ["complete"] * 4
    assert store.failures() == [], "the latency that is there now ends the failure"
    assert len(bench.opened) == 1, "the measurer is kept: it starts another worker by itself"
    assert [trial.state.name for trial in optuna_trials(store, record.name)] == ["COMPLETE"] * 4


@pytest.mark.parametrize("kind", ["timeout", "crash", "out_of_memory"])
def test_what_fails_every_time_is_given_up_after_three_attempts_over_all_commands(
    kind: str, space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    bench.why_not = lambda arch: MeasureError("it is gone", kind) if arch == space.base else None

    def interrupt(progress: Progress) -> None:
        if progress.candidate is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(space, Evaluator(plan), store, trials=3, on_progress=interrupt)
    assert bench.measured == [space.base.id]
    record = search.run(space, Evaluator(plan), store, trials=3)
    assert bench.measured.count(space.base.id) == MAX_ATTEMPTS
    candidates = store.candidates(record)
    assert [candidate.outcome for candidate in candidates] == ["failed", "complete", "complete"]
    failure = candidates[0].failure
    assert failure is not None
    assert (failure.kind, failure.message, failure.attempts) == (kind, "it is gone", MAX_ATTEMPTS)
    assert space.base.id not in store.fronts(record.name)[-1].arch_ids
    bench.why_not = lambda arch: None
    search.run(space, Evaluator(plan), store, trials=3)
    assert bench.measured.count(space.base.id) == MAX_ATTEMPTS, "not again by itself"
    store.forget_failures([failure.key])
    search.run(space, Evaluator(plan), store, trials=3)
    assert [candidate.outcome for candidate in store.candidates(record)] == ["complete"] * 3


def in_work(store: Store) -> dict[str, str]:
    """Keys of the scores that are noted as being trained for, by member."""
    with store.database.reading() as connection:
        rows = connection.exec_driver_sql("SELECT arch_id, in_work FROM members WHERE in_work != ''")
        return {row.arch_id: row.in_work for row in rows}


def test_interrupted_training_counts_as_no_death_and_one_that_was_kept_neither(
    space: Space, plan: Plan, store: Store, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(plan, recipe=RECIPE.model_copy(update={"epochs": 2}))
    steps: list[tuple[str | None, dict[str, str]]] = []
    seen: list[dict[str, str]] = []

    def interrupt(progress: Progress) -> None:
        if progress.kind == "step":
            steps.append((progress.step, in_work(store)))
        if progress.kind == "epoch":
            seen.append(in_work(store))
            raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            search.run(space, Evaluator(two), store, trials=2, on_progress=interrupt)
        assert in_work(store) == {}
    noted = {space.base.id: str(two.score_key(space.base))}
    assert seen == [noted] * 4
    assert steps == [("measuring", {}), *[("training", noted)] * 4]
    assert store.failures() == []

    monkeypatch.setattr(live, "KEEP_EVERY_S", 0.0)
    after: dict[int, dict[str, str]] = {}

    def watch(progress: Progress) -> None:
        if progress.epoch is not None and progress.num_done == 0:
            after[progress.epoch.epoch] = in_work(store)

    record = search.run(space, Evaluator(two), store, trials=2, on_progress=watch)
    assert after == {1: {}, 2: {}}, "from its state it goes on: no death after that is for nothing"
    assert [candidate.outcome for candidate in store.candidates(record)] == ["complete"] * 2


def test_training_with_workers_is_noted_nowhere(space: Space, plan: Plan, store: Store, bench: Bench) -> None:
    class Watched(Here):
        capacity = 2

        def submit(self, job: Job) -> None:
            if self._job is not None:
                self.waiting.append(job)
            else:
                super().submit(job)

        waiting: list[Job] = []

        def wait(self, on_event: Callable[[Arch, Event], None], timeout_s: float | None = None) -> Done | None:
            if self._job is None and self.waiting:
                self._job = self.waiting.pop(0)
            return super().wait(on_event, timeout_s)

    seen: list[dict[str, str]] = []

    def watch(progress: Progress) -> None:
        if progress.kind == "epoch":
            seen.append(in_work(store))

    search.run(space, Evaluator(plan), store, trials=2, runner=Watched(Evaluator(plan), store), on_progress=watch)
    assert seen == [{}] * 2


def test_death_counts_for_the_score_that_is_missing_alone(space: Space, plan: Plan, store: Store, bench: Bench) -> None:
    record = search.run(space, Evaluator(plan), store, trials=2)
    trained = store.candidates(record)[0].arch
    untrained = next(arch for arch in space.archs() if arch.id not in bench.measured)
    key = plan.score_key(untrained)
    store.add_member(record.name, Candidate(untrained, "pending"), key)
    for number in (1, 2):
        store.set_in_work(record.name, trained.id, plan.score_key(trained))
        store.set_in_work(record.name, untrained.id, key)
        (failure,) = store.count_deaths(record.name, "it died", "today")
        assert (failure.key, failure.kind, failure.attempts) == (str(key), "crash", number)
        assert store.count_deaths(record.name, "it died", "today") == [], "once"
    search.run(space, Evaluator(plan), store, trials=3)
    assert store.failures() == [], "it was trained after that"
    assert {c.arch.id: c.outcome for c in store.candidates(record)}[untrained.id] == "complete"


def children_of(pid: int) -> set[int]:
    """Living processes whose parent is `pid`."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == pid and state != "Z":
                found.add(int(entry.name))
    return found


def test_measurement_whose_worker_is_killed_is_done_again(space: Space, store: Store, real: Evaluator) -> None:
    before = children_of(os.getpid())
    killed: list[str] = []

    def kill(progress: Progress) -> None:
        if progress.kind == "detail" and progress.num_done == 1 and not killed and progress.arch:
            (worker,) = children_of(os.getpid()) - before
            os.kill(worker, signal.SIGKILL)
            killed.append(progress.arch.id)

    seen: list[Failure] = []

    def watch(progress: Progress) -> None:
        kill(progress)
        if progress.candidate is not None and progress.candidate.failure is not None:
            seen.append(progress.candidate.failure)

    record = search.run(space, real, store, trials=3, on_progress=watch)
    assert [failure.arch_id for failure in seen] == killed
    assert seen[0].kind == "out_of_memory"
    assert "the measuring process was killed" in seen[0].message
    candidates = store.candidates(record)
    assert candidates[1].arch.id == killed[0]
    assert [candidate.outcome for candidate in candidates] == ["complete"] * 3, "it was tried again"
    valid = {candidate.arch.id for candidate in candidates if candidate.latency and not candidate.latency.invalid}
    trials = optuna_trials(store, record.name)
    assert {trial.user_attrs["arch_id"] for trial in trials} == valid, (
        "an invalid latency, as on a busy machine, has none"
    )
    assert {trial.state.name for trial in trials} <= {"COMPLETE"}
    real.close()
    assert children_of(os.getpid()) == before, "no worker is left"


def test_deadline_of_a_measurement_is_a_failure_of_its_architecture(
    space: Space, plan: Plan, store: Store, tmp_path: Path
) -> None:
    """Shorter than the start of a worker, so that it is always passed."""
    with Evaluator(plan, cache_root=tmp_path / "cache", deadline_s=0.05) as evaluator:
        record = search.run(space, evaluator, store, trials=2)
    failures = [candidate.failure for candidate in store.candidates(record)]
    assert [(f.kind, f.attempts) if f else None for f in failures] == [("timeout", MAX_ATTEMPTS)] * 2
    assert not store.fronts(record.name)


# -- the measurer -----------------------------------------------------------------------------------------------------


def test_one_measurer_serves_a_search_and_is_told_what_was_asked(
    space: Space, plan: Plan, store: Store, bench: Bench, tmp_path: Path
) -> None:
    with Evaluator(replace(plan, seed=3), rebuilds=4, deadline_s=30.0, cache_root=tmp_path) as evaluator:
        search.run(space, evaluator, store, trials=5)
        assert (len(bench.opened), bench.num_closed) == (1, 0)
    assert bench.num_closed == 1
    told = {"reference": space.base, "baseline_ms": None, "seed": 3, "rebuilds": 4, "deadline_s": 30.0}
    assert bench.opened == [{**told, "cache_root": tmp_path}]


def test_measurer_counts_drift_from_the_base_models_own_latency(
    space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    for trials in (2, 3):
        with Evaluator(plan) as evaluator:
            search.run(space, evaluator, store, trials=trials)
    assert [settings["baseline_ms"] for settings in bench.opened] == [None, by_arithmetic(space.base)]
    assert [settings["deadline_s"] for settings in bench.opened] == [DEADLINE_S] * 2


def test_search_that_knows_all_opens_no_measurer(space: Space, plan: Plan, store: Store, bench: Bench) -> None:
    for _ in range(2):
        with Evaluator(plan) as evaluator:
            search.run(space, evaluator, store, trials=3)
    assert (len(bench.opened), bench.num_closed) == (1, 1)


def test_measurer_is_closed_when_a_search_breaks_off(space: Space, plan: Plan, store: Store, bench: Bench) -> None:
    bench.why_not = lambda arch: ParityError("the graph is wrong")
    with pytest.raises(ParityError), Evaluator(plan) as evaluator:
        search.run(space, evaluator, store, trials=3)
    assert bench.num_closed == 1


def test_what_a_measurement_is_doing_is_told_with_its_architecture(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    events: list[Progress] = []
    search.run(space, Evaluator(plan), store, trials=2, on_progress=events.append)
    details = [event for event in events if event.kind == "detail"]
    assert [event.arch.id for event in details if event.arch] == fast_measurement
    assert {(event.step, event.message) for event in details} == {("measuring", "timing")}


def test_training_that_diverges_is_a_result_not_a_crash(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    wild = replace(plan, recipe=RECIPE.model_copy(update={"lr": 1e30, "warmup": 0.0, "epochs": 2}))
    record = search.run(space, Evaluator(wild), store, trials=2)
    candidates = store.candidates(record)
    assert [c.outcome for c in candidates] == ["failed"] * 2
    failures = [c.failure for c in candidates if c.failure]
    assert [(failure.kind, failure.diverged_at) for failure in failures] == [("diverged", 2)] * 2
    assert all("at step 2 (epoch 1, seed" in failure.message for failure in failures)
    assert all(c.latency_ms for c in candidates)


def test_interrupted_architecture_is_taken_up_first(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    in_work: list[str] = []

    def interrupt(progress: Progress) -> None:
        if progress.step == "training" and progress.num_done == 3 and progress.arch:
            in_work.append(progress.arch.id)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.run(space, Evaluator(plan), store, trials=6, on_progress=interrupt)
    record = store.study()
    assert [candidate.outcome for candidate in store.candidates(record)] == [*["complete"] * 3, "pending"]
    assert [trial.state.name for trial in optuna_trials(store, record.name)] == ["COMPLETE"] * 3
    search.run(space, Evaluator(plan), store, trials=6)
    candidates = store.candidates(record)
    assert candidates[3].arch.id == in_work[0]
    assert len(candidates) == 6
    assert len(fast_measurement) == len(set(fast_measurement)), "a latency measured before the interrupt is kept"


def test_trial_that_an_earlier_version_left_running_is_closed_and_its_architecture_taken_up(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    record = search.run(space, Evaluator(plan), store, trials=2)
    unseen = next(arch for arch in space.archs() if arch.id not in fast_measurement)
    template = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING,
        params=space.point(unseen),
        distributions=distributions(space),
        user_attrs={"arch_id": unseen.id},
    )
    with opened(store) as storage:
        storage.create_new_trial(storage.get_study_id_from_name(record.name), template_trial=template)
    search.run(space, Evaluator(plan), store, trials=3)
    assert [trial.state.name for trial in optuna_trials(store, record.name)] == ["COMPLETE"] * 2 + ["FAIL", "COMPLETE"]
    assert store.candidates(record)[2].arch == unseen


def test_bug_of_ours_stops_the_study_and_keeps_what_was_finished(
    space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    record = search.run(space, Evaluator(plan), store, trials=2)
    bench.why_not = lambda arch: ParityError("the graph is wrong")
    with pytest.raises(ParityError):
        search.run(space, Evaluator(plan), store, trials=4)
    assert [candidate.outcome for candidate in store.candidates(record)] == ["complete", "complete", "pending"]
    assert [trial.state.name for trial in optuna_trials(store, record.name)] == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("search.depth3", "depth3: [1, 2]|depth3: [2]"), ("proxy.embed_dim", "embed_dim: 8|embed_dim: 16")],
)
def test_study_of_another_space_is_refused_by_name(
    field: str, value: str, space: Space, plan: Plan, store: Store, tmp_path: Path, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(plan), store, trials=2, study="mine")
    before, after = value.split("|")
    (tmp_path / "other.yaml").write_text(SPACE.replace(before, after))
    other = Space.load(tmp_path / "other.yaml")
    with pytest.raises(StoreError, match=rf"'mine' was made with another setting: .*{field.split('.')[1]}"):
        search.run(other, Evaluator(replace(plan, scale=other.proxy_scale)), store, trials=3, study="mine")
    assert len(store.candidates(store.study("mine"))) == 2


def test_budget_and_sampler_are_not_part_of_a_study(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    first = search.run(space, Evaluator(plan), store, trials=2)
    later = replace(plan, max_latency_ms=100.0)
    assert search.run(space, Evaluator(later), store, trials=3, sampler="nsgaii").name == first.name


def test_another_seed_is_another_study(space: Space, plan: Plan, store: Store, fast_measurement: list[str]) -> None:
    search.run(space, Evaluator(plan), store, trials=2)
    with pytest.raises(StoreError, match="was made with seed 0, not 7; give --seed 0, or another --study"):
        search.run(space, Evaluator(replace(plan, seed=7)), store, trials=2)
    other = search.run(space, Evaluator(replace(plan, seed=7)), store, trials=2, study="seven")
    assert {score.seed for c in store.candidates(other) for score in c.scores} == {7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": 0}, "trials: 0"),
        ({"trials": 3, "sampler": "best"}, "sampler: 'best'.*tpe, nsgaii, nsgaiii, gp, qmc, random, brute"),
        ({"trials": 3, "study": " "}, "study: ' '"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    arguments: dict[str, object], message: str, space: Space, plan: Plan, store: Store
) -> None:
    with pytest.raises(UserError, match=message):
        search.run(space, Evaluator(plan), store, **arguments)  # type: ignore[arg-type]
    assert store.studies() == []


def test_bad_data_is_refused_before_anything_is_written(space: Space, plan: Plan, store: Store, tmp_path: Path) -> None:
    gone = replace(plan, data=replace(plan.data, spec=str(tmp_path / "gone")))
    with pytest.raises((DataError, FileNotFoundError)):
        search.run(space, Evaluator(gone), store, trials=3)
    assert store.studies() == []


def test_deleting_a_study_keeps_the_facts(space: Space, plan: Plan, store: Store, fast_measurement: list[str]) -> None:
    record = search.run(space, Evaluator(plan), store, trials=3)
    search.delete(store, record.name)
    assert store.studies() == []
    assert record.name not in optuna.get_all_study_names(store.url)
    with sqlite3.connect(store.url.removeprefix("sqlite:///")) as connection:
        assert connection.execute("SELECT count(*) FROM latencies").fetchone() == (3,)
        assert connection.execute("SELECT count(*) FROM members").fetchone() == (0,)
    search.run(space, Evaluator(plan), store, trials=3)
    assert len(fast_measurement) == 3
    with pytest.raises(StoreError, match="'gone' is not in this database"):
        search.delete(store, "gone")


def test_base_outside_the_space_is_measured_but_no_trial(
    tmp_path: Path, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    file = tmp_path / "without-base.yaml"
    file.write_text(SPACE.replace("depth3: [1, 2]", "depth3: [3]"))
    space = Space.load(file)
    record = search.run(space, Evaluator(plan), store, trials=2)
    assert fast_measurement[0] == space.base.id
    assert space.base.id not in {candidate.arch.id for candidate in store.candidates(record)}
    assert store.latency(space.base.id, plan.target.id) is not None


def test_second_search_of_one_study_at_a_time_is_refused(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    refusals: list[str] = []

    def intrude(progress: Progress) -> None:
        if progress.kind == "trial" and not refusals:
            with pytest.raises(StoreError, match="is being searched by another process") as refusal:
                search.run(space, Evaluator(plan), store, trials=3)
            refusals.append(str(refusal.value))

    search.run(space, Evaluator(plan), store, trials=3, on_progress=intrude)
    assert len(refusals) == 1
    assert len(store.candidates(store.study())) == 3


def test_optuna_study_of_another_program_is_left_alone(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    optuna.create_study(study_name="theirs", storage=store.url, direction="minimize")
    with pytest.raises(StoreError, match="'theirs' is another program's Optuna study"):
        search.run(space, Evaluator(plan), store, trials=2, study="theirs")
    assert store.studies() == []


@pytest.mark.parametrize("state", ["running", "waiting", "none"])
def test_optuna_study_of_another_program_that_has_finished_nothing_is_left_alone(
    state: str, space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    theirs = optuna.create_study(study_name="theirs", storage=store.url, directions=["maximize", "minimize"])
    if state == "running":
        theirs.ask({"x": FloatDistribution(0, 1)})
    elif state == "waiting":
        theirs.enqueue_trial({"x": 0.5})
    with pytest.raises(StoreError, match="'theirs' is another program's Optuna study"):
        search.run(space, Evaluator(plan), store, trials=2, study="theirs")
    assert store.studies() == []
    assert theirs.metric_names is None
    assert [trial.state.name.lower() for trial in theirs.trials] == [state] * (state != "none")


@pytest.mark.parametrize("looks", ["single", "two", "named"])
def test_optuna_study_of_another_program_survives_one_of_ours_that_got_its_name(
    looks: str,
    space: Space,
    plan: Plan,
    store: Store,
    tmp_path: Path,
    fast_measurement: list[str],
) -> None:
    """However much it looks like one of ours: it has a trial of something else."""
    other = Store.open(str(tmp_path / "other.db"), create=True)
    search.run(space, Evaluator(plan), other, trials=2, study="theirs")
    other.close()
    directions = ["minimize"] if looks == "single" else ["maximize", "minimize"]
    theirs = optuna.create_study(study_name="theirs", storage=store.url, directions=directions)
    if looks == "named":
        with pytest.warns(ExperimentalWarning):
            theirs.set_metric_names(["accuracy", "latency_ms"])
    theirs.tell(theirs.ask({"x": FloatDistribution(0, 1)}), [0.5] * len(theirs.directions))
    merge(store, str(tmp_path / "other.db"))
    with pytest.raises(StoreError, match="'theirs' is another program's Optuna study"):
        search.run(space, Evaluator(plan), store, trials=3, study="theirs")
    search.delete(store, "theirs")
    assert [len(trial.params) for trial in optuna_trials(store, "theirs")] == [1]
    assert store.studies() == []


def test_order_of_choices_in_the_file_is_not_part_of_a_study(
    space: Space, plan: Plan, store: Store, tmp_path: Path, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(plan), store, trials=2, study="mine")
    (tmp_path / "other.yaml").write_text(SPACE.replace("[off, on]", "[on, off]").replace("[1, 2]", "[2, 1]"))
    other = Space.load(tmp_path / "other.yaml")
    search.run(other, Evaluator(plan), store, trials=4, study="mine")
    assert len(store.candidates(store.study("mine"))) == 4


def test_batch_larger_than_the_data_is_refused_before_anything_is_written(
    space: Space, plan: Plan, store: Store
) -> None:
    large = replace(plan, recipe=RECIPE.model_copy(update={"batch_size": 65}))
    with pytest.raises(RecipeError, match="batch_size: 65 is more than the 64 training images; use at most 64"):
        search.run(space, Evaluator(large), store, trials=2)
    assert store.studies() == []


def test_killed_between_our_tables_and_optunas_the_trial_is_added_by_the_next_start(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Trials.add

    def die(trials: Trials, candidate: Candidate) -> None:
        if candidate.arch.id == fast_measurement[1]:
            raise KeyboardInterrupt
        add(trials, candidate)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trials, "add", lambda trials, c: die(trials, c) if len(fast_measurement) > 1 else add(trials, c))
        search.run(space, Evaluator(plan), store, trials=4)
    record = store.study()
    assert len(optuna_trials(store, record.name)) == 1
    search.run(space, Evaluator(plan), store, trials=4)
    told = {trial.user_attrs["arch_id"]: trial.values for trial in optuna_trials(store, record.name)}
    assert told == {c.arch.id: [c.accuracy, c.latency_ms] for c in store.candidates(record)}
    assert len(optuna_trials(store, record.name)) == 4


def test_memory_that_runs_out_fails_the_architecture_not_the_study(
    space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    ran_out = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    bench.why_not = lambda arch: RuntimeError(ran_out) if arch.br else None
    record = search.run(space, Evaluator(plan), store, trials=space.architectures)
    kinds = {c.arch.br: c.failure.kind if c.failure else None for c in store.candidates(record)}
    assert kinds == {False: None, True: "out_of_memory"}
    assert all(c.failure.attempts == MAX_ATTEMPTS for c in store.candidates(record) if c.failure)


@pytest.mark.parametrize(
    ("field_name", "value"),
    [("precision", "fp16"), ("batch", 4), ("backend_version", "0.1"), ("threads", 64), ("device", "Another CPU")],
)
def test_study_of_another_environment_is_refused_by_what_differs(
    field_name: str, value: Any, space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(plan), store, trials=2, study="mine")
    other = replace(plan, target=replace(plan.target, **{field_name: value}))
    here = getattr(plan.target, field_name)
    with pytest.raises(StoreError) as refusal:
        search.run(space, Evaluator(other), store, trials=3, study="mine")
    assert f"target.{field_name}: {here!r} there, {value!r} here" in str(refusal.value)
    assert len(fast_measurement) == 2
    assert len(store.candidates(store.study("mine"))) == 2


# -- budgets, seeds, limits, the ladder -------------------------------------------------------------------------------


def test_search_stops_when_its_epochs_are_trained_and_goes_on_with_more(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    events: list[Progress] = []
    longer = replace(plan, recipe=RECIPE.model_copy(update={"epochs": 2}))
    record = search.run(space, Evaluator(longer), store, trials=8, epochs_budget=5, on_progress=events.append)
    assert [c.spent_epochs for c in store.candidates(record)] == [2, 2, 2], "what has begun is finished"
    assert "6 epochs trained, the budget was 5" in events[-1].message
    search.run(space, Evaluator(longer), store, trials=8, epochs_budget=5)
    assert len(store.candidates(record)) == 3
    search.run(space, Evaluator(longer), store, trials=8, epochs_budget=10)
    assert len(store.candidates(record)) == 5


def test_search_stops_by_the_hour_before_it_begins_what_it_cannot_finish(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    events: list[Progress] = []
    record = search.run(space, Evaluator(plan), store, trials=8, max_hours=1e-9, on_progress=events.append)
    assert store.candidates(record) == []
    assert "stopped after" in events[-1].message
    search.run(space, Evaluator(plan), store, trials=2, max_hours=10.0)
    assert len(store.candidates(record)) == 2


class TwoAtOnce(Here):
    """Takes two jobs, and evaluates them one after another in this process."""

    capacity = 2

    def __init__(self, evaluator: Evaluator, store: Store) -> None:
        super().__init__(evaluator, store)
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, on_event: Callable[[Arch, Event], None], timeout_s: float | None = None) -> Done | None:
        if self._job is None and self.jobs:
            super().submit(self.jobs.pop(0))
        return super().wait(on_event, timeout_s)


def test_what_does_not_fit_the_hours_is_not_passed_over_for_what_does(
    tmp_path: Path, plan: Plan, store: Store, fast_measurement: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "seeded.yaml"
    file.write_text(f"{SPACE}seeds: [Swin-E16x2.2.1.2-R56-P1-N10-BR]\n")
    space = Space.load(file)
    long = space.seeds[0].id
    monkeypatch.setattr(Pace, "seconds_of", lambda pace, job, known: 7200.0 if job.arch.id == long else 0.0)
    events: list[Progress] = []
    with Evaluator(plan) as evaluator:
        evaluator.prepare(space.base)
        run = partial(search.run, space, evaluator, store, trials=8, on_progress=events.append)
        record = run(runner=TwoAtOnce(evaluator, store), max_hours=1.0)
        assert [candidate.arch.id for candidate in store.candidates(record)] == [space.base.id]
        assert "the next step would take about 2 h" in events[-1].message
        run(runner=TwoAtOnce(evaluator, store), max_hours=3.0)
    found = [candidate.arch.id for candidate in store.candidates(record)]
    assert (found[:2], len(found)) == ([space.base.id, long], 8)


def test_architecture_whose_proxy_another_has_trained_costs_no_training(
    tmp_path: Path, plan: Plan, store: Store, fast_measurement: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "twins.yaml"
    text = SPACE.replace("x2.2.2.2", "x2.2.4.2").replace("[1, 2]", "[3, 4]")
    text = text.replace("patch_size: 2}", "patch_size: 2, depth3_divisor: 2}")
    file.write_text(f"{text}seeds: [Swin-E16x2.2.3.2-R56-P1-N10]\n")
    space = Space.load(file)
    twin, plan = space.seeds[0], replace(plan, scale=space.proxy_scale)
    assert plan.proxy(twin).id == plan.proxy(space.base).id
    is_training = lambda job: job.arch.id == twin.id and job.epochs != 0  # noqa: E731
    monkeypatch.setattr(Pace, "seconds_of", lambda pace, job, known: 7200.0 if is_training(job) else 0.0)
    with Evaluator(plan) as evaluator:
        evaluator.prepare(space.base)
        runner = TwoAtOnce(evaluator, store)
        record = search.run(space, evaluator, store, trials=2, runner=runner, max_hours=1.0)
    assert [candidate.arch.id for candidate in store.candidates(record)] == [space.base.id, twin.id]


def test_time_of_a_training_that_failed_is_not_taken_for_a_latency_s(space: Space, plan: Plan) -> None:
    arch = space.base
    latency = Latency(arch.id, plan.target.id, 1.0, 1.0, 1.0, 0.0, 3, (1.0,) * 3, True, 0.0, 0.0)
    pace = Pace(plan, 2.0, 3.0)
    pace.learn(
        Candidate(arch, "failed", latency, spent_epochs=1, failure=Failure(arch.id, "k", "diverged", "no")), 600.0
    )
    assert pace.seconds_of(Job(arch, None, (0,)), None) == 2.0 + 3.0
    assert pace.seconds_each == 600.0


def test_stored_hypervolume_follows_more_seeds(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    record = search.run(space, Evaluator(plan), store, trials=1)
    before = store.fronts(record.name)[-1]
    search.run(space, Evaluator(plan), store, trials=1, seeds=3)
    (candidate,), after = store.candidates(record), store.fronts(record.name)[-1]
    assert (after.arch_ids, after.reference_ms) == (before.arch_ids, before.reference_ms)
    assert after.hypervolume == pytest.approx((candidate.accuracy or 0.0) / 2) != before.hypervolume


def failing_second_seed(plan: Plan, failing: Arch, kind: str, times: int = 1) -> Evaluator:
    """Trains, but one network's proxy from the second seed ends so the first times."""
    evaluator, left = Evaluator(plan), [times]
    train = evaluator.steps.train

    def train_or_fail(arch: Arch, key: ScoreKey, on_epoch: Callable[[Epoch], None] | None) -> Score:
        if key.seed == 1 and plan.proxy(arch) == plan.proxy(failing) and left[0]:
            left[0] -= 1
            raise TrainError("it is gone", kind)
        return train(arch, key, on_epoch)

    evaluator.steps.train = train_or_fail  # type: ignore[method-assign]
    return evaluator


@pytest.mark.parametrize("is_grown", [True, False])
def test_further_seed_that_the_machine_failed_is_trained_again_at_the_end(
    is_grown: bool, space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    if is_grown:
        search.run(space, Evaluator(plan), store, trials=3)
    record = search.run(space, failing_second_seed(plan, space.base, "out_of_memory"), store, trials=3, seeds=2)
    assert [len(candidate.scores) for candidate in store.candidates(record)] == [2] * 3
    assert store.failures() == []


def test_further_seed_that_was_given_up_is_trained_once_its_failure_is_forgotten(
    space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    def run(times: int) -> list[int]:
        evaluator = failing_second_seed(plan, space.base, "crash", times)
        record = search.run(space, evaluator, store, trials=3, seeds=2)
        return [len(candidate.scores) for candidate in store.candidates(record)]

    search.run(space, Evaluator(plan), store, trials=3)
    assert run(MAX_ATTEMPTS) == [1, 2, 2]
    assert run(0) == [1, 2, 2], "given up"
    ((arch, failure),) = store.failures()
    assert (arch, failure.attempts) == (space.base, MAX_ATTEMPTS)
    store.forget_failures([failure.key])
    assert run(0) == [2] * 3


@pytest.mark.parametrize("is_grown", [True, False])
def test_candidate_that_diverges_from_a_further_seed_has_diverged(
    is_grown: bool, space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    if is_grown:
        search.run(space, Evaluator(plan), store, trials=3)
    for _ in range(2):
        record = search.run(space, failing_second_seed(plan, space.base, "diverged"), store, trials=3, seeds=2)
        candidates = store.candidates(record)
        assert [candidate.outcome for candidate in candidates] == ["failed", "complete", "complete"]
        assert [failure.kind for _, failure in store.failures(record.name)] == ["diverged"]
        assert space.base.id not in store.fronts(record.name)[-1].arch_ids


def test_front_is_empty_when_the_only_one_on_it_diverges(space: Space, plan: Plan, store: Store, bench: Bench) -> None:
    record = search.run(space, Evaluator(plan), store, trials=1)
    before = store.fronts(record.name)[-1]
    search.run(space, failing_second_seed(plan, space.base, "diverged"), store, trials=1, seeds=2)
    after = store.fronts(record.name)[-1]
    assert (before.arch_ids, after.arch_ids) == ((space.base.id,), ())
    assert (after.hypervolume, after.reference_ms) == (0.0, before.reference_ms)


def test_front_that_changes_beyond_the_reference_has_not_moved(
    space: Space, plan: Plan, store: Store, bench: Bench
) -> None:
    record = search.run(space, Evaluator(plan), store, trials=1)
    front, volumes = StudyFront(store, record), []
    (base,) = store.candidates(record)
    assert base.latency is not None
    for done, (ms, accuracy) in enumerate([(1.0, 0.1), (3.0, 0.9), (1e6, 0.99)], 2):
        arch = list(space.archs())[done]
        latency = replace(base.latency, arch_id=arch.id, latency_ms=ms)
        score = replace(base.scores[0], arch_id=arch.id, accuracy=accuracy)
        front.add(Candidate(arch, "complete", latency, (score,)), done)
        volumes.append((len(front.ids), front.hypervolume, front.moved_at))
    assert [ids for ids, _, _ in volumes] == [1, 2, 3]
    assert volumes[1][1] == volumes[2][1]
    assert volumes[2][2] == 3
    assert StudyFront(store, record).moved_at == 3


def test_patience_ends_a_search_whose_front_stands_still(space: Space, plan: Plan, store: Store, bench: Bench) -> None:
    bench.why_not = lambda arch: None if arch == space.base else MeasureError("no")
    events: list[Progress] = []
    record = search.run(space, Evaluator(plan), store, trials=16, patience=3, on_progress=events.append)
    assert len(store.candidates(record)) == 1 + 3
    assert "has not moved for 3 architectures" in events[-1].message


@pytest.mark.parametrize(
    "arguments", [{"epochs_budget": 0}, {"patience": 0}, {"max_hours": 0.0}, {"max_hours": float("nan")}, {"seeds": 0}]
)
def test_bad_budgets_are_refused(arguments: dict[str, Any], space: Space, plan: Plan, store: Store) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        search.run(space, Evaluator(plan), store, trials=2, **arguments)
    assert store.studies() == []


def test_every_candidate_has_its_seeds_and_a_study_gets_more_by_the_same_command(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(plan), store, trials=2)
    record = search.run(space, Evaluator(plan), store, trials=3, seeds=3)
    candidates = store.candidates(record)
    assert [[score.seed for score in c.scores] for c in candidates] == [[0, 1, 2]] * 3
    for candidate in candidates:
        accuracies = [score.accuracy for score in candidate.scores]
        assert candidate.accuracy == pytest.approx(sum(accuracies) / 3)
        assert candidate.accuracy_std == pytest.approx(statistics.stdev(accuracies))
        assert candidate.spent_epochs == 3
    assert len(fast_measurement) == 3, "more seeds need no other latency"


def test_what_exceeds_a_limit_of_the_space_is_never_asked_for(
    tmp_path: Path, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    counts = sorted(
        {complexity_of(arch).params_trainable / 1e6 for arch in Space.load(tmp_path / "small.yaml").archs()}
    )
    limit = counts[len(counts) // 2]
    file = tmp_path / "limited.yaml"
    file.write_text(f"{SPACE}limits: {{params_m: {limit}}}\n")
    space = Space.load(file)
    record = search.run(space, Evaluator(plan), store, trials=100)
    found = store.candidates(record)
    assert 0 < len(found) == space.architectures < 16
    assert all(complexity_of(candidate.arch).params_trainable / 1e6 <= limit for candidate in found)


def test_memory_limit_is_on_weights_and_activations_in_fp32(tmp_path: Path, space: Space) -> None:
    def memory_mib(arch: Arch) -> float:
        counts = complexity_of(arch)
        return (4 * counts.params_deployed + counts.activation_bytes) / 2**20

    limit = sorted(map(memory_mib, space.archs()))[7]
    file = tmp_path / "limited.yaml"
    file.write_text(f"{SPACE}limits: {{memory_mib: {limit}}}\n")
    limited = Space.load(file)
    assert {a.id for a in space.archs() if limited.holds(a)} == {a.id for a in space.archs() if memory_mib(a) <= limit}
    assert 0 < limited.architectures < 16


def test_start_says_how_many_facts_of_other_studies_are_used(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(plan), store, trials=3, study="one")
    events: list[Progress] = []
    search.run(space, Evaluator(plan), store, trials=5, study="two", on_progress=events.append)
    assert events[0].message == "in the store already, and used: 3 latencies and 3 trainings of this space"


def test_wider_space_and_other_target_use_the_facts_that_apply(
    tmp_path: Path, space: Space, plan: Plan, store: Store, fast_measurement: list[str]
) -> None:
    search.run(space, Evaluator(plan), store, trials=3, study="one")
    file = tmp_path / "wider.yaml"
    file.write_text(SPACE.replace("depth3: [1, 2]", "depth3: [1, 2, 3]"))
    events: list[Progress] = []
    search.run(Space.load(file), Evaluator(plan), store, trials=4, study="wider", on_progress=events.append)
    assert events[0].message == "in the store already, and used: 3 latencies and 3 trainings of this space"
    other = replace(plan, target=replace(plan.target, batch=8))
    search.run(space, Evaluator(other), store, trials=4, study="other", on_progress=events.append)
    start = [event for event in events if event.kind == "start"][-1]
    assert re.fullmatch(r"in the store already, and used: 0 latencies and [34] trainings of this space", start.message)


def test_ladder_trains_a_share_to_the_end_and_the_rest_may_go_on_later(
    space: Space, plan: Plan, store: Store, fast_measurement: list[str], tmp_path: Path
) -> None:
    climbing = replace(plan, recipe=RECIPE.model_copy(update={"epochs": 4}), rungs=(1, 2, 4))
    trained: list[tuple[str, int]] = []

    def watch(progress: Progress) -> None:
        if progress.kind == "epoch" and progress.arch is not None and progress.epoch is not None:
            trained.append((progress.arch.id, progress.epoch.epoch))

    evaluator = Evaluator(climbing, cache_root=tmp_path / "cache")
    record = search.run(space, evaluator, store, trials=12, eta=2.0, on_progress=watch)
    candidates = store.candidates(record)
    assert {candidate.outcome for candidate in candidates} == {"complete", "stopped"}
    assert len(trained) == len(set(trained)), "a training goes on from where it stopped"
    assert sum(candidate.spent_epochs for candidate in candidates) == len(trained) < 12 * 4
    assert candidates[0].outcome == "complete", "the base model is trained fully"
    stopped = [candidate for candidate in candidates if candidate.outcome == "stopped"]
    assert all(candidate.epochs in (1, 2) for candidate in stopped)
    assert not {c.arch.id for c in stopped} & set(store.fronts(record.name)[-1].arch_ids)
    states = {trial.user_attrs["arch_id"]: trial.state.name for trial in optuna_trials(store, record.name)}
    assert {arch_id for arch_id, state in states.items() if state == "PRUNED"} == {c.arch.id for c in stopped}
    assert len(states) == 12

    whole = replace(climbing, rungs=())
    search.run(space, Evaluator(whole, cache_root=tmp_path / "cache"), store, trials=12, on_progress=watch)
    assert [candidate.outcome for candidate in store.candidates(record)] == ["complete"] * 12
    assert len(trained) == len(set(trained)) == 12 * 4, "without a ladder what was stopped goes on to the end"
    (score,) = next(c.scores for c in store.candidates(record) if c.arch.id == stopped[0].arch.id)
    fresh = Store.open(str(tmp_path / "fresh.db"), create=True)
    undisturbed = Evaluator(whole, cache_root=tmp_path / "elsewhere")
    undisturbed.prepare(space.base)
    assert undisturbed.score(stopped[0].arch, fresh)[0].accuracy == score.accuracy, "as if it had never stopped"
    fresh.close()
