"""The views of an image that an attack shows the classifier at every step: a guess of the defence's augmentation."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Views", "flipped", "itself", "resized"]

LEAST_SIZE = 0.9  # smallest factor of the sides, before the image is padded; torchattacks' `resize_rate`
COPIES = 3  # resized copies at every step

Views = Callable[[Tensor, torch.Generator], Iterator[Tensor]]  # (B, C, H, W), draws -> views of the same shape


def itself(images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The images as they are."""
    yield images


def flipped(images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The images and their mirror images."""
    yield images
    yield images.flip(3)


def resized(images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The images, and copies that are made smaller by a random factor and put at a random place among zeros.

    All images of a batch share the draws, so that none depends on its place.

    Source: Xie et al. (2019), section 3.3.
    """
    yield images
    H, W = images.shape[2:]
    for _ in range(COPIES):
        factor, down, right = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        factor = LEAST_SIZE + (1 - LEAST_SIZE) * factor
        h, w = max(1, round(factor * H)), max(1, round(factor * W))
        small = F.interpolate(images, (h, w), mode="bilinear", align_corners=False)
        top, left = int(down * (H - h + 1)), int(right * (W - w + 1))
        yield F.pad(small, (left, W - w - left, top, H - h - top))
