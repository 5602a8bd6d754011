"""The purifiers of `certify` and `adapt` by name."""

from functools import partial

from torch import Tensor

from dipdefense.defence.smoothing import DIP, Purify
from dipdefense.filters.refinement import filter_alone
from eval.baselines import BASELINES
from eval.certification.certified_accuracy import NONE

__all__ = ["COSINE", "PURIFIERS", "purifier_named"]

COSINE = "cosine"  # the filters of `dip` without its fit, as in `benchmark denoising`
PURIFIERS = (DIP, COSINE, NONE, *BASELINES)


def purifier_named(name: str, sigma: float) -> str | Purify | None:
    """One of `PURIFIERS`, as `SmoothedClassifier` takes it.

    `dip` and `cosine` are told sigma, the std of the noise; the baselines have the strengths of `eval.baselines`.
    """
    named: dict[str, str | Purify | None] = {DIP: DIP, COSINE: partial(_cosine, sigma=sigma), NONE: None}
    return named[name] if name in named else BASELINES[name]


def _cosine(images: Tensor, sigma: float) -> Tensor:
    return filter_alone(images, images.new_full((len(images),), sigma)).clamp(0, 1)
