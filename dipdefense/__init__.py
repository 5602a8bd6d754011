"""Adversarial defence by deep image prior: purify an image by an early-stopped fit, then classify it."""

from dipdefense.check.check_classifier import Compatibility, check_classifier
from dipdefense.check.incompatibility import Incompatibility
from dipdefense.defence.classifier import DefendedClassifier, Prediction, defend
from dipdefense.defence.cross_boundary import CrossBoundary
from dipdefense.defence.decisions import DECISIONS, Decision, DetectorGated, LastReconstruction, MeanSoftmax
from dipdefense.defence.detector import Detector
from dipdefense.defence.gradients import GRADIENTS, Unrolled
from dipdefense.defence.presets import default_config, default_defence
from dipdefense.defence.purifier import Purifier
from dipdefense.distributed.devices import OnDevices
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.fit import FitResult, Progress, fit
from dipdefense.fitting.losses import LOSSES, masked_mse
from dipdefense.fitting.networks import ARCHITECTURES, Autoencoder, SkipNet, UNet
from dipdefense.restoration.preimage import invert_features, maximise_activation
from dipdefense.restoration.tasks import denoise, flash_no_flash, inpaint, remove_jpeg_artifacts, super_resolve
from dipdefense.restoration.total_variation import total_variation
from dipdefense.stopping import STOPPING_RULES

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
    "Incompatibility",
    "FitConfig",
    "FitResult",
    "Prediction",
    "LastReconstruction",
    "MeanSoftmax",
    "OnDevices",
    "Progress",
    "Purifier",
    "SkipNet",
    "Detector",
    "DetectorGated",
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
