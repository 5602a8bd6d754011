"""Decisions: from the reconstructions along a fit, and the bare classifier's view of the input, to logits.

Along a fit the reconstructions of an adversarial image pass from blurred, to right, to fooled. A decision says which
of them are looked at (`iterations`, `restarts`, `views`) and combines what the classifier makes of these S looks:

    combine(bare (B, K) or None, along (S, B, K)) -> logits (B, K)

It holds plain values only and survives a JSON round trip.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "DECISIONS",
    "VIEWS",
    "CrossBoundary",
    "Decision",
    "Last",
    "MeanSoftmax",
    "Trust",
    "contradiction",
    "log_mean_softmax",
]

Classify = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> logits (B, K)


class Decision(Protocol):
    """What a defended classifier asks of a decision."""

    @property
    def restarts(self) -> int:
        """Fits of every image, from different seeds."""

    @property
    def views(self) -> tuple[str, ...]:
        """Keys of `VIEWS`, through each of which every reconstruction is classified."""

    @property
    def needs_bare(self) -> bool:
        """Whether `combine` reads the bare logits."""

    def looks(self, iterations: int) -> tuple[int, ...]:
        """The iterations that are looked at of a fit of that many; none for what the fit itself returns."""

    def prepare(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Make what is classified, (S', B, C, H, W), of the reconstructions (S, B, C, H, W); no gradient."""

    def combine(self, bare: Tensor | None, along: Tensor) -> Tensor:
        """Bare logits (B, K), None unless `needs_bare`, and those of all looks (S, B, K) -> logits (B, K)."""


def log_mean_softmax(logits: Tensor) -> Tensor:
    """Logarithm of the mean over S of the softmax: (S, B, K) -> (B, K)."""
    return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))


def contradiction(bare: Tensor, along: Tensor) -> Tensor:
    """How much the looks along a fit contradict the bare prediction: 1 minus the mean probability they give it.

    Args:
        bare: logits of the input, (B, K).
        along: logits of S looks, (S, B, K).

    Returns:
        (B,) in [0, 1]; larger is more adversarial.
    """
    predicted = bare.argmax(1, keepdim=True)
    return (1 - log_mean_softmax(along).exp().gather(1, predicted)[:, 0]).clamp(0, 1)  # rounding leaves it by an ulp


def _shift(images: Tensor, rows: int, columns: int) -> Tensor:
    """Move images (B, C, H, W) down and right by pixels, up and left where negative; mirrored at the border."""
    H, W = images.shape[2:]
    y, x = abs(rows), abs(columns)
    padded = F.pad(images, (x, x, y, y), mode="reflect")
    return padded[..., y - rows : y - rows + H, x - columns : x - columns + W]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda images: images,
    "mirror": lambda images: images.flip(3),
    **{
        f"shift_{name}_{pixels}": partial(_shift, rows=rows * pixels, columns=columns * pixels)
        for name, rows, columns in (("left", 0, -1), ("right", 0, 1), ("up", -1, 0), ("down", 1, 0))
        for pixels in (1, 2)
    },
}


