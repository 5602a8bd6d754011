"""One run bound together: its classifier, defences, images and numbers; the records of one batch of it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dipdefense import Decision, DefendedClassifier, Purifier
from dipdefense.defence.logits import check_logits
from dipdefense.digest import configuration_hash, describe
from eval.clock import clock
from eval.datasets import ImageDataset
from eval.metrics import psnr, ssim
from eval.probe import Answers, probe, probe_images
from eval.records import Record, Records, made_with
from eval.robustness.config import (
    CRAFTED_ON,
    RunConfig,
    check_run,
    craft,
    describe_attacks,
    describe_purifier,
    describe_subject,
    identify,
)

__all__ = ["FREE", "GROWS", "KEY", "Defence", "Scoring"]

KEY = ("config", "attack", "crafted_on", "defence", "index", "image")  # what names a record
# parts of the description that may change, and mappings that may gain entries, when a run is continued
FREE, GROWS = ("attacks", "attacks_defended", "crafted_on", "hash"), ("attack_code",)

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
        self._filters = filters
        described = _description(defended, classifier_name, dataset, self.config, filters, recorded_device or device)
        self.key = configuration_hash({k: v for k, v in described.items() if k not in FREE + GROWS})
        self.description = described | {"hash": self.key}
        self._order = dataset.first(self.config.n, self.config.seed)
        self._plan = _plan(self.config, list(self._judges))

    def probes(self) -> dict[str, Answers]:
        """What the classifier answers to a few images, alone and behind each filter that does not fit.

        With another number of threads a fit may end elsewhere. So a filter that fits is known by its code and numbers.
        """
        images = probe_images(self.dataset).to(self.device)
        answers = {"classifier": probe(self._targets["bare"], images)}
        for name, function in self._filters.items():
            if not _fits(function):
                few = images[:: len(images) // 2]  # an image and the same with noise, since filters are slow
                answers[f"filter {name}"] = probe(partial(_logits, self._judges[name]), few)
        return answers

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
    classifier_name: str | None,
    dataset: ImageDataset,
    config: RunConfig,
    filters: Mapping[str, Defence],
    device: str | torch.device,
) -> dict[str, Any]:
    """All that a figure depends on, in plain values; the images are named in the records."""
    example = dataset.batch([0])
    purifier, decision = defended.plan(example)
    return {
        "run": "evaluate",
        **asdict(config),
        **describe_subject(defended.classifier, classifier_name, dataset),
        **describe_purifier(purifier, example),
        "decision": describe(decision),
        "gradient": describe(defended.gradient),
        "filters": {name: _describe(function) for name, function in filters.items()},
        "attack_code": describe_attacks(config.attacks),
        "device": str(device),
        **made_with("dipdefense", "torch", "torchattacks"),
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
    prediction = defended.judge(images)
    return prediction.logits, prediction.reconstruction


def _filtered(classifier: nn.Module, defence: Defence, images: Tensor) -> tuple[Tensor, Tensor]:
    purified = defence(images)
    return classifier(purified), purified


def _logits(judge: Judge, images: Tensor) -> Tensor:
    return judge(images)[0]


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


def _fits(function: Defence) -> bool:
    """Whether a filter is, or holds, a purifier."""
    return isinstance(function, nn.Module) and any(isinstance(module, Purifier) for module in function.modules())


def _describe(function: Defence) -> str:
    """A filter's name, code and parameters, for the hash of the configuration."""
    inner = getattr(function, "func", function)
    if not isinstance(function, nn.Module) and "<lambda>" in getattr(inner, "__qualname__", "<lambda>"):
        raise ValueError(
            f"filters must be functions with a name, or modules, so that a run knows them, got {function!r}"
        )
    return describe(function)
