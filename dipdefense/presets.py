"""The fit and the decision for an image's shape, where the user names none; docs/defence.md holds the evidence."""

from dipdefense.config import FitConfig
from dipdefense.decisions import Decision, Last, MeanSoftmax, Trust
from dipdefense.suspicion import Suspicion

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
LOOKS = (140, 160, 180)
TRUST = Trust(
    iterations=LOOKS,
    views=("mirror",),
    suspicion=Suspicion(iterations=(140, 300), bias=34.1, doubt=0.59, early=-9.6, late=13.01),
    threshold=0.1,
)
MEAN = MeanSoftmax(iterations=LOOKS, views=("mirror",))
SMALL = 32  # pixels a side up to which the numbers of TRUST were learnt
TILE = 64  # pixels a side; these small networks are slow to arrive on larger images


def default_config(shape: tuple[int, ...]) -> FitConfig:
    """The configuration for images of shape (C, H, W) up to TILE a side, or for such tiles of larger ones.

    Never the published 5x128 net with its thousands of steps.
    """
    return GREY if shape[-3] == 1 else COLOUR


def default_defence(shape: tuple[int, ...]) -> tuple[FitConfig, Decision]:
    """The fit and the decision of a defended classifier for images of shape (C, H, W)."""
    if shape[-3] == 1:
        return GREY, Last()
    return TRAJECTORY, TRUST if max(shape[-2:]) <= SMALL else MEAN
