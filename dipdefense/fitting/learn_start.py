"""Learn a start: initial parameters from which the fit to an image like those of a set arrives early.

The inner loop is the fit itself: a few iterations for a batch of images, all from the parameters learnt so far. The
outer loop moves these parameters towards the mean of where the fits ended:

    theta <- theta + rate_k (mean_i theta_i - theta),    rate_k falls linearly from `rate` to 0

Source: Nichol, Achiam, Schulman (2018), "On first-order meta-learning algorithms", algorithm 2 (Reptile, batched).
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipdefense.arguments import check_integer, check_positive
from dipdefense.digest import describe
from dipdefense.fitting.checkpoint import Checkpoint, CheckpointLike, code_and_device, read_state, write_state
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.fit import fit_context
from dipdefense.fitting.networks import ARCHITECTURES
from dipdefense.fitting.problem import Problem, build_problem
from dipdefense.fitting.starts import Start
from dipdefense.fitting.step import begin, draw_input, step
from dipdefense.fitting.workers import map_in_threads, memory_budget, most_images, plan_chunks
from dipdefense.image_tensors import check_images
from dipdefense.whole_file import check_writable

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
    checkpoint: CheckpointLike | None = None,
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
            10 log10 of the loss at the end of the fit, in decibels; also for the steps that a checkpoint holds.
        checkpoint: file, or a `Checkpoint`, that saves the outer steps every minute. The same call goes on from there
            after a kill, and comes to the same bits on the same machine.

    Returns:
        A `Start`, which `Start.save` writes.

    Raises:
        TypeError, ValueError: not a floating image batch, or outside [0, 1]; a number out of its range; a size larger
            than the images; a memory budget below one image; an architecture that is no network; a checkpoint of other
            images or settings.
        OSError: the checkpoint cannot be read or written.
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
    learnt = {"inner": inner, "outer": outer, "batch": batch, "rate": rate, "size": size, "seed": seed}
    recipe = {"fit": asdict(config), "channels": images.shape[1], "images": drawn_from, **learnt}
    with fit_context(images.device, config.precision):
        problem = build_problem(_draw(images, 1, size, generator), config, seed, None, None, None)
        budget = memory_budget(config.memory_gb, images.device)
        most = most_images(problem.bytes_per_image(), budget, "for one image of this size", "raise it")
        saved = None if checkpoint is None else _Saved(Checkpoint.at(checkpoint), recipe, problem)
        levels: list[float] = []
        if saved is not None:
            problem, levels = saved.resume(problem, generator)
        for number in range(outer):
            if number >= len(levels):
                observed = _draw(images, batch, size, generator)
                mean, level = _fit(problem, config, observed, most, jitter_seed=problem.jitter_seed + number)
                moved = {name: p.lerp(mean[name], rate * (1 - number / outer)) for name, p in problem.theta.items()}
                problem = replace(problem, theta=moved)
                levels.append(level)
                if saved is not None:
                    saved.keep(problem, levels, generator, last=number == outer - 1)
            if callback is not None:
                callback(number + 1, levels[number])
    return Start(problem.theta, problem.z, recipe)


class _Saved:
    """The checkpoint of a start that is being learnt: parameters, what was drawn so far, and the levels so far."""

    def __init__(self, checkpoint: Checkpoint, recipe: Mapping[str, Any], problem: Problem):
        self.path, self.seconds = Path(checkpoint.path), checkpoint.seconds
        settings = {name: repr(value) for name, value in recipe.items()}
        given = {"z": describe("", problem.z), "initial parameters": describe("", problem.theta)}
        self.identity = settings | given | code_and_device(problem.z)
        self.due = time.monotonic() + self.seconds
        if not self.path.exists():
            check_writable(self.path)  # before the work

    def resume(self, problem: Problem, generator: torch.Generator) -> tuple[Problem, list[float]]:
        """The problem with the parameters that were learnt so far, and the level of each step; `generator` is set."""
        if not self.path.exists():
            return problem, []
        state = read_state(self.path, self.identity, "this start")
        generator.set_state(state["generator"])
        theta = {name: tensor.to(problem.theta[name].device) for name, tensor in state["theta"].items()}
        return replace(problem, theta=theta), state["levels"]

    def keep(self, problem: Problem, levels: list[float], generator: torch.Generator, *, last: bool) -> None:
        if last or time.monotonic() >= self.due:
            state = {"theta": dict(problem.theta), "levels": levels, "generator": generator.get_state()}
            write_state(self.path, self.identity, state)
            self.due = time.monotonic() + self.seconds


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
