"""Sanity checks of a robustness evaluation: is the attack sound, or does the defence only look strong?"""

from eval.diagnose.finding import CONFIDENCE, TOLERANCE, Finding
from eval.diagnose.run import CHECKS, diagnose, passes

__all__ = ["CHECKS", "CONFIDENCE", "TOLERANCE", "Finding", "diagnose", "passes"]
