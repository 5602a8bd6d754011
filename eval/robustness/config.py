"""The settings of a run, their checks, its adversarial examples, and the values that identify the run."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks import ATTACKS, CONTROLS, MINIMUM_NORM
from attacks.gradient import NORMS_OF
from dipdefense import Purifier
from dipdefense.arguments import check_finite, check_integer, check_known, check_positive
from dipdefense.defence.check_logits import check_logits
from dipdefense.defence.classifier_errors import REFUSALS, first_line
from dipdefense.digest import configuration_hash, describe, fingerprint
from eval.classifier_probe import probe_images
from eval.datasets import ImageDataset
from eval.records import Record, digest

__all__ = [
    "CRAFTED_ON",
    "AttackConfig",
    "RunConfig",
    "attacks_in",
    "check_names",
    "check_radius",
    "check_run",
    "craft",
    "describe_attacks",
    "describe_purifier",
    "describe_subject",
    "identify",
    "known_attacks",
]

CRAFTED_ON = {"bare": ("bare",), "defended": ("defended",), "both": ("bare", "defended")}


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Settings of every run of attacks.

    Raises:
        ValueError: an unknown norm, a number of another type or out of range.
    """

    norm: str = "linf"
    eps: float = 8 / 255  # radius of the ball, images in [0, 1]
    seed: int = 0  # of the permutation, the attacks and the fits
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be one of linf, l2, got {self.norm!r}")
        check_radius("eps", self.eps, self.norm)
        check_integer("seed", self.seed, 0)
        check_integer("batch_size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class RunConfig(AttackConfig):
    """Settings of one evaluation.

    Raises:
        TypeError: attacks that are no sequence of names, a `targeted` that is no bool.
        ValueError: an unknown attack or `crafted_on` (the message lists the known ones), a number of another type or
            out of range.
    """

    attacks: Sequence[str] | None = None  # keys of `known_attacks`; None: all of ATTACKS that have the norm
    alpha: float | None = None  # step size; eps / 4 if None
    steps: int = 20
    targeted: bool = False  # True: the labels are the targets, and the true labels are not used
    crafted_on: str = "bare"  # bare: the attack knows only the classifier; defended: it attacks through the defence
    n: int = 100  # images: the first n of a seeded permutation
    n_defended: int | None = None  # how many of them are attacked through the defence; n if None
    attacks_defended: Sequence[str] | None = None  # attacks that are crafted on the defended model; all if None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("attacks", "attacks_defended"):
            check_names(field, getattr(self, field))
        for attack in self.chosen_attacks:
            check_known("attack", attack, known_attacks())
            if attack in ATTACKS and attack not in attacks_in(self.norm):
                raise ValueError(f"attacks must leave out {attack} when norm is {self.norm}, got both")
        if CONTROLS.keys() & set(self.chosen_attacks) and (self.targeted or self.crafted_on != "bare"):
            raise ValueError(
                "attacks must leave out random_noise if they are targeted or crafted on the defended model"
            )
        if self.targeted and (without := MINIMUM_NORM.keys() & set(self.chosen_attacks)):
            raise ValueError(f"attacks must leave out {', '.join(sorted(without))} if they are targeted")
        for attack in self.attacks_defended or ():
            if attack not in self.chosen_attacks:
                known = ", ".join(self.chosen_attacks)
                raise ValueError(f"attacks_defended must be among attacks, {known}, got {attack!r}")
        if self.crafted_on not in list(CRAFTED_ON):
            raise ValueError(f"crafted_on must be one of {', '.join(CRAFTED_ON)}, got {self.crafted_on!r}")
        if not isinstance(self.targeted, bool):
            raise TypeError(f"targeted must be true or false, got {self.targeted!r}")
        if self.alpha is not None:
            check_positive("alpha", self.alpha)
        check_integer("n", self.n, 1)
        check_integer("steps", self.steps, 1)
        check_integer("n_defended", self.n_defended, 1, none=True)

    @property
    def chosen_attacks(self) -> tuple[str, ...]:
        """The names of the attacks; if none are given, all that have the norm."""
        return attacks_in(self.norm) if self.attacks is None else tuple(self.attacks)


def check_radius(name: str, value: float, norm: str) -> None:
    """Raise unless the value is a radius of a ball around images in [0, 1]."""
    check_finite(name, value)
    if value < 0:
        raise ValueError(f"{name} must not be negative, in [0, 1] units such as 8/255, got {value}")
    if norm == "linf" and value > 1:
        raise ValueError(f"{name} must be at most 1 in the linf norm, in [0, 1] units such as 8/255, got {value}")


def check_names(name: str, value: Any) -> None:
    """Raise unless the value is None or a sequence of different names; a single string is not such a sequence."""
    if value is None:
        return
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} must be a sequence of names, got {value!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"{name} must name each once, got {', '.join(value)}")


