"""swinexplore: which Swin-like vision transformer is the most accurate within your latency on your hardware?

The library's front door; everything is imported when first touched, so that `import explorer` costs nothing.

>>> import explorer
>>> explorer.PRESETS["Swin-Free-B-BR-DR14"].windows
(7, 14, 14, 7)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Arch": "explorer.arch",
    "PRESETS": "explorer.arch",
    "ProxyScale": "explorer.arch",
    "parse_name": "explorer.arch",
    "Space": "explorer.space",
    "Target": "explorer.records",
    "Latency": "explorer.records",
    "Score": "explorer.records",
    "Candidate": "explorer.records",
    "Complexity": "explorer.complexity",
    "complexity_of": "explorer.complexity",
    "Recipe": "explorer.training.recipe",
    "Store": "explorer.store",
}

__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from explorer.arch import PRESETS, Arch, ProxyScale, parse_name
    from explorer.complexity import Complexity, complexity_of
    from explorer.records import Candidate, Latency, Score, Target
    from explorer.space import Space
    from explorer.store import Store
    from explorer.training.recipe import Recipe


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'explorer' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
