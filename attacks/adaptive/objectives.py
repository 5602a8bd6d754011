"""What an attack on a defended classifier maximises, and when it has succeeded.

The losses are rows of one table; each is the mean over draws of the defence (expectation over transformation, EOT).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.gradient_ascent import Objective, Rated
from attacks.margin import margin
from dipdefense import DefendedClassifier
from dipdefense.defence.decisions import Decision
from dipdefense.defence.evidence import Evidence
from dipdefense.defence.gradients import Gradient
from dipdefense.defence.pipeline import Answer, decide

__all__ = ["LOSSES", "objective"]

DEFAULT_THRESHOLD = 0.5  # of the score of a decision that has no threshold of its own

Loss = Callable[[Evidence, Answer, Tensor], Tensor]  # (evidence, the decision's answer, labels (B,)) -> (B,)


def cross_entropy(evidence: Evidence, answer: Answer, labels: Tensor) -> Tensor:
    """Cross-entropy of the defended logits."""
    return F.cross_entropy(answer.logits, labels, reduction="none")


def wrong(evidence: Evidence, answer: Answer, labels: Tensor) -> Tensor:
    """Largest other logit minus that of the label. Source: Carlini and Wagner (2017), f_6."""
    return _lead(answer.logits, labels)


def every_look(evidence: Evidence, answer: Answer, labels: Tensor) -> Tensor:
    """Mean margin of the wrong class over everything that the decision sees: each reconstruction and the input.

    A mean of softmaxes has no gradient where a prediction is certain; the single margins have one.
    """
    margins = [_lead(logits, labels) for logits in (evidence.bare, *evidence.along)]
    return torch.stack(margins).mean(0)


def evade(evidence: Evidence, answer: Answer, labels: Tensor) -> Tensor:
    """`every_look` plus the log-odds of not being detected, each only up to a limit."""
    return every_look(evidence, answer, labels).clamp(max=2) + undetected(evidence, answer, labels).clamp(max=4)


def bypass(evidence: Evidence, answer: Answer, labels: Tensor) -> Tensor:
    """The margin of the bare prediction plus the log-odds of not being detected.

    `DetectorGated` keeps the bare prediction where nothing is detected.
    """
    return _lead(evidence.bare, labels).clamp(max=2) + undetected(evidence, answer, labels).clamp(max=4)


def undetected(evidence: Evidence, answer: Answer, labels: Tensor) -> Tensor:
    """The log-odds of not being detected."""
    return -_odds(answer.scores)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "margin": wrong,
    "every_look": every_look,
    "evade": evade,
    "bypass": bypass,
    "undetected": undetected,
}


def objective(
    defended: DefendedClassifier,
    labels: Tensor,
    *,
    loss: str = "margin",
    gradient: str | Gradient = "straight_through",
    seeds: Iterator[Sequence[int]],
    unseen: bool = False,
    known: bool = False,
) -> Objective:
    """The mean over draws of a loss of a defended classifier, and its gradient, for `ascend`.

    Args:
        defended: the defence; its own seed and gradient are not used.
        labels: (N,) true classes.
        loss: a key of `LOSSES`.
        gradient: how the backward pass goes through the fit.
        seeds: for each call, the seeds of its draws: the known seed of the defence, or the attacker's own.
        unseen: the attack succeeds only where the detection score also lies below the decision's threshold; else it
            succeeds where the defence is wrong.
        known: the first draw is the defence itself, and alone decides whether the attack succeeds; else the mean margin
            and the mean log-odds of the score over the draws decide.

    Raises:
        ValueError: an unknown loss.
        RuntimeError: when called, a gradient that is not finite.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")

    def rate(images: Tensor, index: Tensor) -> Rated:
        truth = labels[index]
        total, value, fooled, hidden = torch.zeros_like(images), 0.0 * truth, 0.0 * truth, 0.0 * truth
        draws = next(seeds)
        for seed in draws:
            draw = defended.variant(seed=seed, gradient=gradient)
            with torch.inference_mode(False), torch.enable_grad():
                point = images.detach().clone().requires_grad_()
                evidence, decision, _ = draw.evidence(point)
                answer = decide(decision, evidence)
                losses = LOSSES[loss](evidence, answer, truth.clone())
                (slope,) = torch.autograd.grad(losses.sum(), point)
            _check_slope(slope, index)
            total, value = total + slope, value + losses.detach()
            if not (known and seed != draws[0]):
                fooled = fooled + _lead(answer.logits.detach(), truth)
                hidden = hidden + _margin_below_threshold(answer.scores.detach(), decision)
        judged = 1 if known else len(draws)
        success = _fooled_first(fooled / judged, hidden / judged) if unseen else fooled / judged
        return Rated(value / len(draws), total / len(draws), success)

    return rate


def _fooled_first(fooled: Tensor, hidden: Tensor) -> Tensor:
    """Order images by whether the defence is wrong, then by whether it detects nothing; above 0 where both hold.

    Args:
        fooled: margin of the wrong class, (B,), in nats.
        hidden: log-odds by which the score lies below the threshold, (B,).

    Returns:
        (B,): in (-2, -1] if the defence is right, in (-1, 0] if it is wrong and detects the attack, else the smaller
        of both.
    """
    won = torch.minimum(fooled, hidden)
    alarmed = hidden / (1 + hidden.abs())
    right = fooled / (1 + fooled.abs()) - 1
    return torch.where(fooled <= 0, right, torch.where(hidden <= 0, alarmed, won))


def _margin_below_threshold(scores: Tensor, decision: Decision) -> Tensor:
    """Log-odds by which the detection scores (B,) lie below the decision's threshold, (B,)."""
    threshold = torch.tensor(getattr(decision, "threshold", DEFAULT_THRESHOLD), dtype=torch.float64)
    return _odds(threshold).to(scores) - _odds(scores)


def _check_slope(slope: Tensor, index: Tensor) -> None:
    """Raise unless the gradient is finite."""
    blind = ~slope.flatten(1).isfinite().all(1)
    if blind.any():
        raise RuntimeError(
            f"the gradient of images {index[blind].tolist()} must be finite, got NaN or infinite values: attack "
            "through another one, such as straight_through, truncated or smoothed"
        )


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """Largest other logit less that of the label, (B,): above 0 where the classifier is wrong."""
    return -margin(logits, labels)


def _odds(score: Tensor) -> Tensor:
    """Log-odds of a score in [0, 1], finite even for 0 and 1."""
    return torch.logit(score.clamp(1e-6, 1 - 1e-6))
