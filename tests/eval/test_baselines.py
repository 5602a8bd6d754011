"""Filters: closed forms, independent implementations, and invariants of all of them."""

import io
import math
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft
from skimage import data as skimage_data
from torch import Tensor

from eval.baselines import BASELINES, bit_depth, bm3d, gaussian_blur, jpeg, median, non_local_means, total_variation
from eval.metrics import psnr

QUICK = {name: apply for name, apply in BASELINES.items() if name != "bm3d"}  # which takes 0.5 s a channel
every_filter = pytest.mark.parametrize("apply", QUICK.values(), ids=QUICK.keys())
colour_or_grey = pytest.mark.parametrize("channels", [3, 1])


def photos(channels: int = 3) -> Tensor:
    """Three crops of a photograph, (3, C, 32, 40)."""
    image = torch.from_numpy(skimage_data.astronaut()[100:196, 180:220]).permute(2, 0, 1) / 255
    return image.reshape(3, 3, 32, 40).transpose(0, 1)[:, :channels].contiguous()


@every_filter
@colour_or_grey
def test_shape_range_and_input_are_kept(apply, channels: int) -> None:
    images = photos(channels)
    before = images.clone()
    filtered = apply(images)
    assert filtered.shape == images.shape
    assert filtered.dtype == images.dtype
    assert 0 <= filtered.min() <= filtered.max() <= 1
    assert torch.equal(images, before)
    assert 10 < psnr(filtered, images).min() < math.inf  # it does something, and not too much


@every_filter
def test_an_image_does_not_see_its_neighbours(apply) -> None:
    images = photos()
    filtered = apply(images)
    assert torch.equal(apply(images.flip(0)), filtered.flip(0))
    assert torch.equal(apply(images[1:2]), filtered[1:2])


@every_filter
@pytest.mark.parametrize("level", [0.0, 0.2, 1.0])  # 0.2 is on the grids of 4 and of 8 bits
def test_a_flat_image_stays(apply, level: float) -> None:
    flat = torch.full((1, 3, 32, 32), level)
    assert torch.allclose(apply(flat), flat, atol=1e-5)


@every_filter
def test_other_images_are_refused(apply) -> None:
    images = photos()
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\)"):
        apply(images[0])
    with pytest.raises(ValueError, match="not empty"):
        apply(images[:0])
    with pytest.raises(TypeError, match="float32 or float64"):
        apply((images * 255).byte())
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got"):
        apply(images * 255)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        apply(images * torch.nan)


@every_filter
def test_double_precision_and_gradients_do_not_matter(apply) -> None:
    images = photos().double().requires_grad_()
    filtered = apply(images)
    assert filtered.dtype == torch.float64
    assert not filtered.requires_grad


