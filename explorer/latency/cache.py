"""Engines, timing caches and logs on disk, in a folder of the user's own.

A plan is code: loading one that somebody else wrote is running their program (NVIDIA's TensorRT security notes). So the
folder belongs to the user and is closed to all others (0700), names are digests over everything that a file depends on,
and nothing is loaded whose sha256 is not the one noted when it was written. No engine from outside is ever loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from explorer.errors import BackendMissing

logger = logging.getLogger(__name__)

#: The least recently used files go when the folder holds more than this.
MAX_BYTES: Final = 8 * 2**30
_PRIVATE: Final = 0o700
_WRITING: Final = ".writing-"
_ABANDONED_S: Final = 3600.0


def default_root() -> Path:
    """`~/.cache/swinexplore`; the command line follows XDG_CACHE_HOME."""
    return Path("~/.cache/swinexplore").expanduser()


def key_of(**parts: Any) -> str:
    """32 hex digits over JSON-ready `parts`, whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Cache:
    """A private folder of files with their digests. Raises BackendMissing where the folder is not private."""

    def __init__(self, root: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self.root, self.max_bytes = (root or default_root()) / "engines", max_bytes
        try:
            self.root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            found = self.root.lstat()
        except OSError as error:
            raise BackendMissing(f"cache: {self.root}: cannot be made: {error.strerror}") from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise BackendMissing(f"cache: {self.root}: is not a folder of yours; remove it")
        if found.st_mode & 0o077:
            raise BackendMissing(
                f"cache: {self.root}: is open to others (mode {stat.S_IMODE(found.st_mode):04o}); engines are code: look "
                f"what is in it, then say: chmod 700 {self.root}"
            )

    def load(self, kind: str, key: str) -> tuple[bytes, dict[str, Any]] | None:
        """Content and notes of a file, or None where it is not there or not what was written."""
        file, notes = self.root / f"{key}.{kind}", self.root / f"{key}.{kind}.json"
        try:
            content, noted = file.read_bytes(), json.loads(notes.read_text(encoding="utf-8"))
            expected, told = noted["sha256"], noted["notes"]
        except FileNotFoundError:
            if file.exists():
                logger.warning("cache: %s has no notes beside it; it is made anew", file)
            return None
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("cache: %s cannot be read; it is made anew", file)
            return None
        if hashlib.sha256(content).hexdigest() != expected:
            logger.warning("cache: %s is not what was written; it is made anew", file)
            return None
        with contextlib.suppress(OSError):
            os.utime(file)
        return content, told

    def store(self, kind: str, key: str, content: bytes, **notes: Any) -> None:
        """Keeps `content` with JSON-ready `notes`; what cannot be written is only said: a cache is not needed."""
        noted = {"sha256": hashlib.sha256(content).hexdigest(), "notes": notes}
        try:
            _write(self.root / f"{key}.{kind}", content)
            _write(self.root / f"{key}.{kind}.json", json.dumps(noted).encode())
            self._make_room()
        except OSError as error:
            logger.warning("cache: %s cannot be written: %s", self.root, error.strerror)

    def _make_room(self) -> None:
        for left in self.root.glob(f"{_WRITING}*"):  # of a process that was killed
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                if time.time() - left.stat().st_mtime > _ABANDONED_S:
                    left.unlink()
        found: list[tuple[float, int, Path]] = []
        for file in self.root.glob("*.engine"):
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
        found.sort()
        total = sum(size for _, size, _ in found)
        for _, size, file in found[:-1]:
            if total <= self.max_bytes:
                break
            total -= size
            file.unlink(missing_ok=True)
            file.with_name(f"{file.name}.json").unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """All or nothing: another process sees the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_WRITING)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
