"""How each claim is measured, by its id."""

from collections.abc import Callable

from eval.claims.bench import Bench
from eval.claims.claim import Outcome
from eval.claims.experiments import (
    ablations,
    cost_and_losses,
    definitions,
    depth_and_padding,
    digits,
    flash,
    holes,
    impedance,
    named_attacks,
    output_and_average,
    perturbation_along_fit,
    restored,
    rivals,
    two_models,
)

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {
    **ablations.EXPERIMENTS,
    **cost_and_losses.EXPERIMENTS,
    **definitions.EXPERIMENTS,
    **depth_and_padding.EXPERIMENTS,
    **digits.EXPERIMENTS,
    **flash.EXPERIMENTS,
    **holes.EXPERIMENTS,
    **impedance.EXPERIMENTS,
    **named_attacks.EXPERIMENTS,
    **output_and_average.EXPERIMENTS,
    **perturbation_along_fit.EXPERIMENTS,
    **restored.EXPERIMENTS,
    **rivals.EXPERIMENTS,
    **two_models.EXPERIMENTS,
}
