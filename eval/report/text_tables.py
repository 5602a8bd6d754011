"""Data frames as tables of text."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

__all__ = ["Cells", "cells", "radius"]

INTERVALS = dict.fromkeys(("accuracy", "certified_accuracy", "difference", "auroc"), ("ci_low", "ci_high"))
STRENGTHS = ("strength", "against_strength")  # 0 where a method has none
SHARES = {
    "accuracy",
    "certified_accuracy",
    "difference",
    "flagged",
    "right_or_flagged",
    "tpr_at_5fpr",
    "flagged_at_5fpr",
}


@dataclass(frozen=True)
class Cells:
    """A table of text; figures are right-aligned."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    figures: list[bool]  # for each column, whether it holds figures


def cells(caption: str, table: pd.DataFrame, drop: tuple[str, ...] = ()) -> Cells:
    """A data frame as text: shares in percent with their interval in brackets; empty columns are left out."""
    table = table.assign(**{name: table[name].replace(0, math.nan) for name in STRENGTHS if name in table})
    shown = table.drop(columns=[c for c in table if c in drop or table[c].isna().all()])
    bounds = {bound for name, pair in INTERVALS.items() if name in shown and set(pair) <= set(shown) for bound in pair}
    header, columns, figures = [], [], []
    for name in [column for column in shown if column not in bounds]:
        scale, digits = (100, 1) if name in SHARES else (1, None)
        column = [radius(v) if name == "eps" else text_of(v, scale, digits) for v in shown[name]]
        if name in INTERVALS and bounds:
            pair = [[text_of(v, scale, digits) for v in shown[bound]] for bound in INTERVALS[name]]
            column = [f"{y} ({a} to {b})" if a else y for y, a, b in zip(column, *pair, strict=True)]
        header.append(_heading(str(name)))
        columns.append(column)
        figures.append(pd.api.types.is_numeric_dtype(shown[name]) and name != "passed")
    return Cells(caption, header, [list(row) for row in zip(*columns, strict=True)], figures)


def radius(eps: float) -> str:
    """As 8/255 if it is such a fraction with a small numerator, else as a decimal; nothing for NaN, no radius."""
    if math.isnan(eps):
        return ""
    levels = round(eps * 255)
    return f"{levels}/255" if 0 < levels <= 32 and abs(eps * 255 - levels) < 1e-6 else f"{eps:.3g}"


def _heading(name: str) -> str:
    """A column's name, and its unit."""
    words = name.replace("_", " ").replace("psnr", "PSNR").replace("ssim", "SSIM").replace("auroc", "AUROC")
    return words + (", %" if name in SHARES else ", dB" if name.startswith("psnr") else "")


def text_of(value: Any, scale: float = 1, digits: int | None = None) -> str:
    """A value as text: four digits if it is not whole, nothing for NaN."""
    if isinstance(value, float) and not isinstance(value, bool):
        if math.isnan(value):
            return ""
        return f"{scale * value:.{digits}f}" if digits is not None else f"{value:.4g}"
    if scale != 1 and isinstance(value, int):
        return f"{scale * value:.{digits}f}"
    return str(value)
