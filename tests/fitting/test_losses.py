"""Losses against values worked out by hand."""

import math

import pytest
import torch

from dipdefense.fitting.losses import LOSSES, cosine, l1, least_squares_gain, masked_mse, mse

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
