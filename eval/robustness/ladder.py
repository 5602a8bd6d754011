"""The adaptive evaluation: a ladder of attacks that know the defence, and the worst case over its rungs.

A run writes into its folder `config.json` and `probe.json`, by which it is known again, one record per image and rung
to `records.jsonl` as it is made, and at its end `ladder.csv` and `ladder.json`. Killed, it goes on where it was, and
loses one batch at most. Rungs and images may be added.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from attacks.adaptive import COSTS, LADDER, SURROGATES, GradientAttack, Query, Rung
from dipdefense import DefendedClassifier
from dipdefense.digest import configuration_hash, describe, fingerprint
from dipdefense.fitting.problem import build_problem
from dipdefense.fitting.unroll import unroll_bytes
from eval.clock import clock
from eval.datasets import ImageDataset
from eval.peak_memory import peak_bytes
from eval.probe import Answers, probe, probe_images
from eval.records import Record, Run, made_with, write_whole
from eval.robustness.config import RunConfig, check_run, describe_purifier, describe_subject, identify
from eval.robustness.worst_case import QUERIES, tabulate

__all__ = ["AdaptiveConfig", "evaluate_adaptive"]

PROBED = 4  # images that a run's time is estimated by
# parts of the description that may change, and mappings that may gain entries, when a run is continued
FREE, GROWS = ("rungs", "n", "queries", "budget", "hashes"), ("ladder",)


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """Numbers of one run up the ladder.

    Raises:
        ValueError: an unknown rung or cost (the message lists the known ones), a number out of range.
    """

    # keys of LADDER; None stands for all that have the norm and need no other classifier
    rungs: Sequence[str] = None  # type: ignore[assignment]
    eps: float = 8 / 255  # radius of the ball, images in [0, 1]
    norm: str = "linf"
    # images a rung by its cost: the first so many of a seeded permutation
    n: dict[str, int] = field(default_factory=lambda: {"cheap": 1000, "gradient": 256, "unrolled": 32, "queries": 16})
    queries: int = 5000  # of square, nes and rays, an image
    seed: int = 0  # of the permutation and the attacks
    batch_size: int = 32
    budget: float = math.inf  # seconds that the run may take, by an estimate before it starts

    def __post_init__(self) -> None:
        RunConfig(eps=self.eps, norm=self.norm, attacks=(), seed=self.seed)  # refuses the same settings
        given: Any = self.rungs
        if given is None:
            able = tuple(name for name, rung in LADDER.items() if self.norm in rung.norms and name != "transfer")
            object.__setattr__(self, "rungs", able)
        for name in self.rungs:
            if name not in LADDER:
                raise ValueError(f"rungs must be among {', '.join(LADDER)}, got {name!r}")
            if self.norm not in LADDER[name].norms:
                raise ValueError(f"rungs must be attacks that have the norm {self.norm}, got {name}: leave it out")
        if not self.rungs or len(set(self.rungs)) < len(self.rungs):
            raise ValueError(f"rungs must be one or more, each once, got {', '.join(self.rungs) or 'none'}")
        if set(self.n) != set(COSTS):
            raise ValueError(f"n must name each of the costs {', '.join(COSTS)} and no other, got {', '.join(self.n)}")
        if min(*self.n.values(), self.batch_size, self.queries) < 1:
            raise ValueError(
                f"n, queries and batch_size must be at least 1, got {self.n}, {self.queries} and {self.batch_size}"
            )
        if not self.budget > 0:
            raise ValueError(f"budget must be positive, in seconds, got {self.budget}")

    def rung(self, name: str) -> Rung | None:
        """The attack of a name, with this run's numbers; None for `clean`."""
        attack = LADDER.get(name)
        return replace(attack, queries=self.queries) if isinstance(attack, Query) else attack

    def images(self, rung: str) -> int:
        """How many images a rung gets; clean images as many as the largest of them."""
        return max(map(self.images, self.rungs)) if rung == "clean" else self.n[LADDER[rung].cost]


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
        defended: the defence. With `Purifier(seed=None)` it draws at every query: then each example is asked about five
            times, and counts as broken where the majority is wrong; the attacks draw seeds of their own.
        dataset: labelled images.
        config: numbers of the run; `AdaptiveConfig()` if None.
        out: folder of the run, made if missing.
        source: the classifier that examples of the rung `transfer` are made on.
        classifier_name: for the record; the class name if None.
        device: where the classifier is and the images go.
        progress: called with (records made, records in all) after every batch.

    Returns:
        The table, see `tabulate`.

    Raises:
        ValueError: more images than there are, what `evaluate_robustness` refuses of a classifier, `transfer` without
            a source, a run that by its estimate exceeds the budget, an unrolled fit that exceeds `memory_gb`, a
            folder that holds another run.
        OSError: the folder cannot be written.
    """
    config = config or AdaptiveConfig()
    if "transfer" in config.rungs and source is None:
        raise ValueError("source must be another classifier where examples transfer: give one, or leave transfer out")
    check_run(defended.classifier, dataset, RunConfig(n=config.images("clean"), attacks=()), device)
    _check_rungs(defended, dataset, config)
    _check_memory(defended, dataset, config, device)
    described = _description(defended, dataset, config, source, classifier_name, device)
    keys = described["hashes"]
    probes = _probes(defended, dataset, source if "transfer" in config.rungs else None, device)
    run = Run(out, ("config", "rung", "index", "image"), described, free=FREE, grows=GROWS, probes=probes)
    tasks = _tasks(dataset, config, keys)
    left = [task for task in tasks if run.missing(task[2])]
    _check_budget(defended, dataset, config, left, device)
    run.begin()
    total = sum(len(heads) for _, _, heads in tasks)
    done = total - sum(len(heads) for _, _, heads in left)
    for rung, positions, heads in left:
        images, labels = dataset.batch(positions).to(device), dataset.labels[positions].to(device)
        answers = _attack(rung, defended, images, labels, config, source)
        run.add([head | answer for head, answer in zip(heads, answers, strict=True)])
        done += len(positions)
        if progress is not None:
            progress(done, total)
    table = tabulate(run.records(head for _, _, heads in tasks for head in heads), described, config.rung)
    write_whole(run.folder / "ladder.csv", table.to_csv(index=False))
    write_whole(run.folder / "ladder.json", table.to_json(orient="records", indent=2) + "\n")
    return table


Task = tuple[str, list[int], list[Record]]  # rung, positions in the data set, what names these images in records


def _tasks(dataset: ImageDataset, config: AdaptiveConfig, keys: Mapping[str, str]) -> list[Task]:
    """Batches of images for each rung, the clean ones first."""
    order = dataset.first(len(dataset), config.seed).tolist()
    tasks: list[Task] = []
    for rung in ("clean", *config.rungs):
        for start in range(0, config.images(rung), config.batch_size):
            positions = order[start : min(start + config.batch_size, config.images(rung))]
            images, labels = dataset.batch(positions), dataset.labels[positions]
            rows = identify(images, labels, dataset.index[positions])
            tasks.append((rung, positions, [{"config": keys[rung], "rung": rung} | row for row in rows]))
    return tasks


def _attack(
    rung: str,
    defended: DefendedClassifier,
    images: Tensor,
    labels: Tensor,
    config: AdaptiveConfig,
    source: nn.Module | None,
) -> list[Record]:
    """Attack a batch, and ask the defence about it."""
    start = clock(images.device)
    attacked = images
    attack = config.rung(rung)
    if attack is not None:
        attacked = attack(defended, images, labels, eps=config.eps, norm=config.norm, seed=config.seed, source=source)
    seconds = (clock(images.device) - start) / len(images)
    answers = _ask(defended, attacked, labels)
    answers["seconds"] = [round(seconds, 4)] * len(images)
    answers["peak_gb"] = [round(peak_bytes(images.device) / 2**30, 3)] * len(images)
    return [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]


@torch.no_grad()
def _ask(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> dict[str, list[Any]]:
    """Is each answer right, and the mean detection score: of one query where the seed is fixed, else of five."""
    times = 1 if defended.purifier.seed is not None else QUERIES
    verdicts = [defended.judge(images) for _ in range(times)]
    right = torch.stack([verdict.logits.argmax(1) == labels for verdict in verdicts], 1)
    score = torch.stack([verdict.scores for verdict in verdicts]).mean(0)
    return {"label": labels.tolist(), "right": right.tolist(), "score": score.tolist()}


def _check_budget(
    defended: DefendedClassifier,
    dataset: ImageDataset,
    config: AdaptiveConfig,
    left: list[Task],
    device: str | torch.device,
) -> None:
    """Refuse a run that would take longer than it may, by an estimate from one small batch a rung."""
    if math.isinf(config.budget) or not left:
        return
    positions = left[0][1][:PROBED]
    images, labels = dataset.batch(positions).to(device), dataset.labels[positions].to(device)
    needed: dict[str, float] = {}
    for rung in dict.fromkeys(rung for rung, _, _ in left):
        n = sum(len(positions) for name, positions, _ in left if name == rung)
        needed[rung] = n * _seconds(defended, images, labels, config.rung(rung), config)
    total = math.ceil(sum(needed.values()))
    if total > config.budget:
        dearest = max(needed, key=needed.__getitem__)
        raise ValueError(
            f"budget must be at least {total} seconds for this ladder, got {config.budget:g}: raise it, leave rungs "
            f"out, or lower n; {dearest} takes {math.ceil(needed[dearest])} of them"
        )


def _seconds(
    defended: DefendedClassifier, images: Tensor, labels: Tensor, rung: Rung | None, config: AdaptiveConfig
) -> float:
    """Seconds that a rung takes an image at most, by one call of it."""
    start = clock(images.device)
    with torch.no_grad():
        defended.judge(images)
    once = clock(images.device) - start
    asked = once * (1 if defended.purifier.seed is not None else QUERIES)
    start = clock(images.device)
    if isinstance(rung, GradientAttack):
        climbed = rung.objective(defended, labels, rung.seeds(defended, config.seed))
        climbed(images, torch.arange(len(images), device=images.device))
        attacked = (clock(images.device) - start) * rung.calls / rung.samples
    else:
        attacked = once * (0 if rung is None else rung.calls)
    return (asked + attacked) / len(images)


def _check_rungs(defended: DefendedClassifier, dataset: ImageDataset, config: AdaptiveConfig) -> None:
    """Refuse a rung that could not attack these images."""
    for name in config.rungs:
        rung = config.rung(name)
        assert rung is not None  # which `clean` alone is
        try:
            rung.check(dataset.batch([0]), config.norm, draws=defended.purifier.seed is None)
        except ValueError as error:
            raise ValueError(f"rung {name}: {error}") from error


def _check_memory(
    defended: DefendedClassifier, dataset: ImageDataset, config: AdaptiveConfig, device: str | torch.device
) -> None:
    """Refuse an unrolled fit of a single image that exceeds the fit's own memory."""
    if not any(LADDER[name].cost == "unrolled" for name in config.rungs):
        return
    images = dataset.batch([0]).to(device)
    purifier, decision = defended.plan(images)
    fit = purifier.config_for(images)
    classified = decision.iterations_of(fit.iterations)
    steps = max(*classified, *decision.residuals, 1) if classified else fit.iterations
    tile = purifier.tile_for(images)
    piece = images if tile is None else images[..., :tile, :tile]
    needed = unroll_bytes(build_problem(piece, fit, 0, None, None, None), steps) / 2**30
    if needed > fit.memory_gb:
        raise ValueError(
            f"memory_gb of the fit must be at least {needed:.3f} to unroll its {steps} steps, got {fit.memory_gb}: "
            "raise it, or leave out the unrolled rungs"
        )


