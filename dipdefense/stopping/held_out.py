"""Rules that compare pixels: hidden ones with the fit, or one half of the image with the other."""

import torch
from torch import Tensor

from dipdefense.stopping.rule import Iterate, LeastStatistic, Threshold

__all__ = ["SubImage", "Validation"]


class Validation(LeastStatistic):
    """Choose the iterate with the smallest error at pixels that are hidden from the loss.

    The fit cannot reproduce the noise of a hidden pixel, unless the noise around it predicts it. All channels of a
    pixel are hidden together, and the same pixels in all images. Every pixel counts as observed, so the rule does not
    suit a loss that leaves some of them out.

    Source: self-validation as in Yaman, Hosseini, Akcakaya (2022), "Zero-shot self-supervised learning for MRI
    reconstruction".
    Differs: pixels in place of samples of k-space; the error is smoothed along the fit.

    Args:
        fraction: share of the pixels that are hidden, in (0, 1).
        rate: weight of the newest error, in (0, 1].
        patience: iterations without a smaller error.

    Raises:
        ValueError: a fraction outside (0, 1), a rate outside (0, 1], patience below 1.
    """

    def __init__(self, fraction: float = 0.05, rate: float = 0.1, patience: int = 200):
        super().__init__(patience, rate)
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {fraction!r}")
        self.fraction = fraction

    def prepare(self, observed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Hide the pixels.

        Raises:
            ValueError: images of one pixel.
        """
        H, W = observed.shape[2:]
        if H * W < 2:
            raise ValueError(f"observed must have at least 2 pixels to hide one of them, got {H}x{W}")
        count = min(max(1, round(self.fraction * H * W)), H * W - 1)
        order = torch.randperm(H * W, generator=generator, device="cpu").to(observed.device)
        self.positions = order[:count]  # in the flattened image
        hidden = torch.zeros(H * W, dtype=torch.bool, device=observed.device)
        hidden[self.positions] = True
        hidden = hidden.view(1, 1, H, W)
        return observed.masked_fill(hidden, 0), hidden  # zeros, so that no loss can read the values

    def statistic(self, iterate: Iterate) -> Tensor:
        """Mean squared error at the hidden pixels of each image, (B,)."""
        hidden = [x.flatten(2)[..., self.positions] for x in (iterate.fitted, iterate.observed)]  # (B, C, P) each
        return (hidden[0] - hidden[1]).square().flatten(1).mean(1)


class SubImage(Threshold):
    """Done as soon as the residuals of the two halves of the pixels are no longer correlated.

    D1 averages one diagonal of each 2x2 cell, D2 the other. Both show the same natural image at half the size, with
    independent noise. With the residual r = y - A x, mean (D1 r)(D2 r) is the energy of the structure that is missing
    from the fit, minus the noise of one half that the fit carries over to the other. It is positive at first, and
    becomes zero about where the two are equal. The noise must be independent from pixel to pixel; it may be the same
    in all channels. All observed values count, so the rule does not suit a loss that leaves some of them out.

    Source: our own; neighbouring sub-images as in Huang et al. (2021), "Neighbor2Neighbor"; the two diagonals as in
    Mansour and Heckel (2023), "Zero-shot Noise2Noise".
    Differs: nothing is trained. An odd last row or column is left out.

    Args:
        rate: weight of the newest mean, in (0, 1].

    Raises:
        ValueError: a rate outside (0, 1].
    """

    least_side = 2

    def __init__(self, rate: float = 0.1):
        super().__init__(0.0, rate)

    def statistic(self, iterate: Iterate) -> Tensor:
        """Mean product of the two halves of each residual, (B,)."""
        d1, d2 = _diagonals(iterate.observed - iterate.fitted)
        return (d1 * d2).flatten(1).mean(1)


def _diagonals(images: Tensor) -> tuple[Tensor, Tensor]:
    """D1, D2: (B, C, H, W) -> (B, C, H // 2, W // 2) each."""
    H, W = (side // 2 * 2 for side in images.shape[2:])
    a, b = images[..., 0:H:2, 0:W:2], images[..., 0:H:2, 1:W:2]
    c, d = images[..., 1:H:2, 0:W:2], images[..., 1:H:2, 1:W:2]
    return (a + d) / 2, (b + c) / 2
