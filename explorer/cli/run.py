"""Commands about single runs: `export` writes one, `train` trains it."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from explorer.cli import console, options
from explorer.errors import BackendMissing, RecipeError, TrainError, UserError, WeightsError
from explorer.records import DEFAULT_STORAGE, Precision

if TYPE_CHECKING:
    from explorer.latency import trt_build
    from explorer.latency.engine_file import Engine
    from explorer.model.deployment import Deployed
    from explorer.model.swin import Swin
    from explorer.model.weights import Layout

#: Of an engine that takes any batch.
DEFAULT_MAX_BATCH = 32


def export(
    name: Annotated[
        str, typer.Argument(metavar="NAME|ID|RUN.yaml", help="A preset, a name, an id from a study, or a run file.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write run.yaml and model.onnx into.")],
    what: Annotated[
        str,
        typer.Option(
            "--what", help="run (run.yaml and model.onnx), or engine: also a TensorRT engine with its metadata."
        ),
    ] = "run",
    precision: options.PrecisionOption = "fp32",
    batch: options.BatchOrDynamic = "1",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe of the run: a name or a .yaml file; default: imagenet.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Data of the run, as for search.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="Trained weights: from `train`, or of timm, torchvision or the Swin authors (.pt, .pth, .safetensors).",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="LAYOUT",
            help="Also write the checkpoint's weights as weights.safetensors: swinexplore, timm, torchvision or microsoft.",
        ),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            "--compute-capability",
            metavar="N.N,...",
            help="Engine for these GPUs (8.6: RTX 30) rather than the one here; TensorRT for RTX.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option("--max-batch", min=1, help="Largest batch of an engine with --batch dynamic; default: 32."),
    ] = None,
    deadline: options.Deadline = 900,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Of weights and training.")] = None,
    study: options.Study = None,
    storage: options.Storage = DEFAULT_STORAGE,
) -> None:
    """Write a training run file and the ONNX model of an architecture, or its TensorRT engine too."""
    from explorer import model
    from explorer.training.data import absolute
    from explorer.training.recipe import RunFile, load_recipe, load_run, write_run

    started = time.monotonic()
    images = options.batch_of(batch)
    building = _engine_options(what, images, max_batch, compute_capability, options.precision_of(precision))
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
            data=None if data is None else absolute(data),
            seed=seed or 0,
            origin=_origin(arch.id, study, storage),
        )
    module = model.build(arch, seed=run.seed, scatter=True)
    if checkpoint is not None:
        console.note(f"weights in the layout of {_load_weights(module, checkpoint, same_arch=True)}")
    elif layout is not None:
        raise UserError("--layout: there are no trained weights to write; give --checkpoint too")
    weights = model.export_weights(module, cast("Layout", layout)) if layout is not None else None
    deployed = model.deploy(module, arch, batch=images, precision=options.precision_of(precision), seed=run.seed)
    assert deployed.onnx_bytes is not None
    engine = None if building is None else _built_engine(deployed, to / "model.onnx", building, started + deadline)
    try:
        to.mkdir(parents=True, exist_ok=True)
        (to / "model.onnx").write_bytes(deployed.onnx_bytes)
        if engine is not None:
            engine.write(to)
        if weights is not None:
            from safetensors.torch import save

            (to / "weights.safetensors").write_bytes(save({key: v.contiguous() for key, v in weights.items()}))
        if not (Path(name).exists() and (to / "run.yaml").exists() and Path(name).samefile(to / "run.yaml")):
            write_run(run, to / "run.yaml")
    except OSError as error:
        raise UserError(f"--to: {to}: cannot be written: {error.strerror}") from None
    origin = f"weights of {checkpoint}" if checkpoint else "untrained weights"
    console.note(
        f"{arch.name} ({arch.id}): graph agrees with the model to {deployed.difference:.1e} of its logits' spread"
    )
    console.document(
        f"{to / 'model.onnx'}  {precision}, batch {batch}, {origin}, {len(deployed.onnx_bytes) / 1e6:.1f} MB"
    )
    if engine is not None:
        _tell_engine(engine, to)
    elif (to / "model.engine").exists():
        console.note(f"{to / 'model.engine'} is of an earlier export, and stays")
    if layout is not None:
        console.document(f"{to / 'weights.safetensors'}  in the layout of {layout}")
    elif (to / "weights.safetensors").exists():
        console.note(f"{to / 'weights.safetensors'} is of an earlier export, and stays")
    console.document(
        f"{to / 'run.yaml'}  train it: swinexplore train {to / 'run.yaml'}{'' if run.data else ' --data DATA'}"
    )


def _engine_options(
    what: str, images: int | None, max_batch: int | None, compute_capability: str | None, precision: Precision
) -> trt_build.Options | None:
    """How the engine is to be built; None where none is. Raises UserError before anything is written."""
    if what not in ("run", "engine"):
        raise UserError(f"--what: {what!r} is not known; allowed: run, engine")
    given = {"--compute-capability": compute_capability, "--max-batch": max_batch}
    if what == "run":
        said = ", ".join(option for option, value in given.items() if value is not None)
        if said:
            raise UserError(f"{said}: only an engine is built; say --what engine")
        return None
    if max_batch is not None and images is not None:
        raise UserError("--max-batch: the engine is for one batch; say --batch dynamic")
    from explorer.latency import sees_gpu, trt_build

    parts = compute_capability.split(",") if compute_capability else []
    named = tuple(dict.fromkeys(part.strip() for part in parts))
    known = trt_build.compute_capabilities()
    unknown = [one for one in named if one not in known]
    if unknown:
        allowed = ", ".join(known) or "none: TensorRT builds for the GPU that is here, TensorRT for RTX for others too"
        raise UserError(
            f"--compute-capability: {unknown[0]!r} is not known to {trt_build.version()}; allowed: {allowed}"
        )
    if "7.5" in named and precision != "fp16":
        raise UserError(
            f"--compute-capability: 7.5 runs no {precision} matrix products in TensorRT for RTX; use --precision fp16"
        )
    if not named and not sees_gpu():
        raise BackendMissing(
            "--what engine: there is no NVIDIA GPU here to build for; name one: --compute-capability 8.6"
            if known
            else "--what engine: there is no NVIDIA GPU here to build for, and TensorRT builds for no other; TensorRT for RTX "
            "does: pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs"
        )
    most = max_batch or DEFAULT_MAX_BATCH
    return trt_build.Options(batches=None if images is not None else (1, most, most), compute_capabilities=named)


def _built_engine(deployed: Deployed, onnx_file: Path, building: trt_build.Options, deadline: float) -> Engine:
    from explorer.latency.engine_file import build_engine

    with console.status() as tell:
        return build_engine(
            deployed,
            onnx_file,
            building,
            deadline=deadline,
            on_event=lambda phase, done, total: tell(f"building the engine: {phase} {done}/{total}"),
        )


def _tell_engine(engine: Engine, folder: Path) -> None:
    from explorer.latency.engine_file import ENGINE, METADATA

    metadata = engine.metadata
    console.document(
        f"{folder / ENGINE}  TensorRT {metadata['tensorrt']}, {metadata['engine_bytes'] / 1e6:.1f} MB, built in "
        f"{metadata['build_s']:.1f} s; not run, so not compared with the model: `swinexplore measure` does both"
    )
    console.document(f"{folder / METADATA}  the same without swinexplore: {metadata['trtexec']}")


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


def _load_weights(module: Swin, checkpoint: Path, *, same_arch: bool = False, new_head: bool = False) -> Layout:
    """Fills `module` from a checkpoint of `train` or of a public model; returns the layout.

    `same_arch`: refuses a checkpoint of `train` that is another architecture's, as far as its tensors might fit.
    """
    from explorer import model
    from explorer.model.weights import read_weights

    state = read_weights(checkpoint)
    if same_arch and "key" in state and str(state["key"]).partition("/")[0] != module.arch.id:
        # A shift has no weights that would tell.
        raise WeightsError(f"{checkpoint}: the weights of another architecture than {module.arch.name}")
    try:
        return model.load_weights(module, state, new_head=new_head)
    except WeightsError as error:
        raise WeightsError(f"{checkpoint}: {error}") from None


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="A run file that `export` wrote.")],
    data: Annotated[
        str | None, typer.Option("--data", help="A set by name or a folder; default: the run file's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of the recipe's.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="For checkpoints; default: beside the run file.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Start from these: a checkpoint, or weights of timm, torchvision or the Swin authors.",
        ),
    ] = None,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="With --weights of other classes: start the classifier anew.")
    ] = False,
    repeat_grey: Annotated[
        bool, typer.Option("--repeat-grey", help="Grey images for a network that takes colour: their channel repeated.")
    ] = False,
    checkpoint_blocks: Annotated[
        bool, typer.Option("--checkpoint-blocks", help="Gradient checkpointing: less memory, about a third more time.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the network: minutes first, faster epochs then.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="Where to train: auto, cpu or cuda.")] = "auto",
    data_root: options.DataRoot = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an epoch.")] = False,
) -> None:
    """Train an exported architecture; started again, it goes on from the last epoch."""
    import torch

    from explorer import latency, model
    from explorer.latency.environment import shared
    from explorer.training.data import describe, load, resting_device
    from explorer.training.recipe import load_run
    from explorer.training.step import Acceleration
    from explorer.training.trainer import Checkpoint, require_fit
    from explorer.training.trainer import train as train_module

    if new_head and weights is None:
        raise RecipeError("--new-head: says how to start from --weights; give both, or neither")
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
    may_repeat = info.channels == 1 and arch.channels == 3
    if info.channels != arch.channels and not (repeat_grey and may_repeat):
        raise RecipeError(
            f"{run_file}: arch.channels: {arch.channels}, but {spec} has images of {info.channels} "
            f"channel{'s' * (info.channels > 1)}; set arch.channels: {info.channels}"
            + (", or give --repeat-grey to have the one repeated" if may_repeat else ", or choose other data")
        )
    key = [arch.id, recipe.id, info.id, str(run.seed)]
    module = model.build(arch, seed=run.seed, drop_path=recipe.drop_path, init=recipe.init)
    module.checkpoint_blocks(checkpoint_blocks)
    if weights is not None:
        layout = _load_weights(module, weights, new_head=new_head)
        console.note(f"starting from {weights}, in the layout of {layout}{', with a new head' * new_head}")
        key.append(f"{_digest(weights)}{'+new-head' * new_head}")
    kind = latency.resolve("torch", device=device)[0].device_kind
    sizes = {"image_size": arch.image_size, "channels": arch.channels}
    loaded = load(info, **sizes, device=resting_device(info, **sizes, device=torch.device(kind)))
    folder = to or run_file.parent
    split = loaded.for_training(recipe.train_images, recipe.eval_images)
    require_fit(recipe, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # after an epoch it would be too late
            pass
    except OSError as error:
        raise UserError(f"--to: {folder}: cannot be made, or written to: {error.strerror}") from None
    kept = Checkpoint(folder / "checkpoint.pt", "/".join(key))
    if kept.path.exists():
        console.note(f"going on from {kept.path}")
    console.note(
        f"training {arch.name} on {spec} ({info.num_train:,} images) on {kind}, {recipe.epochs} epochs, into {kept.path}"
    )
    with _alone(folder), shared(kind), _divergence_told(run_file, kept.path):
        outcome = train_module(
            module,
            recipe,
            split,
            seed=run.seed,
            device=torch.device(kind),
            on_epoch=lambda epoch: (
                console.json_line(asdict(epoch)) if as_json else console.document(_epoch_line(epoch, recipe.epochs))
            ),
            checkpoint=kept,
            acceleration=Acceleration(compiled=compiled),
        )
    if as_json:
        summary = {"accuracy": outcome.accuracy, "epochs": recipe.epochs, "train_s": outcome.train_s}
        console.json_line({**summary, "checkpoint": str(kept.path)})
    else:
        console.document(f"test accuracy {outcome.accuracy:.4f} after {recipe.epochs} epochs; weights in {kept.path}")


def _digest(file: Path) -> str:
    """Names the weights that a training started from, so that it is not resumed with others."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:12]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other training is kept in the folder meanwhile. Raises UserError where one is."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "checkpoint.lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"--to: {folder}: another process trains into it; wait for it, or use another folder") from None


@contextmanager
def _divergence_told(run_file: Path, checkpoint: Path) -> Iterator[None]:
    """Raises RecipeError with what to do where a training diverges."""
    try:
        yield
    except TrainError as error:
        if error.kind != "diverged":
            raise
        left = f"; {checkpoint} holds the epochs before" if checkpoint.exists() else ""
        raise RecipeError(f"{run_file}: {error}{left}; lower recipe.lr, and train into another folder (--to)") from None


def _epoch_line(epoch: Any, epochs: int) -> str:
    accuracy = "" if epoch.accuracy is None else f"  accuracy {epoch.accuracy:.4f}"
    return f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.4f}{accuracy}  {epoch.seconds:.1f} s"
