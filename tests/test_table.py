"""Recorded tables: what is read, what is refused with its place, and a study that is written and read again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from explorer.arch import Arch
from explorer.errors import TableError
from explorer.evaluate import Evaluator, Plan
from explorer.evaluate.table import (
    Table,
    TableSteps,
    read_table,
    table_data,
    table_recipe,
    table_target,
    write_table,
)
from explorer.records import Candidate, Epoch, Score, ScoreKey
from explorer.space import Space
from explorer.store import Store

SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search:
  windows: {stage1: [7, 14]}
  shifts: {stage4: [off, on]}
  depth3: [1, 2]
"""
HEADER = "windows,shifts,br,depth3,accuracy,latency_ms"
#: The space's four networks; the second line is not in canonical form: one window covers stage 4.
ROWS = (
    "7-7-7-7,1-1-1-0,0,1,0.5,1.5",
    "14-7-7-7,1-1-1-1,0,1,0.625,2.5",
    "7-7-7-7,1-1-1-0,0,2,0.75,3",
    "14-7-7-7,1-1-1-0,0,2,0.875,3.25",
)


@pytest.fixture
def space(tmp_path: Path) -> Space:
    file = tmp_path / "small.yaml"
    file.write_text(SPACE)
    return Space.load(file)


@pytest.fixture
def read(tmp_path: Path, space: Space) -> Callable[..., Table]:
    def read_lines(*lines: str, header: str = HEADER) -> Table:
        file = tmp_path / "table.csv"
        file.write_text("\n".join([header, *lines]))
        return read_table(file, space)

    return read_lines


def by_epochs(rows: tuple[str, ...] = ROWS, epochs: tuple[int, ...] = (1, 3)) -> list[str]:
    """Every row once per number of epochs, with accuracies that rise."""
    lines = []
    for row in rows:
        *choices, accuracy, latency_ms = row.split(",")
        lines += [",".join([*choices, str(float(accuracy) * n / 10), latency_ms, str(n)]) for n in epochs]
    return lines


# -- what is read -----------------------------------------------------------------------------------------------------


def test_every_network_of_the_space_is_read_in_any_spelling(read: Callable[..., Table], space: Space) -> None:
    table = read(*ROWS)
    archs = {(arch.windows[0], arch.depth3): arch.id for arch in space.archs()}
    assert table.latency_ms == {archs[7, 1]: 1.5, archs[14, 1]: 2.5, archs[7, 2]: 3.0, archs[14, 2]: 3.25}
    assert table.accuracy[archs[14, 1], 1] == 0.625
    assert (table.name, table.epochs, table.num_outside) == ("table.csv", (1,), 0)


def test_epochs_give_one_accuracy_each(read: Callable[..., Table], space: Space) -> None:
    table = read(*by_epochs(), header=f"{HEADER},epochs")
    assert table.epochs == (1, 3)
    assert len(table.accuracy) == 8
    assert table.accuracy[next(space.archs()).id, 3] == pytest.approx(0.15)
    assert table_recipe(table).epochs == 3


def test_digest_is_over_the_values_and_not_their_order_or_spelling(read: Callable[..., Table]) -> None:
    digest = read(*ROWS).digest
    outside = "7-7-7-7,1-1-1-0,1,1,0.5,1.5"
    assert read(*ROWS[::-1], "", outside).digest == digest
    assert read(*(row.replace("14-7-7-7,1-1-1-1", "14-7-7-9,1-1-1-0") for row in ROWS)).digest == digest
    assert read(*ROWS[1:], ROWS[0].replace("1.5", "1.25")).digest != digest


def test_rows_outside_the_space_are_counted(read: Callable[..., Table]) -> None:
    assert read(*ROWS, "7-7-7-7,1-1-1-0,1,1,0.5,1.5", "7-7-7-7,0-0-0-0,0,1,0.5,1.5").num_outside == 2


def test_further_columns_blanks_and_equal_rows_do_not_matter(read: Callable[..., Table]) -> None:
    plain = read(*ROWS)
    padded = [f"anything, {row.replace(',', ' , ')}," for row in (*ROWS, ROWS[0])]
    assert read(*padded, header=f"name,{HEADER},invalid").accuracy == plain.accuracy


