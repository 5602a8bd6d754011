"""Reading image files, with all checks of their content."""

import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from dipdefense.files.writing import WRITABLE

__all__ = ["MAX_PIXELS", "READABLE", "decode_image", "list_images", "pixel_limit", "read_image"]

READABLE = (*WRITABLE, ".gif", ".pbm", ".pgm", ".pnm", ".ppm")

MAX_PIXELS = 120_000_000  # of a file, unless the user raises the limit; photographs of 108 megapixels pass

# The content decides the format. Others are not read, since Pillow would run Ghostscript on an EPS file.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM")

# The modes of Pillow that are read, by what they are converted to.
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
GREY_16_BIT = ("I;16", "I;16B", "I;16L")

# What Pillow's decoders raise on damaged files.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

decoding = threading.Lock()  # `warnings.catch_warnings` works for one thread at a time


def pixel_limit() -> int:
    """The most pixels that a file may have to be read: the environment's DIPDEFENSE_MAX_PIXELS, or `MAX_PIXELS`.

    Raises:
        ValueError: the variable is no positive integer.
    """
    text = os.environ.get("DIPDEFENSE_MAX_PIXELS") or str(MAX_PIXELS)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"DIPDEFENSE_MAX_PIXELS must be a positive integer such as {MAX_PIXELS}, got {text!r}")
    return int(text)


def read_image(path: str | Path, *, max_pixels: int | None = None) -> Tensor:
    """Read an image file as a viewer shows it: EXIF orientation applied, palette and CMYK as RGB.

    16-bit grey keeps its precision; 16-bit colour is read at 8 bits, as Pillow has no more. A fully opaque
    alpha channel is dropped. Colour profiles and damaged metadata are ignored. The primary picture of a camera's
    multi-picture JPEG is read.

    Args:
        path: a PNG, JPEG, TIFF, WebP, BMP, GIF or PNM file; its content counts, not its suffix.
        max_pixels: the most pixels that the file may declare, checked before any is decoded; `pixel_limit()` if None.

    Returns:
        (C, H, W) float32 in [0, 1], C = 1 for grey and 3 for colour.

    Raises:
        OSError: the file is missing, a folder, or not readable by this user.
        ValueError: the file is not an image, damaged, too large, transparent, of several frames, or of a mode
            without a known white level, such as 32-bit grey.
    """
    with Path(path).open("rb") as file:
        return decode_image(file, str(path), max_pixels=max_pixels)


def decode_image(file: IO[bytes], name: str, *, max_pixels: int | None = None) -> Tensor:
    """An image from an open file, as `read_image` reads it; `name` is what messages call it.

    Raises:
        ValueError: as `read_image`.
    """
    limit = pixel_limit() if max_pixels is None else max_pixels
    try:
        with decoding, warnings.catch_warnings(action="ignore"):  # about metadata
            pixels = _decode(file, limit)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image ({', '.join(FORMATS)}), or damaged") from error
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: {reason}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (C, H, W)


