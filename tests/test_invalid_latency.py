"""A latency measured under conditions that make it invalid: kept, told and measured again, but on no front."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from explorer import latency, search
from explorer.arch import Arch
from explorer.cli import app
from explorer.errors import MeasureError
from explorer.evaluate import Evaluator, Plan, live
from explorer.records import Latency, Target
from explorer.search import Progress
from explorer.space import Space
from explorer.store import Store
from explorer.training import trainer
from explorer.training.data import describe
from explorer.training.recipe import Recipe

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14]}
  br: [off, on]
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""
RECIPE = Recipe(epochs=1, batch_size=32, train_images=64, eval_images=64)
CROWDED = "other processes kept 2.0 CPUs busy"


def by_arithmetic(arch: Arch) -> float:
    return 1.0 + sum(arch.windows) / 100 - arch.br / 2


@dataclass
class Machine:
    """Where every measurer of a test measures: by arithmetic, a thousandth of it while it is disturbed."""

    is_disturbed: Callable[[Arch], bool] = lambda arch: True
    is_broken: bool = False
    measured: list[str] = field(default_factory=list)
    opened: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, target: Target, **settings: Any) -> MachineMeasurer:
        self.opened.append(settings)
        return MachineMeasurer(self, target)


class MachineMeasurer:
    """In place of `live.Measurer`, which would start a process."""

    def __init__(self, machine: Machine, target: Target) -> None:
        self.machine, self.target = machine, target
        self.on_event: Callable[[str], None] = lambda text: None

    def measure(self, arch: Arch) -> Latency:
        self.machine.measured.append(arch.id)
        if self.machine.is_broken:
            raise MeasureError("it fell off the bus")
        is_disturbed = self.machine.is_disturbed(arch)
        ms = by_arithmetic(arch) / (1000 if is_disturbed else 1)
        found = Latency(arch.id, self.target.id, ms, ms, ms, 0.0, 3, (ms,) * 3, True, 0.0, 0.0)
        return replace(found, invalid=CROWDED if is_disturbed else "")

    def close(self) -> None:
        pass


def trained(module: Any, *arguments: Any, **options: Any) -> trainer.Outcome:
    """In place of training: larger windows are more accurate, BatchNorm costs a little."""
    arch: Arch = module.arch
    return trainer.Outcome(0.5 + sum(arch.windows) / 100 - arch.br / 100, 0.1, ())


@pytest.fixture(autouse=True)
def machine() -> Iterator[Machine]:
    found = Machine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "Measurer", found)
        patch.setattr(trainer, "train", trained)
        yield found


@pytest.fixture
def space(tmp_path: Path) -> Space:
    (tmp_path / "small.yaml").write_text(SPACE)
    return Space.load(tmp_path / "small.yaml")


@pytest.fixture
def plan(space: Space, tmp_path: Path) -> Plan:
    target, _ = latency.resolve("onnxruntime", image_size=space.base.image_size)
    few = replace(describe("contours", tmp_path), num_train=160, num_test=16)
    return Plan(target, space.proxy_scale, RECIPE, few)


def last_event(space: Space, plan: Plan, store: Store, trials: int = 4, **options: Any) -> Progress:
    """The end of one search; every call is a command of its own."""
    events: list[Progress] = []
    with Evaluator(plan) as evaluator:
        search.run(space, evaluator, store, trials=trials, on_progress=events.append, **options)
    assert events[-1].kind == "end"
    return events[-1]


# -- the search -------------------------------------------------------------------------------------------------------


def test_candidate_with_an_invalid_latency_is_trained_and_complete_but_on_no_front(
    space: Space, plan: Plan, store: Store, machine: Machine
) -> None:
    machine.is_disturbed = lambda arch: arch.br
    end = last_event(space, plan, store)
    candidates = store.candidates(store.study())
    assert [candidate.outcome for candidate in candidates] == ["complete"] * 4
    invalid = {candidate.arch.id for candidate in candidates if candidate.latency and candidate.latency.invalid}
    assert invalid == {candidate.arch.id for candidate in candidates if candidate.arch.br}
    assert all(candidate.scores for candidate in candidates)
    for front in store.fronts(end.study):
        assert not invalid & set(front.arch_ids)
        assert front.reference_ms == 2 * by_arithmetic(space.base)
    assert not invalid & set(end.front)
    assert end.best_latency_ms == min(by_arithmetic(c.arch) for c in candidates if not c.arch.br)


def test_hypervolume_is_that_of_the_valid_candidates(space: Space, plan: Plan, store: Store, machine: Machine) -> None:
    """Each invalid latency is a thousand times better than it is: it would show."""
    machine.is_disturbed = lambda arch: arch.br
    end = last_event(space, plan, store)
    valid = [candidate for candidate in store.candidates(store.study()) if not candidate.arch.br]
    fast, slow = sorted(((c.accuracy or 0.0, c.latency_ms or 0.0) for c in valid), key=lambda point: point[1])
    front = store.fronts(end.study)[-1]
    assert set(front.arch_ids) == {candidate.arch.id for candidate in valid}
    limit = front.reference_ms
    area = fast[0] * (slow[1] - fast[1]) + slow[0] * (limit - slow[1])
    assert front.hypervolume == pytest.approx(area / limit)


def test_search_where_every_latency_is_invalid_has_no_front(
    space: Space, plan: Plan, store: Store, machine: Machine
) -> None:
    end = last_event(space, plan, store)
    assert (end.front, end.best_accuracy, end.best_latency_ms) == ((), None, None)
    assert store.fronts(end.study) == []
    assert len(store.candidates(store.study())) == 4


def test_invalid_latency_stops_no_training(space: Space, plan: Plan, store: Store, machine: Machine) -> None:
    """It may be over the limit for the very reason that makes it invalid."""
    last_event(space, replace(plan, max_latency_ms=1e-9), store)
    assert [candidate.outcome for candidate in store.candidates(store.study())] == ["complete"] * 4
    machine.is_disturbed = lambda arch: False
    last_event(space, replace(plan, max_latency_ms=1.0), store)
    outcomes = {candidate.arch.br: candidate.outcome for candidate in store.candidates(store.study())}
    assert outcomes == {True: "complete", False: "gated"}


def test_same_command_measures_what_is_invalid_again_and_nothing_else(
    space: Space, plan: Plan, store: Store, machine: Machine
) -> None:
    machine.is_disturbed = lambda arch: arch.br
    last_event(space, plan, store)
    first = [candidate.arch.id for candidate in store.candidates(store.study())]
    disturbed = [candidate.arch.id for candidate in store.candidates(store.study()) if candidate.arch.br]
    machine.measured.clear()
    machine.is_disturbed = lambda arch: False
    steps: list[str | None] = []
    with Evaluator(plan) as evaluator:
        record = search.run(
            space, evaluator, store, trials=4, on_progress=lambda p: steps.append(p.step) if p.kind == "step" else None
        )
    assert machine.measured == disturbed
    assert steps == ["measuring"] * len(disturbed), "nothing is trained again"
    candidates = store.candidates(record)
    assert [candidate.arch.id for candidate in candidates] == first, "in its old place"
    assert all(candidate.may_stand_on_front for candidate in candidates)
    assert set(store.fronts(record.name)[-1].arch_ids) & set(disturbed), "they are the fastest"
    machine.measured.clear()
    last_event(space, plan, store)
    assert machine.measured == []


def test_what_stays_invalid_is_measured_again_each_time(
    space: Space, plan: Plan, store: Store, machine: Machine
) -> None:
    for times in (1, 2, 3):
        end = last_event(space, plan, store)
        assert len(machine.measured) == 4 * times
        assert "invalid and not on the front: 4 latencies" in end.message
    assert CROWDED in end.message
    assert "the same command measures them again" in end.message
    machine.is_disturbed = lambda arch: False
    assert "invalid" not in last_event(space, plan, store).message


def test_more_trials_come_after_what_is_measured_again(
    space: Space, plan: Plan, store: Store, machine: Machine
) -> None:
    last_event(space, plan, store, trials=2)
    before = list(machine.measured)
    last_event(space, plan, store, trials=3)
    assert machine.measured[2:4] == before
    assert len(machine.measured) == 5


def test_another_study_does_not_reuse_an_invalid_latency(
    space: Space, plan: Plan, store: Store, machine: Machine
) -> None:
    last_event(space, plan, store, study="one")
    machine.is_disturbed = lambda arch: False
    last_event(space, plan, store, study="two")
    assert len(machine.measured) == 8
    assert all(candidate.may_stand_on_front for candidate in store.candidates(store.study("one"))), "a fact of both"


def test_drift_is_not_counted_from_an_invalid_base(space: Space, plan: Plan, store: Store, machine: Machine) -> None:
    last_event(space, plan, store)
    machine.is_disturbed = lambda arch: arch.br
    last_event(space, plan, store)
    last_event(space, plan, store)
    assert [settings["baseline_ms"] for settings in machine.opened] == [None, None, by_arithmetic(space.base)]


def test_front_is_not_counted_up_to_an_invalid_base(space: Space, plan: Plan, store: Store, machine: Machine) -> None:
    """The base's invalid latency, a thousandth, would leave no volume."""
    machine.is_disturbed = lambda arch: arch.id == space.base.id
    end = last_event(space, plan, store)
    assert store.fronts(end.study)
    assert all(front.hypervolume > 0 for front in store.fronts(end.study))


