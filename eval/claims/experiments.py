"""How each claim is measured, by its id."""

from collections.abc import Callable

from eval.claims import (
    definitions,
    digits,
    filters,
    named_attacks,
    output_and_average,
    perturbation_along_fit,
    restored,
    two_models,
)
from eval.claims.bench import Bench
from eval.claims.claim import Outcome

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {
    **definitions.EXPERIMENTS,
    **named_attacks.EXPERIMENTS,
    **perturbation_along_fit.EXPERIMENTS,
    **two_models.EXPERIMENTS,
    **output_and_average.EXPERIMENTS,
    **filters.EXPERIMENTS,
    **digits.EXPERIMENTS,
    **restored.EXPERIMENTS,
}
