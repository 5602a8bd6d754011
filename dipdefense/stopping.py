"""Stopping rules: when each image of a batch is done, and which of its iterates to return.

A rule sees the batch at every iteration and answers with two masks: the images whose current iterate is the
best so far, and the images that are done. It holds its state along a leading dimension B and drops the rows of
images that leave. No rule sees a reference image.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["STOPPING_RULES", "ExponentialMovingVariance", "Fixed", "StoppingRule", "WindowedMovingVariance"]

PIXELS = 4096  # values of an image that a window holds; larger images are read on a regular grid


class StoppingRule(Protocol):
    """What the engine asks of a rule."""

    def observe(self, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """Look at the next iterates, (B, C, H, W).

        Args:
            output: the iterates.
            sane: (B,) bool; an image whose loss jumped is passed over, as if this iteration had not been.

        Returns:
            Two (B,) masks: the current iterate is the one to return so far; the image is done.
        """

    def keep(self, alive: Tensor) -> None:
        """Drop the images whose entry in `alive`, (B,) bool, is False."""


class Fixed:
    """Return the last iterate; end at the fit's own `iterations`."""

    def observe(self, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        return sane, torch.zeros_like(sane)

    def keep(self, alive: Tensor) -> None:
        """Hold nothing, drop nothing."""


class _LeastVariance:
    """Choose the iterate of least running variance; done when it has not fallen for `patience` iterations."""

    def __init__(self, patience: int):
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be an integer of at least 1 iteration, got {patience!r}")
        self.patience = patience
        self.state: dict[str, Tensor] = {}  # one row an image: what the rule needs to go on

    def _begin(self, sane: Tensor, least: Tensor) -> None:
        self.state["seen"] = torch.zeros_like(sane, dtype=torch.long)  # sane iterates so far
        self.state["least"] = torch.full_like(least, math.inf)  # smallest variance so far
        self.state["since"] = torch.zeros_like(self.state["seen"])  # sane iterates since then

    def _judge(self, variance: Tensor, sane: Tensor, ready: Tensor) -> tuple[Tensor, Tensor]:
        """Before an image is `ready` its newest iterate is the choice."""
        state, judged = self.state, sane & ready
        better = judged & (variance < state["least"])
        state["least"] = torch.where(better, variance, state["least"])
        state["since"] = torch.where(better, 0, state["since"] + judged)
        return better | (sane & ~ready), state["since"] >= self.patience

    def keep(self, alive: Tensor) -> None:
        """See `StoppingRule.keep`."""
        self.state = {name: rows[alive] for name, rows in self.state.items()}


class WindowedMovingVariance(_LeastVariance):
    """ES-WMV: the variance of the last W iterates is smallest where the fit lingers at the natural image.

    Var_k = 1/W sum_{w<W} |x_{k-w} - mean|^2.

    Source: Wang et al. (2023), "Early stopping for deep image prior", algorithm 1 (W = 100, P = 1000).
    Differences: the variance is taken over about 4096 values of a larger image, on a regular grid, so that a window
    of W iterates stays small; until W iterates are there the newest is the choice.

    Args:
        window: W, iterates.
        patience: P, iterations without a smaller variance.

    Raises:
        ValueError: window below 2 or patience below 1.
    """

    def __init__(self, window: int = 100, patience: int = 1000):
        super().__init__(patience)
        if not isinstance(window, int) or window < 2:
            raise ValueError(f"window must be an integer of at least 2 iterates, got {window!r}")
        self.window = window

    def observe(self, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        x, W, state = _grid(output), self.window, self.state
        if not state:
            exact = torch.float32 if x.device.type == "mps" else torch.float64  # which MPS does not have
            state["frames"] = x.new_zeros(len(x), W, x.shape[1])  # (B, W, P) the last W iterates
            state["total"] = torch.zeros_like(x, dtype=exact)  # (B, P) their sum
            state["energy"] = state["total"].sum(1)  # (B,) the sum of their squares
            self._begin(sane, state["energy"])
        rows, slot = torch.arange(len(x), device=x.device), state["seen"] % W
        leaving = state["frames"][rows, slot].to(state["total"].dtype)
        entering = torch.where(sane[:, None], x.to(leaving.dtype), leaving)
        state["frames"][rows, slot] = entering.to(x.dtype)
        state["total"] += entering - leaving
        state["energy"] += (entering.square() - leaving.square()).sum(1)
        state["seen"] += sane
        variance = state["energy"] / W - (state["total"] / W).square().sum(1)
        return self._judge(variance, sane, state["seen"] >= W)


class ExponentialMovingVariance(_LeastVariance):
    """ES-EMV: as `WindowedMovingVariance`, with exponential averages in place of the window.

    EMV_k = (1 - a) (EMV_{k-1} + a |x_k - EMA_{k-1}|^2),  EMA_k = (1 - a) EMA_{k-1} + a x_k.

    Source: Wang et al. (2023), "Early stopping for deep image prior", algorithm 2 (a = 0.1, P = 1000).
    Differences: EMA starts at the first iterate, and the variance counts from iteration 1 / a on, since it
    starts at zero.

    Args:
        rate: a, weight of the newest iterate, in (0, 1).
        patience: P, iterations without a smaller variance.

    Raises:
        ValueError: rate outside (0, 1) or patience below 1.
    """

    def __init__(self, rate: float = 0.1, patience: int = 1000):
        super().__init__(patience)
        if not 0 < rate < 1:
            raise ValueError(f"rate must lie between 0 and 1, got {rate}")
        self.rate = rate

    def observe(self, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        x, state = _grid(output), self.state
        if not state:
            state["average"] = x.clone()  # (B, P)
            state["variance"] = x.new_zeros(len(x))
            self._begin(sane, state["variance"])
        deviation = (x - state["average"]).square().mean(1)
        variance = (1 - self.rate) * (state["variance"] + self.rate * deviation)
        state["variance"] = torch.where(sane, variance, state["variance"])
        state["average"] = torch.where(sane[:, None], torch.lerp(state["average"], x, self.rate), state["average"])
        state["seen"] += sane
        return self._judge(state["variance"], sane, state["seen"] * self.rate >= 1)


STOPPING_RULES: dict[str, type[StoppingRule]] = {
    "fixed": Fixed,
    "wmv": WindowedMovingVariance,
    "emv": ExponentialMovingVariance,
}


def _grid(images: Tensor) -> Tensor:
    """At most `PIXELS` values of each image, at even steps: (B, C, H, W) -> (B, P)."""
    values = images.flatten(1)
    return values[:, :: math.ceil(values.shape[1] / PIXELS)]
