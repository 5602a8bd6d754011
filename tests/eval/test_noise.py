"""The moments of the noises, on a grey image far from the clipping."""

import pytest
import torch

from eval.noise import LEVELS, NOISES, _demosaiced

GREY = torch.full((2, 3, 128, 128), 0.5, dtype=torch.float64)


def drawn(name, level, seed=0, images=GREY):
    return NOISES[name](images, level, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "level", "variance"),
    [("gaussian", 0.05, 0.05**2), ("shot", 200.0, 0.5 / 200), ("speckle", 0.1, 0.05**2), ("impulse", 0.2, 0.2 * 0.25)],
)
def test_mean_and_variance(name, level, variance):
    noise = drawn(name, level) - GREY
    n = noise.numel()
    assert noise.mean().abs() < 4 * (variance / n) ** 0.5
    assert noise.var().item() == pytest.approx(variance, rel=0.03)


def test_demosaicing_keeps_what_is_sampled_and_continues_a_ramp():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    ramp = (0.01 * x + 0.02 * y + torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1))[None]
    torch.testing.assert_close(_demosaiced(ramp)[..., 1:-1, 1:-1], ramp[..., 1:-1, 1:-1])
    white = torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    seen = _demosaiced(white)
    assert torch.equal(seen[:, 0, ::2, ::2], white[:, 0, ::2, ::2])
    # half of the greens are sampled, the others are means of four
    assert seen[:, 1].var().item() == pytest.approx((1 + 1 / 4) / 2, rel=0.05)


def test_the_noise_of_a_camera_is_smooth_and_grows_with_the_light():
    dark, bright = (drawn("camera", 2000.0, images=GREY.float() * scale) - GREY * scale for scale in (0.4, 1.6))
    assert dark.mean().abs() < 0.002
    for noise in (dark, bright):
        assert (noise[..., 1:] * noise[..., :-1]).mean() > 0.2 * noise.square().mean()  # white noise has 0
    # in linear light the variance is (light + 0.15) / level; the gamma curve multiplies the std by its slope
    std = [((light**2.2 + 0.15) / 2000) ** 0.5 * light ** (1 - 2.2) / 2.2 for light in (0.2, 0.8)]
    assert (dark.std() / bright.std()).item() == pytest.approx(std[0] / std[1], rel=0.15)


def test_the_noise_of_a_camera_leaves_an_image_without_it_alone():
    images = torch.rand(1, 3, 16, 18, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(images[..., :3, :3], (32, 32), mode="bicubic", align_corners=True)
    image = smooth.clamp(0.1, 0.9)
    assert (drawn("camera", 1e9, images=image) - image).abs().max() < 0.03  # what JPEG of quality 95 changes


def test_the_noise_of_a_camera_is_for_rgb():
    with pytest.raises(ValueError, match="images must be RGB for the noise of a camera, got 1 channel"):
        drawn("camera", 1000.0, images=GREY[:, :1])


def test_impulses_are_black_and_white_and_as_many_as_said():
    noisy = drawn("impulse", 0.1)
    hit = noisy != 0.5
    assert hit.double().mean().item() == pytest.approx(0.1, abs=0.004)
    assert set(noisy[hit].unique().tolist()) == {0.0, 1.0}
    assert noisy[hit].mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", LEVELS)
def test_every_level_keeps_the_range_and_follows_the_generator(name):
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    errors = []
    for level in LEVELS[name].values():
        noisy = drawn(name, level, images=images)
        assert noisy.shape == images.shape
        assert noisy.dtype == images.dtype
        assert 0 <= noisy.min() <= noisy.max() <= 1
        assert torch.equal(noisy, drawn(name, level, images=images))
        assert not torch.equal(noisy, drawn(name, level, seed=1, images=images))
        errors.append((noisy - images).square().mean().item())
    assert list(LEVELS[name]) == ["low", "medium", "high"]
    assert errors == sorted(errors)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NOISES)
def test_bad_arguments_are_refused(name):
    with pytest.raises(ValueError, match="level must be positive, got 0"):
        drawn(name, 0)
    with pytest.raises(TypeError, match=r"images must have a floating dtype, got torch\.uint8"):
        drawn(name, 0.1, images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_more_impulses_than_values_are_refused():
    with pytest.raises(ValueError, match="level must be a fraction of the values, at most 1, got 2"):
        drawn("impulse", 2)
