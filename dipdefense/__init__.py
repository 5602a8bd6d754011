"""Adversarial defence by deep image prior: purify an image by an early-stopped fit, then classify it."""

import warnings
from typing import Any

from dipdefense.check.check_classifier import Compatibility, check_classifier
from dipdefense.check.incompatibility import Incompatibility
from dipdefense.defence.adaptation.adapt import adapt
from dipdefense.defence.alarm import Alarm
from dipdefense.defence.certify import Certificate, certify
from dipdefense.defence.classifier import DefendedClassifier, Prediction, defend
from dipdefense.defence.decisions import DECISIONS, Decision, DetectorGated, LastReconstruction, MeanSoftmax
from dipdefense.defence.detector import Detector
from dipdefense.defence.gradients import GRADIENTS, Unrolled
from dipdefense.defence.learn_detector import learn_detector
from dipdefense.defence.presets import Defence, defence_for
from dipdefense.defence.presets import default_config as _default_config
from dipdefense.defence.presets import default_defence as _default_defence
from dipdefense.defence.purifier import Purifier
from dipdefense.defence.smoothing import SmoothedClassifier, smooth
from dipdefense.distributed.devices import OnDevices
from dipdefense.fitting.checkpoint import Checkpoint
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.fit import FitResult, Progress, fit
from dipdefense.fitting.learn_start import learn_start
from dipdefense.fitting.losses import LOSSES, masked_mse
from dipdefense.fitting.networks import ARCHITECTURES, Autoencoder, SkipNet, UNet
from dipdefense.fitting.starts import Start, read_start
from dipdefense.restoration.denoising import denoise
from dipdefense.restoration.flash import flash_no_flash
from dipdefense.restoration.inpainting import inpaint
from dipdefense.restoration.jpeg import remove_jpeg_artifacts
from dipdefense.restoration.preimage import invert_features, maximise_activation
from dipdefense.restoration.super_resolution import super_resolve
from dipdefense.restoration.total_variation import total_variation
from dipdefense.stopping import STOPPING_RULES

__all__ = [
    "ARCHITECTURES",
    "DECISIONS",
    "GRADIENTS",
    "LOSSES",
    "STOPPING_RULES",
    "Alarm",
    "Autoencoder",
    "Certificate",
    "Checkpoint",
    "Compatibility",
    "Decision",
    "Defence",
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
    "SmoothedClassifier",
    "Start",
    "Detector",
    "DetectorGated",
    "UNet",
    "Unrolled",
    "adapt",
    "certify",
    "check_classifier",
    "defence_for",
    "defend",
    "denoise",
    "fit",
    "flash_no_flash",
    "inpaint",
    "invert_features",
    "learn_detector",
    "learn_start",
    "masked_mse",
    "maximise_activation",
    "read_start",
    "remove_jpeg_artifacts",
    "smooth",
    "super_resolve",
    "total_variation",
]

# Former names, kept for one version: what each stands for, and what to write in its place.
_DEPRECATED: dict[str, tuple[Any, str]] = {
    "Fault": (Incompatibility, "Incompatibility"),
    "Judgement": (Prediction, "Prediction"),
    "Last": (LastReconstruction, "LastReconstruction"),
    "Suspicion": (Detector, "Detector"),
    "Trust": (DetectorGated, "DetectorGated"),
    "default_config": (_default_config, 'defence_for(shape, decision="last").fit'),
    "default_defence": (_default_defence, "defence_for(shape)"),
}


def __getattr__(name: str) -> Any:
    if name == "CrossBoundary":
        raise AttributeError("dipdefense.CrossBoundary is now eval.robustness.cross_boundary.CrossBoundary")
    if name not in _DEPRECATED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value, successor = _DEPRECATED[name]
    warnings.warn(f"dipdefense.{name} is deprecated: use dipdefense.{successor}", DeprecationWarning, stacklevel=2)
    return value
