"""A claim, what a measurement says of it, and the rules by which a verdict follows from figures alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from eval.records import Record
from eval.restoration.denoising_tables import mean_interval

__all__ = [
    "DOCUMENTS",
    "SPREAD",
    "VERDICTS",
    "Claim",
    "Estimate",
    "Outcome",
    "at_least",
    "estimate",
    "holds",
    "matches",
]

DOCUMENTS = {"S0": "course report", "S1": "course slides", "S2": "lab report", "S3": "survey"}
REPRODUCED, BETTER, MISSED = "reproduced", "better", "not reproduced"
VERDICTS = (REPRODUCED, BETTER, MISSED, "not testable here", "not tried yet")
SPREAD = 0.1  # dB; half of an interval, where a figure comes from a single image


@dataclass(frozen=True)
class Claim:
    """A claim of one of the documents."""

    id: str  # document and number, such as S0-8
    says: str  # in a sentence
    theirs: str  # their figure, to the digits that they print
    data: str = ""  # what it is measured on, below the data folder
    barred: str = ""  # why it cannot be tested here; empty if it can
    waits: str = ""  # why it was not tried yet; empty if it was

    @property
    def document(self) -> str:
        """The document that it stands in."""
        return DOCUMENTS[self.id.partition("-")[0]]


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its 95 % bootstrap interval; for one image `spread` on either side stands for it."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    spread: float = SPREAD

    @property
    def least(self) -> float:
        """The lower end."""
        return self.mean - self.spread if self.low is None else self.low

    @property
    def most(self) -> float:
        """The upper end."""
        return self.mean + self.spread if self.high is None else self.high


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a measurement says of a claim."""

    verdict: str  # one of VERDICTS
    protocol: str  # all that was done, with what the document does not state and had to be chosen
    ours: str  # the figure in words
    estimate: Estimate | None = None  # the figure that the verdict is about, if it is one
    n: int = 0  # images, digits or fits behind it; 0 if it counts nothing
    seeds: str = ""  # of noise and fits; empty: that of the run, where n counts something
    why: str = ""  # the rule that led to the verdict, and what limits it
    table: Sequence[Record] = field(default=())  # the details

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}, got {self.verdict!r}")


def estimate(values: Sequence[float], spread: float = SPREAD) -> Estimate:
    """The mean of one value for each image; `spread` in the unit of the values."""
    if len(values) == 1:
        return Estimate(float(values[0]), spread=spread)
    mean, low, high = mean_interval(np.asarray(values))
    return Estimate(mean, low, high, len(values))


def at_least(ours: Estimate, theirs: float) -> str:
    """For a figure of which more is better: `better` if our interval lies above theirs, `reproduced` if it holds it."""
    if ours.least > theirs:
        return BETTER
    return REPRODUCED if ours.most >= theirs else MISSED


def matches(ours: float, theirs: float, tolerance: float) -> str:
    """For a figure that has one right value: `reproduced` if ours differs by at most the tolerance."""
    return REPRODUCED if abs(ours - theirs) <= tolerance else MISSED


def holds(*statements: bool) -> str:
    """For a claim without a figure: `reproduced` if every statement that it makes is true of the measurement."""
    return REPRODUCED if all(statements) else MISSED
