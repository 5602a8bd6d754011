"""Image files: what is read exactly, what is refused, and that no write leaves a torn file."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dipdefense.images import WRITABLE, check_images, check_target, list_images, read_image, write_image

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


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "<u2"), (".tif", "<u2"), (".tif", ">u2"), (".tif", "<i4")])
def test_read_16_bit_grey_at_full_precision(tmp_path, suffix, dtype):
    levels = np.arange(65536).reshape(256, 256)
    image = read_image(saved(Image.fromarray(levels.astype(dtype)), tmp_path / f"x{suffix}"))
    assert image.shape == (1, 256, 256)
    assert np.array_equal(image[0].numpy(), levels.astype(np.float32) / np.float32(65535))
    assert image.unique().numel() == 65536


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


@pytest.mark.parametrize("image", [Image.new("F", (4, 4)), Image.new("LAB", (4, 4))], ids=["F", "LAB"])
def test_read_refuses_other_modes(tmp_path, image):
    with pytest.raises(ValueError, match=f"the mode must be one of .*, got {image.mode}"):
        read_image(saved(image, tmp_path / "x.tif"))


@pytest.mark.parametrize("level", [-1, 65536])
def test_read_refuses_grey_beyond_16_bits(tmp_path, level):
    path = saved(Image.new("I", (4, 4), level), tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"grey values must be within \[0, 65535\]"):
        read_image(path)


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


@pytest.mark.parametrize("limit", [RGB[..., 0].size - 1, RGB[..., 0].size // 3])
def test_read_refuses_a_decompression_bomb(tmp_path, monkeypatch, limit):
    # Up to twice the limit Pillow only warns; the test suite makes warnings errors.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = saved(Image.fromarray(RGB), tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: .*decompression bomb"):
        read_image(path)


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
