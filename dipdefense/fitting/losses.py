"""What a fit minimises: the distance of A(f_theta(z)) to the observed image, one value for each image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "SCALE_BLIND", "Loss", "cosine", "l1", "least_squares_gain", "masked_mse", "mse"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (degraded output, observed, index) -> (B,)


def mse(output: Tensor, observed: Tensor) -> Tensor:
    """Mean squared error of each image: (B, ...), (B, ...) -> (B,)."""
    _check_shapes(output, observed)
    return (output - observed).square().flatten(1).mean(1)


def l1(output: Tensor, observed: Tensor) -> Tensor:
    """Mean absolute error of each image: (B, ...), (B, ...) -> (B,)."""
    _check_shapes(output, observed)
    return (output - observed).abs().flatten(1).mean(1)


def cosine(output: Tensor, observed: Tensor) -> Tensor:
    """One minus the cosine of the angle between the flattened images: (B, ...), (B, ...) -> (B,) in [0, 2].

    It does not depend on the scale of the output, so a fit returns the output times `least_squares_gain`.
    """
    _check_shapes(output, observed)
    return 1 - F.cosine_similarity(output.flatten(1), observed.flatten(1))


def masked_mse(mask: Tensor) -> Loss:
    """Mean squared error over the known pixels, as a `loss` for `fit`.

    Args:
        mask: (N, 1 or C, H, W) or (1, 1 or C, H, W) for all images, boolean or 0 / 1; 1 = known pixel.

    Returns:
        `loss(output, observed, index) -> (B,)`. Unknown pixels of `observed` are never read, whatever they hold.

    Raises:
        ValueError: the mask is not binary, or an image has no known pixel.
    """
    with torch.inference_mode(False):  # a fit computes gradients through it
        known = mask.bool().clone()
    if not torch.equal(known.to(mask.dtype), mask):
        raise ValueError("mask must be binary (1 = known pixel), got other values")
    if not known.flatten(1).any(1).all():
        raise ValueError("mask must leave at least one known pixel in every image")

    def loss(output: Tensor, observed: Tensor, index: Tensor) -> Tensor:
        _check_shapes(output, observed)
        here = known.expand_as(observed) if len(known) == 1 else known[index].expand_as(observed)
        error = torch.where(here, output - observed, 0).square()
        return error.flatten(1).sum(1) / here.flatten(1).sum(1)

    return loss


def least_squares_gain(output: Tensor, observed: Tensor) -> Tensor:
    """The g of each image that minimises |g output - observed|^2: (B, ...), (B, ...) -> (B,)."""
    x, y = output.flatten(1), observed.flatten(1)
    return (x * y).sum(1) / x.square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)


def _check_shapes(output: Tensor, observed: Tensor) -> None:
    if output.shape != observed.shape:
        raise ValueError(
            f"output and observed must have one shape, got {tuple(output.shape)} and {tuple(observed.shape)}: "
            "let degrade map one to the other"
        )


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": mse, "l1": l1, "cosine": cosine}
SCALE_BLIND = frozenset({"cosine"})
