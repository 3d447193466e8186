"""Weights of the public models: state dicts of timm, torchvision and the Swin authors' code, converted both ways.

The three implementations and ours hold the same tensors under other names: the patch merging stands at the start of a
stage (timm), at the end of the one before (the authors) or between them (torchvision); torchvision's Swin V2 keeps one qkv
bias, whose third for the keys it sets to zero. Nothing of them is imported here.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.arch import NUM_STAGES
from explorer.errors import WeightsError
from explorer.model.swin import Swin, WindowAttention

logger = logging.getLogger(__name__)

Layout = Literal["swinexplore", "timm", "torchvision", "microsoft"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)

#: What checkpoints hold that is computed from the shapes.
_BUFFERS: Final = ("relative_position_index", "relative_coords_table", "attn_mask", "k_bias")
#: What wraps a state dict, as files, or each of its names, as modules, do.
_WRAPPERS: Final = ("model", "state_dict", "module")
_PREFIXES: Final = ("module.", "_orig_mod.")
_NUM_NAMED: Final = 3


def load_weights(module: Swin, state_dict: Mapping[str, Any], *, new_head: bool = False) -> Layout:
    """Copies the weights of a public model into `module`; returns the layout that was recognised.

    Position bias tables of other windows are resized (bicubic, as the Swin authors do), which is logged as a warning, as is
    a Swin V2 whose position bias was trained on other coordinates. `new_head`: keeps the module's own classifier. Raises
    WeightsError, and loads nothing, where the layout is not recognised, or a tensor is missing, unknown, of another shape or
    not finite.
    """
    given = _unwrapped(state_dict)
    layout = _recognised(given)
    own = module.state_dict()
    # torchvision's one qkv bias of Swin V2 is read twice.
    names = {key: _spelled(key, layout) for key in own}
    found = {key: _converted(key, given[name], module) for key, name in names.items() if name in given}
    if new_head:
        found |= {key: values for key, values in own.items() if key.startswith("head.")}
    missing = list(dict.fromkeys(name for key, name in names.items() if key not in found))
    unknown = [name for name in given if name not in names.values() and name.rpartition(".")[2] not in _BUFFERS]
    misshapen = list(
        {
            names[key]: f"{names[key]} {_shape(values)} where {_shape(own[key])} is wanted"
            for key, values in found.items()
            if values.shape != own[key].shape
        }.values()
    )
    unusable = [names[key] for key, values in found.items() if not values.isfinite().all()]
    if missing or unknown or misshapen or unusable:
        told = [
            f"{len(those)} {what} ({', '.join(those[:_NUM_NAMED])}{', ...' * (len(those) > _NUM_NAMED)})"
            for what, those in (
                ("missing", missing),
                ("unknown", unknown),
                ("misshapen", misshapen),
                ("not finite", unusable),
            )
            if those
        ]
        raise WeightsError(
            f"weights in the layout of {layout} do not fit {module.arch.name}: {', '.join(told)} of {len(own)} tensors; "
            "nothing was loaded; give the architecture that they were trained for"
        )
    resized = [key for key in found if key.endswith("bias_table") and given[names[key]].shape != found[key].shape]
    if resized:
        logger.warning(
            "%s: the weights are of other windows: %d position bias tables resized", module.arch.name, len(resized)
        )
    if others := _other_coordinates(module, given, layout):
        logger.warning(
            "%s: %d position biases were trained on other coordinates; name the windows that they were trained with by the "
            "suffix F of the architecture's name",
            module.arch.name,
            others,
        )
    module.load_state_dict(found)
    return layout


def export_weights(module: Swin, layout: Layout) -> dict[str, Tensor]:
    """The state dict of `module` as another implementation of the same network loads it, computed buffers included.

    Raises WeightsError for an unknown layout, and for BR networks, which no other implementation has.
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"layout: {layout!r} is not known; allowed: {', '.join(LAYOUTS)}")
    own = {key: values.detach().clone() for key, values in module.state_dict().items()}
    if layout == "swinexplore":
        return own
    if module.arch.br:
        raise WeightsError(f"layout {layout}: {module.arch.name}: it has no BatchNorm variant; use swinexplore")
    if layout == "torchvision" and any(module.arch.is_padded(stage) for stage in range(NUM_STAGES)):
        logger.warning("%s: torchvision pads before the shift: its logits will differ", module.arch.name)
    exported: dict[str, Tensor] = {}
    for key, values in own.items():
        if layout == "torchvision" and key.endswith(".q_bias"):
            value_bias = own[key.replace(".q_bias", ".v_bias")]
            exported[_spelled(key, layout)] = torch.cat((values, torch.zeros_like(values), value_bias))
        elif not (layout == "torchvision" and key.endswith(".v_bias")):
            exported[_spelled(key, layout)] = values
    if layout != "timm":
        for name, attn in module.named_modules():
            if isinstance(attn, WindowAttention):
                exported |= _buffers(_spelled(f"{name}.", layout), attn, layout)
    return exported


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors in a `.safetensors` file or a checkpoint of torch, which is read without running any code in it.

    Raises WeightsError for a file that is missing, damaged, or would run code.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - both raise whatever the broken file leads to
        raise WeightsError(f"{path}: {_unreadable(error)}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds {type(content).__name__}, not the tensors of a model by name")
    return content


