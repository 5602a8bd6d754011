"""`denoise` for noise that is not independent from pixel to pixel: that of a camera, and impulses."""

import dataclasses

import pytest
import torch
from restoration_images import error
from torch import Tensor

from dipdefense import denoise, inpaint
from dipdefense.restoration.denoising import NOISE_TASKS
from dipdefense.restoration.impulses import find_impulses
from dipdefense.restoration.presets import SMALL

TINY = {"architecture_options": {"channels": [8, 16], "skip_channels": 4, "upsampling": "nearest"}, "input_channels": 8}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(n: int, channels: int = 3) -> Tensor:
    coarse = draw(n, channels, 4, 4).sigmoid()
    return torch.nn.functional.interpolate(coarse, (40, 40), mode="bilinear", align_corners=True)


def with_impulses(clean: Tensor, share: float) -> Tensor:
    hit, white = draw(*clean.shape, seed=1).sigmoid() < share, draw(*clean.shape, seed=2) > 0
    return torch.where(hit, white.float(), clean)


@pytest.fixture(autouse=True)
def small_fits(monkeypatch):
    for task, iterations in (("denoise", 150), ("denoise_camera", 100), ("inpaint", 60)):
        monkeypatch.setitem(SMALL, task, dataclasses.replace(SMALL[task], **TINY, ema=0.9, iterations=iterations))
    monkeypatch.setattr("dipdefense.restoration.prior_fit.TILE", 24)


def test_correlated_noise_goes_where_the_other_setting_leaves_it():
    clean = smooth(2)
    correlated = torch.nn.functional.avg_pool2d(draw(2, 3, 42, 42, seed=3), 3, 1)  # of std 1 / 3
    noisy = (clean + 0.15 * correlated).clamp(0, 1)
    camera = error(denoise(noisy, noise="camera"), clean)
    assert camera < 0.7 * error(noisy, clean)
    assert camera < error(denoise(noisy), clean)


def test_impulses_are_filled_in_and_nothing_else_changes():
    clean = 0.1 + 0.8 * smooth(2)
    noisy = with_impulses(clean, 0.3)
    result, found = denoise(noisy, noise="impulse"), find_impulses(noisy)
    assert torch.equal(result[~found], noisy[~found])
    windows = torch.nn.functional.unfold(torch.nn.functional.pad(noisy, [2] * 4, mode="reflect"), 5)
    median = windows.view(2, 3, 25, -1).median(2).values.view_as(noisy)
    assert error(result, clean) < 0.1 * error(median, clean)
    torch.testing.assert_close(result, inpaint(noisy, ~found))


def test_an_image_without_impulses_is_not_fitted():
    clean = 0.1 + 0.8 * smooth(2)
    images, seen = torch.stack([clean[0], with_impulses(clean, 0.2)[1]]), []
    result = denoise(images, noise="impulse", callback=seen.append)
    assert torch.equal(result[0], images[0])
    assert seen
    seen.clear()
    assert torch.equal(denoise(clean, noise="impulse", callback=seen.append), clean)
    assert not seen


@pytest.mark.parametrize("noise", NOISE_TASKS)
def test_an_image_does_not_depend_on_its_neighbours(noise):
    images = with_impulses((0.1 + 0.8 * smooth(3) + 0.05 * draw(3, 3, 40, 40)).clamp(0, 1), 0.1).double()
    together, alone = denoise(images, noise=noise), denoise(images[1:2], noise=noise)
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("noise", NOISE_TASKS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 5, 17)])
def test_any_size(noise, shape):
    images = draw(*shape).sigmoid().round()
    assert denoise(images, noise=noise).shape == shape


def test_bad_noise_is_refused():
    with pytest.raises(ValueError, match="noise must be one of independent, camera, impulse, got 'speckle'"):
        denoise(smooth(1), noise="speckle")
    with pytest.raises(ValueError, match="images must have values besides impulses"):
        denoise(torch.tensor([[[[0.0, 1.0]]]]), noise="impulse")
    with pytest.raises(ValueError, match="runs must be 1 for impulses, got 2"):
        denoise(smooth(1), noise="impulse", runs=2)
