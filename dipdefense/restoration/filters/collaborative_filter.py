"""The collaborative Wiener filter: patches of an image that are alike are filtered together, by the detail of a pilot.

Of the patches of 5x5 pixels every second across and down is taken, with the 15 nearby that are most like it in the
pilot. The cosine transform of such a group, in both directions of the patches and from patch to patch, holds what they
share in few coefficients, which are weighted:

    weight = P^2 / (P^2 + sigma^2),   Y of the noisy image, P of the pilot;   result = inverse transform of weight * Y

All patches go back to their places and are averaged, those of a group the more, the less noise it has kept.

Source: Dabov, Foi, Katkovnik, Egiazarian (2007), "Image denoising by sparse 3-D transform-domain collaborative
filtering", eqs. (7) to (12). Differs: the pilot is given, all groups are of one size, the transform from patch to patch
is a cosine one, and the average has no window. Colours are opponent, and patches are compared in grey, as in "Color
image denoising via sparse 3D collaborative filtering with grouping constraint in luminance-chrominance space" (2007).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.restoration.filters.cosine_filters import cosine_atoms, cosines, opponent_colours, padded
from dipdefense.tiles import cut, join

__all__ = ["SIDE", "collaborative_wiener"]

SIDE = 5  # of a patch, in pixels
STRIDE = 2  # between the patches that are taken, in pixels
GROUP = 16  # patches
REACH = 16  # pixels up, down, left and right in which patches are compared
BLOCK, OVERLAP = 256, 32  # pixels; larger images are filtered in blocks of about this side, which bounds the memory
PART = 2**11  # groups that are transformed at the same time


def collaborative_wiener(images: Tensor, pilot: Tensor, sigma: Tensor) -> Tensor:
    """Filter images by the detail of a pilot; where sigma is 0 nothing changes.

    Args:
        images: with noise, (B, C, H, W).
        pilot: an estimate of the clean images, of the same shape.
        sigma: std of the noise, in the unit of the images: (B,) for white noise, or that of every coefficient of the
            patches, as `noise_estimate.noise_spectrum` returns it for patches of `SIDE`.

    Returns:
        The filtered images, of the same shape.
    """
    longest = max(images.shape[2:])
    blocks = math.ceil(longest / BLOCK)
    side = math.ceil((longest + (blocks - 1) * OVERLAP) / blocks)
    overlap = min(OVERLAP, side - 1)
    levels = sigma.view(len(sigma), *(sigma.shape[1:] or (1, 1)))  # (B, C or 1, 25 or 1)
    noisy, shown = cut(images, side, overlap), cut(pilot, side, overlap)
    levels = levels.repeat(len(noisy) // len(images), 1, 1)
    filtered = torch.stack([_filtered(*each) for each in zip(noisy, shown, levels, strict=True)])
    return join(filtered, (images.shape[2], images.shape[3]), side, overlap)


def _filtered(image: Tensor, pilot: Tensor, sigma: Tensor) -> Tensor:
    """The same for one block: image and pilot (C, H, W), sigma (C or 1, 25 or 1)."""
    C, H, W = image.shape
    side = min(SIDE, H, W)
    colours, atoms = opponent_colours(C, image), cosine_atoms(side, image)
    y, p = (padded(torch.einsum("oc,chw->ohw", colours, x), side) for x in (image, pilot))
    Y, P = (F.conv2d(x[:, None], atoms).permute(2, 3, 0, 1) for x in (y, p))  # (h, w, C, 25)
    h, w = Y.shape[:2]
    groups = _groups(padded(pilot.mean(0, keepdim=True), side), side)  # (G, K)
    Y, P = (X.reshape(h * w, C, -1) for X in (Y, P))
    along, variance = cosines(groups.shape[1], image), sigma.square()
    noise = variance / variance.max() if variance.any() else torch.ones_like(variance)
    total, weights = torch.zeros_like(Y), Y.new_zeros(h * w, C)
    for part in groups.split(PART):  # type: ignore[no-untyped-call]
        of_y, of_p = (torch.einsum("jk,gkca->gjca", along, X[part]) for X in (Y, P))
        power = of_p.square()
        keep = torch.where(variance > 0, power / (power + variance).clamp_min(torch.finfo(power.dtype).tiny), 1)
        trust = 1 / (keep.square() * noise).mean((1, 3)).clamp_min(torch.finfo(power.dtype).eps)  # (G, C)
        back = torch.einsum("jk,gjca->gkca", along, keep * of_y) * trust[:, None, :, None]
        total.index_add_(0, part.flatten(), back.flatten(0, 1))
        weights.index_add_(0, part.flatten(), trust.repeat_interleave(part.shape[1], 0))
    summed = F.conv_transpose2d(total.view(h, w, C, -1).permute(2, 3, 0, 1), atoms)
    counted = F.conv_transpose2d(weights.view(h, w, C).permute(2, 0, 1)[:, None], torch.ones_like(atoms[:1]))
    inside = slice(side - 1, 1 - side or None)
    filtered: Tensor = torch.einsum("oc,ohw->chw", colours, (summed / counted)[:, 0, inside, inside])
    return filtered


def _groups(grey: Tensor, side: int) -> Tensor:
    """The places of the patches of every group, counted row by row, (G, K); the first of a group is its own.

    `grey`: (1, H, W). K is 16, or as many as there are near every patch.
    """
    h, w = (length - side + 1 for length in grey.shape[1:])
    down, across = (torch.arange(0, length, STRIDE, device=grey.device) for length in (h, w))
    around = F.pad(grey, [REACH] * 4, value=math.inf)
    distances, steps = [], []
    for dy in range(-REACH, REACH + 1):
        for dx in range(-REACH, REACH + 1):
            top, left = REACH + dy, REACH + dx
            shifted = around[:, top : top + grey.shape[1], left : left + grey.shape[2]]
            apart = F.avg_pool2d((shifted - grey).square(), side, STRIDE).flatten()
            distances.append(apart if dy or dx else apart - 1)  # no other patch comes before its own
            steps.append(dy * w + dx)
    size = min(GROUP, min(h, REACH + 1) * min(w, REACH + 1))
    nearest = torch.stack(distances, 1).topk(size, largest=False).indices  # (G, K)
    own = (down[:, None] * w + across).flatten()
    return own[:, None] + torch.tensor(steps, device=grey.device)[nearest]
