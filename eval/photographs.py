"""Photographs of a folder, brought to one size."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dipdefense.files.reading import list_images, read_image

__all__ = ["cut_centre", "read_originals", "read_photo", "read_photos"]


def read_photos(
    folder: str | Path, *, resize: int, crop: int, n: int | None = None, seed: int = 0
) -> list[tuple[str, Tensor]]:
    """Read the first n images of a seeded permutation, resize the short side by area averages, and cut out the centre.

    Args:
        folder: folder of image files.
        resize: short side in pixels; no image may be smaller, since none is enlarged.
        crop: side of the square that is cut out, in pixels.
        n: number of images; all if None.
        seed: of the permutation.

    Returns:
        (file name, (3, crop, crop) in [0, 1]) of each; grey ones have three equal channels.

    Raises:
        OSError: the folder or a file cannot be read.
        ValueError: n above the number of images, a crop above `resize`, an image smaller than `resize`.
    """
    files = list_images(folder)
    if not 1 <= crop <= resize:
        raise ValueError(f"crop must lie between 1 and the {resize} pixels of resize, got {crop}")
    if n is not None and not 1 <= n <= len(files):
        raise ValueError(f"n must lie between 1 and the {len(files)} images of {folder}, got {n}")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[:n]
    return [(files[i].name, read_photo(files[i], resize, crop).expand(3, -1, -1)) for i in order.tolist()]


def read_originals(
    folder: str | Path, *, resize: int | None = None, crop: int | None = None
) -> list[tuple[str, Tensor]]:
    """Read all images of a folder in the order of their names; grey ones stay grey.

    Args:
        folder: folder of image files.
        resize: short side in pixels, by area averages; no image may be smaller. None: the original size.
        crop: side of the square that is cut out of the centre, in pixels. None: whole images.

    Returns:
        (file name, (C, H, W) in [0, 1]) of each.

    Raises:
        OSError: the folder or a file cannot be read.
        ValueError: a crop or `resize` above the short side of an image.
    """
    return [(path.name, read_photo(path, resize, crop)) for path in list_images(folder)]


def cut_centre(image: Tensor, crop: int, path: str | Path) -> Tensor:
    """The central square of `crop` pixels of an image (C, H, W); `path` is its file, for messages.

    Raises:
        ValueError: a crop below 1 or above the short side.
    """
    short = min(image.shape[1:])
    if not 1 <= crop <= short:
        raise ValueError(f"{path}: crop must lie between 1 and the {short} pixels of its short side, got {crop}")
    cut: Tensor = TF.center_crop(image, [crop, crop])
    return cut


def read_photo(path: str | Path, resize: int | None = None, crop: int | None = None) -> Tensor:
    """One image as `read_originals` reads it, (C, H, W) in [0, 1]."""
    image = read_image(path)
    short = min(image.shape[1:])
    if resize is not None:
        if not 1 <= resize <= short:
            raise ValueError(f"{path}: the short side must be at least resize, {resize} pixels, got {short}")
        size = [round(side * resize / short) for side in image.shape[1:]]
        image = F.interpolate(image[None], size, mode="area")[0].clamp(0, 1)  # rounding can leave [0, 1] by 1e-7
    return image if crop is None else cut_centre(image, crop, path)
