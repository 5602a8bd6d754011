"""Losses against values worked out by hand."""

import math

import pytest
import torch
from scipy.stats import norm
from scipy.stats import poisson as photon_counts

from dipdefense import FitConfig, fit
from dipdefense.fitting.losses import (
    DARK,
    LOSSES,
    cosine,
    gaussian_mixture,
    l1,
    least_squares_gain,
    masked_mse,
    mse,
    poisson,
)

X = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).view(2, 1, 1, 2)
Y = torch.tensor([[3.0, 2.0], [1.0, 1.0]]).view(2, 1, 1, 2)
INDEX = torch.tensor([0, 1])


def test_by_hand():
    assert mse(X, Y).tolist() == [2.0, 0.5]
    assert l1(X, Y).tolist() == [1.0, 0.5]
    assert cosine(X, Y).tolist() == pytest.approx([1 - 17 / (5 * math.sqrt(13)), 1 - 1 / math.sqrt(2)], abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_at_equality_and_one_number_an_image(name):
    loss = LOSSES[name](X, X)
    assert loss.shape == (2,)
    assert loss.abs().max() < 1e-6


def test_poisson_is_the_likelihood_of_photon_counts():
    counts, rate, photons = torch.tensor([[1.0, 3.0, 40.0]]), torch.tensor([[0.5, 5.0, 33.0]]), 50
    likelihood = photon_counts.logpmf(counts, counts) - photon_counts.logpmf(counts, rate)
    found = photons * poisson(rate / photons - DARK, counts / photons - DARK)
    torch.testing.assert_close(found, torch.tensor([likelihood.mean()]).float(), rtol=1e-4, atol=0)


def test_poisson_counts_an_output_below_black_as_black():
    assert poisson(torch.full((1, 1), -0.2), torch.full((1, 1), 0.5)) == poisson(
        torch.zeros(1, 1), torch.full((1, 1), 0.5)
    )


def test_a_fit_that_counts_photons_wants_no_negative_ones():
    config = FitConfig(architecture_options={"channels": [4]}, input_channels=4, iterations=2, loss="poisson")
    assert fit(torch.zeros(1, 1, 8, 8), config).reconstruction.isfinite().all()
    with pytest.raises(ValueError, match="observed must be at least 0 for the loss poisson"):
        fit(torch.full((1, 1, 8, 8), -0.1), config)


def test_gaussian_mixture_is_the_likelihood_of_the_mixture():
    residual, shares, sigmas = torch.tensor([[0.0, 0.05, 0.9]]), (0.8, 0.2), (0.1, 0.5)
    density = sum(w * norm.pdf(residual, scale=s) for w, s in zip(shares, sigmas, strict=True))
    likelihood = torch.from_numpy(density).log().mean() - math.log(density[0, 0])
    found = gaussian_mixture(shares, sigmas)(residual.double(), torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(found, -likelihood[None], rtol=1e-6, atol=0)


def test_gaussian_mixture_of_one_is_squared_error():
    torch.testing.assert_close(gaussian_mixture([1.0], [0.3])(X, Y), mse(X, Y) / (2 * 0.3**2))


@pytest.mark.parametrize("name", ["l1", "gaussian_mixture"])
def test_robust_losses_follow_the_majority(name):
    values = torch.tensor([[0.2] * 9 + [1.0]])  # a tenth are impulses
    constant = torch.full((1, 1), 0.4, requires_grad=True)
    optimizer = torch.optim.Adam([constant], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        LOSSES[name](constant.expand_as(values), values).backward()
        optimizer.step()
    assert abs(constant.item() - 0.2) < 0.02  # the mean is 0.28


@pytest.mark.parametrize(("shares", "sigmas"), [([], []), ([1.0], [0.1, 0.2])])
def test_gaussian_mixture_wants_a_sigma_for_each_share(shares, sigmas):
    with pytest.raises(ValueError, match="shares and sigmas must be as many, at least one"):
        gaussian_mixture(shares, sigmas)


@pytest.mark.parametrize(
    ("shares", "sigmas"),
    [([0.5, 0.6], [0.1, 0.2]), ([1.0], [0.0]), ([1.5, -0.5], [0.1, 0.2]), ([1.0], [math.inf])],
)
def test_gaussian_mixture_wants_positive_numbers_and_shares_of_one(shares, sigmas):
    with pytest.raises(ValueError, match="must be positive and finite, and shares sum to 1"):
        gaussian_mixture(shares, sigmas)


def test_cosine_is_blind_to_scale_and_the_gain_restores_it():
    torch.testing.assert_close(cosine(X, 7 * X), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(least_squares_gain(X, 7 * X), torch.full((2,), 7.0))
    residual = least_squares_gain(X, Y).view(2, 1, 1, 1) * X - Y
    torch.testing.assert_close((residual * X).flatten(1).sum(1), torch.zeros(2), atol=1e-6, rtol=0)


def test_masked_mse_averages_the_known_pixels_alone():
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    assert masked_mse(mask)(X, Y, INDEX).tolist() == [0.0, 0.5]


def test_masked_mse_never_reads_an_unknown_pixel():
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    hidden = torch.where(mask.bool(), Y, math.nan)
    x = X.clone().requires_grad_()
    loss = masked_mse(mask)(x, hidden, INDEX)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1.0]
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[~mask.bool()] == 0).all()


def test_masked_mse_follows_the_index():
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    flipped = masked_mse(mask)(X.flip(0), Y.flip(0), INDEX.flip(0))
    torch.testing.assert_close(flipped, masked_mse(mask)(X, Y, INDEX).flip(0))


def test_masked_mse_refuses_bad_masks():
    with pytest.raises(ValueError, match="mask must be binary"):
        masked_mse(torch.full((1, 1, 2, 2), 0.5))
    with pytest.raises(ValueError, match="output and observed must have one shape"):
        masked_mse(torch.ones(1, 1, 1, 2))(X.mean(3, keepdim=True), Y, INDEX)
    with pytest.raises(ValueError, match="at least one known pixel"):
        masked_mse(torch.zeros(1, 1, 2, 2))
