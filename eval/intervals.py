"""Intervals for the figures of a benchmark: Wilson for a rate, Tango for a difference of rates, bootstrap for means."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

try:
    from scipy import optimize, stats
except ImportError as error:
    raise ImportError("eval.intervals needs scipy: pip install 'dipdefense[eval]'") from error

__all__ = ["paired_bootstrap", "tango", "wilson"]


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a rate of `successes` in `n` trials, as (low, high) in [0, 1].

    Source: Wilson (1927). Unlike the normal approximation it holds at rates of 0 and 1.
    """
    _check_confidence(confidence)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, {n}], got {successes}")
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def tango(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Score interval of the difference of two rates on the same images, as (difference, low, high).

    Its width is above 0 even if all images agree, if none does, and for a single image.

    Source: Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17:891-908, eq. (24) to (26).

    Args:
        a: whether each image is right, (N,), True and False or 1 and 0.
        b: the same for another defence, on the same images in the same order.
        confidence: coverage, in (0, 1).

    Raises:
        ValueError: the arrays differ in length, or hold other values.
    """
    _check_confidence(confidence)
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"a and b must be (N,) with N at least 1, got {first.shape} and {second.shape}")
    if not np.isin([first, second], [0, 1]).all():
        raise ValueError("a and b must hold True and False, or 1 and 0, got other values: use paired_bootstrap")
    n, z = len(first), float(stats.norm.ppf((1 + confidence) / 2))
    gained, lost = int((first > second).sum()), int((first < second).sum())
    return (gained - lost) / n, _score_limit(gained, lost, n, z), -_score_limit(lost, gained, n, z)


def _score_limit(gained: int, lost: int, n: int, z: float) -> float:
    """The lower limit: the difference of the rates at which the score statistic T is z.

    T falls from infinity at -1 to 0 at the observed difference. The equation is solved in T / sqrt(1 + T^2), which is
    finite.
    """
    observed = (gained - lost) / n
    if observed == -1:
        return -1.0

    def bounded(difference: float) -> float:
        """T / sqrt(1 + T^2)."""
        half = (gained + lost - (2 * n - gained + lost) * difference) / (4 * n)
        root = half**2 + lost * difference * (1 - difference) / (2 * n)
        likeliest = half + math.sqrt(max(0.0, root))  # rate of the images that are lost, under this difference
        variance = n * (2 * likeliest + difference * (1 - difference))
        excess = gained - lost - n * difference
        return excess / math.hypot(excess, math.sqrt(max(0.0, variance))) if excess else 0.0

    return float(optimize.brentq(lambda difference: bounded(difference) - z / math.hypot(1, z), -1, observed))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Percentile bootstrap interval of mean(a) - mean(b), as (difference, low, high).

    Args:
        a: one value per image, (N,), N at least 2.
        b: values of the same images in the same order; whole images are resampled, so the pairs are kept.
        confidence: coverage, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: the arrays differ in length, or hold NaN or infinite values.
    """
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"a and b must be (N,) with N at least 2, got {first.shape} and {second.shape}")
    differences = first - second
    if not np.isfinite(differences).all():
        raise ValueError("a and b must be finite, got NaN or infinite values")
    mean = float(differences.mean())
    interval: Any = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 2**22 // len(differences)),  # 32 MiB of resampled values at a time
        confidence_level=confidence,
        method="percentile",  # BCa is not defined where all differences are equal
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
