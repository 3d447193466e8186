"""Commands about architectures: `space`, `inspect`, `measure`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.arch import Arch
from explorer.cli import console, options
from explorer.errors import UserError
from explorer.records import DEFAULT_STORAGE

if TYPE_CHECKING:
    from explorer.latency.measurer import Measurer


def space(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A space file: a path, or a name that ships with swinexplore.")
    ],
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Pixels per side, instead of the base's.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show a design space: sizes and dimensions; nothing is started."""
    from explorer.space import Space

    loaded = Space.load(file, image_size=image_size)
    proxy = loaded.base.proxy(loaded.proxy_scale, channels=loaded.base.channels, num_classes=loaded.base.num_classes)
    content: dict[str, Any] = {
        "name": loaded.name,
        "space_id": loaded.id,
        "base": loaded.base.name,
        "raw_points": loaded.raw_points,
        "architectures": loaded.architectures,
        "search": loaded.describe(),
        "dimensions": {dimension.name: list(dimension.choices) for dimension in loaded.dimensions},
        "proxy": loaded.proxy_scale.to_dict(),
        "proxy_of_base": proxy.name,
        "known_networks": [arch.name for arch in loaded.known_networks()],
    }
    if as_json:
        console.json_document(content)
        return
    console.document(
        f"{loaded.name}: {loaded.raw_points:,} raw points, {loaded.architectures:,} different architectures"
    )
    console.document(f"base            {loaded.base.name} ({loaded.base.id})")
    for dimension in loaded.dimensions:
        console.document(f"{dimension.name:16}{', '.join(map(str, dimension.choices))}")
    console.document(f"proxy           {proxy.name} stands for the base")
    console.document(f"known networks  {', '.join(content['known_networks'])}")


