"""Adversarial defence by deep image prior: purify an image by an early-stopped fit, then classify it."""

from dipdefense.config import FitConfig
from dipdefense.decisions import DECISIONS, CrossBoundary, Decision, Last, MeanSoftmax, Trust
from dipdefense.fit import FitResult, Progress, fit
from dipdefense.losses import LOSSES, masked_mse
from dipdefense.networks import ARCHITECTURES, Autoencoder, SkipNet, UNet
from dipdefense.presets import default_config
from dipdefense.purify import DefendedClassifier, Purifier, defend
from dipdefense.stopping import STOPPING_RULES

__all__ = [
    "ARCHITECTURES",
    "DECISIONS",
    "LOSSES",
    "STOPPING_RULES",
    "Autoencoder",
    "CrossBoundary",
    "Decision",
    "DefendedClassifier",
    "FitConfig",
    "FitResult",
    "Last",
    "MeanSoftmax",
    "Progress",
    "Purifier",
    "SkipNet",
    "Trust",
    "UNet",
    "default_config",
    "defend",
    "fit",
    "masked_mse",
]