@dataclass(frozen=True)
class Last:
    """The classifier's logits of what the fit returns, by whatever rule it stops."""

    restarts: ClassVar[int] = 1
    views: ClassVar[tuple[str, ...]] = ("identity",)
    needs_bare: ClassVar[bool] = False

    def looks(self, iterations: int) -> tuple[int, ...]:
        """See `Decision.looks`."""
        return ()

    def prepare(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """See `Decision.prepare`."""
        return reconstructions

    def combine(self, bare: Tensor | None, along: Tensor) -> Tensor:
        """See `Decision.combine`."""
        return along[0]


@dataclass(frozen=True)
class MeanSoftmax:
    """Logarithm of the mean softmax over iterations, restarts and views.

    Args:
        iterations: those that are looked at, rising; the fit ends at the last. None: four of them, evenly over the
            second half of the fit.
        restarts: fits of every image, with seeds seed, seed + 1, ...
        views: keys of `VIEWS`.

    Raises:
        ValueError: no iterations or not rising from 1, restarts below 1, no view or an unknown one.
    """

    iterations: tuple[int, ...] | None = None
    restarts: int = 1
    views: tuple[str, ...] = ("identity",)
    needs_bare: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", _checked_iterations(self.iterations))  # JSON knows lists only
        object.__setattr__(self, "views", _checked_views(self.views))
        if isinstance(self.restarts, bool) or not isinstance(self.restarts, int) or self.restarts < 1:
            raise ValueError(f"restarts must be an integer of at least 1, got {self.restarts!r}")

    def looks(self, iterations: int) -> tuple[int, ...]:
        """See `Decision.looks`."""
        return _looks(self.iterations, iterations)

    def prepare(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """See `Decision.prepare`."""
        return reconstructions

    def combine(self, bare: Tensor | None, along: Tensor) -> Tensor:
        """See `Decision.combine`."""
        return log_mean_softmax(along)


@dataclass(frozen=True)
class Trust(MeanSoftmax):
    """Keep the bare prediction unless the trajectory contradicts it.

    log((1 - w) softmax(bare) + w mean softmax(along)),  w = sigmoid((contradiction - threshold) / width).

    Args:
        threshold: contradiction in [0, 1] at which both weigh the same; arguments before it as in `MeanSoftmax`.
        width: how fast the weight passes from one to the other, in units of the contradiction.

    Raises:
        ValueError: threshold outside [0, 1], width not positive, and what `MeanSoftmax` refuses.
    """

    threshold: float = 0.5
    width: float = 0.05
    needs_bare: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold!r}")
        if not 0 < self.width < math.inf:
            raise ValueError(f"width must be positive and finite, got {self.width!r}")

    def combine(self, bare: Tensor | None, along: Tensor) -> Tensor:
        """See `Decision.combine`."""
        assert bare is not None
        weight = ((contradiction(bare, along) - self.threshold) / self.width)[:, None]  # the logit of w
        return torch.logaddexp(
            bare.log_softmax(1) + F.logsigmoid(-weight), log_mean_softmax(along) + F.logsigmoid(weight)
        )


@dataclass(frozen=True)
class CrossBoundary:
    """Classify one image stitched together where the fit crosses the classifier's decision boundary.

    Consecutive looks x_t, x_t+1 with different predicted labels enclose an image x_ob on the boundary, which is
    found by bisection and moved away from the input: x_ob + alpha (x_ob - x) / |x_ob - x|. The mean of the moved
    images is classified.

    Source: Ding et al. (2021), "Delving into deep image prior for adversarial defense: a novel reconstruction-based
        defense framework".
    Differs: built from the abstract alone. The number of looks, the size of alpha, the plain mean as stitching, and
        taking the last look where no boundary is crossed are ours.

    Args:
        iterations: at least two, as in `MeanSoftmax`.
        alpha: length of the move, Euclidean over the whole image, images in [0, 1].
        bisections: halvings of the segment between two looks.

    Raises:
        ValueError: fewer than two iterations or not rising, a negative alpha, bisections below 1.
    """

    iterations: tuple[int, ...] | None = None
    alpha: float = 0.5
    bisections: int = 8
    restarts: ClassVar[int] = 1
    views: ClassVar[tuple[str, ...]] = ("identity",)
    needs_bare: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", _checked_iterations(self.iterations))
        if self.iterations is not None and len(self.iterations) < 2:
            raise ValueError(f"iterations must be at least two, between which a boundary lies, got {self.iterations}")
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be finite and not negative, got {self.alpha!r}")
        if isinstance(self.bisections, bool) or not isinstance(self.bisections, int) or self.bisections < 1:
            raise ValueError(f"bisections must be an integer of at least 1, got {self.bisections!r}")

    def looks(self, iterations: int) -> tuple[int, ...]:
        """See `Decision.looks`."""
        return _looks(self.iterations, iterations)

    @torch.no_grad()
    def prepare(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """The stitched images, (1, B, C, H, W). See `Decision.prepare`."""
        labels = torch.stack([classify(look).argmax(1) for look in reconstructions])  # (S, B)
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
        return torch.where(count > 0, total / count.clamp_min(1), reconstructions[-1]).clamp(0, 1)[None]

    def _boundary(self, classify: Classify, before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
        """Between images of these labels, (B,), and images of other ones."""
        for _ in range(self.bisections):
            middle = (before + after) / 2
            same = (classify(middle).argmax(1) == labels)[:, None, None, None]
            before, after = torch.where(same, middle, before), torch.where(same, after, middle)
        return (before + after) / 2

    def combine(self, bare: Tensor | None, along: Tensor) -> Tensor:
        """See `Decision.combine`."""
        return log_mean_softmax(along)


DECISIONS: dict[str, type[Decision]] = {
    "last": Last,
    "mean_softmax": MeanSoftmax,
    "trust": Trust,
    "cross_boundary": CrossBoundary,
}


def _looks(named: tuple[int, ...] | None, iterations: int) -> tuple[int, ...]:
    """The named iterations, or four evenly over the second half of a fit."""
    if named is not None:
        return named
    return tuple(sorted({math.ceil(iterations * sixth / 6) for sixth in (3, 4, 5, 6)}))


def _checked_iterations(iterations: object) -> tuple[int, ...] | None:
    if iterations is None:
        return None
    listed = list(iterations) if isinstance(iterations, tuple | list) else []
    if not listed or not all(type(i) is int for i in listed) or listed != sorted(set(listed)) or listed[0] < 1:
        raise ValueError(f"iterations must be one or more integers rising from 1 or above, got {iterations!r}")
    return tuple(listed)


def _checked_views(views: object) -> tuple[str, ...]:
    if not isinstance(views, tuple | list) or not views or not all(isinstance(v, str) and v in VIEWS for v in views):
        raise ValueError(f"views must be one or more of {', '.join(VIEWS)}, got {views!r}")
    return tuple(views)
