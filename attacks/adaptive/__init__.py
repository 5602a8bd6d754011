"""Attacks that know the defence: its fit, decision, detector and draws. No other part of attacks imports dipdefense."""

from attacks.adaptive.ladder import COSTS, LADDER, Ensemble, GradientAttack, Oblivious, Query, Rung
from attacks.adaptive.objectives import LOSSES, objective
from attacks.adaptive.surrogates import SURROGATES, Blur, ShortFit, Smoothed
from attacks.gradient_ascent import STEP_RULES, Objective, Rated, ascend, random_start

__all__ = [
    "COSTS",
    "LADDER",
    "LOSSES",
    "STEP_RULES",
    "SURROGATES",
    "Blur",
    "GradientAttack",
    "Ensemble",
    "Objective",
    "Oblivious",
    "Query",
    "Rated",
    "Rung",
    "ShortFit",
    "Smoothed",
    "ascend",
    "objective",
    "random_start",
]
