"""The quality at which an image was compressed as JPEG, and how strong its artefacts are, from the image alone."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["artefact_sigma", "estimate_quality"]

QUALITIES = range(2, 99)  # tried, in the scale of libjpeg
STEP = 3  # distance of the qualities that one is compared with
DIP = 0.9  # share of those at both sides that the change stays below; on photographs never compressed it was above 1
BLOCK = 8  # side of the blocks of JPEG, in pixels
SIDE = 1024  # of the part that is looked at, in pixels
DETAIL = 2.0  # std of a block that tells anything, in 8-bit levels
ENOUGH = 16  # such blocks, all different; drawings and gradients have fewer


def estimate_quality(image: Tensor) -> int | None:
    """Quality of the JPEG compression of an image, (C, H, W) in [0, 1], C = 1 or 3; None if there is no trace of one.

    Compressed once more at the same quality, an image hardly changes; at another one it does. So the change of the
    luma, as a function of the quality, has a dip there. Qualities from 5 to 95 are found, to within 1, if the blocks
    begin at the corner of the image and the tables are those of libjpeg. Blocks without detail and repeated ones do not
    count, for they hardly change at many qualities; with fewer than 16 others there is no trace.

    Source: Farid (2009), "Exposing digital forgeries from JPEG ghosts".
    """
    H, W = image.shape[1:]
    top, left = (max(0, (side - SIDE) // 2 // BLOCK * BLOCK) for side in (H, W))
    picture = _picture(image[:, top : top + SIDE, left : left + SIDE])
    luma = picture.convert("YCbCr").getchannel(0)
    blocks = _blocks(np.asarray(luma, dtype=np.float64))
    _, distinct = np.unique(blocks, axis=0, return_index=True)
    telling = distinct[blocks[distinct].std(1) > DETAIL]
    if len(telling) < ENOUGH:
        return None
    change = {quality: _rms(_blocks(_compressed(luma, quality))[telling] - blocks[telling]) for quality in QUALITIES}
    # the first dip, for tables with half its steps make another one
    for quality in QUALITIES[STEP:-STEP]:
        around = [change[quality + offset] for offset in range(-STEP, STEP + 1)]
        if change[quality] == min(around) and change[quality] < DIP * min(around[0], around[-1]):
            return quality
    return None


def _blocks(levels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(H, W) -> (blocks, 64), the whole blocks, each without its mean."""
    H, W = (side // BLOCK for side in levels.shape)
    grid = levels[: H * BLOCK, : W * BLOCK].reshape(H, BLOCK, W, BLOCK).swapaxes(1, 2).reshape(H * W, BLOCK * BLOCK)
    centred: np.ndarray[Any, Any] = grid - grid.mean(1, keepdims=True)
    return centred


def artefact_sigma(image: Tensor, quality: int) -> float:
    """Root mean square of the artefacts, in the unit of the image, (C, H, W) in [0, 1].

    It is that of a second compression whose blocks are shifted by half a block; the estimate is too low where the
    first one has left little detail.
    """
    half = BLOCK // 2
    picture = _picture(image[:, half:, half:] if min(image.shape[1:]) > half else image)
    return _rms(_compressed(picture, quality) - np.asarray(picture, dtype=np.float64)) / 255


def _picture(image: Tensor) -> Image.Image:
    levels = (image.detach().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0])


def _compressed(picture: Image.Image, quality: int) -> np.ndarray[Any, Any]:
    """8-bit levels after compression, (H, W) or (H, W, 3)."""
    picture.save(file := io.BytesIO(), "jpeg", quality=quality)
    return np.asarray(Image.open(file), dtype=np.float64)


def _rms(difference: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(np.square(difference).mean()))
