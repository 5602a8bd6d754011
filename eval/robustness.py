"""Accuracy of a classifier, bare and defended, on clean and attacked images: one resumable run, one table.

A run writes into its folder `config.json`, one record per image and row to `records.jsonl` as it is made, and at
its end `summary.csv`, `summary.json` and `paired.csv`. Killed, it goes on where it was.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks import ATTACKS, CONTROLS
from dipdefense import Decision, DefendedClassifier, Purifier
from eval.clock import clock
from eval.datasets import ImageDataset
from eval.metrics import psnr, ssim
from eval.records import Record, append_records, configuration_hash, read_records, write_whole
from eval.summary import paired_differences, summarise

__all__ = [
    "CRAFTED_ON",
    "RunConfig",
    "check_run",
    "craft",
    "evaluate_robustness",
    "fingerprint",
    "identify",
]

CRAFTED_ON = {"bare": ("bare",), "defended": ("defended",), "both": ("bare", "defended")}

Defence = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> same
Judge = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # images -> logits, and what the classifier saw in their place


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Numbers of one evaluation.

    Raises:
        ValueError: an unknown attack or `crafted_on` (the message lists the known ones), a number out of range.
    """

    attacks: Sequence[str] = ("fgsm", "pgd", "momentum_pgd")  # keys of ATTACKS and CONTROLS
    norm: str = "linf"
    eps: float = 8 / 255  # radius of the ball, images in [0, 1]
    alpha: float | None = None  # step size; eps / 4 if None
    steps: int = 20
    targeted: bool = False  # the labels are the targets; the true labels are then unknown to the attack
    crafted_on: str = "bare"  # bare: the attack knows only the classifier; defended: it attacks through the defence
    n: int = 100  # images: the first n of a seeded permutation
    n_defended: int | None = None  # how many of them are attacked through the defence; n if None
    seed: int = 0  # of the permutation, the attacks and the fits
    batch_size: int = 64

    def __post_init__(self) -> None:
        for attack in self.attacks:
            if attack not in ATTACKS | CONTROLS:
                raise ValueError(f"attack must be one of {', '.join(ATTACKS | CONTROLS)}, got {attack!r}")
        if CONTROLS.keys() & set(self.attacks) and (self.targeted or self.crafted_on != "bare"):
            raise ValueError(
                "attacks must leave out random_noise where they are targeted or crafted on the defended model"
            )
        if self.crafted_on not in CRAFTED_ON:
            raise ValueError(f"crafted_on must be one of {', '.join(CRAFTED_ON)}, got {self.crafted_on!r}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps must not be negative, in [0, 1] units such as 8/255, got {self.eps}")
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be one of linf, l2, got {self.norm!r}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"eps must be at most 1 in the linf norm, in [0, 1] units such as 8/255, got {self.eps}")
        if self.norm == "l2" and "fgsm" in self.attacks:
            raise ValueError("attacks must leave out fgsm when norm is l2, got both")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be positive, in [0, 1] units such as 2/255, got {self.alpha}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for name in ("n", "steps", "batch_size", "n_defended"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def evaluate_robustness(
    classifier: nn.Module,
    dataset: ImageDataset,
    config: RunConfig | None = None,
    *,
    out: str | Path,
    purifier: Purifier | None = None,
    decision: Decision | str | None = None,
    gradient: str = "straight_through",
    filters: Mapping[str, Defence] | None = None,
    classifier_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Score a classifier bare, behind the purifier (`dip`) and behind filters, on identical images.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode, on `device`.
        dataset: labelled images; with `config.targeted` the labels are the targets and accuracy counts hits.
        config: numbers of the evaluation; `RunConfig()` if None.
        out: folder of the run, made if missing.
        purifier: the fit of the defence `dip`; `Purifier(seed=config.seed)` if None.
        decision: that of the defence `dip`; None as in `DefendedClassifier`.
        gradient: how an attack crafted on the defended model passes the fit, see `Purifier`.
        filters: further defences by name, scored on the images crafted on the bare classifier.
        classifier_name: for the table; the class name if None.
        device: where the classifier is and the images go.
        progress: called with (records made, records in all) after every batch and row.

    Returns:
        The table, one row per attack and defence; columns as in `eval.summary.summarise`.

    Raises:
        ValueError: more images asked for than there are; a classifier in training mode, with other classes than
            the data set, or whose logits are not finite or not (B, K); a filter named `none` or `dip`.
        OSError: the folder cannot be written.
    """
    config, purifier = config or RunConfig(), purifier or Purifier(seed=(config or RunConfig()).seed)
    defended = DefendedClassifier(classifier, purifier, gradient=gradient, decision=decision)
    judges: dict[str, Judge] = {"none": partial(_bare, classifier), "dip": partial(_defended, defended)}
    if taken := judges.keys() & (filters or {}).keys():
        raise ValueError(f"filters must not be named {', '.join(taken)}")
    judges |= {name: partial(_filtered, classifier, function) for name, function in (filters or {}).items()}
    check_run(classifier, dataset, config, device)
    targets = {"bare": classifier, "defended": defended}
    if gradient == "none" and config.crafted_on != "bare" and config.attacks:
        raise ValueError("gradient must not be none where attacks are crafted on the defended model")
    name = classifier_name or type(classifier).__name__
    described = _description(defended, name, dataset, config, filters or {}, device)
    run = Path(out)
    run.mkdir(parents=True, exist_ok=True)
    key = configuration_hash({k: v for k, v in described.items() if k not in ("attacks", "crafted_on")})
    write_whole(run / "config.json", json.dumps(described | {"hash": key}, indent=2) + "\n")
    plan = _plan(config, list(judges))
    total = sum(_images(config, crafted_on) * len(names) for (_, crafted_on), names in plan.items())
    made = _Made(run / "records.jsonl", key)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))[: config.n]
    records: list[Record] = []
    for start in range(0, config.n, config.batch_size):
        clean = dataset.batch(order[start : start + config.batch_size].tolist())
        for (attack, crafted_on), names in plan.items():
            positions = order[: _images(config, crafted_on)][start : start + config.batch_size]
            images, labels = clean[: len(positions)], dataset.labels[positions]
            rows = identify(images, labels, dataset.index[positions])
            missing = [name for name in names if not made.holds(attack, crafted_on, name, rows)]
            if missing:
                images, labels = images.to(device), labels.to(device)
                attacked = images if attack == "clean" else craft(attack, targets[crafted_on], images, labels, config)
            for name in names:
                if name in missing:
                    scores = _score(judges[name], images, attacked, labels)
                    made.add(attack, crafted_on, name, [a | b for a, b in zip(rows, scores, strict=True)])
                records += made.these(attack, crafted_on, name, rows)
                if name in missing and progress is not None:
                    progress(len(records), total)
    table = summarise(records, described)
    write_whole(run / "summary.csv", table.to_csv(index=False))
    write_whole(run / "summary.json", table.to_json(orient="records", indent=2) + "\n")
    write_whole(run / "paired.csv", paired_differences(records).to_csv(index=False))
    return table


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
        "purifier": f"{type(purifier).__module__}.{type(purifier).__qualname__}",
        "fit": asdict(purifier.config_for(example)),
        "fit_seed": purifier.seed,
        "tile": purifier.tile_for(example),
        "decision": repr(decision),
        "gradient": defended.gradient,
        "filters": {name: _describe(function) for name, function in filters.items()},
        "device": str(device),
        "versions": {name: version(name) for name in ("dipdefense", "torch", "torchattacks")},
        **asdict(config),
    }


class _Made:
    """The records of a run: those found in its file, and those added to it."""

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        found = [record for record in read_records(path) if record.get("config") == key]
        self._records = {self._name(r["attack"], r["crafted_on"], r["defence"], r): r for r in found}

    @staticmethod
    def _name(attack: str, crafted_on: str, defence: str, row: Record) -> tuple[str, str, str, int, str]:
        return attack, crafted_on, defence, row["index"], row["image"]

    def holds(self, attack: str, crafted_on: str, defence: str, rows: list[Record]) -> bool:
        """Are all these images scored?"""
        return all(self._name(attack, crafted_on, defence, row) in self._records for row in rows)

    def these(self, attack: str, crafted_on: str, defence: str, rows: list[Record]) -> list[Record]:
        """The records of these images."""
        return [self._records[self._name(attack, crafted_on, defence, row)] for row in rows]

    def add(self, attack: str, crafted_on: str, defence: str, rows: list[Record]) -> None:
        """Append the records that are not there yet."""
        head = {"config": self.key, "attack": attack, "crafted_on": crafted_on, "defence": defence}
        new = {self._name(attack, crafted_on, defence, row): head | row for row in rows}
        new = {name: record for name, record in new.items() if name not in self._records}
        append_records(self.path, new.values())
        self._records |= new


@torch.no_grad()
def check_run(classifier: nn.Module, dataset: ImageDataset, config: RunConfig, device: str | torch.device) -> None:
    """Refuse, before anything is computed, what would fail or mislead later."""
    if config.n > len(dataset):
        raise ValueError(f"n must be at most the {len(dataset)} images of {dataset.name}, got {config.n}")
    if classifier.training:
        raise ValueError("classifier must be in eval mode, or its images would meet: call classifier.eval()")
    logits = classifier(dataset.batch([0]).to(device))
    _check_logits(logits, 1)
    if int(dataset.labels.max()) >= logits.shape[1]:
        raise ValueError(
            f"labels must be below the classifier's {logits.shape[1]} classes, got {int(dataset.labels.max())}: "
            "classifier and data set do not belong together"
        )


def _check_logits(logits: Tensor, n: int) -> None:
    if logits.dim() != 2 or len(logits) != n or not logits.isfinite().all():
        raise ValueError(f"classifier must return finite logits (B, K), got shape {tuple(logits.shape)}")


def _plan(config: RunConfig, defences: list[str]) -> dict[tuple[str, str], list[str]]:
    """(attack, crafted_on) -> the defences scored on those images. Filters are never attacked themselves."""
    plan = {("clean", ""): defences}
    for attack in config.attacks:
        for crafted_on in CRAFTED_ON[config.crafted_on]:
            plan[attack, crafted_on] = defences if crafted_on == "bare" else ["dip"]
    return plan


def _images(config: RunConfig, crafted_on: str) -> int:
    return min(config.n, config.n_defended or config.n) if crafted_on == "defended" else config.n


def craft(attack: str, target: nn.Module, images: Tensor, labels: Tensor, config: RunConfig) -> Tensor:
    """Adversarial examples by an attack's name; it gets those of the run's numbers that it knows."""
    function = (ATTACKS | CONTROLS)[attack]
    numbers = {name: getattr(config, name) for name in ("eps", "norm", "alpha", "steps", "targeted", "seed")}
    known = inspect.signature(function).parameters
    return function(target, images, labels, **{name: v for name, v in numbers.items() if name in known})


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
    _check_logits(logits, len(clean))
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


def identify(images: Tensor, labels: Tensor, index: Tensor) -> list[Record]:
    """What names each image in a record: its position in the data set, and a digest of its pixels and label."""
    return [
        {"index": i, "image": hashlib.sha256(image.numpy().tobytes() + bytes([label % 256])).hexdigest()[:16]}
        for image, label, i in zip(images, labels.tolist(), index.tolist(), strict=True)
    ]


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


def fingerprint(net: nn.Module) -> str:
    """A digest of a classifier's structure, code, parameters and buffers, those out of its state dict too."""
    digest = hashlib.sha256(str(net).encode())
    for kind in sorted({type(module) for module in net.modules()}, key=lambda kind: kind.__qualname__):
        with suppress(OSError, TypeError):  # built where there is no source file
            digest.update(inspect.getsource(kind).encode())
    for _, tensor in (*net.named_parameters(), *net.named_buffers()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
