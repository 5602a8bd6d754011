"""How close a reconstruction is to its reference: PSNR and SSIM, one value per image."""

from torch import Tensor

__all__ = ["psnr", "ssim"]

WINDOW = 11  # side of the Gaussian window in pixels, at sigma 1.5 (Wang et al. 2004)


def psnr(reconstruction: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, in decibels: 10 log10(1 / MSE).

    Args:
        reconstruction: images to score, (B, C, H, W) in [0, 1]; values outside count as they are.
        reference: ground truth, same shape and range.

    Returns:
        (B,) decibels, `inf` where the images are equal.

    Raises:
        ValueError: the shapes differ.
        TypeError: the images are not floating point, or of two types.
    """
    _check_pair(reconstruction, reference)
    return -10 * (reconstruction - reference).square().flatten(1).mean(dim=1).log10()


def ssim(reconstruction: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image, averaged over pixels and channels; 1 where they are equal.

    The standard setting: Gaussian window of 11x11 and sigma 1.5, population covariance, data range 1, and the
    mean over the positions where the window lies inside the image, as in scikit-image.

    Args:
        reconstruction: images to score, (B, C, H, W) in [0, 1], sides of at least 11.
        reference: ground truth, same shape and range.

    Returns:
        (B,) similarities, at most 1.

    Raises:
        ValueError: the shapes differ, or a side is under 11.
        TypeError: the images are not floating point, or of two types.

    Source: Wang, Bovik, Sheikh and Simoncelli (2004), eq. (13).
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError("ssim needs torchmetrics: pip install 'dipdefense[eval]'") from error
    _check_pair(reconstruction, reference)
    if min(reference.shape[2:]) < WINDOW:
        raise ValueError(f"sides must be at least {WINDOW} pixels, got {tuple(reference.shape[2:])}")
    full: Tensor = structural_similarity_index_measure(
        reconstruction, reference, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )[1]
    # torchmetrics 1.9 averages the map including its border, where the window covers mirrored pixels. Earlier versions
    # and scikit-image leave the border out. The map itself is the same in all of them.
    border = WINDOW // 2
    return full[..., border:-border, border:-border].flatten(1).mean(dim=1)


def _check_pair(reconstruction: Tensor, reference: Tensor) -> None:
    if reconstruction.shape != reference.shape or reference.dim() != 4:
        shapes = f"{tuple(reconstruction.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"reconstruction and reference must be (B, C, H, W) of one shape, got {shapes}")
    if not (reference.is_floating_point() and reconstruction.dtype == reference.dtype):
        dtypes = f"{reconstruction.dtype} and {reference.dtype}"
        raise TypeError(f"reconstruction and reference must be of one floating point type, got {dtypes}")
