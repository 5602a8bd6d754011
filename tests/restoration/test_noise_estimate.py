"""The estimate of the noise: its size, and what it must not depend on."""

import pytest
import torch

from dipdefense.restoration.noise_estimate import estimate_sigma


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stripes(height: int, width: int) -> torch.Tensor:
    """Edges and a slope, the same in no two channels: (1, 3, height, width) in [0.2, 0.8]."""
    x = torch.arange(width, dtype=torch.float64) / width
    rows = torch.arange(height)[:, None]
    planes = [0.3 + 0.2 * ((rows + 10 * i) // 9 % 2) + 0.1 * (i + 1) * x for i in range(3)]
    return torch.stack([plane.expand(height, width) for plane in planes])[None]


@pytest.mark.parametrize("sigma", [0.0, 2 / 255, 10 / 255, 25 / 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_finds_the_noise_of_an_image_with_edges(sigma, channels):
    clean = stripes(96, 80)[:, :channels]
    found = estimate_sigma(clean + sigma * noise(*clean.shape))
    torch.testing.assert_close(found, torch.tensor([sigma], dtype=torch.float64), rtol=0.05, atol=1e-6)


def test_each_image_has_its_own():
    images = stripes(64, 64).repeat(3, 1, 1, 1)
    images += torch.tensor([0.01, 0.05, 0.1]).view(3, 1, 1, 1) * noise(*images.shape)
    torch.testing.assert_close(estimate_sigma(images)[1:2], estimate_sigma(images[1:2]))
    torch.testing.assert_close(estimate_sigma(images), torch.tensor([0.01, 0.05, 0.1]).double(), rtol=0.05, atol=0)


def test_blocks_whose_noise_is_clipped_do_not_count():
    """Three quarters of the image are white, where half of the noise is cut off."""
    clean = torch.ones(1, 3, 128, 128, dtype=torch.float64)
    clean[..., :64, :64] = 0.5
    noisy = (clean + 0.1 * noise(*clean.shape)).clamp(0, 1)
    assert estimate_sigma(noisy).item() == pytest.approx(0.1, rel=0.05)
    assert estimate_sigma(noisy[..., 64:, :]).item() < 0.08  # nothing else is left to be judged


@pytest.mark.parametrize(("side", "channels"), [(16, 3), (20, 3), (12, 1), (16, 1)])
def test_small_images_are_judged_by_small_patches(side, channels):
    noisy = 0.5 + 0.1 * noise(40, channels, side, side)
    assert estimate_sigma(noisy).mean().item() == pytest.approx(0.1, rel=0.15)


def test_what_is_too_small_to_tell_is_no_noise():
    ramp = torch.linspace(0, 1, 40).expand(1, 1, 1, 40)
    assert estimate_sigma(ramp).item() == estimate_sigma(noise(1, 3, 6, 6)).item() == 0


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 1, 1, 9), (1, 3, 4, 70)])
def test_any_size(shape):
    assert (estimate_sigma(torch.full(shape, 0.3)) == 0).all()
