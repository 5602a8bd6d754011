"""The fit and the decision for an image's shape, where the user names none; docs/defence.md holds the evidence."""

from dataclasses import replace

from dipdefense.defence.decisions import Decision, DetectorGated, LastReconstruction
from dipdefense.defence.detector import Detector
from dipdefense.fitting.config import FitConfig

__all__ = ["TILE", "default_config", "default_defence"]

# Without skip connections: strokes come at once, and a perturbation as strong as theirs soon after.
GREY = FitConfig(architecture_options={"channels": [16, 32, 64], "skip_channels": 0}, iterations=60)
# Nearest upsampling arrives in half the iterations of bilinear, and lets less of the perturbation through on the way.
# The average over about two iterates takes out the noise of the jitter.
COLOUR = FitConfig(
    architecture_options={"channels": [16, 32, 64], "skip_channels": 4, "upsampling": "nearest"},
    iterations=110,
    ema=0.5,
)
# For a trajectory rather than one reconstruction: half the channels let the perturbation through later.
TRAJECTORY = FitConfig(
    architecture_options={"channels": [8, 16, 32], "skip_channels": 4, "upsampling": "nearest"},
    iterations=300,
    ema=0.5,
)
TRUST = DetectorGated(
    iterations=(140, 160, 180),
    views=("mirror",),
    detector=Detector(iterations=(140, 300), bias=34.1, doubt=0.59, early=-9.6, late=13.01),
    threshold=0.1,
)
SMALL = 32  # pixels a side; TRUST was learnt on such images, and larger ones are cut into such tiles
# A perturbation is made for one size: shown smaller, a reconstruction keeps even less of it than shown mirrored.
LARGE = DetectorGated(
    iterations=(100, 120, 140),
    views=("small_mirror",),
    detector=Detector(iterations=(60, 160), bias=14.6, doubt=0.49, early=-2.54, late=4.07, quiet=0.02),
    threshold=0.4,
)
LARGE_FIT = replace(TRAJECTORY, iterations=160)
TILE = 64  # pixels a side, of a purifier alone; these small networks are slow to arrive on larger images


def default_config(shape: tuple[int, ...]) -> FitConfig:
    """The configuration for images of shape (C, H, W) up to TILE a side, or for such tiles of larger ones.

    Never the published 5x128 net with its thousands of steps.
    """
    return GREY if shape[-3] == 1 else COLOUR


def default_defence(shape: tuple[int, ...]) -> tuple[FitConfig, Decision, int]:
    """The fit, the decision and the side of the tiles of a defended classifier for images of shape (C, H, W)."""
    if shape[-3] == 1:
        return default_config(shape), LastReconstruction(), TILE
    if max(shape[-2:]) > SMALL:
        return LARGE_FIT, LARGE, SMALL
    return TRAJECTORY, TRUST, SMALL
