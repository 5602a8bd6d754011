"""Total variation: the learning-free prior that the deep image prior is compared with."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["total_variation", "weighted_total_variation"]

SMOOTH = 1e-3  # differences far below it count by their squares, so that the gradient exists everywhere


def total_variation(images: Tensor) -> Tensor:
    """Isotropic total variation of each image, a mean over its values: (B, C, H, W) -> (B,).

    sqrt(dx^2 + dy^2) of the forward differences, 0 beyond the last row and column, each channel on its own.

    Source: Rudin, Osher and Fatemi (1992), eq. (2.5a); the discretisation of Chambolle (2004), section 2.
    Differs: sqrt(dx^2 + dy^2 + s^2) - s with s = 1e-3, which has a gradient at 0.
    """
    dx = torch.nn.functional.pad(images.diff(dim=-1), (0, 1))
    dy = torch.nn.functional.pad(images.diff(dim=-2), (0, 0, 0, 1))
    return ((dx.square() + dy.square() + SMOOTH**2).sqrt() - SMOOTH).flatten(1).mean(1)


def weighted_total_variation(weight: float) -> Callable[[Tensor, Tensor], Tensor] | None:
    """`weight` times the total variation, as a `prior` for `fit`; None for a weight of 0.

    Raises:
        ValueError: a weight that is negative or not finite.
    """
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"tv must be a weight that is finite and not negative, got {weight!r}")
    return (lambda images, index: weight * total_variation(images)) if weight else None
