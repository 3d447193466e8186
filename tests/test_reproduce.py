"""The paper's tables: rows, our figures beside the paper's, and the command that prints them."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from explorer import reproduce
from explorer.arch import PRESETS, Arch, parse_name
from explorer.cli import app
from explorer.errors import UserError
from explorer.latency.profile import Profile, part_of
from explorer.paper import TABLE_4, TABLE_5, TABLE_6, TABLES
from explorer.records import Latency

#: The module; `explorer.cli` has the command under its name.
command = sys.modules["explorer.cli.reproduce"]

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
        UserError,
        match="'table7' is no table of the paper that can be reproduced; allowed: table1, table4, table5, table6",
    ):
        reproduce.table("table7")
    result = CliRunner().invoke(app, ["reproduce", "table7"])
    assert result.exit_code == 2
    assert "'table7'" in result.stderr


# -- shares of the run time -------------------------------------------------------------------------------------------


def test_table_1_holds_the_published_shares() -> None:
    rows = reproduce.shares(None)
    assert [(row["label"], row["paper_tensorrt_fp16"], row["paper_torch_fp32"], row["share"]) for row in rows] == [
        ("window shift", "8.7 %", "4.4 %", None),
        ("LayerNorm and GELU", "about 24 %", None, None),
    ]


def test_our_shares_are_those_of_the_row_s_groups() -> None:
    places = ("stages.0.blocks.1.shift", "norm", "stages.0.blocks.0.mlp.gelu", "stages.0.blocks.0.mlp.fc1")
    parts = tuple(part_of(place, ms, place) for place, ms in zip(places, (1.0, 2.0, 3.0, 4.0), strict=True))
    rows = reproduce.shares(Profile("a1-0", "t1-0", parts, 9.0, 3))
    assert [row["share"] for row in rows] == pytest.approx([0.1, 0.5])


def test_table_1_without_a_backend_is_the_paper_s_alone() -> None:
    result = CliRunner().invoke(app, ["reproduce", "table1"])
    assert result.exit_code == 0, result.output
    for text in ("8.7 %", "4.4 %", "about 24 %", "here: nothing was measured; give --backend"):
        assert text in result.stdout
    content = json.loads(CliRunner().invoke(app, ["reproduce", "table1", "--json"]).stdout)
    assert (content["target"], content["profile"], len(content["rows"])) == (None, None, 2)


def test_table_1_is_profiled_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small network in Swin-B's place."""
    monkeypatch.setattr(command, "PRESETS", {"Swin-B": parse_name("Swin-E16x2.2.2.2-N10")})
    arguments = ["reproduce", "table1", "--backend", "onnxruntime", "--device", "cpu"]
    content = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    groups = content["profile"]["by_group"]
    assert [row["share"] for row in content["rows"]] == pytest.approx(
        [groups["window shift"], groups["norm"] + groups["activation"]]
    )
    assert all(row["share"] > 0 for row in content["rows"])
    assert content["target"]["backend"] == "onnxruntime"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "here: onnxruntime" in result.stdout
    assert "upper bound" in result.stdout
    assert "without a profiler" in result.stdout


def test_table_1_takes_no_study() -> None:
    result = CliRunner().invoke(app, ["reproduce", "table1", "--study", "mine"])
    assert result.exit_code == 2
    assert result.stderr == "error: --study: table1 is about run time alone; use --backend\n"


# -- ratios to Swin-B -------------------------------------------------------------------------------------------------


