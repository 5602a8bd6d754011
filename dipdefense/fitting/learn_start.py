"""Learn a start: initial parameters from which the fit to an image like those of a set arrives early.

The inner loop is the fit itself: a few iterations for a batch of images, all from the parameters learnt so far. The
outer loop moves these parameters towards the mean of where the fits ended:

    theta <- theta + rate_k (mean_i theta_i - theta),    rate_k falls linearly from `rate` to 0

Source: Nichol, Achiam, Schulman (2018), "On first-order meta-learning algorithms", algorithm 2 (Reptile, batched).
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from dipdefense.arguments import check_integer, check_positive
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.fit import fit_context
from dipdefense.fitting.networks import ARCHITECTURES
from dipdefense.fitting.problem import Problem, build_problem
from dipdefense.fitting.starts import Start
from dipdefense.fitting.step import begin, draw_input, step
from dipdefense.fitting.workers import map_in_threads, memory_budget, most_images, plan_chunks
from dipdefense.image_tensors import check_images

__all__ = ["learn_start"]

Theta = dict[str, Tensor]


def learn_start(
    images: Tensor,
    config: FitConfig | None = None,
    *,
    inner: int = 30,
    outer: int = 400,
    batch: int = 24,
    rate: float = 1.0,
    size: int | None = None,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> Start:
    """Learn the start of a fit on images; report results on others.

    Args:
        images: (N, C, H, W) in [0, 1], like those that will be fitted. Their device and dtype are those of the fits.
        config: settings of the fit; `FitConfig()` if None. If its `start` is learned or a file, learning goes on from
            there. Its `iterations` and its stopping rule do not matter.
        inner: iterations of a fit. The start suits fits of about this length best.
        outer: steps of the outer loop.
        batch: images of an outer step, drawn with replacement.
        rate: how far the first outer step goes, 1 for all the way to the mean.
        size: side in pixels of the squares that are cut from the images at random, for the tiles of a larger image;
            None for whole images.
        seed: of z, of the initial parameters, of the images drawn, and of the jitter.
        callback: called after each outer step with its number, counted from 1, and the mean over its images of
            10 log10 of the loss at the end of the fit, in decibels.

    Returns:
        A `Start`, which `Start.save` writes.

    Raises:
        TypeError, ValueError: not a floating image batch, or outside [0, 1]; a number out of its range; a size larger
            than the images; a memory budget below one image; an architecture that is no network.
        RuntimeError: a fit diverged.
    """
    check_images(images)
    for name, value, least in (("inner", inner, 1), ("outer", outer, 1), ("batch", batch, 1), ("seed", seed, 0)):
        check_integer(name, value, least)
    check_positive("rate", rate, 1)
    check_integer("size", size, 1, none=True)
    if size is not None and size > min(images.shape[2:]):
        raise ValueError(f"size must be at most the sides of the images, {tuple(images.shape[2:])}, got {size}")
    config = replace(config or FitConfig(), iterations=inner, stopping="fixed", stopping_options={})
    if config.architecture not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {config.architecture!r}")
    images = images.detach()
    drawn_from = {"shape": list(images.shape), "sha256": hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()}
    generator = torch.Generator().manual_seed(seed)
    with fit_context(images.device, config.precision):
        problem = build_problem(_draw(images, 1, size, generator), config, seed, None, None, None)
        budget = memory_budget(config.memory_gb, images.device)
        most = most_images(problem.bytes_per_image(), budget, "for one image of this size", "raise it")
        for number in range(outer):
            observed = _draw(images, batch, size, generator)
            mean, decibels = _fit(problem, config, observed, most, jitter_seed=problem.jitter_seed + number)
            moved = {name: p.lerp(mean[name], rate * (1 - number / outer)) for name, p in problem.theta.items()}
            problem = replace(problem, theta=moved)
            if callback is not None:
                callback(number + 1, decibels)
    learnt = {"inner": inner, "outer": outer, "batch": batch, "rate": rate, "size": size, "seed": seed}
    recipe = {"fit": asdict(config), "channels": images.shape[1], "images": drawn_from, **learnt}
    return Start(problem.theta, problem.z, recipe)


def _draw(images: Tensor, count: int, size: int | None, generator: torch.Generator) -> Tensor:
    """(N, C, H, W) -> (count, C, H, W), or squares of `size`."""
    chosen = images[torch.randint(len(images), (count,), generator=generator)]
    if size is None:
        return chosen
    tops, lefts = (torch.randint(side - size + 1, (count,), generator=generator).tolist() for side in images.shape[2:])
    return torch.stack(
        [image[:, top : top + size, left : left + size] for image, top, left in zip(chosen, tops, lefts, strict=True)]
    )


def _fit(problem: Problem, config: FitConfig, observed: Tensor, most: int, jitter_seed: int) -> tuple[Theta, float]:
    """Fit images (B, C, H, W) from theta, at most `most` at the same time.

    Returns the mean of the parameters at the end, and that of the losses in decibels.
    """
    workers, chunks = plan_chunks(len(observed), most, observed.device)

    def one(index: Tensor) -> tuple[Theta, Tensor]:
        copy, target = problem.thread_copy(False), observed[index]
        generator = torch.Generator(observed.device).manual_seed(jitter_seed)
        with fit_context(observed.device, config.precision):
            state = begin(problem.theta, torch.zeros_like(target))
            for iteration in range(1, config.iterations + 1):
                z = draw_input(copy, index, config.jitter, generator)
                state, evaluation = step(copy, state, z, target, iteration, config, index=index)
        return {name: tensor[0].sum(0) for name, tensor in state.adam.tensors.items()}, evaluation.losses

    sums, losses = zip(*map_in_threads(one, chunks, workers), strict=True)
    decibels = 10 * torch.cat(losses).log10().mean()
    if not decibels.isfinite():
        raise RuntimeError(f"the fits of a start must not diverge: lower lr, got {config.lr}")
    return {name: sum(part[name] for part in sums) / len(observed) for name in sums[0]}, decibels.item()
