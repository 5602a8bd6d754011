"""The attack of Szegedy et al. with L-BFGS-B of scipy, one image at a time."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from attacks.minimum_norm.correct_images import attack_correct, check_steps, is_wrong
from attacks.optional import library

__all__ = ["lbfgs"]


def lbfgs(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 20,
    search_steps: int = 10,
    c: float = 1.0,
    seed: int | None = 0,
) -> Tensor:
    """Minimise c |delta|^2 + cross-entropy towards the likeliest wrong class, for the largest c that succeeds.

    Arguments that are not named here, result and errors are those of `deepfool`.

    Source: Szegedy et al. (2014), "Intriguing properties of neural networks", section 4.1.
    Differs: the target is the class with the second highest logit, not a random one, and any change of the class
        counts.

    Args:
        steps: of L-BFGS, at most, for each constant.
        search_steps: constants that are tried for each image: tenfold up or down until both a success and a failure
            are known, then their geometric mean.
        c: the constant that is tried first.
    """
    check_steps(steps=steps, search_steps=search_steps)
    if not 0 < c < math.inf:
        raise ValueError(f"c must be finite and above 0, got {c}")

    def search(images: Tensor, labels: Tensor) -> Tensor:
        pairs = zip(images[:, None], labels[:, None], strict=True)
        return torch.cat([_nearest(classifier, image, label, steps, search_steps, c) for image, label in pairs])

    return attack_correct(classifier, images, labels, search, seed=seed)


def _nearest(
    classifier: nn.Module, image: Tensor, label: Tensor, steps: int, search_steps: int, constant: float
) -> Tensor:
    """The nearest misclassified image, (1, C, H, W), over the constants; the image itself if there is none."""
    with torch.no_grad():
        target = classifier(image).scatter(1, label[:, None], -math.inf).argmax(1)
    best, least, succeeds, fails = image, math.inf, 0.0, math.inf
    for _ in range(search_steps):
        found = _minimise(classifier, image, target, steps, constant)
        if is_wrong(classifier, found, label).item():
            succeeds, length = constant, torch.linalg.vector_norm(found - image).item()
            best, least = (found, length) if length < least else (best, least)
        else:
            fails = constant
        bracketed = succeeds > 0 and fails < math.inf
        constant = math.sqrt(succeeds * fails) if bracketed else succeeds * 10 or fails / 10
    return best


def _minimise(classifier: nn.Module, image: Tensor, target: Tensor, steps: int, constant: float) -> Tensor:
    """The minimiser for one constant, like `image`, (1, C, H, W)."""

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        point = torch.from_numpy(values).view_as(image).to(image).requires_grad_()
        value = constant * (point - image).square().sum() + F.cross_entropy(classifier(point), target)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.double().flatten().cpu().numpy()

    start = image.double().flatten().cpu().numpy()
    bounds, options = [(0, 1)] * len(start), {"maxiter": steps}
    result = library("scipy.optimize").minimize(
        loss, start, method="L-BFGS-B", jac=True, bounds=bounds, options=options
    )
    return torch.from_numpy(result.x).view_as(image).to(image)
