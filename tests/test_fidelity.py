"""How well scores order networks of known order: what is known, the arithmetic, other rankers, and real trainings."""

from __future__ import annotations

import gzip
import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

from explorer import model
from explorer.arch import Arch, ProxyScale, parse_name
from explorer.errors import MeasureError, SpaceError, TableError, UserError
from explorer.evaluate import Evaluator, Plan
from explorer.evaluate.workers import Done, Event, Here, Job
from explorer.fidelity import (
    LOST,
    PROXY,
    Pair,
    Progress,
    Truth,
    plan_for,
    rank_report,
    rankers_of,
    read_truth,
    report,
    require_proxies,
    run,
    tokens_seen,
    trained_part,
    trainings,
    truth_of_paper,
    truths_of_paper,
)
from explorer.fidelity.training_free import grad_norm, naswot, synflow
from explorer.model.swin import shift_mask
from explorer.paper import STATED, TABLES
from explorer.records import Failure, Score
from explorer.store import Store
from explorer.store.merge import merge
from explorer.training.data import describe
from explorer.training.folders import IDX_FILES
from explorer.training.recipe import Recipe

SCALE = ProxyScale(7, unit=2, embed_dim=8, head_dim=4, patch_size=2)
RECIPE = Recipe(epochs=2, batch_size=32, train_images=64, eval_images=64)
ARCHS = tuple(
    parse_name(f"Swin-E16x1.1.{depth}.1-R56-P1-N4-W{windows}") for depth, windows in ((1, "7.7.7.7"), (2, "14.7.7.7"))
)

# -- what is known ----------------------------------------------------------------------------------------------------


def test_tables_4_and_5_are_13_networks_in_four_groups_with_61_pairs_of_known_order() -> None:
    truth = truth_of_paper(("table4", "table5"))
    assert len(truth.archs) == len({arch.id for arch in truth.archs}) == 13
    sizes = {level: list(truth.levels.values()).count(level) for level in truth.levels.values()}
    assert sizes == {83.0: 5, 82.0: 2, 81.0: 3, 0.0: 3}
    grouped = truth.of_kind(stated=False)
    assert len(grouped) == len(set(grouped)) == 61
    assert all(truth.levels[pair.better] > truth.levels[pair.worse] for pair in grouped)


def test_single_comparison_inside_a_group_is_counted_apart() -> None:
    (pair,) = truth_of_paper(("table4", "table5")).of_kind(stated=True)
    assert (pair.better, pair.worse) == (
        parse_name("Swin-Free-B").id,
        parse_name("Swin-B-W14.14.14.7-S0000").id,
    )
    assert not truth_of_paper(("table4",)).of_kind(stated=True)


def test_cases_that_build_one_network_are_one() -> None:
    table4 = [row.arch.id for row in TABLES["table4"]]
    assert table4[2] == table4[4]
    assert table4[3] == table4[7] == TABLES["table5"][0].arch.id
    assert len(truth_of_paper(("table4",)).archs) == 6


def test_every_stated_comparison_stands_in_its_table_and_agrees_with_its_figures() -> None:
    exact = {
        row.name: float(row.top1)
        for rows in TABLES.values()
        for row in rows
        if "x" not in row.top1 and row.top1[:1] == "8"
    }
    assert exact == {"Swin-B": 83.4, "Swin-Free-B-BR-DR12": 83.3, "Swin-Free-B-BR-DR14": 83.7}
    for table, pairs in STATED.items():
        rows = {row.name: row.top1 for row in TABLES[table]}
        for better, worse in pairs:
            is_by_figure = better in exact and worse in exact and exact[better] > exact[worse]
            words = (rows.get(better, ""), rows.get(worse, ""))
            is_by_words = "above" in words[0] or "below" in words[1]
            assert is_by_figure or is_by_words, (better, worse, words)


def test_what_follows_from_two_comparisons_is_known_and_nothing_is_its_own_contrary() -> None:
    truth = truth_of_paper()
    known = {(pair.better, pair.worse) for pair in truth.pairs}
    ids = [parse_name(name).id for name in ("Swin-Free-B", "Swin-Free-B-BR-DR12", "Swin-T")]
    assert set(itertools.combinations(ids, 2)) <= known
    assert not {(worse, better) for better, worse in known} & known
    # `as Swin-Free-T` states no order, and so says nothing of a training's worth.
    assert parse_name("Swin-Free-T-BR").id not in {arch.id for arch in truth.archs}