def known_attacks() -> dict[str, Callable[..., Tensor]]:
    """The attacks of an evaluation by name: those of ATTACKS, the minimum-norm attacks, and the control."""
    return ATTACKS | MINIMUM_NORM | CONTROLS


def attacks_in(norm: str) -> tuple[str, ...]:
    """The attacks of `ATTACKS` that have this norm."""
    return tuple(name for name in ATTACKS if norm in NORMS_OF.get(name, (norm,)))


@torch.no_grad()
def check_run(classifier: nn.Module, dataset: ImageDataset, n: int, device: str | torch.device) -> None:
    """Raise, before anything is computed, if a run on the first n images would fail or mislead later."""
    if n > len(dataset):
        remedy = "ask for fewer with --n, in a ladder with --images"
        raise ValueError(f"n must be at most the {len(dataset)} images of {dataset.name}, got {n}: {remedy}")
    if classifier.training:
        raise ValueError(
            "classifier must be in eval mode, or images of a batch influence each other: call classifier.eval()"
        )
    image = dataset.batch([0]).to(device)
    try:
        logits = classifier(image)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except REFUSALS as error:
        shape = "x".join(map(str, image.shape[1:]))
        raise ValueError(
            f"classifier must accept the images of {dataset.name}, {shape}, got an error: {first_line(error)}; choose "
            "a data set and a classifier that belong together"
        ) from error
    check_logits(logits, 1)
    if int(dataset.labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels must be below the classifier's {logits.shape[1]} classes, got {int(dataset.labels.max())}: "
            "classifier and data set do not belong together"
        )
    if dataset.numbered_by_folder and logits.shape[1] != len(dataset.class_names):
        raise ValueError(
            f"labels must be the classifier's, of {logits.shape[1]} classes, got {len(dataset.class_names)} folders "
            "whose classes are counted from 0: list the images with their class_index in labels.csv"
        )


def craft(attack: str, target: nn.Module, images: Tensor, labels: Tensor, config: RunConfig) -> Tensor:
    """Adversarial examples by an attack's name; the attack gets the run's settings that it has arguments for.

    Those of `MINIMUM_NORM` get the seed alone: `steps` counts other steps there.
    """
    function = known_attacks()[attack]
    names = ("seed",) if attack in MINIMUM_NORM else ("eps", "norm", "alpha", "steps", "targeted", "seed")
    known = inspect.signature(function).parameters
    return function(target, images, labels, **{name: getattr(config, name) for name in names if name in known})


def identify(images: Tensor, labels: Tensor, index: Tensor) -> list[Record]:
    """The fields that name each image in a record: its position in the data set, and a digest of pixels and label."""
    return [
        {"index": i, "image": hashlib.sha256(image.numpy().tobytes() + bytes([label % 256])).hexdigest()[:16]}
        for image, label, i in zip(images, labels.tolist(), index.tolist(), strict=True)
    ]


def describe_subject(classifier: nn.Module, name: str | None, dataset: ImageDataset) -> dict[str, Any]:
    """Classifier and data set, in plain values, with all labels and the pixels of the first image."""
    parts = {"labels": dataset.labels, "index": dataset.index, "pixels": probe_images(dataset)}
    images = configuration_hash({part: digest(tensor) for part, tensor in parts.items()})
    return {
        "dataset": dataset.name,
        "images": f"{len(dataset)} ({images})",
        "classifier": name or type(classifier).__name__,
        "weights": fingerprint(classifier),
    }


def describe_attacks(attacks: Iterable[str]) -> dict[str, str]:
    """The functions behind the names of attacks."""
    return {attack: describe(known_attacks()[attack]) for attack in attacks}


def describe_purifier(purifier: Purifier, images: Tensor) -> dict[str, Any]:
    """Everything that the fits to images of this shape, (B, C, H, W), depend on, in plain values."""
    drawn = (
        purifier if purifier.seed is not None else purifier.variant(seed=0)
    )  # so that drawn settings are those of one draw
    own = {name: value for name, value in vars(drawn).items() if name not in vars(Purifier())}  # of a derived class
    return {
        "purifier": describe(type(purifier), purifier.gradient, own),
        "fit": asdict(drawn.config_for(images)),
        "fit_seed": purifier.seed,
        "tile": drawn.tile_for(images),
        "sigma": purifier.sigma,
    }
