"""Attacks that make adversarial examples: FGSM, PGD, momentum PGD."""

from attacks.gradient import ATTACKS, fgsm, momentum_pgd, pgd
from attacks.momentum import MomentumPGD

__all__ = ["fgsm", "pgd", "momentum_pgd", "ATTACKS", "MomentumPGD"]
