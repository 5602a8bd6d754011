"""Adversarial defence by deep image prior: purify an image by an early-stopped fit, then classify it."""

from dipdefense.compatibility import Compatibility, check_classifier
from dipdefense.config import FitConfig
from dipdefense.cross_boundary import CrossBoundary
from dipdefense.decisions import DECISIONS, Decision, Last, MeanSoftmax, Trust
from dipdefense.devices import OnDevices
from dipdefense.faults import Fault
from dipdefense.fit import FitResult, Progress, fit
from dipdefense.gradients import GRADIENTS, Unrolled
from dipdefense.losses import LOSSES, masked_mse
from dipdefense.networks import ARCHITECTURES, Autoencoder, SkipNet, UNet
from dipdefense.preimage import invert_features, maximise_activation
from dipdefense.presets import default_config, default_defence
from dipdefense.purify import DefendedClassifier, Judgement, Purifier, defend
from dipdefense.restore import denoise, flash_no_flash, inpaint, remove_jpeg_artifacts, super_resolve
from dipdefense.stopping import STOPPING_RULES
from dipdefense.suspicion import Suspicion
from dipdefense.total_variation import total_variation

__all__ = [
    "ARCHITECTURES",
    "DECISIONS",
    "GRADIENTS",
    "LOSSES",
    "STOPPING_RULES",
    "Autoencoder",
    "Compatibility",
    "CrossBoundary",
    "Decision",
    "DefendedClassifier",
    "Fault",
    "FitConfig",
    "FitResult",
    "Judgement",
    "Last",
    "MeanSoftmax",
    "OnDevices",
    "Progress",
    "Purifier",
    "SkipNet",
    "Suspicion",
    "Trust",
    "UNet",
    "Unrolled",
    "check_classifier",
    "default_config",
    "default_defence",
    "defend",
    "denoise",
    "fit",
    "flash_no_flash",
    "inpaint",
    "invert_features",
    "masked_mse",
    "maximise_activation",
    "remove_jpeg_artifacts",
    "super_resolve",
    "total_variation",
]
