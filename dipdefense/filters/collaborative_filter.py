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

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dipdefense.filters.cosine_filters import cosine_atoms, cosines, opponent_colours, padded
from dipdefense.filters.progress import ShareCallback, no_callback
from dipdefense.tiles import cut, join

__all__ = ["SIDE", "collaborative_wiener"]

SIDE = 5  # of a patch, in pixels
STRIDE = 2  # between the patches that are taken, in pixels
GROUP = 16  # patches
REACH = 16  # pixels up, down, left and right in which patches are compared
BLOCK, OVERLAP = 256, 32  # pixels; larger images are filtered in blocks of about this side, which bounds the memory
PART = 2**11  # groups that are transformed at the same time


def collaborative_wiener(images: Tensor, pilot: Tensor, sigma: Tensor, callback: ShareCallback = no_callback) -> Tensor:
    """Filter images by the detail of a pilot; where sigma is 0 nothing changes.

    Args:
        images: with noise, (B, C, H, W).
        pilot: an estimate of the clean images, of the same shape.
        sigma: std of the noise, in the unit of the images: (B,) for white noise, or that of every coefficient of the
            patches, as `noise_estimate.noise_spectrum` returns it for patches of `SIDE`.
        callback: see `progress`.

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
    together = max(1, BLOCK**2 // noisy[0, 0].numel())
    parts = list(zip(*(torch.split(each, together) for each in (noisy, shown, levels)), strict=True))
    filtered: list[Tensor] = []
    for part in parts:  # a backward pass computes one at a time again, so it needs no more memory than that
        callback(len(filtered) / len(parts))
        filtered.append(checkpoint(_filtered, *part, use_reentrant=False, preserve_rng_state=False))
    callback(1)
    return join(torch.cat(filtered), (images.shape[2], images.shape[3]), side, overlap)


def _filtered(images: Tensor, pilot: Tensor, sigma: Tensor) -> Tensor:
    """The same for a few blocks, (B, C, H, W); sigma is (B, C or 1, 25 or 1)."""
    B, C, H, W = images.shape
    side = min(SIDE, H, W)
    colours, atoms = opponent_colours(C, images), cosine_atoms(side, images)
    y, p = (padded(torch.einsum("oc,bchw->bohw", colours, x), side) for x in (images, pilot))
    Y, P = (F.conv2d(x.flatten(0, 1)[:, None], atoms) for x in (y, p))
    h, w = Y.shape[2:]
    Y, P = (X.view(B, C, -1, h * w).permute(0, 3, 1, 2).flatten(0, 1) for X in (Y, P))  # (B h w, C, 25)
    groups = _groups(padded(pilot.mean(1, keepdim=True), side), side)  # (B, G, K)
    image = torch.arange(B, device=images.device).repeat_interleave(groups.shape[1])  # of each group
    groups = groups.flatten(0, 1) + h * w * image[:, None]
    variance = sigma.square()[:, None]
    largest = variance.amax((2, 3), keepdim=True)
    noise = torch.where(largest > 0, variance / largest, 1)
    along = cosines(groups.shape[1], images)
    total, weights = torch.zeros_like(Y), Y.new_zeros(B * h * w, C)
    for part, mine in zip(groups.split(PART), image.split(PART), strict=True):  # type: ignore[no-untyped-call]
        of_y, of_p = (torch.einsum("jk,gkca->gjca", along, X[part]) for X in (Y, P))
        power = of_p.square()
        keep = power / (power + variance[mine]).clamp_min(torch.finfo(power.dtype).tiny)
        keep = torch.where(variance[mine] > 0, keep, 1)
        trust = 1 / (keep.square() * noise[mine]).mean((1, 3)).clamp_min(torch.finfo(power.dtype).eps)  # (G, C)
        back = torch.einsum("jk,gjca->gkca", along, keep * of_y) * trust[:, None, :, None]
        total.index_add_(0, part.flatten(), back.flatten(0, 1))
        weights.index_add_(0, part.flatten(), trust.repeat_interleave(part.shape[1], 0))
    total, weights = (x.view(B, h * w, C, -1).permute(0, 2, 3, 1).reshape(B * C, -1, h, w) for x in (total, weights))
    summed, counted = F.conv_transpose2d(total, atoms), F.conv_transpose2d(weights, torch.ones_like(atoms[:1]))
    inside = slice(side - 1, 1 - side or None)
    filtered: Tensor = torch.einsum("oc,bohw->bchw", colours, (summed / counted)[..., inside, inside].view(B, C, H, W))
    return filtered


@torch.no_grad()
def _groups(grey: Tensor, side: int) -> Tensor:
    """The places of the patches of every group, counted row by row, (B, G, K); the first of a group is its own.

    `grey`: (B, 1, H, W). K is 16, or as many as there are near every patch.
    """
    h, w = (length - side + 1 for length in grey.shape[2:])
    down, across = (torch.arange(0, length, STRIDE, device=grey.device) for length in (h, w))
    own = (down[:, None] * w + across).flatten()
    around = F.pad(grey, [REACH] * 4, value=math.inf)
    reach = range(-REACH, REACH + 1)
    steps = torch.tensor([dy * w + dx for dy in reach for dx in reach], device=grey.device)
    apart, difference = grey.new_empty(len(steps), len(grey), len(own)), torch.empty_like(grey)
    for number, (dy, dx) in enumerate(itertools.product(reach, reach)):
        top, left = REACH + dy, REACH + dx
        shifted = around[..., top : top + grey.shape[2], left : left + grey.shape[3]]
        torch.sub(shifted, grey, out=difference)
        apart[number] = F.avg_pool2d(difference.square_(), side, STRIDE).flatten(1)
    apart[len(steps) // 2] -= 1  # no other patch comes before its own
    size = min(GROUP, min(h, REACH + 1) * min(w, REACH + 1))
    nearest = apart.permute(1, 2, 0).topk(size, largest=False).indices  # (B, G, K)
    return own[:, None] + steps[nearest]
