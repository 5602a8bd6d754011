"""How strong the noise of an image is: white noise from the image alone, other noise from what a pilot leaves of it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.filters.cosine_filters import SIDE, cosine_atoms, opponent_colours
from dipdefense.tiles import cut

__all__ = ["estimate_sigma", "noise_spectrum"]

PATCHES = (5, 4, 3, 2)  # sides of the patches whose covariance is looked at, in pixels; the first that suits the block
ENOUGH = 5  # patches of a block for each dimension of a patch; with fewer the eigenvalues are too low
BLOCK = 64  # side of the blocks that are judged separately, in pixels
QUIET = 0.25  # quantile of the blocks that is taken: in most of the others texture looks like noise
CLIPPED = 0.1  # share of values at 0 or 1 above which a block is left out, since noise that is clipped is weaker
FLAT = 0.2  # share of the patches, those whose pilot has the least detail, that `noise_spectrum` looks at
EXTREME = 0.02  # patches whose mean is as near to 0 or 1 are left out, for the same reason
MOST = 2**15  # patches of an image that `noise_spectrum` looks at, at most and at the same time


def estimate_sigma(images: Tensor) -> Tensor:
    """Standard deviation of the noise of each image, (B, C, H, W) -> (B,), in the unit of the images.

    Patches of an image lie close to a subspace, so most eigenvalues of their covariance are those of the noise. The
    largest are left out, one by one, until the mean of the others is their median; that mean is the variance. The noise
    must be independent from pixel to pixel and from channel to channel, and as strong in all channels and places: for
    other noise the estimate is too low. Where all of an image is fine texture, it is too high. An image that is too
    small to tell, of less than about 10 pixels a side, gets 0. Channels that are equal are taken for one.

    Source: Chen, Zhu, Heng (2015), "An efficient statistical method for image noise level estimation", algorithm 1.
    Differs: it is applied to blocks of 64x64 pixels, and their lower quartile is taken.
    """
    blocks = cut(images, BLOCK, 0)
    variances = torch.stack([_noise_variance(block) for block in blocks]).view(-1, len(images))
    clipped = ((blocks <= 0) | (blocks >= 1)).double().flatten(1).mean(1).view_as(variances) > CLIPPED
    usable = variances.masked_fill(clipped & ~clipped.all(0), torch.nan)
    return usable.nanquantile(QUIET, 0).sqrt().to(images.dtype)


def _noise_variance(image: Tensor) -> Tensor:
    """(C, h, w) -> () float64."""
    image = image[:1] if torch.equal(image, image[:1].expand_as(image)) else image
    C, h, w = image.shape
    fitting = [p for p in PATCHES if p <= min(h, w) and (h - p + 1) * (w - p + 1) >= ENOUGH * C * p**2]
    if not fitting:
        return image.new_zeros((), dtype=torch.float64)
    patches = F.unfold(image[None].double(), fitting[0])[0]  # (D, N)
    centred = patches - patches.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(centred @ centred.T / centred.shape[1]).clamp_min(0)  # (D,), rising
    for left in range(len(values), 0, -1):
        mean: Tensor = values[:left].mean()
        if (values[:left] > mean).sum() >= (values[:left] < mean).sum():  # the mean is not above the median
            break
    return mean


def noise_spectrum(images: Tensor, pilot: Tensor, side: int = SIDE) -> Tensor:
    """The noise of images in every cosine coefficient: its root mean square in images - pilot, in flat patches.

    A patch counts as flat if its pilot has little energy beside its mean; black and white patches are left out. Detail
    that the pilot lacks there is taken for noise, and noise that it has is not seen. White noise of std sigma gives
    about sigma everywhere.

    Args:
        images: (B, C, H, W).
        pilot: an estimate of the clean images, of the same shape.
        side: of the patches, in pixels.

    Returns:
        (B, C, side^2), the colours opponent; (B, C, s^2) for images of fewer pixels, where patches have s a side.
    """
    return torch.stack([_spectrum(*each, side) for each in zip(images, pilot, strict=True)])


def _spectrum(image: Tensor, pilot: Tensor, side: int) -> Tensor:
    """The same for one image, (C, H, W)."""
    C, H, W = image.shape
    side = min(side, H, W)
    atoms = cosine_atoms(side, image)
    # odd, so that the patches have all phases of a Bayer mosaic and of the blocks of JPEG
    stride = max(1, math.ceil(math.sqrt(H * W / MOST))) | 1
    colours = torch.einsum("oc,nchw->nohw", opponent_colours(C, image), torch.stack([image - pilot, pilot]))
    residual, detail = (F.conv2d(x[:, None], atoms, stride=stride).flatten(2) for x in colours)  # (C, 64, N)
    means = F.avg_pool2d(pilot[None].mean(1, keepdim=True), side, stride).flatten()  # (N,)
    energy = detail[:, 1:].square().sum((0, 1))  # without the mean
    inside = (means - 0.5).abs() < 0.5 - EXTREME
    if inside.any():
        residual, energy = residual[..., inside], energy[inside]
    flat = energy <= energy.kthvalue(math.ceil(FLAT * len(energy))).values
    return residual[..., flat].square().mean(-1).sqrt()