def inspect(
    name: Annotated[str, typer.Argument(metavar="NAME|ID|RUN.yaml", help="A preset, a name, an id, or a run file.")],
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """Show one architecture: its stages, parameters, FLOPs, activation memory and the nodes of its deployed graph."""
    from explorer import model
    from explorer.complexity import arch_facts, complexity_of

    arch = options.arch_of(name, storage)
    counts = complexity_of(arch)
    stages = [asdict(stage) for stage in counts.stages]
    nodes = model.node_roles(arch) if _is_countable(arch) else None
    fields = {key: value for key, value in arch.to_dict().items() if key not in ("windows", "shifts", "br", "depths")}
    content: dict[str, Any] = {
        **arch_facts(arch),
        **fields,
        "activation_bytes": counts.activation_bytes,
        "stages": stages,
        "nodes": nodes,
    }
    if as_json:
        console.json_document(content)
        return
    from rich.table import Table

    console.document(
        f"{arch.name} ({arch.id})  image {arch.image_size}x{arch.image_size}x{arch.channels}, {arch.num_classes} classes"
    )
    norm, activation = ("BatchNorm", "ReLU") if arch.br else ("LayerNorm", "GELU")
    form = "post-norm, cosine attention" if arch.v2 else "pre-norm"
    console.document(f"{norm}, {activation}, {form}, patch {arch.patch_size}, MLP ratio {arch.mlp_ratio:g}")
    table = Table("", *(f"stage {number}" for number in range(1, len(stages) + 1)))
    for key in stages[0]:
        table.add_row(key, *(f"{int(stage[key]):,}" for stage in stages))
    console.table(table)
    for key in ("params_trainable", "params_deployed", "flops", "activation_bytes"):
        console.document(f"{key:18}{content[key]:>16,}")
    if nodes is None:
        console.document("nodes: not counted, the network is too large for its graph to be written")
        return
    console.document(f"{'nodes':18}{sum(nodes.values()):>16,}  of the ONNX graph at batch 1, by role:")
    console.document("  " + ", ".join(f"{role} {count}" for role, count in nodes.items()))


def _is_countable(arch: Arch) -> bool:
    """Whether the graph can be laid out in seconds: no such limit binds a network that could be trained."""
    return sum(arch.depths) <= 500 and max(arch.windows) <= 128 and arch.tokens[0] <= 2048


def measure(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Presets, names, ids or run files.")],
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "fp32",
    batch: options.Batches = "1",
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="One graph for all batches up to the largest, not one each.")
    ] = False,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Pixels per side.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="NAME", help="Timed beside every network; ratios are to it.")
    ] = None,
    rebuilds: options.Rebuilds = 1,
    deadline: options.Deadline = 900,
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """Measure the latency of architectures on this machine; nothing is trained or stored."""
    from explorer import latency
    from explorer.complexity import arch_facts
    from explorer.latency.measurer import Measurer
    from explorer.latency.worker import Worker

    archs = [options.arch_of(name, storage, image_size) for name in names]
    beside = None if reference is None else options.arch_of(reference, storage, image_size)
    unlike = [arch for arch in archs if beside is not None and arch.image_size != beside.image_size]
    if unlike and beside is not None:
        raise UserError(
            f"--reference: {beside.name} takes images of {beside.image_size} pixels, {unlike[0].name} of "
            f"{unlike[0].image_size}; a ratio of them says nothing: give --image-size"
        )
    batches = options.batches_of(batch)
    rows: list[dict[str, Any]] = []
    planned = []
    for arch, images in ((arch, images) for images in batches for arch in archs):
        target, why = latency.resolve(
            backend,
            device=device,
            precision=options.precision_of(precision),
            batch=images,
            image_size=arch.image_size,
            dynamic_to=max(batches) if dynamic_batch else None,
        )
        planned.append((arch, images, target))
    console.note(why)
    with Worker() as worker:
        for arch, images, target in planned:
            with console.status() as tell:
                measurer = Measurer(
                    target,
                    reference=beside,
                    rebuilds=rebuilds,
                    deadline_s=deadline,
                    cache_root=options.cache_root(),
                    on_event=_about(arch, tell),
                    worker=worker,
                )
                found = _measured(measurer, arch)
            rows.append({**arch_facts(arch), "batch": images, **found, "target": asdict(target)})
            if not as_json and found["latency_ms"] is not None:
                console.document(_latency_line(arch, images, found, with_batch=len(batches) > 1))
    if as_json:
        console.json_document({"measurements": rows})
    else:
        console.document("\n".join(dict.fromkeys(target.describe() for _, _, target in planned)))
    if any(row["latency_ms"] is None for row in rows):
        raise typer.Exit(1)


def _about(arch: Arch, tell: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: tell(f"{arch.name}: {text}")


def _measured(measurer: Measurer, arch: Arch) -> dict[str, Any]:
    """Every field of the latency with its ratio and spread, or why there is none."""
    from explorer.errors import TrialError

    try:
        found = measurer.measure(arch)
    except TrialError as error:
        console.error(f"{arch.name}: {error}" if arch.name not in str(error) else str(error))
        return {"latency_ms": None, "kind": error.kind, "reason": str(error)}
    return {**asdict(found), "ratio": found.ratio, "rebuild_spread": found.rebuild_spread}


def _latency_line(arch: Arch, images: int, found: dict[str, Any], *, with_batch: bool) -> str:
    words = [f"{arch.name:32}"]
    if with_batch:
        words.append(f"batch {images:<4}")
    words.append(f"{found['latency_ms']:9.3f} ms  p95 {found['p95_ms']:.3f}  cv {found['cv']:.1%}")
    words.append(f" {found['images_per_s']:.0f} images/s  {found['num_samples']} samples")
    if found["ratio"] is not None:
        words.append(f" {found['ratio']:.3f} of the reference")
    if found["rebuild_spread"] is not None:
        words.append(f" engines differ by {found['rebuild_spread']:.1%}")
    if found["invalid"]:
        words.append(f" INVALID: {found['invalid']}")
    elif not found["is_stable"]:
        words.append(" (not stable)")
    return " ".join(words)
