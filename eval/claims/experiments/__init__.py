"""One module for each subject, one function for each claim: from a bench to an outcome."""

from eval.claims.experiments.by_id import EXPERIMENTS

__all__ = ["EXPERIMENTS"]
