"""What a proxy training is compared with: counts of the full-size networks, and scores of untrained proxies."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from explorer.arch import Arch
from explorer.evaluate import Plan
from explorer.fidelity.trivial import trivial_scores

if TYPE_CHECKING:
    from torch import Tensor

#: Training images that training-free scores look at.
NUM_IMAGES: Final = 64


@dataclass(frozen=True)
class Rankers:
    """Scores by ranker and by the id of the full-size network, one a seed; `seconds` a network and seed by ranker."""

    scores: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def rankers_of(
    archs: Sequence[Arch],
    plan: Plan,
    seeds: Sequence[int],
    on_network: Callable[[int, int], None] = lambda done, total: None,
) -> Rankers:
    """What `counted` gives, and synflow, NASWOT and grad_norm of the proxies of `archs` as they start from each seed.

    Computed on this CPU and kept nowhere. Raises DataError where the data cannot be read.
    """
    scores: dict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    scores |= {name: dict(of) for name, of in counted(archs).scores.items()}
    seconds: dict[str, float] = defaultdict(float)
    proxies = {plan.proxy(arch).id: plan.proxy(arch) for arch in archs}
    images, labels = _batch(plan, next(iter(proxies.values())))
    for done, (proxy_id, proxy) in enumerate(proxies.items()):
        on_network(done, len(proxies))
        found = [_training_free(proxy, plan, seed, images, labels, seconds) for seed in seeds]
        for arch in archs:
            if plan.proxy(arch).id == proxy_id:
                for name in found[0]:
                    scores[name][arch.id] = tuple(values[name] for values in found)
    num_computed = len(proxies) * len(seeds)
    return Rankers(dict(scores), {name: total / num_computed for name, total in seconds.items()})


def counted(archs: Sequence[Arch]) -> Rankers:
    """Parameters, FLOPs and tokens seen, for which no image is needed."""
    scores: dict[str, dict[str, tuple[float, ...]]] = defaultdict(dict)
    for arch in archs:
        for name, score in trivial_scores(arch).items():
            scores[name][arch.id] = (score,)
    return Rankers(dict(scores))


def _training_free(
    proxy: Arch, plan: Plan, seed: int, images: Tensor, labels: Tensor, seconds: dict[str, float]
) -> dict[str, float]:
    """The three scores of one proxy as its training from `seed` starts; adds to `seconds`."""
    from explorer import model
    from explorer.fidelity.training_free import grad_norm, naswot, synflow

    module = model.build(proxy, seed=seed, init=plan.recipe.init)
    found = {}
    scores: dict[str, Callable[[], float]] = {
        "synflow": lambda: synflow(module, proxy),
        "naswot": lambda: naswot(module, images),
        "grad_norm": lambda: grad_norm(module, images, labels),
    }
    for name, score in scores.items():
        start = time.perf_counter()
        found[name] = score()
        seconds[name] += time.perf_counter() - start
    return found


def _batch(plan: Plan, proxy: Arch) -> tuple[Tensor, Tensor]:
    """The first training images of a search, with mean 0 and deviation 1 a channel, and their labels."""
    import torch

    from explorer.training.data import load

    data = load(plan.data, image_size=proxy.image_size, channels=proxy.channels, device=torch.device("cpu"))
    split = data.for_search(plan.recipe.train_images, plan.recipe.eval_images)
    chosen = torch.arange(min(NUM_IMAGES, len(split.train_labels)))
    images = split.train_images[chosen].float()
    spread = images.std((0, 2, 3), keepdim=True).clamp_min(1e-3)
    return (images - images.mean((0, 2, 3), keepdim=True)) / spread, split.train_labels[chosen]
