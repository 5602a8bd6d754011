"""Filters on the cosine transform of all patches: threshold an image, or filter it with a pilot that shows its detail.

An image is moved to opponent colours, every patch of 8x8 pixels is transformed, its coefficients are weighted, and the
patches are put back and averaged. A fit is a good pilot: it shows where the detail is, so that the noisy image itself,
which has all of it, needs to be smoothed little there.

    threshold:  weight = 1 where |Y| > 3 sigma, else 0
    Wiener:     weight = P^2 / (P^2 + sigma^2),   Y of the noisy image, P of the pilot

Source: Yu and Sapiro (2011), "DCT image denoising: a simple and effective image denoising algorithm"; the Wiener filter
with a pilot is the second step of Dabov et al. (2007), "Image denoising by sparse 3-D transform-domain collaborative
filtering", eq. (7), without its grouping of patches.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["opponent", "threshold", "wiener"]

SIDE = 8  # of a patch, in pixels
LEAST = 3.0  # coefficients below so many sigma are noise; chosen with `denoise`, BM3D has 2.7
ROWS = 256  # of the image that are transformed at the same time; a coefficient image is 64 times as large


def threshold(images: Tensor, sigma: Tensor) -> Tensor:
    """Remove white noise of std sigma, (B,), from images (B, C, H, W); where sigma is 0 nothing changes."""
    least = LEAST * sigma[:, None, None, None, None]
    return _filtered(lambda y: torch.where(y.abs() >= least, y, 0), images)


def wiener(images: Tensor, pilot: Tensor, sigma: Tensor) -> Tensor:
    """Filter images by the detail of a pilot; where sigma is 0 nothing changes.

    Args:
        images: with white noise, (B, C, H, W).
        pilot: an estimate of the clean images, of the same shape.
        sigma: (B,), std of the noise, in the unit of the images.

    Returns:
        The filtered images, of the same shape.
    """
    variance = sigma.square()[:, None, None, None, None]

    def weighted(y: Tensor, p: Tensor) -> Tensor:
        power = p.square()
        return torch.where(variance > 0, y * power / (power + variance).clamp_min(torch.finfo(y.dtype).tiny), y)

    return _filtered(weighted, images, pilot)


def opponent(channels: int, like: Tensor) -> Tensor:
    """An orthonormal change of colours, (C, C): for RGB grey, red - blue, green - magenta; else none."""
    if channels != 3:
        return torch.eye(channels, dtype=like.dtype, device=like.device)
    rows = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=like.dtype, device=like.device)
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit


def _filtered(weigh: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Transform, apply `weigh` to coefficients (B, C, 64, h, w), transform back; in strips, to bound the memory."""
    B, C, H, W = images[0].shape
    side = min(SIDE, H, W)
    colours, atoms = opponent(C, images[0]), _atoms(side, images[0])
    padded = [
        F.pad(torch.einsum("oc,bchw->bohw", colours, x), [side - 1] * 4, mode="reflect" if side > 1 else "constant")
        for x in images
    ]
    strips, margin = [], slice(side - 1, 1 - side or None)
    for top in range(0, H, ROWS):
        rows = slice(top, min(top + ROWS, H) + 2 * (side - 1))
        patches = [F.conv2d(x[:, :, rows].flatten(0, 1)[:, None], atoms) for x in padded]
        kept = weigh(*(p.view(B, C, *p.shape[1:]) for p in patches))
        back = F.conv_transpose2d(kept.flatten(0, 1), atoms)[..., margin, margin] / side**2
        strips.append(back.view(B, C, *back.shape[2:]))
    filtered: Tensor = torch.einsum("oc,bohw->bchw", colours, torch.cat(strips, 2))
    return filtered


def _atoms(side: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform of patches, as filters (side^2, 1, side, side)."""
    n = torch.arange(side, dtype=torch.float64)
    rows = torch.cos(math.pi / side * (n + 0.5) * n[:, None]) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    atoms = torch.einsum("ai,bj->abij", rows, rows).reshape(side * side, 1, side, side)
    return atoms.to(like)
