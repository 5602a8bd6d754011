"""Decisions: from the reconstructions along a fit, and the bare classifier's view of the input, to logits.

Along a fit the reconstructions of an adversarial image pass from blurred, to right, to fooled. A decision says which
of them are looked at, turns what the classifier makes of them into logits, and scores how adversarial the input
looks. It holds plain values only and survives a JSON round trip.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.defence.cross_boundary import CrossBoundary
from dipdefense.defence.detector import Detector
from dipdefense.defence.evidence import (
    Classify,
    Evidence,
    check_finite,
    check_iterations,
    check_views,
    disagreement,
    log_mean_softmax,
    spread,
)

__all__ = ["DECISIONS", "Decision", "DetectorGated", "LastReconstruction", "MeanSoftmax"]


LEAST_WIDTH = 1e-6  # below it the logits would overflow


class Decision(Protocol):
    """What a defended classifier asks of a decision."""

    @property
    def restarts(self) -> int:
        """Fits of every image, from different seeds."""

    @property
    def views(self) -> tuple[str, ...]:
        """Keys of `VIEWS`, through each of which every reconstruction is classified."""

    @property
    def residuals(self) -> tuple[int, ...]:
        """The iterations at which `Evidence.residual` is asked for."""

    def looks(self, iterations: int) -> tuple[int, ...]:
        """The iterations that are classified, of a fit of that many.

        None for what the fit itself returns; `restarts` and `residuals` are then not asked for.
        """

    def prepare(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Make what is classified, (S', B, C, H, W), of the reconstructions (S, B, C, H, W); gradients pass."""

    def combine(self, looks: Evidence) -> Tensor:
        """Logits (B, K)."""

    def score(self, looks: Evidence) -> Tensor:
        """How adversarial the input looks, (B,) in [0, 1]; larger is more so."""


@dataclass(frozen=True)
class LastReconstruction:
    """The classifier's own logits of what the fit returns, by whatever rule it stops."""

    restarts: ClassVar[int] = 1
    views: ClassVar[tuple[str, ...]] = ("identity",)
    residuals: ClassVar[tuple[int, ...]] = ()

    def looks(self, iterations: int) -> tuple[int, ...]:
        """See `Decision.looks`."""
        return ()

    def prepare(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """See `Decision.prepare`."""
        return reconstructions

    def combine(self, looks: Evidence) -> Tensor:
        """See `Decision.combine`."""
        return looks.along[0]

    def score(self, looks: Evidence) -> Tensor:
        """See `Decision.score`."""
        return disagreement(looks.bare, looks.along)


@dataclass(frozen=True)
class MeanSoftmax:
    """Logarithm of the mean softmax over iterations, restarts and views.

    Args:
        iterations: those that are classified, rising. None: four of them, evenly over the second half of the fit.
        restarts: fits of every image, with seeds seed, seed + 1, ...
        views: keys of `VIEWS`.
        detector: gives the detection score; None for the `disagreement` of the bare prediction.

    Raises:
        TypeError: detector is neither.
        ValueError: no iterations or not rising from 1, restarts below 1, no view, an unknown one or one twice.
    """

    iterations: tuple[int, ...] | None = None
    restarts: int = 1
    views: tuple[str, ...] = ("identity",)
    detector: Detector | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", check_iterations(self.iterations))  # JSON knows lists only
        object.__setattr__(self, "views", check_views(self.views))
        given: Any = self.detector
        if isinstance(given, Mapping):
            object.__setattr__(self, "detector", Detector(**given))
        elif given is not None and not isinstance(given, Detector):
            raise TypeError(f"detector must be a Detector or None, got {given!r}")
        check_integer("restarts", self.restarts, 1)

    @property
    def residuals(self) -> tuple[int, ...]:
        """See `Decision.residuals`."""
        return () if self.detector is None else self.detector.iterations

    def looks(self, iterations: int) -> tuple[int, ...]:
        """See `Decision.looks`."""
        return spread(self.iterations, iterations)

    def prepare(self, classify: Classify, images: Tensor, reconstructions: Tensor) -> Tensor:
        """See `Decision.prepare`."""
        return reconstructions

    def combine(self, looks: Evidence) -> Tensor:
        """See `Decision.combine`."""
        return log_mean_softmax(looks.along)

    def score(self, looks: Evidence) -> Tensor:
        """See `Decision.score`."""
        return disagreement(looks.bare, looks.along) if self.detector is None else self.detector(looks)


@dataclass(frozen=True)
class DetectorGated(MeanSoftmax):
    """Keep the bare prediction unless the fit speaks against it.

    log((1 - w) softmax(bare) + w mean softmax(along)),  w = sigmoid((score - threshold) / width).

    Args:
        threshold: score in [0, 1] at which both weigh the same; arguments before it as in `MeanSoftmax`.
        width: how fast the weight passes from one to the other, in units of the score.

    Raises:
        ValueError: threshold outside [0, 1], width below 1e-6, and what `MeanSoftmax` refuses.
    """

    threshold: float = 0.5
    width: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("threshold", self.threshold)
        check_finite("width", self.width)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold!r}")
        if not self.width >= LEAST_WIDTH:
            raise ValueError(f"width must be at least {LEAST_WIDTH}, got {self.width!r}")

    def combine(self, looks: Evidence) -> Tensor:
        """See `Decision.combine`."""
        weight = ((self.score(looks) - self.threshold) / self.width)[:, None]  # the logit of w
        return torch.logaddexp(
            looks.bare.log_softmax(1) + F.logsigmoid(-weight), log_mean_softmax(looks.along) + F.logsigmoid(weight)
        )


DECISIONS: dict[str, type[Decision]] = {
    "last": LastReconstruction,
    "mean_softmax": MeanSoftmax,
    "detector_gated": DetectorGated,
    "cross_boundary": CrossBoundary,
}
