"""Image files: what is read exactly, what is refused, and that no write leaves a torn file."""

import errno
import io
import os
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dipdefense.files.reading import MAX_PIXELS, list_images, pixel_limit, read_image
from dipdefense.files.writing import WRITABLE, check_target, write_image
from dipdefense.image_tensors import check_images

LOSSLESS = sorted(set(WRITABLE) - {".jpg", ".jpeg"})
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """8-bit (H, W) or (H, W, C) pixels as (C, H, W) in [0, 1]."""
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1) / 255


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def with_alpha(mode: str, alpha: int) -> Image.Image:
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(Image.fromarray(np.where(GREY.max() > GREY, 255, alpha).astype(np.uint8)))
    return image


# Reading


def test_read_gives_float_channels_first(tmp_path):
    image = read_image(saved(Image.fromarray(RGB), tmp_path / "x.png"))
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    torch.testing.assert_close(image, tensor(RGB), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("mode", "suffix", "shown"),
    [
        ("1", ".png", "L"),
        ("1", ".tif", "L"),
        ("L", ".png", "L"),
        ("L", ".pgm", "L"),
        ("P", ".png", "RGB"),
        ("P", ".gif", "RGB"),
        ("RGB", ".bmp", "RGB"),
        ("CMYK", ".tif", "RGB"),
        ("YCbCr", ".tif", "RGB"),
    ],
)
def test_read_modes_as_a_viewer_shows_them(tmp_path, mode, suffix, shown):
    image = Image.fromarray(RGB).convert(mode)
    expected = tensor(np.array(image.convert(shown)))
    assert torch.equal(read_image(saved(image, tmp_path / f"x{suffix}")), expected)


def test_read_decides_by_content_not_by_suffix(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "x.jpg", format="PNG")
    assert torch.equal(read_image(str(path)), tensor(RGB))


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "<u2"), (".tif", "<u2"), (".tif", ">u2")])
def test_read_16_bit_grey_at_full_precision(tmp_path, suffix, dtype):
    levels = np.arange(65536).reshape(256, 256)
    image = read_image(saved(Image.fromarray(levels.astype(dtype)), tmp_path / f"x{suffix}"))
    assert image.shape == (1, 256, 256)
    assert np.array_equal(image[0].numpy(), levels.astype(np.float32) / np.float32(65535))
    assert image.unique().numel() == 65536


@pytest.mark.parametrize("maximum", [256, 1000, 65535])
@pytest.mark.parametrize("plain", [True, False])
def test_read_pgm_of_16_bits_by_its_stated_maximum(tmp_path, maximum, plain):
    levels = [0, 1, maximum // 2, maximum - 1, maximum]
    pixels = " ".join(map(str, levels)).encode() if plain else b"".join(v.to_bytes(2, "big") for v in levels)
    (tmp_path / "x.pgm").write_bytes(b"P%d\n5 1\n%d\n" % (2 if plain else 5, maximum) + pixels)
    image = read_image(tmp_path / "x.pgm")[0, 0]
    assert np.abs(image.numpy() - np.array(levels) / maximum).max() <= 0.5 / 65535 + 1e-7


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_read_applies_exif_orientation(tmp_path, suffix, orientation):
    # EXIF 2.32: where the first row and the first column of the stored pixels belong.
    shown = [RGB, RGB[:, ::-1], RGB[::-1, ::-1], RGB[::-1]]
    shown += [turned.transpose(1, 0, 2) for turned in (RGB, RGB[::-1], RGB[::-1, ::-1], RGB[:, ::-1])]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(RGB), tmp_path / f"x{suffix}", **WRITABLE[suffix], exif=exif)
    assert torch.equal(read_image(path), tensor(shown[orientation - 1].copy()))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_read_drops_an_opaque_alpha_channel(tmp_path, mode):
    expected = tensor(np.array(Image.fromarray(RGB).convert(mode)))
    assert torch.equal(read_image(saved(with_alpha(mode, 255), tmp_path / "x.png")), expected)


def test_read_drops_an_opaque_palette_alpha(tmp_path):
    image = Image.fromarray(RGB).convert("P")
    path = saved(image, tmp_path / "x.png", transparency=bytes([255] * 256))
    assert torch.equal(read_image(path), tensor(np.array(image.convert("RGB"))))


