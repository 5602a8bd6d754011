"""Noise on images, most of it at the levels at which Wang et al. (2023) compared early stopping."""

import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.baselines import jpeg

__all__ = ["LEVELS", "NOISES", "camera", "gaussian", "generator_of", "impulse", "shot", "speckle"]


def gaussian(images: Tensor, level: float, *, generator: torch.Generator, clip: bool = True) -> Tensor:
    """Add normal noise of standard deviation `level`, in [0, 1] units: (B, C, H, W) -> same, clipped to [0, 1].

    With `clip=False` values outside [0, 1] are kept, as in the literature on denoising.

    Source, as for the other noises: Hendrycks and Dietterich (2019), ImageNet-C.
    """
    _check(images, level)
    noisy = images + level * _normal(images, generator)
    return noisy.clamp(0, 1) if clip else noisy


def impulse(images: Tensor, level: float, *, generator: torch.Generator) -> Tensor:
    """Salt and pepper: set a fraction `level` of all values to 0 or 1, with equal odds: (B, C, H, W) -> same."""
    _check(images, level)
    if level > 1:
        raise ValueError(f"level must be a fraction of the values, at most 1, got {level}")
    hit, white = (torch.rand(images.shape, generator=generator, device=generator.device) for _ in range(2))
    return torch.where((hit < level).to(images.device), (white < 0.5).to(images), images)


def shot(images: Tensor, level: float, *, generator: torch.Generator) -> Tensor:
    """Poisson noise, where white is `level` photons: (B, C, H, W) in [0, 1] -> same, clipped to [0, 1]."""
    _check(images, level)
    photons = torch.poisson((images * level).to(generator.device), generator=generator)
    return (photons.to(images) / level).clamp(0, 1)


def speckle(images: Tensor, level: float, *, generator: torch.Generator) -> Tensor:
    """Multiply by normal values of mean 1 and standard deviation `level`: (B, C, H, W) -> same, clipped to [0, 1]."""
    _check(images, level)
    return (images + level * images * _normal(images, generator)).clamp(0, 1)


READ_NOISE = 0.15  # variance of the noise of reading a pixel, as a share of the photon noise at white
GAMMA = 2.2


def camera(images: Tensor, level: float, *, generator: torch.Generator) -> Tensor:
    """The noise of a camera: (B, 3, H, W) in [0, 1] -> same, clipped to [0, 1].

    White is `level` photons. Each pixel of an RGGB mosaic has photon noise (its normal approximation) and the noise of
    reading; bilinear interpolation, the gamma curve and JPEG of quality 95 make it smooth and correlated. What the same
    steps without noise and JPEG give is subtracted, so that the image itself stays the reference.
    """
    _check(images, level)
    if images.shape[1] != 3:
        raise ValueError(f"images must be RGB for the noise of a camera, got {images.shape[1]} channels")
    light = images.clamp(0, 1) ** GAMMA
    sensed = light + ((light + READ_NOISE) / level).sqrt() * _normal(images, generator)
    shown, clean = (_demosaiced(each).clamp(0, 1) ** (1 / GAMMA) for each in (sensed, light))
    return (images + jpeg(shown, 95) - clean).clamp(0, 1)


def _demosaiced(images: Tensor) -> Tensor:
    """One colour at each pixel of an RGGB mosaic, the others by bilinear interpolation: (B, 3, H, W) -> same."""
    taken = torch.zeros_like(images[:1])
    for colour, row, column in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
        taken[:, colour, row::2, column::2] = 1
    sparse, green = [[1, 2, 1], [2, 4, 2], [1, 2, 1]], [[0, 1, 0], [1, 4, 1], [0, 1, 0]]
    kernel = images.new_tensor([sparse, green, sparse])[:, None]
    total, weight = (F.conv2d(F.pad(x, [1] * 4, mode="reflect"), kernel, groups=3) for x in (images * taken, taken))
    return total / weight


NOISES: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian,
    "impulse": impulse,
    "shot": shot,
    "speckle": speckle,
    "camera": camera,
}
# Low, medium and high of Wang et al. (2023), which are the severities 2, 3 and 4 of ImageNet-C.
LEVELS: dict[str, dict[str, float]] = {
    "gaussian": {"low": 0.12, "medium": 0.18, "high": 0.26},
    "impulse": {"low": 0.06, "medium": 0.09, "high": 0.17},
    "shot": {"low": 25.0, "medium": 12.0, "high": 5.0},
    "speckle": {"low": 0.2, "medium": 0.35, "high": 0.45},
}


def generator_of(seed: int, *names: str) -> torch.Generator:
    """A generator on the CPU that depends only on the seed and the names, for example those of an image and a noise."""
    own = np.random.SeedSequence([seed, zlib.crc32(" ".join(names).encode())]).generate_state(1)
    return torch.Generator().manual_seed(int(own[0]))


def _normal(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator, dtype=images.dtype, device=generator.device).to(images)


def _check(images: Tensor, level: float) -> None:
    if not images.is_floating_point():
        raise TypeError(f"images must have a floating dtype, got {images.dtype}: convert with images.float() / 255")
    if not level > 0:
        raise ValueError(f"level must be positive, got {level}")
