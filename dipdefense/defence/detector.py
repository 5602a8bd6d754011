"""A detection score for adversarial inputs, computed from the fit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dipdefense.arguments import check_finite, check_integer
from dipdefense.defence.evidence import Evidence, disagreement

__all__ = ["Detector", "log_detail"]

LEAST = 1e-3  # added before a logarithm: to a probability, and to detail, where it is a quarter of a grey level
MASK_NORM = 6  # of [1 -2 1; -2 4 -2; 1 -2 1], so that noise of standard deviation s is left as strong


@dataclass(frozen=True)
class Detector:
    """Probability that an input x is adversarial, by a logistic regression on features of its fit.

        p = sigmoid(bias + doubt c + left d(x - f_t) + drawn d(f_t))

    c is -log of the mean probability that the reconstructions give to the bare prediction, f_t is the reconstruction at
    iteration t, and d is its fine detail, `log_detail`. A generator draws a part of the detail of a natural image, and
    the more an image has, the more is left. A perturbation is like noise to it: it is left, and little of it is drawn.

    The settings hold for one fit (network, iterations, images). They are learnt on images that are used for no reported
    figure. A clean image with noise as strong as a perturbation gets as high a score.

    Source: our own; the detail that is left is a noise level as in Immerkaer (1996), of the residual of the fit.

    Raises:
        ValueError: an iteration below 1, a coefficient that is not finite.
    """

    iteration: int  # t
    bias: float
    doubt: float
    left: float
    drawn: float

    def __post_init__(self) -> None:
        check_integer("iteration", self.iteration, 1)
        for name in ("bias", "doubt", "left", "drawn"):
            check_finite(name, getattr(self, name))

    def __call__(self, evidence: Evidence) -> Tensor:
        """(B,) in [0, 1]; larger is more adversarial."""
        frames = evidence.scored[self.iteration]
        left, drawn = (log_detail(images).mean(0) for images in (evidence.images - frames, frames))
        c = -torch.log(1 - disagreement(evidence.bare, evidence.along) + LEAST)
        return torch.sigmoid(self.bias + self.doubt * c + self.left * left + self.drawn * drawn)


def log_detail(images: Tensor) -> Tensor:
    """How much fine detail or noise images have: (..., C, H, W) -> (...).

    The mean of log |N * x| over pixels and channels, where N = [1 -2 1; -2 4 -2; 1 -2 1] / 6 is the mask that leaves
    neither planes nor straight horizontal or vertical edges. The logarithm keeps a few sharp edges from dominating, as
    a median would, and it has a gradient at every pixel. Images of less than 3 pixels a side have no detail.

    Source: Immerkaer (1996), "Fast noise variance estimation", eq. (3).
    Differs: a geometric mean in place of the arithmetic one.
    """
    detail = images.diff(n=2, dim=-1).diff(n=2, dim=-2) if min(images.shape[-2:]) > 2 else torch.zeros_like(images)
    return (detail.abs() / MASK_NORM + LEAST).log().mean((-3, -2, -1))