def test_read_takes_the_primary_picture_of_a_multi_picture_jpeg(tmp_path):
    flat = Image.new("RGB", (8, 8), (51, 51, 51))
    path = saved(flat, tmp_path / "x.mpo", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert torch.equal(read_image(path), torch.full((3, 8, 8), 0.2))


@pytest.mark.data
def test_read_real_files(data):
    assert read_image(data / "sets" / "set9" / "kodim01.png").shape == (3, 512, 768)
    assert read_image(next((data / "sets" / "inpaint11").glob("*.png"))).shape[0] == 1


# Refusing


@pytest.mark.parametrize(
    "image",
    [with_alpha("L", 254), with_alpha("RGB", 0)],
    ids=["LA", "RGBA"],
)
def test_read_refuses_an_alpha_channel(tmp_path, image):
    with pytest.raises(ValueError, match=r"x\.png: an image must be opaque.*flatten it"):
        read_image(saved(image, tmp_path / "x.png"))


@pytest.mark.parametrize(
    ("image", "transparency"),
    [
        (Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE), 0),
        (Image.fromarray(RGB), tuple(RGB[0, 0].tolist())),
        (Image.fromarray(GREY), int(GREY[0, 0])),
        (Image.fromarray(GREY.astype(np.uint16)), 1),
    ],
    ids=["P", "RGB", "L", "I;16"],
)
def test_read_refuses_a_transparent_colour(tmp_path, image, transparency):
    with pytest.raises(ValueError, match="an image must be opaque"):
        read_image(saved(image, tmp_path / "x.png", transparency=transparency))


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".png", ".webp"])
def test_read_refuses_several_frames(tmp_path, suffix):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    path = saved(frames[0], tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="must have one frame, got 2"):
        read_image(path)


@pytest.mark.parametrize("mode", ["I", "F"])
@pytest.mark.parametrize("highest", [1, 255, 65535])
def test_read_refuses_32_bit_grey_whose_white_is_unknown(tmp_path, mode, highest):
    path = saved(Image.fromarray(GREY).convert(mode).point(lambda level: level * (highest / 255)), tmp_path / "x.tif")
    message = (
        f"the mode must be one of .*, got {mode}, whose white level is unknown; convert it to 8-bit or 16-bit grey"
    )
    with pytest.raises(ValueError, match=message):
        read_image(path)


def test_read_refuses_signed_16_bit_grey(tmp_path):
    path = saved(Image.fromarray(GREY.astype(np.uint16)), tmp_path / "x.tif", tiffinfo={339: 1})
    entry = struct.pack("<HHI", 339, 3, 1)  # sample format, SHORT, one value
    assert entry in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(entry + b"\1", entry + b"\2"))
    with pytest.raises(ValueError, match="got I, whose white level is unknown"):
        read_image(path)


def test_read_refuses_other_modes(tmp_path):
    with pytest.raises(ValueError, match=r"the mode must be one of .*, got LAB; convert it first"):
        read_image(saved(Image.new("LAB", (4, 4)), tmp_path / "x.tif"))


def test_read_refuses_white_is_zero_at_16_bits(tmp_path):
    path = saved(Image.fromarray(GREY.astype(np.uint16)), tmp_path / "x.tif", tiffinfo={262: 0})
    content = path.read_bytes()
    entry = b"\x06\x01\x03\x00\x01\x00\x00\x00"  # tag 262, SHORT, one value
    path.write_bytes(content.replace(entry + b"\x01", entry + b"\x00"))
    with pytest.raises(ValueError, match="white-is-zero"):
        read_image(path)