def _description(
    defended: DefendedClassifier,
    dataset: ImageDataset,
    config: AdaptiveConfig,
    source: nn.Module | None,
    classifier_name: str | None,
    device: str | torch.device,
) -> dict[str, Any]:
    """All that a figure depends on, in plain values; `hashes` name what the records of a rung share."""
    example = dataset.batch([0])
    purifier, decision = defended.plan(example)
    described = {
        "run": "evaluate --adaptive",
        **asdict(config),
        "budget": None if math.isinf(config.budget) else config.budget,
        **describe_subject(defended.classifier, classifier_name, dataset),
        **describe_purifier(purifier, example),
        "decision": describe(decision),
        "gradient": describe(defended.gradient),
        "device": str(device),
        **made_with("dipdefense", "torch", "torchattacks", "pyautoattack"),
    }
    fixed = {name: value for name, value in described.items() if name not in FREE}
    ladder = {name: _settings(name, rung, source) for name in config.rungs if (rung := config.rung(name))}
    rungs = {"clean": None, **ladder}
    hashes = {name: configuration_hash(fixed | {"rung": settings}) for name, settings in rungs.items()}
    return described | {"ladder": ladder, "hashes": hashes}


def _settings(name: str, rung: Rung, source: nn.Module | None) -> dict[str, Any]:
    """All that a rung does, in plain values: its class and fields, what a gradient's name stands for, the source."""
    settings = {field: value if field != "gradient" else SURROGATES[value] for field, value in vars(rung).items()}
    plain = {field: value if isinstance(value, int | float) else describe(value) for field, value in settings.items()}
    held = {"source": fingerprint(source)} if name == "transfer" and source is not None else {}
    return {"attack_code": describe(type(rung)), **plain, **held}


def _probes(
    defended: DefendedClassifier, dataset: ImageDataset, source: nn.Module | None, device: str | torch.device
) -> dict[str, Answers]:
    """What the bare classifiers answer: with another number of threads a fit may end elsewhere."""
    asked = {"classifier": defended.classifier} | ({} if source is None else {"source": source})
    images = probe_images(dataset).to(device)
    return {name: probe(net, images) for name, net in asked.items()}
