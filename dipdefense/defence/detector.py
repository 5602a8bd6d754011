"""A detection score for adversarial inputs, computed from the fit."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.arguments import check_finite
from dipdefense.defence.evidence import Evidence, check_iterations, disagreement

__all__ = ["Detector"]

BLOCK = 4  # side of a block in pixels
LEAST = 1e-3  # added to a probability before its logarithm, so that an overconfident classifier does not dominate


@dataclass(frozen=True)
class Detector:
    """Probability that an input is adversarial, by a logistic regression on features of its fit.

        p = sigmoid(bias + doubt c + early log r_t + late log r_T)

    c is -log of the mean probability that the reconstructions give to the bare prediction, and r_t is the mean squared
    difference of input and reconstruction at iteration t. The residual of a natural image keeps falling along a fit. A
    perturbation is like noise to the generator, so its part of the residual stays. With `quiet`, r_t is that quantile
    of the means over whole blocks of 4x4 pixels, so it measures the smoothest part of a photograph, where texture does
    not hide a perturbation.

    The settings hold for one fit (network, iterations, images). They are learnt on images that are used for no reported
    figure. A clean image with noise as strong as a perturbation gets as high a score. If the purification counts as the
    identity in a backward pass, the residual has no gradient.

    Source: our own.

    Raises:
        ValueError: not two rising iterations, a coefficient that is not finite, a quantile outside (0, 1].
    """

    iterations: tuple[int, int]  # t and T
    bias: float
    doubt: float
    early: float
    late: float
    quiet: float | None = None  # None for the mean over all pixels

    def __post_init__(self) -> None:
        checked = check_iterations(self.iterations)  # JSON has lists only
        if checked is None or len(checked) != 2:
            raise ValueError(f"iterations must be two, rising, got {self.iterations!r}")
        object.__setattr__(self, "iterations", checked)
        for name in ("bias", "doubt", "early", "late"):
            check_finite(name, getattr(self, name))
        if self.quiet is not None:
            check_finite("quiet", self.quiet)
            if not 0 < self.quiet <= 1:
                raise ValueError(f"quiet must be None or lie in (0, 1], got {self.quiet!r}")

    def __call__(self, evidence: Evidence) -> Tensor:
        """(B,) in [0, 1]; larger is more adversarial."""
        early, late = (self._left(evidence.residual[iteration]) for iteration in self.iterations)
        c = -torch.log(1 - disagreement(evidence.bare, evidence.along) + LEAST)
        tiny = torch.finfo(early.dtype).tiny
        early, late = early.clamp_min(tiny).log(), late.clamp_min(tiny).log()
        return torch.sigmoid(self.bias + self.doubt * c + self.early * early + self.late * late)

    def _left(self, residual: Tensor) -> Tensor:
        """(B, H, W) -> (B,)."""
        if self.quiet is None:
            return residual.flatten(1).mean(1)
        blocks = F.avg_pool2d(residual[:, None], [min(BLOCK, side) for side in residual.shape[1:]]).flatten(1)
        return blocks.kthvalue(math.ceil(self.quiet * blocks.shape[1]), dim=1).values
