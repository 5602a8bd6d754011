"""The attacks that ask a classifier for logits or classes and never for gradients, by name."""

from collections.abc import Callable

from torch import Tensor

from attacks.nes import SAMPLES, nes
from attacks.rays import rays
from attacks.square import LOOKS, square

__all__ = ["GRADIENT_FREE", "LEAST_QUERIES"]

# A caller that serves them all passes those of its keywords that are in the attack's signature.
GRADIENT_FREE: dict[str, Callable[..., Tensor]] = {"square": square, "nes": nes, "rays": rays}

# What each needs: the image, the stripes, a square and the result; the image and one estimate; the image.
LEAST_QUERIES: dict[str, int] = {"square": LOOKS + 1, "nes": SAMPLES + 2, "rays": 1}