def test_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_first_column(tmp_path: Path, space: Space) -> None:
    (tmp_path / "t.csv").write_text("\n".join([HEADER, *ROWS]), encoding="utf-8-sig")
    assert len(read_table(tmp_path / "t.csv", space).latency_ms) == 4


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7-7-7,1-1-1-0,0,1,0.5,1.5", "line 3: windows: '7-7-7' is not 4 whole numbers"),
        ("7-7-7-x,1-1-1-0,0,1,0.5,1.5", "line 3: windows: '7-7-7-x'"),
        ("0-7-7-7,1-1-1-0,0,1,0.5,1.5", "line 3: windows: '0-7-7-7' is no architecture"),
        ("7-7-7-7,1-1-1-2,0,1,0.5,1.5", "line 3: shifts: '1-1-1-2' is not made of 0"),
        ("7-7-7-7,1-1-1-0,yes,1,0.5,1.5", "line 3: br: 'yes'"),
        ("7-7-7-7,1-1-1-0,0,0,0.5,1.5", "line 3: depth3: '0' is no architecture"),
        ("7-7-7-7,1-1-1-0,0,1,nan,1.5", "line 3: accuracy: 'nan' is not a number"),
        ("7-7-7-7,1-1-1-0,0,1,0_5,1.5", "line 3: accuracy: '0_5' is not a number"),
        ("7-7-7-7,1-1-1-0,0,1,50,1.5", "line 3: accuracy: '50' is not a share"),
        ("7-7-7-7,1-1-1-0,0,1,-0.1,1.5", "line 3: accuracy: '-0.1' is not a share"),
        ("7-7-7-7,1-1-1-0,0,1,0.5,0", "line 3: latency_ms: '0' is not a number of milliseconds above 0"),
        ("7-7-7-7,1-1-1-0,0,1,0.5,inf", "line 3: latency_ms: 'inf' is not a number"),
        ("7-7-7-7,1-1-1-0,0,1,0.5", "line 3: 5 values under 6 columns"),
    ],
)
def test_malformed_value_is_named_with_its_place(read: Callable[..., Table], row: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        read(ROWS[1], row, *ROWS[2:])
    assert message in str(caught.value)
    assert "table.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("14-7-7-7,1-1-1-0,0,1,0.6,2.5", "line 6: accuracy: '0.6' contradicts line 3, 0.625"),
        ("14-7-7-7,1-1-1-0,0,1,0.625,2.75", "line 6: latency_ms: '2.75' contradicts line 3, 2.5"),
    ],
)
def test_contradiction_names_both_lines(read: Callable[..., Table], row: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        read(*ROWS, row)
    assert message in str(caught.value)


def test_two_latencies_in_rows_of_different_epochs_contradict(read: Callable[..., Table]) -> None:
    lines = by_epochs()
    lines[1] = lines[1].replace(",1.5,", ",1.75,")
    with pytest.raises(TableError, match=r"line 3: latency_ms: '1.75' contradicts line 2"):
        read(*lines, header=f"{HEADER},epochs")


def test_missing_network_is_named_and_the_others_counted(read: Callable[..., Table]) -> None:
    with pytest.raises(TableError) as caught:
        read(*ROWS[:2])
    message = "no row for windows 7-7-7-7, shifts 1-1-1-0, br 0, depth3 2 (and 1 more of 4 architectures)"
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("7-7-7-7,1-1-1-0,0,1,0.5,1.5,another process", "its latency in line 5 is invalid: another process"),
        ("7-7-7-7,1-1-1-0,0,1,,1.5,", "line 5 has no accuracy"),
        ("7-7-7-7,1-1-1-0,0,1,0.5,,", "line 5 has no latency_ms"),
    ],
)
def test_row_without_a_valid_value_counts_as_missing_and_says_so(
    read: Callable[..., Table], row: str, reason: str
) -> None:
    with pytest.raises(TableError) as caught:
        read(*(f"{other}," for other in ROWS[1:]), row, header=f"{HEADER},invalid")
    assert "no row for windows 7-7-7-7, shifts 1-1-0-0, br 0, depth3 1" in str(caught.value)
    assert reason in str(caught.value)


