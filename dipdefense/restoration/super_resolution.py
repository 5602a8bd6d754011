"""Super-resolution: the fit whose reduction is the small image, and filters that keep it so."""

from typing import Any

from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.filters.cosine_filters import back_project
from dipdefense.filters.progress import ShareCallback, no_callback
from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.problem import Degrade
from dipdefense.image_tensors import check_images
from dipdefense.restoration.operators import downsampling
from dipdefense.restoration.prior_fit import Callback, PriorFit, tile_and_refine

__all__ = ["super_resolve"]

LEAST_TILE = 8  # pixels of the small image along the side of a tile


def super_resolve(
    images: Tensor,
    factor: int,
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
    """Enlarge images: find larger ones whose Lanczos reduction (`operators.downsampling`) they are.

    By default the fit is made in tiles, and a threshold on cosine coefficients takes away what it has too much, while
    the reduction is kept (`cosine_filters.back_project`).

    Args:
        images: small, (B, C, H, W) in [0, 1].
        factor: an integer of at least 2.
        tile: as in `prior_fit`, of the large image; at least 8 pixels of the small one.
        config, refine, seed, tv, callback, filter_callback, checkpoint: see `dipdefense.restoration.prior_fit`.

    Returns:
        (B, C, factor H, factor W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch in [0, 1], a factor below 2, a tile below 1, a negative `tv`; what `fit`
            raises.
    """
    check_images(images)
    images = images.detach()
    check_integer("factor", factor, 2)
    side, refine = tile_and_refine(config, tile, refine)
    prior_fit = PriorFit(
        task="super_resolve", config=config, seed=seed, tv=tv, callback=callback, checkpoint=checkpoint
    )

    def problem(small: Tensor) -> dict[str, Any]:
        C, h, w = small.shape[1:]
        return {"degrade": _reducing(small, factor), "shape": (C, factor * h, factor * w)}

    small_side = None if side is None else max(LEAST_TILE, side // factor)
    large = prior_fit.in_tiles(images, small_side, problem=problem, factor=factor)
    if refine:
        large = back_project(images, large, _reducing(images, factor), filter_callback or no_callback).clamp(0, 1)
    return large


def _reducing(small: Tensor, factor: int) -> Degrade:
    """A, from images `factor` times as large as these."""
    return downsampling(
        factor, factor * small.shape[2], factor * small.shape[3], dtype=small.dtype, device=small.device
    )
