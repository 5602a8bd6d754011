"""The configuration for an image's shape, where the user names none; docs/results.md holds the evidence."""

from dipdefense.config import FitConfig

__all__ = ["default_config"]

# Without skip connections: strokes come at once, and a perturbation as strong as theirs soon after.
SMALL_GREY = FitConfig(architecture_options={"channels": [16, 32, 64], "skip_channels": 0}, iterations=60)
# The average over about two iterates takes out the noise of the jitter.
SMALL_COLOUR = FitConfig(architecture_options={"channels": [16, 32, 64], "skip_channels": 4}, iterations=210, ema=0.5)
LARGE = FitConfig(
    architecture_options={"channels": [16, 32, 64, 128, 128], "skip_channels": 4},
    iterations=400,
    memory_gb=2.0,
)


def default_config(shape: tuple[int, ...]) -> FitConfig:
    """The configuration for images of shape (C, H, W); never the published 5x128 net with its thousands of steps.

    On two CPU cores an image takes about 0.06 s (grey) or 0.3 s (colour) at 32x32, 25 s at 224x224, and more in
    proportion to its pixels above.
    """
    if max(shape[-2:]) > 64:
        return LARGE
    return SMALL_GREY if shape[-3] == 1 else SMALL_COLOUR
