"""The attacks that ask a classifier for logits or classes and never for gradients, by name."""

from collections.abc import Callable

from torch import Tensor

from attacks.nes import nes
from attacks.rays import rays
from attacks.square import square

__all__ = ["GRADIENT_FREE"]

# A caller that serves them all passes those of its keywords that are in the attack's signature.
GRADIENT_FREE: dict[str, Callable[..., Tensor]] = {"square": square, "nes": nes, "rays": rays}
