"""Adversarial defence by deep image prior: purify an image by an early-stopped fit, then classify it."""

from dipdefense.config import FitConfig
from dipdefense.cross_boundary import CrossBoundary
from dipdefense.decisions import DECISIONS, Decision, Last, MeanSoftmax, Trust
from dipdefense.fit import FitResult, Progress, fit
from dipdefense.gradients import GRADIENTS, Unrolled
from dipdefense.losses import LOSSES, masked_mse
from dipdefense.networks import ARCHITECTURES, Autoencoder, SkipNet, UNet
from dipdefense.presets import default_config, default_defence
from dipdefense.purify import DefendedClassifier, Judgement, Purifier, defend
from dipdefense.stopping import STOPPING_RULES
from dipdefense.suspicion import Suspicion

__all__ = [
    "ARCHITECTURES",
    "DECISIONS",
    "GRADIENTS",
    "LOSSES",
    "STOPPING_RULES",
    "Autoencoder",
    "CrossBoundary",
    "Decision",
    "DefendedClassifier",
    "FitConfig",
    "FitResult",
    "Judgement",
    "Last",
    "MeanSoftmax",
    "Progress",
    "Purifier",
    "SkipNet",
    "Suspicion",
    "Trust",
    "UNet",
    "Unrolled",
    "default_config",
    "default_defence",
    "defend",
    "fit",
    "masked_mse",
]
