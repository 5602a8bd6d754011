"""The experiment: certificates for a data set's images, by several purifiers on the same noise.

The folder of a run holds its description in `config.json` and `probe.json`, one record per image, purifier and block of
draws in `records.jsonl` as it is made, and at its end `summary.csv`, `paired.csv`, `certificates.csv` and the curve
`certified_accuracy.png`. A killed run is continued by the same call. Images and purifiers may be added.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from dipdefense.arguments import check_integer, check_known
from dipdefense.defence.certify import SamplingPlan, Tally, check_subject
from dipdefense.defence.presets import smoothing_defence_for
from dipdefense.defence.smoothing import DIP, SmoothedClassifier
from dipdefense.digest import configuration_hash, describe
from dipdefense.filters.refinement import refine
from eval.certification.certified_accuracy import paired_differences, save_curve, summarise_certificates
from eval.certification.purifiers_by_name import PURIFIERS, purifier_named
from eval.classifier_probe import probe, probe_images
from eval.cost import clock
from eval.datasets import ImageDataset
from eval.records import Record, Run, made_with
from eval.robustness.config import check_names, check_run, describe_subject, identify
from eval.robustness.experiment import write_tables

__all__ = ["CertificationConfig", "certify_dataset"]

KEY = ("config", "purifier", "index", "image", "first")  # the fields that name a record


@dataclass(frozen=True, kw_only=True)
class CertificationConfig:
    """Settings of a run.

    Raises:
        TypeError: purifiers that are no sequence of names.
        ValueError: an unknown purifier, a number out of its range.
    """

    plan: SamplingPlan
    purifiers: Sequence[str] = (DIP,)  # of PURIFIERS
    mirror: bool = True  # False: `dip` classifies no mirrored view, for classes that change in the mirror
    n: int = 100  # images: the first n of a seeded permutation
    seed: int = 0  # of the permutation and the noise
    block: int = 256  # draws of an image that are purified together

    def __post_init__(self) -> None:
        check_names("purifiers", self.purifiers)
        for name in self.purifiers:
            check_known("purifiers", name, PURIFIERS, several=True)
        for name, least in (("n", 1), ("seed", 0), ("block", 1)):
            check_integer(name, getattr(self, name), least)


def certify_dataset(
    classifier: nn.Module,
    dataset: ImageDataset,
    config: CertificationConfig,
    *,
    out: str | Path,
    classifier_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Certify the classes of a data set's images, and tabulate the certified accuracy against the radius.

    The noise of a draw is a function of the seed, the image's index and the number of the draw, so all purifiers get
    the same noisy copies.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode, on `device`.
        dataset: the images.
        config: the settings.
        out: folder of the run, made if missing.
        classifier_name: for the description; the class name if None.
        device: where to compute.
        progress: called with (draws done or no longer needed, draws in all) after every block.

    Returns:
        The table of `summarise_certificates`, also in `out`.

    Raises:
        ValueError: more images than the data set has; a classifier that `check_classifier` refuses; a folder that holds
            another run.
        OSError: the folder cannot be written.
    """
    check_subject(classifier, dataset.batch([0]).to(device))
    check_run(classifier, dataset, config.n, device)
    description = _description(classifier, classifier_name, dataset, config, str(device))
    probed = {"classifier": probe(classifier, probe_images(dataset).to(device))}
    run = Run(out, KEY, description, free=("n",), grows=("purifiers",), probes=probed)
    run.begin()
    shared = {name: value for name, value in description.items() if name not in ("n", "purifiers")}
    hashes = {name: configuration_hash({**shared, name: held}) for name, held in description["purifiers"].items()}
    whole, certificates = config.plan.n0 + config.plan.n, list[Record]()
    total = config.n * len(config.purifiers) * whole
    for image, label, head in _images(dataset, config):
        for name in config.purifiers:
            purify = purifier_named(name, config.plan.sigma)
            smoothed = SmoothedClassifier(
                classifier, sigma=config.plan.sigma, seed=config.seed, purify=purify, mirror=config.mirror
            )
            done = len(certificates) * whole
            named = {"config": hashes[name], "purifier": name, **head}
            tally, seconds = Tally(config.plan), 0.0
            for record in _blocks(run, named, smoothed, image.to(device), tally, config.block):
                seconds += record["seconds"]
                if progress is not None:
                    progress(done + (tally.draws if tally.next_draws(config.block) else whole), total)
            certificates.append(named | _certificate(tally, label, seconds))
    table = _write(run.folder, pd.DataFrame(certificates), config)
    run.end()
    return table


def _description(
    classifier: nn.Module, name: str | None, dataset: ImageDataset, config: CertificationConfig, device: str
) -> Record:
    """Everything that a record depends on, in plain values."""
    settings = asdict(config.plan) | {"samples": config.plan.n, "n": config.n, "seed": config.seed}
    return {
        "run": "certify",
        **settings,
        "block": config.block,
        **describe_subject(classifier, name, dataset),
        "purifiers": {purifier: _describe_purifier(purifier, dataset, config) for purifier in config.purifiers},
        "device": device,
        **made_with("dipdefense", "torch", "numpy", "scipy", "scikit-image"),
    }


def _describe_purifier(name: str, dataset: ImageDataset, config: CertificationConfig) -> Record:
    if name == DIP:
        shape = tuple(dataset.batch([0]).shape[1:])
        defence = smoothing_defence_for(shape, config.plan.sigma, mirror=config.mirror)
        plain = {"fit": asdict(defence.fit), "decision": describe(defence.decision), "tile": defence.tile}
        return plain | {"filters": describe(refine)}
    purify = purifier_named(name, config.plan.sigma)
    return {"filter": "none" if purify is None else describe(purify)}


def _images(dataset: ImageDataset, config: CertificationConfig) -> Iterator[tuple[Tensor, int, Record]]:
    """Image, label, and the fields that name the image in a record."""
    for position in dataset.first(config.n, config.seed):
        images, labels = dataset.batch([int(position)]), dataset.labels[position][None]
        yield images[0], int(labels), identify(images, labels, dataset.index[position][None])[0]


def _blocks(
    run: Run, named: Record, smoothed: SmoothedClassifier, image: Tensor, tally: Tally, most: int
) -> Iterator[Record]:
    """The records of an image and a purifier, block after block; those that the run lacks are computed and added."""
    while draws := tally.next_draws(most):
        head = named | {"first": draws.start}
        if run.missing([head]):
            start = clock(image.device)
            classes = smoothed.count(image, draws, named["index"])
            counted = {str(label): count for label, count in sorted(classes.items())}
            run.add([head | {"classes": counted, "seconds": round(clock(image.device) - start, 4)}])
        record = run.records([head])[0]
        tally.add({int(label): count for label, count in record["classes"].items()})
        yield record


def _certificate(tally: Tally, label: int, seconds: float) -> Record:
    radius = tally.radius
    return {
        **{"label": label, "prediction": tally.prediction, "abstained": radius == 0, "radius": radius},
        **{"correct": tally.prediction == label, "draws": tally.draws, "seconds": round(seconds, 3)},
    }


def _write(folder: Path, certificates: pd.DataFrame, config: CertificationConfig) -> pd.DataFrame:
    summary = summarise_certificates(certificates, config.plan.sigma)
    others = {"certificates": certificates.drop(columns=["config", "image"])}
    if len(config.purifiers) > 1:
        others["paired"] = paired_differences(certificates, config.plan.sigma)
    write_tables(folder, summary, **others)
    save_curve(folder / "certified_accuracy.png", summary)
    return summary
