"""Commands about architectures: `space`, `inspect`, `measure`, `export`, `train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from explorer.cli import console, options
from explorer.errors import RecipeError, UserError
from explorer.records import DEFAULT_STORAGE


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
        "proxy": asdict(loaded.proxy_scale),
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
    """Show one architecture: its stages, parameters and FLOPs."""
    from explorer.complexity import complexity_of
    from explorer.report import arch_row

    arch = options.arch_of(name, storage)
    stages = [asdict(stage) for stage in complexity_of(arch).stages]
    fields = {key: value for key, value in arch.to_dict().items() if key not in ("windows", "shifts", "br", "depths")}
    content: dict[str, Any] = {**arch_row(arch), **fields, "stages": stages}
    if as_json:
        console.json_document(content)
        return
    from rich.table import Table

    console.document(
        f"{arch.name} ({arch.id})  image {arch.image_size}x{arch.image_size}x{arch.channels}, {arch.num_classes} classes"
    )
    norm, activation = ("BatchNorm", "ReLU") if arch.br else ("LayerNorm", "GELU")
    console.document(f"{norm}, {activation}, patch {arch.patch_size}, MLP ratio {arch.mlp_ratio:g}")
    table = Table("stage", *stages[0])
    for number, stage in enumerate(stages, 1):
        table.add_row(
            str(number), *(f"{value:,}" if not isinstance(value, bool) else str(int(value)) for value in stage.values())
        )
    console.table(table)
    for key in ("params_trainable", "params_deployed", "flops"):
        console.document(f"{key:18}{content[key]:>16,}")


def measure(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Presets, names, ids or run files.")],
    backend: options.Backend = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "fp32",
    batch: options.Batch = 1,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Pixels per side.")] = None,
    storage: options.Storage = DEFAULT_STORAGE,
    as_json: options.Json = False,
) -> None:
    """Measure the latency of architectures on this machine; nothing is trained or stored."""
    from explorer import latency
    from explorer.errors import TrialError
    from explorer.evaluate import measure_arch
    from explorer.report import arch_row

    archs = [options.arch_of(name, storage, image_size) for name in names]
    rows: list[dict[str, Any]] = []
    targets: dict[str, Any] = {}
    for arch in archs:
        target, why = latency.resolve(
            backend, device=device, precision=options.precision_of(precision), batch=batch, image_size=arch.image_size
        )
        if not targets:
            console.note(why)
        targets[target.id] = asdict(target)
        try:
            measured = asdict(measure_arch(arch, target))
        except TrialError as error:
            measured = {"latency_ms": None, "reason": str(error)}
            console.error(f"{arch.name}: {error}")
        rows.append({**arch_row(arch), **measured, "target": targets[target.id]})
        if not as_json and measured["latency_ms"] is not None:
            shaky = "" if measured["is_stable"] else "  (not stable)"
            console.document(
                f"{arch.name:32}{measured['latency_ms']:10.3f} ms  p95 {measured['p95_ms']:.3f}  cv {measured['cv']:.1%}  "
                f"{measured['num_samples']} samples{shaky}"
            )
    if as_json:
        console.json_document({"measurements": rows})
    else:
        console.document(target.describe())
    if any(row["latency_ms"] is None for row in rows):
        raise typer.Exit(1)


def export(
    name: Annotated[
        str, typer.Argument(metavar="NAME|ID|RUN.yaml", help="A preset, a name, an id from a study, or a run file.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write run.yaml and model.onnx into.")],
    precision: options.PrecisionOption = "fp32",
    batch: options.Batch = 1,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe of the run: a name or a .yaml file; default: imagenet.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data of the run, as for search.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE", help="Trained weights for model.onnx, from `train`.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Of weights and training.")] = None,
    study: options.Study = None,
    storage: options.Storage = DEFAULT_STORAGE,
) -> None:
    """Write a training run file and the ONNX model of an architecture."""
    from explorer import model
    from explorer.training.recipe import RunFile, load_recipe, load_run, write_run

    arch = options.arch_of(name, storage)
    if name.endswith((".yaml", ".yml")):
        run = load_run(Path(name))
        given = {"--recipe": recipe, "--data": data, "--seed": seed, "--study": study}
        if any(value is not None for value in given.values()):
            said = ", ".join(option for option, value in given.items() if value is not None)
            raise RecipeError(f"{name}: {said} cannot be given with a run file; change the run file")
    else:
        run = RunFile(
            version=1,
            name=arch.name,
            arch=arch.to_dict(),
            recipe=load_recipe(recipe or "imagenet"),
            data=data,
            seed=seed or 0,
            origin=_origin(arch.id, study, storage),
        )
    module = model.build(arch, seed=run.seed)
    if checkpoint is not None:
        _load_weights(module, checkpoint)
    deployed = model.deploy(module, arch, batch=batch, precision=options.precision_of(precision), seed=run.seed)
    assert deployed.onnx_bytes is not None
    try:
        to.mkdir(parents=True, exist_ok=True)
        (to / "model.onnx").write_bytes(deployed.onnx_bytes)
        if not (Path(name).exists() and (to / "run.yaml").exists() and Path(name).samefile(to / "run.yaml")):
            write_run(run, to / "run.yaml")
    except OSError as error:
        raise UserError(f"--to: {to}: cannot be written: {error.strerror}") from None
    weights = f"weights of {checkpoint}" if checkpoint else "untrained weights"
    console.note(
        f"{arch.name} ({arch.id}): graph agrees with the model to {deployed.difference:.1e} of its logits' spread"
    )
    console.document(
        f"{to / 'model.onnx'}  {precision}, batch {batch}, {weights}, {len(deployed.onnx_bytes) / 1e6:.1f} MB"
    )
    console.document(
        f"{to / 'run.yaml'}  train it: swinexplore train {to / 'run.yaml'}{'' if run.data else ' --data DATA'}"
    )


def _origin(arch_id: str, study: str | None, storage: str) -> dict[str, Any]:
    """Where the choice came from: the study's facts about the architecture, where there is a study that holds it."""
    from explorer import __version__
    from explorer.errors import StoreError
    from explorer.store import Store

    origin: dict[str, Any] = {"swinexplore": __version__}
    try:
        store = Store.open(storage)
        record = store.study(study)
    except StoreError:
        if study is not None:
            raise
        return origin
    for candidate in store.candidates(record):
        if candidate.arch.id == arch_id:
            target = store.target(record.target_id)
            found = {"study": record.name, "accuracy": candidate.accuracy, "latency_ms": candidate.latency_ms}
            return {
                **origin,
                **found,
                "proxy": record.identity["proxy"],
                "recipe": record.recipe_id,
                "target": asdict(target),
            }
    return origin


