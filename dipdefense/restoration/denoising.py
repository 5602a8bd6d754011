"""Denoising: a fit that stops by itself, as the pilot of filters that bring the detail back."""

from dataclasses import replace

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.image_tensors import check_images
from dipdefense.restoration.cosine_filters import threshold, wiener
from dipdefense.restoration.noise_estimate import estimate_sigma
from dipdefense.restoration.prior_fit import Callback, PriorFit, tile_and_refine

__all__ = ["LEAST_NOISE", "denoise"]

LEAST_NOISE = 0.4 / 255  # std below which an image counts as free of noise; rounding to 8 bits makes 0.29 / 255


def denoise(
    images: Tensor,
    *,
    runs: int = 1,
    config: FitConfig | None = None,
    tile: int | None = None,
    refine: bool | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Remove noise of unknown level.

    By default, with y the image and sigma its noise as `estimate_sigma` finds it,

        f = fit of y, in tiles, stopped by the rule `blind_discrepancy`
        p = f + threshold(y - f),   result = wiener(y, pilot p)        (`cosine_filters`)

    The fit finds the structure, the threshold adds detail that the fit is still missing, and the filter takes from y
    whatever p shows to be stronger than the noise. An image in which no noise is found comes back as it is. The noise
    must be independent from pixel to pixel and from channel to channel, and about as strong everywhere. Of other noise
    most is left, and fine texture all over an image is taken for noise.

    Args:
        images: noisy, (B, C, H, W) in [0, 1].
        runs: how many fits, with the seeds `seed`, `seed + 1`, ..., are averaged.
        config, tile, refine, seed, tv, callback, checkpoint: see `dipdefense.restoration.prior_fit`. Grey and colour
            images of a batch have a fit each, and so has every run: `Progress.share` counts them all, and its other
            fields are those of the tiles of one fit. Several fits have a checkpoint each: the path with `.1`, `.2`, ...
            behind it.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch in [0, 1], fewer than one run, a tile below 1, a negative `tv`; what `fit`
            raises.
    """
    check_images(images)
    check_integer("runs", runs, 1)
    images, usual = images.detach(), config is None
    side, refine = tile_and_refine(config, tile, refine)
    prior_fit = PriorFit(task="denoise", config=config, seed=seed, tv=tv, callback=callback, checkpoint=checkpoint)
    everything = [(torch.ones_like(images[:, 0, 0, 0], dtype=torch.bool), images, images.new_zeros(len(images)))]
    groups = _by_kind(images) if refine or usual else everything
    result, fits = images.clone(), 0
    for group, noisy, sigma in groups:
        fitted = torch.zeros_like(noisy)
        for run in range(runs):
            nth = replace(prior_fit, seed=None if seed is None else seed + run).part(fits, runs * len(groups))
            fitted += nth.in_tiles(noisy, side)
            fits += 1
        result[group] = _refined(noisy, fitted / runs, sigma) if refine else fitted / runs
    return result


def _by_kind(images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A mask (B,) of the noisy colour images, these, and their sigma; the same of the grey ones, with one channel."""
    grey, sigma = (images == images[:, :1]).flatten(1).all(1), estimate_sigma(images)
    noisy = sigma > LEAST_NOISE
    kinds = [(noisy & ~grey, images), (noisy & grey, images[:, :1])]
    return [(mask, shown[mask], sigma[mask]) for mask, shown in kinds if mask.any()]


def _refined(noisy: Tensor, fitted: Tensor, sigma: Tensor) -> Tensor:
    return wiener(noisy, fitted + threshold(noisy - fitted, sigma), sigma).clamp(0, 1)
