"""Many defences over their strengths on identical adversarial examples: cells of one experiment, tables and curves.

Besides its records a run writes `summary.csv`, `summary.json`, `paired.csv`, `roc.csv`, `curves.png` and `roc.png` into
its folder. Methods, attacks and radii may be added. The attacks know the bare classifier alone, so no figure shows
robustness against an adaptive attack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from attacks import MINIMUM_NORM
from dipdefense.arguments import check_finite
from eval.datasets import ImageDataset
from eval.robustness.comparison_plots import save_curves, save_rocs
from eval.robustness.config import RunConfig, check_radius, craft, describe_attacks
from eval.robustness.detection import detection_table
from eval.robustness.experiment import Cell, Experiment, run_experiment, write_tables
from eval.robustness.scored_defences import Method, Setting
from eval.robustness.summary import paired_differences, summarise

__all__ = ["FURTHER", "ComparisonConfig", "benchmark_defence"]

FURTHER = ("strength", "attack_seconds", "peak_gb")  # columns of the table besides those of every run


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(RunConfig):
    """Settings of one comparison. Its attacks are untargeted, and crafted on the bare classifier.

    Raises:
        TypeError: as `RunConfig`.
        ValueError: as `RunConfig`; attacks that are targeted, crafted on the defended model or without a radius; no
            radius, one twice, or one out of range.
    """

    radii: Sequence[float] | None = None  # of the attacks; that of `eps` alone if None
    baseline: tuple[str, float] | None = None  # method and strength that all others are compared with; None: the first

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crafted_on != "bare" or self.targeted:
            raise ValueError("config must have untargeted attacks, crafted on the bare classifier")
        if without := MINIMUM_NORM.keys() & set(self.chosen_attacks):
            raise ValueError(f"attacks must have a radius: leave out {', '.join(sorted(without))}")
        if self.radii is not None:
            if not isinstance(self.radii, tuple | list):
                raise ValueError(f"radii must be one or more numbers, got {self.radii!r}")
            for radius in self.radii:
                check_radius("radii", radius, self.norm)
            object.__setattr__(self, "radii", tuple(map(float, self.radii)))  # JSON has lists only
        radii = self.chosen_radii
        if not radii or len(set(radii)) < len(radii):
            raise ValueError(f"radii must be one or more, each once, got {', '.join(map(str, radii)) or 'none'}")
        if self.baseline is not None:
            named: list[Any] = list(self.baseline) if isinstance(self.baseline, tuple | list) else []
            if len(named) != 2 or not isinstance(named[0], str):
                raise ValueError(f"baseline must be the name of a method and a strength, got {self.baseline!r}")
            check_finite("baseline", named[1])
            object.__setattr__(self, "baseline", (named[0], named[1]))

    @property
    def chosen_radii(self) -> tuple[float, ...]:
        """The radii of the attacks."""
        return (self.eps,) if self.radii is None else tuple(self.radii)


def benchmark_defence(
    classifier: nn.Module,
    dataset: ImageDataset,
    methods: Sequence[Method],
    config: ComparisonConfig | None = None,
    *,
    out: str | Path,
    classifier_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Score methods on clean images and on adversarial images crafted on the bare classifier, the same for all.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode, on `device`.
        dataset: labelled images.
        methods: those that are compared, see `eval.robustness.scored_defences.Method`.
        config: settings of the run; `ComparisonConfig()` if None.
        out: folder of the run, made if missing.
        classifier_name: for config.json; the class name if None.
        device: where the classifier is and the images go.
        progress: called with (records made, records in all) after every batch, attack and method.

    Returns:
        One row per attack, radius and setting of a method: the columns of `eval.robustness.summary.summarise`, then
        `strength` and the cost of the attack (seconds per image, and peak memory).

    Raises:
        ValueError: no method, two with one setting, a baseline that is none of them, a method whose logits or scores
            are not finite or not (B, K) and (B,), or a classifier, data set or folder that `evaluate_robustness`
            refuses.
        OSError: the folder cannot be written.
    """
    config = config or ComparisonConfig()
    settings = _checked_settings(methods)
    baseline = settings[0] if config.baseline is None else Setting(*config.baseline)
    if baseline not in settings:
        raise ValueError(f"baseline must be a setting of the methods, such as {tuple(settings[0])}, got {baseline}")
    experiment = Experiment(
        kind="benchmark defence",
        classifier=classifier,
        dataset=dataset,
        config=config,
        cells=_cells(classifier, methods, config),
        attacks=describe_attacks(config.chosen_attacks),
        free=("eps", "baseline"),  # the radii replace eps
        classifier_name=classifier_name,
        device=device,
    )
    run = experiment.open(out)
    run.begin()
    records = run_experiment(experiment, run, progress=progress)
    table, roc = summarise(records, experiment.description, FURTHER), detection_table(records)
    write_tables(run.folder, table, paired=paired_differences(records, baseline), roc=roc)
    if attacks := config.chosen_attacks:
        shown = "pgd" if "pgd" in attacks else attacks[-1]
        save_curves(run.folder / "curves.png", table, shown)
        save_rocs(run.folder / "roc.png", records, roc, shown)
    run.end()
    return table


def _checked_settings(methods: Sequence[Method]) -> list[Setting]:
    settings = [setting for method in methods for setting in method.settings]
    if not settings:
        raise ValueError("methods must be at least one, got none")
    twice = next((setting for setting in settings if settings.count(setting) > 1), None)
    if twice is not None:
        raise ValueError(f"methods must have each setting once, got {tuple(twice)} twice")
    return settings


def _cells(classifier: nn.Module, methods: Sequence[Method], config: ComparisonConfig) -> list[Cell]:
    """Every method on the clean images, then under each attack at each radius."""
    cells = [Cell("clean", "", 0.0, "", config.n, methods)]
    for attack in config.chosen_attacks:
        for eps in config.chosen_radii:
            crafted = partial(craft, attack, classifier, config=replace(config, eps=eps))
            cells.append(Cell(attack, "bare", eps, "exact", config.n, methods, crafted))
    return cells
