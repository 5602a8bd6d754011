"""Attacks that make adversarial examples: by gradients, of minimum norm, by AutoAttack, by queries; a control."""

from typing import TYPE_CHECKING, Any

from attacks.autoattack import autoattack, autoattack_flags
from attacks.gradient import ATTACKS, bim, fgsm, momentum_pgd, momentum_pgd_flip, pgd, pgd_di, pgd_flip
from attacks.gradient_free import GRADIENT_FREE
from attacks.minimum_norm import MINIMUM_NORM, carlini_wagner, deepfool, lbfgs
from attacks.nes import nes
from attacks.noise import CONTROLS, random_noise
from attacks.rays import rays
from attacks.square import square

if TYPE_CHECKING:
    from attacks.torchattacks_momentum import MomentumPGD

__all__ = [
    "fgsm",
    "pgd",
    "bim",
    "momentum_pgd",
    "pgd_flip",
    "momentum_pgd_flip",
    "pgd_di",
    "deepfool",
    "carlini_wagner",
    "lbfgs",
    "autoattack",
    "autoattack_flags",
    "square",
    "nes",
    "rays",
    "random_noise",
    "ATTACKS",
    "MINIMUM_NORM",
    "GRADIENT_FREE",
    "CONTROLS",
    "MomentumPGD",
]


def __getattr__(name: str) -> Any:
    """`MomentumPGD` is derived from a class of torchattacks, which is imported with it."""
    if name != "MomentumPGD":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attacks.torchattacks_momentum import MomentumPGD

    return MomentumPGD
