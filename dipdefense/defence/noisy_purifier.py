"""One vote of a smoothed classifier as a purifier: noise, then the fit."""

import secrets
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dipdefense.arguments import check_positive
from dipdefense.defence.purifier import Purifier
from dipdefense.defence.smoothing import gaussian_draws
from dipdefense.fitting.config import FitConfig

__all__ = ["NoisyPurifier"]


class NoisyPurifier(Purifier):
    """Adds Gaussian noise to an image, clips to [0, 1], and purifies the result; the seed draws noise and fit.

    A `DefendedClassifier` with it and with the decision of `smoothing_defence_for` is one vote of
    `dipdefense.smooth`, or the mean of as many as the decision has restarts. Attacks and evaluations that know a
    `DefendedClassifier` can so attack a smoothed one. In a backward pass noise and clipping count as the identity.

    Args:
        sigma: standard deviation of the noise, images in [0, 1].
        config: as in `Purifier`; `smoothing_defence_for` has those that were chosen for a sigma.
        seed: of noise and fit; None for fresh entropy at every call. The noise of an image depends on the seed, the
            restart and the image's pixels.
        arguments: further ones of `Purifier`.

    Raises:
        TypeError, ValueError: as `Purifier`; a sigma that is not positive.
    """

    def __init__(self, sigma: float, config: FitConfig | None = None, *, seed: int | None = None, **arguments: Any):
        super().__init__(config, seed=seed, **arguments)
        check_positive("sigma", sigma)
        self.sigma = sigma

    def frames(self, images: Tensor, iterations: Sequence[int] | None, *, restart: int = 0, **options: Any) -> Tensor:
        """See `Purifier.frames`."""
        seed = secrets.randbits(32) if self.seed is None else self.seed
        copies = images.detach().clone()
        for copy in copies:
            copy += self.sigma * gaussian_draws(copy, seed, range(restart, restart + 1))[0]
        noisy = copies.clamp(0, 1) + (images - images.detach())  # the values of the first, the gradient of the second
        return super(NoisyPurifier, self.variant(seed=seed)).frames(noisy, iterations, restart=restart, **options)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"sigma={self.sigma}, {super().extra_repr()}"
