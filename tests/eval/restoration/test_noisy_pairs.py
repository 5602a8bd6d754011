"""Real noisy photographs and their references."""

import pytest
import torch

from dipdefense.files.reading import read_image
from dipdefense.files.writing import write_image
from eval.metrics import psnr
from eval.restoration.noisy_pairs import read_pairs


def write(folder, *names, side=12):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(torch.rand(3, side, side + 4, generator=torch.Generator().manual_seed(i)), path)


@pytest.mark.parametrize(
    ("noisy", "clean"),
    [
        ("a_real.png", "a_mean.png"),
        ("0001_NOISY_SRGB_010.png", "0001_GT_SRGB_010.png"),
        ("0001_001_S6_00100_L/NOISY_SRGB_011.png", "0001_001_S6_00100_L/GT_SRGB_011.png"),
    ],
)
def test_names_in_one_folder(tmp_path, noisy, clean):
    write(tmp_path, noisy, clean, noisy.replace("0001", "0002").replace("a_", "b_"))
    write(tmp_path, clean.replace("0001", "0002").replace("a_", "b_"))
    pairs = read_pairs(tmp_path, tmp_path)
    assert len(pairs) == 2
    name, shot, reference = pairs[0]
    assert name == noisy
    assert torch.equal(shot, read_image(tmp_path / noisy))
    assert torch.equal(reference, read_image(tmp_path / clean))


def test_equal_names_in_two_folders_and_the_centre(tmp_path):
    write(tmp_path / "noisy", "b.png", "a.png")
    write(tmp_path / "clean", "a.png", "b.png")
    pairs = read_pairs(tmp_path / "noisy", tmp_path / "clean", crop=8)
    assert [name for name, _, _ in pairs] == ["a.png", "b.png"]
    assert torch.equal(pairs[0][2], read_image(tmp_path / "clean" / "a.png")[:, 2:10, 4:12])


def test_what_is_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere: must be a folder of images"):
        read_pairs(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="must hold at least one noisy image, got none"):
        read_pairs(tmp_path, tmp_path)
    write(tmp_path, "a_real.png", "a_mean.png", "b_real.png")
    with pytest.raises(ValueError, match=r"b_real.png: every image must have its pair, 1 of 2 have no reference"):
        read_pairs(tmp_path, tmp_path)
    write(tmp_path, "b_mean.png", "c_mean.png")
    with pytest.raises(ValueError, match=r"c_mean.png: every image must have its pair, 1 of 3 have no noisy image"):
        read_pairs(tmp_path, tmp_path)
    write(tmp_path, "c_real.png", side=20)
    with pytest.raises(ValueError, match=r"c_real.png: must have the shape of .*c_mean.png, .*: crop one"):
        read_pairs(tmp_path, tmp_path)
    write(tmp_path, "c_real.png")
    with pytest.raises(ValueError, match="crop must lie between 1 and the 12 pixels of its short side, got 13"):
        read_pairs(tmp_path, tmp_path, crop=13)
    write(tmp_path / "same", "x.png")
    with pytest.raises(ValueError, match="must not be its own reference: name two folders"):
        read_pairs(tmp_path / "same", tmp_path / "same")


@pytest.mark.data
def test_polyu(data):
    pairs = read_pairs(data / "polyu", data / "polyu")
    assert len(pairs) == 6
    for name, shot, reference in pairs:
        assert torch.equal(reference, read_image(data / "polyu" / name.replace("_real", "_mean")))
        assert 31 < psnr(shot[None], reference[None]).item() < 33.2
