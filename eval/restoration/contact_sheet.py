"""A contact sheet: images in rows, each under its caption."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["save_sheet"]


def save_sheet(path: str | Path, rows: Sequence[Sequence[tuple[str, Tensor]]], *, side: float = 1.7) -> None:
    """Save rows of images, which may differ in number and size, as one PNG or JPEG.

    Args:
        path: PNG or JPEG file.
        rows: (caption, (C, H, W) in [0, 1]) of every image.
        side: of an image in inches, at 100 pixels per inch.
    """
    columns = max(len(row) for row in rows)
    with matplotlib.rc_context({"font.size": 7}):
        figure = Figure(figsize=(side * columns, (side + 0.15) * len(rows)), layout="constrained", dpi=100)
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for across, row in zip(axes, rows, strict=True):
            for axis, (caption, image) in zip(across, row, strict=False):
                axis.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
                axis.set_title(caption, pad=2)
        figure.savefig(path, pil_kwargs={"quality": 85} if Path(path).suffix != ".png" else {})
