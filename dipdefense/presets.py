"""The configuration for an image's shape, where the user names none; docs/results.md holds the evidence."""

from dipdefense.config import FitConfig

__all__ = ["default_config"]

# Without skip connections: strokes come at once, and a perturbation as strong as theirs soon after.
SMALL_GREY = FitConfig(architecture_options={"channels": [16, 32, 64], "skip_channels": 0}, iterations=60)
SMALL_COLOUR = FitConfig(architecture_options={"channels": [16, 32, 64], "skip_channels": 4}, iterations=200)
LARGE = FitConfig(
    architecture_options={"channels": [16, 32, 64, 128, 128], "skip_channels": 4},
    iterations=400,
    memory_gb=2.0,
)


def default_config(shape: tuple[int, ...]) -> FitConfig:
    """The configuration for images of shape (C, H, W): seconds an image on a CPU, never the published 5x128 net."""
    if max(shape[-2:]) > 64:
        return LARGE
    return SMALL_GREY if shape[-3] == 1 else SMALL_COLOUR
