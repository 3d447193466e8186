"""Options that several commands share, and what they mean to the library."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from explorer.arch import Arch, parse_name
from explorer.errors import ArchError, BackendMissing, UserError
from explorer.records import Precision

Storage = Annotated[
    str, typer.Option("--storage", metavar="URL", help="Database: a file, sqlite:///FILE or postgresql://...")
]
Study = Annotated[str | None, typer.Option("--study", metavar="NAME", help="Study; default: the latest.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Backend = Annotated[
    str,
    typer.Option("--backend", help="auto, tensorrt, onnxruntime, onnxruntime-tensorrt, torch or torch-compile."),
]
Device = Annotated[str, typer.Option("--device", help="Where latency is measured: auto, cpu or cuda.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp32, fp16 or bf16.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images per inference.")]
Batches = Annotated[
    str, typer.Option("--batch", metavar="N,N...", help="Images per inference; several are all measured.")
]
Rebuilds = Annotated[
    int, typer.Option("--rebuilds", min=1, max=100, help="Engines built of every network: their spread is kept.")
]
Deadline = Annotated[
    float,
    typer.Option(
        "--deadline", metavar="S", min=10, max=86_400, help="Seconds for one network's export, builds and timing."
    ),
]
BatchOrDynamic = Annotated[
    str, typer.Option("--batch", metavar="N|dynamic", help="Images per inference; dynamic: any number.")
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", metavar="DIR", help="Where downloaded sets and caches live.")
]
TrainParallel = Annotated[
    int,
    typer.Option("--train-parallel", metavar="K", min=1, max=64, help="Proxies that train at once on one device."),
]
TrainThreads = Annotated[
    int | None,
    typer.Option(
        "--train-threads", metavar="T", min=1, max=1024, help="CPU threads of one training; default: an equal share."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of sampler, weights and training.")]


#: Far above any batch whose graph could be checked.
MAX_BATCH = 65_536


def precision_of(text: str) -> Precision:
    """Raises BackendMissing for an unknown precision."""
    if text not in ("fp32", "fp16", "bf16"):
        raise BackendMissing(f"precision: {text!r} is not allowed; allowed: fp32, fp16, bf16")
    return cast(Precision, text)


def batch_of(text: str) -> int | None:
    """A number of images, None for `dynamic`. Raises UserError for anything else."""
    if text == "dynamic":
        return None
    if not (text.isdecimal() and len(text) <= len(str(MAX_BATCH)) and 1 <= int(text) <= MAX_BATCH):
        raise UserError(f"--batch: {text[:20]!r} is neither a whole number from 1 to {MAX_BATCH:,} nor 'dynamic'")
    return int(text)


def batches_of(text: str) -> list[int]:
    """`1,8,32` as numbers. Raises UserError."""
    numbers = [batch_of(part.strip()) for part in text.split(",")]
    if None in numbers:
        raise UserError("--batch: 'dynamic' is no number of images; give --dynamic-batch beside the numbers")
    return [number for number in dict.fromkeys(numbers) if number is not None]


def check_max_latency(max_latency_ms: float | None) -> None:
    """Raises UserError for what is no latency."""
    if max_latency_ms is not None and not 0 < max_latency_ms < float("inf"):
        raise UserError(f"--max-latency: {max_latency_ms} is not a number of milliseconds above 0")


def cache_root() -> Path:
    """`swinexplore` in the user's cache: engines, timing caches, downloaded sets."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swinexplore"


def data_root(given: Path | None) -> Path:
    """The given folder, else the user's cache."""
    return given or cache_root()


def arch_of(text: str, storage: str, image_size: int | None = None) -> Arch:
    """An architecture by name, by id (or its beginning) from the database, or from a run file; at another image size
    (pixels) where given. Raises UserError.
    """
    if text.endswith((".yaml", ".yml")):
        from explorer.training.recipe import load_run

        arch = load_run(Path(text)).architecture(text)
    elif text.lower().startswith("a1-"):
        from explorer.store import Store

        store = Store.open(storage)
        try:
            arch = store.arch(text.lower())
        finally:
            store.close()
    else:
        return parse_name(text, **({} if image_size is None else {"image_size": image_size}))
    try:
        return arch if image_size is None else replace(arch, image_size=image_size).canonical()
    except ArchError as error:
        raise UserError(f"--image-size: {error}") from None
