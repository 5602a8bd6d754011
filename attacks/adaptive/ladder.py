"""The ladder: attacks on a defended classifier, ordered by how much they know of the defence."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attacks.adaptive.averaged_model import Averaged
from attacks.adaptive.objectives import LOSSES, objective
from attacks.adaptive.surrogates import SURROGATES
from attacks.autoattack import autoattack
from attacks.gradient import ATTACKS, validate
from attacks.gradient_ascent import STEP_RULES, Objective, ascend, random_start
from attacks.gradient_free import GRADIENT_FREE, LEAST_QUERIES
from attacks.isolation import as_found
from attacks.square import check_tiles
from dipdefense import DefendedClassifier

__all__ = ["COSTS", "LADDER", "GradientAttack", "Ensemble", "Oblivious", "Query", "Rung"]

COSTS = ("cheap", "gradient", "unrolled", "queries")  # what a rung costs for each image, from a second to half an hour


class RungArguments(NamedTuple):
    """The arguments of a rung; see `Rung.__call__`."""

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
        """Largest number of fits of an image, forward or with gradient, before successes are confirmed."""

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that it attacks in."""
        return ("linf", "l2")

    def check(self, images: Tensor, norm: str, *, draws: bool) -> None:
        """Raise, before anything is computed, the errors that the attack itself would raise later.

        Args:
            images: one or more images of the run, (B, C, H, W).
            norm: that of the run.
            draws: whether the defence draws its seed at every query.

        Raises:
            ValueError: a norm that the attack does not have; a rung may refuse more.
        """
        if norm not in self.norms:
            raise ValueError(f"norm must be {' or '.join(self.norms)} for this rung, got {norm!r}: leave the rung out")

    @abstractmethod
    def make(self, arguments: RungArguments) -> Tensor:
        """Make the adversarial images. The caller has checked the arguments, and eps is above 0."""

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

        Fits are rounded differently in another batch. So an image that is misclassified in a part of the batch may be
        classified correctly in the whole batch, which is what is scored. Attacks that work on parts therefore check
        the whole batch at their end, and go on with the images that are classified correctly there.

        Args:
            defended: if its purifier's seed is None, a seed is drawn at every query; else the attack knows the seed.
            images: (B, C, H, W) in [0, 1], the batch that is scored.
            labels: (B,) int64, the true classes.
            eps: radius of the ball, in the unit of the images.
            norm: "linf" or "l2".
            seed: of all that the attack draws.
            source: another classifier, for transfer.

        Raises:
            TypeError, ValueError: as `attacks.pgd`; a transfer attack without a source.
        """
        validate(images, labels, eps=eps, norm=norm)
        arguments = RungArguments(defended, images, labels, eps, norm, seed, source)
        return images.detach().clone() if eps == 0 or len(images) == 0 else self.make(arguments)


@dataclass(frozen=True, kw_only=True)
class Oblivious(Rung):
    """An attack on the bare classifier, or with `transfer` on another one; it does not know the defence."""

    attack: str = "pgd"  # a key of ATTACKS that takes steps
    steps: int = 20
    transfer: bool = False
    cost: ClassVar[str] = "cheap"
    calls: ClassVar[int] = 0

    def __post_init__(self) -> None:
        able = [name for name in ATTACKS if name != "fgsm"]
        if self.attack not in able:
            raise ValueError(f"attack must be one of {', '.join(able)}, got {self.attack!r}")

    def make(self, arguments: RungArguments) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, source = arguments
        classifier = source if self.transfer else defended.classifier
        if classifier is None:
            raise ValueError("source must be another classifier where examples transfer: give one, or leave that out")
        return ATTACKS[self.attack](classifier, images, labels, eps=eps, norm=norm, steps=self.steps, seed=seed)


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Rung):
    """A gradient attack through the defence."""

    gradient: str = "straight_through"  # a key of SURROGATES
    loss: str = "margin"  # a key of LOSSES
    rule: str = "pgd"  # a key of STEP_RULES
    steps: int = 20
    samples: int = 1  # draws of the defence for each gradient (EOT); with a known seed the first is the defence itself
    restarts: int = 1  # from random points of the ball
    unseen: bool = False  # the detection score must stay below the decision's threshold, too
    # margin of the wrong class, in nats, at which the attack on an image ends; a random defence is attacked to the last
    # step, since success on one draw says little about the next
    enough: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("gradient", SURROGATES), ("loss", LOSSES), ("rule", STEP_RULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if min(self.steps, self.samples, self.restarts) < 1:
            values = f"{self.steps}, {self.samples} and {self.restarts}"
            raise ValueError(f"steps, samples and restarts must be at least 1, got {values}")

    @property
    def cost(self) -> str:
        """See `Rung`."""
        return "gradient" if self.gradient in ("straight_through", "blur") else "unrolled"

    @property
    def calls(self) -> int:
        """See `Rung`."""
        return (self.steps + 1) * self.samples * self.restarts

    def make(self, arguments: RungArguments) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, _ = arguments
        enough = self.enough if defended.purifier.seed is not None else math.inf
        seeds = self.seeds(defended, seed)
        with as_found(defended, images.device, seed):
            best, success = images.detach().clone(), images.new_full((len(images),), -torch.inf)
            for restart in range(self.restarts):
                left = (success < enough).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                goal = self.objective(defended, labels[left], seeds)
                start = random_start(images[left], eps=eps, norm=norm, seed=seed + restart)
                found, won = self._ascend(arguments, goal, images[left], start=start, enough=enough)
                better = won > success[left]
                best[left[better]], success[left[better]] = found[better], won[better]
            if math.isfinite(enough):
                best = self._confirmed(arguments, best, success > 0, seeds)
        return best

    def _confirmed(self, arguments: RungArguments, best: Tensor, won: Tensor, seeds: Iterator[Sequence[int]]) -> Tensor:
        """Go on from `best` with the whole batch, if it does not confirm every success; no image leaves early."""
        images = arguments.images
        goal = self.objective(arguments.defended, arguments.labels, seeds)
        success = goal(best, torch.arange(len(images), device=images.device)).success
        lost = won & (success <= 0)
        if not lost.any():
            return best
        found, again = self._ascend(arguments, goal, images, start=best)
        return torch.where((lost & (again > success)).view(-1, 1, 1, 1), found, best)

    def _ascend(self, arguments: RungArguments, goal: Objective, images: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        return ascend(goal, images, eps=arguments.eps, norm=arguments.norm, steps=self.steps, rule=self.rule, **how)

    def seeds(self, defended: DefendedClassifier, seed: int) -> Iterator[Sequence[int]]:
        """The seeds of every step: new ones for a random defence, else always the same."""
        known = defended.purifier.seed
        return _fresh(seed, self.samples) if known is None else _same(known, self.samples)

    def objective(self, defended: DefendedClassifier, labels: Tensor, seeds: Iterator[Sequence[int]]) -> Objective:
        """What the attack maximises, as a mean over these draws."""
        return objective(
            defended,
            labels,
            loss=self.loss,
            gradient=SURROGATES[self.gradient],
            seeds=seeds,
            unseen=self.unseen,
            known=defended.purifier.seed is not None,
        )


@dataclass(frozen=True, kw_only=True)
class Query(Rung):
    """An attack that queries only logits or classes."""

    attack: str = "square"  # a key of GRADIENT_FREE
    queries: int = 5000  # of the defence, for each image
    averaged: int = 4  # answers of a random defence for each query of the attack; any other gives one
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

    @property
    def norms(self) -> tuple[str, ...]:
        """See `Rung`."""
        return ("linf",) if self.attack == "rays" else ("linf", "l2")

    def check(self, images: Tensor, norm: str, *, draws: bool) -> None:
        """See `Rung`; also too few queries, and images that Square's tiles do not fit."""
        super().check(images, norm, draws=draws)
        least = LEAST_QUERIES[self.attack] * (self.averaged if draws else 1)
        if self.queries < least:
            averaged = f", each the mean of {self.averaged} answers of a defence that draws" if draws else ""
            raise ValueError(f"queries must be at least {least} for {self.attack}{averaged}, got {self.queries}")
        if self.attack == "square":
            check_tiles(images, norm)

    def make(self, arguments: RungArguments) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, _ = arguments
        samples = 1 if defended.purifier.seed is not None else self.averaged
        self.check(images, norm, draws=samples > 1)
        attack = partial(GRADIENT_FREE[self.attack], eps=eps, norm=norm, queries=self.queries // samples)
        if samples > 1:
            return attack(Averaged(defended, samples), images, labels, seed=seed)
        return confirmed(partial(attack, defended), defended, images, labels, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Ensemble(Rung):
    """AutoAttack through the defence, with the identity as the gradient of the fit; "rand" for a random defence."""

    cost: ClassVar[str] = "queries"
    calls: ClassVar[int] = 6900  # "standard": APGD 100, targeted APGD and FAB 9 x 100 each, Square 5000

    def check(self, images: Tensor, norm: str, *, draws: bool) -> None:
        """See `Rung`; also images that Square's tiles do not fit."""
        super().check(images, norm, draws=draws)
        if not draws:  # the version "rand" leaves Square out
            check_tiles(images, norm)

    def make(self, arguments: RungArguments) -> Tensor:
        """See `Rung`."""
        defended, images, labels, eps, norm, seed, _ = arguments
        known = defended.purifier.seed
        smooth = defended.variant(seed=known, gradient="straight_through")
        attack = partial(autoattack, smooth, eps=eps, norm=norm, version="rand" if known is None else "standard")
        if known is None:
            return attack(images, labels, seed=seed)
        return confirmed(attack, smooth, images, labels, seed=seed)


def confirmed(
    attack: Callable[..., Tensor], model: nn.Module, images: Tensor, labels: Tensor, *, seed: int, tries: int = 3
) -> Tensor:
    """Attack a batch, then attack again, with other seeds, the images that withstand in it but not alone.

    Args:
        attack: (images, labels, seed=...) -> adversarial images.
        model: what it attacks, and what scores the whole batch.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) true classes.
        seed: of the first try.
        tries: at most, for each image; the result of the last one is not checked.
    """
    made = attack(images, labels, seed=seed).clone()
    with as_found(model, images.device, seed), torch.no_grad():
        for further in range(1, tries):
            standing = (model(made).argmax(1) == labels).nonzero().squeeze(1)
            alone = [model(made[i : i + 1]).argmax(1) for i in standing.tolist()]
            lost = standing[torch.cat([labels[:0], *alone]) != labels[standing]]
            if len(lost) == 0:
                break
            made[lost] = attack(images[lost], labels[lost], seed=seed + further)
    return made


def _same(seed: int, samples: int) -> Iterator[Sequence[int]]:
    while True:
        yield range(seed, seed + samples)


def _fresh(seed: int, samples: int) -> Iterator[Sequence[int]]:
    """The attacker's own seeds, far from those that a user would choose."""
    for step in count():
        first = 10**6 * (seed + 1) + step * samples
        yield range(first, first + samples)


LADDER: dict[str, Rung] = {
    "oblivious": Oblivious(),
    "oblivious_momentum": Oblivious(attack="momentum_pgd"),
    # the first two guess that the defence averages over mirror images, the third that it resizes
    "pgd_flip": Oblivious(attack="pgd_flip"),
    "momentum_pgd_flip": Oblivious(attack="momentum_pgd_flip"),
    "pgd_di": Oblivious(attack="pgd_di"),
    "transfer": Oblivious(transfer=True),
    "bpda": GradientAttack(),
    "bpda_momentum": GradientAttack(rule="momentum"),
    "bpda_apgd": GradientAttack(rule="apgd", steps=50, restarts=2),
    "bpda_eot": GradientAttack(samples=4),
    "blur": GradientAttack(gradient="blur"),
    "every_look": GradientAttack(loss="every_look"),
    "evade": GradientAttack(loss="evade", unseen=True, enough=0.0),
    # with the identity the residual has no gradient, and the detector that of the reconstruction alone; a blur has both
    "evade_blur": GradientAttack(gradient="blur", loss="evade", unseen=True, enough=0.0),
    "bypass": GradientAttack(gradient="blur", loss="bypass", unseen=True, enough=0.0),
    "bypass_apgd": GradientAttack(
        gradient="blur", loss="bypass", rule="apgd", steps=50, restarts=2, unseen=True, enough=0.0
    ),
    "short_fit": GradientAttack(gradient="short_fit", steps=10),
    "truncated": GradientAttack(gradient="truncated", loss="every_look", steps=10),
    "unrolled": GradientAttack(gradient="unrolled", loss="every_look", steps=10),
    "unrolled_eot": GradientAttack(gradient="unrolled", loss="every_look", steps=10, samples=2),
    "smoothed": GradientAttack(gradient="smoothed", loss="every_look", steps=10),
    "square": Query(),
    "nes": Query(attack="nes"),
    "rays": Query(attack="rays"),
    "autoattack": Ensemble(),
}
