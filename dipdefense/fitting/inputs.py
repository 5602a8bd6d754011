"""The network input z: noise, or the coordinates of the pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["INPUTS", "meshgrid", "noise"]


def noise(channels: int, height: int, width: int, *, generator: torch.Generator) -> Tensor:
    """Uniform noise in [0, 0.1], (1, channels, height, width), as the authors of the deep image prior use it."""
    return 0.1 * torch.rand(1, channels, height, width, generator=generator)


def meshgrid(channels: int, height: int, width: int, *, generator: torch.Generator) -> Tensor:
    """Pixel coordinates in [0, 1], (1, 2, height, width): x then y. Draws nothing from the generator.

    Raises:
        ValueError: `channels` is not 2.
    """
    if channels != 2:
        raise ValueError(f"input_channels must be 2 for the meshgrid input, got {channels}")
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([x, y])[None]


INPUTS: dict[str, Callable[..., Tensor]] = {"noise": noise, "meshgrid": meshgrid}
