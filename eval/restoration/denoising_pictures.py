"""The pictures that a denoising run keeps, and its contact sheet: reference and estimates, without scaling."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dipdefense.digest import configuration_hash
from dipdefense.files.reading import read_image
from dipdefense.files.writing import write_image
from eval.records import Record
from eval.restoration.contact_sheet import save_sheet

__all__ = ["KEY", "SHOWN", "keep_picture", "save_denoised"]

KEY = ("config", "method", "image", "pixels", "seed")  # the fields that name a record and its picture
SHOWN = 4  # images on the sheet: the first ones, at the first seed
SIDE = 96  # pixels of the central square that is shown, at most


def keep_picture(folder: Path, record: Record, reference: Tensor, estimate: Tensor) -> None:
    """Write the centres of a record's clipped estimate and of its reference, side by side."""
    pair = torch.cat([_centre(reference), _centre(estimate.clamp(0, 1))], dim=2)
    write_image(pair, folder / _file(record))


def save_denoised(path: Path, folder: Path, records: Sequence[Record]) -> None:
    """Save one row per image and one column per method, with the PSNR of the whole image above each."""
    names = list(dict.fromkeys(str(record["image"]) for record in records))[:SHOWN]
    methods = list(dict.fromkeys(str(record["method"]) for record in records))
    first = {(r["image"], r["method"]): r for r in records if r["seed"] == 0}
    rows = []
    for name in names:
        row: list[tuple[str, Tensor]] = []
        for method in methods:
            record = first[name, method]
            reference, estimate = read_image(folder / _file(record)).chunk(2, dim=2)
            row = row or [(f"{Path(name).stem[-14:]}\nreference", reference)]
            row.append((f"{method}\n{record['psnr']:.2f} dB", estimate))
        rows.append(row)
    save_sheet(path, rows, side=1.5)


def _file(record: Record) -> str:
    return configuration_hash({"place": [str(record[field]) for field in KEY]}) + ".png"


def _centre(image: Tensor) -> Tensor:
    H, W = image.shape[1:]
    height, width = min(H, SIDE), min(W, SIDE)
    top, left = (H - height) // 2, (W - width) // 2
    return image.detach().cpu()[:, top : top + height, left : left + width]
