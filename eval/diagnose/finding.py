"""The finding of a check, and the test of a count against sampling noise."""

from collections.abc import Mapping
from dataclasses import dataclass

from eval.intervals import wilson

__all__ = ["CONFIDENCE", "TOLERANCE", "Figure", "Finding", "surely_above"]

CONFIDENCE = 0.99  # of every interval, so that all the checks of a sound model together rarely fail by chance
TOLERANCE = 0.02  # share of images that a good attack of tens of steps may miss and another attack break

Figure = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check. `passed` is None if it could not be run; `remedy` is empty if it passed."""

    check: str
    passed: bool | None
    figures: Mapping[str, Figure]
    means: str
    remedy: str = ""


def surely_above(count: int, n: int, bound: float) -> bool:
    """Whether the Wilson interval of `count` in `n` lies above `bound`; False if `n` is 0."""
    return n > 0 and wilson(count, n, CONFIDENCE)[0] > bound
