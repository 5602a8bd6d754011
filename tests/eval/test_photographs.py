"""Photographs brought to one size."""

import pytest
import torch

from dipdefense.files.writing import write_image
from eval.photographs import read_photos


@pytest.fixture
def folder(tmp_path):
    for i, shape in enumerate([(3, 32, 48), (3, 48, 32), (1, 32, 32)]):
        write_image(torch.rand(*shape, generator=torch.Generator().manual_seed(i)), tmp_path / f"{i}.png")
    return tmp_path


def test_the_centre_of_area_averages(folder):
    photos = dict(read_photos(folder, resize=16, crop=8))
    assert sorted(photos) == ["0.png", "1.png", "2.png"]
    assert {image.shape for image in photos.values()} == {(3, 8, 8)}
    whole = dict(read_photos(folder, resize=32, crop=32))["0.png"]
    cells = whole.reshape(3, 16, 2, 16, 2).mean((2, 4))  # columns 8 to 40 of 48, whose halves are 4 to 20 of 24
    torch.testing.assert_close(photos["0.png"], cells[:, 4:12, 4:12])
    assert torch.equal(photos["2.png"][0], photos["2.png"][2])


def test_the_first_of_a_permutation(folder):
    names = [name for name, _ in read_photos(folder, resize=16, crop=16, seed=3)]
    assert [name for name, _ in read_photos(folder, resize=16, crop=16, n=2, seed=3)] == names[:2]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"resize": 16, "crop": 17}, "crop must lie between 1 and the 16 pixels of resize, got 17"),
        ({"resize": 33, "crop": 8}, r"png: the short side must be at least resize, 33 pixels, got 32"),
        ({"resize": 16, "crop": 8, "n": 0}, "n must lie between 1 and the 3 images of .*, got 0"),
    ],
)
def test_bad_numbers_are_refused(folder, numbers, message):
    with pytest.raises(ValueError, match=message):
        read_photos(folder, **numbers)
