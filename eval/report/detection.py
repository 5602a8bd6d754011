"""ROC curves of the detection scores, from the records of `benchmark defence`."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from eval.report.line_chart import COLOURS, Chart, Point, Series
from eval.report.runs import Run, records_of
from eval.robustness.detection import score_pairs
from eval.text_tables import radius

__all__ = ["roc_charts"]

KEPT = ("attack", "eps", "defence", "strength", "index", "score", "fooled")


def roc_charts(run: Run) -> tuple[list[Chart], list[str]]:
    """One chart per attack and eps, with each method at its strength of largest AUROC; and what is missing for it."""
    roc = run.beside.get("roc.csv", pd.DataFrame())
    if not len(roc) or not roc["auroc"].notna().any():
        return [], ["ROC of the detector: no method gave scores, or no image was fooled"]
    if not (run.folder / "records.jsonl").is_file():
        return [], ["ROC of the detector: records.jsonl, which holds the scores, is missing"]
    panels = {key: _best(rows) for key, rows in roc[roc["auroc"].notna()].groupby(["attack", "eps"], sort=False)}
    needed = {setting for panel in panels.values() for setting in panel}
    pairs = score_pairs(
        {name: record[name] for name in KEPT}
        for record in records_of(run)
        if record["score"] is not None and (record["defence"], record["strength"]) in needed
    )
    charts, lacking = [], []
    key: Any  # pandas types the keys of groups as Hashable
    for key, panel in panels.items():
        attack, eps = key
        series = []
        for (method, strength), area in panel.items():
            pair = pairs.get((method, strength, attack, eps))
            if pair is None:
                lacking.append(f"ROC of {method} {strength:g} under {attack}: records.jsonl lacks its scores")
                continue
            series.append(Series(f"{method} {strength:g}: {area:.3f}", _curve(pair), dots=False))
        if series:
            title = f"ROC of the detector: {attack}, eps {radius(eps)}"
            x, y = "clean images flagged, %", "adversarial images flagged, %"
            charts.append(Chart(title, x, y, series, "The AUROC is beside each name.", diagonal=True, bounds=(0, 100)))
    return charts, lacking


def _best(rows: pd.DataFrame) -> dict[tuple[str, float], float]:
    """(method, strength) -> AUROC, for the best methods, each at its best strength."""
    best = rows.loc[rows.groupby("defence", sort=False)["auroc"].idxmax()].nlargest(COLOURS, "auroc").sort_index()
    return {(r.defence, r.strength): r.auroc for r in best.itertuples()}  # type: ignore[misc]


def _curve(pair: pd.DataFrame) -> list[Point]:
    adversarial = pair["attacked"][pair["fooled"]]
    truth = np.repeat([0, 1], [len(pair), len(adversarial)])
    x, y, _ = roc_curve(truth, np.concatenate([pair["clean"], adversarial]))
    return [Point(100 * a, 100 * b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
