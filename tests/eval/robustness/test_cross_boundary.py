"""The rival that stitches reconstructions at the classifier's boundary: by hand, and what it refuses."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from dipdefense import DefendedClassifier
from eval.robustness.cross_boundary import CrossBoundary

RISING = "iterations must be one or more integers rising from 1 or above, got "


class Threshold(nn.Module):
    """Class 1 where the mean is above `level`."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), x.flatten(1).mean(1) - self.level], 1)


def test_crossing_the_boundary_by_hand():
    """Grey images 0.2, 0.6, 0.4 along a fit cross the boundary at 0.5 twice; the input is 0.9 everywhere."""
    shades = torch.tensor([0.2, 0.6, 0.4]).double()
    along = shades[:, None, None, None, None].expand(3, 2, 1, 4, 4).clone()
    along[:, 1] = 0.1  # the second image crosses nothing
    x = torch.full((2, 1, 4, 4), 0.9).double()
    stitched = CrossBoundary((1, 2, 3), alpha=0.4, bisections=40).stitch(Threshold(0.5), x, along)
    torch.testing.assert_close(stitched[0], torch.full((1, 4, 4), 0.5 - 0.4 / 4).double())  # |1| over 16 pixels is 4
    torch.testing.assert_close(stitched[1], along[2, 1])


def test_it_names_iterations_and_survives_json():
    rival = CrossBoundary((6, 12, 24), alpha=0.1, bisections=3)
    assert CrossBoundary(**json.loads(json.dumps(dataclasses.asdict(rival)))) == rival
    assert rival.iterations_of(24) == (6, 12, 24)
    assert CrossBoundary().iterations_of(12) == (6, 8, 10, 12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CrossBoundary(5), ValueError, RISING),
        (lambda: CrossBoundary((5,)), ValueError, "iterations must be at least two"),
        (lambda: CrossBoundary((1, 2), alpha=-1), ValueError, "alpha must not be negative, got -1"),
        (lambda: CrossBoundary((1, 2), bisections=0), ValueError, "bisections must be an integer of at least 1, got 0"),
        (lambda: DefendedClassifier(nn.Flatten(), decision=CrossBoundary()), TypeError, "must be a Decision, its name"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
