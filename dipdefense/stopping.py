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

    def observe(self, iteration: int, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """Look at iterate `iteration` (1, 2, ...), (B, C, H, W).

        Args:
            iteration: its number.
            output: the iterates.
            sane: (B,) bool; an image whose loss jumped is passed over, as if this iteration had not been.

        Returns:
            Two (B,) masks: the current iterate is the one to return so far; the image is done.
        """

    def keep(self, alive: Tensor) -> None:
        """Drop the images whose entry in `alive`, (B,) bool, is False."""


class Fixed:
    """Return the last iterate; end at the fit's own `iterations`."""

    def observe(self, iteration: int, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        return sane, torch.zeros_like(sane)

    def keep(self, alive: Tensor) -> None:
        """Hold nothing, drop nothing."""


class _LeastVariance:
    """Choose the iterate of least running variance; done when it has not fallen for `patience` iterations."""

    def __init__(self, patience: int):
        if patience < 1:
            raise ValueError(f"patience must be at least 1 iteration, got {patience}")
        self.patience = patience
        self.least: Tensor | None = None  # (B,) smallest variance so far
        self.since: Tensor | None = None  # (B,) iterations since then

    def _judge(self, variance: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        if self.least is None or self.since is None:
            self.least = torch.full_like(variance, math.inf)
            self.since = torch.zeros_like(variance, dtype=torch.long)
        better = sane & (variance < self.least)
        self.least = torch.where(better, variance, self.least)
        self.since = torch.where(better, 0, self.since + sane)
        return better, self.since >= self.patience

    def keep(self, alive: Tensor) -> None:
        """See `StoppingRule.keep`."""
        if self.least is not None and self.since is not None:
            self.least, self.since = self.least[alive], self.since[alive]


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
        if window < 2:
            raise ValueError(f"window must be at least 2 iterates, got {window}")
        self.window = window
        self.frames: Tensor | None = None  # (B, W, P) the last W iterates
        self.total: Tensor | None = None  # (B, P) float64, their sum
        self.energy: Tensor | None = None  # (B,) float64, the sum of their squares

    def observe(self, iteration: int, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        x = _grid(output)
        if self.frames is None or self.total is None or self.energy is None:
            exact = torch.float32 if x.device.type == "mps" else torch.float64  # which MPS does not have
            self.frames = x.new_zeros(len(x), self.window, x.shape[1])
            self.total = torch.zeros_like(x, dtype=exact)
            self.energy = self.total.sum(1)
        slot = iteration % self.window
        leaving = self.frames[:, slot].to(self.total.dtype)
        entering = torch.where(sane[:, None], x.to(leaving.dtype), leaving)
        self.total += entering - leaving
        self.energy += (entering.square() - leaving.square()).sum(1)
        self.frames[:, slot] = entering.to(x.dtype)
        if iteration < self.window:
            return sane, torch.zeros_like(sane)
        return self._judge(self.energy / self.window - (self.total / self.window).square().sum(1), sane)

    def keep(self, alive: Tensor) -> None:
        """See `StoppingRule.keep`."""
        super().keep(alive)
        if self.frames is not None and self.total is not None and self.energy is not None:
            self.frames, self.total, self.energy = self.frames[alive], self.total[alive], self.energy[alive]


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
        self.average: Tensor | None = None  # (B, P)
        self.variance: Tensor | None = None  # (B,)

    def observe(self, iteration: int, output: Tensor, sane: Tensor) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        x = _grid(output)
        if self.average is None or self.variance is None:
            self.average, self.variance = x.clone(), x.new_zeros(len(x))
        deviation = (x - self.average).square().mean(1)
        self.variance = torch.where(sane, (1 - self.rate) * (self.variance + self.rate * deviation), self.variance)
        self.average = torch.where(sane[:, None], torch.lerp(self.average, x, self.rate), self.average)
        if iteration * self.rate < 1:
            return sane, torch.zeros_like(sane)
        return self._judge(self.variance, sane)

    def keep(self, alive: Tensor) -> None:
        """See `StoppingRule.keep`."""
        super().keep(alive)
        if self.average is not None and self.variance is not None:
            self.average, self.variance = self.average[alive], self.variance[alive]


STOPPING_RULES: dict[str, type[StoppingRule]] = {
    "fixed": Fixed,
    "wmv": WindowedMovingVariance,
    "emv": ExponentialMovingVariance,
}


def _grid(images: Tensor) -> Tensor:
    """About `PIXELS` values or fewer of each image, every s-th row and column: (B, C, H, W) -> (B, P)."""
    values = images[0].numel()
    s = max(1, math.ceil(math.sqrt(values / PIXELS)))
    return images[:, :, ::s, ::s].flatten(1)
