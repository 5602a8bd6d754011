"""Minimum-norm attacks, which look for the nearest adversarial image in L2: DeepFool, Carlini-Wagner, L-BFGS."""

from attacks.minimum_norm.attacks_by_name import MINIMUM_NORM
from attacks.minimum_norm.carlini_wagner import carlini_wagner
from attacks.minimum_norm.deepfool import deepfool
from attacks.minimum_norm.lbfgs import lbfgs

__all__ = ["MINIMUM_NORM", "carlini_wagner", "deepfool", "lbfgs"]
