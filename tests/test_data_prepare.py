"""Preparing image sets: how images become pixels, what is left out, the cache that is built once, and the command."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from explorer.cli import app
from explorer.errors import DataError
from explorer.training import folders
from explorer.training import images as images_module
from explorer.training.data import describe, load, prepare
from explorer.training.folders import DataInfo
from explorer.training.images import Encoded, Part, Slot, cached, decode, shuffled

CPU = torch.device("cpu")


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def decoded(content: bytes, channels: int = 3, side: int = 8) -> list[list[int]]:
    """Corner colours: top left and bottom right."""
    pixels = np.zeros((channels, side, side), np.uint8)
    decode(content, pixels)
    return [pixels[:, 0, 0].tolist(), pixels[:, -1, -1].tolist()]


# -- one image --------------------------------------------------------------------------------------------------------


def halves(mode: str, top: object, bottom: object, side: int = 8) -> Image.Image:
    image = Image.new(mode, (side, side), top)  # type: ignore[arg-type]
    image.paste(bottom, (0, side // 2, side, side))  # type: ignore[arg-type]
    return image


def palette(transparency: int | None) -> bytes:
    image = halves("RGB", (255, 0, 0), (0, 0, 255)).quantize(2)
    index = image.getpixel((0, 7))
    return png(image, **({} if transparency is None else {"transparency": index}))


def sixteen_bits(kind: str) -> bytes:
    levels = np.repeat(np.array([0x2000, 0xF0FF], np.uint16), 4)[:, None].repeat(8, 1)
    if kind == "PPM":
        return b"P5 8 8 65535\n" + levels.astype(">u2").tobytes()
    return png(Image.fromarray(levels), kind)


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return png(halves("RGB", (10, 10, 10), (200, 200, 200)), exif=exif)


@pytest.mark.parametrize(
    ("content", "corners"),
    [
        (png(halves("L", 30, 220)), [[30] * 3, [220] * 3]),
        (png(halves("1", 0, 1)), [[0] * 3, [255] * 3]),
        (png(halves("CMYK", (0, 0, 0, 255), (0, 0, 0, 0)), "TIFF"), [[0] * 3, [255] * 3]),
        (png(halves("RGBA", (9, 9, 9, 255), (9, 9, 9, 0))), [[9] * 3, [255] * 3]),
        (png(halves("LA", (9, 255), (9, 0))), [[9] * 3, [255] * 3]),
        (palette(None), [[255, 0, 0], [0, 0, 255]]),
        (palette(1), [[255, 0, 0], [255, 255, 255]]),
        (sixteen_bits("PNG"), [[0x20] * 3, [0xF0] * 3]),
        (sixteen_bits("TIFF"), [[0x20] * 3, [0xF0] * 3]),
        (sixteen_bits("PPM"), [[0x20] * 3, [0xF0] * 3]),
        (with_orientation(1), [[10] * 3, [200] * 3]),
        (with_orientation(3), [[200] * 3, [10] * 3]),
    ],
    ids=[
        "grey", "bilevel", "cmyk", "alpha", "grey-alpha", "palette", "palette-transparent", "16-bit-png", "16-bit-tiff",
        "16-bit-pgm", "upright", "upside-down",
    ],
)  # fmt: skip
def test_every_kind_of_image_becomes_eight_bit_rgb(content: bytes, corners: list[list[int]]) -> None:
    assert decoded(content) == corners


def test_image_taken_on_its_side_is_turned_before_it_is_cropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the right of what lies there is the bottom
    wide = Image.new("RGB", (24, 8), (0, 0, 0))
    wide.paste((240, 240, 240), (12, 0, 24, 8))
    top, bottom = decoded(png(wide, exif=exif))
    assert (max(top), min(bottom)) == (0, 240)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG", "GIF"])
def test_first_frame_of_an_animation_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 250, 250)), Image.new("RGB", (8, 8), (0, 0, 0))
    content = png(first, kind, save_all=True, append_images=[second])
    assert min(decoded(content)[0]) >= 245


def test_grey_images_stay_grey_where_one_channel_is_wanted() -> None:
    assert decoded(png(halves("L", 30, 220)), channels=1) == [[30], [220]]
    assert decoded(png(halves("LA", (9, 255), (9, 0))), channels=1) == [[9], [255]]
    assert decoded(sixteen_bits("PNG"), channels=1) == [[0x20], [0xF0]]


@pytest.mark.parametrize(
    ("content", "channels", "told"),
    [
        (png(Image.new("RGB", (8, 8))), 1, "RGB pixels in a set of grey images"),
        (png(Image.new("F", (8, 8)), "TIFF"), 3, "32 bits a pixel"),
        (png(Image.new("I", (8, 8)), "TIFF"), 3, "32 bits a pixel"),
        (b"P6 0 8 255\n", 3, "(?i)pixels|identify|size|data"),
        (b"", 3, "cannot identify"),
        (png(Image.effect_noise((64, 64), 50))[:-500], 3, "truncated"),
    ],
    ids=["colour-among-grey", "float", "32-bit", "no-pixels", "empty", "truncated"],
)
def test_image_that_says_nothing_is_refused(content: bytes, channels: int, told: str) -> None:
    with pytest.raises((OSError, ValueError), match=told):
        decoded(content, channels)


def test_large_photograph_comes_out_as_without_the_shortcut_for_jpegs() -> None:
    ramp = np.linspace(0, 255, 640).astype(np.uint8)[None, :].repeat(480, 0)
    content = png(Image.fromarray(ramp), "JPEG", quality=95)
    pixels = np.zeros((3, 32, 32), np.uint8)
    decode(content, pixels)
    expected = np.linspace(80 / 640, 560 / 640, 33)[:-1] * 255 + 0.5 * 255 * 480 / 640 / 32
    assert np.abs(pixels[0].mean(0) - expected).max() < 2


# -- the cache --------------------------------------------------------------------------------------------------------


def level_of(index: int) -> int:
    return 2 * index


class Lying:
    """Encoded images of one grey level each, and how often each was read; those in `broken` cannot be."""

    def __init__(self, number: int, broken: tuple[int, ...] = ()) -> None:
        self.number, self.broken, self.read = number, set(broken), [0] * number

    def content(self, index: int) -> bytes:
        self.read[index] += 1
        return b"broken" if index in self.broken else png(Image.new("L", (6, 6), level_of(index)))

    def __call__(self) -> Encoded:
        return Encoded(np.arange(self.number) % 3, self.content, lambda index: f"image {index}")


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    return Slot("a set", "d1-a", tmp_path, "train", 4, 1)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images a chunk."""
    monkeypatch.setattr(images_module, "_CHUNK_BYTES", 10 * 4 * 4)


