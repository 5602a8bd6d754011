"""Refinement: its formula in two cases that are known, its clipping, its gradient."""

import torch

from dipdefense.filters import collaborative_filter
from dipdefense.filters.collaborative_filter import collaborative_wiener
from dipdefense.filters.cosine_filters import padded, threshold
from dipdefense.filters.refinement import filter_alone, refine


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_without_noise_the_image_comes_back_whatever_the_fit():
    images = draw(2, 3, 12, 14)
    torch.testing.assert_close(refine(images, draw(2, 3, 12, 14, seed=1), torch.zeros(2).double()), images)
    torch.testing.assert_close(filter_alone(images, torch.zeros(2).double()), images)


def test_with_q_as_the_fit_the_pilot_is_q():
    """The residual is below the threshold, so p is the fit."""
    images, sigma = 0.3 + 0.4 * draw(1, 3, 16, 16), torch.tensor([0.3]).double()
    q = collaborative_wiener(images, threshold(images, sigma), sigma)
    assert not threshold(images - q, sigma).any()
    torch.testing.assert_close(refine(images, q, sigma), collaborative_wiener(images, q, sigma))


def test_results_are_clipped_and_the_gradient_is_not():
    images, sigma = (2 * draw(1, 3, 12, 12) - 0.5).clamp(0, 1), torch.tensor([0.02]).double()
    images.requires_grad_()
    result = refine(images, images.detach(), sigma)
    assert (result.min(), result.max()) == (0, 1)
    (slope,) = torch.autograd.grad(result.sum(), images)
    assert slope[(images <= 0) | (images >= 1)].abs().min() > 0


def test_the_gradient_is_that_of_small_changes(monkeypatch):
    """With the groups as they are: mirrored patches at the border are equally alike, and any change reorders them."""
    images, fitted, sigma = 0.3 + 0.4 * draw(1, 3, 12, 12), 0.5 + 0.1 * draw(1, 3, 12, 12), torch.tensor([0.1]).double()
    weights, steps = draw(1, 3, 12, 12, seed=2), (draw(1, 3, 12, 12, seed=3) - 0.5, draw(1, 3, 12, 12, seed=4) - 0.5)
    groups = collaborative_filter._groups(padded(draw(1, 1, 12, 12, seed=5), 5), 5)
    monkeypatch.setattr(collaborative_filter, "_groups", lambda *given: groups)
    inputs = [images.requires_grad_(), fitted.requires_grad_()]
    slopes = torch.autograd.grad((weights * refine(*inputs, sigma)).sum(), inputs)
    h = 1e-6
    with torch.no_grad():
        ends = [(weights * refine(images + s * steps[0], fitted + s * steps[1], sigma)).sum() for s in (h, -h)]
    expected = (ends[0] - ends[1]) / (2 * h)
    found = sum((slope * step).sum() for slope, step in zip(slopes, steps, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
