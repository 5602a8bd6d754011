"""Certified accuracy against the radius: its table, its paired differences, its curve."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.intervals import tango, wilson
from eval.plots import save_lines

__all__ = ["NONE", "certified_radii", "paired_differences", "save_curve", "summarise_certificates"]

NONE = "none"  # the bare classifier
QUOTED = (0.1, 0.25, 0.5)  # radii that the literature on CIFAR-10 and this project's aims name


def certified_radii(sigma: float, targets: Sequence[float] = ()) -> list[float]:
    """The radii of a table: 0 to 4 sigma in quarters of sigma, and those of `QUOTED` within; or the targets alone.

    An image ends once its targets are decided, so at other radii it would often have been certified with more draws.
    """
    if targets:
        return sorted(set(targets))
    quarters = (sigma * np.arange(17) / 4).round(6)
    return sorted({*quarters.tolist(), *(radius for radius in QUOTED if radius < quarters[-1])})


def summarise_certificates(certificates: pd.DataFrame, sigma: float, targets: Sequence[float] = ()) -> pd.DataFrame:
    """One row per purifier and radius: the share of images whose class is right and certified at that radius or above.

    Args:
        certificates: one row per image and purifier, with `purifier, correct, abstained, radius`.
        sigma: standard deviation of the noise.
        targets: of the plan.

    Columns `purifier, sigma, radius, n, certified_accuracy, ci_low, ci_high`; the interval is the 95 % Wilson interval.
    An image that abstains is certified at no radius, not even 0.
    """
    rows = []
    for purifier, group in certificates.groupby("purifier", sort=False):
        for radius in certified_radii(sigma, targets):
            held = _holds(group, radius)
            row = purifier, sigma, radius, len(held), held.mean(), *wilson(int(held.sum()), len(held))
            rows.append(row)
    columns = ["purifier", "sigma", "radius", "n", "certified_accuracy", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def paired_differences(certificates: pd.DataFrame, sigma: float, targets: Sequence[float] = ()) -> pd.DataFrame:
    """Differences in certified accuracy of every two purifiers on the same noise, with Tango's 95 % score interval.

    Columns `purifier, against, sigma, radius, n, difference, ci_low, ci_high`: `purifier` less `against`, in the order
    of their first rows, the bare classifier last. Arguments as in `summarise_certificates`.
    """
    of = {str(name): group.set_index("index") for name, group in certificates.groupby("purifier", sort=False)}
    names, rows = sorted(of, key=lambda name: name == NONE), []
    for purifier, against in itertools.combinations(names, 2):
        rival = of[against]
        for radius in certified_radii(sigma, targets):
            held, rival_held = _holds(of[purifier], radius), _holds(rival, radius)
            row = purifier, against, sigma, radius, len(rival), *tango(held.reindex(rival.index), rival_held)
            rows.append(row)
    columns = ["purifier", "against", "sigma", "radius", "n", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def save_curve(path: Path, summary: pd.DataFrame) -> None:
    """Save certified accuracy against the radius as PNG, one line per purifier."""
    panels = {"certified accuracy": summary["certified_accuracy"]}
    save_lines(path, summary, x="radius", kind="purifier", panels=panels)


def _holds(certificates: pd.DataFrame, radius: float) -> Any:
    """Whether each class is right and certified at this radius."""
    return certificates["correct"] & ~certificates["abstained"] & (certificates["radius"] >= radius)
