"""What a fit minimises: the distance of A(f_theta(z)) to the observed image, one value for each image.

A loss that knows the noise is its negative log-likelihood: squares for Gaussian noise, absolute values for Laplacian,
which stands in for impulses, `poisson` for photons, `gaussian_mixture` for weak noise on all pixels and strong noise on
a few.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "COUNTING",
    "LOSSES",
    "SCALE_BLIND",
    "Loss",
    "cosine",
    "gaussian_mixture",
    "l1",
    "least_squares_gain",
    "masked_mse",
    "mse",
    "poisson",
]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (degraded output, observed, index) -> (B,)
DARK = 1 / 255  # light that `poisson` adds to both images, so that its gradient at black is bounded
MIXTURE = ((0.9, 0.1), (25 / 255, 0.5))  # shares and std of the mixture in LOSSES: noise, and a tenth of impulses


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


def poisson(output: Tensor, observed: Tensor) -> Tensor:
    """Negative log-likelihood of photon counts, for 1 photon at white: (B, ...), (B, ...) -> (B,).

    With x the output and y what is observed it is the mean of x - y + y log(y / x), which is 0 at equality. Another
    number of photons multiplies it, which Adam does not notice.

    Differs: `DARK` is added to x and y. Outputs below 0, which some operators give, count as 0.
    """
    _check_shapes(output, observed)
    x, y = output.clamp_min(0) + DARK, observed + DARK
    return (x - y + y * (y / x).log()).flatten(1).mean(1)


def gaussian_mixture(shares: Sequence[float], sigmas: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Negative log-likelihood of noise that is Gaussian with one of several standard deviations, as a loss.

        -log( sum_j w_j N(x - y; 0, s_j) / sum_j w_j N(0; 0, s_j) ),   the mean over the values of each image

    It is 0 at equality. Beyond the narrow component it flattens, so a few very wrong values move the fit little.

    Args:
        shares: w_j > 0, of the values that have the noise j; they sum to 1.
        sigmas: s_j > 0, in the unit of the images.

    Returns:
        `loss(output, observed) -> (B,)`, both (B, ...).

    Raises:
        ValueError: another number of shares than of sigmas, or none; one that is not positive; shares that do not sum
            to 1.
    """
    if not shares or len(shares) != len(sigmas):
        raise ValueError(f"shares and sigmas must be as many, at least one, got {len(shares)} and {len(sigmas)}")
    if not all(0 < x < math.inf for x in (*shares, *sigmas)) or not math.isclose(sum(shares), 1, rel_tol=1e-6):
        raise ValueError(f"shares and sigmas must be positive and finite, and shares sum to 1, got {shares}, {sigmas}")
    heights = [math.log(share / sigma) for share, sigma in zip(shares, sigmas, strict=True)]  # at 0, times root of 2 pi
    highest = math.log(sum(math.exp(height) for height in heights))

    def loss(output: Tensor, observed: Tensor) -> Tensor:
        _check_shapes(output, observed)
        square = (output - observed).square()
        parts = [height - square / (2 * sigma**2) for height, sigma in zip(heights, sigmas, strict=True)]
        return highest - torch.logsumexp(torch.stack(parts), 0).flatten(1).mean(1)

    return loss


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


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse,
    "l1": l1,
    "poisson": poisson,
    "gaussian_mixture": gaussian_mixture(*MIXTURE),
    "cosine": cosine,
}
SCALE_BLIND = frozenset({"cosine"})
COUNTING = frozenset({"poisson"})  # for what is at least 0; `fit` checks it once
