"""Rules that look at what the fit leaves of the observed image: its worst patch, or the structure in it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.stopping.rule import Iterate, LeastStatistic, Threshold, check_number

__all__ = ["DIPDefend", "Whiteness"]


class DIPDefend(LeastStatistic):
    """Choose the iterate where the smoothed PSNR of the worst patch, against the observed image, is largest.

    x_t is the least PSNR of any patch, s_t its double exponential smoothing with trend b_t:
    s_1 = x_1, b_1 = x_2 - x_1, s_t = a x_t + (1 - a)(s_{t-1} + b_{t-1}), b_t = a (s_t - s_{t-1}) + (1 - a) b_{t-1}.

    Source: Dai et al. (2020), "DIPDefend: Deep image prior driven defense against adversarial examples" (a = 0.002).
    Differs: the fit ends after `patience` iterations without a larger value, where the published one runs on to a
    fixed number. Sides that are no multiple of the patch are divided evenly into larger windows, which may share a
    row or column.

    Args:
        patch: side of the windows, in pixels; a smaller image is one window.
        rate: a, in (0, 1].
        patience: iterations without a larger value.

    Raises:
        ValueError: a patch or patience below 1, a rate outside (0, 1].
    """

    def __init__(self, patch: int = 32, rate: float = 0.002, patience: int = 1000):
        super().__init__(patience)
        check_number("rate", rate, 1)
        if not isinstance(patch, int) or patch < 1:
            raise ValueError(f"patch must be an integer of at least 1 pixel, got {patch!r}")
        self.patch = patch
        self.weight = rate  # `rate` smooths a second time: it stays 1

    def statistic(self, iterate: Iterate) -> Tensor:
        """-s_t of each image, (B,), in decibels."""
        x, a, state = self._worst(iterate), self.weight, self.state
        if not state:
            state["level"], state["trend"] = torch.zeros_like(x), torch.zeros_like(x)
            self._begin(iterate.sane, x)
        sane, seen, level = iterate.sane, state["seen"], state["level"]
        trend = torch.where(seen == 1, x - level, state["trend"])
        new = torch.where(seen == 0, x, a * x + (1 - a) * (level + trend))
        state["level"] = torch.where(sane, new, level)
        state["trend"] = torch.where(sane & (seen > 0), a * (new - level) + (1 - a) * trend, state["trend"])
        state["seen"] = seen + sane
        return -state["level"]

    def _worst(self, iterate: Iterate) -> Tensor:
        """PSNR of the worst window of each image, (B,), in decibels."""
        error = (iterate.fitted - iterate.observed).square().mean(1, keepdim=True)
        H, W = error.shape[2:]
        windows = (max(1, H // self.patch), max(1, W // self.patch))
        worst = F.adaptive_avg_pool2d(error, windows).flatten(1).amax(1)
        return -10 * worst.clamp_min(torch.finfo(worst.dtype).tiny).log10()


class Whiteness(Threshold):
    """Done as soon as neighbouring residuals are no longer positively correlated.

    While natural structure is missing from the fit, its residual r = y - A x is smooth, and neighbours in it are
    positively correlated. Once the fit takes in the low frequencies of noise, the residual lacks them, and neighbours
    are negatively correlated. With the mean of r over each channel taken off,

        rho = mean over channels, and over the shifts by one row and by one column, of <r, shift r> / <r, r>.

    Needs noise that is independent from pixel to pixel: not that of JPEG or demosaicing, no adversarial perturbation.
    All observed values count, so it is not for a loss that leaves some of them out.

    Source: our own; the whiteness of a residual is a classical check of a fit.

    Args:
        level: of the smoothed rho at which the fit is done, in (-1, 1).
        rate: weight of the newest rho, in (0, 1].

    Raises:
        ValueError: a level outside (-1, 1), a rate outside (0, 1].
    """

    def __init__(self, level: float = 0.0, rate: float = 0.1):
        if isinstance(level, bool) or not isinstance(level, int | float) or not -1 < level < 1:
            raise ValueError(f"level must lie between -1 and 1, got {level!r}")
        super().__init__(level, rate)

    def prepare(self, observed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Change nothing.

        Raises:
            ValueError: a side below 2.
        """
        if min(observed.shape[2:]) < 2:
            raise ValueError(f"observed must have sides of at least 2 pixels, got {tuple(observed.shape[2:])}")
        return observed, None

    def statistic(self, iterate: Iterate) -> Tensor:
        """Rho of each image, (B,)."""
        r = iterate.observed - iterate.fitted
        r = r - r.mean((2, 3), keepdim=True)
        down = (r[..., 1:, :] * r[..., :-1, :]).sum((2, 3))  # (B, C)
        right = (r[..., 1:] * r[..., :-1]).sum((2, 3))
        energy = r.square().sum((2, 3)).clamp_min(torch.finfo(r.dtype).tiny)
        return ((down + right) / (2 * energy)).mean(1)
