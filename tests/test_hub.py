"""Sets of Hugging Face, read by the real package from folders that it wrote, or from a hub on this machine."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import serving
from PIL import Image

from explorer.errors import BackendMissing, DataError
from explorer.training import hub
from explorer.training.data import Data, describe, load, prepare
from explorer.training.folders import DataInfo

datasets = pytest.importorskip("datasets", reason="pip install 'swinexplore[huggingface]'")
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no bars on stderr."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def encoded(level: int, mode: str = "RGB") -> dict[str, Any]:
    content = io.BytesIO()
    Image.new(mode, (8, 8), level if mode == "L" else (level, level, level)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def split(number: int, first: int = 0, *, mode: str = "RGB", labels: list[int | None] | None = None) -> Any:
    """Images of rising grey levels, whose classes come in turn."""
    features = {
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=CLASSES),
        "name": datasets.Value("string"),
    }
    rows = {
        "picture": [encoded(first + index, mode) for index in range(number)],
        "kind": labels or [index % 3 for index in range(number)],
        "name": [f"image {index}" for index in range(number)],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def saved(folder: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return f"hf:{folder}"


@pytest.fixture
def spec(tmp_path: Path) -> str:
    return saved(tmp_path / "set", train=split(42), test=split(9, 100))


def loaded(spec: str, root: Path, channels: int | None = None) -> Data:
    info = describe(spec, root)
    return load(info, image_size=8, channels=channels or info.channels, device=torch.device("cpu"))


def levels(images: torch.Tensor) -> list[int]:
    return sorted(images[:, 0, 0, 0].tolist())


def test_saved_set_is_described_by_its_features_and_rows(spec: str, tmp_path: Path) -> None:
    info = describe(spec, tmp_path / "root")
    assert info == DataInfo(spec, info.id, 3, 3, 42, 9, tmp_path / "root", tuple(CLASSES))


def test_images_are_decoded_once_with_their_labels(spec: str, tmp_path: Path) -> None:
    source = loaded(spec, tmp_path / "root").source
    assert levels(source.train.images) == list(range(42))
    assert levels(source.test.images) == list(range(100, 109))
    assert (source.train.images[:, 0, 0, 0] % 3).tolist() == source.train.labels.tolist()
    assert source.train.cache is not None
    before = source.train.cache.stat().st_mtime_ns
    assert torch.equal(loaded(spec, tmp_path / "root").source.train.images, source.train.images)
    assert source.train.cache.stat().st_mtime_ns == before


def test_fingerprint_is_that_of_the_content(spec: str, tmp_path: Path) -> None:
    first = describe(spec, tmp_path).id
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert describe(f"hf:{tmp_path / 'copy'}", tmp_path / "other").id == first
    again = saved(tmp_path / "again", train=split(42), test=split(9, 100))
    assert describe(again, tmp_path).id == first, "another machine may have written it anew"
    changed = saved(tmp_path / "changed", train=split(42, 1), test=split(9, 100))
    relabelled = saved(tmp_path / "relabelled", train=split(42, labels=[2, 1, 0] * 14), test=split(9, 100))
    assert len({first, describe(changed, tmp_path).id, describe(relabelled, tmp_path).id}) == 3


@pytest.mark.parametrize("changed", [0, 1, 7, 40, 41])
def test_fingerprint_beyond_the_sample_is_of_first_and_last_and_of_all_sizes(
    changed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MOST_SAMPLED", 5)
    monkeypatch.setattr(hub, "_SIZES_AT_ONCE", 10)
    first, test = describe(saved(tmp_path / "first", train=split(42), test=split(9, 100)), tmp_path).id, split(9, 100)
    rows = split(42).cast_column("picture", datasets.Image(decode=False)).to_list()
    rows[changed]["picture"]["bytes"] += b"more"
    other = datasets.Dataset.from_list(rows, features=split(1).features)
    assert describe(saved(tmp_path / "other", train=other, test=test), tmp_path).id != first
    again = datasets.Dataset.from_list(split(42).cast_column("picture", datasets.Image(decode=False)).to_list()[::-1])
    again = again.cast(split(1).features).select(range(41, -1, -1))
    assert describe(saved(tmp_path / "again", train=again, test=test), tmp_path).id == first, "rows that lie otherwise"


def test_sizes_are_those_of_the_files_that_rows_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(3)["bytes"])
    rows = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "none.png")]
    rows += [encoded(7), None]
    images = datasets.Dataset.from_dict(
        {"picture": rows}, features=datasets.Features({"picture": datasets.Image(decode=False)})
    )
    found = hub._Rows(images, "picture", np.array([2, 0, 1, 3]), np.zeros(4, int)).sizes()
    assert found.tolist() == [len(encoded(7)["bytes"]), len(encoded(3)["bytes"]), -1, 0]


def test_folder_of_parquet_files_is_the_same_set_as_a_saved_one(spec: str, tmp_path: Path) -> None:
    folder = tmp_path / "parquet"
    folder.mkdir()
    for name, rows in (("train", split(42)), ("test", split(9, 100))):
        rows.to_parquet(str(folder / f"{name}-00000-of-00001.parquet"))
    info = describe(f"hf:{folder}", tmp_path / "root")
    assert info.id == describe(spec, tmp_path).id
    assert levels(loaded(f"hf:{folder}", tmp_path / "root").source.test.images) == list(range(100, 109))


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_test_part_may_be_the_one_for_validation(name: str, tmp_path: Path) -> None:
    spec = saved(tmp_path / "set", train=split(42), **{name: split(9, 100)})
    assert describe(spec, tmp_path).num_test == 9


def test_test_split_whose_labels_are_kept_back_is_no_test_part(tmp_path: Path) -> None:
    parts = {"train": split(42), "test": split(9, 100, labels=[-1] * 9), "validation": split(6, 200)}
    assert levels(loaded(saved(tmp_path / "set", **parts), tmp_path).source.test.images) == list(range(200, 206))


@pytest.mark.parametrize("named", ["set", "./set", "set/", "../here/set", "f", "hf"])
def test_folder_is_described_by_where_it_lies(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    folder = here / Path(named).name
    saved(folder, train=split(42), test=split(9, 100))
    info = describe(f"hf:{named},image=picture", tmp_path / "root")
    assert info.spec == f"hf:{folder},image=picture"
    monkeypatch.chdir(tmp_path)
    assert describe(info.spec, tmp_path / "root") == info


def test_test_split_that_names_other_classes_is_refused(tmp_path: Path) -> None:
    turned = datasets.ClassLabel(names=CLASSES[::-1])
    for number, feature in enumerate((turned, datasets.Value("int64"))):
        spec = saved(tmp_path / str(number), train=split(42), test=split(9, 100).cast_column("kind", feature))
        with pytest.raises(DataError, match="kind of the split 'test' does not name the classes that 'train' does"):
            describe(spec, tmp_path)


def test_set_of_one_class_is_refused(tmp_path: Path) -> None:
    rows = split(9, labels=[0] * 9).cast_column("kind", datasets.ClassLabel(names=["ant"]))
    with pytest.raises(DataError, match="kind knows 1 class; at least two are expected"):
        describe(saved(tmp_path / "set", train=rows), tmp_path)


@pytest.mark.parametrize("is_alone", [False, True])
def test_tenth_of_every_class_is_cut_where_there_is_no_test_part(is_alone: bool, tmp_path: Path) -> None:
    if is_alone:
        split(60).save_to_disk(str(tmp_path / "set"))
    else:
        saved(tmp_path / "set", train=split(60))
    source = loaded(f"hf:{tmp_path / 'set'}", tmp_path).source
    assert sorted(levels(source.train.images) + levels(source.test.images)) == list(range(60))
    assert source.test.labels.bincount().tolist() == [2, 2, 2]


def test_grey_set_has_one_channel_and_is_repeated_where_three_are_wanted(tmp_path: Path) -> None:
    spec = saved(tmp_path / "set", train=split(42, mode="L"), test=split(9, 100, mode="L"))
    assert describe(spec, tmp_path).channels == 1
    grey, rgb = (loaded(spec, tmp_path, channels).source.train.images for channels in (1, 3))
    assert (grey.shape, rgb.shape) == ((42, 1, 8, 8), (42, 3, 8, 8))
    assert torch.equal(rgb, grey.expand_as(rgb))


def test_column_is_chosen_where_several_fit(tmp_path: Path) -> None:
    def doubled(number: int) -> Any:
        rows = split(number)
        return rows.add_column("mask", rows.with_format("arrow")["picture"]).cast_column("mask", datasets.Image())

    spec = saved(tmp_path / "set", train=doubled(42), test=doubled(9))
    with pytest.raises(
        DataError, match=r"2 columns of type Image among .*mask \(Image\).*choose one: .*,image=picture"
    ):
        describe(spec, tmp_path)
    info = describe(f"{spec},image=mask,label=kind", tmp_path)
    assert (info.num_train, info.num_classes) == (42, 3)
    with pytest.raises(DataError, match="image=name is no column of type Image; allowed: picture, mask"):
        describe(f"{spec},image=name", tmp_path)


def broken_image(rows: dict[str, Any]) -> None:
    rows["picture"][3] = {"bytes": b"no image", "path": None}


def no_image(rows: dict[str, Any]) -> None:
    rows["picture"][3] = None


@pytest.mark.parametrize("change", [broken_image, no_image])
def test_unreadable_images_are_named_by_their_row(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    whole = split(42).cast_column("picture", datasets.Image(decode=False))
    rows = whole.to_dict()
    change(rows)
    broken = datasets.Dataset.from_dict(rows, features=whole.features).cast_column("picture", datasets.Image())
    spec = saved(tmp_path / "set", train=broken, test=split(9, 100))
    with pytest.raises(DataError, match=r"1 of 42 training images cannot be read.* train row 3 \(no image"):
        loaded(spec, tmp_path)
    assert prepare(describe(spec, tmp_path), image_size=8, channels=3, max_bad_share=0.1).train.num_images == 41


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([-1, 0, 1, 2] * 10, r"label -1 of train row 0 is out of range \(10 are\); allowed: 0 to 2"),
        ([None, 0, 1, 2] * 10, "10 of 40 rows have no kind"),
        ([0, 1] * 20, r"no training image of class 2 \(cat\)"),
    ],
    ids=["negative", "missing", "class-without-images"],
)
def test_labels_that_make_no_classification_are_refused(labels: list[int | None], told: str, tmp_path: Path) -> None:
    spec = saved(tmp_path / "set", train=split(40, labels=labels), test=split(9, 100))
    with pytest.raises(DataError, match=told):
        loaded(spec, tmp_path)


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        ([7, 3, 10], "int64", ("3", "7", "10")),
        (["bee", "ant", "cat"], "string", ("ant", "bee", "cat")),
        ([True, False, True], "bool", ("False", "True")),
    ],
)
def test_column_of_plain_values_is_that_of_the_labels_when_it_is_named(
    values: list[Any], kind: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    def plain(rows: Any) -> Any:
        column = [values[index % 3] for index in range(len(rows))]
        return rows.remove_columns("kind").add_column("kind", column, feature=datasets.Value(kind))

    spec = saved(tmp_path / "set", train=plain(split(42)), test=plain(split(9, 100)))
    with pytest.raises(DataError, match=r"no columns of type ClassLabel among .*; choose one: .*,label=\w+"):
        describe(spec, tmp_path)
    info = describe(f"{spec},label=kind", tmp_path)
    assert (info.class_names, info.num_classes) == (names, len(names))
    data = loaded(f"{spec},label=kind", tmp_path)
    for part, first in ((data.source.train, 0), (data.source.test, 100)):
        found = dict(zip(part.images[:, 0, 0, 0].tolist(), part.labels.tolist(), strict=True))
        assert found == {first + index: names.index(str(values[index % 3])) for index in range(len(found))}


def test_plain_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    spec = saved(tmp_path / "names", train=split(42), test=split(9, 100))
    with pytest.raises(DataError, match="name has 42 values in 42 rows: these are no classes"):
        describe(f"{spec},label=name", tmp_path)

    def plain(rows: Any, labels: list[int]) -> Any:
        return rows.remove_columns("kind").add_column("kind", labels, feature=datasets.Value("int64"))

    of_train = plain(split(42), [-1, *[1, 2] * 20, 1])
    spec = saved(tmp_path / "unlabelled", train=of_train, test=plain(split(9, 100), [1] * 9))
    with pytest.raises(DataError, match=r"label -1 of train row 0 is out of range \(1 are\); allowed: 0 to 1"):
        loaded(f"{spec},label=kind", tmp_path)
    of_train = plain(split(42), [1, 2] * 21)
    spec = saved(tmp_path / "others", train=of_train, test=plain(split(9, 100), [1] * 8 + [5]))
    with pytest.raises(DataError, match=r"5 of row 8 of a split is no value that kind has in 'train'; mend the labels"):
        describe(f"{spec},label=kind", tmp_path)
    spec = saved(tmp_path / "kept-back", train=of_train, test=plain(split(9, 100), [-1] * 9))
    assert describe(f"{spec},label=kind", tmp_path).num_test == 4, "a tenth of every class"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("hf:", "names no set"),
        (f"hf:{'x' * 300}", "cannot be looked for: File name too long"),
        ("hf:nobody/nothing", "not to be read or downloaded by `datasets`"),
        ("hf:nobody/nothing:config", "not to be read or downloaded by `datasets`"),
        ("hf:nobody/nothing,picture", "'picture' says nothing; allowed after a comma: image=COLUMN, label=COLUMN"),
    ],
)
def test_spec_that_names_nothing_is_refused_with_what_to_do(spec: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        describe(spec, tmp_path)


def test_set_without_the_split_or_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'train'; there are: test"):
        describe(saved(tmp_path / "a", test=split(9)), tmp_path)
    texts = datasets.Dataset.from_dict({"text": ["a", "b"]})
    with pytest.raises(DataError, match=r"no columns of type Image among text \(Value\)"):
        describe(saved(tmp_path / "b", train=texts), tmp_path)


def test_missing_package_is_named_with_how_to_install_it(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BackendMissing, match=r"`datasets` is not installed; pip install 'swinexplore\[huggingface\]'"):
        describe(spec, tmp_path)


def test_set_is_downloaded_by_its_name_once(spec: str, tmp_path: Path) -> None:
    for name, part in (("train", split(42)), ("test", split(9, 100))):
        part.to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    files = {file.name: file.read_bytes() for file in tmp_path.glob("*.parquet")}

    def prepared(home: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "explorer",
            "data",
            "prepare",
            "hf:someone/insects",
            "--image-size",
            "8",
            "--json",
        ]
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment |= {"HF_HOME": str(tmp_path / home), **variables}
        return subprocess.run(
            [*command, "--data-root", str(tmp_path / home / "root")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    with serving("someone/insects", files) as address:
        first = prepared("home", HF_ENDPOINT=address)
    assert first.returncode == 0, first.stderr
    content = json.loads(first.stdout)
    saved_as_folder = describe(spec, tmp_path / "root")
    assert (content["id"], content["class_names"]) == (saved_as_folder.id, CLASSES), (
        "the same set, wherever it came from"
    )
    assert content["train"]["num_images"] + content["test"]["num_images"] == 51
    again = prepared("home", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["id"] == content["id"]
    refused = prepared("another home", HF_HUB_OFFLINE="1")
    assert refused.returncode == 2, refused.stdout
    assert "hf:someone/insects: not to be read or downloaded by `datasets`" in refused.stderr
    assert "Traceback" not in refused.stderr
