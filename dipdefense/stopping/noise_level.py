"""Rules that know the standard deviation of Gaussian noise in the observed image."""

import torch
from torch import Tensor

from dipdefense.arguments import check_positive
from dipdefense.stopping.rule import Iterate, LeastStatistic, Threshold

__all__ = ["Discrepancy", "Sure"]


class Discrepancy(Threshold):
    """Done as soon as the fit is as close to the observed image as the clean one is: mean |A x - y|^2 <= f sigma^2.

    All observed values count, so the rule does not suit a loss that leaves some of them out.

    Source: Morozov (1966), the discrepancy principle.

    Args:
        sigma: standard deviation of the noise, in [0, 1] units such as 25 / 255.
        factor: f.

    Raises:
        ValueError: sigma missing or outside (0, 1], a factor that is not positive.
    """

    def __init__(self, sigma: float | None = None, factor: float = 1.0):
        check_positive("factor", factor)
        super().__init__(factor * _checked_sigma(sigma) ** 2)

    def statistic(self, iterate: Iterate) -> Tensor:
        """Mean squared error of each image, (B,)."""
        return (iterate.fitted - iterate.observed).square().flatten(1).mean(1)


class Sure(LeastStatistic):
    """Choose the iterate of the smallest estimated risk. For the estimate, known noise b is added to what is fitted.

    With y' = y + tau b, b standard normal, s^2 = sigma^2 + tau^2 and N values,

        SURE = 1/N |y' - x|^2 - s^2 + 2 s^2 div,   div = <x - y, b> / (tau N),

    and E[SURE] = E[1/N |x - clean|^2]: by Stein's lemma E<x, b> / tau is the divergence of y' -> x. Since y is
    independent of b, subtracting it from x keeps the expectation and lowers the variance.

    Source: Stein (1981), "Estimation of the mean of a multivariate normal distribution"; Ramani, Blu, Unser (2008),
    "Monte-Carlo SURE", for a divergence from a random probe.
    Differs: the published probe is a second fit, of y + tau b. Here the only fit is given this noise, so its noise
    level is s instead of sigma. The estimate is smoothed along the fit.

    Args:
        sigma: standard deviation of the Gaussian noise in `observed`, in [0, 1] units such as 25 / 255.
        probe: tau / sigma.
        rate: weight of the newest estimate, in (0, 1].
        patience: iterations without a smaller estimate.

    Raises:
        ValueError: sigma missing or outside (0, 1], a probe that is not positive, a rate outside (0, 1], patience
            below 1.
    """

    def __init__(self, sigma: float | None = None, probe: float = 0.5, rate: float = 0.1, patience: int = 200):
        super().__init__(patience, rate)
        check_positive("probe", probe)
        self.sigma = _checked_sigma(sigma)
        self.tau = probe * self.sigma

    def prepare(self, observed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Add the noise, the same to all images."""
        b = torch.randn(observed.shape[1:], generator=generator, dtype=observed.dtype, device="cpu")
        self.b = b.to(observed.device)
        return observed + self.tau * self.b, None

    def statistic(self, iterate: Iterate) -> Tensor:
        """SURE of each image, (B,)."""
        variance = self.sigma**2 + self.tau**2
        residual = iterate.fitted - iterate.observed
        error = (residual - self.tau * self.b).square().flatten(1).mean(1)
        divergence = (residual * self.b).flatten(1).mean(1) / self.tau
        return error - variance + 2 * variance * divergence


def _checked_sigma(sigma: float | None) -> float:
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma <= 1:
        raise ValueError(f"sigma must be given in [0, 1] units such as 25/255 and be positive, got {sigma!r}")
    return sigma
