"""Images, damages and small fits for the tests of restoration."""

import dataclasses

import torch

from dipdefense import FitConfig

QUICK = FitConfig(
    architecture_options={"channels": [8, 16], "skip_channels": 0, "upsampling": "nearest"},
    input_channels=8,
    iterations=150,
    ema=0.9,
)

BRIEF = dataclasses.replace(QUICK, iterations=12)


def smooth(n: int = 2, channels: int = 3, height: int = 20, width: int = 24, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(n, channels, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def noise(images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().item()


def holes(images: torch.Tensor, share: float = 0.5) -> torch.Tensor:
    """A mask for each image; 1 = known pixel."""
    size = (len(images), 1, *images.shape[2:])
    return torch.rand(size, generator=torch.Generator().manual_seed(2)) > share


def edges(side: int) -> torch.Tensor:
    """Straight edges between two smooth images, (1, 3, side, side)."""
    dark, bright = 0.2 + smooth(1, 3, side, side, seed=3) / 4, 0.55 + smooth(1, 3, side, side, seed=4) / 4
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.where((rows + 2 * columns) % 40 < 20, dark, bright)


def seams(side: int, starts: list[int], overlap: int) -> torch.Tensor:
    """The pixels on both sides of where a tile begins, and of where the one before it ends: (side,) bool."""
    found = torch.zeros(side, dtype=torch.bool)
    found[[start + edge for start in starts[1:] for edge in (-1, 0, overlap - 1, overlap)]] = True
    return found
