"""Line plots of a long table: one panel for each group, one line for each kind."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

__all__ = ["save_lines"]


def save_lines(
    path: str | Path, table: pd.DataFrame, *, x: str, kind: str, panels: dict[str, pd.Series], log: bool = False
) -> None:
    """Save one panel for each series of `panels`, whose key is the label of its y axis, with a line for each `kind`.

    Args:
        path: PNG file.
        table: with the columns `x` and `kind`.
        x: column along the horizontal axis.
        kind: column whose values are the lines.
        panels: label -> values along `table`'s index; rows that a series lacks are not in its panel.
        log: both axes are logarithmic.
    """
    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "lines.linewidth": 1.2}):
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(0.6 + 4.6 * columns, 3.2 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
        for axis, (label, values) in zip(axes, panels.items(), strict=False):
            here = table.loc[values.index]
            for name, group in here.groupby(kind, sort=False):
                axis.plot(group[x], values.loc[group.index], label=str(name))
            axis.set(xlabel=x, ylabel=label)
            if log:
                axis.set(xscale="log", yscale="log")
        axes[0].legend(frameon=False)
        figure.savefig(path, dpi=110)
