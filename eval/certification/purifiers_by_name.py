"""The purifiers of `certify` and `adapt` by name."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from dipdefense.defence.smoothing import DIP, Purify
from dipdefense.filters.refinement import filter_alone
from eval.baselines import BASELINES, bm3d, gaussian_blur, jpeg, non_local_means, total_variation
from eval.certification.certified_accuracy import NONE

__all__ = ["COSINE", "PURIFIERS", "TOLD", "purifier_named"]

COSINE = "cosine"  # the filters of `dip` without its fit, as in `benchmark denoising`
# The strengths of total variation, non-local means, JPEG and the blur were chosen at sigma 0.08 and 0.16, on images of
# CIFAR-10 with index below 1000 (docs/guarantees.md).
TOLD: dict[str, Callable[[float], Purify]] = {  # name -> purifier of images with Gaussian noise of this std
    COSINE: lambda sigma: partial(_cosine, sigma=sigma),
    "total_variation": lambda sigma: partial(total_variation, weight=0.7 * sigma),
    "non_local_means": lambda sigma: partial(non_local_means, h=0.75 * sigma),
    "bm3d": lambda sigma: partial(bm3d, sigma=sigma),
}
ADJUSTED = {"jpeg": partial(jpeg, quality=25), "gaussian_blur": partial(gaussian_blur, sigma=0.7)}  # 0.7 pixels
PURIFIERS = (DIP, COSINE, NONE, *BASELINES)


def purifier_named(name: str, sigma: float) -> str | Purify | None:
    """One of `PURIFIERS`, as `SmoothedClassifier` takes it, for Gaussian noise of std `sigma`.

    `median` and `bit_depth` have the strengths of `eval.baselines`.
    """
    if name in TOLD:
        return TOLD[name](sigma)
    named: dict[str, str | Purify | None] = {**BASELINES, **ADJUSTED, DIP: DIP, NONE: None}
    return named[name]


def _cosine(images: Tensor, sigma: float) -> Tensor:
    return filter_alone(images, images.new_full((len(images),), sigma)).clamp(0, 1)
