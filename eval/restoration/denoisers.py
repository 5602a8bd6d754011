"""Classical denoisers with the noise level given; images (H, W, C) may have values outside [0, 1].

Every free parameter is a function of sigma, the noise's standard deviation in [0, 1] units. At sigma 0 all but the
median leave the image unchanged. Where a docstring says "best of", the parameter was chosen from that many on the 19
images of Set5 and Set14 at sigma 10, 25 and 50 of 255.
"""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

try:
    from scipy import ndimage
    from skimage import restoration
except ImportError as error:
    raise ImportError("eval.denoisers needs scipy, scikit-image: pip install 'dipdefense[eval]'") from error

from dipdefense.filters.cosine_filters import OPPONENT
from dipdefense.filters.refinement import filter_alone
from eval.baselines import jpeg as compressed

__all__ = [
    "DENOISERS",
    "bilateral",
    "bm3d",
    "cbm3d",
    "cosine",
    "estimated_sigma",
    "gaussian",
    "joint_bilateral",
    "jpeg",
    "median",
    "noisy",
    "non_local_means",
    "total_variation",
    "wavelet",
]


def noisy(image: Any, sigma: float) -> Any:
    """The input itself."""
    return image


def gaussian(image: Any, sigma: float) -> Any:
    """Gaussian blur of variance 8.3 sigma square pixels, close to the best of nine widths at each sigma."""
    width = np.sqrt(8.3 * sigma)
    return ndimage.gaussian_filter(image, (width, width, 0))


def median(image: Any, sigma: float) -> Any:
    """Median of 3x3 pixels, of 5x5 from sigma 30 / 255 on (best of 3, 5, 7)."""
    side = 3 if sigma < 30 / 255 else 5
    return ndimage.median_filter(image, (side, side, 1))


def bilateral(image: Any, sigma: float) -> Any:
    """Bilateral filter: 1.5 pixels in space, 2 sigma in the root mean square of the colour difference (best of 15).

    This is our own code. That of scikit-image (0.26) takes its spatial weights from a table of another width than its
    window, so with a wide `sigma_color` it is not a Gaussian blur, and it loses 2 dB.

    Source: Tomasi and Manduchi (1998), eq. (5).
    """
    return image if sigma == 0 else joint_bilateral(image, image, space=1.5, colour=2 * sigma)


def joint_bilateral(image: Any, guide: Any, *, space: float, colour: float) -> Any:
    """Bilateral filter whose weights come from the colours of another image of the same size, such as one with a flash.

    `space` is in pixels, within a window of twice that on each side; `colour` is in the unit of the guide.

    Source: Petschnigg et al. (2004), "Digital photography with flash and no-flash image pairs", eq. (5).
    """
    reach = math.ceil(2 * space)
    H, W = image.shape[:2]
    padded, around = (np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "symmetric") for x in (image, guide))
    total, weights = np.zeros_like(image), np.zeros((H, W, 1))
    for dy, dx in itertools.product(range(2 * reach + 1), repeat=2):
        rows, columns = slice(dy, dy + H), slice(dx, dx + W)
        near = ((dy - reach) ** 2 + (dx - reach) ** 2) / space**2
        alike = ((around[rows, columns] - guide) ** 2).mean(-1, keepdims=True) / colour**2
        weight = np.exp(-(near + alike) / 2)
        total += weight * padded[rows, columns]
        weights += weight
    return total / weights


def non_local_means(image: Any, sigma: float) -> Any:
    """Non-local means (Buades, Coll and Morel 2005), by scikit-image: patches of 5, within 6 pixels, h = 0.6 sigma.

    The documentation of scikit-image suggests 0.8 sigma, which was 0.5 dB worse at sigma 25 and 0.1 better at 10.
    """
    return restoration.denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    ).reshape(image.shape)


