"""Random noise of an attack's size."""

import pytest
import torch
from torch import nn

from attacks import CONTROLS, random_noise

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def noise(**options):
    return random_noise(nn.Identity(), IMAGES, torch.zeros(3, dtype=torch.long), **options) - IMAGES


def test_linf_is_a_corner_and_l2_a_direction():
    torch.testing.assert_close(noise(eps=0.1).abs(), torch.full_like(IMAGES, 0.1))
    assert abs((noise(eps=0.1) > 0).float().mean() - 0.5) < 4 * 0.5 / 192**0.5  # 192 values, drawn once for all images
    torch.testing.assert_close(noise(eps=0.5, norm="l2").flatten(1).norm(dim=1), torch.full((3,), 0.5))


def test_an_image_does_not_depend_on_its_batch_and_seeds_differ():
    single = random_noise(nn.Identity(), IMAGES[2:], torch.zeros(1, dtype=torch.long), eps=0.1)
    assert torch.equal(single - IMAGES[2:], noise(eps=0.1)[2:])
    assert torch.equal(noise(eps=0.1, seed=4), noise(eps=0.1, seed=4))
    assert not torch.equal(noise(eps=0.1, seed=4), noise(eps=0.1, seed=5))
    assert not torch.equal(noise(eps=0.1, seed=None), noise(eps=0.1, seed=None))


def test_stays_in_range():
    noisy = random_noise(nn.Identity(), IMAGES, torch.zeros(3, dtype=torch.long), eps=1)
    assert noisy.min() == 0
    assert noisy.max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1}, "eps must be finite and at least 0"),
        ({"eps": 0.1, "norm": "l1"}, "norm must be one of .*, got 'l1'"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CONTROLS["random_noise"](nn.Identity(), IMAGES, torch.zeros(3, dtype=torch.long), **options)
