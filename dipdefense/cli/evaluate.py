"""The command `dipdefense evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli.options import (
    Attacks,
    AttackSteps,
    BatchSize,
    ClassifierSpec,
    ConfigFile,
    Count,
    DataPath,
    DatasetName,
    DecisionName,
    DeviceOrCluster,
    Eps,
    Index,
    Norm,
    Panel,
    RunFolder,
    Seed,
    Tile,
    Weights,
    device_or_cluster,
    fit_config,
    index_range,
    names,
    number,
)
from dipdefense.cli.shown import note, print_accuracies, progress_bar

__all__ = ["evaluate"]


def evaluate(
    dataset: DatasetName = "digits",
    data: DataPath = None,
    index: Index = ":",
    classifier: ClassifierSpec = "digits_cnn",
    weights: Weights = None,
    config: ConfigFile = None,
    decision: DecisionName = None,
    tile: Tile = None,
    filters: Annotated[
        str, typer.Option(help="Comma-separated cheap filters beside the defence.", rich_help_panel=Panel.DEFENCE)
    ] = "",
    attacks: Attacks = None,
    norm: Norm = "linf",
    eps: Eps = "8/255",
    steps: AttackSteps = 20,
    crafted_on: Annotated[
        str,
        typer.Option(
            help="bare, defended or both; both:32 attacks 32 of the images through the defence.",
            rich_help_panel=Panel.ATTACK,
        ),
    ] = "bare",
    n: Count = 100,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    device: DeviceOrCluster = "cpu",
    gallery: Annotated[
        int,
        typer.Option(help="Images whose fits `dipdefense report` shows frame by frame.", rich_help_panel=Panel.RUN),
    ] = 0,
    out: RunFolder = Path("runs/evaluate"),
) -> None:
    """Accuracy of a classifier, bare and defended, on clean and attacked images.

    Attacks that do not know the defence make it look strong: judge it by dipdefense ladder alone.
    """
    from eval.robustness.config import RunConfig
    from eval.robustness.run_spec import RunSpec

    where, cluster = device_or_cluster(device)
    crafted_on, n_defended = _crafted_on(crafted_on)
    spec = RunSpec(
        classifier=classifier,
        weights=weights,
        dataset=dataset,
        data=data,
        index=index_range(index),
        config=RunConfig(
            attacks=None if attacks is None else names(attacks),
            norm=norm,
            eps=number("eps", eps),
            steps=steps,
            crafted_on=crafted_on,
            n=n,
            n_defended=n_defended,
            seed=seed,
            batch_size=batch_size,
        ),
        fit=fit_config(config),
        tile=tile,
        decision=decision,
        filters=tuple(names(filters)),
    )
    if not 0 <= gallery <= n:
        raise ValueError(f"gallery must lie between 0 and the {n} images of the run, got {gallery}")
    with progress_bar("images") as progress:
        if cluster is None:
            from eval.robustness.evaluate import evaluate as run

            table = run(spec.evaluation(where), out, progress=progress)
        else:
            from eval.robustness.distributed import evaluate_shards

            table = evaluate_shards(spec, out=out, cluster=cluster, progress=progress)
    if gallery:  # which is made here
        from eval.robustness.gallery import gallery_of_run

        with progress_bar("gallery") as progress:
            gallery_of_run(out, *spec.load(where), spec.config, n=gallery, device=where, progress=progress)
    print_accuracies(table)
    note(f"table and records: {out}")


def _crafted_on(text: str) -> tuple[str, int | None]:
    """What attacks are crafted on, and how many of the images on the defended model; None where that is not said."""
    kind, colon, count = text.partition(":")
    if colon and (not count.isdecimal() or kind == "bare"):
        raise ValueError(f"crafted_on must be bare, defended, both, or such as both:32, got {text!r}")
    return kind, int(count) if colon else None
