"""Intervals for the figures of a benchmark: Wilson for a rate, paired bootstrap for a difference of means."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

try:
    from scipy import stats
except ImportError as error:
    raise ImportError("eval.intervals needs scipy: pip install 'dipdefense[eval]'") from error

__all__ = ["paired_bootstrap", "wilson"]


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


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Percentile bootstrap interval of mean(a) - mean(b), as (difference, low, high).

    Args:
        a: one value per image, (N,), N at least 2.
        b: values of the same images in the same order; images are resampled, so the pairing is kept.
        confidence: coverage, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: the arrays are not two of one length, or hold NaN or infinite values.
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
