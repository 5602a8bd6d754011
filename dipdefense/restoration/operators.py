"""The operators A of a fit: how an image was degraded before it was observed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipdefense.arguments import check_integer, check_known
from dipdefense.fitting.problem import Degrade

__all__ = ["downsample", "downsampling", "feature_extractor", "masking"]

LOBES = 3  # of the Lanczos window on each side, as in Pillow


def masking(mask: Tensor) -> Degrade:
    """A(x) = mask x, as `degrade` for `fit`.

    Args:
        mask: (N or 1, 1 or C, H, W), boolean or 0 / 1; 1 = known pixel.
    """
    with torch.inference_mode(False):  # a fit computes gradients through it
        known = mask.bool().clone()
    return lambda images, index: torch.where(known if len(known) == 1 else known[index], images, 0)


def downsampling(
    factor: int,
    height: int,
    width: int,
    *,
    lobes: int = LOBES,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Degrade:
    """Lanczos reduction of (B, C, height, width) to (B, C, ceil(height / factor), ceil(width / factor)).

    Sample i sits at (i + 1/2) factor; its weights are those of the pixels within `lobes` * `factor` of it, cut off at
    the border and made to sum to 1. Where `factor` divides the sides this is Pillow's `resize` with `LANCZOS`, without
    its rounding to 8 bits.

    Differs: the authors of the deep image prior make the data with Pillow (3 lobes) and fit with 2 lobes and repeated
    border pixels; here both are one operator.

    Raises:
        ValueError: a factor below 2, fewer than 1 lobe, an empty image, or a value that is not an integer.
    """
    for name, value, least in (("factor", factor, 2), ("lobes", lobes, 1), ("height", height, 1), ("width", width, 1)):
        check_integer(name, value, least)
    with torch.inference_mode(False):  # a fit computes gradients through them
        rows, columns = (
            torch.from_numpy(_weights(side, factor, lobes)).to(device=device, dtype=dtype) for side in (height, width)
        )
    return lambda images, index: rows @ (images @ columns.T)


def downsample(images: Tensor, factor: int) -> Tensor:
    """Lanczos reduction of images by an integer factor, as `downsampling`: (B, C, H, W) -> (B, C, H', W')."""
    reduce = downsampling(factor, *images.shape[2:], dtype=images.dtype, device=images.device)
    return reduce(images, torch.arange(len(images), device=images.device))


def _weights(side: int, factor: int, lobes: int) -> Any:
    """One dimension of the reduction, as a matrix (ceil(side / factor), side) whose rows sum to 1."""
    centres = (np.arange(-(-side // factor)) + 0.5) * factor
    t = (np.arange(side) + 0.5 - centres[:, None]) / factor
    window = np.where(abs(t) < lobes, np.sinc(t) * np.sinc(t / lobes), 0)
    return window / window.sum(1, keepdims=True)


class _ReachedError(RuntimeError):
    """Ends a forward pass at the layer of interest, with its output."""

    def __init__(self, output: Any):
        super().__init__("reached")
        self.output = output


@contextmanager
def feature_extractor(classifier: nn.Module, layer: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from images (B, C, H, W) to the output of a layer, (B, ...), while the context lasts.

    Meanwhile the classifier is in evaluation mode, so that images do not affect each other in a batch normalisation; it
    is left as it was found. A forward pass ends at the first call of the layer, so later layers cost nothing and need
    not accept the size of the images. Several threads may call the function at the same time.

    Args:
        classifier: any torch module.
        layer: a name of `classifier.named_modules()`.

    Raises:
        ValueError: an unknown layer (the message lists the known ones), or one that a forward pass never reaches.
        TypeError: a layer whose output is not a tensor.
    """
    layers = {name: module for name, module in classifier.named_modules() if name}
    check_known("layer", layer, layers)
    mine = threading.local()

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        if getattr(mine, "inside", False):  # calls by other threads pass through
            raise _ReachedError(output)

    def extract(images: Tensor) -> Tensor:
        mine.inside = True
        try:
            classifier(images)
        except _ReachedError as reached:
            if not isinstance(reached.output, Tensor):
                kind = type(reached.output).__name__
                raise TypeError(f"layer must be one whose output is a tensor, {layer!r} gives {kind}") from None
            return reached.output
        finally:
            mine.inside = False
        raise ValueError(f"layer must be one that a forward pass reaches, {layer!r} is not called")

    modes = {module: module.training for module in classifier.modules()}
    hook = layers[layer].register_forward_hook(stop)
    try:
        classifier.eval()
        yield extract
    finally:
        hook.remove()
        for module, training in modes.items():
            module.training = training
