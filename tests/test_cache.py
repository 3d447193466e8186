"""Engines on disk: a folder closed to others, and nothing loaded from it that is not what was written."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from explorer.errors import BackendMissing
from explorer.latency import cache as cache_module
from explorer.latency.cache import Cache, default_root, key_of

PLAN = b"a plan of some engine"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.root.iterdir()}


# -- the folder -------------------------------------------------------------------------------------------------------


def test_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "not" / "there")
    assert cache.root == tmp_path / "not" / "there" / "engines"
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700


def test_folder_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = Cache(tmp_path)
        cache.store("engine", "k", PLAN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.root.iterdir()} == {0o600}


def test_folder_is_the_users_own_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "swinexplore"
    assert Cache().root == tmp_path / ".cache" / "swinexplore" / "engines"


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o720, 0o777])
def test_folder_that_is_open_to_others_is_refused_with_its_mode(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(BackendMissing, match=rf"open to others \(mode 0{mode:o}\).*chmod 700 {folder}"):
        Cache(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == mode, "nothing was changed"


def test_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "engines").symlink_to(elsewhere)
    with pytest.raises(BackendMissing, match="is not a folder of yours"):
        Cache(tmp_path)


@pytest.mark.parametrize("where", ["engines", "."])
def test_file_in_the_place_of_the_folder_is_refused(where: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / where).parent.mkdir(exist_ok=True)
    (root / where).touch()
    with pytest.raises(BackendMissing, match=f"cache: {root / 'engines'}: "):
        Cache(root)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, -1)
    with pytest.raises(BackendMissing, match="is not a folder of yours"):
        Cache(tmp_path)


# -- files ------------------------------------------------------------------------------------------------------------


def test_what_was_stored_is_loaded_with_its_notes(cache: Cache) -> None:
    cache.store("engine", "k", PLAN, build_s=1.5, arch="Swin-T")
    assert cache.load("engine", "k") == (PLAN, {"build_s": 1.5, "arch": "Swin-T"})
    assert Cache(cache.root.parent).load("engine", "k") == (PLAN, {"build_s": 1.5, "arch": "Swin-T"})


def test_kinds_and_keys_are_kept_apart(cache: Cache) -> None:
    cache.store("engine", "k", b"engine")
    cache.store("timing", "k", b"timing")
    cache.store("engine", "other", b"other")
    found = [cache.load(*place) for place in (("engine", "k"), ("timing", "k"), ("engine", "other"))]
    assert [content for content, _ in filter(None, found)] == [b"engine", b"timing", b"other"]


def test_what_is_not_there_is_nothing_to_talk_of(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    assert cache.load("engine", "k") is None
    assert not caplog.records


def change_content(cache: Cache) -> None:
    (cache.root / "k.engine").write_bytes(PLAN + b"!")


def cut_content(cache: Cache) -> None:
    (cache.root / "k.engine").write_bytes(PLAN[:-1])


def remove_notes(cache: Cache) -> None:
    (cache.root / "k.engine.json").unlink()


def break_notes(cache: Cache) -> None:
    (cache.root / "k.engine.json").write_text("{", encoding="utf-8")


def empty_notes(cache: Cache) -> None:
    (cache.root / "k.engine.json").write_text("{}", encoding="utf-8")


def list_as_notes(cache: Cache) -> None:
    (cache.root / "k.engine.json").write_text("[]", encoding="utf-8")


def notes_that_are_no_text(cache: Cache) -> None:
    (cache.root / "k.engine.json").write_bytes(b"\xff\xfe")


def digest_alone(cache: Cache) -> None:
    notes = cache.root / "k.engine.json"
    noted = json.loads(notes.read_text(encoding="utf-8"))
    notes.write_text(json.dumps({"sha256": noted["sha256"]}), encoding="utf-8")


def folder_as_notes(cache: Cache) -> None:
    (cache.root / "k.engine.json").unlink()
    (cache.root / "k.engine.json").mkdir()


def folder_in_its_place(cache: Cache) -> None:
    (cache.root / "k.engine").unlink()
    (cache.root / "k.engine").mkdir()


@pytest.mark.parametrize(
    "harm",
    [
        change_content,
        cut_content,
        remove_notes,
        break_notes,
        empty_notes,
        list_as_notes,
        notes_that_are_no_text,
        digest_alone,
    ],
)
def test_what_is_not_as_it_was_written_is_not_loaded_and_is_written_anew(
    harm: Callable[[Cache], None], cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store("engine", "k", PLAN, build_s=1.5)
    harm(cache)
    assert cache.load("engine", "k") is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(cache.root / "k.engine") in record.getMessage()
    cache.store("engine", "k", PLAN, build_s=2.5)
    assert cache.load("engine", "k") == (PLAN, {"build_s": 2.5})


def test_engine_without_notes_is_told_as_such(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    cache.store("engine", "k", PLAN)
    remove_notes(cache)
    assert cache.load("engine", "k") is None
    assert caplog.messages == [f"cache: {cache.root / 'k.engine'} has no notes beside it; it is made anew"]


def test_notes_without_their_engine_are_nothing_to_talk_of(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    cache.store("engine", "k", PLAN)
    (cache.root / "k.engine").unlink()
    assert cache.load("engine", "k") is None
    assert not caplog.records


@pytest.mark.parametrize("harm", [folder_in_its_place, folder_as_notes])
def test_folder_in_the_place_of_a_file_is_said_and_not_loaded(
    harm: Callable[[Cache], None], cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store("engine", "k", PLAN)
    harm(cache)
    assert cache.load("engine", "k") is None
    assert "cannot be read" in caplog.text


def test_file_is_written_whole_or_not_at_all(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.store("engine", "k", PLAN, build_s=1.0)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        cache.store("engine", "k", b"another plan", build_s=2.0)
    assert "cannot be written: No space left on device" in caplog.text
    assert names(cache) == {"k.engine", "k.engine.json"}, "nothing half written is left"
    assert cache.load("engine", "k") == (PLAN, {"build_s": 1.0})


def test_interrupted_write_leaves_the_old_file(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.store("engine", "k", PLAN)

    def interrupt(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.store("engine", "k", b"another plan")
    assert names(cache) == {"k.engine", "k.engine.json"}
    assert cache.load("engine", "k") == (PLAN, {})


def test_folder_that_cannot_be_written_is_only_said(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(cache.root)
    cache.store("engine", "k", PLAN)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{cache.root} cannot be written" in record.getMessage()
    assert cache.load("engine", "k") is None


# -- room -------------------------------------------------------------------------------------------------------------


def put(cache: Cache, key: str, num_bytes: int, *, used_s: float) -> None:
    """Stores an engine that was last used so many seconds after 2001."""
    cache.store("engine", key, bytes(num_bytes))
    os.utime(cache.root / f"{key}.engine", (1e9 + used_s, 1e9 + used_s))


def engines(cache: Cache) -> set[str]:
    return {path.stem for path in cache.root.glob("*.engine")}


def test_least_recently_used_engines_make_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=250)
    put(cache, "used", 100, used_s=1)
    put(cache, "old", 100, used_s=2)
    assert cache.load("engine", "used") is not None, "which uses it now"
    cache.store("engine", "new", bytes(100))
    assert engines(cache) == {"used", "new"}
    assert not (cache.root / "old.engine.json").exists(), "notes go with their file"


def test_as_many_go_as_must(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=300)
    for index in range(3):
        put(cache, f"old{index}", 100, used_s=index)
    assert engines(cache) == {"old0", "old1", "old2"}
    cache.store("engine", "new", bytes(200))
    assert engines(cache) == {"old2", "new"}


def test_newest_engine_stays_though_it_is_too_large(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=100)
    put(cache, "old", 50, used_s=1)
    cache.store("engine", "new", bytes(200))
    assert engines(cache) == {"new"}
    assert cache.load("engine", "new") == (bytes(200), {})


def test_timing_caches_stay_when_engines_make_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=100)
    cache.store("timing", "machine", bytes(500))
    put(cache, "old", 100, used_s=1)
    cache.store("engine", "new", bytes(100))
    assert cache.load("timing", "machine") == (bytes(500), {})


def test_what_a_killed_process_left_half_written_goes_in_time(cache: Cache) -> None:
    abandoned, at_work = cache.root / ".writing-abandoned", cache.root / ".writing-at-work"
    for path in (abandoned, at_work):
        path.write_bytes(PLAN[:3])
    os.utime(abandoned, (1e9, 1e9))
    cache.store("timing", "machine", b"timing")
    assert names(cache) == {".writing-at-work", "machine.timing", "machine.timing.json"}


def test_cache_holds_gigabytes_by_default(cache: Cache) -> None:
    assert cache.max_bytes == cache_module.MAX_BYTES >= 2**30


# -- keys -------------------------------------------------------------------------------------------------------------


def test_key_does_not_depend_on_the_order_of_its_parts() -> None:
    options = {"level": 3, "batches": [1, 8, 8]}
    key = key_of(graph="g", options=options)
    assert key == key_of(options=dict(reversed(options.items())), graph="g")
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "other",
    [
        {"graph": "h", "options": {"level": 3}},
        {"graph": "g", "options": {"level": 4}},
        {"graph": "g", "options": {"level": 3}, "machine": "m"},
        {"graph": "g"},
    ],
)
def test_key_depends_on_every_part(other: dict[str, object]) -> None:
    assert key_of(**other) != key_of(graph="g", options={"level": 3})
