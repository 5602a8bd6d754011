"""Small fits in place of the defaults."""

import dataclasses

import pytest
from restoration_images import QUICK

from dipdefense.restoration.presets import SMALL, SMALL_HOLES


@pytest.fixture
def small_fits(monkeypatch):
    """The defaults with a smaller network, fewer iterations but for `denoise`, and tiles of 24 pixels."""
    network = {"architecture_options": QUICK.architecture_options, "input_channels": 8, "ema": 0.9}
    monkeypatch.setitem(SMALL, "denoise", dataclasses.replace(SMALL["denoise"], **network))
    for task in ("inpaint", "super_resolve", "remove_jpeg_artifacts"):
        monkeypatch.setitem(SMALL, task, dataclasses.replace(SMALL[task], **network, iterations=150))
    holes = dataclasses.replace(SMALL_HOLES, **network, iterations=150)
    monkeypatch.setattr("dipdefense.restoration.inpainting.SMALL_HOLES", holes)
    monkeypatch.setattr("dipdefense.restoration.prior_fit.TILE", 24)
