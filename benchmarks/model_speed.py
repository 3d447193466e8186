"""Training step and inference of our Swin against timm's and torchvision's of the same configuration, in one run.

    python benchmarks/model_speed.py                     # CPU, fp32
    python benchmarks/model_speed.py --device cuda       # bf16 autocast

The ratio is theirs over ours: above 1, ours is faster. The last rows compare ways to spread a position bias table.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import common
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from explorer.arch import parse_name
from explorer.model import build, export_weights
from explorer.model.swin import relative_position_index

#: Ours, timm's and torchvision's names.
PEERS = {
    "Swin-T": ("swin_tiny_patch4_window7_224", "swin_t"),
    "Swin-B": ("swin_base_patch4_window7_224", "swin_b"),
    "SwinV2-T": ("swinv2_tiny_window8_256", "swin_v2_t"),
}


def peers_of(name: str) -> dict[str, nn.Module]:
    """The three modules with the same weights, in training mode, without stochastic depth."""
    import timm

    timm_name, torchvision_name = PEERS[name]
    ours = build(parse_name(name), scatter=True)
    modules: dict[str, nn.Module] = {"ours": ours}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules["timm"] = timm.create_model(timm_name, num_classes=1000, drop_path_rate=0.0)
    modules["torchvision"] = getattr(torchvision.models, torchvision_name)()
    for part in modules["torchvision"].modules():
        if isinstance(part, StochasticDepth):
            part.p = 0.0
    for layout in ("timm", "torchvision"):
        modules[layout].load_state_dict(export_weights(ours, layout))
    return modules


def step(module: nn.Module, image: Tensor, target: Tensor, *, autocast: bool) -> None:
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=autocast):
        loss = nn.functional.cross_entropy(module(image), target)
    loss.backward()
    for parameter in module.parameters():
        parameter.grad = None


@torch.inference_mode()
def infer(module: nn.Module, image: Tensor, *, autocast: bool) -> None:
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=autocast):
        module(image)


def compare_models(name: str, batch: int, rounds: int, device: torch.device) -> Iterator[dict[str, object]]:
    """A row for forward and backward, one for inference at batch 1."""
    side = parse_name(name).image_size
    image = torch.randn(batch, 3, side, side, device=device)
    target = torch.arange(batch, device=device) % 1000
    autocast = device.type == "cuda"
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None
    modules = {peer: module.to(device) for peer, module in peers_of(name).items()}
    steps = {peer: partial(step, module, image, target, autocast=autocast) for peer, module in modules.items()}
    inferences = {peer: partial(infer, module, image[:1], autocast=autocast) for peer, module in modules.items()}
    for what, runs, times in (("forward+backward", steps, rounds), ("inference", inferences, 3 * rounds)):
        for module in modules.values():
            module.train(what != "inference")
        seconds = common.interleaved(runs, rounds=times, warmup=2, synchronize=synchronize)
        row: dict[str, object] = {"what": f"{name} {what}", "batch": 1 if what == "inference" else batch}
        row["ours_s"] = statistics.median(seconds["ours"])
        for peer in ("timm", "torchvision"):
            row |= {f"{key}_vs_{peer}": value for key, value in common.ratio(seconds, "ours", peer).items()}
        yield row


def compare_bias(window: int, heads: int, rounds: int, device: torch.device) -> dict[str, object]:
    """Selecting columns of the transposed table (ours) against indexing its rows (timm, torchvision), with backward."""
    table = torch.randn((2 * window - 1) ** 2, heads, device=device, requires_grad=True)
    index = relative_position_index(window).to(device).flatten()
    L = window * window
    gradient = torch.randn(heads, L, L, device=device)

    def run(spread: Callable[[], Tensor]) -> None:
        for _ in range(10):
            spread().backward(gradient)

    runs = {
        "ours": partial(run, lambda: table.t().index_select(1, index).view(heads, L, L)),
        "indexing": partial(run, lambda: table[index].view(L, L, heads).permute(2, 0, 1).contiguous()),
    }
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None
    seconds = common.interleaved(runs, rounds=rounds, warmup=2, synchronize=synchronize)
    return {
        "what": f"position bias, window {window}, {heads} heads",
        "ours_s": statistics.median(seconds["ours"]) / 10,
        **{f"{key}_vs_indexing": value for key, value in common.ratio(seconds, "ours", "indexing").items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--batch", type=int, help="Images; default: 8 on the CPU, 128 on a GPU.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="Folder for the JSON; default: benchmarks/results.")
    given = parser.parse_args()
    device = torch.device(given.device)
    batch = given.batch or (128 if given.device == "cuda" else 8)
    rows = [row for name in given.models for row in compare_models(name, batch, given.rounds, device)]
    rows += [compare_bias(window, heads, given.rounds, device) for window, heads in ((7, 4), (7, 16), (14, 16))]
    common.report("model_speed", rows, device=given.device, out=given.out, batch=batch, rounds=given.rounds)


if __name__ == "__main__":
    main()
