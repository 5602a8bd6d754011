"""Gradient attacks that leave the classifier and the random state as they were: FGSM, and PGD in its variants."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.gradient_ascent import Objective, Rated, ascend
from attacks.gradient_ascent import random_start as _random_start
from attacks.isolation import as_found
from attacks.margin import margin
from attacks.optional import torchattack
from attacks.views import Views, flipped, itself, resized

__all__ = [
    "fgsm",
    "pgd",
    "bim",
    "momentum_pgd",
    "pgd_flip",
    "momentum_pgd_flip",
    "pgd_di",
    "rate",
    "validate",
    "ATTACKS",
    "NORMS_OF",
]

NORMS = ("linf", "l2")


def fgsm(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    targeted: bool = False,
    seed: int | None = 0,
) -> Tensor:
    """Fast gradient sign method, by torchattacks: one step of size `eps`, no random start.

    Arguments, result and errors are those of `pgd`, without `alpha` and `steps`; `norm` can only be "linf".
    `seed` matters only where the classifier itself draws from torch's global generator.

    Source: Goodfellow et al. (2015), "Explaining and harnessing adversarial examples", section 4.
    """
    validate(images, labels, eps=eps, norm=norm)
    if norm != "linf":
        raise ValueError(f"norm must be 'linf' for fgsm, got {norm!r}: pgd and momentum_pgd support it")
    if eps == 0 or len(images) == 0:
        return images.detach().clone()
    attack = torchattack("FGSM", classifier, images.device, eps=eps)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    with as_found(classifier, images.device, seed):
        adversarial: Tensor = attack(images.contiguous(), labels)
    return adversarial


def pgd(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    alpha: float | None = None,
    steps: int = 20,
    random_start: bool = True,
    decay: float | None = None,
    targeted: bool = False,
    views: Views = itself,
    seed: int | None = 0,
) -> Tensor:
    """Projected gradient descent on the cross-entropy, in the classifier's evaluation mode; the best iterate is kept.

    The best iterate is the one that the classifier gets wrong by the largest margin. On a rough loss this need not be
    the last one.

    Source: Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks", section 2.1.
    Differs: the best iterate is returned in place of the last.

    Args:
        classifier: images -> logits (B, K), on the device of the images.
        images: (B, C, H, W), floating, in [0, 1].
        labels: (B,) int64, the true classes, or the classes to reach if `targeted`.
        eps: radius of the ball, in the unit of the images.
        norm: "linf" or "l2"; the L2 norm is that of a whole image.
        alpha: step size, in the unit of the images; `None` means eps / 4.
        steps: gradient steps.
        random_start: begin at a random point of the ball, a function of the image and the seed, not at the image.
        decay: of the accumulated gradient (mu of Dong et al. 2018), at least 0; `None` means no momentum.
        targeted: descend towards `labels` instead of ascending away from them.
        views: what the classifier is shown of an image at every step; losses and margins are means over the views.
        seed: of everything that is drawn, also by a random classifier; `None` is fresh entropy.

    Returns:
        Adversarial images, detached, like `images`; within the ball and within [0, 1].

    Raises:
        TypeError: `images` are not floating or `labels` not int64.
        ValueError: any other argument breaks the rule stated above.
    """
    validate(images, labels, eps=eps, norm=norm, alpha=alpha, steps=steps, decay=0.0 if decay is None else decay)
    images = images.detach()
    if eps == 0 or len(images) == 0:
        return images.clone()  # a ball of radius 0 holds only the images
    step = {"rule": "pgd"} if decay is None else {"rule": "momentum", "decay": decay}
    with as_found(classifier, images.device, seed) as seed:
        images, labels = images.clone(), labels.clone()  # tensors of the inference mode have no gradient
        start = _random_start(images, eps=eps, norm=norm, seed=seed) if random_start else images
        objective = rate(classifier, labels, targeted=targeted, views=views, seed=seed)
        best, _ = ascend(objective, images, eps=eps, norm=norm, steps=steps, alpha=alpha, start=start, **step)
    return best


bim = partial(pgd, random_start=False)
"""`pgd` from the image itself, the basic iterative method.

