"""Restoration by deep image prior: every task is the one fit, with another operator, input or loss.

    min_theta  loss( A(f_theta(z)), observed ) + tv * total_variation( f_theta(z) )

All functions take the same keywords. `config`: settings of the fit, with any architecture and stopping rule; None for
the small ones of `presets.SMALL`, made for a CPU; `presets.PUBLISHED` holds the published ones. `seed`: as in `fit`.
`tv`: weight of the total variation in the loss; with `presets.PIXELS` as config it is the only prior, which is the
learning-free rival. `callback`, `checkpoint`: as in `fit`. Images of a batch do not affect each other.

Source: Ulyanov, Vedaldi, Lempitsky (2018), "Deep image prior", sections 3.1 to 3.6.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.fitting.checkpoint import Checkpoint, CheckpointLike
from dipdefense.fitting.config import FitConfig, build_network
from dipdefense.fitting.fit import Progress, fit
from dipdefense.fitting.losses import masked_mse
from dipdefense.fitting.problem import canvas
from dipdefense.image_tensors import check_images
from dipdefense.restoration.cosine_filters import threshold, wiener
from dipdefense.restoration.noise_estimate import estimate_sigma
from dipdefense.restoration.operators import downsampling, masking
from dipdefense.restoration.presets import DENOISE_TILE, SMALL
from dipdefense.restoration.total_variation import weighted_total_variation
from dipdefense.tiles import cut, join

__all__ = ["LEAST_NOISE", "denoise", "flash_no_flash", "inpaint", "remove_jpeg_artifacts", "super_resolve"]

Callback = Callable[[Progress], None]
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
        config: settings of the fit; None for those of `presets.SMALL`.
        tile: side in pixels of the tiles that larger images are cut into, which overlap by a quarter; each is fitted as
            a separate image. None: `presets.DENOISE_TILE`, but no tiles with a config.
        refine: whether the fit f is refined as above; None: yes, but not with a config.
        seed, tv, callback, checkpoint: see the module. Grey and colour images of a batch have a fit each, and so has
            every run: `Progress.share` counts them all, and its other fields are those of the tiles of one fit. Several
            fits have a checkpoint each: the path with `.1`, `.2`, ... behind it.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch in [0, 1], fewer than one run, a tile below 1, a negative `tv`; what `fit`
            raises.
    """
    check_images(images)
    check_integer("runs", runs, 1)
    check_integer("tile", tile, 1, none=True)
    images, usual = images.detach(), config is None
    refine = usual if refine is None else refine
    side = DENOISE_TILE if tile is None and usual else tile
    everything = [(torch.ones_like(images[:, 0, 0, 0], dtype=torch.bool), images, images.new_zeros(len(images)))]
    groups = _by_kind(images) if refine or usual else everything
    result, fits = images.clone(), 0
    for group, noisy, sigma in groups:
        fitted = torch.zeros_like(noisy)
        for run in range(runs):

            def report(state: Progress, before: int = fits) -> None:
                if callback is not None:
                    callback(replace(state, share=(before + state.share) / (runs * len(groups))))

            fits += 1
            own = checkpoint
            if checkpoint is not None and runs * len(groups) > 1:
                own = Checkpoint.at(checkpoint).numbered(fits)
            nth = None if seed is None else seed + run
            fitted += _denoised_tiles(noisy, config, side, nth, tv, report, own)
        result[group] = _refined(noisy, fitted / runs, sigma) if refine else fitted / runs
    return result


