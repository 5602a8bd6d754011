"""Removal of JPEG artefacts: a fit that ends sooner the stronger they are, and its threshold against the image."""

from dataclasses import replace

from torch import Tensor

from dipdefense.filters.cosine_filters import threshold
from dipdefense.filters.progress import ShareCallback, no_callback, part_of
from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.image_tensors import check_images
from dipdefense.restoration.jpeg_quality import artefact_sigma, estimate_quality
from dipdefense.restoration.presets import SMALL
from dipdefense.restoration.prior_fit import Callback, PriorFit, tile_and_refine

__all__ = ["BEST_QUALITY", "iterations_for", "remove_jpeg_artifacts"]

BEST_QUALITY = 80  # above it there is nothing to be gained; docs/restoration.md
TASK = "remove_jpeg_artifacts"


def remove_jpeg_artifacts(
    images: Tensor,
    *,
    config: FitConfig | None = None,
    tile: int | None = None,
    refine: bool | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    filter_callback: ShareCallback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Remove blocks and ringing of JPEG compression.

    By default, with y the image and q the quality of its compression as `estimate_quality` finds it,

        f = fit of y, in tiles, of 100 + 5 q iterations, 400 at most
        result = f + threshold(y - f),   at the strength of the artefacts, `artefact_sigma`

    An image without a trace of compression, or with one of a quality above 80, comes back as it is.

    Args:
        images: (B, C, H, W) in [0, 1], as they were decoded: the blocks begin at the corner.
        config, tile, refine, seed, tv, callback, filter_callback, checkpoint: see `dipdefense.restoration.prior_fit`.
            Refined images have a fit each: `Progress.share` counts them all, and several have a checkpoint each, the
            path with `.1`, `.2`, ... behind it. Without `refine` all images are fitted, whatever their quality.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch in [0, 1], of other than 1 or 3 channels where it refines, a tile below 1,
            a negative `tv`; what `fit` raises.
    """
    check_images(images)
    side, refine = tile_and_refine(config, tile, refine)
    prior_fit = PriorFit(task=TASK, config=config, seed=seed, tv=tv, callback=callback, checkpoint=checkpoint)
    if not refine:
        return prior_fit.in_tiles(images, side)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, as JPEG has, got {images.shape[1]}: set refine=False")
    result = images.detach().clone()
    found = enumerate(map(estimate_quality, result))
    compressed = [(position, q) for position, q in found if q is not None and q <= BEST_QUALITY]
    for number, (position, quality) in enumerate(compressed):
        y, own = result[position, None], prior_fit.part(number, len(compressed))
        if config is None:
            own = replace(own, config=replace(SMALL[TASK], iterations=iterations_for(quality)))
        f, sigma = own.in_tiles(y, side), y.new_tensor([artefact_sigma(y[0], quality)])
        report = part_of(filter_callback or no_callback, number, len(compressed))
        report(0)
        result[position] = (f + threshold(y - f, sigma)).clamp(0, 1)[0]
        report(1)
    return result


def iterations_for(quality: int) -> int:
    """Iterations of the fit of an image that was compressed at this quality: the weaker the artefacts, the more."""
    return min(100 + 5 * quality, 400)
