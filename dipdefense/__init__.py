"""Adversarial defence by deep image prior: purify an image by an early-stopped fit, then classify it."""

from dipdefense.config import FitConfig
from dipdefense.fit import FitResult, Progress, fit
from dipdefense.losses import LOSSES, masked_mse
from dipdefense.networks import ARCHITECTURES, Autoencoder, SkipNet, UNet
from dipdefense.presets import default_config
from dipdefense.purify import DefendedClassifier, Purifier, defend
from dipdefense.stopping import STOPPING_RULES

__all__ = [
    "ARCHITECTURES",
    "LOSSES",
    "STOPPING_RULES",
    "Autoencoder",
    "DefendedClassifier",
    "FitConfig",
    "FitResult",
    "Progress",
    "Purifier",
    "SkipNet",
    "UNet",
    "default_config",
    "defend",
    "fit",
    "masked_mse",
]
