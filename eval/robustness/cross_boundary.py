"""The defence of Ding et al. (2021): reconstructions stitched in the classifier's decision space."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dipdefense.arguments import check_finite, check_integer
from dipdefense.defence.evidence import Classify, check_iterations, spread

__all__ = ["CrossBoundary"]


@dataclass(frozen=True)
class CrossBoundary:
    """Classify one image that is stitched together from points where the fit crosses the decision boundary.

    Consecutive reconstructions x_t, x_t+1 with different predicted labels enclose an image x_ob on the boundary, which
    is found by bisection and moved away from the input: x_ob + alpha (x_ob - x) / |x_ob - x|. The mean of the moved
    images is classified.

    Source: Ding et al. (2021), "Delving into deep image prior for adversarial defense: a novel reconstruction-based
        defense framework".
    Differs: written from the abstract alone. The number of reconstructions, the size of alpha, the plain mean as
        stitching, and the last reconstruction if no boundary is crossed are our choices.

    Args:
        iterations: at least two, as in `MeanSoftmax`.
        alpha: length of the move, Euclidean over the whole image, images in [0, 1].
        bisections: halvings of the segment between two reconstructions.

    Raises:
        ValueError: fewer than two iterations, or not rising; a negative alpha; bisections below 1.
    """

    iterations: tuple[int, ...] | None = None
    alpha: float = 0.5
    bisections: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", check_iterations(self.iterations))
        if self.iterations is not None and len(self.iterations) < 2:
            raise ValueError(f"iterations must be at least two, between which a boundary lies, got {self.iterations}")
        check_finite("alpha", self.alpha)
        if self.alpha < 0:
            raise ValueError(f"alpha must not be negative, got {self.alpha!r}")
        check_integer("bisections", self.bisections, 1)

    def iterations_of(self, fit_iterations: int) -> tuple[int, ...]:
        """The iterations whose reconstructions are stitched, for a fit of `fit_iterations`."""
        return spread(self.iterations, fit_iterations)

    def stitch(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """The stitched images for images (B, C, H, W) and their reconstructions (S, B, C, H, W), (B, C, H, W)."""
        labels = torch.stack([_labels(classify, frame) for frame in reconstructions])  # (S, B)
        total = torch.zeros_like(images)
        crossings = labels[1:] != labels[:-1]  # (S - 1, B)
        for step, crosses in enumerate(crossings):
            if crosses.any():
                before, after = reconstructions[step][crosses], reconstructions[step + 1][crosses]
                boundary = self._boundary(classify, before, after, labels[step][crosses])
                away = boundary - images[crosses]
                length = away.flatten(1).norm(dim=1).clamp_min(torch.finfo(away.dtype).tiny)
                total[crosses] += boundary + self.alpha * away / length[:, None, None, None]
        count = crossings.sum(0)[:, None, None, None]
        return torch.where(count > 0, total / count.clamp_min(1), reconstructions[-1]).clamp(0, 1)

    def _boundary(self, classify: Classify, before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
        """Images on the boundary, by bisection between images of these labels, (B,), and images of other labels."""
        for _ in range(self.bisections):
            middle = (before + after) / 2
            same = (_labels(classify, middle) == labels)[:, None, None, None]
            before, after = torch.where(same, middle, before), torch.where(same, after, middle)
        return (before + after) / 2


@torch.no_grad()
def _labels(classify: Classify, images: Tensor) -> Tensor:
    return classify(images).argmax(1)
