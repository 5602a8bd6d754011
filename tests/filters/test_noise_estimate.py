"""The estimates of the noise: its size, its spectrum, and what they must not depend on."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from dipdefense.filters.noise_estimate import estimate_sigma, noise_spectrum


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


def test_the_spectrum_of_white_noise_is_flat():
    pilot = torch.full((2, 3, 96, 96), 0.5).double()
    sigma = torch.tensor([0.05, 0.2]).double()
    found = noise_spectrum(pilot + sigma.view(2, 1, 1, 1) * noise(2, 3, 96, 96), pilot)
    assert found.shape == (2, 3, 64)
    torch.testing.assert_close(found, sigma.view(2, 1, 1).expand(2, 3, 64), rtol=0.2, atol=0)
    torch.testing.assert_close(found.square().mean((1, 2)).sqrt(), sigma, rtol=0.02, atol=0)


def test_the_spectrum_of_correlated_noise_in_closed_form():
    """White noise w, convolved with k: a coefficient is <a, k * w> = <k^T * a, w>, of std |k^T * a|."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).double()[None, None] / 16
    correlated = torch.nn.functional.conv2d(noise(1, 1, 162, 162), kernel)
    dct = [dctn(np.outer(a, b), norm="ortho", type=3) for a in np.eye(8) for b in np.eye(8)]  # the atoms, by scipy
    atoms = torch.from_numpy(np.stack(dct))[:, None]
    expected = torch.nn.functional.conv_transpose2d(atoms, kernel).flatten(1).norm(dim=1)
    found = noise_spectrum(correlated, torch.zeros_like(correlated))[0, 0]
    torch.testing.assert_close(found, expected, rtol=0.25, atol=0.01)
    assert found[0] > 5 * found[63]


def test_the_spectrum_is_read_where_the_pilot_is_flat():
    """Half of the pilot is texture, which the image does not have there: no noise."""
    pilot = torch.full((1, 1, 64, 64), 0.5).double()
    noisy = pilot + 0.1 * noise(1, 1, 64, 64)
    pilot[..., 32:] += noise(1, 1, 64, 32, seed=1)
    assert noise_spectrum(noisy, pilot).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.1)


def test_the_spectrum_is_not_read_in_white_areas():
    """A white band has no noise, and no detail either."""
    pilot = torch.full((1, 1, 64, 64), 0.5).double()
    pilot[..., :24, :] = 1
    noisy = (pilot + 0.1 * noise(1, 1, 64, 64)).where(pilot < 1, pilot)
    assert noise_spectrum(noisy, pilot).square().mean().sqrt().item() == pytest.approx(0.1, rel=0.1)
    assert not noise_spectrum(pilot[..., :24, :], pilot[..., :24, :]).any()  # nothing else is left to be read


def test_the_spectrum_of_a_large_image_is_read_at_all_phases(monkeypatch):
    """Noise in two of eight columns, as blocks of JPEG may leave it: patches of one phase see another spectrum."""
    noisy = noise(1, 1, 320, 320) * (torch.arange(320) % 8 < 2)
    flat = torch.full_like(noisy, 0.5)
    monkeypatch.setattr("dipdefense.filters.noise_estimate.MOST", 320 * 320)  # all of them
    whole = noise_spectrum(noisy, flat)
    for patches in (11000, 4000, 1700):  # strides of 4, 6 and 8, but for the rule that they are odd
        monkeypatch.setattr("dipdefense.filters.noise_estimate.MOST", patches)
        torch.testing.assert_close(noise_spectrum(noisy, flat), whole, rtol=0.3, atol=0)