def test_tables_are_reported_one_by_one_and_together() -> None:
    names = [truth.name for truth in truths_of_paper()]
    whole = "table4+table5+table6"
    assert names == ["table4", "table5", "table6", "table4+table5", f"{whole}, both trained", whole]
    assert [truth.name for truth in truths_of_paper(("table4",))] == ["table4, both trained", "table4"]
    assert [truth.name for truth in truths_of_paper(("table6",))] == ["table6"], "none diverged"
    with pytest.raises(
        UserError, match=r"tables: 'table1' is none that gives an order; allowed: table4, table5, table6"
    ):
        truths_of_paper(("table4", "table1"))


def test_pairs_of_networks_that_trained_are_a_part_of_the_truth() -> None:
    whole = truth_of_paper(("table4", "table5"))
    (part,) = trained_part(whole)
    assert (len(whole.pairs), len(part.pairs), part.is_part, whole.is_part) == (62, 32, True, False)
    assert len(part.of_kind(stated=False)) == 31
    assert set(part.pairs) < set(whole.pairs)
    left = {arch.id for arch in part.archs}
    assert {whole.labels[arch.id] for arch in whole.archs if arch.id not in left} == {"diverged"}
    assert "diverged" not in {whole.labels[arch_id] for arch_id in left}
    assert trained_part(part) == (), "nothing is left out"


@pytest.mark.parametrize(("others", "num_pairs"), [("Swin-S,0.80\n", 1), ("", None)])
def test_part_of_ones_own_results_leaves_out_what_diverged(others: str, num_pairs: int | None, tmp_path: Path) -> None:
    truth = read_truth(csv(tmp_path, f"name,accuracy\nSwin-B,0.83\n{others}Swin-T,diverged\n"))
    parts = trained_part(truth)
    assert [len(part.pairs) for part in parts] == ([] if num_pairs is None else [num_pairs])


