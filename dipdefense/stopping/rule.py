"""The interface of a stopping rule, what a rule sees, and the two ways in which rules decide.

A rule sees the batch at every iteration and answers with two masks: the images whose current iterate is the
best so far, and the images that are done. It holds its state along a leading dimension B and drops the rows of
images that leave. No rule sees a reference image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dipdefense.arguments import check_integer, check_positive

__all__ = ["Fixed", "Iterate", "LeastStatistic", "StoppingRule", "Threshold"]


@dataclass(frozen=True)
class Iterate:
    """What a rule sees of one iteration, one row for each image. Do not write to the tensors."""

    output: Tensor  # (B, C, H, W) the iterate; where the loss jumped, the last sane one
    average: Tensor  # (B, C, H, W) its moving average: what the fit would return now
    observed: Tensor  # (B, ...) the images that the fit was given, before `prepare`
    sane: Tensor  # (B,) bool; False where the loss jumped: the rule ignores this iteration of the image
    degrade: Callable[[Tensor], Tensor]  # A

    @cached_property
    def fitted(self) -> Tensor:
        """A(average), (B, ...) as `observed`, without gradient; computed only if a rule uses it."""
        with torch.no_grad():
            return self.degrade(self.average)


class StoppingRule:
    """The base of all rules: it fits what was observed, and holds the state of the rule."""

    warm_up = 1  # iterates that the rule sees before it judges; until then the newest is chosen
    least_side = 1  # smallest side of the observed images that the rule accepts, in pixels

    def __init__(self) -> None:
        # All that changes along the fit, one row for each image: a checkpoint saves and replaces it.
        self.state: dict[str, Tensor] = {}

    def prepare(self, observed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Determine what is fitted; called once, before the first iteration.

        Args:
            observed: (B, ...) what the fit was given.
            generator: on the CPU, the same for every call of one fit. Draw the same for all images, so that the
                result of one does not depend on the others.

        Returns:
            What to fit in its place, (B, ...), and a bool mask, broadcastable to it, of the values that the loss
            must not see; None if it may see all.

        Raises:
            ValueError: a side below `least_side`.
        """
        if min(observed.shape[2:], default=self.least_side) < self.least_side:
            sides = tuple(observed.shape[2:])
            raise ValueError(f"observed must have sides of at least {self.least_side} pixels, got {sides}")
        return observed, None

    def observe(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """Judge the next iterates.

        Returns:
            Two (B,) masks: the images whose current iterate is the best so far, and the images that are done. The fit
            remembers the latter and ignores what the rule says of them later.
        """
        raise NotImplementedError

    def keep(self, alive: Tensor) -> None:
        """Drop the images whose entry in `alive`, (B,) bool, is False."""
        self.state = {name: rows[alive] for name, rows in self.state.items()}

    def _smooth(self, statistic: Tensor, sane: Tensor, rate: float) -> Tensor:
        """Exponential average of a statistic (B,), which starts at its first value; not updated where not sane."""
        before = self.state.get("smooth", statistic)
        self.state["smooth"] = torch.where(sane, torch.lerp(before, statistic, rate), before)
        return self.state["smooth"]


class Fixed(StoppingRule):
    """Return the last iterate; end at the fit's own `iterations`."""

    def observe(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        return iterate.sane, torch.zeros_like(iterate.sane)


class LeastStatistic(StoppingRule):
    """Choose the iterate of the smallest smoothed statistic; done when that has not fallen for `patience` iterations.

    A subclass defines `statistic`, or its own `observe` that ends in `_judge`.
    """

    def __init__(self, patience: int, rate: float = 1.0):
        super().__init__()
        check_integer("patience", patience, 1)
        check_positive("rate", rate, 1)
        self.patience = patience
        self.rate = rate

    def statistic(self, iterate: Iterate) -> Tensor:
        """(B,), the smaller the better."""
        raise NotImplementedError

    def observe(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        smooth = self._smooth(self.statistic(iterate), iterate.sane, self.rate)
        if "least" not in self.state:
            self._begin(iterate.sane, smooth)
        return self._judge(smooth, iterate.sane, torch.ones_like(iterate.sane))

    def _begin(self, sane: Tensor, least: Tensor) -> None:
        self.state["seen"] = torch.zeros_like(sane, dtype=torch.long)  # sane iterates so far, if the rule counts
        self.state["least"] = torch.full_like(least, math.inf)  # smallest statistic so far
        self.state["since"] = torch.zeros_like(self.state["seen"])  # sane iterates since then

    def _judge(self, statistic: Tensor, sane: Tensor, ready: Tensor) -> tuple[Tensor, Tensor]:
        """Before an image is `ready` its newest iterate is chosen."""
        state, judged = self.state, sane & ready
        better = judged & (statistic < state["least"])
        state["least"] = torch.where(better, statistic, state["least"])
        state["since"] = torch.where(better, 0, state["since"] + judged)
        return better | (sane & ~ready), state["since"] >= self.patience


class Threshold(StoppingRule):
    """Choose the first iterate whose smoothed statistic is at most `level`; done there."""

    def __init__(self, level: float, rate: float = 1.0):
        super().__init__()
        check_positive("rate", rate, 1)
        self.level = level
        self.rate = rate

    def statistic(self, iterate: Iterate) -> Tensor:
        """(B,), which falls along the fit."""
        raise NotImplementedError

    def observe(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        smooth = self._smooth(self.statistic(iterate), iterate.sane, self.rate)
        return iterate.sane, iterate.sane & (smooth <= self.level)