def _load_weights(module: Any, checkpoint: Path) -> None:
    from explorer.training.trainer import read_checkpoint

    if not checkpoint.is_file():
        raise RecipeError(f"--checkpoint: {checkpoint}: no such file")
    state = read_checkpoint(checkpoint)
    if str(state.get("key")).partition("/")[0] != module.arch.id:  # a shift has no weights that would tell
        raise RecipeError(f"--checkpoint: {checkpoint}: the weights of another architecture than {module.arch.name}")
    try:
        module.load_state_dict(state["module"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise RecipeError(f"--checkpoint: {checkpoint}: the weights of another architecture: {first}") from None


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="A run file that `export` wrote.")],
    data: Annotated[
        str | None, typer.Option("--data", help="A set by name or a folder; default: the run file's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of the recipe's.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="For checkpoints; default: beside the run file.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where to train: auto, cpu or cuda.")] = "auto",
    data_root: options.DataRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an epoch.")] = False,
) -> None:
    """Train an exported architecture; started again, it goes on from the last epoch."""
    from explorer import latency, model
    from explorer.latency.environment import exclusive
    from explorer.training.data import describe, load, resting_device
    from explorer.training.recipe import load_run
    from explorer.training.trainer import Checkpoint, require_fit
    from explorer.training.trainer import train as train_module

    run = load_run(run_file)
    arch = run.architecture(str(run_file))
    recipe = run.recipe if epochs is None else run.recipe.model_copy(update={"epochs": epochs})
    spec = data or run.data
    if spec is None:
        raise RecipeError(f"{run_file}: data: is not set; set it, or give --data (a set by name or a folder)")
    info = describe(spec, options.data_root(data_root))
    if info.num_classes != arch.num_classes:
        raise RecipeError(
            f"{run_file}: arch.num_classes: {arch.num_classes}, but {spec} has {info.num_classes} classes; "
            f"set arch.num_classes: {info.num_classes}, or choose other data"
        )
    import torch

    kind = latency.resolve("torch", device=device)[0].device_kind
    sizes = {"image_size": arch.image_size, "channels": arch.channels}
    loaded = load(info, **sizes, device=resting_device(info, **sizes, device=torch.device(kind)))
    folder = to or run_file.parent
    split = loaded.for_training(recipe.train_images, recipe.eval_images)
    require_fit(recipe, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to: {folder}: cannot be made: {error.strerror}") from None
    kept = Checkpoint(folder / "checkpoint.pt", "/".join((arch.id, recipe.id, info.id, str(run.seed))))
    if kept.path.exists():
        console.note(f"going on from {kept.path}")
    console.note(
        f"training {arch.name} on {spec} ({info.num_train:,} images) on {kind}, {recipe.epochs} epochs, into {kept.path}"
    )
    with exclusive(kind):
        outcome = train_module(
            model.build(arch, seed=run.seed, drop_path=recipe.drop_path),
            recipe,
            split,
            seed=run.seed,
            device=torch.device(kind),
            on_epoch=lambda epoch: (
                console.json_line(asdict(epoch)) if as_json else console.document(_epoch_line(epoch, recipe.epochs))
            ),
            checkpoint=kept,
        )
    summary = {
        "accuracy": outcome.accuracy,
        "epochs": recipe.epochs,
        "train_s": outcome.train_s,
        "checkpoint": str(kept.path),
    }
    if as_json:
        console.json_line(summary)
    else:
        console.document(f"test accuracy {outcome.accuracy:.4f} after {recipe.epochs} epochs; weights in {kept.path}")


def _epoch_line(epoch: Any, epochs: int) -> str:
    return f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}  {epoch.seconds:.1f} s"
