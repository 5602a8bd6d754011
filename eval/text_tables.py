"""Tables and figures as people read them, in the terminal and in the report: shares are in percent with one decimal.

Files and `--json` keep shares in [0, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

__all__ = ["Cells", "cells", "figures_text", "percent", "radius"]

SHARES = {
    *("accuracy", "certified_accuracy", "flagged", "right_or_flagged"),
    *("tpr_at_5fpr", "flagged_at_5fpr", "rises", "overhead", "share"),
}
# columns that ci_low and ci_high of their table are the 95 % interval of, the first one that the table has
BOUNDED = ("accuracy", "certified_accuracy", "auroc", "rises", "gap", "psnr", "difference")
BOUNDS = ("ci_low", "ci_high")
DECIBELS = ("psnr", "difference", "gap")  # how names of such columns begin; a difference can also be one of shares
STRENGTHS = ("strength", "against_strength")  # 0 where a method has none


@dataclass(frozen=True)
class Cells:
    """A table of text; figures are right-aligned."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    figures: list[bool]  # for each column, whether it holds figures


def cells(caption: str, table: pd.DataFrame, drop: tuple[str, ...] = ()) -> Cells:
    """A data frame as text: shares in percent, figures with their interval in brackets; empty columns are left out."""
    names = [str(name) for name in table if name not in drop]
    shares = SHARES | ({"difference"} if "against" in names else set())  # without it, a difference of other figures
    with_interval = next((name for name in BOUNDED if {name, *BOUNDS} <= {*names}), None)
    header, columns, figures = [], [], []
    for name in names:
        if with_interval is not None and name in BOUNDS:
            continue
        is_share = name in shares
        column = [_text(name, value, is_share) for value in table[name]]
        heading = _heading(name, is_share)
        if name == with_interval:
            low, high = ([_text(bound, value, is_share) for value in table[bound]] for bound in BOUNDS)
            column = [f"{y} ({a} to {b})" if a else y for y, a, b in zip(column, low, high, strict=True)]
            heading += " (95 % interval)" if any(low) else ""
        if any(column) or table.empty:
            header.append(heading)
            columns.append(column)
            figures.append(pd.api.types.is_numeric_dtype(table[name]) and name != "passed")
    return Cells(caption, header, [list(row) for row in zip(*columns, strict=True)], figures)


def percent(share: float) -> str:
    """A share in [0, 1] in percent with one decimal; nothing for NaN."""
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def figures_text(figures: Mapping[str, Any]) -> str:
    """Named figures of a check, such as `accuracy PGD 12.5 %, n 8`."""
    return ", ".join(
        f"{name} {percent(value)} %" if name.startswith("accuracy") else f"{name} {_text(name, value)}"
        for name, value in figures.items()
    )


def radius(eps: float) -> str:
    """As 8/255 if it is such a fraction with a small numerator, else as a decimal; nothing for NaN, no radius."""
    if math.isnan(eps):
        return ""
    levels = round(eps * 255)
    return f"{levels}/255" if 0 < levels <= 32 and abs(eps * 255 - levels) < 1e-6 else f"{eps:.3g}"


def _heading(name: str, is_share: bool) -> str:
    """A column's name, and its unit."""
    words = name.replace("_", " ").replace("psnr", "PSNR").replace("ssim", "SSIM").replace("auroc", "AUROC")
    return words + (", %" if is_share else ", dB" if name.startswith(DECIBELS) else "")


def _text(name: str, value: Any, is_share: bool = False) -> str:
    """A value of a column as text: four digits if it is not whole, nothing for NaN and for no strength."""
    if value is None or (name in STRENGTHS and value == 0):
        return ""
    if is_share:
        return percent(value)
    if name == "eps":
        return radius(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