@pytest.mark.parametrize("suffix", [*LOSSLESS, ".jpg", ".gif", ".ppm"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_read_refuses_truncated_files(tmp_path, suffix, kept):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"x{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"^{path}: [^\n]+$"):
        read_image(path)


def test_read_refuses_what_is_no_image(tmp_path):
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(ValueError, match=r"x\.png: not an image .*PNG"):
        read_image(tmp_path / "x.png")


def test_read_refuses_formats_that_run_programs(tmp_path):
    with pytest.raises(ValueError, match="not an image"):
        read_image(saved(Image.fromarray(RGB), tmp_path / "x.eps"))


def png(width: int, height: int, rows: int, *, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG file that declares width x height pixels and holds these rows of them, white."""
    channels = {0: 1, 2: 3}[colour]
    pixels = (b"\0" + b"\xff" * ((width * channels * bits + 7) // 8)) * rows
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    lines = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(lines)


@pytest.mark.parametrize("side", [13_000, 60_000])
def test_read_refuses_what_declares_too_many_pixels(tmp_path, side):
    """With pixels for two rows; Pillow alone warns of the smaller one, and leaves the rest black."""
    path = tmp_path / "x.png"
    path.write_bytes(png(side, side, 2))
    message = (
        f"{path}: an image must have at most {MAX_PIXELS} pixels, got {side} x {side} = {side**2}; "
        f"set the environment variable DIPDEFENSE_MAX_PIXELS={side**2} if it is to be read"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_image(path)


def test_the_pixel_limit_is_raised_by_argument_or_environment(tmp_path, monkeypatch):
    path = saved(Image.fromarray(RGB), tmp_path / "x.png")
    with pytest.raises(ValueError, match="at most 34 pixels, got 7 x 5 = 35"):
        read_image(path, max_pixels=34)
    assert read_image(path, max_pixels=35).shape == (3, 5, 7)
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", "34")
    with pytest.raises(ValueError, match="at most 34 pixels"):
        read_image(path)
    assert read_image(path, max_pixels=35).shape == (3, 5, 7)
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", "35")
    assert read_image(path).shape == (3, 5, 7)
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", "")
    assert pixel_limit() == MAX_PIXELS


@pytest.mark.parametrize("text", ["0", "-5", "2e8", "many"])
def test_the_pixel_limit_is_a_positive_integer(monkeypatch, text):
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", text)
    with pytest.raises(ValueError, match=f"DIPDEFENSE_MAX_PIXELS must be a positive integer such as .*, got '{text}'"):
        pixel_limit()


@pytest.mark.parametrize("suffix", sorted(WRITABLE))
def test_the_limit_is_that_of_this_library_alone(tmp_path, monkeypatch, suffix):
    """Pillow's own limit, which others may have set, neither warns nor refuses, and stays as it was."""
    path = saved(Image.fromarray(RGB), tmp_path / f"x{suffix}", **WRITABLE[suffix])
    for limit in (20, 34, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if suffix != ".webp" or limit != 20:  # above twice its limit Pillow opens no WebP file
            assert read_image(path).shape == (3, 5, 7)
        assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
@pytest.mark.parametrize("width", [1, 7, 64])
def test_read_refuses_a_png_file_that_lacks_rows(tmp_path, bits, colour, width):
    path = tmp_path / "x.png"
    for rows in (1, 2, 19):
        path.write_bytes(png(width, 20, rows, bits=bits, colour=colour))
        with pytest.raises(ValueError, match=r"x\.png: the file is damaged: its pixels take \d+ bytes, it holds \d+$"):
            read_image(path)
    for rows in (20, 21):
        path.write_bytes(png(width, 20, rows, bits=bits, colour=colour))
        assert read_image(path).unique().tolist() == [1]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (3, 2), (9, 5), (16, 16)])
def test_read_interlaced_png(tmp_path, width, height):
    """Adam7, of one bit a pixel, which has the fewest bytes: first column and row, steps between them, of each pass."""
    pixels = np.random.default_rng(0).integers(0, 2, (height, width), dtype=np.uint8)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [pixels[row::down, column::across] for column, row, across, down in passes]
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for part in parts if part.size for row in part)
    whole = png(width, height, 0, bits=1, colour=0)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)))
    lines = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    (tmp_path / "x.png").write_bytes(whole[:8] + b"".join(lines) + whole[-12:])
    assert np.array_equal(read_image(tmp_path / "x.png")[0].numpy(), pixels)


def test_read_refuses_a_tiff_file_that_lacks_strips(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "x.tif")
    content = bytearray(path.read_bytes())
    entry = re.search(rb"\x01\x01[\x03\x04]\0\x01\0\0\0\x05\0", content)  # tag 257, SHORT or LONG, one value, 5 rows
    content[entry.end() - 2 : entry.end()] = struct.pack("<H", 1300)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tif: the file is damaged: it holds 5 of 1300 rows"):
        read_image(path)


