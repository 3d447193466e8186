"""What the memory-mapped cache buys: images/s decoded once into it, and read from it in random batches afterwards.

    python benchmarks/data_cache.py --images 2000

A tree of generated JPEG photographs (smooth noise, about 40 kB each) of four classes. Beside
the cache: the same images decoded anew for every epoch, as a loader without a cache does, with as many threads as the
cache is built with; and what describing the tree costs, which every start does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import interleaved, ratio, report
from PIL import Image

from explorer.training.data import describe, load, prepare
from explorer.training.images import decode

BATCH = 128
CLASSES = 4


def write_photographs(folder: Path, number: int, width: int, height: int) -> None:
    """So many JPEGs in a tree without a test part."""
    draw = np.random.default_rng(0)
    for index in range(number):
        coarse = draw.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
        photograph = Image.fromarray(coarse).resize((width, height))
        file = folder / f"class{index % CLASSES}" / f"{index:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph.save(file, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_photographs(root / "set", asked.images, asked.width, asked.height)
        described = []
        for _ in range(asked.rounds):
            start = time.perf_counter()
            info = describe(str(root / "set"), root)
            described.append(time.perf_counter() - start)
        rows.append({"what": "described", "images_per_s": asked.images / statistics.median(described)})
        contents = [file.read_bytes() for file in sorted((root / "set").rglob("*.jpg"))]
        for side in asked.image_sizes:
            start = time.perf_counter()
            prepare(info, image_size=side, channels=3)
            built_s = time.perf_counter() - start
            part = load(info, image_size=side, channels=3, device=torch.device("cpu")).source.train
            pixels = np.zeros((len(contents), 3, side, side), np.uint8)

            def decode_all(pixels: np.ndarray = pixels) -> None:
                with ThreadPoolExecutor() as pool:
                    list(pool.map(decode, contents, pixels))

            def read_all(images: torch.Tensor = part.images) -> None:
                for batch in torch.randperm(len(images)).split(BATCH):
                    _ = images[batch]

            seconds = interleaved({"decode": decode_all, "cache": read_all}, rounds=asked.rounds)
            decoded_s, read_s = (statistics.median(seconds[name]) for name in ("decode", "cache"))
            rows.append({"what": f"{side} pixels: cache built", "images_per_s": asked.images / built_s})
            rows.append({"what": f"{side} pixels: decoded anew", "images_per_s": asked.images / decoded_s})
            rows.append(
                {
                    "what": f"{side} pixels: read from the cache",
                    "images_per_s": len(part.labels) / read_s,
                    **ratio(
                        {
                            "cache": [s * asked.images / len(part.labels) for s in seconds["cache"]],
                            "decode": seconds["decode"],
                        },
                        "cache",
                        "decode",
                    ),
                }
            )
    report("data_cache", rows, out=asked.out, images=asked.images, width=asked.width, height=asked.height, batch=BATCH)


if __name__ == "__main__":
    main()
