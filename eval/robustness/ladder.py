"""The adaptive evaluation: a ladder of attacks that know the defence, as cells of one experiment.

Besides its records a run writes `summary.csv` and `summary.json` into its folder, with the worst case over the rungs.
Rungs and images may be added. A killed run loses at most one batch of a rung.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.adaptive import COSTS, LADDER, SURROGATES, Ensemble, GradientAttack, Oblivious, Query, Rung
from dipdefense import DefendedClassifier
from dipdefense.arguments import check_integer, check_known, check_positive
from dipdefense.digest import describe, fingerprint
from dipdefense.fitting.problem import build_problem
from dipdefense.fitting.unroll import unroll_bytes
from dipdefense.fitting.workers import memory_budget
from eval.cost import clock
from eval.datasets import ImageDataset
from eval.records import Run
from eval.robustness.config import AttackConfig, check_names
from eval.robustness.experiment import Cell, Experiment, run_experiment, write_tables
from eval.robustness.ladder_table import tabulate
from eval.robustness.scored_defences import Defended, Setting, Verdict, name_of

__all__ = ["AdaptiveConfig", "evaluate_adaptive"]

PROBED = 4  # number of images for the estimate of a run's time


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(AttackConfig):
    """Settings of one run of the ladder.

    Raises:
        TypeError: rungs that are no sequence of names, an `n` that is no mapping.
        ValueError: an unknown rung or cost (the message lists the known ones), a number of another type or out of
            range.
    """

    rungs: Sequence[str] | None = None  # keys of LADDER; None: all that have the norm and need no other classifier
    # cost of a rung -> number of images, the first of a seeded permutation
    n: dict[str, int] = field(default_factory=lambda: {"cheap": 1000, "gradient": 256, "unrolled": 32, "queries": 16})
    queries: int = 5000  # of square, nes and rays, for each image
    votes: int = 5  # answers of a defence that draws its seed, whose majority counts
    batch_size: int = 32
    budget: float = math.inf  # seconds that the run may take, by an estimate before it starts

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names("rungs", self.rungs)
        for name in self.chosen_rungs:
            check_known("rungs", name, LADDER, several=True)
            if self.norm not in LADDER[name].norms:
                raise ValueError(f"rungs must be attacks that have the norm {self.norm}, got {name}: leave it out")
        if not self.chosen_rungs:
            raise ValueError("rungs must be one or more, got none")
        if not isinstance(self.n, dict):
            raise TypeError(f"n must be a mapping of the costs {', '.join(COSTS)} to images, got {self.n!r}")
        if set(self.n) != set(COSTS):
            names = ", ".join(map(str, self.n))
            raise ValueError(f"n must name each of the costs {', '.join(COSTS)} and no other, got {names}")
        for cost, count in self.n.items():
            check_integer(f"n of {cost}", count, 1)
        check_integer("queries", self.queries, 1)
        check_integer("votes", self.votes, 1)
        if self.budget != math.inf:
            check_positive("budget", self.budget)

    @property
    def chosen_rungs(self) -> tuple[str, ...]:
        """The names of the rungs; if none are given, all that have the norm and need no other classifier."""
        able = (name for name, rung in LADDER.items() if self.norm in rung.norms and name != "transfer")
        return tuple(able if self.rungs is None else self.rungs)

    def rung(self, name: str) -> Rung:
        """The attack of that name, with this run's settings."""
        attack = LADDER[name]
        return replace(attack, queries=self.queries) if isinstance(attack, Query) else attack


