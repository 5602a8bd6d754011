"""A threshold on the cosine transform of all patches, and what is restored by using it again and again.

An image is moved to opponent colours, every patch of 8x8 pixels is transformed, coefficients below 3 sigma are set to
0, and the patches are put back and averaged. For noise that is not white sigma differs from coefficient to coefficient
(`noise_estimate.noise_spectrum`).

The threshold, again and again with a smaller one each time, also restores what was not observed: `fill` puts the
known pixels back each time, and `back_project` what the reduction of the image lacks.

Source: Yu and Sapiro (2011), "DCT image denoising: a simple and effective image denoising algorithm". Iterated
thresholding: Guleryuz (2006), "Nonlinear approximation based image recovery using adaptive sparse reconstructions and
iterated denoising", parts I and II.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.filters.progress import ShareCallback, no_callback

__all__ = [
    "OPPONENT",
    "SIDE",
    "back_project",
    "cosine_atoms",
    "cosines",
    "fill",
    "opponent_colours",
    "padded",
    "threshold",
]

# Grey, red - blue, green - magenta. Orthonormal, so that white noise stays white with the same std.
OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
SIDE = 8  # of a patch, in pixels
THRESHOLD = 3.0  # coefficients below so many sigma are noise; chosen with `denoise`, BM3D has 2.7
FILL = (0.6, 0.01, 30)  # first and last threshold of `fill`, and how many, in geometric progression
BACK_PROJECT = (0.06, 0.03, 3)  # the same of `back_project`; chosen as docs/restoration.md says
VALUES = 2**24  # coefficients at the same time; there are 64 for every value of an image


def threshold(images: Tensor, sigma: Tensor) -> Tensor:
    """Remove noise of std sigma from images (B, C, H, W); where sigma is 0 nothing changes.

    `sigma`: (B,) for white noise, or that of every coefficient, as `noise_estimate.noise_spectrum` returns it.
    """
    levels = sigma.view(len(sigma), *(sigma.shape[1:] or (1, 1)), 1, 1)  # (B, C or 1, 64 or 1, 1, 1)
    return torch.stack([_thresholded(*each) for each in zip(images, levels, strict=True)])


def fill(images: Tensor, mask: Tensor, initial: Tensor, callback: ShareCallback = no_callback) -> Tensor:
    """Unknown pixels by iterated thresholding.

        x <- threshold(x, T_k / 3) where a pixel is unknown, else images;   T_k falls from 0.6 to 0.01 in 30 steps

    Args:
        images: (B, C, H, W); unknown pixels are not read.
        mask: (B or 1, 1 or C, H, W) bool, True = known pixel.
        initial: the first x, of the shape of images.
        callback: see `progress`.

    Returns:
        The last x.
    """
    x = torch.where(mask, images, initial)
    for step, level in enumerate(np.geomspace(*FILL)):
        callback(step / FILL[2])
        x = torch.where(mask, images, threshold(x, x.new_full((len(x),), level / THRESHOLD)))
    callback(1)
    return x


def back_project(
    small: Tensor, initial: Tensor, reduce: Callable[[Tensor, Tensor], Tensor], callback: ShareCallback = no_callback
) -> Tensor:
    """A large image by iterated thresholding and back-projection.

        x <- t + enlarge(small - reduce(t)),   t = threshold(x, T_k / 3);   T_k falls from 0.06 to 0.03 in 3 steps

    Args:
        small: (B, C, h, w).
        initial: the first x, (B, C, H, W).
        reduce: from the large to the small size, as `degrade` for `fit`; enlarged is by bicubic interpolation.
        callback: see `progress`.

    Returns:
        The last x.
    """
    x, index = initial, torch.arange(len(initial), device=initial.device)
    for step, level in enumerate(np.geomspace(*BACK_PROJECT)):
        callback(step / BACK_PROJECT[2])
        x = threshold(x, x.new_full((len(x),), level / THRESHOLD))
        lacking = small - reduce(x, index)
        x = x + F.interpolate(lacking, x.shape[2:], mode="bicubic", align_corners=False)
    callback(1)
    return x


def opponent_colours(channels: int, like: Tensor) -> Tensor:
    """The change of colours, (C, C): `OPPONENT` for RGB, else none."""
    return torch.from_numpy(OPPONENT if channels == 3 else np.eye(channels)).to(like)


def _thresholded(image: Tensor, sigma: Tensor) -> Tensor:
    """The same for one image, (C, H, W), in strips of rows that bound the memory."""
    C, H, W = image.shape
    side = min(SIDE, H, W)
    colours, atoms = opponent_colours(C, image), cosine_atoms(side, image)
    margin, around = slice(side - 1, 1 - side or None), padded(torch.einsum("oc,chw->ohw", colours, image), side)
    height, strips = max(1, VALUES // (C * side**2 * W)), []
    for top in range(0, H, height):
        Y = F.conv2d(around[:, None, top : min(top + height, H) + 2 * (side - 1)], atoms)  # (C, 64, h, w)
        kept = torch.where(Y.abs() >= THRESHOLD * sigma, Y, 0)
        strips.append(F.conv_transpose2d(kept, atoms)[:, 0, margin, margin] / side**2)
    filtered: Tensor = torch.einsum("oc,ohw->chw", colours, torch.cat(strips, 1))
    return filtered


def padded(image: Tensor, side: int) -> Tensor:
    """(C, H, W) or a batch, continued by side - 1 pixels all around, so that as many patches hold each pixel of it."""
    return F.pad(image, [side - 1] * 4, mode="reflect" if side > 1 else "constant")


def cosines(count: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform of `count` values, (count, count): one row for each coefficient."""
    n = torch.arange(count, dtype=torch.float64)
    rows = torch.cos(math.pi / count * (n + 0.5) * n[:, None]) * math.sqrt(2 / count)
    rows[0] /= math.sqrt(2)
    return rows.to(like)


def cosine_atoms(side: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform of patches, as filters (side^2, 1, side, side)."""
    rows = cosines(side, like.double())
    atoms = torch.einsum("ai,bj->abij", rows, rows).reshape(side * side, 1, side, side)
    return atoms.to(like)
