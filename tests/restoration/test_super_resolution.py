"""`super_resolve`: the large image explains the small one."""

import dataclasses

import pytest
import torch
from restoration_images import BRIEF, QUICK, edges, error, seams, smooth

from dipdefense import super_resolve
from dipdefense.restoration.operators import downsample


def test_by_default_super_resolution_beats_the_fit_alone_and_has_no_seams(small_fits):
    clean, factor = edges(60), 3
    small = downsample(clean, factor)
    large = super_resolve(small, factor)
    assert large.shape == clean.shape
    assert error(downsample(large, factor), small) < 1e-4
    bicubic = torch.nn.functional.interpolate(small, (60, 60), mode="bicubic", align_corners=False)
    assert error(large, clean) < error(bicubic, clean)
    assert error(large, clean) < error(super_resolve(small, factor, refine=False), clean)
    wrong = (large - clean).square().mean((0, 1))
    at = seams(60, [0, 18, 36], 6)
    assert wrong[at].mean() < 1.5 * wrong[~at].mean()
    assert wrong[:, at].mean() < 1.5 * wrong[:, ~at].mean()


@pytest.mark.parametrize("factor", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_super_resolution_explains_the_small_image(factor):
    clean = smooth(2, 3, 8 * factor, 6 * factor)
    small = downsample(clean, factor)
    large = super_resolve(small, factor, config=dataclasses.replace(QUICK, iterations=300))
    assert large.shape == clean.shape
    assert error(downsample(large, factor), small) < 1e-3
    assert error(large, clean) < 3e-3


@pytest.mark.parametrize("factor", [1, 0, -2, 2.0, True])
def test_bad_factors_are_refused(factor):
    with pytest.raises(ValueError, match="factor must be an integer of at least 2, got"):
        super_resolve(smooth(), factor, config=BRIEF)
