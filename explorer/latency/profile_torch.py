"""torch's profile of the eager module, operator by operator.

Hooks name the module that runs; every operator's own time (the CPU's, or that of its GPU kernels) goes to the innermost
module and by the kind of operator to the node of the deployed graph that stands for it: `index_select` in a block is its
shift, `scaled_dot_product_attention` in an attention its scores. Python's time between operators is not counted.
"""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from explorer.errors import MeasureError
from explorer.latency.profile import WARM_UP_RUNS, Part, part_of
from explorer.latency.torch_module import DTYPES
from explorer.model.deployment import Deployed
from explorer.records import Target

_SCOPE: Final = "swinexplore/"
#: libkineto prints a line for every profile unless its level is above all that it knows.
_QUIET_KINETO: Final = ("KINETO_LOG_LEVEL", "9")

#: Operators that lay values out anew; views by themselves take next to no time.
_LAYOUT: Final = (
    *("aten::view", "aten::reshape", "aten::flatten", "aten::unflatten", "aten::permute", "aten::transpose", "aten::t"),
    *("aten::contiguous", "aten::clone", "aten::copy_", "aten::unbind", "aten::select"),
)
#: What an operator is that a block runs by itself, and an attention.
_IN_BLOCK: Final = {
    "_Reordered": "shift",  # the autograd function around the block's index_select
    "aten::index_select": "shift",
    "aten::roll": "shift",
    "aten::add": "skip",
    "aten::pad": "pad",
    "aten::slice": "crop",
    **dict.fromkeys(_LAYOUT, "partition"),
}
_IN_ATTENTION: Final = {
    **dict.fromkeys(("aten::linear", "aten::cat", "aten::zeros_like"), "attn.qkv"),
    **dict.fromkeys(("aten::scaled_dot_product_attention", "aten::baddbmm", "aten::bmm"), "attn.scores"),
    **dict.fromkeys(
        ("aten::index_select", "aten::add", "aten::add_", "aten::repeat", "aten::unsqueeze", "aten::sigmoid"),
        "attn.bias",
    ),
    **dict.fromkeys(_LAYOUT, "attn.heads"),
}
_SOFTMAX: Final = ("aten::softmax", "aten::_softmax", "aten::_safe_softmax")
_PLACE: Final = re.compile(r"^((?:stages\.\d+\.)?(?:blocks\.\d+\.?)?)(.*)$")


def profile_torch(deployed: Deployed, target: Target, *, runs: int, seed: int) -> tuple[list[Part], tuple[str, ...]]:
    """Parts of a copy of the module on the target's device, and remarks. Raises MeasureError."""
    device, dtype = torch.device(target.device_kind), DTYPES[target.precision]
    if target.threads:
        torch.set_num_threads(target.threads)
    arch = deployed.arch
    shape = (target.batch, arch.channels, arch.image_size, arch.image_size)
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    try:
        module = copy.deepcopy(deployed.module).to(device, dtype).eval()
        image = torch.from_numpy(values).to(device, dtype)
        events = _recorded(module, image, runs)
    except torch.OutOfMemoryError as error:
        raise MeasureError(f"{arch.name}: out of memory on {target.device}: {error}", "out_of_memory") from error
    between = "" if device.type == "cuda" else "Python's own time between operators is not counted"
    return parts_of_events(events, on_gpu=device.type == "cuda"), (between,) if between else ()


@contextmanager
def scopes(module: nn.Module) -> Iterator[None]:
    """While open, every module in `module` shows in a profile under its name; leaves no hook behind."""
    entered: list[Any] = []
    hooks = []

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            entered.append(torch.profiler.record_function(_SCOPE + name))
            entered[-1].__enter__()

        return hook

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        entered.pop().__exit__(None, None, None)

    try:
        for name, part in module.named_modules():
            hooks.append(part.register_forward_pre_hook(enter(name)))
            hooks.append(part.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _recorded(module: nn.Module, image: torch.Tensor, runs: int) -> list[Any]:
    """The profiler's events of `runs` inferences."""
    on_gpu = image.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with scopes(module):
        for _ in range(WARM_UP_RUNS):
            module(image)
        with _quiet_kineto(), torch.profiler.profile(activities=kinds) as recorded:
            for _ in range(runs):
                module(image)
                if on_gpu:
                    torch.cuda.synchronize()
    return list(recorded.events() or [])


def parts_of_events(events: list[Any], *, on_gpu: bool = False) -> list[Part]:
    """Parts in the order they first ran, of torch's FunctionEvents; a part's time is the median over the runs.

    A run is what happens inside one scope of the whole module. `on_gpu`: time of kernels, not of the host.
    """
    times_us: dict[int, Counter[tuple[str, str]]] = {}
    calls: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.device_type.name != "CPU" or event.name.startswith(_SCOPE):
            continue
        place = _placed(event)
        if place is None:
            continue
        run, scope, operators = place
        key = node_of(scope, operators), operators[0]
        time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        times_us.setdefault(run, Counter())[key] += time_us
        calls[key] += event.name == operators[0]
    parts = []
    for owner, operator in {key: None for counted in times_us.values() for key in counted}:
        per_run = [counted[owner, operator] for counted in times_us.values()]
        num_calls = round(calls[owner, operator] / len(times_us))
        ms = float(np.median(per_run)) / 1e3
        if ms > 0:
            parts.append(part_of(f"{owner}/{operator}", ms, owner, num_calls=num_calls))
    return parts


def _placed(event: Any) -> tuple[int, str, list[str]] | None:
    """The run (id of its outermost scope), the innermost scope and the operators from there down to `event`."""
    operators: list[str] = []
    while event is not None and not event.name.startswith(_SCOPE):
        operators.insert(0, event.name)
        event = event.cpu_parent
    if event is None:
        return None  # the profiler's own, before and after the runs
    scope = event.name.removeprefix(_SCOPE)
    while event.cpu_parent is not None:
        event = event.cpu_parent
    # An autograd function shows under its own name around what it runs.
    return event.id, scope, [name for name in operators if "::" in name] or operators


def node_of(scope: str, operators: list[str]) -> str:
    """The node of the deployed graph that stands for what runs in the module `scope`.

    `operators`: outermost first. A name with the role `other` where nobody foresaw it.
    """
    match = _PLACE.match(scope)
    assert match is not None
    where, module = match.groups()
    match module:
        case "" if not where:
            return "head.mean"
        case "":
            return f"{where}.{_IN_BLOCK.get(operators[0], 'unforeseen')}"
        case "attn":
            return where + _attention_role(operators)
        case "mlp.act":
            return where + ("mlp.relu" if operators[0] == "aten::relu" else "mlp.gelu")
        case _ if module.startswith("attn.cpb_mlp"):
            return f"{where}attn.bias"
        case _:
            return where + module


def _attention_role(operators: list[str]) -> str:
    if any(operator in _SOFTMAX for operator in operators):
        return "attn.softmax"
    # What else an attention runs are the cosines of Swin V2.
    return _IN_ATTENTION.get(operators[0], "attn.cosine")


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Keeps the profiler's native library from printing to stderr; a level set by the user stays."""
    name, level = _QUIET_KINETO
    is_ours = name not in os.environ
    if is_ours:
        os.environ[name] = level
    try:
        yield
    finally:
        if is_ours:
            del os.environ[name]
