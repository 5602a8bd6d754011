"""The filters on cosine coefficients: what they leave unchanged, closed forms, and an independent transform."""

import pytest
import torch
from scipy.fft import dctn

from dipdefense.filters.cosine_filters import back_project, fill, threshold
from dipdefense.restoration.operators import downsampling


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHAPES = [(1, 3, 1, 1), (2, 1, 5, 9), (1, 3, 8, 8), (2, 3, 30, 21)]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_noise_changes_nothing(shape):
    images, none = draw(*shape), torch.zeros(shape[0]).double()
    torch.testing.assert_close(threshold(images, none), images)


@pytest.mark.parametrize("shape", SHAPES)
def test_strips_make_no_difference(shape, monkeypatch):
    images, sigma = draw(*shape), torch.full(shape[:1], 0.5).double()
    whole = threshold(images, sigma)
    monkeypatch.setattr("dipdefense.filters.cosine_filters.VALUES", 64 * 3 * 21 * 7)
    torch.testing.assert_close(threshold(images, sigma), whole)


def test_a_constant_image_by_hand():
    """Only the mean of a patch, 8 c, is not zero."""
    images = torch.full((1, 1, 20, 20), 0.5).double()
    kept, lost = (threshold(images, torch.tensor([4 / 3 * factor]).double()) for factor in (0.99, 1.01))
    torch.testing.assert_close(kept, images)
    assert (lost.abs() < 1e-9).all()


def test_the_middle_of_an_image_against_the_transform_of_scipy():
    """The pixel at (10, 10) is the mean over the 64 patches that hold it."""
    image, sigma, total = draw(1, 1, 24, 24), 1.0, 0.0
    for top in range(3, 11):
        for left in range(3, 11):
            patch = image[0, 0, top : top + 8, left : left + 8].numpy()
            y = dctn(patch, norm="ortho")
            y[abs(y) < 3 * sigma] = 0
            total += float(dctn(y, type=3, norm="ortho")[10 - top, 10 - left]) / 64
    found = threshold(image, torch.tensor([sigma]).double())[0, 0, 10, 10]
    assert found.item() == pytest.approx(total, abs=1e-9)


def test_filling_keeps_known_pixels_and_never_reads_the_others():
    images, known = draw(2, 3, 20, 20).sigmoid(), draw(1, 1, 20, 20, seed=1) > 0
    hidden = images.masked_fill(~known, torch.nan)
    first, second = (fill(given, known, torch.full_like(images, 0.5)) for given in (images, hidden))
    assert torch.equal(first, second)
    assert torch.equal(first[known.expand_as(first)], images[known.expand_as(first)])
    everything = torch.ones_like(known)
    assert torch.equal(fill(images, everything, images), images)


def test_filling_finds_one_cosine_whatever_it_begins_at():
    """Of a single wave half of the pixels are missing: the mean of an 8x8 patch of it has one coefficient."""
    wave = 0.5 + 0.4 * torch.cos(torch.pi / 8 * (torch.arange(32.0).double() + 0.5)).expand(1, 1, 32, 32)
    known = draw(1, 1, 32, 32) > 0
    error = lambda x: (x - wave)[~known].square().mean()  # noqa: E731
    for begin in (0.0, 0.5, 1.0):
        assert error(fill(wave, known, torch.full_like(wave, begin))) < 1e-3 * error(torch.full_like(wave, 0.5))


def test_what_explains_the_small_image_stays_and_what_does_not_comes_back_to_it():
    flat = torch.full((1, 3, 32, 32), 0.4).double()
    reduce = downsampling(4, 32, 32, dtype=torch.float64)
    small = reduce(flat, torch.arange(1))
    torch.testing.assert_close(back_project(small, flat, reduce), flat)
    textured = flat + 0.002 * draw(1, 3, 32, 32)  # weaker than every threshold
    torch.testing.assert_close(back_project(small, textured, reduce), flat, atol=1e-3, rtol=0)
    other = back_project(small, torch.zeros_like(flat), reduce)
    assert (reduce(other, torch.arange(1)) - small).abs().max() < 1e-3


def test_grey_noise_is_weighed_as_grey_noise():
    """The same in three channels, an image has its whole energy on the grey axis, where noise of std s is sqrt(3) s."""
    one = draw(1, 1, 16, 16)
    three = threshold(one.expand(1, 3, 16, 16), torch.tensor([3**0.5]).double())
    torch.testing.assert_close(three, threshold(one, torch.ones(1).double()).expand(1, 3, 16, 16))


def test_most_of_white_noise_goes_and_structure_stays():
    noise = draw(1, 3, 64, 64)
    ramp = torch.linspace(0, 50, 64).double().expand(1, 3, 64, 64)
    sigma = torch.ones(1).double()
    assert threshold(noise, sigma).square().mean() < 0.1
    assert (threshold(ramp + noise, sigma) - ramp).square().mean() < 0.2


def test_one_sigma_for_every_coefficient_is_white_noise():
    images, sigma = draw(2, 3, 20, 20), torch.tensor([0.3, 0.7]).double()
    spectrum = sigma.view(2, 1, 1).expand(2, 3, 64)
    torch.testing.assert_close(threshold(images, spectrum), threshold(images, sigma))
