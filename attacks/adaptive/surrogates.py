"""Gradients that replace that of a fit: BPDA with a smooth surrogate, and the exact gradient of smoother fits.

Each is a `dipdefense.defence.gradients.Gradient`: DefendedClassifier(..., gradient=Blur(1.0)).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from dipdefense.defence.gradients import GRADIENTS, Fitted, Gradient, Unrolled
from dipdefense.fitting.unroll import pull_back

__all__ = ["SURROGATES", "Blur", "ShortFit", "Smoothed"]


@dataclass(frozen=True)
class Blur:
    """The purification counts as a Gaussian blur. Source: Athalye et al. (2018), section 4.1.2.

    Args:
        sigma: of the blur, in pixels.
    """

    sigma: float = 1.0

    def __call__(self, fitted: Fitted, cotangents: Tensor) -> Tensor:
        """See `Gradient`."""
        images = fitted.images.detach().requires_grad_()
        width = 2 * min(round(3 * self.sigma), min(images.shape[2:]) - 1) + 1
        with torch.enable_grad():
            blurred = gaussian_blur(images, [width, width], [self.sigma, self.sigma])
        (gradient,) = torch.autograd.grad(blurred, images, cotangents.sum(0))
        return gradient


@dataclass(frozen=True)
class ShortFit:
    """The purification counts as a fit of fewer iterations with the same seed, whose gradient is exact and cheaper.

    Args:
        iterations: of the short fit.
    """

    iterations: int = 30

    def __call__(self, fitted: Fitted, cotangents: Tensor) -> Tensor:
        """See `Gradient`."""
        iterations = min(self.iterations, fitted.config.iterations)
        config = replace(fitted.config, iterations=iterations, stopping="fixed", stopping_options={})
        return pull_back(fitted.images, {iterations: cotangents.sum(0)}, config, seed=fitted.seed)


@dataclass(frozen=True)
class Smoothed:
    """The mean of exact gradients of smoother fits: softplus activations, a larger Adam epsilon, noise, other seeds.

    A fit has kinks, so its gradient holds for changes of 1e-7 only. An attack needs the trend over its step.

    Args:
        sharpness: of the softplus that replaces the network's rectifier; None keeps the rectifier.
        adam_eps: added to the root of Adam's second moment, so that its steps are no longer signs; 1e-8 keeps it.
        sigma: std of the noise on the image, in its unit.
        samples: fits, the first with the defence's own seed, the others with further ones.
        last: how many of the last steps the gradient passes through; None: all.
    """

    sharpness: float | None = 5.0
    adam_eps: float = 1e-3
    sigma: float = 2 / 255
    samples: int = 2
    last: int | None = None

    def __call__(self, fitted: Fitted, cotangents: Tensor) -> Tensor:
        """See `Gradient`."""
        options = {**fitted.config.architecture_options, "sharpness": self.sharpness}
        config = replace(fitted.config, architecture_options=options)
        total = torch.zeros_like(fitted.images)
        for sample in range(self.samples):
            seed = fitted.seed + 1000 * sample
            noise = torch.randn(fitted.images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(total)
            images = fitted.images + self.sigma * noise
            unrolled = Unrolled(self.last, self.adam_eps)
            total += unrolled(fitted._replace(images=images, config=config, seed=seed), cotangents)
        return total / self.samples


SURROGATES: dict[str, Gradient] = {
    "straight_through": GRADIENTS["straight_through"],
    "blur": Blur(),
    "short_fit": ShortFit(),
    "unrolled": Unrolled(),
    "truncated": Unrolled(last=20),
    "smoothed": Smoothed(),
}
