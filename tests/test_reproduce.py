"""The paper's tables: rows, our figures beside the paper's, and the command that prints them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from explorer import reproduce
from explorer.arch import PRESETS
from explorer.cli import app
from explorer.errors import UserError
from explorer.paper import TABLE_4, TABLE_5, TABLE_6, TABLES
from explorer.records import Latency

#: Koo et al. 2023, table 6: 1e9 multiply-adds and 1e6 deployed parameters.
PUBLISHED = {
    "Swin-B": (15.9, 88.7),
    "Swin-B-BR": (15.6, 88.7),
    "SwinV2-B-224": (None, None),
    "Swin-Free-B": (16.8, 99.4),
    "Swin-Free-T": (5.0, 31.6),
    "Swin-Free-S": (9.7, 58.3),
    "Swin-Free-T-BR": (4.8, 31.6),
    "Swin-Free-S-BR": (9.5, 58.3),
    "Swin-Free-B-BR": (16.4, 99.4),
    "Swin-Free-B-DR10": (11.3, 69.3),
    "Swin-Free-B-DR12": (12.7, 76.8),
    "Swin-Free-B-DR14": (14.0, 84.4),
    "Swin-Free-B-DR16": (15.4, 91.9),
    "Swin-Free-B-BR-DR12": (12.4, 76.9),
    "Swin-Free-B-BR-DR14": (13.7, 84.4),
    "Swin-Free-B-BR-DR16": (15.1, 91.9),
}


@pytest.fixture(scope="module")
def table_6() -> list[reproduce.Row]:
    return reproduce.compare(TABLE_6)


def test_table_6_holds_the_published_rows() -> None:
    assert {row.name: (row.flops_g, row.params_m) for row in TABLE_6} == PUBLISHED
    assert all(PRESETS[row.name].name == row.name for row in TABLE_6)


def test_deployed_parameters_are_the_paper_s(table_6: list[reproduce.Row]) -> None:
    compared = [row for row in table_6 if row["paper_params_m"] is not None]
    assert len(compared) == 15
    for row in compared:
        assert row["params_deployed"] / 1e6 == pytest.approx(row["paper_params_m"], rel=reproduce.PARAMS_TOLERANCE)
        assert row["params_difference"] == pytest.approx(row["params_deployed"] / 1e6 / row["paper_params_m"] - 1)
    assert reproduce.largest_difference(table_6, "params_difference") <= 0.005


def test_flops_are_near_the_paper_s_and_those_of_onnx_tool_nearer(table_6: list[reproduce.Row]) -> None:
    """The paper's tool counts element-wise operations too."""
    for row in table_6:
        if row["paper_flops_g"] is not None:
            assert row["flops"] / 1e9 == pytest.approx(row["paper_flops_g"], rel=reproduce.FLOPS_TOLERANCE)
            assert row["onnx_tool_flops"] / 1e9 == pytest.approx(row["paper_flops_g"], rel=0.04)
        assert row["flops"] < row["onnx_tool_flops"] < 1.15 * row["flops"]


def test_what_the_paper_lacks_stays_blank(table_6: list[reproduce.Row]) -> None:
    row = next(row for row in table_6 if row["name"] == "SwinV2-B-224")
    for key in ("paper_params_m", "paper_flops_g", "params_difference", "flops_difference", "paper_torch_fp32_ms"):
        assert row[key] is None
    assert row["accuracy"] is None
    assert row["latency_ms"] is None


def test_without_onnx_tool_its_column_is_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = reproduce.compare(TABLE_6[:1])
    assert row["onnx_tool_flops"] is None
    assert row["onnx_tool_difference"] is None
    assert row["flops_difference"] is not None


def test_tables_4_and_5_are_thirteen_networks() -> None:
    """Cases that differ in a shift that does nothing are one network."""
    shifts = [row.arch.id for row in TABLE_4]
    assert len(TABLE_4) == len(TABLE_5) == 8
    assert shifts[2] == shifts[4]
    assert shifts[3] == shifts[7] == TABLE_5[0].arch.id
    assert len({row.arch.id for row in (*TABLE_4, *TABLE_5)}) == 13
    assert TABLE_4[0].arch == PRESETS["Swin-B"]
    assert TABLE_5[4].arch == PRESETS["Swin-Free-B"]
    for row in TABLE_5:
        assert ",".join(map(str, row.arch.windows)) == row.label.partition(": ")[2]