def wavelet(image: Any, sigma: float) -> Any:
    """Soft thresholds of BayesShrink on db2 wavelets, by scikit-image; RGB in an orthonormal opponent space.

    That space was 0.4 dB better than scikit-image's YCbCr, in which noise is not white.

    Source: Chang, Yu and Vetterli (2000).
    """
    if sigma == 0:
        return image
    opponent = OPPONENT if image.shape[-1] == 3 else np.eye(image.shape[-1])
    smooth = restoration.denoise_wavelet(image @ opponent.T, sigma=sigma, wavelet="db2", channel_axis=-1)
    return smooth.reshape(image.shape) @ opponent


def total_variation(image: Any, sigma: float) -> Any:
    """Total variation (Rudin, Osher and Fatemi 1992; Chambolle 2004), by scikit-image, with weight 0.8 sigma."""
    if sigma == 0:
        return image
    return restoration.denoise_tv_chambolle(image, weight=0.8 * sigma, channel_axis=-1)


def jpeg(image: Any, sigma: float) -> Any:
    """Compression as JPEG, of quality 20 (25 / (255 sigma))^1.35, close to the best of 14; clipped to [0, 1] before."""
    if sigma == 0:
        return image
    quality = round(20 * (25 / 255 / sigma) ** 1.35)
    images = torch.from_numpy(image.clip(0, 1)).permute(2, 0, 1)[None]
    return compressed(images, min(max(quality, 1), 95))[0].permute(1, 2, 0).numpy()


def bm3d(image: Any, sigma: float) -> Any:
    """BM3D (Dabov et al. 2007) of each channel by itself, by the authors' package; free for non-commercial use.

    Raises:
        ImportError: the package is not installed.
    """
    package = _package()
    return np.stack([package.bm3d(channel, sigma) for channel in np.moveaxis(image, -1, 0)], -1)


def cbm3d(image: Any, sigma: float) -> Any:
    """CBM3D (Dabov et al. 2007): blocks matched in luminance, by the authors' package; free for non-commercial use.

    Raises:
        ImportError: the package is not installed.
        ValueError: the image is not RGB.
    """
    package = _package()
    if image.shape[-1] != 3:
        raise ValueError(f"cbm3d must be given RGB images, got {image.shape[-1]} channels: use bm3d")
    if np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2]):
        return np.repeat(
            bm3d(image[..., :1], sigma), 3, -1
        )  # the package would divide by the range of the colours, which is 0
    return package.bm3d_rgb(image, sigma)


def cosine(image: Any, sigma: float) -> Any:
    """The filters of `dipdefense.denoise` without its fit: threshold all patches, then filter with that as pilot."""
    images, level = torch.from_numpy(image).permute(2, 0, 1)[None], torch.tensor([sigma], dtype=torch.float64)
    return filter_alone(images, level)[0].permute(1, 2, 0).numpy()


DENOISERS: dict[str, Callable[[Any, float], Any]] = {
    "noisy": noisy,
    "gaussian": gaussian,
    "median": median,
    "bilateral": bilateral,
    "non_local_means": non_local_means,
    "wavelet": wavelet,
    "total_variation": total_variation,
    "jpeg": jpeg,
    "cosine": cosine,
    "bm3d": bm3d,
    "cbm3d": cbm3d,
}


def estimated_sigma(image: Any) -> float:
    """The noise's standard deviation, from the median of the finest wavelet coefficients, as the mean over channels.

    It is 0 for a channel without such coefficients, for example one of a single value.

    Source: Donoho and Johnstone (1994), by scikit-image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the median of an empty array
        sigmas = restoration.estimate_sigma(image, channel_axis=-1)
    return float(np.nan_to_num(sigmas).mean())


def _package() -> Any:
    try:
        import bm3d as package
    except ImportError as error:
        raise ImportError(
            "bm3d and cbm3d need the package bm3d, free for non-commercial use: pip install 'dipdefense[bm3d]'"
        ) from error
    return package