def numbers(part: Part) -> list[int]:
    """Which images lie there, by their levels; their labels are checked."""
    found = [int(level) // 2 for level in part.images[:, 0, 0, 0]]
    assert part.labels.tolist() == [index % 3 for index in found]
    return found


@pytest.mark.usefixtures("small_chunks")
def test_cache_holds_the_images_in_one_shuffled_order(slot: Slot) -> None:
    lying = Lying(100)
    told: list[tuple[str, int, int]] = []
    part = cached(slot, lying, on_images=lambda *now: told.append(now))
    assert numbers(part) == shuffled(100).tolist()
    assert told == [("train", done, 100) for done in range(10, 101, 10)]
    assert numbers(cached(slot, lying)) == numbers(part)
    assert lying.read == [1] * 100


def test_parts_of_a_cache_are_views_of_one_file(slot: Slot) -> None:
    part = cached(slot, Lying(100))
    first, second = part.between(0, 20)[0], part.between(20, None)[0]
    base = part.images.untyped_storage().data_ptr()
    assert {images.untyped_storage().data_ptr() for images in (first, second)} == {base}
    assert [len(first), len(second)] == [20, 80]
    batch = torch.tensor([3, 1, 2])
    assert torch.equal(second[batch], part.images[batch + 20])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("cut", [0, 5], ids=["between-chunks", "within-a-line"])
def test_build_that_was_stopped_goes_on_where_it_was(slot: Slot, cut: int) -> None:
    def stop(part: str, done: int, total: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    lying = Lying(100)
    with pytest.raises(KeyboardInterrupt):
        cached(slot, lying, on_images=stop)
    if cut:
        kept = slot.file("progress").read_text()
        slot.file("progress").write_text(kept[:-cut])
    part = cached(slot, lying)
    assert numbers(part) == shuffled(100).tolist()
    assert sum(lying.read) == 100 + 10 * bool(cut)
    left = {file.suffix for file in slot.file("bin").parent.iterdir()}
    assert left <= {".bin", ".npz", ".json", ".lock"}
    assert part.hashes is not None
    assert len(set(part.hashes.tolist())) == 100


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "damage",
    [
        "\0\0\0\0",
        "{}",
        "\udcff",
        '{"rows": [100], "hashes": [1], "bad": []}',
        '{"rows": [0], "hashes": [-1], "bad": []}',
        "7",
    ],
)
def test_build_whose_progress_is_damaged_begins_anew(damage: str, slot: Slot, caplog: pytest.LogCaptureFixture) -> None:
    def stop(part: str, done: int, total: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    lying = Lying(100)
    with pytest.raises(KeyboardInterrupt):
        cached(slot, lying, on_images=stop)
    with slot.file("progress").open("a", encoding="utf-8", errors="surrogateescape") as progress:
        progress.write(f"{damage}\n")
    part = cached(slot, lying)
    assert numbers(part) == shuffled(100).tolist()
    assert part.hashes is not None
    assert len(set(part.hashes.tolist())) == 100
    assert "is damaged: all images are decoded anew" in caplog.text
    assert sum(lying.read) == 140


def test_unreadable_images_up_to_the_share_are_left_out_named_and_logged_once(
    slot: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    lying = Lying(120, broken=(7, 50, 119))
    part = cached(slot, lying, max_bad_share=0.025)
    assert sorted(numbers(part)) == [index for index in range(120) if index not in (7, 50, 119)]
    assert {text.partition(" (")[0] for text in part.bad} == {"image 7", "image 50", "image 119"}
    (record,) = caplog.records
    assert "3 of 120 training images cannot be read and are left out: image " in record.getMessage()
    assert json.loads(slot.file("json").read_text())["bad"] == list(part.bad)
    again = cached(slot, lying)
    assert (numbers(again), again.bad) == (numbers(part), part.bad)
    assert len(caplog.records) == 1
    with pytest.raises(DataError, match=r"3 of 120 training images cannot be read, more than the share of 0\.02"):
        cached(slot, lying, max_bad_share=0.02)


def test_order_of_what_stays_depends_on_nothing_but_what_is_left_out(slot: Slot, tmp_path: Path) -> None:
    part = cached(slot, Lying(60, (3, 30)), max_bad_share=0.1)
    other = Slot("a set", "d1-a", tmp_path / "other", "train", 4, 1)
    assert numbers(cached(other, Lying(60, (3, 30)), max_bad_share=0.1)) == numbers(part)


def test_refused_build_needs_only_what_was_broken_once_more_is_allowed(slot: Slot) -> None:
    lying = Lying(60, (3, 30))
    with pytest.raises(DataError, match=r"2 of 60 .* share of 0\.01 .*--max-bad-share"):
        cached(slot, lying)
    assert not slot.file("json").exists()
    lying.broken = {30}
    part = cached(slot, lying, max_bad_share=0.05)
    assert len(part.labels) == 59
    assert [lying.read[3], lying.read[30], lying.read[0]] == [2, 2, 1]


def test_set_of_nothing_but_broken_images_is_refused_whatever_is_allowed(slot: Slot) -> None:
    with pytest.raises(DataError, match="4 of 4 training images cannot be read"):
        cached(slot, Lying(4, (0, 1, 2, 3)), max_bad_share=1.0)


@pytest.mark.parametrize("length", [0, 7, 40, -2])
@pytest.mark.parametrize("suffix", ["bin", "npz", "json"])
def test_file_of_a_cache_that_was_cut_off_is_made_anew(slot: Slot, suffix: str, length: int) -> None:
    lying = Lying(20)
    cached(slot, lying)
    slot.file(suffix).write_bytes(slot.file(suffix).read_bytes()[:length])
    assert numbers(cached(slot, lying)) == shuffled(20).tolist()
    assert lying.read == [2] * 20


def test_cache_that_several_want_at_once_is_built_once(slot: Slot) -> None:
    lying = Lying(60)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: cached(slot, lying), range(4)))
    assert [numbers(part) for part in parts] == [shuffled(60).tolist()] * 4
    assert lying.read == [1] * 60


def test_unfinished_builds_that_no_one_went_on_with_are_removed(slot: Slot) -> None:
    slot.file("bin").parent.mkdir(parents=True)
    old, new = slot.file("bin").with_name("old.part"), slot.file("bin").with_name("new.part")
    for file in (old, new):
        file.touch()
    os.utime(old, (1, 1))
    cached(slot, Lying(4))
    assert (old.exists(), new.exists()) == (False, True)


# -- a set ------------------------------------------------------------------------------------------------------------


def write_tree(folder: Path, num_train: int = 14, num_test: int = 4) -> Path:
    """Two classes, all images different from each other."""
    level = 0
    for part, number in (("train", num_train), ("val", num_test)):
        for name in ("ant", "bee"):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                Image.new("RGB", (12, 12), (level, 0, 0)).save(folder / part / name / f"{index}.png")
                level += 3
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "set")


