"""An alarm with a known rate of false alarms: a threshold on the detection score, set by the scores of clean images."""

import math
from dataclasses import dataclass

from torch import Tensor

from dipdefense.arguments import check_finite

__all__ = ["Alarm", "set_alarm"]


@dataclass(frozen=True)
class Alarm:
    """An image is flagged if its detection score is above a threshold.

    Args:
        threshold: a detection score.
        fpr: the rate of false alarms that was asked for.
        n: number of clean images that the threshold was set on.
        shape: of these images, (C, H, W); the scores of images of another shape mean something else.
    """

    threshold: float
    fpr: float
    n: int
    shape: tuple[int, ...]

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Between which limits the rate of false alarms of this threshold lies, for images like the clean ones.

        A threshold that k of n scores do not exceed has, over the draws of the n images, a rate that follows
        Beta(n + 1 - k, k), if no two scores are equal. With equal scores the rate can be lower.

        Returns:
            The two quantiles that leave out equal shares.

        Raises:
            ImportError: scipy is not installed.
        """
        try:
            from scipy.stats import beta
        except ImportError as error:
            raise ImportError("Alarm.interval needs scipy: pip install 'dipdefense[eval]'") from error
        k = _rank(self.n, self.fpr)
        low, high = beta.interval(confidence, self.n + 1 - k, k)
        return float(low), float(high)

    def flags(self, scores: Tensor) -> Tensor:
        """Detection scores (B,) -> (B,) bool."""
        return scores > self.threshold


def set_alarm(scores: Tensor, fpr: float, shape: tuple[int, ...]) -> Alarm:
    """The alarm that flags at most a share `fpr` of further clean images, on average over the draws of all images.

    The threshold is the k-th smallest score, k = ceil((n + 1) (1 - fpr)): a further score is as likely to have any rank
    among all n + 1, and exceeds the threshold at n + 1 - k of them.

    Source: split conformal prediction; Vovk, Gammerman, Shafer (2005), "Algorithmic learning in a random world".

    Args:
        scores: of clean images, (n,).
        fpr: rate of false alarms, in (0, 1).
        shape: of the images, (C, H, W).

    Raises:
        ValueError: a rate outside (0, 1), or too few images for it.
    """
    check_finite("fpr", fpr)
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must lie between 0 and 1, got {fpr!r}")
    n = len(scores)
    if _rank(n, fpr) > n:
        raise ValueError(f"clean_images must be at least {math.ceil(1 / fpr - 1 - 1e-9)} for fpr {fpr!r}, got {n}")
    return Alarm(scores.kthvalue(_rank(n, fpr)).values.item(), fpr, n, tuple(shape))


def _rank(n: int, fpr: float) -> int:
    return max(1, math.ceil((n + 1) * (1 - fpr) - 1e-9))  # (n + 1) (1 - fpr) may be an integer but for rounding
