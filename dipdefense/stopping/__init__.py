"""Stopping rules: when each image of a batch is done, and which of its iterates to return."""

from dipdefense.stopping.rule import Fixed, Iterate, LeastStatistic, StoppingRule, Threshold
from dipdefense.stopping.rules_by_name import STOPPING_RULES

__all__ = ["STOPPING_RULES", "Fixed", "Iterate", "LeastStatistic", "StoppingRule", "Threshold"]
