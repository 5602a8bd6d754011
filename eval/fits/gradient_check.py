"""Finite-difference checks of the gradients that attacks use through a fit, and the cost of the exact one.

For a gradient g of a loss L and the direction d = sign(g): does a step h along d raise the loss, and by what share of
the change that g predicts? For an exact gradient the share is 1 if h is small enough. An attack's steps are about
1/255.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context

import pandas as pd
import torch
from torch import Tensor

from attacks.adaptive import SURROGATES, Objective, objective
from dipdefense import DefendedClassifier, FitConfig
from dipdefense.defence.gradients import Gradient
from dipdefense.fitting.unroll import pull_back
from eval.cost import clock, peak_resident
from eval.intervals import wilson

__all__ = ["SCALES", "compare_gradients", "cost_of_unrolling"]

SCALES = (1e-7, 1e-5, 1e-4, 1e-3, 2 / 255, 8 / 255)  # steps, images in [0, 1]


def compare_gradients(
    defended: DefendedClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    gradients: Mapping[str, Gradient] = SURROGATES,
    scales: Sequence[float] = SCALES,
    loss: str = "every_look",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Central differences of a loss of the defence along each gradient's own direction.

    As in an attack, steps end at 0 and 1, so the difference is one-sided where a pixel is dark or bright.

    Args:
        defended: its purifier has a seed.
        images: (B, C, H, W) in [0, 1]; float64, or rounding dominates at the smallest steps.
        labels: (B,) true classes.
        gradients: by name; the direction `random`, of random signs, is added to them.
        scales: steps h.
        loss: a key of `attacks.adaptive.LOSSES`.
        progress: called with (gradients done, all).

    Returns:
        Columns `gradient`, `step`, `n`; `rises`, the share of images whose loss at x + h d exceeds that at x - h d,
        with its 95 % Wilson interval; `kept`, the median of (L(x + h d) - L(x - h d)) / (g . 2 h d), 1 where the
        gradient holds; `seconds`, of the gradient, an image.

    Raises:
        ValueError: the defence has no fixed seed.
    """
    if defended.purifier.seed is None:
        raise ValueError("defended must have a seed, or differences come from two draws: Purifier(seed=0)")
    index, rows = torch.arange(len(images), device=images.device), []

    def rate(gradient: Gradient) -> Objective:
        return objective(defended, labels, loss=loss, gradient=gradient, seeds=repeat((defended.purifier.seed or 0,)))

    value = rate(SURROGATES["straight_through"])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64).to(images)
    for done, name in enumerate(("random", *gradients)):
        start = clock(images.device)
        slope = noise if name == "random" else rate(gradients[name])(images, index)[1]
        seconds = (clock(images.device) - start) / len(images)
        direction = slope.sign()
        for step in scales:
            ends = [(images + sign * step * direction).clamp(0, 1) for sign in (1, -1)]
            up, down = (value(end, index)[0] for end in ends)
            promised = (slope * (ends[0] - ends[1])).flatten(1).sum(1)
            low, high = wilson(int((up > down).sum()), len(images))
            rows.append(
                {
                    "gradient": name,
                    "step": step,
                    "n": len(images),
                    "rises": (up > down).double().mean().item(),
                    "ci_low": low,
                    "ci_high": high,
                    "kept": ((up - down) / promised).median().item() if name != "random" else float("nan"),
                    "seconds": seconds if name != "random" else float("nan"),
                }
            )
        if progress is not None:
            progress(done + 1, len(gradients) + 1)
    return pd.DataFrame(rows)


def cost_of_unrolling(
    config: FitConfig,
    shape: tuple[int, ...],
    steps: Sequence[int],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Seconds and peak memory per image of the exact gradient of a fit, by the number of steps.

    Each is measured in a fresh process on the CPU, with 8 images of noise of `shape` (C, H, W). The cost of one step is
    subtracted. `progress` is called with (steps measured, steps in all), since the cost rises with the steps.

    Returns:
        Columns `steps`, `seconds`, `mib`.
    """
    rows = []
    for number, count in enumerate(steps, 1):
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            seconds, peak = pool.submit(_cost, config, shape, count, torch.get_num_threads()).result()
        rows.append({"steps": count, "seconds": seconds, "mib": peak / 2**20})
        if progress is not None:
            progress(sum(steps[:number]), sum(steps))
    return pd.DataFrame(rows)


def _cost(config: FitConfig, shape: tuple[int, ...], steps: int, threads: int, n: int = 8) -> tuple[float, float]:
    torch.set_num_threads(threads)
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    config = replace(config, iterations=steps, stopping="fixed", stopping_options={})
    pull_back(images, {1: images}, config, seed=0)
    before, start = peak_resident(), clock(images.device)
    pull_back(images, {steps: images}, config, seed=0)
    return (clock(images.device) - start) / n, (peak_resident() - before) / n