def _decode(file: IO[bytes], limit: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Pixels of an open image file, (H, W, C) in [0, 1]."""
    with _open(file) as opened:
        if (declared := opened.width * opened.height) > limit:
            raise ValueError(
                f"an image must have at most {limit} pixels, got {opened.width} x {opened.height} = {declared}; "
                f"set the environment variable DIPDEFENSE_MAX_PIXELS={declared} if it is to be read"
            )
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format != "MPO":
            raise ValueError(f"an image must have one frame, got {frames}; extract one of them first")
        _check_mode(opened)
        _check_strips(opened)
        image = _opaque(ImageOps.exif_transpose(opened))
    if opened.format == "PNG":
        _check_rows(file)
    if image.mode in GREY + COLOUR:
        white = 255
        image = image.convert("L" if image.mode in GREY else "RGB")
    else:
        white = 65535
    pixels = np.array(image, dtype=np.float32)
    return pixels.reshape(*pixels.shape[:2], -1) / np.float32(white)


def _open(file: IO[bytes]) -> ImageFile.ImageFile:
    """`Image.open` without Pillow's own limit of pixels, which at first only warns, and holds for the whole process."""
    Image.init()  # registers the formats
    file.seek(0)
    prefix = file.read(16)
    for name in FORMATS:
        opener, accepts = Image.OPEN[name]
        if accepts is not None and accepts(prefix):
            file.seek(0)
            return opener(file, "")
    raise UnidentifiedImageError


def _check_mode(image: ImageFile.ImageFile) -> None:
    """Refuse the modes, and the TIFF variants of 16-bit grey, whose black or white level Pillow does not report."""
    modes = GREY + COLOUR + GREY_16_BIT
    scaled = image.mode == "I" and image.format == "PPM"  # Pillow scales the maximum that such a file declares to 65535
    if image.mode not in modes and not scaled:
        unknown = ", whose white level is unknown; convert it to 8-bit or 16-bit grey first"
        remedy = unknown if image.mode in ("I", "F") else "; convert it first"
        raise ValueError(f"the mode must be one of {', '.join(modes)}, got {image.mode}{remedy}")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode in GREY_16_BIT:
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if white_is_zero or image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            raise ValueError("12-bit and white-is-zero grey are not supported; convert it to 16-bit grey first")


def _check_strips(image: ImageFile.ImageFile) -> None:
    """Refuse a TIFF file that lists strips for its upper rows only: Pillow leaves the others black."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        height = image.tag_v2[TiffImagePlugin.IMAGELENGTH]  # as stored; `image.height` is that of the rotated image
        listed = max((extents[3] for _, extents, *_ in image.tile if extents), default=0)  # left, upper, right, lower
        if listed < height:
            raise ValueError(f"the file is damaged: it holds {listed} of {height} rows")


def _check_rows(file: IO[bytes]) -> None:
    """Refuse a PNG file whose compressed pixels end before its last row: Pillow leaves the others black."""
    file.seek(16)
    width, height, bits, colour = struct.unpack(">IIBB", file.read(10))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    needed = height * (1 + (width * channels * bits + 7) // 8)  # one byte stands before each row; several if interlaced
    inflate, held = zlib.decompressobj(), 0
    for block in _compressed(file):
        while block and held < needed:
            held += len(inflate.decompress(block, 2**20))
            block = inflate.unconsumed_tail
    held += len(inflate.flush())
    if held < needed:
        raise ValueError(f"the file is damaged: its pixels take {needed} bytes, it holds {held}")


def _compressed(file: IO[bytes]) -> Iterator[bytes]:
    """The compressed pixels of a PNG file, in small blocks."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        left, kind = struct.unpack(">I4s", head)
        while kind == b"IDAT" and left and (block := file.read(min(left, 2**16))):
            yield block
            left -= len(block)
        file.seek(left + 4, os.SEEK_CUR)  # the checksum is skipped, too


def _opaque(image: Image.Image) -> Image.Image:
    """The image without its alpha channel, which must be opaque everywhere."""
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA") if image.mode in GREY + COLOUR else image
    if rgba.mode != "RGBA" or rgba.getchannel("A").getextrema() != (255, 255):
        raise ValueError("an image must be opaque, got transparent pixels; flatten it onto a background first")
    return rgba.getchannel("R") if image.mode in GREY else rgba.convert("RGB")


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in a folder, by suffix (`READABLE`, any case), sorted; hidden ones are left out.

    Raises:
        OSError: the folder is missing, not a folder, or not readable by this user.
        ValueError: it holds no image file.
    """
    paths = sorted(
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in READABLE and not path.name.startswith(".") and not path.is_dir()
    )
    if not paths:
        raise ValueError(f"{folder}: the folder must hold at least one image ({', '.join(READABLE)}), got none")
    return paths
