"""The minimum-norm attacks, by name."""

from collections.abc import Callable

from torch import Tensor

from attacks.minimum_norm.carlini_wagner import carlini_wagner
from attacks.minimum_norm.deepfool import deepfool
from attacks.minimum_norm.lbfgs import lbfgs

__all__ = ["MINIMUM_NORM"]

# They have no radius and no norm to choose: a caller passes them a seed, and what is an argument of that attack alone.
MINIMUM_NORM: dict[str, Callable[..., Tensor]] = {
    "deepfool": deepfool,
    "carlini_wagner": carlini_wagner,
    "lbfgs": lbfgs,
}
