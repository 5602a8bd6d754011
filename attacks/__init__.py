"""Attacks that make adversarial examples: FGSM, PGD, momentum PGD; and, as a control, random noise of their size."""

from attacks.gradient import ATTACKS, fgsm, momentum_pgd, pgd
from attacks.momentum import MomentumPGD
from attacks.noise import CONTROLS, random_noise

__all__ = ["fgsm", "pgd", "momentum_pgd", "random_noise", "ATTACKS", "CONTROLS", "MomentumPGD"]
