"""Photographs of a folder, brought to one size."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dipdefense.images import list_images, read_image

__all__ = ["read_photos"]


def read_photos(
    folder: str | Path, *, resize: int, crop: int, n: int | None = None, seed: int = 0
) -> list[tuple[str, Tensor]]:
    """Read the first n images of a seeded permutation: short side resized by area averages, centre cut out.

    Args:
        folder: with image files.
        resize: short side in pixels; none may be smaller, since nothing is enlarged.
        crop: side of the square that is cut out, in pixels.
        n: how many; all if None.
        seed: of the permutation.

    Returns:
        (file name, (3, crop, crop) in [0, 1]) of each; grey ones have three equal channels.

    Raises:
        OSError: the folder or a file cannot be read.
        ValueError: n beyond the images there are, a crop beyond `resize`, a smaller image.
    """
    files = list_images(folder)
    if not 1 <= crop <= resize:
        raise ValueError(f"crop must lie between 1 and the {resize} pixels of resize, got {crop}")
    if n is not None and not 1 <= n <= len(files):
        raise ValueError(f"n must lie between 1 and the {len(files)} images of {folder}, got {n}")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[:n]
    return [(files[i].name, _read(files[i], resize, crop)) for i in order.tolist()]


def _read(path: Path, resize: int, crop: int) -> Tensor:
    image = read_image(path)
    short = min(image.shape[1:])
    if short < resize:
        raise ValueError(f"{path}: the short side must be at least resize, {resize} pixels, got {short}")
    size = [round(side * resize / short) for side in image.shape[1:]]
    pixels = F.interpolate(image[None], size, mode="area")[0]
    cut: Tensor = TF.center_crop(pixels, [crop, crop])
    return cut.clamp(0, 1).expand(3, -1, -1)  # rounding can leave [0, 1] by 1e-7
