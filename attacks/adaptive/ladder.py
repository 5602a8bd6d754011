"""The ladder: attacks on a defended classifier, from those that do not know it to those that know all of it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attacks.adaptive.ascent import STEP_RULES, Objective, ascend, random_start
from attacks.adaptive.averaged import Averaged
from attacks.adaptive.objectives import LOSSES, objective
from attacks.adaptive.surrogates import SURROGATES
from attacks.autoattack import autoattack
from attacks.ball import project
from attacks.gradient import ATTACKS, validate
from attacks.gradient_free import GRADIENT_FREE
from attacks.isolation import as_found
from dipdefense import DefendedClassifier

__all__ = ["COSTS", "LADDER", "Climb", "Ensemble", "Oblivious", "Query", "Rung"]

COSTS = ("cheap", "gradient", "unrolled", "queries")  # what a rung costs an image, from a second to half an hour


class Asked(NamedTuple):
    """What a rung is asked for; see `Rung.__call__`."""

    defended: DefendedClassifier
    images: Tensor
    labels: Tensor
    eps: float
    norm: str
    seed: int
    source: nn.Module | None


class Rung(ABC):
    """An attack on a defended classifier, and what it costs."""

    @property
    @abstractmethod
    def cost(self) -> str:
        """One of `COSTS`."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Most times that it asks for a fit of an image, forward or with its gradient."""

    @abstractmethod
    def make(self, asked: Asked) -> Tensor:
        """The adversarial images; the numbers are checked, and the ball is more than the images."""

    def __call__(
        self,
        defended: DefendedClassifier,
        images: Tensor,
        labels: Tensor,
        *,
        eps: float,
        norm: str = "linf",
        seed: int = 0,
        source: nn.Module | None = None,
    ) -> Tensor:
        """Make adversarial images, within the ball and [0, 1].

        Args:
            defended: where its purifier's seed is None it is drawn at every query; else the attack knows the seed.
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64, the true classes.
            eps: radius of the ball, in the unit of the images.
            norm: "linf" or "l2".
            seed: of all that the attack draws.
            source: another classifier, for transfer.

        Raises:
            TypeError, ValueError: as `attacks.pgd`; no source where examples transfer.
        """
        validate(images, labels, eps=eps, norm=norm)
        asked = Asked(defended, images, labels, eps, norm, seed, source)
        return images.detach().clone() if eps == 0 or len(images) == 0 else self.make(asked)


@dataclass(frozen=True, kw_only=True)
class Oblivious(Rung):
    """Made for the bare classifier, or with `transfer` for another one; neither knows the defence."""

    attack: str = "pgd"  # a key of ATTACKS
    steps: int = 20
    transfer: bool = False
    cost: ClassVar[str] = "cheap"
    calls: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise ValueError(f"attack must be one of {', '.join(ATTACKS)}, got {self.attack!r}")

    def make(self, asked: Asked) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, source = asked
        classifier = source if self.transfer else defended.classifier
        if classifier is None:
            raise ValueError("source must be another classifier where examples transfer: give one, or leave that out")
        made = ATTACKS[self.attack](classifier, images, labels, eps=eps, norm=norm, steps=self.steps, seed=seed)
        return project(made, images, eps, norm)


