"""`profile`: where the run time of one network goes, by operation and by stage."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from explorer.cli import console, options
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from explorer.latency.profile import Profile

#: Columns of the longest bar.
_BAR = 40


def profile(
    name: Annotated[str, typer.Argument(metavar="NAME|ID|RUN.yaml", help="A preset, a name, an id, or a run file.")],
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "fp32",
    batch: options.Batch = 1,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Pixels per side.")] = None,
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """Show where the run time goes, by operation and by stage; a pass of its own, nothing is stored."""
    from explorer import latency
    from explorer.latency.profile import profile_arch

    arch = options.arch_of(name, storage, image_size)
    target, why = latency.resolve(
        backend, device=device, precision=options.precision_of(precision), batch=batch, image_size=arch.image_size
    )
    console.note(why)
    profiled = profile_arch(arch, target, cache_root=options.cache_root())
    if as_json:
        console.json_document({"name": arch.name, "target": asdict(target), **profiled.to_dict()})
        return
    console.document(f"{arch.name} ({arch.id})")
    console.document(target.describe())
    show(profiled)


def show(profiled: Profile) -> None:
    """Prints bars for the groups and the stages that take time, the sums and the remarks."""
    for shares in (profiled.by_group(), profiled.by_stage()):
        console.document("")
        _show_bars(shares, profiled.total_ms)
    console.document("")
    console.document(f"{'sum of the parts':24}{profiled.total_ms:10.3f} ms  of {profiled.num_runs} profiled runs")
    console.document(f"{'plain run':24}{profiled.plain_ms:10.3f} ms  short median without a profiler, which costs time")
    for remark in profiled.remarks:
        console.document(f"- {remark}")


def _show_bars(shares: Mapping[str, float], total_ms: float) -> None:
    block = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    longest = max(shares.values())
    for label, share in shares.items():
        if share > 0:
            bar = block * round(_BAR * share / longest)
            console.document(f"{label:24}{share * total_ms:10.3f} ms  {share:6.1%}  {bar}".rstrip())
