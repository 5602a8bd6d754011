"""Flash / no flash: the photograph with a flash is the input of the network."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig, build_network
from dipdefense.fitting.problem import canvas
from dipdefense.image_tensors import check_images
from dipdefense.restoration.presets import SMALL
from dipdefense.restoration.prior_fit import Callback, PriorFit

__all__ = ["flash_no_flash"]


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
        config, seed, tv, callback, checkpoint: see `dipdefense.restoration.prior_fit`; `input` and
            `input_channels` of the config are not used.

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
    prior_fit = PriorFit(
        task="flash_no_flash", config=settings, seed=seed, tv=tv, callback=callback, checkpoint=checkpoint
    )
    return prior_fit(no_flash, z=_on_canvas(flash, settings), shape=tuple(no_flash.shape[1:]))


def _on_canvas(flash: Tensor, config: FitConfig) -> Tensor:
    """The image in the centre of a canvas that the network accepts, padded by repeating its border pixels."""
    H, W = flash.shape[2:]
    with torch.device("meta"):
        height, width = canvas(build_network(config, 3), H, W)
    top, left = (height - H) // 2, (width - W) // 2
    return F.pad(flash, (left, width - W - left, top, height - H - top), mode="replicate")