def csv(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "own.csv"
    file.write_text(text)
    return file


def test_own_results_are_of_known_order_where_their_spread_tells_them_apart(tmp_path: Path) -> None:
    text = "name,accuracy,std\nSwin-T,81.0,0.3\nSwin-S,81.8,0.3\nSwin-B,82.0,0.3\nSwin-B-S0000,diverged,\n"
    truth = read_truth(csv(tmp_path, text))
    ids = {name: parse_name(name).id for name in ("Swin-T", "Swin-S", "Swin-B", "Swin-B-S0000")}
    # 2 sqrt(0.3^2 + 0.3^2) = 0.849
    expected = {("Swin-B", "Swin-T"), *((name, "Swin-B-S0000") for name in ("Swin-T", "Swin-S", "Swin-B"))}
    assert {(pair.better, pair.worse) for pair in truth.pairs} == {(ids[a], ids[b]) for a, b in expected}
    assert truth.labels[ids["Swin-B-S0000"]] == "diverged"
    assert truth.name == "own.csv"


def test_own_results_without_spread_are_of_known_order_unless_they_are_equal(tmp_path: Path) -> None:
    truth = read_truth(csv(tmp_path, "accuracy,name\n0.81,Swin-T\n0.81,Swin-S\n0.811,Swin-B\n"))
    assert len(truth.pairs) == 2
    assert {pair.better for pair in truth.pairs} == {parse_name("Swin-B").id}


def test_own_networks_may_be_given_by_id_and_names_take_the_sizes_of_the_space(tmp_path: Path) -> None:
    arch = parse_name("Swin-T")
    text = f"arch_id,name,accuracy\n{arch.id},,1\n,Swin-B,2\n,Swin-S-R224,3\n"
    truth = read_truth(csv(tmp_path, text), sizes={"image_size": 448}, find=lambda arch_id: arch)
    assert [found.image_size for found in truth.archs] == [224, 448, 224]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,accuracy\nSwin-T,1\nSwine-B,2\n", r"line 3: name: 'Swine-B' is no architecture"),
        ("name,accuracy\nSwin-T,1\nSwin-T,2\n", r"line 3: name: 'Swin-T' is the network of line 2; give each network once"),
        ("name,accuracy\nSwin-B-S0011,1\nSwin-B-S0010,2\n", r"line 3: name: 'Swin-B-S0010' is the network of line 2"),
        ("name,accuracy\nSwin-T,1\nSwin-B,good\n", r"line 3: accuracy: 'good' is not a number, nor 'diverged'"),
        ("name,accuracy\nSwin-T,1\nSwin-B,nan\n", r"line 3: accuracy: 'nan' is not a number"),
        ("name,accuracy,std\nSwin-T,1,\nSwin-B,2,-1\n", r"line 3: std: '-1' is below 0"),
        ("name,accuracy\nSwin-T,1\nSwin-B,-2\n", r"line 3: accuracy: '-2' is not between 0 and 100"),
        ("name,accuracy\nSwin-T,1\nSwin-B,101\n", r"line 3: accuracy: '101' is not between 0 and 100"),
        ("name,accuracy\nSwin-T,81\nSwin-S,82\nSwin-B,0.83\n", r"line 4: accuracy: 0.83 beside 81 in line 2; give all as shares"),
        ("name,accuracy\nSwin-T,1\n", r"1 network\(s\) are no order; give at least two rows"),
        ("name,accuracy\nSwin-T,1\nSwin-B,1\n", r"no two accuracies differ by more than 2 standard deviations"),
        ("name,accuracy\nSwin-T,1,3\n", r"line 2: 3 values under 2 columns"),
        ("name,top1\nSwin-T,1\n", r"line 1: name, top1 are not the columns; needed: accuracy, and name or arch_id"),
        ("name,accuracy,accuracy\nSwin-T,1,1\n", r"line 1: column accuracy is there twice"),
        ("name,accuracy\n,1\n", r"line 2: neither name nor arch_id; give one of them"),
        ("arch_id,accuracy\na1-0,1\n", r"line 2: arch_id: 'a1-0' cannot be looked up: there is no database"),
        ("", r"line 1: an empty line are not the columns"),
    ],
)  # fmt: skip
def test_fault_in_own_results_is_told_with_its_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_truth(csv(tmp_path, text))


def test_id_of_what_is_no_architecture_here_is_told_with_its_line_and_value(tmp_path: Path) -> None:
    def find(arch_id: str) -> Arch:
        return Arch.from_dict({"newer": 1})

    with pytest.raises(TableError, match=r"line 2: arch_id: 'a1-0' is no architecture: newer: no field"):
        read_truth(csv(tmp_path, "arch_id,accuracy\na1-0,1\na1-1,2\n"), find=find)


def test_own_results_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.csv: cannot be read: No such file"):
        read_truth(tmp_path / "none.csv")


# -- the arithmetic ---------------------------------------------------------------------------------------------------

A, B, C, D = (parse_name(name) for name in ("Swin-T", "Swin-S", "Swin-B", "Swin-Free-T"))


def ordered(*groups: tuple[Arch, ...]) -> Truth:
    """Groups from the best to the worst."""
    levels = {arch.id: float(len(groups) - place) for place, group in enumerate(groups) for arch in group}
    pairs = [
        Pair(one.id, other.id, "group")
        for better, worse in itertools.combinations(groups, 2)
        for one, other in itertools.product(better, worse)
    ]
    archs = tuple(itertools.chain.from_iterable(groups))
    return Truth("synthetic", archs, {key: str(level) for key, level in levels.items()}, levels, tuple(pairs))


def scored(*values: float) -> dict[str, tuple[float, ...]]:
    return {arch.id: (value,) for arch, value in zip((A, B, C, D), values, strict=False)}


def test_concordance_counts_pairs_in_order_and_half_of_the_ties() -> None:
    found = rank_report(ordered((A, B), (C, D)), scored(0.9, 0.5, 0.5, 0.6))
    # A>C and A>D in order, B=C tied, B<D wrong
    assert found.num_pairs == 4
    assert found.concordance == pytest.approx(2.5 / 4)
    assert {(pair.better, pair.worse, pair.is_tie) for pair in found.wrong} == {(B.id, C.id, True), (B.id, D.id, False)}
    assert (found.wrong[0].better_score, found.wrong[0].worse_score) == (0.5, 0.5)


