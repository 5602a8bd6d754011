"""The meanings that a backward pass through a purification can have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.unroll import pull_back

__all__ = ["GRADIENTS", "Fitted", "Gradient", "Unrolled", "known_gradient", "purification"]


class Fitted(NamedTuple):
    """A finished fit: everything that its gradient depends on."""

    images: Tensor  # (B, C, H, W) that were fitted
    config: FitConfig
    seed: int  # the seed that was used, given or drawn
    iterations: Tensor  # (T, B), the iteration of each frame


# (a fit, cotangents of its frames (T, B, C, H, W)) -> derivative with respect to its images, (B, C, H, W)
Gradient = Callable[[Fitted, Tensor], Tensor]


def straight_through(fitted: Fitted, cotangents: Tensor) -> Tensor:
    """The purification counts as the identity. Source: Athalye et al. (2018), section 4.1.2 (BPDA)."""
    return cotangents.sum(0)


def no_gradient(fitted: Fitted, cotangents: Tensor) -> Tensor:
    """Raise, since an attack without a gradient would fail for the wrong reason."""
    raise RuntimeError(
        'this purification has no gradient (gradient="none"): an attack on it would see nothing and the defence '
        'would look strong; use gradient="straight_through" or "unrolled"'
    )


@dataclass(frozen=True)
class Unrolled:
    """The derivative of the fit itself, through its steps; see `dipdefense.fitting.unroll`.

    It is exact at a point. The fit is only piecewise smooth, so the gradient may say little about a change as large as
    an attack's step; docs/robustness.md has measurements.

    Args:
        last: number of steps before each frame that the gradient passes through; None: all of them.
        adam_eps: added to the root of Adam's second moment. A larger value than in the fit gives the gradient of a
            smoother fit.
    """

    last: int | None = None
    adam_eps: float = 1e-8

    def __call__(self, fitted: Fitted, cotangents: Tensor) -> Tensor:
        """See `Gradient`."""
        pulled: dict[int, Tensor] = {}
        for chosen, cotangent in zip(fitted.iterations, cotangents, strict=True):
            for iteration in chosen.unique().tolist():
                mine = torch.where((chosen == iteration)[:, None, None, None], cotangent, 0)
                if mine.any():  # frames without a cotangent are skipped
                    pulled[iteration] = pulled.get(iteration, 0) + mine
        total = torch.zeros_like(fitted.images)
        for frames in [pulled] if self.last is None else [{i: cotangent} for i, cotangent in pulled.items()]:
            if frames:
                total += pull_back(
                    fitted.images, frames, fitted.config, seed=fitted.seed, last=self.last, adam_eps=self.adam_eps
                )
        return total


GRADIENTS: dict[str, Gradient] = {
    "straight_through": straight_through,
    "unrolled": Unrolled(),
    "none": no_gradient,
}


def known_gradient(gradient: str | Gradient) -> Gradient:
    """The gradient of that name in `GRADIENTS`, or the callable itself."""
    if callable(gradient):
        return gradient
    if not isinstance(gradient, str) or gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)}, or a callable, got {gradient!r}")
    return GRADIENTS[gradient]


def purification(images: Tensor, frames: Tensor, fitted: Fitted, gradient: str | Gradient) -> Tensor:
    """The frames (T, B, C, H, W) of a fit to images (B, C, H, W), with the given meaning of a backward pass."""
    passed: Tensor = _Purification.apply(images, frames, fitted, known_gradient(gradient))
    return passed


class _Purification(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, frames: Tensor, fitted: Fitted, gradient: Gradient) -> Tensor:
        ctx.fitted, ctx.gradient = fitted, gradient
        return frames.view_as(frames)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangents: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = ctx.gradient(ctx.fitted, cotangents)
        shape = tuple(ctx.fitted.images.shape)
        if not isinstance(gradient, Tensor) or gradient.shape != shape:
            got = tuple(gradient.shape) if isinstance(gradient, Tensor) else type(gradient).__name__
            raise ValueError(f"gradient must return the derivative with respect to the images, {shape}, got {got}")
        return gradient, None, None, None
