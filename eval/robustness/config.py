"""What a run attacks and with which numbers: its configuration, what names it, its checks, its adversarial examples."""

import hashlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks import ATTACKS, CONTROLS
from attacks.gradient import NORMS_OF
from dipdefense import Purifier
from dipdefense.defence.logits import check_logits
from dipdefense.digest import configuration_hash, describe, fingerprint
from eval.datasets import ImageDataset
from eval.probe import probe_images
from eval.records import Record, digest

__all__ = [
    "CRAFTED_ON",
    "RunConfig",
    "attacks_in",
    "check_run",
    "craft",
    "describe_attacks",
    "describe_purifier",
    "describe_subject",
    "identify",
]

CRAFTED_ON = {"bare": ("bare",), "defended": ("defended",), "both": ("bare", "defended")}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Numbers of one evaluation.

    Raises:
        ValueError: an unknown attack or `crafted_on` (the message lists the known ones), a number out of range.
    """

    # keys of ATTACKS and CONTROLS; None stands for all of ATTACKS that have the norm
    attacks: Sequence[str] = None  # type: ignore[assignment]
    norm: str = "linf"
    eps: float = 8 / 255  # radius of the ball, images in [0, 1]
    alpha: float | None = None  # step size; eps / 4 if None
    steps: int = 20
    targeted: bool = False  # the labels are the targets; the true labels are then unknown to the attack
    crafted_on: str = "bare"  # bare: the attack knows only the classifier; defended: it attacks through the defence
    n: int = 100  # images: the first n of a seeded permutation
    n_defended: int | None = None  # how many of them are attacked through the defence; n if None
    attacks_defended: Sequence[str] | None = None  # attacks that are crafted on the defended model; all if None
    seed: int = 0  # of the permutation, the attacks and the fits
    batch_size: int = 64

    def __post_init__(self) -> None:
        given: Any = self.attacks
        if given is None:
            object.__setattr__(self, "attacks", attacks_in(self.norm))
        for attack in self.attacks:
            if attack not in ATTACKS | CONTROLS:
                raise ValueError(f"attack must be one of {', '.join(ATTACKS | CONTROLS)}, got {attack!r}")
        if CONTROLS.keys() & set(self.attacks) and (self.targeted or self.crafted_on != "bare"):
            raise ValueError(
                "attacks must leave out random_noise where they are targeted or crafted on the defended model"
            )
        for attack in self.attacks_defended or ():
            if attack not in self.attacks:
                raise ValueError(f"attacks_defended must be among attacks, {', '.join(self.attacks)}, got {attack!r}")
        if self.crafted_on not in CRAFTED_ON:
            raise ValueError(f"crafted_on must be one of {', '.join(CRAFTED_ON)}, got {self.crafted_on!r}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must not be negative, in [0, 1] units such as 8/255, got {self.eps}")
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be one of linf, l2, got {self.norm!r}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"eps must be at most 1 in the linf norm, in [0, 1] units such as 8/255, got {self.eps}")
        for attack in self.attacks:
            if attack in ATTACKS and attack not in attacks_in(self.norm):
                raise ValueError(f"attacks must leave out {attack} when norm is {self.norm}, got both")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be positive, in [0, 1] units such as 2/255, got {self.alpha}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for name in ("n", "steps", "batch_size", "n_defended"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def attacks_in(norm: str) -> tuple[str, ...]:
    """The attacks of `ATTACKS` that have this norm."""
    return tuple(name for name in ATTACKS if norm in NORMS_OF.get(name, (norm,)))


@torch.no_grad()
def check_run(classifier: nn.Module, dataset: ImageDataset, config: RunConfig, device: str | torch.device) -> None:
    """Refuse, before anything is computed, what would fail or mislead later."""
    if config.n > len(dataset):
        raise ValueError(f"n must be at most the {len(dataset)} images of {dataset.name}, got {config.n}")
    if classifier.training:
        raise ValueError("classifier must be in eval mode, or its images would meet: call classifier.eval()")
    logits = classifier(dataset.batch([0]).to(device))
    check_logits(logits, 1)
    if int(dataset.labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels must be below the classifier's {logits.shape[1]} classes, got {int(dataset.labels.max())}: "
            "classifier and data set do not belong together"
        )


def craft(attack: str, target: nn.Module, images: Tensor, labels: Tensor, config: RunConfig) -> Tensor:
    """Adversarial examples by an attack's name; it gets those of the run's numbers that it knows."""
    function = (ATTACKS | CONTROLS)[attack]
    numbers = {name: getattr(config, name) for name in ("eps", "norm", "alpha", "steps", "targeted", "seed")}
    known = inspect.signature(function).parameters
    return function(target, images, labels, **{name: v for name, v in numbers.items() if name in known})


def identify(images: Tensor, labels: Tensor, index: Tensor) -> list[Record]:
    """What names each image in a record: its position in the data set, and a digest of its pixels and label."""
    return [
        {"index": i, "image": hashlib.sha256(image.numpy().tobytes() + bytes([label % 256])).hexdigest()[:16]}
        for image, label, i in zip(images, labels.tolist(), index.tolist(), strict=True)
    ]


def describe_subject(classifier: nn.Module, name: str | None, dataset: ImageDataset) -> dict[str, Any]:
    """Classifier and data set, in plain values; of the images all labels, and the pixels of the first."""
    parts = {"labels": dataset.labels, "index": dataset.index, "pixels": probe_images(dataset)}
    images = configuration_hash({part: digest(tensor) for part, tensor in parts.items()})
    return {
        "dataset": dataset.name,
        "images": f"{len(dataset)} ({images})",
        "classifier": name or type(classifier).__name__,
        "weights": fingerprint(classifier),
    }


def describe_attacks(attacks: Sequence[str]) -> dict[str, str]:
    """The functions that the names of attacks stand for."""
    return {attack: describe((ATTACKS | CONTROLS)[attack]) for attack in attacks}


def describe_purifier(purifier: Purifier, images: Tensor) -> dict[str, Any]:
    """All that the fits to images of this shape, (B, C, H, W), depend on, in plain values."""
    drawn = purifier if purifier.seed is not None else purifier.variant(seed=0)  # numbers drawn from a seed: one draw
    own = {name: value for name, value in vars(drawn).items() if name not in vars(Purifier())}  # of a derived class
    return {
        "purifier": describe(type(purifier), purifier.gradient, own),
        "fit": asdict(drawn.config_for(images)),
        "fit_seed": purifier.seed,
        "tile": drawn.tile_for(images),
    }
