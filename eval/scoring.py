"""One run bound together: its classifier, defences, images and numbers; the records of one batch of it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from dipdefense import Decision, DefendedClassifier, Purifier
from dipdefense.digest import configuration_hash
from eval.attacked import (
    CRAFTED_ON,
    RunConfig,
    check_logits,
    check_run,
    craft,
    describe_purifier,
    fingerprint,
    identify,
)
from eval.clock import clock
from eval.datasets import ImageDataset
from eval.metrics import psnr, ssim
from eval.records import Record, Records

__all__ = ["KEY", "Defence", "Scoring"]

KEY = ("config", "attack", "crafted_on", "defence", "index", "image")  # what names a record
ROWS = ("attacks", "crafted_on", "attacks_defended")  # which rows a run has; no record depends on it

Defence = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> same
Judge = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # images -> logits, and what the classifier saw in their place


class Scoring:
    """All that the records of a run are a function of. Arguments and errors as in `evaluate_robustness`.

    `recorded_device` is the device of the description, where this one only plans what others compute.
    """

    def __init__(
        self,
        classifier: nn.Module,
        dataset: ImageDataset,
        config: RunConfig | None = None,
        *,
        purifier: Purifier | None = None,
        decision: Decision | str | None = None,
        gradient: str = "straight_through",
        filters: Mapping[str, Defence] | None = None,
        classifier_name: str | None = None,
        device: str | torch.device = "cpu",
        recorded_device: str | None = None,
    ):
        self.config, self.dataset, self.device, filters = config or RunConfig(), dataset, device, filters or {}
        defended = DefendedClassifier(
            classifier, purifier or Purifier(seed=self.config.seed), gradient=gradient, decision=decision
        )
        judges: dict[str, Judge] = {"none": partial(_bare, classifier), "dip": partial(_defended, defended)}
        if taken := judges.keys() & filters.keys():
            raise ValueError(f"filters must not be named {', '.join(taken)}")
        self._judges = judges | {name: partial(_filtered, classifier, function) for name, function in filters.items()}
        check_run(classifier, dataset, self.config, device)
        if gradient == "none" and self.config.crafted_on != "bare" and self.config.attacks:
            raise ValueError("gradient must not be none where attacks are crafted on the defended model")
        self._targets = {"bare": classifier, "defended": defended}
        name = classifier_name or type(classifier).__name__
        self.description = _description(defended, name, dataset, self.config, filters, recorded_device or device)
        self.key = configuration_hash({k: v for k, v in self.description.items() if k not in ROWS})
        self._order = dataset.first(self.config.n, self.config.seed)
        self._plan = _plan(self.config, list(self._judges))

    @property
    def starts(self) -> range:
        """Where each batch begins, in the order of the run."""
        return range(0, self.config.n, self.config.batch_size)

    def rows(self, start: int) -> set[tuple[str, str, str, int]]:
        """Attack, `crafted_on`, defence and index of the records of the batch that begins there."""
        stop = start + self.config.batch_size
        return {
            (attack, crafted_on, name, int(index))
            for (attack, crafted_on), names in self._plan.items()
            for index in self.dataset.index[self._order[: _images(self.config, crafted_on)][start:stop]]
            for name in names
        }

    def batch(self, start: int, run: Records) -> Iterator[tuple[list[Record], bool]]:
        """The records of each attack and defence on the batch that begins there, and whether any was missing.

        Those that are missing are computed and added to the run; the whole batch, since attacks draw for it at once.
        """
        stop = start + self.config.batch_size
        clean = self.dataset.batch(self._order[start:stop].tolist())
        for (attack, crafted_on), names in self._plan.items():
            positions = self._order[: _images(self.config, crafted_on)][start:stop]
            images, labels = clean[: len(positions)], self.dataset.labels[positions]
            rows = identify(images, labels, self.dataset.index[positions])
            head = {"config": self.key, "attack": attack, "crafted_on": crafted_on}
            heads = {name: [head | {"defence": name} | row for row in rows] for name in names}
            missing = [name for name in names if run.missing(heads[name])]
            if missing:
                images, labels = images.to(self.device), labels.to(self.device)
                attacked = images
                if attack != "clean":
                    attacked = craft(attack, self._targets[crafted_on], images, labels, self.config)
            for name in names:
                if name in missing:
                    scores = _score(self._judges[name], images, attacked, labels)
                    run.add(run.missing(head | score for head, score in zip(heads[name], scores, strict=True)))
                yield run.records(heads[name]), name in missing


def _description(
    defended: DefendedClassifier,
    classifier_name: str,
    dataset: ImageDataset,
    config: RunConfig,
    filters: Mapping[str, Defence],
    device: str | torch.device,
) -> dict[str, Any]:
    """All that a figure depends on, in plain values; the images are named in the records."""
    example = dataset.batch([0])
    purifier, decision = defended.plan(example)
    return {
        "dataset": dataset.name,
        "classifier": classifier_name,
        "weights": fingerprint(defended.classifier),
        **describe_purifier(purifier, example),
        "decision": repr(decision),
        "gradient": defended.gradient,
        "filters": {name: _describe(function) for name, function in filters.items()},
        "device": str(device),
        "versions": {name: version(name) for name in ("dipdefense", "torch", "torchattacks")},
        **asdict(config),
    }


def _plan(config: RunConfig, defences: list[str]) -> dict[tuple[str, str], list[str]]:
    """(attack, crafted_on) -> the defences scored on those images. Filters are never attacked themselves."""
    plan = {("clean", ""): defences}
    for crafted_on in CRAFTED_ON[config.crafted_on]:
        adaptive = crafted_on == "defended"
        attacks = config.attacks_defended if adaptive and config.attacks_defended is not None else config.attacks
        plan |= {(attack, crafted_on): ["dip"] if adaptive else defences for attack in attacks}
    return plan


def _images(config: RunConfig, crafted_on: str) -> int:
    return min(config.n, config.n_defended or config.n) if crafted_on == "defended" else config.n


def _bare(classifier: nn.Module, images: Tensor) -> tuple[Tensor, None]:
    return classifier(images), None


def _defended(defended: DefendedClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    judgement = defended.judge(images)
    return judgement.logits, judgement.reconstruction


def _filtered(classifier: nn.Module, defence: Defence, images: Tensor) -> tuple[Tensor, Tensor]:
    purified = defence(images)
    return classifier(purified), purified


@torch.no_grad()
def _score(judge: Judge, clean: Tensor, attacked: Tensor, labels: Tensor) -> list[Record]:
    """One record per image: prediction, PSNR and SSIM against the clean image, seconds of defence and classifier."""
    start = clock(clean.device)
    logits, purified = judge(attacked)
    seconds = (clock(clean.device) - start) / len(clean)
    check_logits(logits, len(clean))
    predictions = logits.argmax(1)
    measured = {
        "label": labels.tolist(),
        "prediction": predictions.tolist(),
        "correct": (predictions == labels).tolist(),
        "psnr_attacked": _finite(psnr(attacked, clean)),
        "ssim_attacked": _finite(ssim(attacked, clean)),
        "psnr_defended": _finite(psnr(purified, clean)) if purified is not None else [None] * len(clean),
        "ssim_defended": _finite(ssim(purified, clean)) if purified is not None else [None] * len(clean),
        "seconds": [round(seconds, 6)] * len(clean),
    }
    return [dict(zip(measured, values, strict=True)) for values in zip(*measured.values(), strict=True)]


def _finite(values: Tensor) -> list[float | None]:
    """JSON has no infinity: the PSNR of equal images is left empty."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _describe(function: Defence) -> str:
    """A filter's name and parameters, for the hash of the configuration."""
    if isinstance(function, nn.Module):
        return f"{function!r} {fingerprint(function)}"
    inner = getattr(function, "func", function)
    name = getattr(inner, "__qualname__", "<lambda>")
    if "<lambda>" in name:
        raise ValueError(
            f"filters must be functions with a name, or modules, so that a run knows them, got {function!r}"
        )
    return f"{inner.__module__}.{name}{getattr(function, 'args', ())}{getattr(function, 'keywords', {})}"
