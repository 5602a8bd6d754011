"""Accuracy of a classifier, bare and defended, on clean and attacked images: one resumable run, one table.

A run writes into its folder `config.json` and `probe.json`, by which it is known again, one record per image and row
to `records.jsonl` as it is made, and at its end `summary.csv`, `summary.json` and `paired.csv`. Killed, it goes on
where it was. Attacks may be added, those on the defended model too; what changes another figure needs another folder.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from dipdefense import Decision, Purifier
from eval.datasets import ImageDataset
from eval.records import Record, Run, write_whole
from eval.robustness.cells import FREE, GROWS, KEY, Defence, Scoring
from eval.robustness.config import RunConfig
from eval.robustness.summary import ROW, paired_differences, summarise

__all__ = ["begin", "evaluate_robustness", "finish"]


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
    each: Callable[[pd.DataFrame], None] | None = None,
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
        each: called with each row of the table, a frame of its own, as soon as all its images are scored.

    Returns:
        The table, one row per attack and defence; columns as in `eval.summary.summarise`.

    Raises:
        ValueError: more images asked for than there are; a classifier in training mode, with other classes than
            the data set, or whose logits are not finite or not (B, K); a filter named `none` or `dip`; a folder that
            holds another run.
        OSError: the folder cannot be written.
    """
    run = Scoring(
        classifier,
        dataset,
        config,
        purifier=purifier,
        decision=decision,
        gradient=gradient,
        filters=filters,
        classifier_name=classifier_name,
        device=device,
    )
    made = begin(run, Path(out))
    records: list[Record] = []
    left = Counter(record[:3] for start in run.starts for record in run.rows(start))  # of each row of the table
    total = left.total()
    for start in run.starts:
        for rows, fresh in run.batch(start, made):
            records += rows
            if fresh and progress is not None:
                progress(len(records), total)
            if rows and each is not None:
                row = tuple(rows[0][field] for field in ROW)
                left[row] -= len(rows)
                if left[row] == 0:
                    each(summarise([r for r in records if row == tuple(r[field] for field in ROW)], run.description))
    return finish(run, Path(out), records)


def begin(run: Scoring, out: Path) -> Run:
    """Make the folder of a run, or find it; the records that it holds already."""
    made = Run(out, KEY, run.description, free=FREE, grows=GROWS, probes=run.probes())
    made.begin()
    return made


def finish(run: Scoring, out: Path, records: list[Record]) -> pd.DataFrame:
    """The table of a run, written and returned."""
    table = summarise(records, run.description)
    write_whole(out / "summary.csv", table.to_csv(index=False))
    write_whole(out / "summary.json", table.to_json(orient="records", indent=2) + "\n")
    write_whole(out / "paired.csv", paired_differences(records).to_csv(index=False))
    return table