def test_the_paper_s_ratios_stand_where_its_figures_can_be_read(table_6: list[reproduce.Row]) -> None:
    tensorrt = {row["name"]: row["paper_tensorrt_ratio"] for row in table_6}
    assert {name: ratio for name, ratio in tensorrt.items() if ratio is not None} == pytest.approx(
        {
            "Swin-B": 1.0,
            "Swin-Free-B": 2.0 / 2.1,
            "Swin-Free-B-BR": 0.81,
            "Swin-Free-B-DR12": 1.5 / 2.1,
            "Swin-Free-B-BR-DR12": 1.3 / 2.1,
            "Swin-Free-B-BR-DR14": 1.4 / 2.1,
        }
    )
    torch = {row["name"]: row["paper_torch_ratio"] for row in table_6}
    assert {name: ratio for name, ratio in torch.items() if ratio is not None} == {"Swin-B": 1.0}
    assert all(row["ratio"] is None for row in table_6)


def latency_of(arch: Arch, latency_ms: float, reference_ms: float | None = None) -> Latency:
    return Latency(
        arch.id, "t1-0", latency_ms, 0, 0, 0, 3, (latency_ms,), True, 0.0, 0.0,
        reference_id="" if reference_ms is None else PRESETS["Swin-B"].id,
        reference_ms=reference_ms,
    )  # fmt: skip


def test_ratio_is_the_one_timed_beside_the_network_where_that_is_swin_b_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "onnx_tool_flops", lambda arch: None)  # counted in the tests above
    swin_b, case_5, case_6 = TABLE_6[0], TABLE_5[4], TABLE_5[5]
    latencies = {
        case_5.arch.id: latency_of(case_5.arch, 9.0, reference_ms=12.0),
        case_6.arch.id: replace(latency_of(case_6.arch, 9.0, reference_ms=12.0), reference_id="a1-another"),
    }
    known = {"latencies": latencies}
    rows = reproduce.compare((case_5, case_6), **known)
    assert [row["ratio"] for row in rows] == [0.75, None]
    rows = reproduce.compare((case_5, case_6), **known, reference=latency_of(swin_b.arch, 10.0))
    assert [row["ratio"] for row in rows] == [0.75, 0.9]
    latencies[swin_b.arch.id] = latency_of(swin_b.arch, 18.0)
    rows = reproduce.compare((swin_b, case_5, case_6), **known)
    assert [row["ratio"] for row in rows] == [1.0, 0.75, 0.5]


def test_invalid_latency_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "onnx_tool_flops", lambda arch: None)  # counted in the tests above
    found = replace(latency_of(TABLE_6[0].arch, 2.0), invalid="another process computes")
    (row,) = reproduce.compare(TABLE_6[:1], latencies={found.arch_id: found})
    assert (row["latency_ms"], row["invalid"]) == (2.0, "another process computes")


@pytest.mark.slow
def test_table_6_is_measured_beside_swin_b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On small networks; what is stored is not measured again and keeps the ratio that was timed."""
    names = ("Swin-E16x2.1.1.1", "Swin-E32x2.1.1.1")
    presets = {"Swin-B": parse_name(names[0])}
    rows = tuple(replace(row, label=name, name=name) for row, name in zip(TABLE_6, names, strict=False))
    monkeypatch.setattr(reproduce, "TABLES", {"table6": rows})
    monkeypatch.setattr(reproduce, "PRESETS", presets)
    monkeypatch.setattr(command, "PRESETS", presets)
    arguments = [
        "reproduce",
        "table6",
        "--backend",
        "onnxruntime",
        "--device",
        "cpu",
        "--storage",
        str(tmp_path / "f.db"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["rows"]
    assert first["ratio"] == 1.0
    assert second["ratio"] > 0
    assert second["ratio"] != second["latency_ms"] / first["latency_ms"]
    shown = CliRunner().invoke(app, arguments)
    assert "measuring" not in shown.stderr or any(row["invalid"] for row in (first, second))
    assert "ratio: latency over Swin-B's" in shown.stdout


# -- the command ------------------------------------------------------------------------------------------------------


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
    if not any(row["invalid"] for row in content["rows"]):  # other processes kept the machine busy
        assert "measuring " not in second.stderr
        assert json.loads(second.stdout) == content


@pytest.mark.slow
def test_accuracies_and_latencies_come_from_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real study whose two networks stand in the place of table 4's."""
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
