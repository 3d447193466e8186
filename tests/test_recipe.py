"""Recipes and run files: identity, strict reading, and a round trip through YAML."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from explorer.arch import Arch, parse_name
from explorer.errors import RecipeError
from explorer.training.recipe import RECIPES, Recipe, RunFile, load_recipe, load_run, write_run

#: Another valid value for every field of a recipe.
OTHERS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 64,
    "accumulate": 2,
    "lr": 2e-3,
    "min_lr": 1e-4,
    "warmup": 0.2,
    "weight_decay": 0.1,
    "label_smoothing": 0.2,
    "drop_path": 0.3,
    "grad_clip": 1.0,
    "flip": True,
    "crop_padding": 0.25,
    "betas": (0.9, 0.98),
    "scale": 0.5,
    "color": 0.3,
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "eval_every": 2,
    "ema": 0.99,
    "precise_bn": 256,
    "train_images": 100,
    "eval_images": 50,
    "precision": "fp32",
    "init": "narrow",
}
#: Fields of an architecture that run files of version 0.1 do not have.
NEWER = ("v2", "pretrained_windows")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", ["proxy", "quick", "imagenet"])
def test_built_in_recipe_is_found_by_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe == RECIPES[name]
    assert recipe.batch_size % recipe.accumulate == 0
    assert recipe.min_lr < recipe.lr


def test_built_in_recipes_have_ids_of_their_own() -> None:
    ids = {recipe.id for recipe in RECIPES.values()}
    assert len(ids) == len(RECIPES)
    assert all(recipe_id.startswith("r1-") for recipe_id in ids)


@pytest.mark.parametrize("field", Recipe.model_fields)
def test_id_depends_on_every_field(field: str) -> None:
    assert Recipe(**{"epochs": 3, field: OTHERS[field]}).id != Recipe(epochs=3).id


@pytest.mark.parametrize(
    ("fields", "recipe_id"),
    [
        ({"epochs": 3}, "r1-543da7abb83f"),
        ({"epochs": 8, "lr": 3e-3, "warmup": 0.15, "train_images": 8_000, "eval_images": 2_000}, "r1-25b7d6d0508e"),
    ],
)
def test_id_of_a_recipe_stays_when_fields_are_added(fields: dict[str, Any], recipe_id: str) -> None:
    """Stored scores are found by it."""
    assert Recipe(**fields).id == recipe_id


def test_id_is_the_same_however_a_default_is_given() -> None:
    assert Recipe(epochs=3, batch_size=128, lr=0.001).id == Recipe(epochs=3).id


def test_given_epochs_replace_those_of_the_recipe() -> None:
    assert load_recipe("proxy", epochs=5) == Recipe(**{**RECIPES["proxy"].model_dump(), "epochs": 5})


def test_given_epochs_change_the_id_also_once_the_id_of_the_recipe_was_read() -> None:
    assert RECIPES["proxy"].id
    assert load_recipe("proxy", epochs=5).id == Recipe(**{**RECIPES["proxy"].model_dump(), "epochs": 5}).id


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RECIPES["proxy"].epochs = 1  # type: ignore[misc]


@pytest.mark.parametrize("epochs", [0, -1])
def test_epochs_below_one_are_refused(epochs: int) -> None:
    with pytest.raises(RecipeError, match=f"epochs: {epochs} is not a whole number of at least 1"):
        load_recipe("proxy", epochs=epochs)


@pytest.mark.parametrize("name", ["nosuch", "recipe.json", ""])
def test_unknown_recipe_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    for words in (repr(name), *RECIPES, ".yaml"):
        assert words in str(caught.value)


# -- a recipe in a file -----------------------------------------------------------------------------------------------


def test_recipe_file_is_read_with_defaults_for_what_it_leaves_out(file: Path) -> None:
    file.write_text("epochs: 3\nlr: 0.002\nflip: true\nprecision: fp32\n", encoding="utf-8")
    assert load_recipe(str(file)) == Recipe(epochs=3, lr=0.002, flip=True, precision="fp32")
    assert load_recipe(str(file), epochs=9).epochs == 9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epochs: 0", ["epochs", "0", "greater than 0"]),
        ("epochs: 3.5", ["epochs", "3.5", "integer"]),
        ("epochs: '3'", ["epochs", "'3'", "integer"]),
        ("lr: 0.1", ["epochs", "is missing"]),
        ("epochs: 3\nlr: -0.1", ["lr", "-0.1", "greater than 0"]),
        ("epochs: 3\nlr: .nan", ["lr", "nan"]),
        ("epochs: 3\nwarmup: 1.0", ["warmup", "1.0", "less than 1"]),
        ("epochs: 3\nflip: 1", ["flip", "1", "boolean"]),
        ("epochs: 3\nprecision: fp8", ["precision", "'fp8'", "'mixed', 'fp16' or 'fp32'"]),
        ("epochs: 3\nema: 1.0", ["ema", "1.0", "less than 1"]),
        ("epochs: 3\nema: 0.0", ["ema", "0.0", "greater than 0"]),
        ("epochs: 3\neval_every: 0", ["eval_every", "0", "greater than 0"]),
        ("epochs: 3\nbetas: 0.9", ["betas", "0.9", "tuple"]),
        ("epochs: 3\nbetas: [0.9]", ["betas[1]", "is missing"]),
        ("epochs: 3\nbetas: [0.9, 1.0]", ["betas[1]", "1.0", "less than 1"]),
        ("epochs: 3\nbetas: [0.9, '0.9']", ["betas[1]", "'0.9'", "number"]),
        ("epochs: 3\nscale: 0.0", ["scale", "0.0", "greater than 0"]),
        ("epochs: 3\nrandom_erasing: 1.5", ["random_erasing", "1.5", "less than or equal to 1"]),
        ("epochs: 3\nmixup: -0.1", ["mixup", "-0.1", "greater than or equal to 0"]),
        ("epochs: 3\nlearning_rate: 0.1", ["learning_rate", "unknown key", *Recipe.model_fields]),
        ("epochs: 3\nepochs: 4", ["'epochs' is given twice", "line 2"]),
        ("epochs: [", ["not a valid YAML document"]),
        ("- epochs", ["not a mapping", "epochs"]),
        ("", ["not a mapping", "epochs"]),
    ],
)
def test_problem_in_a_recipe_file_is_told_with_file_field_and_value(text: str, told: list[str], file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    for words in told:
        assert words in str(caught.value)


def test_pair_in_a_recipe_file_is_a_list(file: Path) -> None:
    file.write_text("epochs: 3\nbetas: [0.9, 0.95]\n", encoding="utf-8")
    assert load_recipe(str(file)).betas == (0.9, 0.95)


def test_every_problem_of_a_recipe_file_is_told_at_once(file: Path) -> None:
    file.write_text("epochs: 0\nlr: 0.0\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(file))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["epochs", "lr"]


def test_recipe_file_that_is_missing_is_named(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.yaml: no such file"):
        load_recipe(str(file))


@pytest.mark.parametrize("field", ["lr", "min_lr", "weight_decay", "grad_clip"])
def test_infinite_value_is_refused(field: str, file: Path) -> None:
    file.write_text(f"epochs: 3\n{field}: .inf\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=f"{field}: inf"):
        load_recipe(str(file))


# -- run files --------------------------------------------------------------------------------------------------------


def run_of(arch: Arch, **given: Any) -> RunFile:
    return RunFile(version=1, name="chosen", arch=arch.to_dict(), recipe=Recipe(epochs=4), **given)


@pytest.mark.parametrize(
    "name",
    [
        "Swin-T",
        "Swin-Free-B-BR-DR14",
        "Swin-E16x2.2.2.2-W7.14.7.7-S0110-R56-P1-C1-N10",
        "Swin-T-W5.21.4.3",
        "SwinV2-T",
        "SwinV2-B-224",
        "SwinV2-B-W24.24.24.12-384-F12.12.12.6",
    ],
)
def test_run_file_reads_back_as_it_was_written(name: str, file: Path) -> None:
    arch = parse_name(name)
    run = run_of(arch, data="contours", seed=7, origin={"study": "mine", "accuracy": 0.5, "target": {"threads": 2}})
    write_run(run, file)
    assert load_run(file) == run
    assert load_run(file).architecture("run") == arch


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_keeps_its_id_in_a_run_file(recipe: str, file: Path) -> None:
    write_run(run_of(parse_name("Swin-T")).model_copy(update={"recipe": RECIPES[recipe]}), file)
    assert load_run(file).recipe.id == RECIPES[recipe].id


def test_recipe_with_every_field_set_reads_back_from_a_run_file(file: Path) -> None:
    assert set(OTHERS) == set(Recipe.model_fields)
    recipe = Recipe(**OTHERS)
    write_run(run_of(parse_name("Swin-T")).model_copy(update={"recipe": recipe}), file)
    assert load_run(file).recipe == recipe


def test_run_file_says_how_to_use_it(file: Path) -> None:
    write_run(run_of(parse_name("Swin-T")), file)
    heading = file.read_text(encoding="utf-8").splitlines()[0]
    assert heading.startswith("#")
    assert f"swinexplore train {file.name}" in heading


def test_seed_data_and_origin_of_a_run_file_may_be_left_out(file: Path) -> None:
    write_run(run_of(parse_name("Swin-T")), file)
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: text.index("data:")], encoding="utf-8")
    assert load_run(file) == run_of(parse_name("Swin-T"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("version: 1", "version: 2", ["version", "2", "allowed: 1"]),
        ("name: chosen", "name: chosen\nextra: 1", ["extra", "unknown key", "origin"]),
        ("embed_dim: 96", "embed_dim: '96'", ["arch.embed_dim", "'96'", "whole number"]),
        ("embed_dim: 96", "embed_dim: true", ["arch.embed_dim", "True", "whole number"]),
        ("br: false", "br: false\n  dim: 96", ["arch.dim", "allowed", "embed_dim,"]),
        ("windows: [7, 7, 7, 7]", "windows: 7", ["arch.windows", "7", "4 values"]),
        ("windows: [7, 7, 7, 7]", "windows: [7, 7, 7]", ["arch.windows", "4 values"]),
        ("windows: [7, 7, 7, 7]", "windows: [7, 0, 7, 7]", ["arch.windows.stage2", "0", "from 1 to 1,000,000"]),
        ("image_size: 224", "image_size: 225", ["arch.image_size", "225", "multiple of 32", "224 or 256"]),
        ("v2: false", "v2: 2", ["arch.v2", "2", "true or false"]),
        ("v2: false", "v2: null", ["arch.v2", "None", "true or false"]),
        ("pretrained_windows: [0, 0, 0, 0]", "pretrained_windows: 12", ["arch.pretrained_windows", "12", "4 values"]),
        ("pretrained_windows: [0, 0, 0, 0]", "pretrained_windows: [0, 0]", ["arch.pretrained_windows", "4 values"]),
        (
            "pretrained_windows: [0, 0, 0, 0]",
            "pretrained_windows: [0, -6, 0, 0]",
            ["arch.pretrained_windows.stage2", "-6", "from 1 to 1,000,000"],
        ),
        ("num_heads: [3, 6, 12, 24]", "num_heads: [3, 5, 12, 24]", ["arch.num_heads.stage2", "5", "192"]),
        ("br: false", "br: 0", ["arch.br", "0", "true or false"]),
        ("epochs: 4", "epochs: 0", ["recipe.epochs", "0", "greater than 0"]),
        ("epochs: 4", "epoch: 4", ["recipe.epoch", "unknown key", "epochs"]),
        ("seed: 0", "seed: -1", ["seed", "-1", "greater than or equal to 0"]),
        ("seed: 0", f"seed: {2**64}", ["seed", str(2**64), "less than"]),
        ("data: null", "data: 3", ["data", "3", "string"]),
    ],
)
def test_problem_in_a_run_file_is_told_with_file_field_and_value(
    old: str, new: str, told: list[str], file: Path
) -> None:
    write_run(run_of(parse_name("Swin-T")), file)
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_run(file)
    assert str(caught.value).startswith(f"{file}: ")
    for words in told:
        assert words in str(caught.value)


def test_run_file_that_is_missing_is_named(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.yaml: no such file"):
        load_run(file)


@pytest.mark.parametrize("field", [field.name for field in fields(Arch) if field.name not in NEWER])
def test_run_file_whose_arch_leaves_out_a_field_is_refused(field: str, file: Path) -> None:
    run = run_of(parse_name("Swin-T"))
    write_run(run.model_copy(update={"arch": {key: value for key, value in run.arch.items() if key != field}}), file)
    with pytest.raises(RecipeError, match=rf"mine\.yaml: arch: {field} missing"):
        load_run(file)


@pytest.mark.parametrize("name", ["Swin-T", "Swin-Free-B-BR-DR14"])
def test_run_file_from_before_swin_v2_is_read(name: str, file: Path) -> None:
    run = run_of(parse_name(name))
    old = run.model_copy(update={"arch": {key: value for key, value in run.arch.items() if key not in NEWER}})
    write_run(old, file)
    assert not any(f"{field}:" in file.read_text(encoding="utf-8") for field in NEWER)
    assert load_run(file) == old
    assert load_run(file).architecture("run") == parse_name(name)


@pytest.mark.parametrize("field", NEWER)
def test_run_file_that_leaves_out_one_of_the_newer_fields_is_refused(field: str, file: Path) -> None:
    """A Swin V2 without its `v2` would be another network."""
    run = run_of(parse_name("SwinV2-T"))
    write_run(run.model_copy(update={"arch": {key: value for key, value in run.arch.items() if key != field}}), file)
    with pytest.raises(RecipeError, match=rf"mine\.yaml: arch: {field} missing"):
        load_run(file)


def test_window_of_a_run_file_that_does_not_divide_its_grid_is_read(file: Path) -> None:
    write_run(run_of(parse_name("Swin-T")), file)
    text = file.read_text(encoding="utf-8")
    assert text.count("windows: [7, 7, 7, 7]") == 1
    file.write_text(text.replace("windows: [7, 7, 7, 7]", "windows: [7, 9, 7, 7]"), encoding="utf-8")
    assert load_run(file).architecture("run") == parse_name("Swin-T-W7.9.7.7")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("accumulate: 3", "accumulate: 3 does not divide batch_size 128"),
        ("min_lr: 1.0", "min_lr: 1.0 is more than lr 0.001"),
        ("precise_bn: 1", "precise_bn: 1 image has no spread; use 0"),
        ("mixup: 0.8\naccumulate: 128", "accumulate: 128 leaves parts of 1 image"),
        ("cutmix: 1.0\naccumulate: 128", "accumulate: 128 leaves parts of 1 image"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(line: str, message: str, file: Path) -> None:
    file.write_text(f"epochs: 3\n{line}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(file))


def test_number_with_an_exponent_and_no_point_is_a_number(file: Path) -> None:
    file.write_text("epochs: 3\nlr: 2e-3\n", encoding="utf-8")
    assert load_recipe(str(file)).lr == 2e-3


def test_changed_number_of_epochs_is_another_recipe() -> None:
    assert RECIPES["proxy"].id != load_recipe("proxy", epochs=5).id
