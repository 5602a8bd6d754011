"""PGD on gradients that are estimated from scores, by natural evolution strategies."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.gradient import validate
from attacks.gradient_ascent import Rated, ascend
from attacks.isolation import as_found
from attacks.margin import margin

__all__ = ["SAMPLES", "nes", "estimate_gradient"]

SAMPLES = 50  # queries of one estimate


def nes(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    queries: int = 5000,
    samples: int = SAMPLES,
    sigma: float = 0.01,
    alpha: float | None = None,
    decay: float = 0.9,
    batch_size: int = 64,
    seed: int | None = 0,
) -> Tensor:
    """PGD that lowers the margin along estimated gradients; asks for logits only.

    Arguments, result and errors are those of `pgd`. An image that is misclassified, at first or after a step, is
    returned as it is then, without more queries; for the others, the iterate with the smallest margin is returned.

    Source: Ilyas et al. (2018), "Black-box adversarial attacks with limited queries and information", algorithm 1 and
        section 2.2; the running mean of gradients is that of their code.
    Differs: untargeted, on the margin of the logits in place of a target's probability, whose gradient vanishes with
        confidence. Images share the directions, so that none depends on its neighbours.

    Args:
        queries: most times that the classifier is asked about an image: once, then `samples` + 1 times a step.
        samples: queries of one estimate, even.
        sigma: std of the Gaussian, in the unit of the images; 0.001 in the paper, a scale at which a fit is not smooth.
        alpha: step size; `None` means eps / 4.
        decay: weight of the former gradients in the running mean, below 1.
        batch_size: most images that the classifier is given at a time.

    Raises:
        ValueError: also fewer queries than one step needs.
    """
    validate(images, labels, eps=eps, norm=norm, alpha=alpha, decay=decay)
    _validate(queries, samples, sigma, decay, batch_size)
    images = images.detach()
    if eps == 0 or len(images) == 0:
        return images.clone()
    steps = (queries - 1) // (samples + 1)

    def ask(points: Tensor) -> Tensor:
        return torch.cat([classifier(part) for part in torch.split(points, batch_size)])

    with as_found(classifier, images.device, seed) as seed, torch.no_grad():
        generator = torch.Generator().manual_seed(seed ^ 1)  # not the seed from which the classifier draws
        mean, left = torch.zeros_like(images), steps  # estimates that are left

        def objective(points: Tensor, index: Tensor) -> Rated:
            nonlocal left
            logits, truth = ask(points), labels[index]
            loss, standing = -margin(logits, truth), logits.argmax(1) == truth
            if standing.any() and left > 0:  # the last iterate needs no gradient
                left -= 1
                rows, asked = index[standing], truth[standing].repeat(samples)
                gradient = estimate_gradient(
                    lambda points: -margin(ask(points), asked),
                    points[standing],
                    samples=samples,
                    sigma=sigma,
                    generator=generator,
                )
                mean[rows] = decay * mean[rows] + (1 - decay) * gradient
            # an infinite success ends the attack on an image
            return Rated(loss, mean[index], torch.where(standing, loss, math.inf).to(images))

        adversarial, _ = ascend(objective, images, eps=eps, norm=norm, steps=steps, alpha=alpha)
    return adversarial


def estimate_gradient(
    score: Callable[[Tensor], Tensor], images: Tensor, *, samples: int, sigma: float, generator: torch.Generator
) -> Tensor:
    """Gradient of the score, smoothed by a Gaussian, from `samples` antithetic draws.

    Source: Ilyas et al. (2018), algorithm 1: g = 1 / (sigma n) sum_i delta_i F(x + sigma delta_i), with -delta for
        each delta.
    Differs: the points are clipped to [0, 1], which shortens the gradient of pixels near black or white.

    Args:
        score: (samples * B, C, H, W) -> (samples * B,), all images at the first point, then at the second.
        images: (B, C, H, W) in [0, 1].
        samples: even.
        sigma: std, in the unit of the images.
        generator: of the CPU; the directions are the same for all images.

    Returns:
        (B, C, H, W).
    """
    shape = (samples // 2, 1, *images.shape[1:])
    directions = torch.randn(shape, generator=generator, dtype=torch.float64).to(images)  # (S/2, 1, C, H, W)
    points = torch.cat([images + sigma * directions, images - sigma * directions]).clamp(0, 1)
    plus, minus = score(points.flatten(0, 1)).view(2, samples // 2, len(images))
    return torch.einsum("sb,schw->bchw", (plus - minus) / (sigma * samples), directions.squeeze(1))


def _validate(queries: int, samples: int, sigma: float, decay: float, batch_size: int) -> None:
    if samples < 2 or samples % 2:
        raise ValueError(f"samples must be even and at least 2, got {samples}")
    if queries < samples + 2:
        raise ValueError(f"queries must be at least samples + 2 = {samples + 2}, got {queries}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be finite and above 0, got {sigma}")
    if decay >= 1:
        raise ValueError(f"decay must be below 1, got {decay}: no new gradient would count")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
