"""Inpainting: the fit to the known pixels, and a mean with what iterated thresholding makes of it."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.filters.cosine_filters import fill
from dipdefense.filters.progress import ShareCallback, no_callback
from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.losses import masked_mse
from dipdefense.image_tensors import check_images
from dipdefense.restoration.operators import masking
from dipdefense.restoration.presets import SMALL, SMALL_HOLES
from dipdefense.restoration.prior_fit import Callback, PriorFit, tile_and_refine
from dipdefense.tiles import cut

__all__ = ["inpaint", "tile_side"]

FILL_WEIGHT = 0.7  # weight of what thresholding makes of a fit, where half of the pixels are known
REACH = 15  # side in pixels of the square of all patches that hold a pixel


def inpaint(
    images: Tensor,
    mask: Tensor,
    *,
    paste: bool = False,
    config: FitConfig | None = None,
    tile: int | None = None,
    refine: bool | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    filter_callback: ShareCallback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Fill in unknown pixels: text, holes, or a large share of pixels that are missing.

    By default, with f the fit, in tiles,

        d = fill(images, mask, begun at f)      (`cosine_filters`)
        result = images where they are known, else f + w (d - f),   w = 0.7 min(1, 2 s)

    with s the share of known pixels nearby. d is sharper where many pixels are known; in the middle of a hole, where w
    is 0, f stays. Pixels where the mask is 0 are never read, so they may be NaN. A stopping rule that looks at the
    residual sees 0 there, so noise of std sigma appears to it as sigma times the square root of the known share.

    Args:
        images: (B, C, H, W), in [0, 1] where they are known.
        mask: (B or 1, 1 or C, H, W), boolean or 0 / 1; 1 = known pixel.
        paste: put the known pixels back into the result of a fit that is not refined.
        tile: as in `prior_fit`, but doubled until every tile knows enough (`tile_side`), so that a hole lies in a tile
            that shows what is around it, and has the settings `presets.SMALL_HOLES`. Without tiles a large image may
            need more memory than `memory_gb`.
        config, refine, seed, tv, callback, filter_callback, checkpoint: see `dipdefense.restoration.prior_fit`. Images
            whose tiles differ in size have a fit each: `Progress.share` counts them all, and several have a checkpoint
            each, the path with `.1`, `.2`, ... behind it.

    Returns:
        (B, C, H, W) in [0, 1]. Known pixels are those of the image, so a score over all pixels is too good. Without
        `refine` and `paste` all pixels are as the network gives them.

    Raises:
        TypeError, ValueError: no image batch, a mask of another size, not binary or without a known pixel, a negative
            `tv`, a tile below 1; what `fit` raises.
    """
    if not (isinstance(images, Tensor) and isinstance(mask, Tensor)):
        raise TypeError(f"images and mask must be tensors, got {type(images).__name__} and {type(mask).__name__}")
    allowed = [(1, len(images)), (1, *images.shape[1:2]), *((side,) for side in images.shape[2:])]
    if mask.dim() != 4 or any(size not in sizes for size, sizes in zip(mask.shape, allowed, strict=False)):
        raise ValueError(
            f"mask must have the size of images, {tuple(images.shape)} (one mask for all images or channels will do), "
            f"got {tuple(mask.shape)}"
        )
    masked_mse(mask)  # refuses a mask that is not binary, before it is cut
    images = images.detach()
    known = masking(mask)(images, torch.arange(len(images), device=images.device))
    check_images(known)
    side, refine = tile_and_refine(config, tile, refine)
    prior_fit = PriorFit(task="inpaint", config=config, seed=seed, tv=tv, callback=callback, checkpoint=checkpoint)
    masks = mask.expand(len(images), -1, -1, -1)
    sides = [None if side is None else tile_side(each, side) for each in masks]
    filled, different = torch.empty_like(known), list(dict.fromkeys(sides))
    for number, chosen in enumerate(different):
        rows = torch.tensor([each == chosen for each in sides], device=images.device)
        own, cut_up = prior_fit.part(number, len(different)), side is not None and max(images.shape[2:]) > side
        if cut_up and chosen != side and _is_usual(config):
            own = replace(own, config=replace(SMALL_HOLES, memory_gb=(config or SMALL["inpaint"]).memory_gb))
        filled[rows] = own.in_tiles(known[rows], chosen, masks[rows], problem=_problem)
    if refine:
        nearby = F.pad(mask.to(known), [REACH // 2] * 4, mode="replicate")
        weight = FILL_WEIGHT * (2 * F.avg_pool2d(nearby, REACH, 1)).clamp(max=1)
        filled = filled.lerp(fill(known, mask.bool(), filled, filter_callback or no_callback), weight).clamp(0, 1)
    return torch.where(mask.bool(), images, filled) if paste or refine else filled


def _problem(known: Tensor, mask: Tensor) -> dict[str, Any]:
    return {"degrade": masking(mask), "loss": masked_mse(mask)}


def _is_usual(config: FitConfig | None) -> bool:
    """Whether these are the small settings, whatever memory they may take."""
    usual = SMALL["inpaint"]
    return config is None or replace(config, memory_gb=usual.memory_gb) == usual


def tile_side(mask: Tensor, side: int) -> int | None:
    """Side of the tiles of an image, `side` doubled until each knows enough; None if that is the whole image.

    Enough is half as large a share of its pixels as all tiles know on average; of the channels the worst one counts.

    Args:
        mask: (1 or C, H, W), boolean or 0 / 1; 1 = known pixel.
        side: to begin with, in pixels.
    """
    while side < max(mask.shape[1:]):
        known = cut(mask[None].float(), side, side // 4).mean((2, 3)).amin(1)
        if (known >= known.mean() / 2).all():
            return side
        side *= 2
    return None
