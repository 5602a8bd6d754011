"""Image files of any content: a round trip keeps 8 bits, and a damaged file reads or is refused in one line."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dipdefense.files.reading import decode_image, read_image
from dipdefense.files.writing import WRITABLE, write_image

LOSSLESS = sorted(set(WRITABLE) - {".jpg", ".jpeg"})
sides = st.integers(1, 24)
levels = st.tuples(sides, sides, st.sampled_from([1, 3])).flatmap(lambda shape: arrays(np.uint8, shape))
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", LOSSLESS)
@given(pixels=levels, offset=st.floats(-0.49, 0.49))
def test_a_round_trip_gives_the_nearest_level(tmp_path, suffix, pixels, offset):
    path = tmp_path / f"x{suffix}"
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    write_image((expected + offset / 255).clamp(0, 1), path)
    assert torch.equal(read_image(path), expected.expand(3, -1, -1) if suffix == ".webp" else expected)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
@given(
    height=sides,
    width=sides,
    colour=st.lists(st.integers(0, 255), min_size=1, max_size=3).filter(lambda c: len(c) != 2),
)
def test_a_round_trip_through_jpeg_keeps_a_flat_image(tmp_path, suffix, height, width, colour):
    path = tmp_path / f"x{suffix}"
    image = (torch.tensor(colour) / 255)[:, None, None].expand(-1, height, width)
    write_image(image, path)
    assert read_image(path).shape == image.shape
    assert (read_image(path) - image).abs().max() < 3.5 / 255


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    content = Image.Exif()
    content[0x0112] = 6  # orientation
    content[0x010E] = "a description that does not fit into its entry"
    return content


COLOUR, GREY = Image.fromarray(IMAGE), Image.fromarray(IMAGE[..., 0])
DEEP = Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 257)
FILES = {
    "bmp": encoded(COLOUR, format="BMP"),
    "gif": encoded(COLOUR.convert("P"), format="GIF"),
    "jpeg": encoded(COLOUR, format="JPEG", exif=exif()),
    "jpeg progressive": encoded(COLOUR, format="JPEG", progressive=True),
    "mpo": encoded(COLOUR, format="MPO", save_all=True, append_images=[COLOUR]),
    "pgm": encoded(GREY, format="PPM"),
    "pgm 16 bits": b"P5 3 2 1000\n" + bytes(range(12)),
    "pgm plain": b"P2\n3 2\n1000\n" + b"0 1 500 999 1000 7\n",
    "png": encoded(COLOUR, format="PNG", exif=exif()),
    "png 16 bits": encoded(DEEP, format="PNG"),
    "png animated": encoded(COLOUR, format="PNG", save_all=True, append_images=[GREY.convert("RGB")]),
    "png palette": encoded(COLOUR.convert("P"), format="PNG", transparency=bytes([255] * 256)),
    "ppm": encoded(COLOUR, format="PPM"),
    "tiff": encoded(COLOUR, format="TIFF"),
    "tiff 16 bits": encoded(DEEP, format="TIFF"),
    "tiff deflate": encoded(COLOUR, format="TIFF", compression="tiff_adobe_deflate"),
    "tiff turned": encoded(COLOUR, format="TIFF", exif=exif()),
    "webp": encoded(COLOUR, format="WEBP", exif=exif()),
    "webp lossless": encoded(COLOUR, format="WEBP", lossless=True),
}


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with a few bytes changed, of its head above all, cut short, or with bytes put in."""
    changed = bytearray(content)
    places = st.integers(0, min(80, len(content) - 1)) | st.integers(0, len(content) - 1)
    for place, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        changed[place] = value
    start = draw(st.integers(0, len(changed)))
    changed[start:start] = draw(st.binary(max_size=4))
    return bytes(changed[: draw(st.just(len(changed)) | st.integers(0, len(changed)))])


@pytest.mark.parametrize("kind", FILES)
@given(drawn=st.data())
def test_a_damaged_file_reads_or_is_refused_in_one_line(kind, drawn):
    content, image, refusal = drawn.draw(damaged(FILES[kind])), None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            image = decode_image(io.BytesIO(content), "x.img", max_pixels=10_000)
        except ValueError as error:
            refusal = str(error)
    assert not caught
    if image is None:
        assert refusal.startswith("x.img: ")
        assert len(refusal.splitlines()) == 1
    else:
        assert image.dtype == torch.float32
        assert image.shape[0] in (1, 3)
        assert 0 <= image.min() <= image.max() <= 1


@given(content=st.binary(max_size=200))
def test_any_bytes_are_no_image(content):
    with pytest.raises(ValueError, match=r"^x\.img: "):
        decode_image(io.BytesIO(content), "x.img")
