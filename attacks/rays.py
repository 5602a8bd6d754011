"""RayS: the nearest adversarial image along a ray of signs, found from predicted classes alone."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.ball import project
from attacks.gradient import validate
from attacks.isolation import as_found

__all__ = ["rays"]


def rays(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    queries: int = 5000,
    tolerance: float = 1e-4,
    seed: int | None = 0,
) -> Tensor:
    """Flip the signs of ever smaller blocks of a direction wherever that brings the decision boundary nearer.

    Arguments, result and errors are those of `pgd`, without `alpha` and `steps`; `norm` can only be "linf". Nothing
    is drawn: `seed` matters only where the classifier draws. An image that is misclassified already is returned as it
    is. If the boundary of an image is out of reach, the point at `eps` along its best direction is returned. Queries
    for an image end once its boundary is within `eps`, or when no flip of a single value brings it nearer.

    Source: Chen and Gu (2020), "RayS: a ray searching method for hard-label adversarial attack", algorithms 1 to 3.
    Differs: a radius is measured in Linf, so directions are not divided by their L2 norm.

    Args:
        queries: most times that the classifier is asked about an image.
        tolerance: width at which a binary search ends, in the unit of the images; 1e-3 in L2 in the authors' code.
    """
    validate(images, labels, eps=eps, norm=norm)
    if norm != "linf":
        raise ValueError(f"norm must be 'linf' for rays, got {norm!r}: square and nes support it")
    if queries < 1:
        raise ValueError(f"queries must be at least 1, got {queries}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be finite and above 0, got {tolerance}")
    images = images.detach()
    if eps == 0 or len(images) == 0:
        return images.clone()
    with as_found(classifier, images.device, seed), torch.no_grad():
        return _search(_Boundary(classifier, images, labels, queries, tolerance), eps)


class _Boundary:
    """The decision boundary around images, and how often the classifier was asked about each."""

    def __init__(
        self, classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, queries: int, tolerance: float
    ) -> None:
        self.classifier, self.images, self.labels = classifier, images, labels
        self.queries, self.tolerance = queries, tolerance
        self.asked = torch.zeros_like(labels)

    def point(self, rows: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
        """The images of these rows, moved by `radius` along their rays and clipped."""
        images, radius = self.images[rows], radius.view(-1, 1, 1, 1)
        return project(images + radius * signs, images, radius, "linf")

    def crossed(self, rows: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
        """Which of these images are misclassified there, (len(rows),): one query each."""
        if len(rows) == 0:
            return torch.zeros_like(rows, dtype=torch.bool)
        self.asked[rows] += 1
        predicted = self.classifier(self.point(rows, signs, radius)).argmax(1)
        return predicted != self.labels[rows]

    def affordable(self, rows: Tensor) -> Tensor:
        """Those of the rows that have queries left."""
        return rows[self.asked[rows] < self.queries]

    def nearer(self, rows: Tensor, signs: Tensor, radius: Tensor, eps: float) -> Tensor:
        """Radius of the boundary along each of all rays, where it is below `radius`, else `radius` (algorithm 2).

        Only `rows` are searched; a search ends as well where it is within `eps`.
        """
        low, high = torch.zeros_like(radius), radius.clamp(max=1)  # at radius 1 every value is clipped
        found = rows[self.crossed(rows, signs[rows], high[rows])]
        while True:
            wide = (high - low > self.tolerance) & (high > eps)
            rows = self.affordable(found[wide[found]])
            if len(rows) == 0:
                break
            middle = (low[rows] + high[rows]) / 2
            crossed = self.crossed(rows, signs[rows], middle)
            high[rows[crossed]] = middle[crossed]
            low[rows[~crossed]] = middle[~crossed]
        result = radius.clone()
        result[found] = high[found]
        return result


def _search(boundary: _Boundary, eps: float) -> Tensor:
    """Hierarchical search over the signs (algorithms 1 and 3)."""
    images = boundary.images
    count, size = len(images), images[0].numel()
    everyone = torch.arange(count, device=images.device)
    signs = torch.ones_like(images).flatten(1)
    radius = torch.full((count,), math.inf, dtype=torch.float64, device=images.device)
    radius[boundary.crossed(everyone, signs.view_as(images), torch.zeros_like(radius))] = 0
    active, block = radius > eps, size
    while active.any():
        before = radius.clone()
        for start in range(0, size, block):
            rows = boundary.affordable((radius > eps).logical_and(active).nonzero().squeeze(1))
            if len(rows) == 0:
                break
            attempt = signs.clone()
            attempt[:, start : start + block] *= -1
            found = boundary.nearer(rows, attempt.view_as(images), radius, eps)
            better = found < radius
            signs[better], radius[better] = attempt[better], found[better]
        active &= (radius > eps) & (boundary.asked < boundary.queries)
        if block == 1:
            active &= radius < before
        block = math.ceil(block / 2)
    return boundary.point(everyone, signs.view_as(images), radius.clamp(max=eps))
