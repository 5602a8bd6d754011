"""The detail that a fit lacks, brought back by filters of the image that was fitted.

    q = collaborative_wiener(y, pilot threshold(y, sigma), sigma),
    p = f + threshold(y - f, sigma),   result = collaborative_wiener(y, pilot (p + q) / 2, sigma)

y is the noisy image and f its fit. The fit finds the structure, and the threshold adds detail that it is still missing;
q is what the filters make without a fit. The mean of p and q tells the last filter what of y to keep.
"""

from torch import Tensor

from dipdefense.filters.collaborative_filter import SIDE as GROUPED_SIDE
from dipdefense.filters.collaborative_filter import collaborative_wiener
from dipdefense.filters.cosine_filters import SIDE, threshold
from dipdefense.filters.noise_estimate import noise_spectrum
from dipdefense.filters.progress import ShareCallback, no_callback, part_of

__all__ = ["filter_alone", "refine"]


def refine(
    images: Tensor, fitted: Tensor, sigma: Tensor | None = None, callback: ShareCallback = no_callback
) -> Tensor:
    """The result above: the fit of noisy images with its detail.

    Args:
        images: y, (B, C, H, W) in [0, 1].
        fitted: f, of the same shape.
        sigma: std of the noise of each image, (B,), in the unit of the images; an image with 0 comes back. None for
            correlated noise, whose spectrum `noise_spectrum` finds.
        callback: see `progress`.

    Returns:
        (B, C, H, W) in [0, 1]. A backward pass goes through the filters, whose groups of patches count as fixed, and
        past the clipping.
    """
    callback(0)
    coarse, fine = (noise_spectrum(images, fitted, side) if sigma is None else sigma for side in (SIDE, GROUPED_SIDE))
    without_fit = collaborative_wiener(images, threshold(images, coarse), fine, part_of(callback, 0, 2))
    with_detail = fitted + threshold(images - fitted, coarse)
    refined = collaborative_wiener(images, (with_detail + without_fit) / 2, fine, part_of(callback, 1, 2))
    return refined + (refined.clamp(0, 1) - refined).detach()


def filter_alone(images: Tensor, sigma: Tensor) -> Tensor:
    """q of noisy images (B, C, H, W), not clipped: the rival that shows what the fit is worth. See `refine`."""
    return collaborative_wiener(images, threshold(images, sigma), sigma)
