"""Rules that look at the variance of the iterates: it is smallest where the fit stays at the natural image."""

import math

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.stopping.rule import Iterate, LeastStatistic

__all__ = ["ExponentialMovingVariance", "WindowedMovingVariance"]

PIXELS = 4096  # values of an image that a window holds; larger images are sampled on a regular grid


class WindowedMovingVariance(LeastStatistic):
    """ES-WMV: the variance of the last W iterates is smallest where the fit stays at the natural image.

    Var_k = 1/W sum_{w<W} |x_{k-w} - mean|^2.

    Source: Wang et al. (2023), "Early stopping for deep image prior", algorithm 1 (W = 100, P = 1000).
    Differs: the variance is taken over about 4096 values of a larger image, on a regular grid, so that a window
    of W iterates stays small. Until there are W iterates, the newest is chosen.

    Args:
        window: W, iterates.
        patience: P, iterations without a smaller variance.

    Raises:
        ValueError: window below 2 or patience below 1.
    """

    def __init__(self, window: int = 100, patience: int = 1000):
        super().__init__(patience)
        check_integer("window", window, 2)
        self.window = self.warm_up = window

    def observe(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        x, sane, W, state = _grid(iterate.output), iterate.sane, self.window, self.state
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


class ExponentialMovingVariance(LeastStatistic):
    """ES-EMV: as `WindowedMovingVariance`, with exponential averages in place of the window.

    EMV_k = (1 - a) (EMV_{k-1} + a |x_k - EMA_{k-1}|^2),  EMA_k = (1 - a) EMA_{k-1} + a x_k.

    Source: Wang et al. (2023), "Early stopping for deep image prior", algorithm 2 (a = 0.1, P = 1000).
    Differs: EMA starts at the first iterate, and the variance counts from iteration 1 / a on, since it
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
        self.warm_up = math.ceil(1 / rate)

    def observe(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """See `StoppingRule.observe`."""
        x, sane, state = _grid(iterate.output), iterate.sane, self.state
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


def _grid(images: Tensor) -> Tensor:
    """At most `PIXELS` values of each image, at even steps: (B, C, H, W) -> (B, P)."""
    values = images.flatten(1)
    return values[:, :: math.ceil(values.shape[1] / PIXELS)]
