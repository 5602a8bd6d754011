"""The quality of a JPEG compression is found from the pixels, whatever the picture, and none where there was none."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from dipdefense.restoration.jpeg_quality import artefact_sigma, estimate_quality


def photograph(name: str = "flower.jpg", top: int = 200, left: int = 260, side: int = 128) -> torch.Tensor:
    """(3, side, side), reduced by half, which leaves no trace of the compression of the file."""
    pixels = torch.tensor(load_sample_image(name)[top : top + 2 * side, left : left + 2 * side])
    return torch.nn.functional.avg_pool2d(pixels.permute(2, 0, 1) / 255, 2)


def compressed(image: torch.Tensor, quality: int, subsampling: int = 2) -> torch.Tensor:
    """What Pillow decodes, (C, H, W)."""
    levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(levels if len(image) == 3 else levels[..., 0])
    picture.save(file := io.BytesIO(), "jpeg", quality=quality, subsampling=subsampling)
    return torch.tensor(np.asarray(Image.open(file)).reshape(*image.shape[1:], -1)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("quality", [10, 23, 40, 62, 75, 90])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("name", ["flower.jpg", "china.jpg"])
def test_the_quality_is_found_to_within_one(quality, subsampling, name):
    image = photograph(name, 50, 100)
    for shown in (image, image[:1]):
        assert abs(estimate_quality(compressed(shown, quality, subsampling)) - quality) <= 1


def test_what_was_not_compressed_or_was_moved_has_no_trace():
    image = photograph()
    assert estimate_quality(image) is None
    assert estimate_quality(compressed(image, 30)[:, 3:, 5:]) is None
    assert estimate_quality(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))) is None
    for side in (1, 7):
        assert estimate_quality(torch.full((3, side, side), 0.5)) is None


def test_drawings_and_gradients_have_no_trace():
    """Their blocks are flat or all alike, so they hardly change at many qualities."""
    for level in (0, 20, 100, 200, 255):
        assert estimate_quality(torch.full((3, 128, 128), level / 255)) is None
    assert estimate_quality(torch.linspace(0, 1, 256).expand(3, 256, 256)) is None
    chequer = (torch.arange(256) // 8 % 2).float()
    assert estimate_quality((chequer != chequer[:, None]).float().expand(3, 256, 256)) is None
    rectangles = torch.ones(3, 256, 256)
    rectangles[:, 16:64, 32:128] = rectangles[:, 100:180, 90:211] = 0.3
    assert estimate_quality(rectangles) is None


def test_only_the_middle_of_a_large_image_is_looked_at():
    image = photograph("china.jpg", 50, 100)
    large = torch.rand(3, 1400, 1601, generator=torch.Generator().manual_seed(0))
    large[:, 184:1208, 288:1312] = compressed(image.repeat(1, 8, 8), 30)
    assert abs(estimate_quality(large) - 30) <= 1


@pytest.mark.parametrize("quality", [10, 30, 60])
def test_the_strength_of_the_artefacts_is_about_right(quality):
    image = photograph("china.jpg", 50, 100)
    seen = compressed(image, quality)
    truth = (seen - image).square().mean().sqrt().item()
    assert 0.6 * truth < artefact_sigma(seen, quality) < 1.1 * truth