@pytest.mark.parametrize("seed", range(8))
def test_tau_b_is_that_of_scipy_with_groups_as_ties(seed: int) -> None:
    truth = truth_of_paper(("table4", "table5"))
    drawn = np.random.default_rng(seed).integers(0, 8, len(truth.archs)) / 8
    scores = {arch.id: (float(value),) for arch, value in zip(truth.archs, drawn, strict=True)}
    expected = kendalltau([truth.levels[arch.id] for arch in truth.archs], drawn, variant="b").statistic
    assert rank_report(truth, scores).tau_b == pytest.approx(expected)


def test_perfect_order_reversed_order_and_one_value_for_all() -> None:
    truth = ordered((A,), (B,), (C,))
    perfect, reverse, flat = (rank_report(truth, scored(*values)) for values in ((3, 2, 1), (1, 2, 3), (1, 1, 1)))
    assert (perfect.concordance, perfect.tau_b, perfect.wrong, perfect.regret) == (1.0, 1.0, (), 0.0)
    assert (reverse.concordance, reverse.tau_b, len(reverse.wrong), reverse.regret) == (0.0, -1.0, 3, 2.0)
    assert (flat.concordance, flat.tau_b, len(flat.best_ids), flat.regret) == (0.5, None, 3, 2.0)


def test_proxy_that_diverged_ranks_below_everything_and_two_of_them_tie() -> None:
    found = rank_report(ordered((A,), (B,), (C,)), scored(0.0, LOST, LOST))
    assert found.concordance == pytest.approx(2.5 / 3)
    assert [pair.is_tie for pair in found.wrong] == [True]


def test_seed_that_diverged_counts_zero_beside_others() -> None:
    scores = {A.id: (0.8, LOST), B.id: (0.5, 0.5), C.id: (0.1, 0.2)}
    found = rank_report(ordered((A,), (B,), (C,)), scores)
    assert [(pair.better, pair.better_score) for pair in found.wrong] == [(A.id, pytest.approx(0.4))]


def test_means_of_the_same_accuracies_in_another_order_tie() -> None:
    scores = {A.id: (0.1, 0.2, 0.3), B.id: (0.3, 0.2, 0.1)}
    assert sum(scores[A.id]) / 3 != sum(scores[B.id]) / 3
    assert rank_report(ordered((A,), (B,)), scores).concordance == 0.5


def test_network_without_a_score_is_named_and_its_pairs_do_not_count() -> None:
    found = rank_report(ordered((A,), (B,), (C,)), scored(3, 2))
    assert (found.num_pairs, found.missing) == (1, (C.id,))
    nothing = rank_report(ordered((A,), (B,)), {})
    assert (nothing.num_pairs, nothing.concordance, nothing.tau_b, nothing.regret) == (0, None, None, None)


@pytest.mark.parametrize("scores", [[math.nan], [3.0, math.nan]])
def test_network_whose_score_is_no_number_has_none(scores: list[float]) -> None:
    found = rank_report(
        ordered((A,), (B,), (C,)), {A.id: scores, **{key: one for key, one in scored(3, 2, 1).items() if key != A.id}}
    )
    assert (found.num_pairs, found.concordance, found.missing) == (1, 1.0, (A.id,))


def test_pair_with_one_proxy_is_listed_and_not_counted() -> None:
    found = rank_report(ordered((A,), (B,), (C,)), scored(3, 3, 1), proxies={A.id: "p", B.id: "p"})
    assert (found.num_pairs, found.concordance) == (2, 1.0)
    assert [(pair.better, pair.worse) for pair in found.inseparable] == [(A.id, B.id)]


def test_single_comparisons_have_a_concordance_of_their_own() -> None:
    truth = ordered((A, B), (C,))
    truth = Truth(truth.name, truth.archs, truth.labels, truth.levels, (*truth.pairs, Pair(A.id, B.id, "stated")))
    found = rank_report(truth, scored(1, 2, 0))
    assert (found.num_pairs, found.concordance) == (2, 1.0)
    assert (found.num_stated, found.stated_concordance, len(found.stated_wrong)) == (1, 0.0, 1)


