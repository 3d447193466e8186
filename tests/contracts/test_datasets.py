"""One contract for every image set: described without loading, loaded as bytes, and never a test image in a search."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.client import IncompleteRead
from pathlib import Path
from types import MappingProxyType
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from explorer.errors import DataError
from explorer.training import data as data_module
from explorer.training.data import Data, Source, describe, load
from explorer.training.folders import IDX_FILES, DataInfo
from explorer.training.images import Part

CPU = torch.device("cpu")


# -- generated sets ---------------------------------------------------------------------------------------------------
# Every image has one grey level (red differs from it by nothing, green by +30, blue by +60), so that it can be told
# after resizing: training images are darker than 100, test images are not.


def grey_levels(num_images: int, first: int) -> np.ndarray:
    return (first + np.arange(num_images) % 80).astype(np.uint8)


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def idx_contents(num_classes: int = 4, num_train: int = 40, num_test: int = 8, side: int = 12) -> dict[str, bytes]:
    """What the four idx files hold, by their names without `.gz`."""
    contents = {}
    for prefix, num_images, first in (("train", num_train, 0), ("t10k", num_test, 100)):
        images = np.broadcast_to(grey_levels(num_images, first)[:, None, None], (num_images, side, side))
        contents[f"{prefix}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx_bytes((np.arange(num_images) % num_classes).astype(np.uint8))
    return contents


def write_idx(folder: Path, num_classes: int = 4) -> Path:
    folder.mkdir(parents=True)
    for name, content in idx_contents(num_classes).items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    return folder


def write_images(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    """One folder a class with so many PNG images, 20 by 24 pixels."""
    level = first
    for name, num_images in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(num_images):
            colour = (level, level + 30, level + 60)
            Image.new("RGB", (20, 24), colour).save(folder / name / f"{index:03}.png")
            level += 1
    return folder


def write_split_tree(folder: Path) -> Path:
    write_images(folder / "train", {"ant": 14, "bee": 14, "cat": 14})
    write_images(folder / "val", {"ant": 3, "bee": 3, "cat": 3}, first=100)
    return folder


def write_plain_tree(folder: Path) -> Path:
    return write_images(folder, {"ant": 20, "bee": 20, "cat": 20})


def write_fashion_mnist(root: Path) -> None:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in idx_contents(num_classes=10, side=28).items():
        (raw / name).write_bytes(content)


def write_cifar(root: Path, patch: pytest.MonkeyPatch, dataset: type[datasets.CIFAR10], num_classes: int) -> None:
    """Batches of 100 images as torchvision expects them; its own check of their sums is told the new ones."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(first: int) -> dict[str, object]:
        planes = grey_levels(100, first)[:, None] + np.array([[0, 30, 60]], np.uint8)
        key = "fine_labels" if num_classes == 100 else "labels"
        return {"data": np.repeat(planes, 32 * 32, axis=1), key: [index % num_classes for index in range(100)]}

    patch.setattr(dataset, "train_list", [[name, write(name, batch(0))] for name, _ in dataset.train_list])
    patch.setattr(dataset, "test_list", [[name, write(name, batch(100))] for name, _ in dataset.test_list])
    names = {dataset.meta["key"]: [str(index) for index in range(num_classes)]}
    md5 = write(dataset.meta["filename"], names)
    patch.setattr(dataset, "meta", {**dataset.meta, "md5": md5})


