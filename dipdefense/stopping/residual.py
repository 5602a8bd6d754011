"""Rules that look at the residual of the fit: at its worst patch, or at what its channels share."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense.arguments import check_integer, check_positive
from dipdefense.stopping.rule import Iterate, LeastStatistic, Threshold

__all__ = ["BlindDiscrepancy", "DIPDefend"]


class DIPDefend(LeastStatistic):
    """Choose the iterate where the smoothed PSNR of the worst patch, against the observed image, is largest.

    x_t is the least PSNR of any patch, s_t its double exponential smoothing with trend b_t:
    s_1 = x_1, b_1 = x_2 - x_1, s_t = a x_t + (1 - a)(s_{t-1} + b_{t-1}), b_t = a (s_t - s_{t-1}) + (1 - a) b_{t-1}.

    Source: Dai et al. (2020), "DIPDefend: Deep image prior driven defense against adversarial examples" (a = 0.002).
    Differs: the fit ends after `patience` iterations without a larger value, where the published one runs for a
    fixed number. Sides that are no multiple of the patch are divided evenly into larger windows, which may share a
    row or column.

    Args:
        patch: side of the windows, in pixels; a smaller image is one window.
        rate: a, in (0, 1].
        patience: iterations without a larger value.

    Raises:
        ValueError: a patch or patience below 1, a rate outside (0, 1].
    """

    def __init__(self, patch: int = 32, rate: float = 0.002, patience: int = 200):
        super().__init__(patience)
        check_positive("rate", rate, 1)
        check_integer("patch", patch, 1)
        self.patch = patch
        self.weight = rate  # the base class would smooth a second time by its own `rate`, which stays 1

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


class BlindDiscrepancy(Threshold):
    """Done as soon as the sum of the residual's channels is as small as that of independent noise.

    With C channels y_c of the observed image and r_c = y_c - (A x)_c of its residual, means taken over pixels,

        mean (sum_c r_c)^2 / C <= f s^2,   s^2 = mean over c of mean (m * y_c)^2 / 36,   m = [1 -2 1]^T [1 -2 1].

    The right side is the variance of the noise: the mask m, of squared norm 36, cancels what is smooth along a row or
    a column. The left side has the same expectation for noise that is independent from channel to channel. Structure
    that is missing from the fit is similar in all channels, so it counts about C times. Sigma need not be known, and
    the noise may have any distribution and vary with the image.

    The noise must be independent from pixel to pixel and from channel to channel. That of JPEG, of demosaicing or of a
    grey photograph stored as RGB is not, and an adversarial perturbation is not: there the fit stops too late, or not
    at all. With one channel the rule is `Discrepancy` with an estimated sigma. `SubImage` stops closer to the best
    iterate with one channel, and where the channels share their noise. All observed values count, so the rule does not
    suit a loss that leaves some of them out.

    Source: our own; the mask is that of Immerkaer (1996), "Fast noise variance estimation".

    Args:
        factor: f.
        rate: weight of the newest left side, in (0, 1].

    Raises:
        ValueError: a factor that is not positive, a rate outside (0, 1].
    """

    least_side = 3

    def __init__(self, factor: float = 1.0, rate: float = 0.1):
        super().__init__(0.0, rate)
        check_positive("factor", factor)
        self.factor = factor

    def statistic(self, iterate: Iterate) -> Tensor:
        """The left side less the right one, (B,)."""
        if "variance" not in self.state:
            detail = iterate.observed.diff(n=2, dim=2).diff(n=2, dim=3)  # m * y
            self.state["variance"] = detail.square().flatten(1).mean(1) / 36
        residual = (iterate.observed - iterate.fitted).sum(1)  # (B, H, W)
        shared = residual.square().flatten(1).mean(1) / iterate.observed.shape[1]
        return shared - self.factor * self.state["variance"]
