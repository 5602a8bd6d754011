"""DeepFool, by torchattacks: step to the nearest boundary of the linearised classifier until the class changes."""

import math

import torch
from torch import Tensor, nn

from attacks.minimum_norm.correct_images import attack_correct, check_steps
from attacks.optional import torchattack

__all__ = ["deepfool"]


def deepfool(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 20,
    overshoot: float = 0.02,
    classes: int = 10,
    seed: int | None = 0,
) -> Tensor:
    """Step to the nearest boundary of the linearised classifier, until the class changes.

    Source: Moosavi-Dezfooli et al. (2016), "DeepFool: a simple and accurate method to fool deep neural networks",
        algorithm 2.
    Differs: torchattacks clips every iterate to [0, 1], which may leave it on the boundary itself, and overshoots at
        every step; the paper does so once, at the end. Here both are done. Images go through it one by one.

    Args:
        classifier: images -> logits (B, K), on the device of the images.
        images: (B, C, H, W), floating, in [0, 1].
        labels: (B,) int64, the true classes.
        steps: at most; each takes a gradient of every class that may be reached.
        overshoot: share by which each step is longer than the way to the boundary, and the result than their sum.
        classes: that may be reached, with the image's own: those with the highest logits at the image. The authors'
            code has 10 too.
        seed: of what the classifier draws from torch's global generator; `None` is fresh entropy.

    Returns:
        Adversarial images, detached, like `images`, in [0, 1]. An image that is misclassified already, or for which
        none was found, is returned as it is.

    Raises:
        TypeError: `images` are not floating or `labels` not int64.
        ValueError: any other argument breaks the rule stated above.
    """
    check_steps(steps=steps)
    if not 0 <= overshoot < math.inf:
        raise ValueError(f"overshoot must be finite and at least 0, got {overshoot}")
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")

    def search(images: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([_cross(classifier, image, steps, overshoot, classes) for image in images[:, None]])

    return attack_correct(classifier, images, labels, search, seed=seed)


def _cross(classifier: nn.Module, image: Tensor, steps: int, overshoot: float, classes: int) -> Tensor:
    """One image (1, C, H, W), which is classified correctly, beyond the nearest boundary; else some other image."""
    with torch.no_grad():
        order = classifier(image)[0].argsort(descending=True, stable=True)[:classes]
    attack = torchattack("DeepFool", _Among(classifier, order).eval(), image.device, steps=steps, overshoot=overshoot)
    found: Tensor = attack(image, torch.zeros_like(order[:1]))
    beyond = (image + (1 + overshoot) * (found - image)).clamp(0, 1)
    return torch.where(beyond.isnan(), image, beyond)


class _Among(nn.Module):
    """A classifier's logits of these classes alone, (B, len(classes)).

    Where all gradients are zero torchattacks divides by zero. The image of NaN that it makes is not shown to the
    classifier; class 0 loses there, which ends the search.
    """

    def __init__(self, classifier: nn.Module, classes: Tensor) -> None:
        super().__init__()
        self.classifier, self.classes = classifier, classes

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, len(classes))."""
        if images.isnan().any():
            return torch.arange(len(self.classes)).to(images).expand(len(images), -1)
        logits: Tensor = self.classifier(images)[:, self.classes]
        return logits
