"""What every public entry expects of an image tensor."""

import math
from collections.abc import Collection

import torch
from torch import Tensor

__all__ = ["check_images"]

ROUNDING = 1e-3  # by which a resize may leave [0, 1]: a quarter of a grey level


def check_images(
    images: Tensor,
    name: str = "images",
    *,
    ndim: int = 4,
    channels: Collection[int] | None = None,
    half: bool = False,
    empty: bool = False,
) -> None:
    """Raise unless `images` is what every public entry expects: a finite float32 or float64 tensor in [0, 1].

    Args:
        images: what came in; 4 dimensions are (B, C, H, W), 3 are (C, H, W).
        name: what messages call it.
        ndim: number of dimensions it must have.
        channels: allowed sizes of C; `None` allows any.
        half: allow floats of less than 32 bits too.
        empty: allow B to be 0.

    Raises:
        TypeError: not a tensor, or not of such a dtype.
        ValueError: wrong shape, empty, not finite, or outside [0, 1].
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        remedy = "; convert with images.float() / 255" if images.dtype == torch.uint8 else ""
        raise TypeError(f"{name} must have a floating dtype, got {images.dtype}{remedy}")
    if images.dtype not in (torch.float32, torch.float64) and not half:
        raise TypeError(f"{name} must be float32 or float64, got {images.dtype}: convert with images.float()")
    shape = tuple(images.shape)
    if images.ndim != ndim:
        wanted = {3: " (C, H, W)", 4: " (B, C, H, W)"}.get(ndim, "")
        raise ValueError(f"{name} must have {ndim} dimensions{wanted}, got shape {shape}")
    if 0 in (shape[1:] if empty else shape):
        raise ValueError(f"{name} must not be empty, got shape {shape}")
    if channels is not None and images.shape[-3] not in channels:
        allowed = " or ".join(str(count) for count in channels)
        raise ValueError(f"{name} must have {allowed} channels, got {images.shape[-3]} in shape {shape}")
    if images.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(images.detach()))  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite, got NaN or infinite values")
    if low < 0 or high > 1:
        remedy = "divide 0..255 values by 255, undo any mean/std normalisation"
        if low >= -ROUNDING and high <= 1 + ROUNDING:
            remedy = "clamp rounding errors with images.clamp(0, 1)"
        raise ValueError(f"{name} must be within [0, 1], got [{low:.9g}, {high:.9g}]; {remedy}")
