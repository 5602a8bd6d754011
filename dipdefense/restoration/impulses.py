"""Impulses, also called salt and pepper: values that are lost, and black or white instead."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["find_impulses"]

WINDOW = 5  # side in pixels of the surroundings that a value is compared with


def find_impulses(images: Tensor) -> Tensor:
    """Which values are impulses: exactly 0 or 1, though most of the 5x5 values around are not the same.

    A black or white area of the image itself is thus kept. Lines of one or two pixels that are exactly black or white
    are taken for impulses, as are the corners of such areas.

    Args:
        images: (B, C, H, W) in [0, 1].

    Returns:
        (B, C, H, W) bool, True = impulse.
    """
    found = torch.zeros_like(images, dtype=torch.bool)
    for value in (0, 1):
        here = images == value
        share = F.avg_pool2d(here.to(images), WINDOW, 1, WINDOW // 2, count_include_pad=False)
        found |= here & (share <= 0.5)
    return found