def test_interval_holds_what_the_seeds_allow() -> None:
    truth = ordered((A,), (B,))
    # The mean of two seeds drawn from (0.2, 0.8) is below, at or above 0.5: concordance 0, a half or 1.
    wide = rank_report(truth, {A.id: (0.2, 0.8), B.id: (0.5, 0.5)})
    assert wide.interval == (0.0, 1.0)
    sure = rank_report(truth, {A.id: (0.7, 0.8), B.id: (0.5, 0.6)})
    assert (sure.interval, sure.tau_b_interval) == ((1.0, 1.0), (1.0, 1.0))
    assert rank_report(truth, {A.id: (0.7,), B.id: (0.5,)}).interval is None


def test_interval_is_that_of_the_exact_bootstrap() -> None:
    truth, values = ordered((A,), (B,), (C,)), {A.id: (0.3, 0.7), B.id: (0.4, 0.6), C.id: (0.35, 0.45)}
    means = [[(one + other) / 2 for one, other in itertools.product(seeds, repeat=2)] for seeds in values.values()]
    shares = [
        np.mean([(np.sign(round(b - w, 9)) + 1) / 2 for b, w in itertools.combinations(drawn, 2)])
        for drawn in itertools.product(*means)
    ]
    expected = np.percentile(shares, [2.5, 97.5], method="inverted_cdf")
    assert rank_report(truth, values, num_draws=20_000).interval == pytest.approx(tuple(expected), abs=1e-9)


def test_ranking_is_the_same_twice() -> None:
    scores = {A.id: (0.2, 0.5, 0.3), B.id: (0.3, 0.1, 0.4), C.id: (0.2, 0.25, 0.3)}
    assert rank_report(ordered((A,), (B,), (C,)), scores) == rank_report(ordered((A,), (B,), (C,)), scores)


# -- what ranks without training --------------------------------------------------------------------------------------


def test_tokens_seen_without_shift_is_the_mean_window() -> None:
    assert tokens_seen(parse_name("Swin-B-S0000")) == 49
    assert tokens_seen(parse_name("Swin-Free-B")) == pytest.approx((4 * 49 + 20 * 196) / 24)


@pytest.mark.parametrize(("tokens", "window"), [(8, 4), (8, 2), (16, 4)])
def test_tokens_seen_under_a_shift_is_what_the_mask_of_the_model_leaves(tokens: int, window: int) -> None:
    visible = (shift_mask(tokens, window) == 0).sum(-1).float().mean().item()
    size = f"R{tokens * 8}-P8"
    # Stage 1's second block shifts, its first does not; stages 2 to 4 have one block each.
    whole = parse_name(f"Swin-E8x2.1.1.1-{size}-W{window}.1.1.1-S1000-N2-H1.1.1.1")
    assert tokens_seen(whole) == pytest.approx((window**2 + visible + 3) / 5)