def evaluate_adaptive(
    defended: DefendedClassifier,
    dataset: ImageDataset,
    config: AdaptiveConfig | None = None,
    *,
    out: str | Path,
    source: nn.Module | None = None,
    classifier_name: str | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Attack a defended classifier by each rung of the ladder.

    Args:
        defended: the defence. With `Purifier(seed=None)` it draws a seed at every query. Each example then gets
            `config.votes` queries, and counts as broken if half of the answers or more are wrong; the attacks draw
            their own seeds. With a `NoisyPurifier` these are the votes of a smoothed classifier.
        dataset: labelled images.
        config: settings of the run; `AdaptiveConfig()` if None.
        out: folder of the run, made if missing.
        source: the classifier on which the rung `transfer` crafts its examples.
        classifier_name: for the record; the class name if None.
        device: where the classifier is and the images go.
        progress: called with (records made, records in all) after every batch of a rung.

    Returns:
        The table, see `eval.robustness.ladder_table.tabulate`.

    Raises:
        ValueError: more images than the data set has, a classifier that `evaluate_robustness` refuses, `transfer`
            without a source, a run whose estimated time exceeds the budget, an unrolled fit that exceeds `memory_gb`, a
            folder that holds another run.
        OSError: the folder cannot be written.
    """
    config = config or AdaptiveConfig()
    rungs = {name: config.rung(name) for name in config.chosen_rungs}
    if "transfer" in rungs and source is None:
        raise ValueError("source must be another classifier where examples transfer: give one, or leave transfer out")
    experiment = Experiment(
        kind="ladder",
        classifier=defended.classifier,
        dataset=dataset,
        config=config,
        cells=_cells(defended, rungs, config, source),
        attacks={name: _settings(name, rung, source) for name, rung in rungs.items()},
        further={"gradient": describe(defended.gradient)},
        free=("n",),
        probed={"source": source} if "transfer" in rungs and source is not None else {},
        classifier_name=classifier_name,
        device=device,
    )
    _check_rungs(defended, dataset, rungs, config.norm)
    _check_memory(defended, dataset, rungs, device)
    run = experiment.open(out)
    _check_budget(defended, experiment, rungs, run)
    run.begin()
    records = run_experiment(experiment, run, progress=progress)
    table = tabulate(records, experiment.description, rungs)
    write_tables(run.folder, table)
    run.end()
    return table


@dataclass(frozen=True)
class Queried(Defended):
    """A defended classifier that is queried once if its seed is fixed, else several times; each query is a setting."""

    votes: int = 1  # queries of a defence that draws its seed

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`; the strength is the number of the query."""
        return [Setting(self.name, query) for query in range(_queries(self.defended, self.votes))]

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        return {setting: next(iter(super(Queried, self).__call__(images).values())) for setting in self.settings}


def _queries(defended: DefendedClassifier, votes: int) -> int:
    """How often an example is put to the defence."""
    return 1 if defended.purifier.seed is not None else votes


def _cells(
    defended: DefendedClassifier, rungs: dict[str, Rung], config: AdaptiveConfig, source: nn.Module | None
) -> list[Cell]:
    """The cell of the clean images, as many as the largest rung gets, and a cell for each rung."""
    methods, n = (
        [Queried(name_of(defended), defended, votes=config.votes)],
        {name: config.n[rung.cost] for name, rung in rungs.items()},
    )
    given: dict[str, Any] = {"eps": config.eps, "norm": config.norm, "seed": config.seed, "source": source}
    cells = [Cell("clean", "", 0.0, "", max(n.values()), methods)]
    for name, rung in rungs.items():
        crafted_on = "bare" if isinstance(rung, Oblivious) else "defended"
        cells.append(
            Cell(name, crafted_on, config.eps, _gradient(rung), n[name], methods, partial(rung, defended, **given))
        )
    return cells


def _gradient(rung: Rung) -> str:
    """The name of the gradient that a rung uses."""
    if isinstance(rung, GradientAttack):
        return rung.gradient
    return "exact" if isinstance(rung, Oblivious) else "straight_through" if isinstance(rung, Ensemble) else "none"


def _check_budget(defended: DefendedClassifier, experiment: Experiment, rungs: dict[str, Rung], run: Run) -> None:
    """Raise if the run would exceed its budget, by an estimate from one small batch for each rung."""
    config = experiment.config
    assert isinstance(config, AdaptiveConfig)
    if math.isinf(config.budget):
        return
    left = experiment.missing(run)
    dataset, positions = experiment.dataset, experiment.dataset.first(PROBED, config.seed)
    images, labels = dataset.batch(positions.tolist()), dataset.labels[positions]
    images, labels = images.to(experiment.device), labels.to(experiment.device)
    needed = {name: n * _seconds(defended, images, labels, rungs.get(name), config) for name, n in left.items()}
    total = math.ceil(sum(needed.values()))
    if total > config.budget:
        costliest = max(needed, key=needed.__getitem__)
        raise ValueError(
            f"budget must be at least {total} seconds for this ladder, got {config.budget:g}: raise it, leave rungs "
            f"out, or lower n; {costliest} takes {math.ceil(needed[costliest])} of them"
        )


def _seconds(
    defended: DefendedClassifier, images: Tensor, labels: Tensor, rung: Rung | None, config: AdaptiveConfig
) -> float:
    """The most seconds that a rung takes per image, estimated from one query, or one step of a gradient attack."""
    start = clock(images.device)
    with torch.no_grad():
        defended.judge(images)
    once = clock(images.device) - start
    answering = once * _queries(defended, config.votes)
    start = clock(images.device)
    if isinstance(rung, GradientAttack):
        goal = rung.objective(defended, labels, rung.seeds(defended, config.seed))
        goal(images, torch.arange(len(images), device=images.device))
        attacked = (clock(images.device) - start) * rung.calls / rung.samples
    else:
        attacked = once * (0 if rung is None else rung.calls)
    return (answering + attacked) / len(images)


def _check_rungs(defended: DefendedClassifier, dataset: ImageDataset, rungs: dict[str, Rung], norm: str) -> None:
    """Raise if a rung cannot attack these images."""
    for name, rung in rungs.items():
        try:
            rung.check(dataset.batch([0]), norm, draws=defended.purifier.seed is None)
        except ValueError as error:
            raise ValueError(f"rung {name}: {error}") from error


def _check_memory(
    defended: DefendedClassifier, dataset: ImageDataset, rungs: dict[str, Rung], device: str | torch.device
) -> None:
    """Raise if the unrolled fit of a single image exceeds the memory budget of the fit."""
    if not any(rung.cost == "unrolled" for rung in rungs.values()):
        return
    images = dataset.batch([0]).to(device)
    purifier, decision = defended.plan(images)
    fit = purifier.config_for(images)
    classified = decision.iterations_of(fit.iterations)
    steps = max(*classified, *decision.scored_iterations, 1) if classified else fit.iterations
    tile = purifier.tile_for(images)
    piece = images if tile is None else images[..., :tile, :tile]
    needed = unroll_bytes(build_problem(piece, fit, 0, None, None, None), steps) / 2**30
    budget = memory_budget(fit.memory_gb, images.device)
    if needed > budget:
        raise ValueError(
            f"memory_gb of the fit must be at least {needed:.3f} to unroll its {steps} steps, got {budget:.4g}: "
            "raise it, or leave out the unrolled rungs"
        )


def _settings(name: str, rung: Rung, source: nn.Module | None) -> dict[str, Any]:
    """Everything that defines a rung, in plain values: its class and fields, the gradient of that name, the source."""
    settings = {field: value if field != "gradient" else SURROGATES[value] for field, value in vars(rung).items()}
    plain = {field: value if isinstance(value, int | float) else describe(value) for field, value in settings.items()}
    held = {"source": fingerprint(source)} if name == "transfer" and source is not None else {}
    return {"attack_code": describe(type(rung)), **plain, **held}