# -- the contract -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A set to load, and what is to be found. `described`: classes, channels, training and test images.

    `is_marked`: training and test images are told by their grey levels.
    """

    spec: str
    root: Path
    described: tuple[int, int, int, int]
    image_size: int = 16
    is_marked: bool = True

    @property
    def num_train(self) -> int:
        """Training images that lie there."""
        return self.described[2]

    @property
    def num_test(self) -> int:
        """Test images that lie there."""
        return self.described[3]


def shortened_case(
    name: str, root: Path, patch: pytest.MonkeyPatch, numbers: tuple[int, int], *, image_size: int = 16, is_marked: bool
) -> Case:
    """A set by name of so few training and test images."""
    num_classes, channels, _, _, *others = data_module.SOURCES[name]
    few = (num_classes, channels, *numbers, *others)
    patch.setattr(data_module, "SOURCES", MappingProxyType({**data_module.SOURCES, name: few}))
    return Case(name, root, (num_classes, channels, *numbers), image_size, is_marked)


def silhouettes_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    return shortened_case("silhouettes", folder / "root", patch, (800, 80), image_size=32, is_marked=False)


def contours_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    return Case("contours", folder / "root", (16, 1, 14_000, 2_000), 32, is_marked=False)


def debian_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    spec = "/usr/share/datasets/fashion-mnist"
    if not Path(spec).is_dir():
        pytest.skip(f"{spec} is not there: apt-get install dataset-fashion-mnist")
    return Case(spec, folder / "root", (10, 1, 60_000, 10_000), 28, is_marked=False)


def idx_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    return Case(str(write_idx(folder / "set")), folder / "root", (4, 1, 40, 8))


def split_tree_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    return Case(str(write_split_tree(folder / "set")), folder / "root", (3, 3, 42, 9))


def plain_tree_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    return Case(str(write_plain_tree(folder / "set")), folder / "root", (3, 3, 54, 6), is_marked=False)


def fashion_mnist_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    write_fashion_mnist(folder / "root")
    return shortened_case("fashion-mnist", folder / "root", patch, (40, 8), is_marked=True)


def cifar10_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    write_cifar(folder / "root", patch, datasets.CIFAR10, 10)
    return shortened_case("cifar10", folder / "root", patch, (500, 100), is_marked=True)


def cifar100_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    write_cifar(folder / "root", patch, datasets.CIFAR100, 100)
    return shortened_case("cifar100", folder / "root", patch, (100, 100), is_marked=True)


def hub_case(folder: Path, patch: pytest.MonkeyPatch) -> Case:
    hub = pytest.importorskip("datasets", reason="pip install 'swinexplore[huggingface]'")
    patch.setattr(hub.config, "HF_HUB_OFFLINE", True)
    hub.disable_progress_bars()
    return Case(f"hf:{write_split_tree(folder / 'set')}", folder / "root", (3, 3, 42, 9))


CASES: dict[str, Callable[[Path, pytest.MonkeyPatch], Case]] = {
    "contours": contours_case,
    "silhouettes": silhouettes_case,
    "debian-idx": debian_case,
    "idx": idx_case,
    "tree-train-val": split_tree_case,
    "tree-plain": plain_tree_case,
    "fashion-mnist": fashion_mnist_case,
    "cifar10": cifar10_case,
    "cifar100": cifar100_case,
    "hub": hub_case,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        yield CASES[request.param](tmp_path_factory.mktemp(request.param), patch)


@pytest.fixture(scope="module")
def loaded(case: Case) -> Data:
    info = describe(case.spec, case.root)
    return load(info, image_size=case.image_size, channels=info.channels, device=CPU)


def numbered(data: Data) -> Data:
    """The same set with numbers for images: 0, 1, ... for training images, -1, -2, ... for test images."""
    train, test = data.source.train, data.source.test
    test = replace(test, images=-1 - torch.arange(len(test.labels)))
    return replace(data, source=Source(replace(train, images=torch.arange(len(train.labels))), lambda: test))


def test_description_tells_classes_channels_and_counts(case: Case) -> None:
    info = describe(case.spec, case.root)
    assert (info.num_classes, info.channels, info.num_train, info.num_test) == case.described
    assert (info.spec, info.root) == (case.spec, case.root)
    assert info.id.startswith("d1-")
    assert describe(case.spec, case.root / "elsewhere").id == info.id


@pytest.mark.parametrize("name", ["contours", "idx", "tree-plain", "fashion-mnist", "cifar10"])
def test_description_neither_loads_nor_writes_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name](tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    script = (
        "import sys; from pathlib import Path; from explorer.training.data import describe; "
        "describe(sys.argv[1], Path(sys.argv[2])); "
        "print([name for name in ('torch', 'torchvision', 'PIL') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, case.spec, str(case.root)]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip() == "[]"
    assert sorted(tmp_path.rglob("*")) == before


def test_images_are_bytes_of_the_wanted_size_with_labels_in_range(case: Case, loaded: Data) -> None:
    num_classes, channels, _, _ = case.described
    source, side = loaded.source, case.image_size
    for images, labels, num_images in (
        (source.train.images, source.train.labels, case.num_train),
        (source.test.images, source.test.labels, case.num_test),
    ):
        assert (images.dtype, images.shape) == (torch.uint8, (num_images, channels, side, side))
        assert (labels.dtype, labels.shape) == (torch.int64, (num_images,))
        assert set(labels.tolist()) == set(range(num_classes)) or num_images < num_classes


def test_training_and_test_images_are_not_mixed_up(case: Case, loaded: Data) -> None:
    if not case.is_marked:
        pytest.skip("its images do not tell what part they are of")
    assert loaded.source.train.images[:, 0].max() < 100
    assert loaded.source.test.images[:, 0].min() >= 100


def test_channels_are_in_the_order_red_green_blue(case: Case, loaded: Data) -> None:
    if case.described[1] != 3:
        pytest.skip("grey images")
    red, green, blue = loaded.source.train.images.int().unbind(1)
    assert torch.equal(green, red + 30)
    assert torch.equal(blue, red + 60)


def test_search_trains_and_evaluates_on_disjoint_training_images(loaded: Data) -> None:
    split = numbered(loaded).for_search(None, None)
    train, held_out = split.train_images.tolist(), split.eval_images.tolist()
    assert train
    assert held_out
    assert sorted(train + held_out) == list(range(len(loaded.source.train.labels)))


def test_search_takes_about_a_seventh_for_evaluation(loaded: Data) -> None:
    num_train = len(loaded.source.train.labels)
    assert len(loaded.for_search(None, None).eval_labels) == min(10_000, num_train // 7)


def test_training_takes_all_training_images_and_the_test_images(case: Case, loaded: Data) -> None:
    split = numbered(loaded).for_training(None, None)
    assert sorted(split.train_images.tolist()) == list(range(case.num_train))
    assert sorted(split.eval_images.tolist()) == list(range(-case.num_test, 0))


def test_verification_trains_as_a_search_does_and_evaluates_on_the_test_images(case: Case, loaded: Data) -> None:
    data = numbered(loaded)
    split = data.for_verification(None, None)
    assert torch.equal(split.train_images, data.for_search(None, None).train_images)
    assert sorted(split.eval_images.tolist()) == list(range(-case.num_test, 0))
    assert torch.equal(data.for_verification(5, 2).train_images, split.train_images[:5])


def test_search_reads_no_test_image(loaded: Data) -> None:
    def no_test() -> Part:
        raise AssertionError("a test image was read")

    data = replace(loaded, source=Source(loaded.source.train, no_test))
    assert len(data.for_search(None, None).eval_labels) == data.num_held_out
    for of in (data.for_verification, data.for_training):
        with pytest.raises(AssertionError, match="a test image was read"):
            of(None, None)


@pytest.mark.parametrize("purpose", ["search", "training", "verification"])
def test_limits_are_kept_and_images_keep_their_labels(purpose: str, loaded: Data) -> None:
    data = numbered(loaded)
    split = getattr(data, f"for_{purpose}")(10, 3)
    assert (len(split.train_images), len(split.eval_images)) == (10, 3)
    assert (len(split.train_labels), len(split.eval_labels)) == (10, 3)
    assert not set(split.train_images.tolist()) & set(split.eval_images.tolist())
    for images, labels in ((split.train_images, split.train_labels), (split.eval_images, split.eval_labels)):
        for number, label in zip(images.tolist(), labels.tolist(), strict=True):
            of_part = loaded.source.train.labels if number >= 0 else loaded.source.test.labels
            assert of_part[number if number >= 0 else -1 - number] == label


@pytest.mark.parametrize("purpose", ["search", "training"])
def test_limit_above_the_number_of_images_takes_all(purpose: str, loaded: Data) -> None:
    most = 10**9
    of = loaded.for_search if purpose == "search" else loaded.for_training
    assert len(of(most, most).train_labels) == len(of(None, None).train_labels)
    assert len(of(most, most).eval_labels) == len(of(None, None).eval_labels)


@pytest.mark.parametrize("purpose", ["search", "training"])
def test_limited_part_holds_images_of_every_class(purpose: str, case: Case, loaded: Data) -> None:
    """Half of the training images, or 16 for every class, are not those of the first classes alone."""
    num_classes = case.described[0]
    if case.num_train < 8 * num_classes:
        pytest.skip("too few images of a class")
    limit = min(16 * num_classes, case.num_train // 2)
    split = (loaded.for_search if purpose == "search" else loaded.for_training)(limit, None)
    assert len(set(split.train_labels.tolist())) == num_classes


def test_second_load_gives_the_same_images_and_the_same_held_out_part(case: Case, loaded: Data) -> None:
    info = describe(case.spec, case.root)
    again = load(info, image_size=case.image_size, channels=info.channels, device=CPU)
    assert again.info == loaded.info
    assert torch.equal(again.for_search(None, None).eval_images, loaded.for_search(None, None).eval_images)
    for part, before in ((again.source.train, loaded.source.train), (again.source.test, loaded.source.test)):
        assert torch.equal(part.images, before.images)
        assert torch.equal(part.labels, before.labels)


def test_other_number_of_channels_is_repeated_from_grey_and_else_refused(case: Case, loaded: Data) -> None:
    info = describe(case.spec, case.root)
    if info.channels == 1:
        images = load(info, image_size=case.image_size, channels=3, device=CPU).source.train.images
        assert images.shape[1] == 3
        assert torch.equal(images, loaded.source.train.images.expand_as(images))
    else:
        with pytest.raises(
            DataError, match="its images have 3 channels, 1 are expected; use a model with C3"
        ) as caught:
            load(info, image_size=case.image_size, channels=1, device=CPU)
        assert case.spec in str(caught.value)


# -- the parts of one tree --------------------------------------------------------------------------------------------


def load_folder(folder: Path, image_size: int = 16) -> Data:
    info = describe(str(folder), folder.parent / "root")
    return load(info, image_size=image_size, channels=info.channels, device=CPU)


def cache_files(folder: Path) -> list[Path]:
    return sorted(file for file in (folder.parent / "root").rglob("*") if file.is_file())


def test_plain_tree_is_divided_into_training_and_test_images_without_overlap(tmp_path: Path) -> None:
    source = load_folder(write_plain_tree(tmp_path / "set")).source
    train, test = source.train.images[:, 0, 0, 0].tolist(), source.test.images[:, 0, 0, 0].tolist()
    assert sorted(train + test) == list(range(60))
    assert set(source.test.labels.tolist()) == {0, 1, 2}


def test_tree_images_have_the_label_of_their_folder_in_order_of_name(tmp_path: Path) -> None:
    source = load_folder(write_split_tree(tmp_path / "set")).source
    assert [level // 14 for level in source.train.images[:, 0, 0, 0].tolist()] == source.train.labels.tolist()
    assert [(level - 100) // 3 for level in source.test.images[:, 0, 0, 0].tolist()] == source.test.labels.tolist()


@pytest.mark.parametrize("suffix", [".jpg", ".PNG", ".bmp", ".ppm", ".webp", ".tif"])
def test_every_image_format_of_a_tree_is_read(suffix: str, tmp_path: Path) -> None:
    folder = write_plain_tree(tmp_path / "set")
    Image.new("RGB", (40, 30), (250, 250, 250)).save(folder / "ant" / f"000a{suffix}")
    images = load_folder(folder).source.train.images
    assert images.shape[0] == 55
    assert images.flatten(1).float().mean(1).max() == pytest.approx(250, abs=3)


def test_images_of_all_shapes_and_modes_are_cropped_to_rgb_squares(tmp_path: Path) -> None:
    folder = write_plain_tree(tmp_path / "set")
    for index, (mode, colour) in enumerate([("L", 200), ("RGBA", (200, 200, 200, 255)), ("1", 1), ("LA", (200, 255))]):
        Image.new(mode, (7 + 50 * index, 31), colour).save(folder / "ant" / f"000{index}.png")
    images = load_folder(folder).source.train.images
    assert images.shape == (58, 3, 16, 16)
    assert (images.flatten(1).float().mean(1) >= 199).sum() == 4


def test_test_part_may_be_named_val_test_or_validation(tmp_path: Path) -> None:
    ids = set()
    for name in ("val", "test", "validation", "valid"):
        folder = write_split_tree(tmp_path / f"set-{name}")
        if name != "val":
            (folder / "val").rename(folder / name)
        info = describe(str(folder), tmp_path)
        assert (info.num_classes, info.num_train, info.num_test) == (3, 42, 9)
        ids.add(info.id)
    assert len(ids) == 4


@pytest.mark.parametrize("name", ["dev", "Test", None])
def test_training_part_without_a_test_part_is_not_taken_for_a_class(name: str | None, tmp_path: Path) -> None:
    folder = write_split_tree(tmp_path / "set")
    if name is None:
        shutil.rmtree(folder / "val")
    else:
        (folder / "val").rename(folder / name)
    told = f"data {folder}: train holds folders, but there is no test part beside it; name that one of val, test, "
    assert refused(folder).startswith(told)
    assert describe(str(folder / "train"), tmp_path).num_classes == 3


def test_class_may_be_called_train(tmp_path: Path) -> None:
    info = describe(str(write_images(tmp_path / "set", {"bus": 11, "train": 11})), tmp_path)
    assert info.class_names == ("bus", "train")


# -- the fingerprint and the cache ------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path], Path]] = {"idx": write_idx, "split": write_split_tree, "plain": write_plain_tree}


@pytest.mark.parametrize("kind", WRITERS)
def test_id_is_that_of_the_content_wherever_and_whenever_it_lies(kind: str, tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path / "set")
    first = describe(str(folder), tmp_path).id
    for file in folder.rglob("*"):
        file.touch()
    shutil.copytree(folder, tmp_path / "copy")
    assert describe(str(folder), tmp_path).id == first
    assert describe(str(tmp_path / "copy"), tmp_path).id == first


def add_image(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(next(folder.rglob("ant")) / "added.png")


def remove_image(folder: Path) -> None:
    next(iter(sorted(folder.rglob("*.png")))).unlink()


def enlarge_image(folder: Path) -> None:
    Image.effect_noise((50, 50), 50).save(next(iter(sorted(folder.rglob("*.png")))))


def rename_image(folder: Path) -> None:
    file = next(iter(sorted(folder.rglob("*.png"))))
    file.rename(file.with_name("renamed.png"))


def rename_class(folder: Path) -> None:
    for part in list(folder.rglob("ant")):
        part.rename(part.with_name("aphid"))


@pytest.mark.parametrize("change", [add_image, remove_image, enlarge_image, rename_image, rename_class])
@pytest.mark.parametrize("kind", ["split", "plain"])
def test_id_of_a_tree_changes_with_its_files(kind: str, change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = WRITERS[kind](tmp_path / "set")
    first = describe(str(folder), tmp_path).id
    change(folder)
    assert describe(str(folder), tmp_path).id != first


@pytest.mark.parametrize("name", IDX_FILES)
def test_id_of_an_idx_folder_changes_with_one_value_of_any_file(name: str, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set")
    first = describe(str(folder), tmp_path).id
    content = bytearray(gzip.decompress((folder / name).read_bytes()))
    content[-1] = (content[-1] + 1) % 4
    (folder / name).write_bytes(gzip.compress(bytes(content), mtime=0))
    assert describe(str(folder), tmp_path).id != first


def test_second_load_of_a_tree_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_split_tree(tmp_path / "set")
    first = load_folder(folder).source
    assert len(first.test.labels) == 9
    before = {file: file.stat().st_mtime_ns for file in cache_files(folder)}

    def no_decoder(*_: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", no_decoder)
    second = load_folder(folder).source
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.images, second.test.images)
    assert {file: file.stat().st_mtime_ns for file in cache_files(folder)} == before
    with pytest.raises(DataError, match=r"42 of 42 training images cannot be read.*an image was opened"):
        load_folder(folder, image_size=8)


def test_tree_that_changes_is_decoded_anew(tmp_path: Path) -> None:
    folder = write_plain_tree(tmp_path / "set")
    load_folder(folder)
    add_image(folder)
    assert len(load_folder(folder).source.train.labels) == 55


def test_loaded_tree_can_be_written_to_without_changing_its_cache(tmp_path: Path) -> None:
    folder = write_plain_tree(tmp_path / "set")
    images = load_folder(folder).source.train.images
    kept = images.clone()
    images.zero_()
    assert torch.equal(load_folder(folder).source.train.images, kept)


# -- bad input --------------------------------------------------------------------------------------------------------


def refused(folder: Path) -> str:
    """The message of the DataError that describing and loading `folder` ends with."""
    with pytest.raises(DataError) as caught:
        assert load_folder(folder).source.test
    return str(caught.value)


@pytest.mark.parametrize("spec", ["nosuch-set", "/no/such/folder"])
def test_spec_that_is_neither_set_nor_folder_is_refused_with_what_is_allowed(spec: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        describe(spec, tmp_path)
    for words in (
        repr(spec),
        "contours",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "idx",
        "one folder of images per class",
    ):
        assert words in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    folder = write_split_tree(tmp_path / "set")
    folder.chmod(0)
    try:
        assert str(folder) in refused(folder)
    finally:
        folder.chmod(0o700)


def test_folder_inside_a_class_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = next(path for path in (write_split_tree(tmp_path / "set") / "train").iterdir() if path.is_dir()) / "more"
    hidden.mkdir()
    scan = os.scandir

    def forbid(path: str | os.PathLike[str]) -> object:
        if os.fspath(path) == str(hidden):
            raise PermissionError(13, "Permission denied", str(hidden))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbid)  # root may read everything
    assert f"data {hidden}: cannot be read: Permission denied" in refused(tmp_path / "set")


def test_spec_that_no_file_system_takes_is_refused_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data x+: cannot be read: x+: File name too long; give the right path"):
        describe("x" * 300, tmp_path)


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="neither a known set nor a folder"):
        describe(str(tmp_path / "file"), tmp_path)


@pytest.mark.parametrize("name", IDX_FILES)
def test_missing_idx_file_is_named(name: str, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set")
    (folder / name).unlink()
    message = refused(folder)
    assert str(folder) in message
    assert message.startswith(f"data {folder}: {name} missing")


def cut_gzip(content: bytes) -> bytes:
    return gzip.compress(content)[:-10]


def no_gzip(content: bytes) -> bytes:
    return content


def corrupt_gzip(content: bytes) -> bytes:
    compressed = bytearray(gzip.compress(content))
    compressed[10] = 0xFF  # a block type that deflate does not have
    return bytes(compressed)


def empty_file(content: bytes) -> bytes:
    return gzip.compress(b"")


def wrong_magic(content: bytes) -> bytes:
    return gzip.compress(b"\0\0\x0d" + content[3:])


def wrong_ndim(content: bytes) -> bytes:
    return gzip.compress(content[:3] + bytes([content[3] + 1]) + content[4:])


def cut_values(content: bytes) -> bytes:
    return gzip.compress(content[:-1])


def superfluous_values(content: bytes) -> bytes:
    return gzip.compress(content + b"\0")


@pytest.mark.parametrize("name", IDX_FILES[:2])
@pytest.mark.parametrize(
    "broken",
    [
        cut_gzip,
        no_gzip,
        corrupt_gzip,
        empty_file,
        wrong_magic,
        wrong_ndim,
        cut_values,
        superfluous_values,
    ],
)
def test_broken_idx_file_is_named(broken: Callable[[bytes], bytes], name: str, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set")
    (folder / name).write_bytes(broken(gzip.decompress((folder / name).read_bytes())))
    assert str(folder / name) in refused(folder)


@pytest.mark.parametrize("dims", [(1 << 31, 1 << 31, 4), (40, 0, 0)], ids=["overflow", "no-pixels"])
def test_idx_file_of_impossible_dimensions_is_named(dims: tuple[int, int, int], tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set")
    (folder / IDX_FILES[0]).write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *dims)))
    assert IDX_FILES[0] in refused(folder)


@pytest.mark.parametrize("name", [IDX_FILES[0], IDX_FILES[2]])
def test_images_and_labels_of_different_numbers_are_refused_with_both(name: str, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set")
    (folder / name).write_bytes(gzip.compress(idx_bytes(np.zeros((7, 12, 12), np.uint8))))
    message = refused(folder)
    assert f"{folder}: {name}: 7 images but {40 if name == IDX_FILES[0] else 8} labels" in message


@pytest.mark.parametrize(
    ("labels", "told"),
    [([0, 1, 3] * 10, "no training image of class 2"), ([], "no images")],
    ids=["class-without-images", "no-images"],
)
def test_idx_labels_that_make_no_classification_are_refused(labels: list[int], told: str, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set")
    for name in (IDX_FILES[1], IDX_FILES[3]):
        (folder / name).write_bytes(gzip.compress(idx_bytes(np.array(labels, np.uint8))))
    message = refused(folder)
    assert str(folder) in message
    assert told in message


@pytest.mark.parametrize("index", [1, 3], ids=["train", "test"])
def test_idx_label_out_of_range_is_named_with_its_file(index: int, tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set")
    content = bytearray(gzip.decompress((folder / IDX_FILES[index]).read_bytes()))
    highest = max(content[8:])
    content[8 + 5] = 200
    (folder / IDX_FILES[index]).write_bytes(gzip.compress(bytes(content)))
    message = refused(folder)
    assert f"{folder}: {IDX_FILES[index]}: " in message
    if index == 1:
        assert f"no training image of class {highest + 1}, but image 5 is of class 200" in message
    else:
        assert (
            f"label 200 of test image 5 is out of range (1 are); allowed, by the training labels: 0 to {highest}"
            in message
        )


def test_idx_files_of_one_class_are_refused(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "set", num_classes=1)
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("counts", [{}, {"ant": 5}], ids=["no-class", "one-class"])
def test_tree_of_fewer_than_two_classes_is_refused(counts: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    folder = write_images(tmp_path / "set", counts)
    assert refused(folder).startswith(f"data {folder}: holds {len(counts)} folders")


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("is_removed", [False, True], ids=["empty", "missing"])
def test_class_without_images_in_a_part_is_named(part: str, is_removed: bool, tmp_path: Path) -> None:
    folder = write_split_tree(tmp_path / "set")
    shutil.rmtree(folder / part / "bee")
    if not is_removed:
        (folder / part / "bee").mkdir()
        (folder / part / "bee" / "notes.txt").write_text("no image")
    assert "bee" in refused(folder)
    assert str(folder) in refused(folder)


def test_class_that_only_the_test_part_holds_is_named(tmp_path: Path) -> None:
    folder = write_split_tree(tmp_path / "set")
    write_images(folder / "val", {"dog": 1})
    message = refused(folder)
    assert str(folder / "val") in message
    assert "'dog'" in message


def test_plain_tree_keeps_a_training_and_a_test_image_of_every_class(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", {"ant": 3, "bee": 21})
    described = describe(str(folder), tmp_path / "root")
    loaded = load(described, image_size=8, channels=3, device=CPU)
    assert loaded.source.train.labels.bincount().tolist() == [2, 19]
    assert loaded.source.test.labels.bincount().tolist() == [1, 2]


def test_plain_tree_with_a_class_of_one_image_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", {"ant": 9, "bee": 1})
    message = refused(folder)
    assert str(folder / "bee") in message
    assert "one image only" in message


def text_image(file: Path) -> None:
    file.write_text("no image")


def empty_image(file: Path) -> None:
    file.write_bytes(b"")


def cut_image(file: Path) -> None:
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[:-500])


@pytest.mark.parametrize("broken", [text_image, empty_image, cut_image])
def test_unreadable_images_are_counted_and_the_first_is_named(broken: Callable[[Path], None], tmp_path: Path) -> None:
    folder = write_split_tree(tmp_path / "set")
    first, second = folder / "train" / "bee" / "003.png", folder / "train" / "cat" / "001.png"
    broken(first)
    broken(second)
    message = refused(folder)
    assert "2 of 42 training images cannot be read, more than the share of 0.01" in message
    assert str(first) in message
    assert str(second) in message
    assert not [file for file in cache_files(folder) if file.suffix == ".json"], "nothing would be taken for whole"


def test_tree_whose_unreadable_image_was_mended_is_loaded(tmp_path: Path) -> None:
    folder = write_split_tree(tmp_path / "set")
    file = folder / "train" / "bee" / "003.png"
    sound = file.read_bytes()
    text_image(file)
    refused(folder)
    file.write_bytes(sound)
    assert len(load_folder(folder).source.train.labels) == 42


@pytest.mark.parametrize("content", [b"", b"cut off"], ids=["empty", "cut-off"])
def test_broken_cache_is_made_anew_or_named(content: bytes, tmp_path: Path) -> None:
    folder = write_split_tree(tmp_path / "set")
    whole = load_folder(folder).source.train.images.clone()
    for cache in cache_files(folder):
        cache.write_bytes(content)
    try:
        assert torch.equal(load_folder(folder).source.train.images, whole)
    except DataError as error:
        assert str(cache_files(folder)[0].parent) in str(error)


@pytest.mark.parametrize("kind", ["tree", "fashion-mnist"])
def test_file_in_place_of_the_data_root_is_named(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.write_text("no folder")
    spec = str(write_plain_tree(tmp_path / "set")) if kind == "tree" else kind
    with pytest.raises(DataError, match=str(root)):
        load_spec(spec, root)


# -- sets of torchvision ----------------------------------------------------------------------------------------------


def load_spec(spec: str, root: Path) -> Data:
    info: DataInfo = describe(spec, root)
    return load(info, image_size=16, channels=info.channels, device=CPU)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    def urlopen(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return monkeypatch


@pytest.mark.parametrize(
    "error",
    [
        URLError("no network"),
        TimeoutError("too slow"),
        IncompleteRead(b""),
    ],
    ids=["no-network", "timeout", "connection-lost"],
)
@pytest.mark.parametrize("spec", ["fashion-mnist", "cifar10", "cifar100"])
def test_set_that_cannot_be_downloaded_says_where_to_put_it(
    spec: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DataError) as caught:
        load_spec(spec, tmp_path / "root")
    for words in (spec, str(tmp_path / "root"), "contours"):
        assert words in str(caught.value)


@pytest.mark.parametrize("num_bytes", [0, 3, 10, 1_000])
def test_truncated_fashion_mnist_is_named(num_bytes: int, tmp_path: Path, no_network: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path)
    file = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(DataError, match="fashion-mnist"):
        load_spec("fashion-mnist", tmp_path)


def test_fashion_mnist_with_fewer_labels_than_images_is_refused(tmp_path: Path, no_network: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path)
    labels = idx_bytes((np.arange(30) % 10).astype(np.uint8))
    (tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(DataError, match="fashion-mnist"):
        load_spec("fashion-mnist", tmp_path)


def test_other_number_of_images_than_the_set_has_is_another_set(tmp_path: Path, no_network: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path)
    shortened_case("fashion-mnist", tmp_path, no_network, (41, 8), is_marked=True)
    with pytest.raises(DataError, match="fashion-mnist: 40 train images where 41 belong: this is another set"):
        load_spec("fashion-mnist", tmp_path)
    shortened_case("fashion-mnist", tmp_path, no_network, (40, 9), is_marked=True)
    data = load_spec("fashion-mnist", tmp_path)
    assert len(data.for_search(None, None).eval_labels) == 5
    with pytest.raises(DataError, match="8 test images where 9 belong"):
        data.for_training(None, None)


def test_label_that_the_set_does_not_have_is_refused(tmp_path: Path, no_network: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path)
    labels = (np.arange(40) % 10).astype(np.uint8)
    labels[[5, 6]] = 17
    (tmp_path / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match=r"label 17 of train image 5 is out of range \(2 are\); allowed: 0 to 9"):
        load_spec("fashion-mnist", tmp_path)


def test_cifar_batch_that_was_tampered_with_is_not_unpickled(tmp_path: Path, no_network: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, no_network, datasets.CIFAR10, 10)
    file = tmp_path / datasets.CIFAR10.base_folder / "data_batch_1"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(DataError, match="cifar10"):
        load_spec("cifar10", tmp_path)
