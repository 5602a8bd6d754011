"""The projection: nearest, and never outside by a rounding."""

import pytest
import torch
from closed_form_classifiers import length, seeded

from attacks.ball import project

IMAGES = torch.rand(64, 3, 8, 8, generator=seeded(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [1e-4, 8 / 255, 0.3, 2.0])
def test_no_value_leaves_the_ball_or_the_range(norm, eps, dtype):
    images = IMAGES.to(dtype)
    far = images + torch.randn(images.shape, generator=seeded(1)).to(dtype)
    inside = project(far, images, eps, norm)
    assert inside.dtype == dtype
    assert inside.min() >= 0
    assert inside.max() <= 1
    assert (length(inside.double() - images.double(), norm) <= eps).all()


def test_linf_is_the_nearest_point():
    far = IMAGES + torch.randn(IMAGES.shape, generator=seeded(1))
    expected = torch.minimum(torch.maximum(far, IMAGES - 0.1), IMAGES + 0.1).clamp(0, 1)
    torch.testing.assert_close(project(far, IMAGES, 0.1, "linf"), expected, rtol=0, atol=1e-7)


def test_l2_shortens_and_each_image_may_have_its_own_radius():
    images, far = torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 0.75)  # 1 away in L2
    eps = torch.tensor([0.5, 0.25]).view(2, 1, 1, 1)
    expected = images + torch.tensor([0.125, 0.0625]).view(2, 1, 1, 1)
    torch.testing.assert_close(project(far, images, eps, "l2"), expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_inside_stays_as_it_is(norm):
    near = (IMAGES + 0.01 * torch.randn(IMAGES.shape, generator=seeded(1))).clamp(0, 1)
    assert torch.equal(project(near, IMAGES, 5.0, norm), near)
