"""How adversarial an input looks, by its fit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dipdefense.looks import Looks, check_finite, check_iterations, contradiction

__all__ = ["Suspicion"]

LEAST = 1e-3  # added to a probability before its logarithm, so that a very sure classifier does not outvote the rest


@dataclass(frozen=True)
class Suspicion:
    """Probability that an input is adversarial, by a logistic regression on what its fit shows.

        p = sigmoid(bias + doubt c + early log r_t + late log r_T)

    c is -log of the mean probability that the looks along the fit give to the bare prediction, r_t the mean squared
    difference of input and reconstruction at iteration t. The residual of a natural image keeps falling along a fit;
    a perturbation is noise to the generator, and what it adds to the residual stays.

    The numbers hold for one fit (network, iterations, images) and are learnt on images that no figure comes from; a
    clean image with noise as strong as a perturbation looks just as suspicious. Where the purification counts as the
    identity, the residual has no gradient.

    Source: our own.

    Raises:
        ValueError: not two rising iterations, a number that is not finite.
    """

    iterations: tuple[int, int]  # t and T
    bias: float
    doubt: float
    early: float
    late: float

    def __post_init__(self) -> None:
        checked = check_iterations(self.iterations)  # JSON knows lists only
        if checked is None or len(checked) != 2:
            raise ValueError(f"iterations must be two, rising, got {self.iterations!r}")
        object.__setattr__(self, "iterations", checked)
        for name in ("bias", "doubt", "early", "late"):
            check_finite(name, getattr(self, name))

    def __call__(self, looks: Looks) -> Tensor:
        """(B,) in [0, 1]; larger is more adversarial."""
        early, late = (looks.residual[iteration] for iteration in self.iterations)
        c = -torch.log(1 - contradiction(looks.bare, looks.along) + LEAST)
        tiny = torch.finfo(early.dtype).tiny
        early, late = early.clamp_min(tiny).log(), late.clamp_min(tiny).log()
        return torch.sigmoid(self.bias + self.doubt * c + self.early * early + self.late * late)
