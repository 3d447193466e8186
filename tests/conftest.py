"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from explorer.arch import Arch, parse_name
from explorer.store import Store

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def tiny() -> Arch:
    return parse_name("Swin-E16x2.2.2.2-R56-P1-N10")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(str(tmp_path / "explorer.db"), create=True)
    yield opened
    opened.close()


@pytest.fixture
def fashion_mnist() -> Path:
    missing = f"{FASHION_MNIST} is not there: apt-get install dataset-fashion-mnist"
    if not FASHION_MNIST.is_dir() and os.environ.get("CI"):
        pytest.fail(missing)
    if not FASHION_MNIST.is_dir():
        pytest.skip(missing)
    return FASHION_MNIST
