"""All checks on one model, with their cost."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import pandas as pd
from torch import Tensor, nn

from attacks.gradient import validate
from dipdefense.arguments import did_you_mean
from dipdefense.defence.check_logits import check_logits
from eval.cost import clock
from eval.diagnose.attack_convergence import converged, gradients, one_step, settled
from eval.diagnose.attack_trace import NoGradientError, query, trace
from eval.diagnose.finding import Finding
from eval.diagnose.outputs import alone, autoattack, probabilities, stable
from eval.diagnose.radius import monotone, unbounded
from eval.diagnose.weaker_attacks import black_box, noise, transfer

__all__ = ["CHECKS", "diagnose", "passes"]

# Each is check(model, images, labels, **settings that are in its signature) -> Finding.
CHECKS: dict[str, Callable[..., Finding]] = {
    "probabilities": probabilities,
    "stable": stable,
    "alone": alone,
    "gradients": gradients,
    "random_noise": noise,
    "one_step": one_step,
    "converged": converged,
    "settled": settled,
    "monotone": monotone,
    "unbounded": unbounded,
    "transfer": transfer,
    "black_box": black_box,
    "autoattack_flags": autoattack,
}
LEAST = 8  # images; with fewer, even all of them would not be surely above one half


def diagnose(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    steps: int = 20,
    queries: int = 200,
    repeats: int = 4,
    surrogate: nn.Module | None = None,
    checks: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    found: Callable[[Finding], None] | None = None,
) -> pd.DataFrame:
    """Check whether the white-box attack on `model` can be believed.

    Args:
        model: images -> logits (B, K), bare or defended, on the device of the images; called in evaluation mode with
            all images together.
        images: (B, C, H, W), floating, in [0, 1]; at least 8. A share is surely above 2 % from 2 of 16, 3 of 32 or 5
            of 64 images on.
        labels: (B,) int64.
        eps: Linf radius, in the unit of the images.
        steps: of the attack; some checks take twice as many.
        queries: of the black-box attack, for each image.
        repeats: queries with the same images.
        surrogate: another classifier, for transfer; without it that check is not run.
        checks: names in `CHECKS`, all by default.
        seed: of attacks, and of a random model's draws.
        progress: called with (checks made, checks in all) after each.
        found: called with each finding as it is made, since a check of a defence may take minutes.

    Returns:
        One row for each check: check, passed (None if it was not run), figures, means, remedy; and its cost: `queries`,
        the number of images that went forward through the model, and seconds. The attack is made once, and its cost
        counts for the first check that needs it.

    Raises:
        TypeError, ValueError: an argument breaks a rule stated above, or a label is not a class of the model.
    """
    names = list(CHECKS) if checks is None else list(checks)
    _validate(model, images, labels, names, eps=eps, steps=steps, queries=queries, repeats=repeats, seed=seed)
    counted = _Counted(model)
    settings: dict[str, Any] = {"eps": eps, "steps": steps, "queries": queries, "repeats": repeats, "seed": seed}
    settings |= {"surrogate": surrogate, "craft": cache(trace)}
    rows = []
    for name in names:
        start, before = clock(images.device), counted.queries
        known = inspect.signature(CHECKS[name]).parameters
        try:
            finding = CHECKS[name](counted, images, labels, **{k: v for k, v in settings.items() if k in known})
        except NoGradientError as error:
            means = "cannot be run: a backward pass raises, and without a gradient attack no robustness is shown"
            remedy = "see gradients"
            finding = Finding(check=name, passed=False, figures={"error": str(error)}, means=means, remedy=remedy)
        cost = {"queries": counted.queries - before, "seconds": clock(images.device) - start}
        rows.append(asdict(finding) | cost)
        if found is not None:
            found(finding)
        if progress is not None:
            progress(len(rows), len(names))
    return pd.DataFrame(rows)


def passes(steps: int, queries: int, repeats: int = 4) -> int:
    """About how many times all images go forward in a full `diagnose`; fewer if Square ends early."""
    attacks = (2 * steps + 1) + 3 * (steps + 1)  # the white-box attack, and those at three further radii
    return (
        attacks + queries + repeats + 18
    )  # clean images, alone and together, results of the other attacks, AutoAttack's checks


class _Counted(nn.Module):
    """A model that counts the images it classifies."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self.queries = 0

    def forward(self, images: Tensor) -> Tensor:
        """The model's logits."""
        self.queries += len(images)
        logits: Tensor = self.model(images)
        return logits


def _validate(
    model: nn.Module, images: Tensor, labels: Tensor, names: list[str], *, eps: float, seed: int, **counts: int
) -> None:
    unknown = [name for name in names if name not in CHECKS]
    if unknown or not names:
        got = f"{unknown[0]!r}{did_you_mean(unknown[0], CHECKS)}" if unknown else "none"
        raise ValueError(f"checks must be among {', '.join(CHECKS)}, got {got}")
    validate(images, labels, eps=eps, norm="linf", steps=counts["steps"])
    if eps == 0:
        raise ValueError("eps must be above 0 for a diagnosis, got 0: an attack that may do nothing shows nothing")
    if counts["queries"] < 4:  # what Square needs
        raise ValueError(f"queries must be at least 4, got {counts['queries']}")
    if counts["repeats"] < 2:
        raise ValueError(f"repeats must be at least 2, got {counts['repeats']}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if len(images) < LEAST:
        raise ValueError(f"images must be at least {LEAST}, got {len(images)}: fewer show nothing beyond chance")
    logits = query(model, images[:1], seed)
    check_logits(logits, 1, "model")
    if int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"labels must be below the model's {logits.shape[1]} classes, got {int(labels.max())}")
