"""Cutting and joining large images."""

import dataclasses

import pytest
import torch

from dipdefense import FitConfig, Purifier, fit
from dipdefense.tiles import cut, join

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=20)


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 8), (8, 23), (31, 17), (64, 5)])
@pytest.mark.parametrize(("side", "overlap"), [(8, 0), (8, 3), (8, 7), (1, 0), (100, 50)])
def test_joining_what_was_cut_gives_it_back(size, side, overlap):
    x = images(2, 3, *size)
    torch.testing.assert_close(join(cut(x, side, overlap), size, side, overlap), x)


def test_tiles_cover_the_image_and_overlap_enough():
    x = torch.arange(20.0).view(1, 1, 1, 20)
    starts = cut(x, 8, 3)[:, 0, 0, 0].tolist()
    assert starts == [0, 4, 8, 12]  # ceil((20 - 3) / (8 - 3)) tiles, the last one ends with the image


def test_neighbours_are_blended_by_a_ramp():
    """A row of 6 in two tiles of 4 that overlap by 2; one is 0, the other 1: 1/3 and 2/3 lie between."""
    tiles = torch.stack([torch.zeros(1, 1, 4), torch.ones(1, 1, 4)]).double()
    row = join(tiles, (1, 6), 4, 2)[0, 0, 0]
    torch.testing.assert_close(row, torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1], dtype=torch.float64))


def test_a_purifier_fits_each_tile_as_an_image():
    x = images(2, 3, 24, 16)
    tiles = cut(x, 16, 4)
    expected = join(fit(tiles, TINY).reconstruction, (24, 16), 16, 4)
    assert len(tiles) == 4
    torch.testing.assert_close(Purifier(TINY, tile=16)(x), expected)


def test_the_default_numbers_cut_large_images_and_ones_of_your_own_do_not():
    small, large, grey = images(1, 3, 32, 32), images(1, 3, 33, 20), images(1, 1, 65, 40)
    assert [Purifier().tile_for(x) for x in (small, large, grey)] == [None, 32, 64]
    assert [Purifier(TINY).tile_for(x) for x in (small, large, grey)] == [None, None, None]
    assert [Purifier(tile=16).tile_for(x) for x in (small, large, grey)] == [16, 16, 16]


def test_images_up_to_the_size_of_a_tile_stay_whole():
    x = images(1, 3, 16, 16)
    assert torch.equal(Purifier(TINY, tile=16)(x), Purifier(TINY)(x))


def test_a_budget_that_is_too_small_for_the_image_is_enough_for_its_tiles():
    config = dataclasses.replace(TINY, memory_gb=0.003, iterations=2)
    x = images(1, 3, 256, 256).float()
    with pytest.raises(ValueError, match=r"memory_gb must be at least .*or cut it into tiles"):
        Purifier(config)(x)
    assert Purifier(config, tile=32)(x).shape == x.shape


@pytest.mark.parametrize(
    ("side", "overlap", "message"),
    [
        (0, 0, "side must be an integer of at least 1, got 0"),
        (2.0, 0, "side must be an integer"),
        (8, 8, r"overlap must be an integer in \[0, 8\), got 8"),
        (8, -1, "overlap must be an integer"),
    ],
)
def test_bad_numbers_are_refused(side, overlap, message):
    with pytest.raises(ValueError, match=message):
        cut(images(1, 1, 9, 9), side, overlap)
    with pytest.raises(ValueError, match=message):
        join(images(1, 1, 9, 9), (9, 9), side, overlap)


def test_tiles_of_another_cut_are_refused():
    with pytest.raises(ValueError, match=r"tiles must be a multiple of 4, each 8x8, for images of 9x9"):
        join(images(3, 1, 8, 8), (9, 9), 8, 2)


@pytest.mark.parametrize("tile", [0, -1, 1.5, True])
def test_a_bad_tile_is_refused(tile):
    with pytest.raises(ValueError, match="tile must be None or an integer of at least 1"):
        Purifier(TINY, tile=tile)
