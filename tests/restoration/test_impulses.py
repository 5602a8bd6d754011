"""Impulses are found, and black or white areas are not taken for them."""

import torch

from dipdefense.restoration.impulses import find_impulses


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_impulse_is_found_and_nothing_else():
    clean = 0.05 + 0.9 * draw(2, 3, 30, 40)
    hit, white = draw(2, 3, 30, 40, seed=1) < 0.2, draw(2, 3, 30, 40, seed=2) < 0.5
    assert torch.equal(find_impulses(torch.where(hit, white.float(), clean)), hit)


def test_black_and_white_areas_stay():
    images = torch.full((1, 1, 20, 20), 0.5)
    images[..., :10] = 0
    images[..., 10:, 10:] = 1
    assert not find_impulses(images)[..., 2:-2, :8].any()
    images[..., 5, 5], images[..., 15, 15] = 1, 0
    assert find_impulses(images)[0, 0, [5, 15], [5, 15]].all()


def test_a_line_that_is_one_pixel_wide_is_lost():
    images = torch.full((1, 1, 9, 9), 0.5)
    images[..., 4] = 0
    assert torch.equal(find_impulses(images), images == 0)


def test_one_pixel_alone_is_its_own_majority():
    assert not find_impulses(torch.ones(1, 1, 1, 1)).any()
