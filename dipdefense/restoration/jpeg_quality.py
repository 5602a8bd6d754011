"""The quality at which an image was compressed as JPEG, and how strong its artefacts are, from the image alone."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["artefact_sigma", "estimate_quality"]

QUALITIES = range(2, 99)  # tried, in the scale of libjpeg
STEP = 3  # distance of the qualities that one is compared with
DIP = 0.9  # share of those at both sides that the change stays below; without compression it was never below 1.01
BLOCK = 8  # side of the blocks of JPEG, in pixels
SIDE = 512  # of the part that is looked at, in pixels


def estimate_quality(image: Tensor) -> int | None:
    """Quality of the JPEG compression of an image, (C, H, W) in [0, 1]; None if there is no trace of one.

    Compressed once more at the same quality, an image hardly changes; at another one it does. So the change of the
    luma, as a function of the quality, has a dip there. It is found to within 1, if the blocks begin at the corner of
    the image and the tables are those of libjpeg.

    Source: Farid (2009), "Exposing digital forgeries from JPEG ghosts".
    """
    H, W = image.shape[1:]
    top, left = (max(0, (side - SIDE) // 2 // BLOCK * BLOCK) for side in (H, W))
    luma = _picture(image[:, top : top + SIDE, left : left + SIDE]).convert("YCbCr").getchannel(0)
    change = {quality: _change(luma, quality) for quality in QUALITIES}
    for quality in list(QUALITIES)[
        STEP:-STEP
    ]:  # a table that divides the one sought makes another, at a higher quality
        around = [change[quality + offset] for offset in range(-STEP, STEP + 1)]
        if change[quality] == min(around) and change[quality] < DIP * min(around[0], around[-1]):
            return quality
    return None


def artefact_sigma(image: Tensor, quality: int) -> float:
    """Root mean square of the artefacts, in the unit of the image, (C, H, W) in [0, 1].

    It is that of a second compression whose blocks are shifted by half a block; the estimate is too low where the
    first one has left little detail.
    """
    half = BLOCK // 2
    return _change(_picture(image[:, half:, half:] if min(image.shape[1:]) > half else image), quality) / 255


def _picture(image: Tensor) -> Image.Image:
    levels = (image.detach().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0])


def _change(picture: Image.Image, quality: int) -> float:
    """Root mean square difference that compression makes, in 8-bit levels."""
    picture.save(file := io.BytesIO(), "jpeg", quality=quality)
    before, after = (np.asarray(each, dtype=np.float64) for each in (picture, Image.open(file)))
    return float(np.sqrt(np.square(after - before).mean()))
