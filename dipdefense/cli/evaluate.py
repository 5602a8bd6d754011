"""The command `dipdefense evaluate`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dipdefense.cli.options import (
    Address,
    Attacks,
    AttackSteps,
    BatchSize,
    ClassifierSpec,
    ConfigFile,
    Count,
    Cpus,
    DataPath,
    DatasetName,
    Device,
    Engine,
    Eps,
    Gpus,
    GradientName,
    Index,
    Norm,
    RunFolder,
    Seed,
    Weights,
    Workers,
    cluster_of,
    device_named,
    fit_config,
    given,
    index_range,
    load,
    names,
    number,
)
from dipdefense.cli.shown import note, print_accuracies, print_frame, progress_bar
from dipdefense.defence.classifier import DefendedClassifier
from dipdefense.defence.purifier import Purifier
from dipdefense.distributed import Cluster

__all__ = ["evaluate"]


SCORING = ("attacks", "filters", "alpha", "steps", "crafted_on", "gradient", "n", "n_defended", "gallery")
CLIMBING = ("rungs", "images", "queries", "fresh", "source", "source_weights", "budget")


def evaluate(
    context: typer.Context,
    dataset: DatasetName = "digits",
    data: DataPath = None,
    classifier: ClassifierSpec = "digits_cnn",
    weights: Weights = None,
    attacks: Attacks = None,
    filters: Annotated[str, typer.Option(help="Comma-separated cheap filters beside the defence.")] = "",
    norm: Norm = "linf",
    eps: Eps = "8/255",
    alpha: Annotated[str | None, typer.Option(help="Step size; eps / 4 by default.")] = None,
    steps: AttackSteps = 20,
    crafted_on: Annotated[str, typer.Option(help="bare, defended or both.")] = "bare",
    gradient: GradientName = "straight_through",
    n: Count = 100,
    n_defended: Annotated[int | None, typer.Option(help="How many are attacked through the defence; n by default.")] = (
        None
    ),
    index: Index = ":",
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    config: ConfigFile = None,
    adaptive: Annotated[
        bool,
        typer.Option("--adaptive", help="Climb the ladder of attacks that know the defence; see the options below."),
    ] = False,
    rungs: Annotated[str | None, typer.Option(help="With --adaptive: comma-separated rungs; all by default.")] = None,
    images: Annotated[
        str,
        typer.Option(
            help="With --adaptive, in place of --n: images a rung by its cost, such as gradient=64,unrolled=8; "
            "cheap=1000,gradient=256,unrolled=32,queries=16 by default."
        ),
    ] = "",
    queries: Annotated[int, typer.Option(help="With --adaptive: of square, nes and rays, an image.")] = 5000,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With --adaptive: the defence draws a new seed at every query.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="With --adaptive: classifier that the rung transfer crafts on, as --classifier.")
    ] = None,
    source_weights: Annotated[Path | None, typer.Option(help="Its weights.")] = None,
    gallery: Annotated[
        int, typer.Option(help="Images whose fits `dipdefense report` shows frame by frame; not with --adaptive.")
    ] = 0,
    budget: Annotated[
        float | None, typer.Option(help="With --adaptive: seconds that the run may take, by an estimate at its start.")
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    out: RunFolder = Path("runs/evaluate"),
) -> None:
    """Accuracy of a classifier, bare and defended, on clean and attacked images; with --adaptive, what is left of it.

    Attacks that do not know the defence make it look strong: judge it by --adaptive alone.
    """
    for name in SCORING if adaptive else CLIMBING:
        if given(context, name):
            rule = "be left out" if adaptive else "come"
            raise ValueError(f"--{name.replace('_', '-')} must {rule} with --adaptive, which has numbers of its own")
    cluster = cluster_of(context, engine, address, workers, cpus, gpus)
    from eval.classifiers import load_classifier
    from eval.robustness.config import RunConfig, attacks_in
    from eval.robustness.distributed import RunSpec

    where, radius, fit = device_named(device), number("eps", eps), fit_config(config)
    if adaptive:
        if cluster is not None:
            raise ValueError("--engine must be local with --adaptive, got ray")
        climb = _climb(rungs, images, queries, radius, norm, seed, batch_size, budget, source is not None)
        pictures, net = load(dataset, data, index, classifier, weights, where)
        climb(
            DefendedClassifier(net, Purifier(fit, seed=None if fresh else seed)),
            pictures,
            out=out,
            source=None if source is None else load_classifier(source, source_weights).to(where),
            classifier_name=classifier,
            device=where,
        )
        return
    numbers = RunConfig(
        attacks=attacks_in(norm) if attacks is None else names(attacks),
        norm=norm,
        eps=radius,
        alpha=None if alpha is None else number("alpha", alpha),
        steps=steps,
        crafted_on=crafted_on,
        n=n,
        n_defended=n_defended,
        seed=seed,
        batch_size=batch_size,
    )
    if not 0 <= gallery <= n:
        raise ValueError(f"gallery must lie between 0 and the {n} images of the run, got {gallery}")
    spec = RunSpec(
        classifier=classifier,
        weights=weights,
        dataset=dataset,
        data=data,
        index=index_range(index),
        config=numbers,
        fit=fit,
        gradient=gradient,
        filters=tuple(names(filters)),
    )
    _score(spec, cluster, where, gallery, out)


def _score(spec: Any, cluster: Cluster | None, where: Any, gallery: int, out: Path) -> None:
    """The run of these names, here or on the cluster, and its gallery, which is made here."""
    from eval.robustness.distributed import evaluate_shards
    from eval.robustness.evaluate import evaluate_robustness
    from eval.robustness.gallery import gallery_of_run

    loaded = spec.load(where) if cluster is None or gallery else {}
    with progress_bar("images") as progress:
        if cluster is None:
            table = evaluate_robustness(**loaded, out=out, progress=progress)
        else:
            table = evaluate_shards(spec, out=out, cluster=cluster, progress=progress)
    if gallery:
        defended = DefendedClassifier(loaded["classifier"], loaded["purifier"])
        with progress_bar("gallery") as progress:
            gallery_of_run(out, defended, loaded["dataset"], spec.config, n=gallery, device=where, progress=progress)
    print_accuracies(table)
    note(f"table and records: {out}")


def _climb(
    rungs: str | None,
    images: str,
    queries: int,
    eps: float,
    norm: str,
    seed: int,
    batch_size: int,
    budget: float | None,
    transfers: bool,
) -> Callable[..., None]:
    """The adaptive run of these numbers, which are checked before anything is loaded."""
    from eval.robustness.ladder import AdaptiveConfig, evaluate_adaptive

    able = (*AdaptiveConfig(norm=norm).rungs, *(["transfer"] if transfers else []))
    config = AdaptiveConfig(
        rungs=able if rungs is None else names(rungs),
        eps=eps,
        norm=norm,
        n=AdaptiveConfig().n | _counts(images),
        queries=queries,
        seed=seed,
        batch_size=batch_size,
        budget=math.inf if budget is None else budget,
    )

    def run(defended: DefendedClassifier, dataset: Any, *, out: Path, **named: Any) -> None:
        with progress_bar("images") as progress:
            table = evaluate_adaptive(defended, dataset, config, out=out, progress=progress, **named)
        print_frame(table)
        note(f"table and records: {out}")

    return run


def _counts(text: str) -> dict[str, int]:
    """COST=NUMBER, comma-separated."""
    counts = {}
    for part in names(text):
        cost, _, count = part.partition("=")
        if not count.isdecimal():
            raise ValueError(f"images must be COST=NUMBER, such as gradient=64,unrolled=8, got {part!r}")
        counts[cost] = int(count)
    return counts
