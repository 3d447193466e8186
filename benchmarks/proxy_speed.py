"""Images a second of our training loop against a plain PyTorch loop around timm's Swin, same networks and images, in one run.

    python benchmarks/proxy_speed.py                     # CPU, fp32, one thread and all
    python benchmarks/proxy_speed.py --device cuda       # bf16 autocast

Both do forward, backward, clipping and AdamW on batches that are cropped and flipped at random. Ours is `train()` as the
search calls it; the other is what one writes first: a DataLoader over images that torchvision transforms one by one, with
as many workers as are faster of none and two. The weights are the same and the logits are compared. The ratio is theirs over
ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn
from torchvision.transforms import v2 as transforms

from explorer.arch import NUM_STAGES, PRESETS, Arch
from explorer.model import build, export_weights
from explorer.model.swin import Swin
from explorer.space import Space
from explorer.training import silhouettes
from explorer.training.data import Split
from explorer.training.recipe import Recipe
from explorer.training.trainer import train

SPACE = Path(__file__).parents[1] / "spaces" / "swinfree.yaml"
#: What is timed: the architecture and whether its proxy is trained in its place.
CASES = {"Swin-B proxy": ("Swin-B", True), "Swin-Free-B proxy": ("Swin-Free-B", True), "Swin-T": ("Swin-T", False)}
#: Goals of the project for the speedup.
GOALS = {"cpu": 1.3, "cuda": 2.0}
#: Batch and steps a round, of proxies and of networks at full size; ours makes an optimizer and evaluates two images a round.
SIZES = {"cpu": {True: (32, 16), False: (4, 6)}, "cuda": {True: (128, 100), False: (128, 40)}}


@dataclass(frozen=True)
class Case:
    """Networks of the same weights, and the images that they are trained on in a round."""

    ours: Swin
    theirs: nn.Module
    recipe: Recipe
    split: Split
    device: torch.device


def timm_twin(ours: Swin) -> nn.Module:
    """timm's Swin with our architecture and weights; timm shifts wherever it can, which is turned off as the Arch says."""
    from timm.models.swin_transformer import SwinTransformer

    arch = ours.arch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = SwinTransformer(
            arch.image_size,
            arch.patch_size,
            arch.channels,
            arch.num_classes,
            embed_dim=arch.embed_dim,
            depths=arch.depths,
            num_heads=arch.num_heads,
            window_size=arch.windows,
            mlp_ratio=arch.mlp_ratio,
            drop_path_rate=0.0,
        )
    for stage in range(NUM_STAGES):
        for index, block in enumerate(theirs.layers[stage].blocks):
            if not arch.has_shift(stage, index):
                block.shift_size, block.attn_mask = (0, 0), None
    theirs.load_state_dict(export_weights(ours, "timm"))
    return theirs


def case_of(arch: Arch, batch: int, num_steps: int, device: torch.device) -> Case:
    ours = build(arch, scatter=True)
    theirs = timm_twin(ours)
    image = torch.randn(2, arch.channels, arch.image_size, arch.image_size)
    with torch.inference_mode():
        difference = (ours.eval()(image) - theirs.eval()(image)).abs().max()
    assert difference < 1e-3, f"not the same network: logits differ by {difference}"
    images, labels = silhouettes.draw(batch * num_steps, 0, torch.device("cpu"))
    size = (arch.image_size, arch.image_size)
    images = nn.functional.interpolate(images.float(), size, mode="bilinear").byte().expand(-1, arch.channels, -1, -1)
    images = images.contiguous().to(device)
    labels = labels.to(device)
    recipe = Recipe(epochs=1, batch_size=batch, lr=1e-5, min_lr=0.0, flip=True, crop_padding=0.0625)
    return Case(ours.to(device), theirs.to(device), recipe, Split(images, labels, images[:2], labels[:2]), device)


def run_ours(case: Case) -> None:
    train(case.ours, case.recipe, case.split, seed=0, device=case.device)