class TwoLayers(nn.Module):
    """Two linear layers without bias around a norm and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.act, self.second = (
            nn.Linear(4, 2, bias=False),
            nn.LayerNorm(2),
            nn.ReLU(),
            nn.Linear(2, 2, bias=False),
        )
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, -1.0, 0.0, 2.0], [0.0, 1.0, -3.0, 0.0]]))
            self.second.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 1.0]]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.norm(self.first(image.flatten(1)))))  # type: ignore[no-any-return]


def test_synflow_of_two_layers_is_twice_the_sum_of_their_paths() -> None:
    # |first| sums to (4, 4) a unit, |second| to (1.5, 3) a unit: 18 is what flows, and each layer carries all of it.
    arch = Arch(image_size=16, patch_size=2, channels=1, num_classes=2)
    module = TwoLayers()
    module.first = nn.Linear(256, 2, bias=False)
    with torch.no_grad():
        module.first.weight.fill_(-1 / 64)
    assert synflow(module, arch) == pytest.approx(2 * (4 * 1.5 + 4 * 3))


def test_naswot_counts_signs_that_agree() -> None:
    network = nn.Sequential(nn.Flatten(), nn.ReLU())
    images = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).view(2, 1, 1, 2)
    assert naswot(network, images) == pytest.approx(math.log(2 * 2 - 1 * 1))
    assert naswot(network, images[[0, 0]]) == -math.inf
    assert naswot(nn.Sequential(nn.Flatten(), nn.GELU()), images) == naswot(network, images)


def test_grad_norm_of_one_layer_is_the_residual_times_the_image() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[1].weight.zero_()
    # Softmax gives a half each: the gradient is (-1/2, 1/2) times the image, which is 5 long.
    found = grad_norm(network, torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([0]))
    assert found == pytest.approx(math.sqrt(0.5) * 5)


@pytest.mark.parametrize("name", ["Swin-T", "Swin-Free-T-BR", "SwinV2-T-224"])
def test_training_free_scores_leave_the_module_alone_and_are_the_same_twice(name: str) -> None:
    arch = parse_name(name).proxy(SCALE, channels=1, num_classes=4)
    module = model.build(arch, seed=0)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    images = torch.randn(8, 1, arch.image_size, arch.image_size, generator=torch.Generator().manual_seed(0))
    assert naswot(module, images[[0, 1, 2, 3, 4, 5, 6, 0]]) == -math.inf, "one image twice"
    found = [
        (synflow(module, arch), naswot(module, images), grad_norm(module, images, torch.arange(8) % 4))
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert all(math.isfinite(score) for score in found[0])
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_synflow_sees_no_shift() -> None:
    archs = [parse_name(name).proxy(SCALE, channels=1, num_classes=4) for name in ("Swin-T", "Swin-T-S0000")]
    scores = [synflow(model.build(arch, seed=0), arch) for arch in archs]
    assert scores[0] == scores[1] > 0


# -- real trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0)
    for part, number in (("train", 112), ("t10k", 8)):
        contents = (pixels.integers(0, 255, (number, 16, 16), np.uint8), np.arange(number, dtype=np.uint8) % 4)
        of_part = [name for name in IDX_FILES if name.startswith(part)]
        for name, content in zip(of_part, contents, strict=True):
            header = bytes([0, 0, 8, content.ndim]) + struct.pack(f">{content.ndim}I", *content.shape)
            (images / name).write_bytes(gzip.compress(header + content.tobytes()))
    return plan_for(RECIPE, describe(str(images), tmp_path), SCALE, train_threads=1)


@pytest.fixture
def evaluator(plan: Plan, tmp_path: Path) -> Iterator[Evaluator]:
    with Evaluator(plan, cache_root=tmp_path) as made:
        made.prepare(ARCHS[0])
        yield made


def known(plan: Plan, store: Store, seeds: range) -> list[float | None]:
    found = trainings(ARCHS, plan, store, seeds)
    return [None if training.score is None else training.score.accuracy for training in found]


def test_training_without_measuring_is_complete_and_has_no_latency(
    plan: Plan, evaluator: Evaluator, store: Store
) -> None:
    whole = evaluator.evaluate(ARCHS[0], store, measures=False)
    assert (whole.outcome, whole.latency, len(whole.scores)) == ("complete", None, 1)
    part = evaluator.evaluate(ARCHS[1], store, epochs=1, measures=False)
    assert (part.outcome, part.latency, part.epochs) == ("stopped", None, 1)
    assert store.measured(plan.target.id) == []
    again = evaluator.evaluate(ARCHS[0], store, measures=False)
    assert (again.reused, again.spent_epochs, again.accuracy) == (1, 0, whole.accuracy)


def test_interrupted_run_goes_on_where_it_stopped(
    plan: Plan, evaluator: Evaluator, store: Store, tmp_path: Path
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.num_done == 2:
            raise KeyboardInterrupt

    seeds, runner = range(2), Here(evaluator, store)
    with pytest.raises(KeyboardInterrupt):
        run(ARCHS, plan, store, runner, seeds=seeds, on_progress=interrupt)
    assert [accuracy is not None for accuracy in known(plan, store, seeds)] == [True, True, False, False]
    told: list[Progress] = []
    run(ARCHS, plan, store, runner, seeds=seeds, on_progress=told.append)
    assert [progress.seed for progress in told if progress.kind == "trained"] == [1, 1]
    other = Store.open(str(tmp_path / "undisturbed.db"), create=True)
    run(ARCHS, plan, other, Here(evaluator, other), seeds=seeds)
    assert known(plan, other, seeds) == known(plan, store, seeds)
    told.clear()
    run(ARCHS, plan, store, runner, seeds=seeds, on_progress=told.append)
    assert told == []
    # The trainings of another machine, which belong to no study, come with a merge.
    third = Store.open(str(tmp_path / "third.db"), create=True)
    assert merge(third, str(tmp_path / "undisturbed.db")).scores == 4
    assert known(plan, third, seeds) == known(plan, store, seeds)
    other.close()
    third.close()


def test_network_that_stands_twice_by_its_proxy_is_trained_once(plan: Plan, evaluator: Evaluator, store: Store) -> None:
    twins = tuple(parse_name(f"Swin-E{dim}x1.1.1.1-R56-P1-N4") for dim in (16, 32))
    run(twins, plan, store, Here(evaluator, store))
    truth = Truth("own", twins, {}, {twins[0].id: 1.0, twins[1].id: 2.0}, (Pair(twins[1].id, twins[0].id, "measured"),))
    found = report([truth], plan, store)
    assert found.cost.num_trainings == 1
    assert found.num_pairs == 0
    assert len(found.sections[0].rankings[PROXY].inseparable) == 1
    assert found.shared == (tuple(arch.name for arch in twins),)


def test_diverged_training_is_a_result_that_is_not_tried_again(plan: Plan, store: Store, tmp_path: Path) -> None:
    wild = plan_for(RECIPE.model_copy(update={"lr": 1e30}), plan.data, SCALE, train_threads=1)
    told: list[Progress] = []
    with Evaluator(wild, cache_root=tmp_path) as evaluator:
        evaluator.prepare(ARCHS[0])
        for _ in range(2):
            run(ARCHS[:1], wild, store, Here(evaluator, store), on_progress=told.append)
    assert [progress.message.split(":")[0] for progress in told if progress.kind == "failed"] == ["diverged"]
    truth = Truth("own", ARCHS[:1], {}, {}, ())
    (network,) = report([truth], wild, store).networks
    assert (network.scores, network.accuracy, network.diverged_seeds) == ((LOST,), None, (0,))
    assert network.problems[0].startswith("seed 0: diverged: ")


def test_divergence_met_at_a_rung_of_a_ladder_is_that_of_the_whole_training(plan: Plan, store: Store) -> None:
    key = plan.score_key(ARCHS[0], epochs=1)
    store.add_failure(ARCHS[0], Failure(ARCHS[0].id, str(key), "diverged", "diverged: the loss is nan at step 2"))
    (training,) = trainings(ARCHS[:1], plan, store, (0,))
    assert (training.is_diverged, training.is_open) == (True, False)
    (network,) = report([Truth("own", ARCHS[:1], {}, {}, ())], plan, store).networks
    assert (network.diverged_seeds, network.missing_seeds) == ((0,), ())


def test_divergence_is_found_however_long_the_training_was_to_be(plan: Plan, store: Store) -> None:
    keys = [plan.score_key(ARCHS[0], epochs=epochs) for epochs in (9, 10)]
    for key in keys:
        store.add_failure(ARCHS[0], Failure(ARCHS[0].id, str(key), "diverged", f"diverged: by epoch {key.epochs}"))
    found = store.divergence(plan.score_key(ARCHS[0], epochs=1_000_000))
    assert found is not None
    assert found.message == "diverged: by epoch 9"


class Scripted:
    """A runner whose jobs end as it is told: each step is the seed of a job that begins, or that ends with its process."""

    capacity = 2

    def __init__(self, *steps: tuple[str, int]) -> None:
        self.steps = list(steps)
        self.jobs: list[Job] = []
        self.seeds: list[int] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        self.seeds.append(job.seeds[0])

    def wait(self, on_event: Callable[[Arch, Event], None], timeout_s: float | None = None) -> Done | None:
        while True:
            what, seed = self.steps.pop(0)
            job = next(job for job in self.jobs if job.seeds == (seed,))
            if what == "dies":
                self.jobs.remove(job)
                return Done(job, None, MeasureError("killed", "out_of_memory"), 1.0)
            on_event(job.arch, "training")

    def close(self) -> None:
        pass


def test_process_that_dies_in_a_training_is_told_though_another_seed_of_its_network_has_not_begun(
    plan: Plan, store: Store
) -> None:
    runner = Scripted(("begins", 0), ("begins", 1), ("dies", 0), ("dies", 1), ("begins", 2), ("dies", 2))
    told: list[Progress] = []
    run(ARCHS[:1], plan, store, runner, seeds=range(3), on_progress=told.append)
    assert runner.seeds == [0, 1, 2], "none is begun anew"
    assert [progress.seed for progress in told if progress.kind == "failed"] == [0, 1, 2]


def test_training_whose_process_dies_before_it_begins_is_handed_out_again(plan: Plan, store: Store) -> None:
    runner = Scripted(("dies", 0), ("begins", 0), ("dies", 0))
    run(ARCHS[:1], plan, store, runner)
    assert runner.seeds == [0, 0]
    with pytest.raises(UserError, match="4 worker processes in a row died before they could begin"):
        run(ARCHS[1:], plan, store, Scripted(*[("dies", 0)] * 4))


def test_cost_of_a_configuration_is_of_those_with_all_their_seeds(plan: Plan, store: Store) -> None:
    for arch, seed, seconds in ((ARCHS[0], 0, 3.0), (ARCHS[0], 1, 5.0), (ARCHS[1], 0, 1.0)):
        score = Score(**asdict(plan.score_key(arch, seed=seed)), accuracy=0.5, train_s=seconds)
        store.add_score(plan.proxy(arch), plan.recipe.model_dump(), score)
    cost = report([Truth("own", ARCHS, {}, {}, ())], plan, store, seeds=range(2)).cost
    assert (cost.num_trainings, cost.mean_s, cost.max_s, cost.training_s) == (3, 8.0, 8.0, 3.0)
    none_whole = report([Truth("own", ARCHS, {}, {}, ())], plan, store, seeds=range(3)).cost
    assert (none_whole.num_trainings, none_whole.mean_s, none_whole.max_s) == (3, None, None)


def test_report_counts_the_cost_and_is_ready_for_json(plan: Plan, evaluator: Evaluator, store: Store) -> None:
    seeds = range(2)
    run(ARCHS, plan, store, Here(evaluator, store), seeds=seeds)
    truth = Truth(
        "own",
        ARCHS,
        {},
        {arch.id: float(place) for place, arch in enumerate(ARCHS)},
        (Pair(ARCHS[1].id, ARCHS[0].id, "measured"),),
    )
    rankers = rankers_of(ARCHS, plan, seeds)
    found = report([truth], plan, store, seeds=seeds, rankers=rankers)
    scores = [training.score for training in trainings(ARCHS, plan, store, seeds)]
    assert all(scores)
    assert found.cost.num_trainings == 4
    assert found.cost.mean_s == pytest.approx(sum(score.train_s for score in scores if score) / 2)
    assert found.cost.max_s == max(network.seconds or 0 for network in found.networks)
    content = found.to_json()
    (section,) = content["sections"]
    assert list(section["rankings"]) == [PROXY, "parameters", "flops", "tokens_seen", "synflow", "naswot", "grad_norm"]
    # The network with more blocks and a larger window is the better one here.
    assert section["rankings"]["parameters"]["concordance"] == section["rankings"]["tokens_seen"]["concordance"] == 1.0
    means = [network["accuracy"] for network in content["networks"]]
    assert section["rankings"][PROXY]["concordance"] == (np.sign(means[1] - means[0]) + 1) / 2
    assert set(rankers.seconds) == {"synflow", "naswot", "grad_norm"}


def test_networks_whose_proxies_take_other_images_cannot_be_compared(plan: Plan) -> None:
    larger = parse_name("Swin-E16x1.1.1.1-R112-P1-N4")
    with pytest.raises(SpaceError, match=r"take images of 32 pixels for .*, 64 pixels for Swin-E16x1.1.1.1-R112"):
        require_proxies([*ARCHS, larger], plan)
    with pytest.raises(SpaceError, match=r"mine: has no proxy: .*8 is not a multiple of 7"):
        odd = parse_name("SwinV2-T")
        require_proxies([odd], plan, {odd.id: "mine"})
