"""Accuracy of a classifier, bare and defended, on clean and attacked images: cells of one experiment.

Besides its records a run writes `summary.csv`, `summary.json` and `paired.csv` into its folder. Filters and attacks,
also on the defended model, may be added later. A setting that changes other figures needs another folder.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks import MINIMUM_NORM
from dipdefense import Decision, DefendedClassifier, Purifier
from dipdefense.digest import describe
from eval.datasets import ImageDataset
from eval.records import Record, Run
from eval.robustness.config import CRAFTED_ON, RunConfig, craft, describe_attacks
from eval.robustness.experiment import Cell, Experiment, run_experiment, write_tables
from eval.robustness.scored_defences import Defended, Filter, Filtered, Method, name_of
from eval.robustness.summary import paired_differences, summarise

__all__ = ["evaluate", "evaluate_robustness", "evaluation", "finish"]


def evaluate_robustness(
    classifier: nn.Module,
    dataset: ImageDataset,
    config: RunConfig | None = None,
    *,
    out: str | Path,
    purifier: Purifier | None = None,
    decision: Decision | str | None = None,
    gradient: str = "straight_through",
    filters: Mapping[str, Filter] | None = None,
    classifier_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
    each: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Score a classifier bare, behind the purifier and behind filters, on identical images.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode, on `device`.
        dataset: labelled images; with `config.targeted` the labels are the targets, and accuracy is the share of images
            that are classified as their target.
        config: settings of the evaluation; `RunConfig()` if None.
        out: folder of the run, made if missing.
        purifier: the fit of the defence, which is called `dip` in the table, or by the name of its class if that is
            derived from `Purifier`; `Purifier(seed=config.seed)` if None.
        decision: that of the defence; None as in `DefendedClassifier`.
        gradient: gradient of the fit for attacks that are crafted on the defended model, see `Purifier`.
        filters: further defences by name, scored on the images crafted on the bare classifier.
        classifier_name: for the table; the class name if None.
        device: where the classifier is and the images go.
        progress: called with (records made, records in all) after every batch and row.
        each: called with each row of the table, as a data frame, as soon as all its images are scored.

    Returns:
        The table, one row per attack and defence; columns as in `eval.robustness.summary.summarise`.

    Raises:
        ValueError: `n` above the number of images; a classifier in training mode, with other classes than the data set,
            or whose logits are not finite or not (B, K); a filter with the name of a defence; a folder that holds
            another run.
        OSError: the folder cannot be written.
    """
    config = config or RunConfig()
    defended = DefendedClassifier(
        classifier, purifier or Purifier(seed=config.seed), gradient=gradient, decision=decision
    )
    experiment = evaluation(
        defended, dataset, config, filters=filters or {}, classifier_name=classifier_name, device=device
    )
    return evaluate(experiment, out, progress=progress, each=each)


def evaluate(experiment: Experiment, out: str | Path, **reports: Any) -> pd.DataFrame:
    """Run an `evaluation` in a folder, write its table and return it; `reports` as in `run_experiment`."""
    run = experiment.open(out)
    run.begin()
    return finish(experiment, run, run_experiment(experiment, run, **reports))


def finish(experiment: Experiment, run: Run, records: list[Record]) -> pd.DataFrame:
    """The table of an evaluation, written and returned; the run ends."""
    table = summarise(records, experiment.description)
    write_tables(run.folder, table, paired=paired_differences(records))
    run.end()
    return table


def evaluation(
    defended: DefendedClassifier,
    dataset: ImageDataset,
    config: RunConfig,
    *,
    filters: Mapping[str, Filter],
    **subject: Any,
) -> Experiment:
    """The cells of `evaluate_robustness`; `subject` are further fields of the experiment."""
    classifier, defence = defended.classifier, Defended(name_of(defended), defended)
    if taken := {"none", "dip", "smooth", defence.name} & filters.keys():
        raise ValueError(f"filters must not be named {', '.join(taken)}")
    if defended.gradient == "none" and config.crafted_on != "bare" and config.chosen_attacks:
        raise ValueError("gradient must not be none if attacks are crafted on the defended model")
    none, *behind = (
        Filtered(name, classifier, function, detects=False) for name, function in {"none": None, **filters}.items()
    )
    methods: list[Method] = [none, defence, *behind]
    gradient = describe(defended.gradient)
    cells = [Cell("clean", "", 0.0, "", config.n, methods)]
    for crafted_on in CRAFTED_ON[config.crafted_on]:
        attacks, of, target, n, seen = config.chosen_attacks, methods, classifier, config.n, "exact"
        if crafted_on == "defended":  # filters are never attacked
            attacks = attacks if config.attacks_defended is None else tuple(config.attacks_defended)
            of, target, n, seen = [defence], defended, min(config.n, config.n_defended or config.n), gradient
        for attack in attacks:
            crafted = partial(craft, attack, target, config=config)
            eps = None if attack in MINIMUM_NORM else config.eps
            cells.append(Cell(attack, crafted_on, eps, seen, n, of, crafted))
    return Experiment(
        kind="evaluate",
        classifier=classifier,
        dataset=dataset,
        config=config,
        cells=cells,
        attacks=describe_attacks(config.chosen_attacks),
        further={"gradient": gradient},
        probed={
            f"filter {name}": partial(_classify_filtered, classifier, function)
            for name, function in filters.items()
            if not _fits(function)
        },
        **subject,
    )


def _fits(function: Filter) -> bool:
    """Whether a filter is, or contains, a purifier.

    The result of a fit may change with the number of threads, so such a filter is identified by its code and settings
    instead of its answers.
    """
    return isinstance(function, nn.Module) and any(isinstance(module, Purifier) for module in function.modules())


def _classify_filtered(classifier: nn.Module, function: Filter, images: Tensor) -> Tensor:
    logits: Tensor = classifier(function(images))
    return logits
