"""Cheap filters that an image defence must beat; images (B, C, H, W) in [0, 1] to the same."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dipdefense.filters.cosine_filters import OPPONENT

try:
    from scipy import ndimage
    from skimage import restoration
except ImportError as error:
    raise ImportError("eval.baselines needs scipy, scikit-image: pip install 'dipdefense[eval]'") from error

__all__ = [
    "BASELINES",
    "bit_depth",
    "bm3d",
    "gaussian_blur",
    "jpeg",
    "median",
    "non_local_means",
    "total_variation",
]


def gaussian_blur(images: Tensor, sigma: float = 1.0) -> Tensor:
    """Convolve with a Gaussian of `sigma` pixels, mirrored at the border."""
    _check_positive("sigma", sigma)
    return _each(images, lambda image: ndimage.gaussian_filter(image, (0, sigma, sigma)))


def median(images: Tensor, size: int = 3) -> Tensor:
    """Replace each pixel by the median of the `size` x `size` pixels round it, mirrored at the border."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be odd and at least 1 pixel, got {size}")
    return _each(images, lambda image: ndimage.median_filter(image, (1, size, size)))


def non_local_means(images: Tensor, h: float = 0.07) -> Tensor:
    """Average pixels with similar 5x5 surroundings, within 6 pixels; `h` in [0, 1] units is the strength.

    Source: Buades, Coll and Morel (2005), by scikit-image.
    """
    _check_positive("h", h)

    def denoise(image: Any) -> Any:
        last = np.moveaxis(image, 0, -1)  # skimage 0.26 drops a single channel, and transposes with channel_axis=0
        filtered = restoration.denoise_nl_means(
            last, patch_size=5, patch_distance=6, h=h, fast_mode=True, channel_axis=-1
        )
        return np.moveaxis(filtered.reshape(last.shape), -1, 0)

    return _each(images, denoise)


def total_variation(images: Tensor, weight: float = 0.08) -> Tensor:
    """Minimise total variation plus the squared distance over 2 `weight`; a larger weight smooths more.

    Source: Chambolle (2004), by scikit-image.
    """
    _check_positive("weight", weight)
    return _each(images, lambda image: restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=0))


def jpeg(images: Tensor, quality: int = 75) -> Tensor:
    """Encode as JPEG of `quality` in [1, 100] and decode; RGB or grey, rounded to 8 bits on the way."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must lie in [1, 100], got {quality}")
    if images.dim() == 4 and images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}")

    def encode(image: Any) -> Any:
        pixels = (image * 255).round().astype(np.uint8).transpose(1, 2, 0)
        with io.BytesIO() as file:
            grey_or_rgb = pixels.squeeze(2) if pixels.shape[2] == 1 else pixels
            Image.fromarray(grey_or_rgb).save(file, "JPEG", quality=quality)
            decoded = np.asarray(Image.open(file)).reshape(pixels.shape)
        return decoded.transpose(2, 0, 1).astype(image.dtype) / 255

    return _each(images, encode)


def bit_depth(images: Tensor, bits: int = 4) -> Tensor:
    """Round each channel to `bits` bits, which are 2^bits evenly spaced values from 0 to 1."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must lie in [1, 8], got {bits}")
    _check_images(images)
    levels = (1 << bits) - 1
    return (images.detach() * levels).round() / levels


def bm3d(images: Tensor, sigma: float = 0.1) -> Tensor:
    """Block matching and 3-D filtering for noise of std `sigma`, images in [0, 1]; RGB or grey.

    The package's licence allows non-commercial use only, so no other extra installs it.

    Source: Dabov et al. (2007), "Image denoising by sparse 3-D transform-domain collaborative filtering", by the
        authors' package bm3d.
    Differs: an orthonormal opponent transform, with blocks matched in its luminance. The package's own transform
        divides by the range of each opponent channel, so it fails on RGB images without colour.

    Raises:
        ImportError: the package bm3d is not installed.
        ValueError: sigma not positive, other than 1 or 3 channels, sides below 16 pixels.
    """
    _check_positive("sigma", sigma)
    _check_images(images)
    C, H, W = images.shape[1:]
    if C not in (1, 3) or min(H, W) < 16:  # the package crashes on images near the size of its blocks
        raise ValueError(f"images must have 1 or 3 channels and sides of at least 16 pixels, got {(C, H, W)}")
    try:
        import bm3d as package
    except ImportError as error:
        raise ImportError(
            "bm3d needs the package bm3d, free for non-commercial use: pip install 'dipdefense[bm3d]'"
        ) from error

    def denoise(image: Any) -> Any:
        if C == 1:
            return package.bm3d(image[0], sigma)[None]
        opponent = np.moveaxis(image, 0, -1) @ OPPONENT.T  # (H, W, 3)
        return np.moveaxis(package.bm3d(opponent, sigma) @ OPPONENT, -1, 0)

    return _each(images, denoise)


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian_blur": gaussian_blur,
    "median": median,
    "non_local_means": non_local_means,
    "total_variation": total_variation,
    "jpeg": jpeg,
    "bit_depth": bit_depth,
    "bm3d": bm3d,
}


def _each(images: Tensor, filter_image: Callable[[Any], Any]) -> Tensor:
    """Filter each image on the CPU, on its own, so that no statistic crosses images."""
    _check_images(images)
    filtered = np.stack([filter_image(image) for image in images.detach().cpu().numpy()])
    return torch.from_numpy(filtered).to(images).clamp(0, 1)  # rounding can leave [0, 1]


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or images.numel() == 0:
        raise ValueError(f"images must be (B, C, H, W) and not empty, got {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images must be float32 or float64, got {images.dtype}")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError(f"images must lie in [0, 1], got {images.min():.3g} to {images.max():.3g}")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