@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0])
def test_gaussian_blur_of_a_point_is_the_gaussian(sigma: float) -> None:
    point = torch.zeros(1, 3, 31, 31)
    point[..., 15, 15] = 1
    kernel = torch.exp(-((torch.arange(31.0) - 15) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    blurred = gaussian_blur(point, sigma)
    assert torch.allclose(blurred[0, 0], kernel[:, None] * kernel, atol=1e-4)
    assert torch.equal(blurred[0, 0], blurred[0, 2])


@pytest.mark.parametrize("size", [3, 5])
def test_median_is_the_median_of_each_window(size: int) -> None:
    images = photos()
    windows = images.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    inside = slice(size // 2, -(size // 2))
    assert torch.equal(median(images, size)[:, :, inside, inside], windows.median(dim=4).values)
    assert torch.equal(median(images, 1), images)


def test_non_local_means_is_the_identity_at_no_strength_and_denoises() -> None:
    images = photos()
    assert torch.allclose(non_local_means(images, h=1e-3), images, atol=1e-3)
    noise = 0.07 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + noise).clamp(0, 1)
    assert (psnr(non_local_means(noisy), images) > psnr(noisy, images) + 1).all()


def test_non_local_means_averages_repeated_patches() -> None:
    """On stripes, equal but for noise, pixels of one phase are averaged and the phases are kept."""
    stripes = (torch.arange(32) % 4 < 2).float().expand(1, 1, 32, 32) * 0.6 + 0.2
    noisy = stripes + 0.02 * torch.randn(stripes.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(non_local_means(noisy), stripes) > psnr(noisy, stripes) + 8


def test_total_variation_falls_with_the_weight_and_the_mean_stays() -> None:
    images = photos()

    def variation(x: Tensor) -> float:
        return float(x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum())

    falling = [
        variation(images),
        *(variation(total_variation(images, weight)) for weight in (0.02, 0.08, 0.3)),
    ]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < 0.7 * falling[0]
    assert torch.allclose(total_variation(images).mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=2e-3)
    assert torch.allclose(total_variation(images, 1e-4), images, atol=2e-3)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_rounds_the_cosine_transform_of_each_block(quality: int) -> None:
    images = photos(1)
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG", quality=quality)
    table = np.array(Image.open(file).quantization[0]).reshape(8, 8)
    blocks = (images * 255).round().double().numpy().reshape(3, 4, 8, 5, 8) - 128
    coefficients = (fft.dctn(blocks, axes=(2, 4), norm="ortho") / table[:, None]).round() * table[:, None]
    expected = fft.idctn(coefficients, axes=(2, 4), norm="ortho").reshape(images.shape) + 128
    error = np.abs(jpeg(images, quality).numpy() * 255 - expected.clip(0, 255))
    assert error.mean() < 0.5  # of 255: pixels are rounded again, and libjpeg's transform is of integers


def test_jpeg_loses_less_with_quality() -> None:
    images = photos()
    scores = [psnr(jpeg(images, quality), images).mean().item() for quality in (10, 50, 75, 100)]
    assert scores == sorted(scores)
    assert scores[0] < 28
    assert scores[-1] > 34  # the colours keep half their resolution


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bit_depth_rounds_to_its_grid(bits: int) -> None:
    images = photos()
    levels = 2**bits - 1
    rounded = bit_depth(images, bits)
    assert (rounded - images).abs().max() <= 0.5 / levels + 1e-6
    assert torch.allclose((rounded * levels).round(), rounded * levels, atol=1e-4)
    assert torch.equal(bit_depth(rounded, bits), rounded)
    assert rounded.unique().numel() <= 2**bits


@pytest.mark.parametrize(
    ("apply", "value", "message"),
    [
        (gaussian_blur, 0, "sigma must be positive, got 0"),
        (gaussian_blur, math.nan, "sigma must be positive, got nan"),
        (median, 4, "size must be odd and at least 1 pixel, got 4"),
        (median, -1, "size must be odd"),
        (non_local_means, -0.1, "h must be positive, got -0.1"),
        (total_variation, 0, "weight must be positive, got 0"),
        (bm3d, 0, "sigma must be positive, got 0"),
        (jpeg, 0, r"quality must lie in \[1, 100\], got 0"),
        (jpeg, 101, "quality must lie"),
        (bit_depth, 0, r"bits must lie in \[1, 8\], got 0"),
        (bit_depth, 9, "bits must lie"),
    ],
)
def test_parameters_are_checked(apply, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(photos(), value)


@pytest.mark.slow
def test_bm3d_keeps_what_every_filter_keeps_and_denoises() -> None:
    pytest.importorskip("bm3d")
    clean = photos(1)[:2, :, :16, :24]
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (clean + noise).clamp(0, 1)
    before = noisy.clone()
    filtered = bm3d(noisy)
    assert filtered.dtype == noisy.dtype
    assert 0 <= filtered.min() <= filtered.max() <= 1
    assert torch.equal(noisy, before)
    assert (psnr(filtered, clean) > psnr(noisy, clean) + 2).all()
    torch.testing.assert_close(bm3d(noisy[1:]), filtered[1:])  # its own threads round differently
    colours = photos(3)[:1, :, :16, :24]
    noise = 0.1 * torch.randn(colours.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(bm3d((colours + noise).clamp(0, 1)), colours) > psnr(colours + noise, colours) + 2
    flat = torch.full((1, 3, 16, 16), 0.2).double().requires_grad_()
    smooth = bm3d(flat)
    assert not smooth.requires_grad
    torch.testing.assert_close(smooth, flat.detach(), atol=1e-3, rtol=0)


def test_bm3d_refuses_what_would_crash_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"sides of at least 16 pixels, got \(3, 32, 15\)"):
        bm3d(photos()[..., :15])
    with pytest.raises(ValueError, match="1 or 3 channels"):
        bm3d(photos(2))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got"):
        bm3d(photos() * 255)
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ImportError, match=r"free for non-commercial use: pip install 'dipdefense\[bm3d\]'"):
        bm3d(photos())


def test_jpeg_needs_grey_or_rgb() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        jpeg(photos(2))


def test_absence_of_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"dipdefense\[eval\]"):
        runpy.run_path(sys.modules["eval.baselines"].__file__)