def info_of(folder: Path) -> DataInfo:
    return describe(str(folder), folder.parent / "root")


@pytest.mark.parametrize(
    ("spec", "described"),
    [
        ("contours", (16, 1, 14_000, 2_000)),
        ("silhouettes", (40, 1, 35_000, 4_000)),
        ("fashion-mnist", (10, 1, 60_000, 10_000)),
        ("cifar10", (10, 3, 50_000, 10_000)),
        ("cifar100", (100, 3, 50_000, 10_000)),
    ],
)
def test_sets_by_name_are_described_as_they_were_published(
    spec: str, described: tuple[int, int, int, int], tmp_path: Path
) -> None:
    info = describe(spec, tmp_path)
    assert (info.num_classes, info.channels, info.num_train, info.num_test) == described


def test_prepared_set_is_counted_by_class_and_loads_without_decoding(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = info_of(tree)
    prepared = prepare(info, image_size=8, channels=3)
    assert (prepared.train.per_class, prepared.test.per_class) == ((14, 14), (4, 4))
    assert (prepared.train.num_bytes, prepared.num_held_out) == (28 * 3 * 8 * 8, 4)
    assert (prepared.held_out_duplicates, prepared.test_duplicates) == (0, 0)
    monkeypatch.setattr(images_module, "decode", None)
    data = load(info, image_size=8, channels=3, device=CPU)
    assert len(data.for_search(None, None).train_labels) == 24
    assert data.source.test.cache == prepared.test.cache


def test_equal_images_in_different_parts_are_counted(tree: Path) -> None:
    (tree / "val" / "ant" / "0.png").write_bytes((tree / "train" / "bee" / "3.png").read_bytes())
    prepared = prepare(info_of(tree), image_size=8, channels=3)
    assert (prepared.held_out_duplicates, prepared.test_duplicates) == (0, 1)
    for file in (tree / "train").rglob("*.png"):
        Image.new("RGB", (12, 12), (250, 250, 250)).save(file)
    prepared = prepare(info_of(tree), image_size=8, channels=3)
    assert (prepared.held_out_duplicates, prepared.test_duplicates) == (4, 0)


def test_duplicates_are_counted_in_sets_without_a_cache_too(tmp_path: Path) -> None:
    prepared = prepare(describe("contours", tmp_path), image_size=8, channels=1)
    assert (prepared.train.cache, prepared.train.num_images, prepared.test.num_images) == (None, 14_000, 2_000)
    assert prepared.test_duplicates < 20


def test_other_image_of_the_same_size_is_another_set(tree: Path) -> None:
    first = info_of(tree)
    file = tree / "train" / "ant" / "3.png"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(bytes(content))
    assert info_of(tree).id != first.id


def test_tree_beyond_the_sample_is_still_told_by_all_names_and_sizes(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MOST_SAMPLED", 5)
    first = info_of(tree).id
    file = tree / "val" / "bee" / "3.png"
    file.write_bytes(file.read_bytes() + b"more")
    assert info_of(tree).id != first


def test_link_to_nowhere_counts_as_a_missing_image(tree: Path) -> None:
    (tree / "train" / "ant" / "gone.png").symlink_to(tree / "nowhere.png")
    info = info_of(tree)
    assert info.num_train == 29
    with pytest.raises(DataError, match=r"1 of 29 training images cannot be read.*gone\.png \(No such file"):
        load(info, image_size=8, channels=3, device=CPU)
    assert prepare(info, image_size=8, channels=3, max_bad_share=0.1).train.num_images == 28


def test_class_that_keeps_no_readable_image_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "set", num_train=1)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir()
        for index in range(30):
            Image.new("RGB", (8, 8), (index, 9, 9)).save(folder / "train" / name / f"{index}.png")
        (folder / "val" / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / "val" / name / "0.png")
    (folder / "train" / "bee" / "0.png").write_text("no image")
    with pytest.raises(DataError, match=r"no training image of class 1 \(bee\); 1 that cannot be read were left out"):
        prepare(info_of(folder), image_size=8, channels=3, max_bad_share=0.05)


def test_broken_test_image_does_not_keep_from_searching(tree: Path) -> None:
    (tree / "val" / "ant" / "0.png").write_text("no image")
    data = load(info_of(tree), image_size=8, channels=3, device=CPU)
    assert len(data.for_search(None, None).eval_labels) == 4
    with pytest.raises(DataError, match="1 of 8 test images cannot be read"):
        data.for_verification(None, None)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    def run_command(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["data", "prepare", *arguments, "--data-root", str(tmp_path / "root")])

    return run_command


def test_command_tells_what_the_set_holds(tree: Path, run: Callable[..., Result]) -> None:
    result = run(str(tree), "--image-size", "8")
    assert result.exit_code == 0, result.stderr
    assert "decoding train images: 28 of 28" in result.stderr
    for words in (
        info_of(tree).id,
        "28 training images, 4 of them held out",
        "8 test images",
        "ant: 14 training, 4 test",
    ):
        assert words in result.stdout
    assert str(tree.parent / "root" / "images") in result.stdout
    assert "decoding" not in run(str(tree), "--image-size", "8").stderr


def test_hidden_folders_and_files_are_passed_over(tree: Path, run: Callable[..., Result]) -> None:
    before = info_of(tree)
    some = (tree / "train" / "ant" / "0.png").read_bytes()
    for hidden in (
        "train/.ipynb_checkpoints/0.png",
        "val/.cache/0.png",
        "train/ant/.thumbs/0.png",
        "train/bee/._0.png",
    ):
        (tree / hidden).parent.mkdir(exist_ok=True)
        (tree / hidden).write_bytes(some)
    assert info_of(tree) == before
    assert "28 training images" in run(str(tree), "--image-size", "8").stdout


def test_files_that_are_no_images_by_their_names_are_counted_and_named(
    tree: Path, run: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    before = info_of(tree)
    Image.new("RGB", (8, 8), (3, 9, 9)).save(tree / "train" / "ant" / "one.gif")
    assert info_of(tree).num_train == before.num_train + 1
    (tree / "train" / "ant" / "one.gif").unlink()
    for name in ("train/ant/notes.txt", "train/ant/scan.jp2", "train/bee/a.npy", "val/bee/more"):
        (tree / name).write_bytes(b"no image")
    caplog.clear()
    assert info_of(tree) == before
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "left out 3 files whose names are not those of images" in told
    assert "ant/notes.txt, ant/scan.jp2, bee/a.npy" in told
    assert "left out 1 files" in told
    told_again = [record for record in caplog.records if "left out" in record.getMessage()]
    assert len(told_again) == 2, "once for a part"
    (tree / "val" / "bee" / "other").write_bytes(b"no image")
    assert "left out 2 files" in run(str(tree), "--image-size", "8").stderr


def test_classes_that_are_evaluated_and_not_trained_on_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [f"class{index:02}" for index in range(20)]:
        (tmp_path / "few" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (8, 8), (index, int(name[-2:]), 9)).save(tmp_path / "few" / name / f"{index}.png")
    data = load(info_of(tmp_path / "few"), image_size=8, channels=3, device=CPU)
    for _ in range(2):
        split = data.for_search(None, None)
    lost = set(split.eval_labels.tolist()) - set(split.train_labels.tolist())
    assert lost, "of one training image a class"
    (record,) = [record for record in caplog.records if "are evaluated" in record.getMessage()]
    assert f"{len(lost)} classes ({', '.join(map(str, sorted(lost)))}) are evaluated" in record.getMessage()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bar_on_a_terminal_comes_to_its_end(tree: Path, tmp_path: Path) -> None:
    import pty

    ours, its = pty.openpty()
    command = [sys.executable, "-m", "explorer", "data", "prepare", str(tree), "--image-size", "8"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*command, "--data-root", str(tmp_path / "root")], stdout=subprocess.PIPE, stderr=its, env=environment
    )
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown.decode()
    assert b"28 training images" in out
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"decoding train images .*28/28", last), last
    assert re.search(r"decoding test images .*8/8", last), last