@dataclass(frozen=True, kw_only=True)
class Climb(Rung):
    """A gradient attack through the defence."""

    gradient: str = "straight_through"  # a key of SURROGATES
    loss: str = "margin"  # a key of LOSSES
    rule: str = "pgd"  # a key of STEP_RULES
    steps: int = 20
    samples: int = 1  # draws of the defence for each gradient (EOT); the first is its own where its seed is known
    restarts: int = 1  # from random points of the ball
    threshold: float | None = None  # of the detection score, which must stay below it, too
    # margin of the wrong class, in nats, at which an image is left alone; a defence that draws is climbed to the last
    # step, since one draw that is won says little of the next
    enough: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("gradient", SURROGATES), ("loss", LOSSES), ("rule", STEP_RULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if min(self.steps, self.samples, self.restarts) < 1:
            numbers = f"{self.steps}, {self.samples} and {self.restarts}"
            raise ValueError(f"steps, samples and restarts must be at least 1, got {numbers}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold!r}")

    @property
    def cost(self) -> str:
        """See `Rung`."""
        return "gradient" if self.gradient in ("straight_through", "blur") else "unrolled"

    @property
    def calls(self) -> int:
        """See `Rung`."""
        return (self.steps + 1) * self.samples * self.restarts

    def make(self, asked: Asked) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, _ = asked
        enough = self.enough if defended.purifier.seed is not None else math.inf
        generator, seeds = torch.Generator().manual_seed(seed), self.seeds(defended, seed)
        with as_found(defended, images.device, seed):
            best, success = images.detach().clone(), images.new_full((len(images),), -torch.inf)
            for _ in range(self.restarts):
                left = (success < enough).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                found, won = ascend(
                    self.objective(defended, labels[left], seeds),
                    images[left],
                    eps=eps,
                    norm=norm,
                    steps=self.steps,
                    rule=self.rule,
                    start=random_start(images, eps=eps, norm=norm, generator=generator)[left],
                    enough=enough,
                )
                better = won > success[left]
                best[left[better]], success[left[better]] = found[better], won[better]
        return best

    def seeds(self, defended: DefendedClassifier, seed: int) -> Iterator[Sequence[int]]:
        """The draws of every step: new ones where the defence draws, else always the same."""
        known = defended.purifier.seed
        return _fresh(seed, self.samples) if known is None else _same(known, self.samples)

    def objective(self, defended: DefendedClassifier, labels: Tensor, seeds: Iterator[Sequence[int]]) -> Objective:
        """What is climbed, over such draws."""
        return objective(
            defended,
            labels,
            loss=self.loss,
            gradient=SURROGATES[self.gradient],
            seeds=seeds,
            threshold=self.threshold,
            known=defended.purifier.seed is not None,
        )


@dataclass(frozen=True, kw_only=True)
class Query(Rung):
    """An attack that asks for logits or classes only."""

    attack: str = "square"  # a key of GRADIENT_FREE
    queries: int = 5000  # of the defence, an image
    averaged: int = 4  # answers of a defence that draws, for each query of the attack; one of any other
    cost: ClassVar[str] = "queries"

    def __post_init__(self) -> None:
        if self.attack not in GRADIENT_FREE:
            raise ValueError(f"attack must be one of {', '.join(GRADIENT_FREE)}, got {self.attack!r}")
        if self.averaged < 1:
            raise ValueError(f"averaged must be at least 1, got {self.averaged}")

    @property
    def calls(self) -> int:
        """See `Rung`."""
        return self.queries

    def make(self, asked: Asked) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, _ = asked
        attack, samples = GRADIENT_FREE[self.attack], 1 if defended.purifier.seed is not None else self.averaged
        asked_for = Averaged(defended, samples) if samples > 1 else defended
        try:
            return attack(asked_for, images, labels, eps=eps, norm=norm, queries=self.queries // samples, seed=seed)
        except ValueError as error:
            taken = f"{self.queries} queries, {samples} of the defence for each of the attack"
            raise ValueError(f"{error} ({taken})") from error


@dataclass(frozen=True, kw_only=True)
class Ensemble(Rung):
    """AutoAttack on the defended classifier, whose purification counts as the identity; "rand" where it draws."""

    cost: ClassVar[str] = "queries"
    calls: ClassVar[int] = 6900  # "standard": APGD 100, targeted APGD and FAB 9 x 100 each, Square 5000

    def make(self, asked: Asked) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, _ = asked
        known = defended.purifier.seed
        version = "rand" if known is None else "standard"
        smooth = defended.variant(seed=known, gradient="straight_through")
        return autoattack(smooth, images, labels, eps=eps, norm=norm, version=version, seed=seed)


def _same(seed: int, samples: int) -> Iterator[Sequence[int]]:
    while True:
        yield range(seed, seed + samples)


def _fresh(seed: int, samples: int) -> Iterator[Sequence[int]]:
    """Seeds of the attacker's own, far from those that a user would name."""
    for step in count():
        first = 10**6 * (seed + 1) + step * samples
        yield range(first, first + samples)


LADDER: dict[str, Rung] = {
    "oblivious": Oblivious(),
    "oblivious_momentum": Oblivious(attack="momentum_pgd"),
    "transfer": Oblivious(transfer=True),
    "bpda": Climb(),
    "bpda_momentum": Climb(rule="momentum"),
    "bpda_apgd": Climb(rule="apgd", steps=50, restarts=2),
    "bpda_eot": Climb(samples=4),
    "blur": Climb(gradient="blur"),
    "every_look": Climb(loss="every_look"),
    "evade": Climb(loss="evade", threshold=0.1, enough=0.0),
    # the identity leaves the residual, and so the detector, without a gradient; a blur does not
    "evade_blur": Climb(gradient="blur", loss="evade", threshold=0.1, enough=0.0),
    "bypass": Climb(gradient="blur", loss="bypass", threshold=0.1, enough=0.0),
    "short_fit": Climb(gradient="short_fit", steps=10),
    "truncated": Climb(gradient="truncated", loss="every_look", steps=10),
    "unrolled": Climb(gradient="unrolled", loss="every_look", steps=10),
    "unrolled_eot": Climb(gradient="unrolled", loss="every_look", steps=10, samples=2),
    "smoothed": Climb(gradient="smoothed", loss="every_look", steps=10),
    "square": Query(),
    "nes": Query(attack="nes"),
    "rays": Query(attack="rays"),
    "autoattack": Ensemble(),
}