def test_damaged_metadata_are_ignored(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "x.jpg", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0cut")
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        expected = tensor(np.array(Image.open(path)))
    assert torch.equal(read_image(path), expected)  # a warning would be an error here


def test_threads_leave_the_filters_of_warnings(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "x.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(read_image, [path] * 200))
    assert all(torch.equal(image, tensor(RGB)) for image in images)
    assert list(warnings.filters) == before


def test_read_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        read_image(tmp_path / "x.png")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_image(tmp_path)


# Writing


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_round_trip_of_every_8_bit_level(tmp_path, suffix):
    image = (torch.arange(256) / 255).reshape(1, 16, 16).expand(3, -1, -1)
    write_image(image, tmp_path / f"x{suffix}")
    assert torch.equal(read_image(tmp_path / f"x{suffix}"), image)


@pytest.mark.parametrize("suffix", sorted(set(LOSSLESS) - {".webp"}))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_round_trip_of_grey(tmp_path, suffix, dtype):
    image = tensor(GREY)
    write_image(image.to(dtype).requires_grad_(), tmp_path / f"x{suffix}")
    assert torch.equal(read_image(tmp_path / f"x{suffix}"), image)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_is_close(tmp_path, suffix):
    image = torch.linspace(0, 1, 32).expand(3, 32, 32)
    write_image(image, tmp_path / f"x{suffix}")
    assert (read_image(tmp_path / f"x{suffix}") - image).abs().max() < 4 / 255


def test_write_rounds_to_the_nearest_level(tmp_path):
    image = torch.tensor([0.49, 0.51, 254.49, 254.51]).reshape(1, 2, 2) / 255
    write_image(image, tmp_path / "x.png")
    assert (read_image(tmp_path / "x.png") * 255).flatten().tolist() == [0, 1, 254, 255]


def test_write_leaves_the_image_and_an_ordinary_file(tmp_path):
    image = tensor(RGB)
    write_image(image, tmp_path / "x.png")
    (tmp_path / "plain").touch()
    assert torch.equal(image, tensor(RGB))
    assert (tmp_path / "x.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [OSError("encoder error"), KeyboardInterrupt()], ids=["OSError", "interrupt"])
def test_interrupted_write_keeps_the_older_file(tmp_path, monkeypatch, error):
    path = tmp_path / "x.png"
    write_image(tensor(RGB), path)
    whole, save = path.read_bytes(), Image.Image.save

    def half_a_save(image, file, **options):
        buffer = io.BytesIO()
        save(image, buffer, **options)
        file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        raise error

    monkeypatch.setattr(Image.Image, "save", half_a_save)
    for target in (path, tmp_path / "new.png"):
        with pytest.raises(type(error)) as caught:
            write_image(1 - tensor(RGB), target)
        if isinstance(error, OSError):
            assert str(caught.value) == f"[Errno 5] encoder error: '{target}'"
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["x.png"]  # noqa: PTH208  hidden files count


@pytest.mark.parametrize("name", ["x", "x.xyz", "x.gif"])
def test_write_unknown_suffix(tmp_path, name):
    with pytest.raises(ValueError, match=r"the suffix must be one of .*\.png.*, got "):
        write_image(tensor(RGB), tmp_path / name)


def test_write_where_nothing_can_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing/x\.png'$"):
        write_image(tensor(RGB), tmp_path / "missing" / "x.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.png'$"):
        write_image(tensor(RGB), tmp_path / "folder.png")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file/x\.png'$"):
        write_image(tensor(RGB), tmp_path / "file" / "x.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_write_into_a_closed_folder(tmp_path, monkeypatch):
    def refuse(path, mode):  # root may write into a read-only folder, so the refusal is simulated
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"x\.png'$"):
        write_image(tensor(RGB), tmp_path / "x.png")


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (torch.full((3, 4, 4), 1.25), r"image must be within \[0, 1\], got \[1\.25, 1\.25\]"),
        (torch.full((3, 4, 4), torch.nan), "image must be finite"),
        (torch.zeros(2, 4, 4), "image must have 1 or 3 channels, got 2"),
        (torch.zeros(1, 3, 4, 4), r"image must have 3 dimensions \(C, H, W\)"),
    ],
)
def test_write_refuses_what_is_no_image(tmp_path, image, match):
    with pytest.raises(ValueError, match=match):
        write_image(image, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


# Checking


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_check_accepts_images_in_full_precision_and_others_where_they_are_allowed(dtype, channels):
    half = dtype in (torch.float16, torch.bfloat16)
    check_images(torch.linspace(0, 1, 32 * channels, dtype=dtype).reshape(2, channels, 4, 4), half=half)
    check_images(torch.zeros(channels, 4, 4, dtype=dtype), ndim=3, channels=(channels,), half=half)
    if half:
        with pytest.raises(
            TypeError, match=rf"flash must be float32 or float64, got {dtype}: convert with images.float"
        ):
            check_images(torch.zeros(1, channels, 4, 4, dtype=dtype), "flash")


def test_check_accepts_an_empty_batch_where_it_is_allowed():
    check_images(torch.zeros(0, 3, 4, 4), empty=True)
    with pytest.raises(ValueError, match="images must have 1 channels, got 3"):
        check_images(torch.zeros(0, 3, 4, 4), channels=(1,), empty=True)
    with pytest.raises(ValueError, match=r"images must not be empty, got shape \(0, 3, 0, 4\)"):
        check_images(torch.zeros(0, 3, 0, 4), empty=True)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (np.zeros((1, 3, 4, 4)), "observed must be a torch.Tensor, got ndarray"),
        (None, "observed must be a torch.Tensor, got NoneType"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"floating dtype, got torch.uint8; .*/ 255"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.complex64), "floating dtype, got torch.complex64"),
    ],
)
def test_check_types(images, match):
    with pytest.raises(TypeError, match=match):
        check_images(images, "observed")


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(3, 4, 4), r"images must have 4 dimensions \(B, C, H, W\), got shape \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4), r"images must not be empty, got shape \(0, 3, 4, 4\)"),
        (torch.zeros(1, 2, 4, 4), "images must have 1 or 3 channels, got 2"),
        (torch.full((1, 3, 4, 4), -torch.inf), "images must be finite"),
        (torch.full((1, 3, 4, 4), torch.inf), "images must be finite"),
        (torch.full((1, 3, 4, 4), 255.0), r"images must be within \[0, 1\], got \[255, 255\]; divide"),
        (torch.tensor([-2.0, 0.5]).expand(1, 1, 1, 2), r"got \[-2, 0.5\]; .*normalisation"),
        (
            torch.full((1, 3, 4, 4), 1 + 2**-20),
            r"got \[1\.0000009\d*, .*; clamp rounding errors with images.clamp\(0, 1\)",
        ),
        (torch.full((1, 3, 4, 4), -1e-7), r"got \[-\S+, .*; clamp rounding errors with images.clamp\(0, 1\)"),
        (torch.tensor([-1e-7, 255.0]).expand(1, 1, 1, 2), "; divide 0..255 values by 255"),
        (torch.tensor([-0.01, 0.5]).expand(1, 1, 1, 2), "; divide 0..255 values by 255"),
    ],
)
def test_check_values(images, match):
    with pytest.raises(ValueError, match=match):
        check_images(images, channels=(1, 3))


def test_check_sees_one_nan():
    images = torch.zeros(2, 3, 8, 8)
    images[1, 2, 5, 3] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        check_images(images)


# Listing


def test_list_is_sorted_and_leaves_out_the_rest(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.tiff", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "d.png").touch()
    assert list_images(str(tmp_path)) == [tmp_path / name for name in ("a.jpg", "b.PNG", "c.tiff")]


def test_list_errors(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path.name}: the folder must hold at least one image"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        list_images(tmp_path / "missing")
    (tmp_path / "x.png").touch()
    with pytest.raises(NotADirectoryError, match=r"x\.png"):
        list_images(tmp_path / "x.png")


def test_a_target_is_checked_before_the_work(tmp_path: Path) -> None:
    check_target(tmp_path / "image.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.png").mkdir()
    for path, error, message in (
        (tmp_path / "image.xyz", ValueError, "the suffix must be one of"),
        (tmp_path / "missing" / "image.png", FileNotFoundError, "image.png"),
        (tmp_path / "folder.png", IsADirectoryError, "folder.png"),
    ):
        with pytest.raises(error, match=message):
            check_target(path)
