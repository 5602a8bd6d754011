"""Certificates of randomised smoothing: a class, and an L2 radius within which it does not change.

If the base classifier h gives the class A to at least a share p > 1/2 of the noisy copies x + sigma e, e ~ N(0, I),
then the smoothed classifier g gives A to every image within

    sigma * Phi^-1(p)

of x in the L2 norm, Phi the normal distribution function. A is the most frequent class of n0 draws, p a lower
confidence bound from n further ones: the certificate is wrong with a probability of at most alpha.

Source: Cohen, Rosenfeld and Kolter (2019), "Certified adversarial robustness via randomized smoothing", theorem 1 and
    the function Certify; the bound is that of Clopper and Pearson (1934).
Differs: an image may end at a few looks before its n draws. If a look may certify, the looks share alpha equally, so
    all of their bounds hold together (Bonferroni), whatever the rule that ends an image.
"""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dipdefense.arguments import check_integer, check_positive
from dipdefense.defence.smoothing import DIP, Purify, SmoothedClassifier
from dipdefense.image_tensors import check_images

__all__ = ["Certificate", "SamplingPlan", "Tally", "certify", "check_subject", "lower_bound"]

LOOKS = (0.1, 0.3, 1.0)  # shares of n after which an image may end
HOPELESS = 0.01  # probability of ending an image at a look although it has the radius; it can cost a certificate only


class Certificate(NamedTuple):
    """The smoothed classes of a batch, and what is certified of them."""

    prediction: Tensor  # (B,) the most frequent class of the n0 draws
    radius: Tensor  # (B,) L2, images in [0, 1], within which this class does not change; 0 if abstained
    abstained: Tensor  # (B,) bool: the class was not shown to have more than half of the draws
    draws: Tensor  # (B,) noisy copies that were purified and classified


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How many draws an image gets, when it ends, and at which level.

    Without targets an image ends early only where it will abstain, and n draws are one look at the level alpha. With
    targets it also ends at a look where each target radius is either certified or out of reach.

    Raises:
        ValueError: a sigma that is not positive, n0 below 1, an alpha outside (0, 1), an n with which nothing, or a
            target, could never be certified.
    """

    sigma: float  # standard deviation of the noise, images in [0, 1]
    n0: int = 32  # draws that choose the class
    n: int = 1000  # draws that bound its share
    alpha: float = 0.001  # probability, at most, that a certificate is wrong
    targets: tuple[float, ...] = ()  # L2 radii, images in [0, 1]

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {self.alpha!r}")
        check_integer("n0", self.n0, 1)
        check_integer("n", self.n, 1)
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON has lists only
        for target in self.targets:
            check_positive("target", target)
        _, normal = _distributions()
        share = float(normal.cdf(max(self.targets, default=0.0) / self.sigma))  # that all n draws must show
        if share == 1:
            raise ValueError(f"targets must be below about 8 sigma, {8 * self.sigma:g}, got {max(self.targets)}")
        least = math.floor(math.log(self.level) / math.log(share)) + 1
        if self.n < least:
            radius = f"the radius {max(self.targets)}" if self.targets else "any radius"
            raise ValueError(f"n must be at least {least} to certify {radius} at alpha {self.alpha}, got {self.n}")

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of draws, of the n, after which an image may end."""
        return tuple(sorted({math.ceil(share * self.n) for share in LOOKS}))

    @property
    def level(self) -> float:
        """The level of one look."""
        return self.alpha / (len(self.looks) if self.targets else 1)

    def radius(self, successes: Any, drawn: Any) -> Any:
        """The certified radius, 0 for none, if so many of the draws so far gave the class; arrays or numbers."""
        return self._radius(lower_bound(successes, drawn, self.level))

    def has_ended(self, successes: Any, drawn: Any) -> Any:
        """Whether an image ends at this look; arrays or numbers."""
        certain = self.radius(successes, drawn)
        failures = np.subtract(drawn, successes)
        hoped = self._radius(1 - lower_bound(failures, drawn, HOPELESS / len(self.looks)))  # of an upper bound
        undecided = [(certain < target) & (target <= hoped) for target in self.targets] or [hoped > 0]
        return ~np.any(undecided, axis=0) | (np.asarray(drawn) >= self.n)

    def _radius(self, share: Any) -> Any:
        _, normal = _distributions()
        return self.sigma * normal.ppf(np.maximum(share, 0.5))