def test_command_warns_of_what_it_left_out_and_of_duplicates(tree: Path, run: Callable[..., Result]) -> None:
    (tree / "train" / "ant" / "0.png").write_text("no image")
    (tree / "val" / "ant" / "0.png").write_bytes((tree / "train" / "bee" / "3.png").read_bytes())
    result = run(str(tree), "--image-size", "8", "--max-bad-share", "0.1", "--json")
    assert result.exit_code == 0, result.stderr
    assert "warning: 1 of 28 training images cannot be read and are left out" in result.stderr
    assert "warning: 1 of 8 test images are equal to a training image" in result.stderr
    content = json.loads(result.stdout)
    assert set(content) == {
        "data", "id", "num_classes", "class_names", "image_size", "channels", "num_held_out", "held_out_duplicates",
        "test_duplicates", "train", "test",
    }  # fmt: skip
    assert (content["class_names"], content["test_duplicates"]) == (["ant", "bee"], 1)
    assert set(content["train"]) == {"name", "num_images", "per_class", "num_bytes", "num_bad", "bad", "cache"}
    assert (content["train"]["per_class"], content["train"]["num_bad"]) == ([13, 14], 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nosuch", "--image-size", "8"], "neither a known set nor a folder"),
        (["TREE", "--image-size", "8", "--channels", "2"], "--channels: 2 is not allowed"),
        (["TREE", "--image-size", "8", "--channels", "1"], "its images have 3 channels, 1 are expected"),
        (["BROKEN", "--image-size", "8"], "2 of 28 training images cannot be read"),
    ],
)
def test_bad_input_is_said_in_one_message(
    arguments: list[str], told: str, tree: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    broken = write_tree(tmp_path / "broken")
    for name in ("ant", "bee"):
        (broken / "train" / name / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = run(*[{"TREE": str(tree), "BROKEN": str(broken)}.get(text, text) for text in arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert told in result.stderr
