"""The attacks that ask a classifier for logits or classes and never for gradients, by name."""

from collections.abc import Callable

from torch import Tensor

from attacks.nes import SAMPLES, nes
from attacks.rays import rays
from attacks.square import LOOKS, square

__all__ = ["GRADIENT_FREE", "LEAST_QUERIES"]

# A caller that runs any of them passes those of its keywords that are in the signature of the attack.
GRADIENT_FREE: dict[str, Callable[..., Tensor]] = {"square": square, "nes": nes, "rays": rays}

# square: the image, the stripes, one square and the result; nes: the image and one estimate; rays: the image.
LEAST_QUERIES: dict[str, int] = {"square": LOOKS + 1, "nes": SAMPLES + 2, "rays": 1}
