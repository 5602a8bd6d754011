"""Network inputs: their range, their seed, their coordinates."""

import pytest
import torch

from dipdefense.fitting.inputs import meshgrid, noise


def test_noise_is_uniform_up_to_a_tenth():
    z = noise(4, 50, 50, generator=torch.Generator().manual_seed(0))
    assert z.shape == (1, 4, 50, 50)
    assert z.min() >= 0
    assert z.max() <= 0.1
    assert z.mean().item() == pytest.approx(0.05, abs=0.001)
    assert torch.equal(z, noise(4, 50, 50, generator=torch.Generator().manual_seed(0)))


def test_meshgrid_holds_the_coordinates():
    z = meshgrid(2, 3, 5, generator=torch.Generator())
    assert z[0, 0, 1].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]  # x runs along a row
    assert z[0, 1, :, 2].tolist() == [0.0, 0.5, 1.0]  # y along a column


def test_meshgrid_has_two_channels():
    with pytest.raises(ValueError, match="input_channels must be 2"):
        meshgrid(3, 4, 4, generator=torch.Generator())
