"""Certified accuracy: certificates of randomised smoothing for the images of a data set."""

from eval.certification.run import CertificationConfig, certify_dataset

__all__ = ["CertificationConfig", "certify_dataset"]
