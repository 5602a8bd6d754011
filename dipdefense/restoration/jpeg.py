"""Removal of JPEG artefacts."""

from torch import Tensor

from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.image_tensors import check_images
from dipdefense.restoration.prior_fit import Callback, PriorFit, tile_and_refine

__all__ = ["remove_jpeg_artifacts"]


def remove_jpeg_artifacts(
    images: Tensor,
    *,
    config: FitConfig | None = None,
    tile: int | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callback | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Remove blocks and ringing of JPEG compression: the fit, stopped early.

    Args:
        images: (B, C, H, W) in [0, 1].
        config, tile, seed, tv, callback, checkpoint: see `dipdefense.restoration.prior_fit`.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch in [0, 1], a negative `tv`; what `fit` raises.
    """
    check_images(images)
    side, _ = tile_and_refine(config, tile, None)
    prior_fit = PriorFit(
        task="remove_jpeg_artifacts", config=config, seed=seed, tv=tv, callback=callback, checkpoint=checkpoint
    )
    return prior_fit.in_tiles(images, side)
