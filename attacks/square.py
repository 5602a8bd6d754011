"""Square attack, through the package of its authors: random squares, kept where they lower the margin."""

import torch
from torch import Tensor, nn

from attacks.ball import project
from attacks.gradient import validate
from attacks.isolation import as_found
from attacks.optional import library

__all__ = ["LOOKS", "NORMS", "Asked", "check_tiles", "square"]

NORMS = {"linf": "Linf", "l2": "L2"}  # our names and the package's
LOOKS = 3  # queries besides the squares: the image, the stripes that it starts from, the result


def square(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    queries: int = 5000,
    seed: int | None = 0,
) -> Tensor:
    """Random search with squares that shrink; asks for logits only, and no longer once an image is misclassified.

    Arguments, result and errors are those of `pgd`, without `alpha` and `steps`. Images that are misclassified
    already, and those that withstand, are returned as they are.

    Source: Andriushchenko et al. (2020), "Square Attack: a query-efficient black-box adversarial attack via random
        search", algorithms 1 to 3.
    Differs: pyautoattack draws jointly for all images that still stand, so the result of an image depends on its
        neighbours; and it computes in float32, so that images of other types are rounded to it.

    Args:
        queries: at least 4; most times that the classifier is asked about an image. The squares
            shrink on AutoAttack's schedule, whatever `queries`.

    Raises:
        ValueError: also images whose sides pyautoattack's tiles do not fit, in l2.
    """
    validate(images, labels, eps=eps, norm=norm)
    if queries <= LOOKS:
        raise ValueError(f"queries must be at least {LOOKS + 1}, got {queries}")
    check_tiles(images, norm)
    images = images.detach()
    if eps == 0 or len(images) == 0:
        return images.clone()
    with as_found(classifier, images.device, seed) as seed, torch.no_grad():
        attack = library("pyautoattack.square").SquareAttack(
            Asked(classifier, images.dtype),
            norm=NORMS[norm],
            eps=eps,
            n_queries=queries - LOOKS,
            p_init=0.8,
            resc_schedule=False,
            seed=seed,
            device=images.device,
        )
        adversarial: Tensor = attack.perturb(images.float().contiguous(), labels)
    return project(adversarial, images, eps, norm)


class Asked(nn.Module):
    """A classifier as pyautoattack needs it: float32 in and out, logits that it may write to, and no ties.

    Square counts a tie neither as broken nor as standing, and fails in l2 if only ties are left. Here the class that
    argmax names is ahead by a rounding error.
    """

    def __init__(self, classifier: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.classifier, self.dtype = classifier, dtype
        self.training = classifier.training

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> logits (B, K) float32; the gradient is the classifier's."""
        logits: Tensor = self.classifier(images.to(self.dtype)).float()
        with torch.no_grad():
            highest, predicted = logits.max(1, keepdim=True)
            tied = (logits == highest).sum(1, keepdim=True) > 1
            limits = torch.finfo(logits.dtype)
            ahead = torch.where(tied, 2 * limits.eps * highest.abs() + limits.tiny, 0)
            ahead = torch.zeros_like(logits).scatter(1, predicted, ahead)
        return logits + ahead


def check_tiles(images: Tensor, norm: str) -> None:
    """Raise unless the tiles of a fifth of the height, which Square begins with in l2, lie within the image."""
    height, width = images.shape[2:]
    tile = height // 5
    start = (height - 5 * tile) // 2
    fits = tile == 1 or (tile > 1 and all(start + side // tile * tile <= side for side in (height, width)))
    if norm == "l2" and not fits:
        raise ValueError(
            f"images must have sides that Square's l2 tiles of a fifth of the height fit, got {height}x{width}: "
            "use linf, or resize to a multiple of 5"
        )
