"""The L2 attack of Carlini and Wagner: Adam in the space of tanh, and a search for each image's constant."""

import math

import torch
from torch import Tensor, nn

from attacks.margin import margin
from attacks.minimum_norm.correct_images import attack_correct, check_steps

__all__ = ["carlini_wagner"]

INSIDE = 1 - 1e-3  # images shrink by it round 0.5 first: at 0 and 1 tanh has no slope


def carlini_wagner(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    search_steps: int = 6,
    lr: float = 0.1,
    c: float = 0.1,
    seed: int | None = 0,
) -> Tensor:
    """Minimise |delta|^2 + c max(margin, 0) by Adam in the space of tanh, for the best c of each image.

    Arguments that are not named here, result and errors are those of `deepfool`. It is not that of torchattacks, which
    has one c for all images, cannot move values of 0 and 1, takes a logit below 0 for 0, and ends a batch as soon as
    its total loss rises.

    Source: Carlini and Wagner (2017), "Towards evaluating the robustness of neural networks", section VI.A, f_6.
    Differs: 100 steps, of a size that falls from 0.1 to 0, for each of 6 constants; the authors take 10,000 steps of
        0.01 for each of 20. The search begins up to 0.0005 from the image, off 0 and 1.

    Args:
        steps: of Adam, for each constant.
        search_steps: constants that are tried for each image: tenfold until one succeeds, then by bisection.
        lr: step size of Adam, which falls to 0 along a cosine.
        c: the constant that is tried first.
    """
    check_steps(steps=steps, search_steps=search_steps)
    for name, value in {"lr": lr, "c": c}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {value}")

    def search(images: Tensor, labels: Tensor) -> Tensor:
        best, least = images, torch.full_like(images[:, 0, 0, 0], math.inf)
        constant, low, high = torch.full_like(least, c), torch.zeros_like(least), torch.full_like(least, math.inf)
        for _ in range(search_steps):
            found, squared = _descend(classifier, images, labels, constant, steps, lr)
            best = torch.where((squared < least).view(-1, 1, 1, 1), found, best)
            least = torch.minimum(squared, least)
            succeeded = squared.isfinite()
            high, low = torch.where(succeeded, constant, high), torch.where(succeeded, low, constant)
            constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)
        return best

    return attack_correct(classifier, images, labels, search, seed=seed)


def _descend(
    classifier: nn.Module, images: Tensor, labels: Tensor, constant: Tensor, steps: int, lr: float
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified iterate of each image, and its squared distance, (B,): `inf` where there is none."""
    w = torch.atanh(INSIDE * (2 * images - 1)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, least = images, torch.full_like(constant, math.inf)
    for _ in range(steps):
        point = (w.tanh() + 1) / 2
        logits, squared = classifier(point), (point - images).square().sum((1, 2, 3))
        loss = squared + constant * margin(logits, labels).clamp_min(0)
        (w.grad,) = torch.autograd.grad(loss.sum(), w)
        optimizer.step()
        schedule.step()
        nearer = (logits.argmax(1) != labels) & (squared < least)
        best = torch.where(nearer.view(-1, 1, 1, 1), point, best).detach()
        least = torch.where(nearer, squared, least).detach()
    return best, least
