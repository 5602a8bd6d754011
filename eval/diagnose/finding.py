"""What a check found, and when a count is beyond sampling noise."""

from collections.abc import Mapping
from dataclasses import dataclass

from eval.intervals import wilson

__all__ = ["CONFIDENCE", "TOLERANCE", "Figure", "Finding", "surely_above"]

CONFIDENCE = 0.99  # of every interval, so that all the checks of a sound model together rarely fail by chance
TOLERANCE = 0.02  # share of images that even a good attack of tens of steps leaves to another one

Figure = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's verdict: `passed` is None where it could not be asked; `remedy` is empty where it passed."""

    check: str
    passed: bool | None
    figures: Mapping[str, Figure]
    means: str
    remedy: str = ""


def surely_above(count: int, n: int, bound: float) -> bool:
    """Whether `count` of `n` shows a rate above `bound`: the Wilson interval lies above it. None of none does not."""
    return n > 0 and wilson(count, n, CONFIDENCE)[0] > bound
