"""The comparison picture: drawn without a warning, grey and in colour, with something in it; its words in the docs."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from eval.demo_picture import CHANGE, save_comparison


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_two_images(tmp_path, channels):
    clean = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    images = {"clean": clean, "adversarial": 1 - clean, "purified": clean / 2}
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 3))
    save_comparison(tmp_path / "a.png", classifier, images, torch.tensor([0, 2]), ("cat", "dog", "frog"))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > picture.height > 300
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20) or []) > 50


@pytest.mark.parametrize("page", ["quick-start", "results", "glossary"])
def test_the_pages_that_show_it_use_its_words(page):
    assert f"*{CHANGE}*" in (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text(encoding="utf-8")