def test_base_outside_the_space_is_measured_again_too(
    tmp_path: Path, plan: Plan, store: Store, machine: Machine
) -> None:
    (tmp_path / "other.yaml").write_text(SPACE.replace("br: [off, on]", "depth3: [1]"))
    space = Space.load(tmp_path / "other.yaml")
    machine.is_disturbed = lambda arch: arch.id == space.base.id
    for _ in range(2):
        last_event(space, plan, store, trials=2)
    assert machine.measured.count(space.base.id) == 2
    assert len(machine.measured) == 4


def test_failure_of_the_second_measurement_is_final(space: Space, plan: Plan, store: Store, machine: Machine) -> None:
    last_event(space, plan, store, trials=1)
    machine.is_broken = True
    last_event(space, plan, store, trials=1)
    (candidate,) = store.candidates(store.study())
    assert candidate.outcome == "failed"
    assert candidate.failure is not None
    events: list[Progress] = []
    with Evaluator(plan) as evaluator:
        search.run(space, evaluator, store, trials=1, on_progress=events.append)
    assert len(machine.measured) == 2
    assert [event.kind for event in events] == ["start", "end"], "a known failure is not taken up again"


# -- the commands -----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


SEARCH = ("search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--trials", "4")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with a study whose networks with BatchNorm were disturbed, and what its search printed."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "small.yaml").write_text(SPACE)
    (folder / "recipe.yaml").write_text("epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 64\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(live, "Measurer", Machine(lambda arch: arch.br))
        patch.setattr(trainer, "train", trained)
        return folder, run(*SEARCH)


@pytest.fixture
def study(searched: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Path:
    """A copy of it, as working folder."""
    work = tmp_path / "work"
    shutil.copytree(searched[0], work)
    monkeypatch.chdir(work)
    machine.is_disturbed = lambda arch: arch.br
    return work


def test_search_marks_what_is_invalid_and_says_so_in_the_end(searched: tuple[Path, Result]) -> None:
    search_of_all = searched[1]
    assert search_of_all.exit_code == 0, search_of_all.output
    lines = [line for line in search_of_all.stderr.splitlines() if line.startswith("[") and "accuracy" in line]
    assert len(lines) == 4
    assert [" ms (invalid)" in line for line in lines] == ["-BR-" in line for line in lines]
    (done,) = (line for line in search_of_all.stderr.splitlines() if "done: study" in line)
    assert f"invalid and not on the front: 2 latencies (the last: {CROWDED})" in done
    assert "4 latencies: 0 unstable, 2 invalid" in search_of_all.stdout
    assert "-BR-" not in search_of_all.stdout


def test_events_of_a_search_tell_it_to_programs(study: Path) -> None:
    events = [json.loads(line) for line in run(*SEARCH, "--json").stdout.splitlines()]
    trials = [event["candidate"] for event in events if event["event"] == "trial"]
    assert [(row["br"], row["outcome"], row["invalid"]) for row in trials] == [(True, "complete", CROWDED)] * 2
    assert "not on the front: 2 latencies" in events[-1]["message"]
    assert not {row["arch_id"] for row in trials} & set(events[-1]["front"])


def test_pareto_leaves_it_out_and_tells(study: Path) -> None:
    result = run("pareto", "--json")
    found = json.loads(result.stdout)
    assert [(row["br"], row["invalid"]) for row in found["left_out"]] == [(True, CROWDED)] * 2
    assert found["front"]
    assert {(row["br"], row["invalid"]) for row in found["front"]} == {(False, "")}
    counts = {key: found["measuring"][key] for key in ("latencies", "unstable", "invalid", "rebuilt")}
    assert counts == {"latencies": 4, "unstable": 0, "invalid": 2, "rebuilt": 0}
    told = [line for line in result.stderr.splitlines() if line.startswith("not on the front: ")]
    assert told == [f"not on the front: {row['name']}: its latency is invalid: {CROWDED}" for row in found["left_out"]]
    assert run("--quiet", "pareto", "--json").stderr == ""


@pytest.mark.parametrize("output", ["table", "csv", "md"])
def test_no_form_of_the_front_holds_it(output: str, study: Path) -> None:
    result = run("pareto", "--format", output)
    assert result.exit_code == 0
    assert "-BR-" not in result.stdout
    assert "R56" in result.stdout
    assert ("4 latencies: 0 unstable, 2 invalid" in result.stdout) is (output == "table")


def test_limit_changes_nothing_of_what_is_left_out(study: Path) -> None:
    found = json.loads(run("pareto", "--json", "--max-latency", "1000").stdout)
    assert len(found["left_out"]) == 2
    assert {row["br"] for row in found["front"]} == {False}


def test_it_is_shown_with_its_mark_among_all_architectures(study: Path) -> None:
    shown = json.loads(run("studies", "show", "--json").stdout)
    assert sorted(row["invalid"] for row in shown["candidates"]) == ["", "", CROWDED, CROWDED]
    assert shown["outcomes"] == {"complete": 4}
    assert shown["measuring"]["invalid"] == 2
    text = run("studies", "show").stdout
    assert "4 latencies: 0 unstable, 2 invalid" in text
    assert len([line for line in text.splitlines() if "0.00!" in line]) == 2


@pytest.mark.parametrize("is_base", [False, True])
def test_it_is_plotted_nowhere(is_base: bool, study: Path, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    if is_base:
        with sqlite3.connect(study / "studies" / "explorer.db") as connection:
            connection.execute(
                "UPDATE latencies SET invalid = ?, latency_ms = 0.001 WHERE arch_id = ?", (CROWDED, space.base.id)
            )
        connection.close()
    drawn: list[float] = []
    for name in ("scatter", "plot"):
        draw = getattr(Axes, name)
        monkeypatch.setattr(
            Axes, name, lambda self, x, *rest, _draw=draw, **style: (drawn.extend(x), _draw(self, x, *rest, **style))[1]
        )
    assert run("pareto", "--plot", "front.png").exit_code == 0
    assert min(drawn) >= 1.0, "invalid ones are a thousandth"
    assert run("pareto", "--plot", "front.html").exit_code == 0
    page = (study / "front.html").read_text()
    assert "-BR-R56" not in page
    assert ("Swin-E16x2.2.2.2-R56-P1-N10" in page) is not is_base


def test_valid_measurement_puts_it_on_the_front(study: Path, machine: Machine) -> None:
    machine.is_disturbed = lambda arch: False
    assert run(*SEARCH).exit_code == 0
    found = json.loads(run("pareto", "--json").stdout)
    assert found["left_out"] == []
    assert any(row["br"] for row in found["front"])
    assert found["measuring"]["invalid"] == 0
