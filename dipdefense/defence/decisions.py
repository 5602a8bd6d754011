"""Decisions: how the classifier's logits of an image and of its reconstructions become the defended logits.

Along the fit to an adversarial image, the reconstructions are first blurred, then classified correctly, then
misclassified. A decision says which of them are classified, combines their logits, and scores how adversarial the
input looks. It holds plain values only and survives a JSON round trip.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.arguments import check_finite, check_integer, check_known
from dipdefense.defence.detector import Detector
from dipdefense.defence.evidence import (
    Evidence,
    check_iterations,
    check_views,
    disagreement,
    log_mean_softmax,
    spread,
)

__all__ = ["DECISIONS", "Decision", "DetectorGated", "LastReconstruction", "MeanSoftmax", "known_decision"]


LEAST_WIDTH = 1e-6  # below it the logits would overflow


class Decision(Protocol):
    """What a defended classifier needs of a decision."""

    @property
    def restarts(self) -> int:
        """Number of fits of every image, with different seeds."""

    @property
    def views(self) -> tuple[str, ...]:
        """Keys of `VIEWS`; every reconstruction is classified in each of these views."""

    @property
    def scored_iterations(self) -> tuple[int, ...]:
        """The iterations whose reconstructions the score needs in `Evidence.scored`."""

    @property
    def gated(self) -> bool:
        """Whether the logits depend on the score. If not, the score is computed only on request."""

    def iterations_of(self, fit_iterations: int) -> tuple[int, ...]:
        """The iterations whose reconstructions are classified, for a fit of `fit_iterations`.

        Empty for the image that the fit itself returns; `restarts` and `scored_iterations` are then not used.
        """

    def combine(self, evidence: Evidence, scores: Tensor | None = None) -> Tensor:
        """Logits (B, K). `scores` are the result of `score` if that was computed before."""

    def score(self, evidence: Evidence) -> Tensor:
        """How adversarial the input looks, (B,) in [0, 1]; larger is more so."""


@dataclass(frozen=True)
class LastReconstruction:
    """The classifier's logits of the image that the fit returns, with any stopping rule."""

    restarts: ClassVar[int] = 1
    views: ClassVar[tuple[str, ...]] = ("identity",)
    scored_iterations: ClassVar[tuple[int, ...]] = ()
    gated: ClassVar[bool] = False

    def iterations_of(self, fit_iterations: int) -> tuple[int, ...]:
        """See `Decision.iterations_of`."""
        return ()

    def combine(self, evidence: Evidence, scores: Tensor | None = None) -> Tensor:
        """See `Decision.combine`."""
        return evidence.along[0]

    def score(self, evidence: Evidence) -> Tensor:
        """See `Decision.score`."""
        return disagreement(evidence.bare, evidence.along)


@dataclass(frozen=True)
class MeanSoftmax:
    """Logarithm of the mean softmax over iterations, restarts and views.

    Args:
        iterations: those that are classified, rising. None: four, spaced evenly over the second half of the fit.
        restarts: number of fits of every image, with seeds seed, seed + 1, ...
        views: keys of `VIEWS`.
        detector: gives the detection score; None for the `disagreement` with the bare prediction.

    Raises:
        TypeError: detector is neither a Detector nor None.
        ValueError: no iterations, or not rising from 1; restarts below 1; no view, an unknown view or a repeated one; a
            setting that no detector has, as in files of an earlier version.
    """

    iterations: tuple[int, ...] | None = None
    restarts: int = 1
    views: tuple[str, ...] = ("identity",)
    detector: Detector | None = None
    gated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", check_iterations(self.iterations))  # JSON has lists only
        object.__setattr__(self, "views", check_views(self.views))
        given: Any = self.detector
        if isinstance(given, Mapping):
            settings = [field.name for field in fields(Detector)]
            for name in given:
                check_known("settings of a detector", name, settings, several=True)
            object.__setattr__(self, "detector", Detector(**given))
        elif given is not None and not isinstance(given, Detector):
            raise TypeError(f"detector must be a Detector or None, got {given!r}")
        check_integer("restarts", self.restarts, 1)

    @property
    def scored_iterations(self) -> tuple[int, ...]:
        """See `Decision.scored_iterations`."""
        return () if self.detector is None else (self.detector.iteration,)

    def iterations_of(self, fit_iterations: int) -> tuple[int, ...]:
        """See `Decision.iterations_of`."""
        return spread(self.iterations, fit_iterations)

    def combine(self, evidence: Evidence, scores: Tensor | None = None) -> Tensor:
        """See `Decision.combine`."""
        return log_mean_softmax(evidence.along)

    def score(self, evidence: Evidence) -> Tensor:
        """See `Decision.score`."""
        return disagreement(evidence.bare, evidence.along) if self.detector is None else self.detector(evidence)


@dataclass(frozen=True)
class DetectorGated(MeanSoftmax):
    """Keep the bare prediction unless the detection score is high.

    log((1 - w) softmax(bare) + w mean softmax(along)),  w = sigmoid((score - threshold) / width).

    Args:
        threshold: score in [0, 1] at which w is one half; the arguments before it are those of `MeanSoftmax`.
        width: of the transition between the two predictions, in units of the score.

    Raises:
        ValueError: threshold outside [0, 1], width below 1e-6, or an error of `MeanSoftmax`.
    """

    threshold: float = 0.5
    width: float = 0.05
    gated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("threshold", self.threshold)
        check_finite("width", self.width)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold!r}")
        if not self.width >= LEAST_WIDTH:
            raise ValueError(f"width must be at least {LEAST_WIDTH}, got {self.width!r}")

    def combine(self, evidence: Evidence, scores: Tensor | None = None) -> Tensor:
        """See `Decision.combine`."""
        scores = self.score(evidence) if scores is None else scores
        weight = ((scores - self.threshold) / self.width)[:, None]  # the logit of w
        return torch.logaddexp(
            evidence.bare.log_softmax(1) + F.logsigmoid(-weight),
            log_mean_softmax(evidence.along) + F.logsigmoid(weight),
        )


DECISIONS: dict[str, type[Decision]] = {
    "last": LastReconstruction,
    "mean_softmax": MeanSoftmax,
    "detector_gated": DetectorGated,
}


def known_decision(decision: Decision | str) -> Decision | str:
    """A decision as it is, or a name in `DECISIONS`.

    Raises:
        TypeError: neither a decision nor a name.
        ValueError: an unknown name.
    """
    if decision == "trust":
        warnings.warn("the decision trust is now called detector_gated", FutureWarning, stacklevel=3)
        return "detector_gated"
    if isinstance(decision, str):
        check_known("decision", decision, DECISIONS)
    elif isinstance(decision, type) or not hasattr(decision, "combine"):
        raise TypeError(f"decision must be a Decision, its name or None, got {decision!r}")
    return decision