@dataclass
class Tally:
    """The classes that h gave to the draws of one image so far. Draws below n0 choose the class."""

    plan: SamplingPlan
    selection: Counter[int] = field(default_factory=Counter)
    estimation: Counter[int] = field(default_factory=Counter)

    @property
    def prediction(self) -> int:
        """The most frequent class of the selection, the smallest among equals."""
        return min(self.selection, key=lambda k: (-self.selection[k], k))

    def next_draws(self, most: int) -> range:
        """The numbers of the draws that come next, `most` of them at most; empty if the image has ended."""
        plan, chosen, drawn = self.plan, self.selection.total(), self.estimation.total()
        if chosen < plan.n0:
            return range(chosen, min(chosen + most, plan.n0))
        if drawn in plan.looks and plan.has_ended(self.estimation[self.prediction], drawn):
            return range(0)
        look = next(look for look in plan.looks if look > drawn)
        return range(plan.n0 + drawn, plan.n0 + min(drawn + most, look))

    def add(self, classes: Mapping[int, int]) -> None:
        """Count the classes of the draws that `next_draws` named."""
        (self.selection if self.selection.total() < self.plan.n0 else self.estimation).update(classes)

    @property
    def draws(self) -> int:
        """Draws so far."""
        return self.selection.total() + self.estimation.total()

    @property
    def radius(self) -> float:
        """The certified radius of an image that has ended; 0 if it abstains."""
        return float(self.plan.radius(self.estimation[self.prediction], self.estimation.total()))


def certify(
    classifier: nn.Module,
    images: Tensor,
    *,
    sigma: float = 0.12,
    n0: int = 32,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int | None = None,
    purify: str | Purify | None = DIP,
    mirror: bool = True,
    targets: Sequence[float] = (),
    index: Sequence[int] | None = None,
    block: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Certify the classes that the smoothed classifier gives to images, one image after the other.

    A certificate holds for g, the limit of many votes by class, and for the L2 norm. docs/guarantees.md says what that
    does not cover.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode.
        images: (B, C, H, W) in [0, 1].
        sigma: standard deviation of the noise, images in [0, 1].
        n0, n, alpha, targets: as in `SamplingPlan`.
        seed: of the noise; None for fresh noise. Whoever knows the seed could choose an image for it, so a given seed
            is for experiments.
        purify, mirror: as in `SmoothedClassifier`.
        index: (B,) numbers that name the images, of which their noise is a function; None for their pixels.
        block: draws of an image that are purified together.
        progress: called with (draws done or no longer needed, draws in all) after every block.

    Raises:
        TypeError: not a module, not a floating image batch.
        ValueError: a number out of its range, or an n too small for alpha; images outside [0, 1]; not as many names as
            images; a classifier that `check_classifier` refuses for this shape.
        ImportError: scipy is not installed.
    """
    plan = SamplingPlan(sigma=sigma, n0=n0, n=n, alpha=alpha, targets=tuple(targets))
    check_integer("block", block, 1)
    check_images(images)
    if index is not None and len(index) != len(images):
        raise ValueError(f"index must name each of the {len(images)} images, got {len(index)} names")
    check_subject(classifier, images)
    check_integer("seed", seed, 0, none=True)
    seed = secrets.randbits(63) if seed is None else seed
    smoothed = SmoothedClassifier(classifier, sigma=sigma, seed=seed, purify=purify, mirror=mirror)
    tallies, whole = [], n0 + n
    for i, image in enumerate(images):
        tally = Tally(plan)
        while draws := tally.next_draws(block):
            tally.add(smoothed.count(image, draws, None if index is None else index[i]))
            if progress is not None:
                progress(i * whole + (tally.draws if tally.next_draws(block) else whole), len(images) * whole)
        tallies.append(tally)
    prediction, spent = (
        torch.tensor([getattr(tally, name) for tally in tallies], device=images.device)
        for name in ("prediction", "draws")
    )
    radius = images.new_tensor([tally.radius for tally in tallies])
    return Certificate(prediction, radius, radius == 0, spent)


def check_subject(classifier: nn.Module, images: Tensor) -> None:
    """Raise ValueError, with all reasons, if a classifier certainly cannot be certified on images (B, C, H, W).

    The doubts of `check_classifier` are passed over: a guarantee does not depend on gradients.
    """
    from dipdefense.check.check_classifier import check_classifier  # it imports the defence

    C, H, W = images.shape[1:]
    certain = [fault.message for fault in check_classifier(classifier, (C, H, W)).faults if fault.certain]
    if certain:
        raise ValueError("; ".join(certain))


def lower_bound(successes: Any, n: Any, level: float) -> Any:
    """One-sided lower confidence bound of a rate (Clopper and Pearson 1934); arrays or numbers.

    With a probability of at least 1 - level it is at most the rate. It is 0 for no successes.
    """
    beta, _ = _distributions()
    successes, n = np.asarray(successes), np.asarray(n)
    return np.where(successes > 0, beta.ppf(level, np.maximum(successes, 1), n - successes + 1), 0.0)


def _distributions() -> tuple[Any, Any]:
    try:
        from scipy.stats import beta, norm
    except ImportError as error:
        raise ImportError("certificates need scipy: pip install 'dipdefense[eval]'") from error
    return beta, norm
