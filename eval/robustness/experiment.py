"""One experiment: attacks on a classifier, the defences that are scored on the adversarial images, and its records.

It is a list of cells. A cell is one attack, the model it is crafted on and its radius, with the defences that get its
images. The folder of a run holds its description in `config.json` and `probe.json`, one record per image, cell and
defence in `records.jsonl` as it is made, and at its end `summary.csv`. A killed run is continued by the same call.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from dipdefense.defence.check_logits import check_logits
from dipdefense.digest import configuration_hash
from eval.classifier_probe import probe, probe_images
from eval.cost import clock, peak_bytes
from eval.datasets import ImageDataset
from eval.metrics import psnr, ssim
from eval.records import Record, Records, Run, made_with, write_whole
from eval.robustness.config import AttackConfig, check_run, describe_subject, identify
from eval.robustness.scored_defences import Method, Setting, Verdict
from eval.robustness.summary import ROW, summarise

__all__ = ["GROWS", "KEY", "Cell", "Experiment", "run_experiment", "title", "write_tables"]

KEY = ("config", *ROW, "index", "image")  # the fields that name a record
GROWS = ("attacks", "defences")  # parts of the description that may gain entries when a run is continued
FREE = ("attacks_defended", "crafted_on", "n_defended", "rungs", "radii", "queries", "budget")  # may change in any way
PACKAGES = ("dipdefense", "torch", "torchattacks", "pyautoattack", "scikit-image")

Craft = Callable[[Tensor, Tensor], Tensor]  # images (B, C, H, W) in [0, 1], labels (B,) -> adversarial images
Answering = Callable[[Tensor], Tensor]  # images -> logits


class Cell(NamedTuple):
    """One attack at one radius, and the defences that are scored on its images."""

    attack: str  # its name in tables; `clean` for unchanged images
    crafted_on: str  # bare or defended; empty for clean images
    eps: float | None  # radius of its ball; None if it looks for the nearest adversarial image
    gradient: str  # name of the gradient that the attack uses
    n: int  # images: the first n of the run's order
    defences: Sequence[Method]
    craft: Craft | None = None  # None leaves the images unchanged


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that the records of a run depend on.

    Raises:
        ValueError: `n` above the number of images; a classifier in training mode, with other classes than the data set,
            or whose logits are not finite or not (B, K).
    """

    kind: str  # the command that makes it
    classifier: nn.Module  # images (B, C, H, W) in [0, 1] -> logits (B, K), bare, on `device`
    dataset: ImageDataset
    config: AttackConfig
    cells: Sequence[Cell]
    attacks: Mapping[str, Any]  # name of an attack -> its definition, in plain values
    further: Mapping[str, Any] = field(default_factory=dict)  # settings that are not in `config`
    free: tuple[str, ...] = ()  # settings that may differ between starts besides FREE
    probed: Mapping[str, Answering] = field(default_factory=dict)  # functions that are probed, as the classifier is
    classifier_name: str | None = None  # for the table; the class name if None
    device: str | torch.device = "cpu"
    recorded_device: str | None = None  # device in the description, if other machines compute

    def __post_init__(self) -> None:
        check_run(self.classifier, self.dataset, max(cell.n for cell in self.cells), self.device)

    @cached_property
    def description(self) -> dict[str, Any]:
        """Everything that a figure depends on, in plain values; the records name the images."""
        example, settings = self.dataset.batch([0]), asdict(self.config) | dict(self.further)
        served = {title(s): (method, s) for c in self.cells for method in c.defences for s in method.settings}
        described = {
            "run": self.kind,
            **{k: None if v == math.inf else v for k, v in settings.items() if k not in GROWS},
            **describe_subject(self.classifier, self.classifier_name, self.dataset),
            "defences": {name: dict(method.describe(s, example)) for name, (method, s) in served.items()},
            "attacks": dict(self.attacks),
            "device": str(self.recorded_device or self.device),
            **made_with(*PACKAGES),
        }
        known = {name: value for name, value in described.items() if name not in (*FREE, *self.free, *GROWS)}
        return described | {"hash": configuration_hash(known)}

    @property
    def starts(self) -> range:
        """The start of each batch in the order of the run."""
        return range(0, max(cell.n for cell in self.cells), self.config.batch_size)

    @cached_property
    def _order(self) -> Tensor:
        return self.dataset.first(len(self.dataset), self.config.seed)

    def rows(self, start: int) -> set[tuple[Any, ...]]:
        """The fields ROW and the index of the records of the batch that begins at `start`."""
        stop = start + self.config.batch_size
        return {
            (cell.attack, cell.crafted_on, cell.eps, *setting, int(index))
            for cell in self.cells
            for index in self.dataset.index[self._order[: cell.n][start:stop]]
            for method in cell.defences
            for setting in method.settings
        }

    def open(self, folder: str | Path) -> Run:
        """The run in a folder, with the records that are there already; `begin` makes the folder.

        Raises:
            ValueError: the folder holds another run.
        """
        images = probe_images(self.dataset).to(self.device)
        few = images[:: len(images) // 2]  # one image, without and with noise, for slow functions
        probed: dict[str, Answering] = {"classifier": self.classifier, **self.probed}
        answers = {name: probe(one, images if isinstance(one, nn.Module) else few) for name, one in probed.items()}
        return Run(folder, KEY, self.description, free=(*FREE, *self.free, "hash"), grows=GROWS, probes=answers)

    def missing(self, run: Records) -> Counter[str]:
        """Attack -> number of images with missing records; complete attacks are not in it."""
        left: Counter[str] = Counter()
        for start in self.starts:
            *_, named = self._load(start)
            for cell in self.cells:
                rows = named[: max(0, cell.n - start)]
                if any(run.missing(self._heads(cell, s, rows)) for m in cell.defences for s in m.settings):
                    left[cell.attack] += len(rows)
        return left

    def batch(self, start: int, run: Records) -> Iterator[tuple[list[Record], bool]]:
        """The records of each cell and method on the batch that begins at `start`, and whether any was missing.

        If any is missing, the whole batch is computed, since its images are fitted together, and added to the run.
        """
        images, labels, named = self._load(start)
        for cell in self.cells:
            n = max(0, cell.n - start)
            if n:
                yield from self._cell(cell, images[:n], labels[:n], named[:n], run)

    def _load(self, start: int) -> tuple[Tensor, Tensor, list[Record]]:
        """Images, labels, and the fields that name each image in a record."""
        positions = self._order[start : start + self.config.batch_size]
        images, labels = self.dataset.batch(positions.tolist()), self.dataset.labels[positions]
        return images, labels, identify(images, labels, self.dataset.index[positions])

    def _heads(self, cell: Cell, setting: Setting, named: list[Record]) -> list[Record]:
        """The fields that name the records of a cell and setting."""
        row = (cell.attack, cell.crafted_on, cell.eps, *setting)
        return [{"config": self.description["hash"], **dict(zip(ROW, row, strict=True)), **one} for one in named]

    def _cell(
        self, cell: Cell, images: Tensor, labels: Tensor, named: list[Record], run: Records
    ) -> Iterator[tuple[list[Record], bool]]:
        heads = [{s: self._heads(cell, s, named) for s in method.settings} for method in cell.defences]
        missing = [bool(run.missing(head for rows in of.values() for head in rows)) for of in heads]
        if any(missing):
            images, labels = images.to(self.device), labels.to(self.device)
            start = clock(images.device)
            attacked = images if cell.craft is None else cell.craft(images, labels)
            facts = self._facts(cell, images, attacked, labels, (clock(images.device) - start) / len(images))
        for method, of, is_missing in zip(cell.defences, heads, missing, strict=True):
            if is_missing:
                run.add(run.missing(_judge(method, images, attacked, facts, of)))
            yield run.records(head for rows in of.values() for head in rows), is_missing

    @torch.no_grad()
    def _facts(self, cell: Cell, clean: Tensor, attacked: Tensor, labels: Tensor, seconds: float) -> list[Record]:
        """Values for all defences; `fooled`: the bare classifier is right on the clean image, wrong on this one."""
        fooled = (self.classifier(clean).argmax(1) == labels) & (self.classifier(attacked).argmax(1) != labels)
        peak = round(peak_bytes(clean.device) / 2**30, 3)
        lengths = [torch.linalg.vector_norm(attacked - clean, p, dim=(1, 2, 3)).tolist() for p in (2, math.inf)]
        measured = zip(labels.tolist(), fooled.tolist(), *_quality(attacked, clean), *lengths, strict=True)
        return [
            {
                **{"gradient": cell.gradient, "label": label, "fooled": is_fooled},
                **{"psnr_attacked": decibels, "ssim_attacked": similarity, "l2": l2, "linf": linf},
                **{"attack_seconds": round(seconds, 6), "peak_gb": peak},
            }
            for label, is_fooled, decibels, similarity, l2, linf in measured
        ]


def run_experiment(
    experiment: Experiment,
    run: Run,
    *,
    progress: Callable[[int, int], None] | None = None,
    each: Callable[[pd.DataFrame], None] | None = None,
) -> list[Record]:
    """Compute the records that the run lacks, and return all of them.

    Args:
        experiment: the experiment to run.
        run: from its `open`, after `begin`.
        progress: called with (records made, records in all) after every batch, cell and method.
        each: called with each row of the table, as a data frame, as soon as all its images are scored.
    """
    records: list[Record] = []
    left = Counter(row[:-1] for start in experiment.starts for row in experiment.rows(start))
    total = left.total()
    for start in experiment.starts:
        for made, fresh in experiment.batch(start, run):
            records += made
            if fresh and progress is not None:
                progress(len(records), total)
            for row, count in Counter(map(_row, made)).items():
                left[row] -= count
                if each is not None and left[row] == 0:
                    each(summarise([record for record in records if _row(record) == row], experiment.description))
    return records


def write_tables(folder: Path, summary: pd.DataFrame, **others: pd.DataFrame) -> None:
    """Write `summary.csv` and `summary.json` of a run, and other tables as CSV under their names."""
    write_whole(folder / "summary.csv", summary.to_csv(index=False))
    write_whole(folder / "summary.json", summary.to_json(orient="records", indent=2) + "\n")
    for name, table in others.items():
        write_whole(folder / f"{name}.csv", table.to_csv(index=False))


def title(setting: Setting) -> str:
    """The name of a defence, with its strength if that is not 0."""
    return f"{setting.method} {float(setting.strength)}" if setting.strength else setting.method


def _row(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ROW)


@torch.no_grad()
def _judge(
    method: Method, clean: Tensor, attacked: Tensor, facts: list[Record], heads: Mapping[Setting, list[Record]]
) -> list[Record]:
    """One record per image and setting of a method."""
    records, empty = [], [None] * len(clean)
    for setting, verdict in method(attacked).items():
        _check(setting, verdict, len(clean))
        scores = empty if verdict.scores is None else verdict.scores.tolist()
        quality = (empty, empty) if verdict.purified is None else _quality(verdict.purified, clean)
        answers = zip(heads[setting], facts, verdict.logits.argmax(1).tolist(), scores, *quality, strict=True)
        for head, fact, prediction, score, decibels, similarity in answers:
            judged = {"prediction": prediction, "correct": prediction == fact["label"], "score": score}
            measured = {"psnr_defended": decibels, "ssim_defended": similarity}
            records.append(head | fact | judged | measured | {"seconds": round(verdict.seconds / len(clean), 6)})
    return records


def _check(setting: Setting, verdict: Verdict, n: int) -> None:
    logits, scores = verdict.logits, verdict.scores
    check_logits(logits, n, setting.method)
    if scores is not None and (scores.shape != (n,) or not scores.isfinite().all()):
        raise ValueError(f"{setting.method} must give finite scores (B,) or None, got shape {tuple(scores.shape)}")


def _quality(images: Tensor, clean: Tensor) -> tuple[list[float | None], list[float | None]]:
    """PSNR and SSIM against the clean images. JSON has no infinity: the PSNR of equal images is left empty."""
    measured = psnr(images, clean), ssim(images, clean)
    return tuple([v if math.isfinite(v) else None for v in values.tolist()] for values in measured)  # type: ignore