Source: Kurakin et al. (2017), "Adversarial examples in the physical world", section 2.2.
Differs: the step size is that of `pgd`, and the best iterate is returned in place of the last.
"""

momentum_pgd = partial(pgd, decay=1.0, random_start=False)
"""`pgd` along the accumulated gradient, MI-FGSM, from the image itself.

Source: Dong et al. (2018), "Boosting adversarial attacks with momentum", eq. (6)-(7).
Differs: each step is projected on the ball, and the best iterate is returned in place of the last.
"""

pgd_flip = partial(pgd, views=flipped)
"""`pgd` on an image and its mirror image at once: a guess of a common augmentation, without knowledge of a defence."""

momentum_pgd_flip = partial(momentum_pgd, views=flipped)
"""`momentum_pgd` on an image and its mirror image at once."""

pgd_di = partial(pgd, views=resized)
"""`pgd` with diverse inputs: on an image and three randomly resized and padded copies of it at once.

Source: Xie et al. (2019), "Improving transferability of adversarial examples with input diversity", section 3.3.
Differs: at every step the loss is the mean over the image and three random copies; the paper takes one of them.
"""

NORMS_OF: dict[str, tuple[str, ...]] = {"fgsm": ("linf",)}  # of the attacks that do not have both norms

# A caller that runs any of them passes those of its keywords that are in the signature of the attack.
ATTACKS: dict[str, Callable[..., Tensor]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "bim": bim,
    "momentum_pgd": momentum_pgd,
    "pgd_flip": pgd_flip,
    "momentum_pgd_flip": momentum_pgd_flip,
    "pgd_di": pgd_di,
}


def rate(
    classifier: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    targeted: bool = False,
    views: Views = itself,
    seed: int = 0,
) -> Objective:
    """What PGD ascends: the mean cross-entropy over the views of an image, success being the mean lost margin.

    Args:
        classifier: images -> logits (B, K).
        labels: (B,) true classes, or the classes to reach if `targeted`.
        targeted: descend the cross-entropy, and count the margin by which the target is ahead.
        views: what the classifier is shown of an image at every step.
        seed: of what the views draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def objective(images: Tensor, index: Tensor) -> Rated:
        point = images.detach().clone().requires_grad_()
        logits = [classifier(view) for view in views(point, generator)]
        sign, target = (-1 if targeted else 1), labels[index]
        loss = sign * _mean([F.cross_entropy(each, target, reduction="none") for each in logits])
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        return Rated(loss.detach(), gradient, -sign * _mean([margin(each.detach(), target) for each in logits]))

    return objective


def validate(
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str,
    alpha: float | None = None,
    steps: int = 1,
    decay: float = 0.0,
) -> None:
    """Raise unless the arguments keep the rules stated in `pgd` and `momentum_pgd`."""
    if not images.is_floating_point():
        raise TypeError(f"images must be floating, got {images.dtype}: divide uint8 images by 255")
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got shape {tuple(images.shape)}")
    if not ((images >= 0) & (images <= 1)).all():  # NaN fails both
        raise ValueError(f"images must lie in [0, 1], got values from {images.min()} to {images.max()}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be ({len(images)},), one per image, got shape {tuple(labels.shape)}")
    if labels.device != images.device:
        raise ValueError(f"labels must be on the device of the images, {images.device}, got {labels.device}")
    if (labels < 0).any():  # cross-entropy would silently skip -100
        raise ValueError(f"labels must be at least 0, got {labels.min()}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be finite and above 0, got {alpha}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= decay < math.inf:
        raise ValueError(f"decay must be finite and at least 0, got {decay}")


def _mean(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rows)).mean(0)
