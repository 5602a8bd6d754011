"""Denoising: a fit that stops by itself, as the pilot of filters that bring the detail back."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.filters.noise_estimate import estimate_sigma
from dipdefense.filters.progress import ShareCallback, no_callback, part_of
from dipdefense.filters.refinement import refine as with_filters
from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.image_tensors import check_images
from dipdefense.restoration.impulses import find_impulses
from dipdefense.restoration.inpainting import inpaint
from dipdefense.restoration.prior_fit import Callback, PriorFit, tile_and_refine

__all__ = ["LEAST_NOISE", "NOISE_TASKS", "denoise"]

LEAST_NOISE = 0.4 / 255  # std below which an image counts as free of noise; rounding to 8 bits makes 0.29 / 255
NOISE_TASKS = {"independent": "denoise", "camera": "denoise_camera", "impulse": "inpaint"}  # keys of `presets.SMALL`


def denoise(
    images: Tensor,
    *,
    noise: str = "independent",
    runs: int = 1,
    config: FitConfig | None = None,
    tile: int | None = None,
    refine: bool | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    filter_callback: ShareCallback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Remove noise of unknown level.

    By default the image is fitted in tiles, and filters bring back the detail that the fit lacks
    (`dipdefense.filters.refinement`). The kind of noise decides when the fit ends and what sigma, its std,
    is:

    - `independent` from pixel to pixel and from channel to channel, and about as strong everywhere. The rule
      `blind_discrepancy` ends the fit, and sigma is what `estimate_sigma` finds. An image in which it finds no noise
      comes back as it is. Of other noise most is left, and fine texture all over an image is taken for noise.
    - `camera`: correlated, as demosaicing and JPEG leave it. The fit has a fixed number of iterations, and sigma of
      every coefficient is `noise_spectrum(y, f)`. A clean image loses detail, so use it where noise is seen.
    - `impulse`, also called salt and pepper: `inpaint` fills in the values that `find_impulses` finds. An image without
      any comes back as it is.

    Args:
        images: noisy, (B, C, H, W) in [0, 1].
        noise: `independent`, `camera` or `impulse`.
        runs: how many fits, with the seeds `seed`, `seed + 1`, ..., are averaged; 1 for impulses.
        config, tile, refine, seed, tv, callback, filter_callback, checkpoint: see `dipdefense.restoration.prior_fit`.
            Grey and colour images of a batch have a fit each, and so has every run: `Progress.share` counts them all,
            and its other fields are those of the tiles of one fit. Several fits have a checkpoint each: the path with
            `.1`, `.2`, ... behind it.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch in [0, 1], an unknown noise, fewer than one run, several runs for
            impulses, an image of nothing but impulses, a tile below 1, a negative `tv`; what `fit` raises.
    """
    check_images(images)
    check_integer("runs", runs, 1)
    if noise not in NOISE_TASKS:
        raise ValueError(f"noise must be one of {', '.join(NOISE_TASKS)}, got {noise!r}")
    keywords: dict[str, Any] = {
        "config": config,
        "seed": seed,
        "tv": tv,
        "callback": callback,
        "checkpoint": checkpoint,
    }
    images = images.detach()
    if noise == "impulse":
        if runs > 1:
            raise ValueError(f"runs must be 1 for impulses, got {runs}: inpaint with other seeds to average")
        return _without_impulses(images, tile=tile, refine=refine, filter_callback=filter_callback, **keywords)
    side, refine = tile_and_refine(config, tile, refine)
    prior_fit = PriorFit(task=NOISE_TASKS[noise], **keywords)
    sigma = estimate_sigma(images) if noise == "independent" else None
    groups = _by_kind(images, sigma) if refine or config is None else [(slice(None), images)]
    result = images.clone()
    for number, (group, noisy) in enumerate(groups):
        fitted = torch.zeros_like(noisy)
        for run in range(runs):
            own = replace(prior_fit, seed=None if seed is None else seed + run)
            fitted += own.part(number * runs + run, len(groups) * runs).in_tiles(noisy, side) / runs
        if refine:
            report = part_of(filter_callback or no_callback, number, len(groups))
            fitted = with_filters(noisy, fitted, None if sigma is None else sigma[group], report)
        result[group] = fitted
    return result


def _by_kind(images: Tensor, sigma: Tensor | None) -> list[tuple[Tensor | slice, Tensor]]:
    """A mask (B,) of the noisy colour images, and these; the same of the grey ones, with one channel."""
    grey = (images == images[:, :1]).flatten(1).all(1)
    noisy = torch.ones_like(grey) if sigma is None else sigma > LEAST_NOISE
    kinds = [(noisy & ~grey, images), (noisy & grey, images[:, :1])]
    return [(mask, shown[mask]) for mask, shown in kinds if mask.any()]


def _without_impulses(images: Tensor, **keywords: Any) -> Tensor:
    """The images with their impulses filled in; `keywords` of `inpaint`."""
    impulses, result = find_impulses(images), images.clone()
    hit = impulses.flatten(1).any(1)
    if impulses.flatten(1).all(1).any():
        raise ValueError("images must have values besides impulses, got one whose values all count as such")
    if hit.any():
        result[hit] = inpaint(images[hit], ~impulses[hit], paste=True, **keywords)
    return result
