"""Certified accuracy: certificates of randomised smoothing for the images of a data set."""

from eval.certification.config import CertificationConfig
from eval.certification.run import certify_dataset

__all__ = ["CertificationConfig", "certify_dataset"]