class OneByOne(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images as a folder would give them, each through torchvision's transforms when it is asked for."""

    def __init__(self, split: Split, recipe: Recipe) -> None:
        images = split.train_images.cpu()
        self.images = [transforms.functional.to_pil_image(image) for image in images]
        self.labels = split.train_labels.tolist()
        channels, side = images.shape[1], images.shape[-1]
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(side, padding=int(side * recipe.crop_padding), padding_mode="edge"),
                transforms.RandomHorizontalFlip(),
                transforms.ToImage(),
                transforms.ToDtype(torch.float32, scale=True),
                transforms.Normalize([0.5] * channels, [0.25] * channels),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader_of(case: Case, num_workers: int) -> torch.utils.data.DataLoader[tuple[Tensor, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two workers on one core are tried nevertheless
        loader = torch.utils.data.DataLoader(
            OneByOne(case.split, case.recipe),
            case.recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=case.device.type == "cuda",
        )
        for _ in loader:  # starts them
            pass
    return loader


def run_plain(case: Case, loader: Any, optimizer: torch.optim.Optimizer) -> None:
    module, recipe, device = case.theirs.train(), case.recipe, case.device
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
    total = torch.zeros((), device=device)
    for batch, targets in loader:
        images, labels = batch.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = nn.functional.cross_entropy(module(images), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), recipe.grad_clip)
        optimizer.step()
        schedule.step()
        total += loss.detach()
    assert torch.isfinite(total)


def compare(what: str, case: Case, rounds: int, threads: list[int]) -> Iterator[dict[str, object]]:
    """A row for every number of threads."""
    synchronize = torch.cuda.synchronize if case.device.type == "cuda" else None
    optimizer = torch.optim.AdamW(case.theirs.parameters(), lr=1e-5, weight_decay=case.recipe.weight_decay)
    plain = {workers: partial(run_plain, case, loader_of(case, workers), optimizer) for workers in (0, 2)}
    num_images = len(case.split.train_labels)
    for number in threads:
        torch.set_num_threads(number)
        tried = common.interleaved(
            {str(workers): run for workers, run in plain.items()}, rounds=1, warmup=0, synchronize=synchronize
        )
        workers = min(plain, key=lambda workers: tried[str(workers)][0])
        runs = {"ours": partial(run_ours, case), "timm": plain[workers]}
        seconds = common.interleaved(runs, rounds=rounds, warmup=1, synchronize=synchronize)
        yield {
            "what": what,
            "threads": number,
            "batch": case.recipe.batch_size,
            "image_size": case.ours.arch.image_size,
            "ours_images_per_s": num_images / statistics.median(seconds["ours"]),
            "timm_images_per_s": num_images / statistics.median(seconds["timm"]),
            "timm_workers": workers,
            **common.ratio(seconds, "ours", "timm"),
            "goal": GOALS[case.device.type],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--batch", type=int, help="Images a step; default: 128; on the CPU 32, of full-size networks 4."
    )
    parser.add_argument("--steps", type=int, help="Steps a round; default: 6 or 16 on the CPU, 40 or 100 on a GPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", help="CPU threads of torch; default: 1, and all.")
    parser.add_argument("--out", type=Path, help="Folder for the JSON; default: benchmarks/results.")
    given = parser.parse_args()
    device, rows = torch.device(given.device), []
    all_threads = torch.get_num_threads()
    threads = given.threads or sorted({1, all_threads} if given.device == "cpu" else {all_threads})
    for name in given.models:
        preset, is_proxy = CASES[name]
        batch, num_steps = SIZES[given.device][is_proxy]
        arch = PRESETS[preset]
        if is_proxy:
            arch = arch.proxy(Space.load(SPACE).proxy_scale, channels=1, num_classes=silhouettes.NUM_CLASSES)
        case = case_of(arch, given.batch or batch, given.steps or num_steps, device)
        rows.extend(compare(name, case, given.rounds, threads))
    common.report("proxy_speed", rows, device=given.device, out=given.out, rounds=given.rounds, data="silhouettes")


if __name__ == "__main__":
    main()