def test_epochs_missing_for_one_network_are_named(read: Callable[..., Table]) -> None:
    with pytest.raises(TableError, match=r"epochs: no row after 3 for windows 14-7-7-7.*depth3 2"):
        read(*by_epochs()[:-1], header=f"{HEADER},epochs")


@pytest.mark.parametrize("epochs", ["", "0", "1.5"])
def test_epochs_are_whole_numbers_in_every_row(read: Callable[..., Table], epochs: str) -> None:
    lines = by_epochs()
    lines[2] = lines[2].rpartition(",")[0] + f",{epochs}"
    with pytest.raises(TableError, match=f"line 4: epochs: '{epochs}' is not a whole number"):
        read(*lines, header=f"{HEADER},epochs")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("windows,shifts,br,depth3,accuracy", "no column latency_ms"),
        ("", "no column windows, shifts, br, depth3, accuracy, latency_ms in an empty line"),
        (f"{HEADER},br", "column br is there twice"),
    ],
)
def test_header_must_hold_every_column_once(read: Callable[..., Table], header: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        read(*ROWS, header=header)
    assert message in str(caught.value)


def test_file_that_is_no_table_is_refused(tmp_path: Path, space: Space) -> None:
    with pytest.raises(TableError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.csv", space)
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path, space)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TableError, match="is no CSV text file"):
        read_table(tmp_path / "binary.csv", space)


# -- a table in place of measuring and training -----------------------------------------------------------------------


@pytest.fixture
def table(read: Callable[..., Table]) -> Table:
    return read(*by_epochs(), header=f"{HEADER},epochs")


def plan_of(table: Table, space: Space) -> Plan:
    target = table_target(table, space.base.image_size)
    return Plan(target, None, table_recipe(table), table_data(table), rungs=table.epochs)


def test_every_architecture_is_evaluated_from_the_table_and_kept(table: Table, space: Space, store: Store) -> None:
    plan = plan_of(table, space)
    seen: list[Epoch] = []
    with Evaluator(plan, TableSteps(table)) as evaluator:
        evaluator.prepare(space.base)
        candidates = [evaluator.evaluate(arch, store, on_epoch=seen.append) for arch in space.archs()]
    assert {c.outcome for c in candidates} == {"complete"}
    assert {c.arch.id: c.latency_ms for c in candidates} == table.latency_ms
    assert {(c.arch.id, 3): c.accuracy for c in candidates} == {k: v for k, v in table.accuracy.items() if k[1] == 3}
    assert [row.epoch for row in seen] == [1, 3] * 4
    latency = candidates[0].latency
    assert latency is not None
    assert latency.target_id == plan.target.id
    assert latency.environment == {"table": "table.csv", "digest": table.digest}
    assert store.latency(latency.arch_id, plan.target.id) == latency


def test_score_after_fewer_epochs_is_that_row(table: Table, space: Space) -> None:
    plan = plan_of(table, space)
    score = TableSteps(table).train(space.base, plan.score_key(space.base, epochs=1), None)
    assert (score.epochs, score.accuracy) == (1, table.accuracy[space.base.id, 1])
    assert [row.epoch for row in score.curve] == [1]


def test_other_content_is_another_target_and_other_data(table: Table, read: Callable[..., Table]) -> None:
    other = replace(table, digest="table1-other")
    assert table_target(table, 56).id != table_target(other, 56).id
    assert table_data(table).id != table_data(other).id


def test_what_the_table_lacks_is_the_users_error(table: Table, space: Space) -> None:
    plan, steps = plan_of(table, space), TableSteps(table)
    with pytest.raises(TableError, match=r"epochs: 2 are not in the table; allowed: 1, 3"):
        steps.train(space.base, plan.score_key(space.base, epochs=2), None)
    stranger = replace(space.base, br=True)
    with pytest.raises(TableError, match="no row for windows 7-7-7-7, shifts 1-1-1-0, br 1"):
        steps.measure(stranger, print)
    with pytest.raises(TableError, match="no row for"):
        steps.prepare(stranger)


# -- a study as a table -----------------------------------------------------------------------------------------------


