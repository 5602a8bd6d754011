"""The pictures of a defence benchmark: clean against robust accuracy along each family, and ROC curves."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from eval.records import Record
from eval.robustness.detection import score_pairs

__all__ = ["save_curves", "save_rocs"]

MARKERS = "osD^vPX*<>hp"
SHOWN = 40  # range of clean accuracy that is shown, in percentage points below the best


def save_curves(path: str | Path, table: pd.DataFrame, attack: str) -> None:
    """Save one panel per eps: each family's clean accuracy (x) against its accuracy under `attack` (y), in percent.

    Settings more than `SHOWN` points below the best clean accuracy are not shown.

    Args:
        path: PNG file.
        table: as `benchmark_defence` returns it.
        attack: which of its attacks.
    """
    clean = table[table["attack"] == "clean"].set_index(["defence", "strength"])["accuracy"]
    attacked = table[table["attack"] == attack]
    styles = _styles(attacked["defence"].unique())
    with _style():
        figure, axes = _panels(attacked["eps"].unique(), 6)
        for axis, (eps, panel) in zip(axes, attacked.groupby("eps", sort=False), strict=True):
            for method, family in panel.groupby("defence", sort=False):
                x = 100 * clean.loc[[(method, s) for s in family["strength"]]].to_numpy()
                y = 100 * family["accuracy"].to_numpy()
                axis.plot(x, y, label=method, **styles[str(method)])
                if "+" not in str(method):  # with views the strengths are the same
                    _label(axis, x, y, family["strength"].tolist(), styles[str(method)]["color"])
            axis.set(title=f"{attack}, eps {_radius(float(eps))}", xlabel="clean accuracy, %")  # type: ignore[arg-type]
            axis.margins(0.06)
            axis.set_xlim(left=max(axis.get_xlim()[0], 100 * clean.max() - SHOWN))
        axes[0].set_ylabel("accuracy under attack, %")
        _legend(figure, axes[0])
        figure.savefig(path, dpi=150)


def save_rocs(path: str | Path, records: Iterable[Record], roc: pd.DataFrame, attack: str) -> None:
    """Save one panel per eps: the ROC curve of each family's strength of largest AUROC, against `attack`.

    Args:
        path: PNG file.
        records: of the run.
        roc: as `eval.roc.detection_table` makes it.
        attack: which of its attacks.
    """
    pairs = score_pairs(records)
    drawn = roc[(roc["attack"] == attack) & roc["auroc"].notna()]
    styles = _styles(drawn["defence"].unique())
    with _style():
        figure, axes = _panels(drawn["eps"].unique(), 5 + drawn["defence"].nunique() / 9)
        for axis, (eps, panel) in zip(axes, drawn.groupby("eps", sort=False), strict=False):
            for row in panel.loc[panel.groupby("defence", sort=False)["auroc"].idxmax()].itertuples():
                pair = pairs[str(row.defence), row.strength, attack, row.eps]  # type: ignore[index]
                adversarial = pair["attacked"][pair["fooled"]]
                truth = np.repeat([0, 1], [len(pair), len(adversarial)])
                x, y, _ = roc_curve(truth, np.concatenate([pair["clean"], adversarial]))
                line = {key: styles[str(row.defence)][key] for key in ("color", "linestyle")}
                axis.plot(100 * x, 100 * y, label=f"{row.defence} {row.strength:g}: {row.auroc:.2f}", **line)
            axis.plot([0, 100], [0, 100], color="0.7", linewidth=0.8, zorder=0)
            axis.set(title=f"{attack}, eps {_radius(float(eps))}", xlabel="clean images flagged, %")  # type: ignore[arg-type]
            axis.legend(
                title="strength: AUROC",
                loc="upper center",
                bbox_to_anchor=(0.5, -0.1),
                ncols=2,
                frameon=False,
                fontsize=7,
            )
        axes[0].set_ylabel("adversarial images flagged, %")
        figure.savefig(path, dpi=150)


def _style() -> Any:
    return matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 1.2})


def _panels(radii: Any, height: float) -> tuple[Figure, list[Any]]:
    count = max(1, len(radii))
    figure = Figure(figsize=(1.5 + 5 * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=True)[0])


def _styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and marker for each family; a variant with views has hollow markers and a dashed line."""
    names = list(methods)
    families = list(dict.fromkeys(name.partition("+")[0] for name in names))
    styles = {}
    for name in names:
        number, viewed = families.index(name.partition("+")[0]), "+" in name
        styles[name] = {
            "color": matplotlib.colormaps["tab20"]((2 * number + number // 10) % 20),
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": "--" if viewed else "-",
            "markerfacecolor": "white" if viewed else None,
            "markersize": 5,
        }
    return styles


def _label(axis: Any, x: Any, y: Any, strengths: list[float], colour: Any) -> None:
    """Write the strength at the ends of a curve, and at every other point between them."""
    for number, strength in enumerate(strengths):
        if len(strengths) > 1 and (number % 2 == 0 or number == len(strengths) - 1):
            place = (x[number], y[number])
            axis.annotate(f"{strength:g}", place, xytext=(3, 3), textcoords="offset points", fontsize=6, color=colour)


def _legend(figure: Figure, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)


def _radius(eps: float) -> str:
    """As 8/255 if it is such a fraction, else as a decimal."""
    return f"{eps * 255:.3g}/255" if abs(eps * 255 - round(eps * 255)) < 1e-6 else f"{eps:.3g}"
