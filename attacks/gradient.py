"""Gradient attacks through torchattacks that leave the classifier and the random state as they were."""

import contextlib
import functools
import io
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

try:
    import torchattacks
except ImportError as error:
    raise ImportError('attacks needs torchattacks: python -m pip install "dipdefense[eval]"') from error

from attacks.isolation import as_found
from attacks.momentum import MomentumPGD

__all__ = ["fgsm", "pgd", "momentum_pgd", "validate", "ATTACKS"]

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
    """Fast gradient sign method: one step of size `eps`, no random start.

    Arguments, result and errors are those of `pgd`, without `alpha` and `steps`; `norm` can only be "linf".
    `seed` matters only where the classifier itself draws from torch's global generator.

    Source: Goodfellow et al. (2015), "Explaining and harnessing adversarial examples", section 4.
    """
    validate(images, labels, eps=eps, norm=norm)
    if norm != "linf":
        raise ValueError(f"norm must be 'linf' for fgsm, got {norm!r}: pgd and momentum_pgd support it")
    build = functools.partial(torchattacks.FGSM, eps=eps)
    return _run(build, classifier, images, labels, eps=eps, targeted=targeted, seed=seed)


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
    targeted: bool = False,
    seed: int | None = 0,
) -> Tensor:
    """Projected gradient descent on the cross-entropy, in the classifier's evaluation mode.

    Source: Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks", section 2.1.
    Differs: torchattacks draws the random start for the whole batch, so that of an image depends on its place
        in it; that of `momentum_pgd` does not.

    Args:
        classifier: images -> logits (B, K), on the device of the images.
        images: (B, C, H, W), floating, in [0, 1].
        labels: (B,) int64, the true classes, or the classes to reach if `targeted`.
        eps: radius of the ball, in the unit of the images.
        norm: "linf" or "l2"; the L2 norm is that of a whole image.
        alpha: step size, in the unit of the images; `None` means eps / 4.
        steps: gradient steps.
        random_start: begin at a random point of the ball instead of at the images.
        targeted: descend towards `labels` instead of ascending away from them.
        seed: of all that is drawn, by a random classifier too; `None` is fresh entropy.

    Returns:
        Adversarial images, detached, like `images`; within the ball up to rounding, and within [0, 1].

    Raises:
        TypeError: `images` are not floating or `labels` not int64.
        ValueError: any other argument breaks the rule stated above.
    """
    validate(images, labels, eps=eps, norm=norm, alpha=alpha, steps=steps)
    tiny = torch.finfo(images.dtype).tiny  # the library's 1e-10 stalls where a confident gradient is as small
    attack = {"linf": torchattacks.PGD, "l2": functools.partial(_PGDL2, eps_for_division=tiny)}[norm]
    alpha = eps / 4 if alpha is None else alpha
    build = functools.partial(attack, eps=eps, alpha=alpha, steps=steps, random_start=random_start)
    return _run(build, classifier, images, labels, eps=eps, targeted=targeted, seed=seed)


def momentum_pgd(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    alpha: float | None = None,
    steps: int = 20,
    decay: float = 1.0,
    random_start: bool = False,
    targeted: bool = False,
    seed: int | None = 0,
) -> Tensor:
    """Iterative gradient attack with momentum, MI-FGSM; see `MomentumPGD`.

    Arguments, result and errors are those of `pgd`; `decay` (mu in the paper) must be at least 0.

    Source: Dong et al. (2018), "Boosting adversarial attacks with momentum", eq. (6)-(7).
    """
    validate(images, labels, eps=eps, norm=norm, alpha=alpha, steps=steps, decay=decay)
    build = functools.partial(
        MomentumPGD,
        eps=eps,
        alpha=eps / 4 if alpha is None else alpha,
        steps=steps,
        decay=decay,
        random_start=random_start,
        norm=norm,
        seed=seed,
    )
    return _run(build, classifier, images, labels, eps=eps, targeted=targeted, seed=seed)


# A caller that serves them all passes those of its keywords that are in the attack's signature.
ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd, "momentum_pgd": momentum_pgd}


class _PGDL2(torchattacks.PGDL2):  # type: ignore[misc]  # torchattacks is untyped
    """PGDL2 for any memory layout: the library views gradients as rows, which channels_last forbids."""

    def get_logits(self, inputs: Tensor) -> Tensor:
        logits: Tensor = super().get_logits(inputs.flatten(1).view_as(inputs))  # the gradient returns by rows
        return logits


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
    if (labels < 0).any():  # cross-entropy would skip -100 in silence
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


def _run(
    build: Callable[[nn.Module], torchattacks.attack.Attack],
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    targeted: bool,
    seed: int | None,
) -> Tensor:
    """Build the attack on `classifier` and run it; a ball of radius 0 holds only the images."""
    if eps == 0 or len(images) == 0:
        return images.detach().clone()
    with contextlib.redirect_stdout(io.StringIO()):  # torchattacks prints where there is no parameter
        attack = build(classifier)
    attack.set_device(images.device)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    with as_found(classifier, images.device, seed):
        adversarial: Tensor = attack(images.contiguous(), labels)
    return adversarial
