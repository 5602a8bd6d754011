"""Writing images to files: whole or not at all."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dipdefense.image_tensors import check_images
from dipdefense.whole_file import check_writable, replacing

__all__ = ["WRITABLE", "check_target", "encode_png", "write_image"]

# Suffix -> Pillow's options for saving; only JPEG is lossy, and as little as possible.
WRITABLE: dict[str, dict[str, Any]] = {
    ".bmp": {"format": "BMP"},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
    ".webp": {"format": "WEBP", "lossless": True},
}


def write_image(image: Tensor, path: str | Path) -> None:
    """Write an image to an 8-bit file, rounded to the nearest level, in the format of the suffix.

    The file appears under its name only when it is complete: an interrupted write leaves an older file of
    that name as it was. WebP has no grey, so a grey image is read back from it as colour.

    Args:
        image: (C, H, W) in [0, 1], C = 1 or 3.
        path: file to make or replace; its suffix is a key of `WRITABLE`.

    Raises:
        OSError: the folder is missing, full, or not writable by this user.
        TypeError: `image` is not a float tensor.
        ValueError: the suffix is unknown, or the image's shape or range is wrong.
    """
    path = Path(path)
    options = _saving_options(path)
    encoded = _eight_bit(image)
    with replacing(path) as file:
        encoded.save(file, **options)


def encode_png(image: Tensor) -> bytes:
    """The content of the PNG file that `write_image` would write, from (C, H, W) in [0, 1], C = 1 or 3.

    Raises:
        TypeError, ValueError: as `write_image`.
    """
    file = io.BytesIO()
    _eight_bit(image).save(file, **WRITABLE[".png"])
    return file.getvalue()


def _eight_bit(image: Tensor) -> Image.Image:
    check_images(image, "image", ndim=3, channels=(1, 3), half=True)
    levels = (image.detach().cpu().float() * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).squeeze(2).numpy())


def check_target(path: str | Path) -> None:
    """Raise what `write_image` would raise for this path, before any work is done for it.

    Raises:
        OSError: the folder is missing or not writable by this user, or the path is a folder itself.
        ValueError: the suffix is unknown.
    """
    _saving_options(Path(path))
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    check_writable(Path(path))


def _saving_options(path: Path) -> dict[str, Any]:
    options = WRITABLE.get(path.suffix.lower())
    if options is None:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(WRITABLE)}, got {path.suffix!r}")
    return options
