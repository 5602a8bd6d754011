"""The steps of a defended answer, in their order: reconstruct, gather evidence, decide."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dipdefense.defence.decisions import Decision
from dipdefense.defence.evidence import Classify, Evidence, classify_view
from dipdefense.defence.gradients import Gradient
from dipdefense.defence.purifier import Purifier

__all__ = ["Answer", "Reconstructions", "decide", "gather_evidence", "reconstruct"]


@dataclass(frozen=True)
class Reconstructions:
    """The reconstructions of a batch along one or more fits of every image."""

    frames: Tensor  # (R, T, B, C, H, W), over restarts and iterations
    iterations: tuple[int, ...]  # of the T frames; empty if the stopping rule chose the single iterate
    fit_iterations: int  # of the whole fit

    def classified(self, decision: Decision) -> Tensor:
        """The reconstructions that a decision classifies, (S, B, C, H, W), over restarts and iterations."""
        iterations = decision.iterations_of(self.fit_iterations)
        return self._at(decision.restarts, iterations).flatten(0, 1) if self.iterations else self.frames[0]

    def scored(self, decision: Decision) -> dict[int, Tensor]:
        """`Evidence.scored` of a decision."""
        if not self.iterations:
            return {}
        return {iteration: self._at(decision.restarts, [iteration])[:, 0] for iteration in decision.scored_iterations}

    def _at(self, restarts: int, iterations: Sequence[int]) -> Tensor:
        return self.frames[:restarts, [self.iterations.index(iteration) for iteration in iterations]]


def reconstruct(
    purifier: Purifier,
    images: Tensor,
    decisions: Sequence[Decision],
    *,
    gradient: str | Gradient,
    scored: bool = True,
) -> Reconstructions:
    """Fit images (B, C, H, W) in [0, 1], and keep the reconstructions that the decisions need.

    Args:
        purifier: makes the fits.
        images: checked by the caller.
        decisions: one or more that share the fits. Either all of them name iterations, or there is only one.
        gradient: meaning of a backward pass, see `Purifier`.
        scored: whether detection scores are needed for decisions whose logits do not depend on them.

    Raises:
        ValueError: a class derived from `Purifier` returns frames of another number or shape.
    """
    config = purifier.config_for(images)
    needed: set[int] = set()
    for decision in decisions:
        classified = decision.iterations_of(config.iterations)
        needed.update(classified, decision.scored_iterations if classified and (scored or decision.gated) else ())
    iterations, restarts = sorted(needed), max(decision.restarts for decision in decisions) if needed else 1
    frames = [
        purifier.frames(images, iterations or None, config=config, gradient=gradient, restart=restart)
        for restart in range(restarts)
    ]
    shape = (max(1, len(iterations)), *images.shape)
    for made in frames:
        if made.shape != shape:
            raise ValueError(
                f"frames of {type(purifier).__name__} must be one reconstruction for each iteration that the decision "
                f"needs, {shape}, got {tuple(made.shape)}: return as many, or use the decision LastReconstruction"
            )
    return Reconstructions(torch.stack(frames), tuple(iterations), config.iterations)


def gather_evidence(
    classify: Classify,
    images: Tensor,
    bare: Tensor,
    reconstructions: Reconstructions,
    decision: Decision,
    *,
    scored: bool = True,
) -> Evidence:
    """Classify the reconstructions that a decision names, in each of its views.

    Args:
        classify: images (B, C, H, W) in [0, 1] -> logits (B, K).
        images: the inputs, (B, C, H, W).
        bare: logits of the inputs, (B, K).
        reconstructions: from a call of `reconstruct` with this decision.
        decision: the one that will use the evidence.
        scored: as in `reconstruct`.

    Raises:
        ValueError: the classifier refuses the size of a view.
    """
    frames = reconstructions.classified(decision)
    along = [classify_view(classify, frame, view) for frame in frames for view in decision.views]
    return Evidence(
        bare, torch.stack(along), images, reconstructions.scored(decision) if scored or decision.gated else {}
    )


class Answer(NamedTuple):
    """The result of a decision."""

    logits: Tensor  # (B, K)
    scores: Tensor  # (B,) in [0, 1], larger is more adversarial


def decide(decision: Decision, evidence: Evidence) -> Answer:
    """Logits and scores; the score is computed once. `Decision.combine` gives the logits alone."""
    scores = decision.score(evidence)
    return Answer(decision.combine(evidence, scores), scores)
