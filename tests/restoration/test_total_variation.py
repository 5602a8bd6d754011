"""Total variation against closed forms and scikit-image, through the one fitting loop."""

import dataclasses

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_tv_chambolle

from dipdefense import FitConfig, denoise, fit, total_variation
from dipdefense.fitting.pixel_generator import Pixels
from dipdefense.restoration.presets import PIXELS
from dipdefense.restoration.total_variation import weighted_total_variation


def step(height: int = 6, width: int = 8, low: float = 0.2, high: float = 0.8) -> torch.Tensor:
    image = torch.full((1, 1, height, width), low, dtype=torch.float64)
    image[..., width // 2 :] = high
    return image


def test_the_total_variation_of_a_step_and_of_a_ramp():
    assert total_variation(step()).item() == pytest.approx(0.6 / 8, abs=2e-4)  # one column of eight rises by 0.6
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    slope = np.hypot(0.03, 0.04) * 4 * 6 + 0.03 * 6 + 0.04 * 4  # inside, last row, last column
    ramp = (0.03 * x + 0.04 * y)[None, None]
    assert total_variation(ramp).item() == pytest.approx(slope / 35, abs=1.1e-3)


def test_the_minimiser_for_a_step():
    """mean (x - y)^2 + w TV moves both halves by w / width towards each other."""
    weight, width = 0.4, 8
    result = denoise(
        step(width=width), tv=weight, config=dataclasses.replace(PIXELS, iterations=1500, lr=2e-3, ema=0.9)
    )
    moved = weight / width
    torch.testing.assert_close(result, step(width=width, low=0.2 + moved, high=0.8 - moved), atol=2e-3, rtol=0)


def objective(image: torch.Tensor, noisy: torch.Tensor, weight: float) -> float:
    return ((image - noisy).square().mean() + weight * total_variation(image).item()).item()


def test_reaches_the_objective_of_chambolle():
    generator = torch.Generator().manual_seed(0)
    clean = step(24, 32) + 0.1 * torch.linspace(0, 1, 24, dtype=torch.float64)[:, None]
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    weight = 0.2  # mean square + weight TV, half of it for |x - y|^2 / 2
    rival = denoise_tv_chambolle(noisy[0, 0].numpy(), weight=weight / 2, eps=1e-9, max_num_iter=5000)
    best = objective(torch.from_numpy(rival)[None, None], noisy, weight)
    ours = denoise(noisy, tv=weight, config=dataclasses.replace(PIXELS, iterations=1500, lr=3e-3))
    assert objective(noisy, noisy, weight) > 1.5 * best
    assert objective(ours, noisy, weight) < 1.01 * best


def test_pixels_alone_reproduce_the_observed():
    noisy = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    result = fit(noisy, dataclasses.replace(PIXELS, iterations=400)).reconstruction
    torch.testing.assert_close(result, noisy, atol=0.01, rtol=0)


def test_pixels_take_the_size_of_z_and_begin_grey():
    net = Pixels(1, 2)
    assert torch.equal(net(torch.zeros(1, 1, 3, 4)), torch.full((1, 2, 3, 4), 0.5))
    assert net.image.shape == (2, 3, 4)


def test_a_prior_smooths_a_network_too():
    noisy = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    config = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 4}, input_channels=8, iterations=80)
    rough, smooth = (denoise(noisy, config=config, tv=tv) for tv in (0.0, 0.5))
    assert total_variation(smooth) < 0.5 * total_variation(rough)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), True, "0.1"])
def test_a_bad_weight_is_refused(weight):
    with pytest.raises(ValueError, match="tv must be a weight that is finite and not negative, got"):
        weighted_total_variation(weight)
