"""`flash_no_flash`: detail of one photograph, light of the other."""

import dataclasses

import pytest
import torch
from restoration_images import BRIEF, error, noise, smooth

from dipdefense import denoise, flash_no_flash
from dipdefense.restoration.presets import SMALL


def test_flash_brings_detail_and_no_flash_the_light():
    """Texture that the noise hides is in the flash image; brightness and colour are in the other."""
    texture = 0.2 * torch.sign(smooth(1, 1, 32, 32, seed=3) - 0.5)
    clean = 0.4 + texture.expand(1, 3, -1, -1) * torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1)
    dark = (clean + 0.15 * noise(clean)).clamp(0, 1)
    flash = 0.7 + texture
    config = dataclasses.replace(SMALL["flash_no_flash"], iterations=100)
    config = dataclasses.replace(config, architecture_options={"channels": [16, 16], "upsampling": "nearest"})
    ours = flash_no_flash(flash, dark, config=config)
    assert ours.shape == dark.shape
    blind = denoise(dark, config=config)
    assert error(ours, clean) < 0.6 * error(blind, clean) < 0.6 * error(dark, clean)


def test_flash_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"flash and no_flash must have one size, got \(2, 3, 20, 24\) and \(2, 3, 20, 20\)"
    ):
        flash_no_flash(smooth(), smooth(width=20), config=BRIEF)
    with pytest.raises(ValueError, match="flash and no_flash must have one size"):
        flash_no_flash(smooth(3), smooth(2), config=BRIEF)
