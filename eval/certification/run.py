"""The experiment: certificates for a data set's images, by several purifiers on the same noise.

The folder of a run holds its description in `config.json` and `probe.json`, one record per image, purifier and block of
draws in `records.jsonl` as it is made, and at its end `summary.csv`, `paired.csv`, `certificates.csv` and, of more than
two radii, the curve `certified_accuracy.png`. A killed run is continued by the same call. Images and purifiers may be
added.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from dipdefense.defence.certify import Tally, check_subject
from dipdefense.defence.presets import smoothing_defence_for
from dipdefense.defence.smoothing import DIP
from dipdefense.digest import configuration_hash, describe
from dipdefense.distributed.pool import Lost
from dipdefense.filters.refinement import refine
from eval.certification.blocks import Block, BlockCounter, Counted, named_image
from eval.certification.certified_accuracy import paired_differences, save_curve, summarise_certificates
from eval.certification.config import CertificationConfig
from eval.certification.purifiers_by_name import purifier_named
from eval.classifier_probe import probe, probe_images
from eval.datasets import ImageDataset
from eval.records import Record, Run, made_with
from eval.robustness.config import check_run, describe_subject
from eval.robustness.experiment import write_tables

__all__ = ["Counts", "certify_blocks", "certify_dataset", "describe_run", "open_run"]

KEY = ("config", "purifier", "index", "image", "first")  # the fields that name a record
Counts = Generator[tuple[int, Counted | Lost], None, None]  # of blocks, each with the number of its block


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
    description = describe_run(classifier, classifier_name, dataset, config, str(device))
    run = open_run(classifier, dataset, config, out=out, description=description, device=device)
    counter = BlockCounter(classifier, dataset, config, device)

    def count(blocks: Sequence[Block]) -> Counts:
        yield from enumerate(map(counter, blocks))

    return certify_blocks(run, count, dataset, config, description, progress=progress)


def open_run(
    classifier: nn.Module,
    dataset: ImageDataset,
    config: CertificationConfig,
    *,
    out: str | Path,
    description: Record,
    device: str | torch.device = "cpu",
) -> Run:
    """Check everything that `certify_dataset` refuses, and begin the run. `description`: by `describe_run`."""
    check_subject(classifier, dataset.batch([0]).to(device))
    check_run(classifier, dataset, config.n, device)
    probed = {"classifier": probe(classifier, probe_images(dataset).to(device))}
    run = Run(out, KEY, description, free=("n",), grows=("purifiers",), probes=probed)
    run.begin()
    return run


def certify_blocks(
    run: Run,
    count: Callable[[Sequence[Block]], Counts],
    dataset: ImageDataset,
    config: CertificationConfig,
    description: Record,
    *,
    together: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Store the blocks that the run lacks as they are counted, and write its tables.

    Args:
        run: as `open_run` returns it.
        count: from blocks to what they gave, each with the number of its block, in any order.
        dataset, config, progress: as in `certify_dataset`.
        description: of the run.
        together: whether `count` gets blocks of all images and purifiers at once, each up to the next draw at which it
            may end; else those of one after the other.

    Raises:
        RuntimeError: `count` could not count a block; all images without such a block are certified before.
    """
    cases, opened, lost, done = _cases(dataset, config, description), list[_Case](), dict[_Case, Lost](), 0
    total = config.n * len(config.purifiers) * (config.plan.n0 + config.plan.n)
    for some in [list(cases)] if together else ([case] for case in cases):
        opened += some
        with closing(_draw(run, some, count)) as results:
            for case, result in results:
                if isinstance(result, Lost):
                    lost[case] = result
                    continue
                done += result
                if progress is not None:
                    progress(done, total)
    if lost:
        raise RuntimeError(_told(lost))
    table = _write(run.folder, pd.DataFrame([case.certificate for case in opened]), config)
    run.end()
    return table