def test_accuracies_and_latencies_stand_in_every_row_of_their_network() -> None:
    same = TABLE_4[2].arch.id
    measured = Latency(same, "t1-0", 2.0, 2.1, 1.9, 0.1, 3, (2.0,), False, 0.0, 0.0)
    rows = reproduce.compare((TABLE_4[2], TABLE_4[4], TABLE_4[5]), accuracies={same: 0.5}, latencies={same: measured})
    assert [row["accuracy"] for row in rows] == [0.5, 0.5, None]
    assert [row["latency_ms"] for row in rows] == [2.0, 2.0, None]
    assert [row["is_stable"] for row in rows] == [False, False, None]


def test_unknown_table_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        UserError, match="'table7' is no table of the paper that can be reproduced; allowed: table4, table5"
    ):
        reproduce.table("table7")
    result = CliRunner().invoke(app, ["reproduce", "table7"])
    assert result.exit_code == 2
    assert "'table7'" in result.stderr


@pytest.mark.parametrize("name", sorted(TABLES))
def test_command_prints_every_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "onnx_tool_flops", lambda arch: None)  # counted in the tests above
    result = CliRunner().invoke(app, ["--quiet", "reproduce", name])
    assert result.exit_code == 0, result.output
    for row in TABLES[name]:
        assert row.label in result.stdout
    assert "latency: not measured; give --study or --backend" in result.stdout


@pytest.mark.slow
def test_command_measures_what_the_database_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two small networks in the place of table 4's; the second time nothing is measured."""
    from dataclasses import replace

    rows = tuple(
        replace(row, name=name) for row, name in zip(TABLE_4, ("Swin-E16x1.1.1.1", "Swin-E16x2.1.1.1"), strict=False)
    )
    monkeypatch.setattr(reproduce, "TABLES", {"table4": rows})
    storage = str(tmp_path / "facts.db")
    arguments = ["reproduce", "table4", "--backend", "onnxruntime", "--storage", storage, "--json"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert first.stderr.count("measuring ") == 2
    content = json.loads(first.stdout)
    assert content["target"]["backend"] == "onnxruntime"
    assert all(row["latency_ms"] > 0 for row in content["rows"])
    second = CliRunner().invoke(app, arguments)
    assert "measuring " not in second.stderr
    assert json.loads(second.stdout) == content


@pytest.mark.slow
def test_accuracies_and_latencies_come_from_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real study whose two networks stand in the place of table 4's."""
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    space = (
        "version: 1\nbase: Swin-E16x2.2.2.2-R56-P1-N10\nsearch: {br: [off, on]}\nproxy: {embed_dim: 8, head_dim: 4}\n"
    )
    Path("small.yaml").write_text(space)
    Path("recipe.yaml").write_text("epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 64\n")
    searched = CliRunner().invoke(
        app, ["search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--trials", "2", "--study", "mine"]
    )
    assert searched.exit_code == 0, searched.output
    names = ("Swin-E16x2.2.2.2-BR-R56-P1-N10", "Swin-E16x2.2.2.2-R56-P1-N10", "Swin-E16x1.1.1.1-R56-P1-N10")
    rows = tuple(replace(row, name=name) for row, name in zip(TABLE_4, names, strict=False))
    monkeypatch.setattr(reproduce, "TABLES", {"table4": rows})
    result = CliRunner().invoke(app, ["reproduce", "table4", "--study", "mine", "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    found = CliRunner().invoke(app, ["pareto", "--study", "mine", "--json"])
    front = json.loads(found.stdout)["front"]
    by_id = {row["arch_id"]: row for row in content["rows"]}
    for row in front:
        assert by_id[row["arch_id"]]["accuracy"] == row["accuracy"]
        assert by_id[row["arch_id"]]["latency_ms"] == row["latency_ms"]
    assert [row["accuracy"] is None for row in content["rows"]] == [False, False, True]
    assert content["accuracies"]["study"] == "mine"
    text = CliRunner().invoke(app, ["reproduce", "table4", "--study", "mine"]).stdout
    assert "accuracy: of proxies, 0 to 1, from study mine" in text
