"""Classical denoisers: closed forms, independent implementations, and what holds for all of them."""

import io
import sys

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data as skimage_data
from skimage import restoration

from eval.restoration.denoisers import (
    DENOISERS,
    bilateral,
    bm3d,
    cbm3d,
    estimated_sigma,
    gaussian,
    joint_bilateral,
    jpeg,
    median,
    wavelet,
)

SIGMA = 25 / 255
QUICK = [name for name in DENOISERS if "bm3d" not in name]


def photo(channels: int = 3) -> np.ndarray:
    """A crop of a photograph, (48, 40, C) in [0, 1]."""
    return skimage_data.astronaut()[100:148, 180:220, :channels] / 255


def shot(channels: int = 3, sigma: float = SIGMA) -> np.ndarray:
    clean = photo(channels)
    return clean + sigma * np.random.default_rng(0).standard_normal(clean.shape)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_one_denoises_and_keeps_its_input(name, channels):
    noisy, before = shot(channels), shot(channels)
    assert noisy.max() > 1  # it need not be clipped
    filtered = DENOISERS[name](noisy, SIGMA)
    assert filtered.shape == noisy.shape
    assert np.array_equal(noisy, before)
    if name != "noisy":
        share = 0.75 if name == "jpeg" else 0.5
        assert np.square(filtered - photo(channels)).mean() < share * np.square(noisy - photo(channels)).mean()


def test_gaussian_and_median_are_those_of_scipy():
    noisy = shot()
    for c in range(3):
        assert gaussian(noisy, 0.12)[..., c] == pytest.approx(
            ndimage.gaussian_filter(noisy[..., c], np.sqrt(0.996)), abs=1e-12
        )
        assert np.array_equal(median(noisy, 0.1)[..., c], ndimage.median_filter(noisy[..., c], 3))
        assert np.array_equal(median(noisy, 0.2)[..., c], ndimage.median_filter(noisy[..., c], 5))


def test_bilateral_at_its_limits():
    """With a wide tolerance for colours it is a Gaussian blur; with a narrow one it is nothing."""
    noisy = shot()
    window = ndimage.gaussian_filter(np.pad(np.ones((1, 1)), 3), 1.5, truncate=2)  # 7 x 7, normalised
    blurred = np.stack([ndimage.convolve(noisy[..., c], window, mode="reflect") for c in range(3)], -1)
    assert bilateral(noisy, 1e4) == pytest.approx(blurred, abs=1e-6)
    assert bilateral(noisy, 1e-6) == pytest.approx(noisy, abs=1e-12)


def test_the_bilateral_filter_of_scikit_image_is_still_wrong():
    """The reason for our own: when this fails, use theirs."""
    noisy = shot().clip(0, 1)
    theirs = restoration.denoise_bilateral(noisy, win_size=7, sigma_color=1e4, sigma_spatial=1.5, channel_axis=-1)
    blurred = ndimage.gaussian_filter(noisy, (1.5, 1.5, 0))
    assert np.abs(theirs - blurred)[8:-8, 8:-8].max() > 0.05


def test_wavelets_of_a_grey_photograph_stored_as_rgb_stay_grey():
    grey = np.repeat(shot(1), 3, -1)
    filtered = wavelet(grey, SIGMA)
    assert filtered[..., 0] == pytest.approx(filtered[..., 2], abs=1e-9)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("level", [0.0, 0.2])
def test_a_single_colour_has_no_noise_and_stays(name, level):
    """The estimate is what filters are told where sigma is not known."""
    flat = np.full((16, 20, 3), level)
    assert estimated_sigma(flat) == pytest.approx(0, abs=1e-9)
    for sigma in (estimated_sigma(flat), 0.0):
        assert DENOISERS[name](flat, sigma) == pytest.approx(flat, abs=1e-6)


def test_the_mean_of_estimates_is_over_all_channels():
    noisy = shot()
    noisy[..., 0] = 0
    alone = [estimated_sigma(noisy[..., [c]]) for c in (1, 2)]
    assert estimated_sigma(noisy) == pytest.approx(sum(alone) / 3)


@pytest.mark.parametrize(("sigma", "quality"), [(10 / 255, 69), (25 / 255, 20), (50 / 255, 8), (1e-4, 95), (1.0, 1)])
def test_jpeg_is_that_of_pillow(sigma, quality):
    pixels = (shot().clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    assert jpeg(shot(), sigma) * 255 == pytest.approx(np.asarray(Image.open(file)), abs=1e-3)


@pytest.mark.slow
def test_bm3d_and_cbm3d():
    package = pytest.importorskip("bm3d")
    noisy, clean = shot(), photo()
    plain, colour = bm3d(noisy, SIGMA), cbm3d(noisy, SIGMA)
    assert colour == pytest.approx(package.bm3d_rgb(noisy, SIGMA), abs=1e-3)  # its threads round differently
    error = [np.square(image - clean).mean() for image in (noisy, plain, colour)]
    assert error[0] > 2 * error[1] > error[1] > error[2]
    grey = np.repeat(noisy[..., :1], 3, -1)  # where the package itself divides by zero
    assert cbm3d(grey, SIGMA) == pytest.approx(np.repeat(bm3d(noisy[..., :1], SIGMA), 3, -1), abs=1e-3)


def test_cbm3d_refuses_grey_and_names_the_extra(monkeypatch):
    pytest.importorskip("bm3d")
    with pytest.raises(ValueError, match="cbm3d must be given RGB images, got 1 channels: use bm3d"):
        cbm3d(shot(1), SIGMA)
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ImportError, match=r"free for non-commercial use: pip install 'dipdefense\[bm3d\]'"):
        bm3d(shot(), SIGMA)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
def test_the_estimate_of_sigma(sigma):
    flat = 0.5 + sigma * np.random.default_rng(0).standard_normal((96, 96, 3))
    assert estimated_sigma(flat) == pytest.approx(sigma, rel=0.05)


def test_a_joint_bilateral_filter_looks_at_the_guide_alone():
    """A guide of one colour makes it a Gaussian blur, and what differs in the guide is never mixed."""
    noisy = np.random.default_rng(0).random((20, 24, 3))
    blurred = ndimage.gaussian_filter(noisy, (1.5, 1.5, 0), mode="reflect", truncate=2)
    flat = np.full_like(noisy, 0.3)
    np.testing.assert_allclose(joint_bilateral(noisy, flat, space=1.5, colour=0.1), blurred, atol=1e-12)
    halves = np.where(np.arange(24)[:, None] < 12, 0.0, 1.0) * np.ones((20, 24, 3))
    np.testing.assert_allclose(joint_bilateral(halves, halves, space=3, colour=0.05), halves, atol=1e-12)
    edge = joint_bilateral(halves, flat, space=3, colour=0.05)[:, 11:13]
    assert 0.2 < edge.min() < edge.max() < 0.8