def _draw(
    run: Run, cases: Sequence["_Case"], count: Callable[[Sequence[Block]], Counts]
) -> Generator[tuple["_Case", int | Lost], None, None]:
    """Give cases their blocks until all have ended or lost one; new records are stored.

    Yields:
        A case after each block, and how many more of its draws are done or no longer needed; or why it lost the block.
    """
    lost = set()
    while waiting := [(case, block) for case in cases if case not in lost for block in case.next_blocks]:
        missing = []
        for case, block in waiting:
            if run.missing([case.head(block)]):
                missing.append((case, block))
            else:
                yield case, case.add(run.records([case.head(block)])[0])
        with closing(count([block for _, block in missing])) as counts:
            for number, counted in counts:
                case, block = missing[number]
                if isinstance(counted, Lost):
                    lost.add(case)
                    yield case, counted
                    continue
                record = case.head(block) | counted._asdict()
                run.add([record])
                yield case, case.add(record)


def _told(lost: Mapping["_Case", Lost]) -> str:
    """The message that says which images have no certificate, and why."""
    reasons = [
        f"that of image {case.named['index']} by {case.named['purifier']} {why.reason}" for case, why in lost.items()
    ]
    return (
        f"{len(lost)} of the certificates could not be made: {'; '.join(reasons)}. The blocks of all others are "
        "stored, and the same command computes only these"
    )


@dataclass(eq=False)
class _Case:
    """An image behind a purifier, with the classes of its draws so far."""

    position: int  # of the image in the data set
    label: int
    named: Record  # the fields of `KEY` but for the first draw
    tally: Tally
    most: int  # draws of a block
    seconds: float = 0.0

    @property
    def next_blocks(self) -> list[Block]:
        """Up to the next draw at which the image may end; empty at its end."""
        draws, (image, purifier) = self.tally.next_draws(self.whole), (self.named["image"], self.named["purifier"])
        starts = range(draws.start, draws.stop, self.most)
        return [Block(self.position, image, purifier, draws[i - draws.start :][: self.most]) for i in starts]

    def head(self, block: Block) -> Record:
        """The fields that name the record of a block."""
        return self.named | {"first": block.draws.start}

    @property
    def whole(self) -> int:
        return self.tally.plan.n0 + self.tally.plan.n

    @property
    def done(self) -> int:
        """Draws so far, or no longer needed."""
        return self.tally.draws if self.tally.next_draws(self.whole) else self.whole

    def add(self, record: Record) -> int:
        """Count a block; returns how many more draws are done, or no longer needed."""
        before = self.done
        self.tally.add({int(label): count for label, count in record["classes"].items()})
        self.seconds += record["seconds"]
        return self.done - before

    @property
    def certificate(self) -> Record:
        radius, prediction = self.tally.radius, self.tally.prediction
        return self.named | {
            **{"label": self.label, "prediction": prediction, "abstained": radius == 0, "radius": radius},
            **{"correct": prediction == self.label, "draws": self.tally.draws, "seconds": round(self.seconds, 3)},
        }


def _cases(dataset: ImageDataset, config: CertificationConfig, description: Record) -> Iterator[_Case]:
    """Image by image, all purifiers of one after the other."""
    shared = {name: value for name, value in description.items() if name not in ("n", "purifiers")}
    hashes = {name: configuration_hash({**shared, name: held}) for name, held in description["purifiers"].items()}
    for position in dataset.first(config.n, config.seed).tolist():
        _, head = named_image(dataset, position)
        for name in config.purifiers:
            named = {"config": hashes[name], "purifier": name, **head}
            yield _Case(position, int(dataset.labels[position]), named, Tally(config.plan), config.block)


def describe_run(
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


def _write(folder: Path, certificates: pd.DataFrame, config: CertificationConfig) -> pd.DataFrame:
    sigma, targets = config.plan.sigma, config.plan.targets
    summary = summarise_certificates(certificates, sigma, targets)
    others = {"certificates": certificates.drop(columns=["config", "image"])}
    if len(config.purifiers) > 1:
        others["paired"] = paired_differences(certificates, sigma, targets)
    write_tables(folder, summary, **others)
    if summary["radius"].nunique() > 2:  # else a few targets, and no curve
        save_curve(folder / "certified_accuracy.png", summary)
    return summary
