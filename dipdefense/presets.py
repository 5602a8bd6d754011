"""The configuration for an image size, where the user names none. docs/results.md holds the evidence."""

from dipdefense.config import FitConfig

__all__ = ["default_config"]

SMALL = FitConfig(
    architecture_options={"channels": [16, 32, 64], "skip_channels": 4},
    iterations=240,
    memory_gb=1.0,
)
LARGE = FitConfig(
    architecture_options={"channels": [16, 32, 64, 128, 128], "skip_channels": 4},
    iterations=400,
    memory_gb=2.0,
)


def default_config(shape: tuple[int, ...]) -> FitConfig:
    """The evidence-based configuration for images of shape (C, H, W)."""
    return SMALL if max(shape[-2:]) <= 64 else LARGE
