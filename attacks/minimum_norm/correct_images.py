"""What all minimum-norm attacks do alike: they change the images that are classified correctly, or return them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.gradient import validate
from attacks.isolation import as_found

__all__ = ["attack_correct", "check_steps", "is_wrong"]

Search = Callable[[Tensor, Tensor], Tensor]  # images and labels that are right -> candidates, like the images


def attack_correct(
    classifier: nn.Module, images: Tensor, labels: Tensor, search: Search, *, seed: int | None
) -> Tensor:
    """Search for adversarial images of those that are right; an image whose search fails is returned as it is.

    Within `search` the classifier is in evaluation mode, and gradients are enabled.
    """
    validate(images, labels, eps=0, norm="l2")
    with as_found(classifier, images.device, seed):
        adversarial = images.detach().clone()
        right = ~is_wrong(classifier, adversarial, labels) if len(images) else labels.bool()
        if right.any():
            clean, own = adversarial[right].contiguous(), labels[right]
            found = search(clean, own)
            wrong = is_wrong(classifier, found, own).view(-1, 1, 1, 1)
            adversarial[right] = torch.where(wrong, found, clean)
    return adversarial


@torch.no_grad()
def is_wrong(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Which images are not classified as their labels, (B,)."""
    return classifier(images).argmax(1) != labels


def check_steps(**counts: int) -> None:
    """Raise unless each of these numbers of steps is at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
