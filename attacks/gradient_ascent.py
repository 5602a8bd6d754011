"""The loop of every gradient attack: ascend an objective within a ball, and keep the best iterate."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attacks.ball import length, project, steepest

__all__ = ["STEP_RULES", "AutoStep", "Momentum", "Objective", "Plain", "Rated", "StepRule", "ascend", "random_start"]


class Rated(NamedTuple):
    """The values of an objective at some images, one row for each; without a graph."""

    loss: Tensor  # (B,) what the attack maximises
    gradient: Tensor  # (B, C, H, W) of it
    success: Tensor  # (B,) above 0 where the defence is fooled; the larger, the more certain


Objective = Callable[[Tensor, Tensor], Rated]  # (images (B, C, H, W), their positions (B,)) -> rated
Project = Callable[[Tensor], Tensor]  # onto the ball and [0, 1]


class StepRule(Protocol):
    """The rule for the next iterate. It holds a state with one row for each image."""

    def move(self, images: Tensor, rated: Rated, project: Project) -> Tensor:
        """The next iterate, in the ball."""

    def keep(self, stay: Tensor) -> None:
        """Drop the images whose entry in `stay`, (B,) bool, is False."""


class Plain:
    """PGD: steps of one size. Source: Madry et al. (2018), section 2.1."""

    def __init__(self, eps: float, norm: str, steps: int, alpha: float | None = None):
        self.norm, self.alpha = norm, eps / 4 if alpha is None else alpha

    def move(self, images: Tensor, rated: Rated, project: Project) -> Tensor:
        """See `StepRule`."""
        return project(images + self.alpha * steepest(rated.gradient, self.norm))

    def keep(self, stay: Tensor) -> None:
        """See `StepRule`."""


class Momentum(Plain):
    """Steps of one size along the accumulated gradient. Source: Dong et al. (2018), eq. (6)-(7)."""

    def __init__(self, eps: float, norm: str, steps: int, alpha: float | None = None, decay: float = 1.0):
        super().__init__(eps, norm, steps, alpha)
        self.decay = decay  # mu in the paper
        self.velocity: Tensor | None = None

    def move(self, images: Tensor, rated: Rated, project: Project) -> Tensor:
        """See `StepRule`."""
        gradient = rated.gradient / length(rated.gradient, 1)
        self.velocity = gradient if self.velocity is None else self.decay * self.velocity + gradient
        return project(images + self.alpha * steepest(self.velocity, self.norm))

    def keep(self, stay: Tensor) -> None:
        """See `StepRule`."""
        self.velocity = None if self.velocity is None else self.velocity[stay]


class AutoStep:
    """APGD: steps of 2 eps, halved and restarted from the best point where the loss does not rise often enough.

    Source: Croce and Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", algorithm 1; checkpoints as in the authors' code.
    """

    def __init__(self, eps: float, norm: str, steps: int, alpha: float | None = None):
        self.norm, self.first = norm, 2 * eps if alpha is None else alpha
        self.interval, self.shrink, self.least = (max(int(part * steps), 1) for part in (0.22, 0.03, 0.06))
        self.since = 0  # steps since the last checkpoint
        self.state: dict[str, Tensor] = {}

    def move(self, images: Tensor, rated: Rated, project: Project) -> Tensor:
        """See `StepRule`."""
        state, loss = self.state, rated.loss
        began = not state
        if began:
            self.state = state = {
                "best": images,
                "best_gradient": rated.gradient,
                "best_loss": loss,
                "at_checkpoint": loss,
                "before": images,
                "last_loss": loss,
                "rises": torch.zeros_like(loss),
                "reduced": torch.ones_like(loss, dtype=torch.bool),
                "size": torch.full_like(loss, self.first),
            }
        else:
            self.since += 1
            state["rises"] = state["rises"] + (loss > state["last_loss"])
            state["last_loss"] = loss
            better = loss > state["best_loss"]
            state["best"] = torch.where(_per_image(better), images, state["best"])
            state["best_gradient"] = torch.where(_per_image(better), rated.gradient, state["best_gradient"])
            state["best_loss"] = torch.where(better, loss, state["best_loss"])
        gradient, here = rated.gradient, images
        if self.since == self.interval:
            restart = self._checkpoint()
            gradient = torch.where(_per_image(restart), state["best_gradient"], gradient)
            here = torch.where(_per_image(restart), state["best"], images)
        stepped = project(here + _per_image(state["size"]) * steepest(gradient, self.norm))
        inertia = 0.0 if began else 0.25
        moved = project(here + (1 - inertia) * (stepped - here) + inertia * (here - state["before"]))
        state["before"] = here
        return moved

    def _checkpoint(self) -> Tensor:
        """Halve the steps of the images that do not advance, (B,); they go on from their best point."""
        state = self.state
        stuck = ~state["reduced"] & (state["best_loss"] <= state["at_checkpoint"])
        halve = (state["rises"] <= 0.75 * self.interval) | stuck
        state["size"] = torch.where(halve, state["size"] / 2, state["size"])
        state["reduced"], state["at_checkpoint"] = halve, state["best_loss"]
        state["rises"] = torch.zeros_like(state["rises"])
        self.interval, self.since = max(self.interval - self.shrink, self.least), 0
        return halve

    def keep(self, stay: Tensor) -> None:
        """See `StepRule`."""
        self.state = {name: rows[stay] for name, rows in self.state.items()}


STEP_RULES: dict[str, Callable[..., StepRule]] = {"pgd": Plain, "momentum": Momentum, "apgd": AutoStep}


def ascend(
    objective: Objective,
    images: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 20,
    rule: str = "pgd",
    start: Tensor | None = None,
    enough: float = float("inf"),
    **settings: float | None,
) -> tuple[Tensor, Tensor]:
    """Ascend an objective in the ball around images.

    Args:
        objective: rates images; called `steps` + 1 times at most.
        images: the centres, (B, C, H, W) in [0, 1].
        eps: radius, in the unit of the images.
        norm: "linf" or "l2".
        steps: gradient steps.
        rule: a key of `STEP_RULES`.
        start: where to begin, moved into the ball; the images if None.
        enough: the attack on an image ends once its success reaches this.
        settings: of the step rule. `alpha`: step size; None for eps / 4, and for 2 eps with "apgd". `decay` of
            "momentum".

    Returns:
        The iterate of largest success, like `images` and within the ball and [0, 1] exactly, and its success (B,).

    Raises:
        ValueError: an unknown rule, fewer than one step.
    """
    if rule not in STEP_RULES:
        raise ValueError(f"rule must be one of {', '.join(STEP_RULES)}, got {rule!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    step_rule = STEP_RULES[rule](eps, norm, steps, **settings)
    images = images.detach()
    index = torch.arange(len(images), device=images.device)
    current = images.clone() if start is None else project(start.detach(), images, eps, norm)
    best, success = current.clone(), images.new_full((len(images),), -float("inf"))
    for step in range(steps + 1):
        rated = objective(current, index)
        better = rated.success > success[index]
        best[index[better]] = current[better]
        success[index[better]] = rated.success[better]
        stay = success[index] < enough
        if step == steps or not stay.any():
            break
        if not stay.all():
            step_rule.keep(stay)
            rated, index, current = Rated(*(rows[stay] for rows in rated)), index[stay], current[stay]
        current = step_rule.move(current, rated, partial(project, images=images[index], eps=eps, norm=norm))
    return best, success


def random_start(images: Tensor, *, eps: float, norm: str, seed: int) -> Tensor:
    """A point of the ball around each image, a function of that image and the seed alone.

    Args:
        images: the centres, (B, C, H, W) in [0, 1].
        eps: radius, in the unit of the images.
        norm: "linf": uniform in the ball; "l2": a uniform direction and a uniform radius.
        seed: non-negative.

    Returns:
        Like `images`, within the ball and [0, 1] exactly.
    """
    if len(images) == 0:
        return images.clone()
    noise = torch.stack([_noise(image.detach().cpu().double(), norm, seed) for image in images])
    return project(images + eps * noise.to(images), images, eps, norm)


def _noise(image: Tensor, norm: str, seed: int) -> Tensor:
    """A point of the unit ball, (C, H, W)."""
    digest = hashlib.sha256(image.contiguous().numpy().tobytes() + seed.to_bytes(8, "big")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    if norm == "linf":
        return torch.rand(image.shape, generator=generator, dtype=torch.float64) * 2 - 1
    direction = steepest(torch.randn(image[None].shape, generator=generator, dtype=torch.float64), norm)[0]
    return direction * torch.rand((), generator=generator, dtype=torch.float64)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
