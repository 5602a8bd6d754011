"""The contact sheet of a denoising run: reference and every estimate of a few images, at their own pixels."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dipdefense.images import read_image, write_image
from eval.records import Record, configuration_hash

__all__ = ["SHOWN", "keep_picture", "save_sheet"]

SHOWN = 4  # images on the sheet: the first ones, at the first seed
SIDE = 96  # pixels of the central square that is shown, at most


def keep_picture(folder: Path, place: tuple[str, ...], reference: Tensor, estimate: Tensor) -> None:
    """Write the centres of an estimate, clipped, and of its reference beside each other, as a file named by `place`."""
    pair = torch.cat([_centre(reference), _centre(estimate.clamp(0, 1))], dim=2)
    write_image(pair, folder / _file(place))


def save_sheet(path: Path, folder: Path, records: Sequence[Record]) -> None:
    """Save one row an image and one column a method, with the PSNR of the whole image under each."""
    names = list(dict.fromkeys(str(record["image"]) for record in records))[:SHOWN]
    methods = list(dict.fromkeys(str(record["method"]) for record in records))
    first = {(r["image"], r["method"]): r for r in records if r["seed"] == 0}
    columns = len(methods) + 1
    with matplotlib.rc_context({"font.size": 7}):
        figure = Figure(figsize=(1.0 * columns, 1.2 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), columns, squeeze=False)
        for row, name in enumerate(names):
            for column, method in enumerate(methods, 1):
                record = first[name, method]
                place = tuple(str(record[key]) for key in ("config", "method", "image", "pixels", "seed"))
                reference, estimate = read_image(folder / _file(place)).chunk(2, dim=2)
                _show(axes[row, column], estimate, f"{record['psnr']:.2f} dB")
                _show(axes[row, 0], reference, Path(name).stem[-14:])
        for axis, title in zip(axes[0], ["reference", *methods], strict=True):
            axis.set_title(title.replace("_", "\n").replace(":", "\n"), fontsize=7)
        figure.savefig(path, dpi=120, pil_kwargs={"quality": 85})


def _file(place: tuple[str, ...]) -> str:
    return configuration_hash({"place": list(place)}) + ".png"


def _centre(image: Tensor) -> Tensor:
    H, W = image.shape[1:]
    height, width = min(H, SIDE), min(W, SIDE)
    top, left = (H - height) // 2, (W - width) // 2
    return image.detach().cpu()[:, top : top + height, left : left + width]


def _show(axis: object, image: Tensor, label: str) -> None:
    shown = image.permute(1, 2, 0).squeeze(-1).numpy()
    axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")  # type: ignore[attr-defined]
    axis.set(xticks=[], yticks=[])  # type: ignore[attr-defined]
    axis.set_xlabel(label, labelpad=2)  # type: ignore[attr-defined]