def candidate(arch: Arch, latency_ms: float, *curves: dict[int, float | None], invalid: str = "") -> Candidate:
    steps = TableSteps(Table("t", "d", (1,), {arch.id: latency_ms}, {}))
    latency = replace(steps.measure(arch, print), invalid=invalid)
    scores = tuple(
        Score(
            **vars(ScoreKey(arch.id, "r", "d", max(curve), seed)),
            accuracy=curve[max(curve)] or 0.0,
            train_s=1.0,
            curve=tuple(Epoch(epoch, 1.0, accuracy, 1.0) for epoch, accuracy in curve.items()),
        )
        for seed, curve in enumerate(curves)
    )
    return Candidate(arch, "complete", latency, scores)


def test_study_written_as_a_table_is_read_again_alike(
    table: Table, space: Space, store: Store, read: Callable[..., Table]
) -> None:
    with Evaluator(plan_of(table, space), TableSteps(table)) as evaluator:
        candidates = [evaluator.evaluate(arch, store) for arch in space.archs()]
    header, *lines = write_table(candidates).splitlines()
    again = read(*lines, header=header)
    assert again.digest == table.digest
    assert (again.epochs, again.latency_ms, again.accuracy) == (table.epochs, table.latency_ms, table.accuracy)


def test_table_of_a_study_holds_means_over_seeds_where_all_were_evaluated(
    space: Space, read: Callable[..., Table]
) -> None:
    curves = {1: 0.1, 2: 0.2, 3: 0.3}, {1: None, 2: 0.4, 3: 0.5}
    written = write_table([candidate(arch, 1 / 3, *curves) for arch in space.archs()])
    header, *lines = written.splitlines()
    table = read(*lines, header=header)
    assert table.epochs == (2, 3)
    assert table.accuracy[space.base.id, 2] == (0.2 + 0.4) / 2
    assert table.accuracy[space.base.id, 3] == 0.4
    assert table.latency_ms[space.base.id] == 1 / 3


def test_table_of_a_study_holds_last_epochs_alone_where_asked_or_without_curves(space: Space) -> None:
    with_curve = candidate(space.base, 1.5, {1: 0.1, 3: 0.3})
    without = replace(with_curve, scores=(replace(with_curve.scores[0], curve=()),))
    expected = "7-7-7-7,1-1-1-0,0,2,3,0.3,1.5,"
    assert write_table([with_curve], epochs_from_curves=False).splitlines()[1:] == [expected]
    assert write_table([without]).splitlines()[1:] == [expected]


def test_only_complete_candidates_are_written_and_an_invalid_latency_with_its_reason(space: Space) -> None:
    whole = candidate(space.base, 1.5, {3: 0.3}, invalid="another process, busy")
    rows = write_table([whole, replace(whole, outcome="stopped"), Candidate(space.base, "pending")]).splitlines()[1:]
    assert rows == ['7-7-7-7,1-1-1-0,0,2,3,0.3,1.5,"another process, busy"']


def test_limits_leave_a_table_what_it_is_and_a_base_outside_counts(tmp_path: Path, space: Space) -> None:
    (tmp_path / "limited.yaml").write_text(f"{SPACE}limits: {{params_m: 0.55}}\n")
    (tmp_path / "outside.yaml").write_text(SPACE.replace("depth3: [1, 2]", "depth3: [1]"))
    limited, outside = Space.load(tmp_path / "limited.yaml"), Space.load(tmp_path / "outside.yaml")
    assert 0 < limited.architectures < 4
    file = tmp_path / "again.csv"

    def digest(space: Space, *rows: str) -> str:
        file.write_text("\n".join([HEADER, *rows]))
        return read_table(file, space).digest

    assert digest(limited, *ROWS) == digest(space, *ROWS)
    assert digest(limited, *ROWS[:3]) != digest(space, *ROWS)
    base = f"{ROWS[2].split(',0.75')[0]},,"
    assert digest(outside, *ROWS[:2], f"{base}3") == digest(outside, *ROWS[:2], f"{base}3.0")
    assert digest(outside, *ROWS[:2], f"{base}3") != digest(outside, *ROWS[:2], f"{base}9")


def test_tables_need_no_tensor_library() -> None:
    check = "import sys, explorer.evaluate.table; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