def _unreadable(error: Exception) -> str:
    """Why a file gave no weights, and what to do."""
    wanted = re.search(r"GLOBAL ([\w.]+)|type ([\w.]+) (?:from|was|is)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted is not None:
        return (
            f"not weights that can be read safely: the file would call {wanted[1] or wanted[2]}; open it where it is trusted, "
            "save the state dict alone (torch.save(model.state_dict(), FILE)) and give that"
        )
    return "not weights that can be read safely: damaged, cut short, or no .safetensors file or torch checkpoint at all"


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, without what files and wrapping modules put around them."""
    content: Any = state_dict
    for wrapper in _WRAPPERS:
        content = content[wrapper] if isinstance(content.get(wrapper), Mapping) else content
    tensors = {str(key): values for key, values in content.items() if isinstance(values, Tensor)}
    while prefix := next((p for p in _PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): values for key, values in tensors.items()}
    return tensors


def _recognised(names: Mapping[str, Tensor]) -> Layout:
    if "stages.0.blocks.0.attn.proj.weight" in names:
        return "swinexplore"
    if "features.0.0.weight" in names:
        return "torchvision"
    if "layers.0.downsample.reduction.weight" in names:
        return "microsoft"
    if "layers.1.downsample.reduction.weight" in names:
        return "timm"
    some = ", ".join(list(names)[:_NUM_NAMED]) or "no tensor at all"
    raise WeightsError(f"weights: not a Swin in the layout of {', '.join(LAYOUTS)}; it holds {some}")


def _spelled(key: str, layout: Layout) -> str:
    """Our name of a tensor as `layout` spells it."""
    for pattern, theirs in _NAMES[layout]:
        key = re.sub(pattern, theirs, key)
    return key


_Replacement = str | Callable[[re.Match[str]], str]
_AUTHORS: Final[tuple[tuple[str, _Replacement], ...]] = (
    (r"^stages\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    (r"\.bias_table$", ".relative_position_bias_table"),
)
#: Replacements that turn our names into those of a layout.
_NAMES: Final[Mapping[Layout, tuple[tuple[str, _Replacement], ...]]] = MappingProxyType(
    {
        "swinexplore": (),
        "timm": (*_AUTHORS, (r"^stages\.(\d+)\.merging\.", r"layers.\1.downsample."), (r"^head\.", "head.fc.")),
        "microsoft": (
            *_AUTHORS,
            (r"^stages\.(\d+)\.merging\.", lambda match: f"layers.{int(match[1]) - 1}.downsample."),
        ),
        "torchvision": (
            (r"^patch_embed\.proj\.", "features.0.0."),
            (r"^patch_embed\.norm\.", "features.0.2."),
            (r"^stages\.(\d+)\.blocks\.", lambda match: f"features.{2 * int(match[1]) + 1}."),
            (r"^stages\.(\d+)\.merging\.", lambda match: f"features.{2 * int(match[1])}."),
            (r"\.bias_table$", ".relative_position_bias_table"),
            (r"\.mlp\.fc1\.", ".mlp.0."),
            (r"\.mlp\.fc2\.", ".mlp.3."),
            (r"\.attn\.[qv]_bias$", ".attn.qkv.bias"),
        ),
    }
)


def _converted(key: str, values: Tensor, module: Swin) -> Tensor:
    """`values` as our tensor `key` wants them: a third of a qkv bias, a position bias table of another window."""
    wanted = module.get_parameter(key).shape if key.endswith(("_bias", "bias_table")) else values.shape
    if key.endswith(("q_bias", "v_bias")) and values.shape == (3 * wanted[0],):
        return values[: wanted[0]] if key.endswith("q_bias") else values[-wanted[0] :]
    if key.endswith("bias_table") and values.ndim == 2 and values.shape[1] == wanted[1]:
        return _resized(values, wanted[0])
    return values


def _resized(table_Th: Tensor, num_offsets: int) -> Tensor:
    """A position bias table for another window, (T, h) -> (num_offsets, h); one that is no square stays as it is."""
    old, new = (round(count**0.5) for count in (len(table_Th), num_offsets))
    if old == new or old * old != len(table_Th) or old % 2 == 0:
        return table_Th
    square = table_Th.float().t().reshape(1, -1, old, old)
    return F.interpolate(square, (new, new), mode="bicubic").flatten(2)[0].t().to(table_Th.dtype)


def _other_coordinates(module: Swin, given: Mapping[str, Tensor], layout: Layout) -> int:
    """How many of Swin V2's attentions come with a table of coordinates that is not the module's."""
    count = 0
    for name, attn in module.named_modules():
        if isinstance(attn, WindowAttention) and attn.v2:
            table = given.get(_spelled(f"{name}.", layout) + "relative_coords_table")
            own = attn.coordinates.cpu().float()
            count += table is not None and (
                table.numel() != own.numel() or not torch.allclose(table.float().reshape(own.shape), own, atol=1e-2)
            )
    return count


def _buffers(prefix: str, attn: WindowAttention, layout: Layout) -> dict[str, Tensor]:
    """The computed tensors that an implementation keeps in its state dict beside the weights of one attention."""
    index = attn.relative_index
    buffers = {f"{prefix}relative_position_index": (index.flatten() if layout == "torchvision" else index).clone()}
    if attn.v2:
        side = round(len(attn.coordinates) ** 0.5)
        buffers[f"{prefix}relative_coords_table"] = attn.coordinates.view(1, side, side, 2).clone()
    if layout == "microsoft" and attn.mask is not None:
        buffers[f"{prefix.removesuffix('attn.')}attn_mask"] = attn.mask.clone()
    return buffers


def _shape(values: Tensor) -> str:
    return "x".join(map(str, values.shape)) or "a number"