def _by_kind(images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A mask (B,) of the noisy colour images, these, and their sigma; the same of the grey ones, with one channel."""
    grey, sigma = (images == images[:, :1]).flatten(1).all(1), estimate_sigma(images)
    noisy = sigma > LEAST_NOISE
    kinds = [(noisy & ~grey, images), (noisy & grey, images[:, :1])]
    return [(mask, shown[mask], sigma[mask]) for mask, shown in kinds if mask.any()]


def _denoised_tiles(
    noisy: Tensor,
    config: FitConfig | None,
    side: int | None,
    seed: int | None,
    tv: float,
    callback: Callback,
    checkpoint: CheckpointLike | None,
) -> Tensor:
    if side is None or max(noisy.shape[2:]) <= side:
        return _fitted("denoise", noisy, config, seed, tv, callback, checkpoint=checkpoint)
    tiles = _fitted("denoise", cut(noisy, side, side // 4), config, seed, tv, callback, checkpoint=checkpoint)
    return join(tiles, (noisy.shape[2], noisy.shape[3]), side, side // 4)


def _refined(noisy: Tensor, fitted: Tensor, sigma: Tensor) -> Tensor:
    return wiener(noisy, fitted + threshold(noisy - fitted, sigma), sigma).clamp(0, 1)


def inpaint(
    images: Tensor,
    mask: Tensor,
    *,
    paste: bool = False,
    config: FitConfig | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Fill in unknown pixels: text, holes, or a large share of pixels that are missing.

    Pixels where the mask is 0 are never read, so they may be NaN. A stopping rule that looks at the residual sees 0
    there, so noise of std sigma appears to it as sigma times the square root of the known share.

    Args:
        images: (B, C, H, W), in [0, 1] where they are known.
        mask: (B or 1, 1 or C, H, W), boolean or 0 / 1; 1 = known pixel.
        paste: put the known pixels back into the result; a score over all pixels is then too good.
        config, seed, tv, callback, checkpoint: see the module.

    Returns:
        (B, C, H, W) in [0, 1], all pixels as the network gives them, unless `paste`.

    Raises:
        TypeError, ValueError: no image batch, a mask of another size, not binary or without a known pixel, a negative
            `tv`; what `fit` raises.
    """
    if not (isinstance(images, Tensor) and isinstance(mask, Tensor)):
        raise TypeError(f"images and mask must be tensors, got {type(images).__name__} and {type(mask).__name__}")
    allowed = [(1, len(images)), (1, *images.shape[1:2]), *((side,) for side in images.shape[2:])]
    if mask.dim() != 4 or any(size not in sizes for size, sizes in zip(mask.shape, allowed, strict=False)):
        raise ValueError(
            f"mask must have the size of images, {tuple(images.shape)} (one mask for all images or channels will do), "
            f"got {tuple(mask.shape)}"
        )
    loss, degrade = masked_mse(mask), masking(mask)
    everyone = torch.arange(len(images), device=images.device)
    known = degrade(images, everyone)
    check_images(known)
    filled = _fitted("inpaint", known, config, seed, tv, callback, degrade=degrade, loss=loss, checkpoint=checkpoint)
    return torch.where(mask.bool(), images, filled) if paste else filled


def super_resolve(
    images: Tensor,
    factor: int,
    *,
    config: FitConfig | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Enlarge images: find larger ones whose Lanczos reduction (`operators.downsampling`) they are.

    Args:
        images: small, (B, C, H, W) in [0, 1].
        factor: an integer of at least 2.
        config, seed, tv, callback, checkpoint: see the module.

    Returns:
        (B, C, factor H, factor W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch in [0, 1], a factor below 2, a negative `tv`; what `fit` raises.
    """
    check_images(images)
    C, H, W = images.shape[1:]
    check_integer("factor", factor, 2)
    degrade = downsampling(factor, factor * H, factor * W, dtype=images.dtype, device=images.device)
    shape = (C, factor * H, factor * W)
    return _fitted(
        "super_resolve", images, config, seed, tv, callback, degrade=degrade, shape=shape, checkpoint=checkpoint
    )


def remove_jpeg_artifacts(
    images: Tensor,
    *,
    config: FitConfig | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Remove blocks and ringing of JPEG compression: (B, C, H, W) in [0, 1] -> same. As `denoise`, with other settings.

    Raises:
        TypeError, ValueError: no image batch in [0, 1], a negative `tv`; what `fit` raises.
    """
    check_images(images)
    return _fitted("remove_jpeg_artifacts", images, config, seed, tv, callback, checkpoint=checkpoint)


def flash_no_flash(
    flash: Tensor,
    no_flash: Tensor,
    *,
    config: FitConfig | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Restore a dark, noisy photograph with the detail of one taken with a flash, which is the network's input z.

    Args:
        flash: (B, C, H, W) in [0, 1], or (1, C, H, W) for all.
        no_flash: what is restored, (B, C', H, W) in [0, 1].
        config, seed, tv, callback, checkpoint: see the module; `input` and `input_channels` of the config are not used.

    Returns:
        (B, C', H, W) in [0, 1], with the light of `no_flash`.

    Raises:
        TypeError, ValueError: no image batches in [0, 1], images of different sizes, a negative `tv`; what `fit`
            raises.
    """
    check_images(flash, "flash")
    check_images(no_flash, "no_flash")
    if flash.shape[2:] != no_flash.shape[2:] or len(flash) not in (1, len(no_flash)):
        shapes = f"{tuple(flash.shape)} and {tuple(no_flash.shape)}"
        raise ValueError(f"flash and no_flash must have one size, got {shapes}")
    settings = replace(config or SMALL["flash_no_flash"], input="noise", input_channels=flash.shape[1])
    z, shape = _on_canvas(flash, settings), tuple(no_flash.shape[1:])
    return _fitted("flash_no_flash", no_flash, settings, seed, tv, callback, z=z, shape=shape, checkpoint=checkpoint)


def _fitted(
    task: str,
    observed: Tensor,
    config: FitConfig | None,
    seed: int | None,
    tv: float,
    callback: Callback | None,
    **problem: Any,
) -> Tensor:
    """The result of the fit, clipped to [0, 1], which only the architecture `pixels` can leave."""
    prior = weighted_total_variation(tv)
    result = fit(observed, config or SMALL[task], seed=seed, prior=prior, callback=callback, **problem)
    return result.reconstruction.clamp(0, 1)


def _on_canvas(flash: Tensor, config: FitConfig) -> Tensor:
    """The image in the centre of a canvas that the network accepts, padded by repeating its border pixels."""
    H, W = flash.shape[2:]
    with torch.device("meta"):
        height, width = canvas(build_network(config, 3), H, W)
    top, left = (height - H) // 2, (width - W) // 2
    return F.pad(flash, (left, width - W - left, top, height - H - top), mode="replicate")
