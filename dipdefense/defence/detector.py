"""A detection score for adversarial inputs, computed from the fit."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.arguments import check_finite, check_integer
from dipdefense.defence.evidence import Evidence, disagreement

__all__ = ["Detector", "log_detail"]

LEAST = 1e-3  # added before a logarithm: to a probability, and to detail, where it is a quarter of a grey level
BLOCK = 8  # side of a block in pixels
MASK_NORM = 6  # of [1 -2 1; -2 4 -2; 1 -2 1], so that noise of standard deviation s is left as strong


@dataclass(frozen=True)
class Detector:
    """Probability that an input x is adversarial, by a logistic regression on features of its fit.

        p = sigmoid(bias + doubt c + left d(x - f_t) + drawn d(f_t))

    c is -log of the mean probability that the reconstructions give to the bare prediction, f_t is the reconstruction at
    iteration t, and d is its fine detail, `log_detail`. A generator draws a part of the detail of a natural image, and
    the more an image has, the more is left. A perturbation is like noise to it: it is left, and little of it is drawn.
    With `quiet`, d is that quantile of the detail of blocks of 8x8 pixels, so it is that of the smoothest parts of a
    photograph, where texture does not hide a perturbation.

    The settings hold for one fit (network, iterations, images). `learn_detector` learns those of a fit of your own, on
    images that are used for no reported figure. A clean image with noise as strong as a perturbation gets as high a
    score.

    Source: our own; the detail that is left is a noise level as in Immerkaer (1996), of the residual of the fit.

    Raises:
        ValueError: an iteration below 1, a coefficient that is not finite, a quantile outside (0, 1].
    """

    iteration: int  # t
    bias: float
    doubt: float
    left: float
    drawn: float
    quiet: float | None = None  # None for the mean over all pixels

    def __post_init__(self) -> None:
        check_integer("iteration", self.iteration, 1)
        for name in ("bias", "doubt", "left", "drawn"):
            check_finite(name, getattr(self, name))
        if self.quiet is not None:
            check_finite("quiet", self.quiet)
            if not 0 < self.quiet <= 1:
                raise ValueError(f"quiet must be None or lie in (0, 1], got {self.quiet!r}")

    def __call__(self, evidence: Evidence) -> Tensor:
        """(B,) in [0, 1]; larger is more adversarial."""
        c, left, drawn = self.features(evidence)
        return torch.sigmoid(self.bias + self.doubt * c + self.left * left + self.drawn * drawn)

    def features(self, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
        """c, d(x - f_t) and d(f_t), each (B,); the coefficients do not matter."""
        frames = evidence.scored[self.iteration]
        left, drawn = (log_detail(images, self.quiet).mean(0) for images in (evidence.images - frames, frames))
        return -torch.log(1 - disagreement(evidence.bare, evidence.along) + LEAST), left, drawn


def log_detail(images: Tensor, quiet: float | None = None) -> Tensor:
    """How much fine detail or noise images have: (R, B, C, H, W) -> (R, B).

    The mean of log(|N * x| + 0.001) over pixels and channels, or that quantile of its mean over whole blocks of 8x8
    pixels, whose gradient is that of the two blocks next to the quantile. The mask
    N = [1 -2 1; -2 4 -2; 1 -2 1] / 6 leaves neither planes nor straight horizontal or vertical edges. The logarithm
    keeps a few sharp edges from dominating, as a median would, and it has a gradient at every pixel. Images of less
    than 3 pixels a side have no detail.

    Source: Immerkaer (1996), "Fast noise variance estimation", eq. (3).
    Differs: a geometric mean in place of the arithmetic one.
    """
    detail = images.diff(n=2, dim=-1).diff(n=2, dim=-2) if min(images.shape[-2:]) > 2 else torch.zeros_like(images)
    logs = (detail.abs() / MASK_NORM + LEAST).log().mean(-3)  # (R, B, H - 2, W - 2)
    if quiet is None or len(images[0]) == 0:  # torch has no quantile of no images
        return logs.mean((-2, -1))
    return F.avg_pool2d(logs, [min(BLOCK, side) for side in logs.shape[-2:]]).flatten(-2).quantile(quiet, -1)
