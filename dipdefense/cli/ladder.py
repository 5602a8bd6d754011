"""The command `dipdefense ladder`."""

import math
from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli.options import (
    BatchSize,
    ClassifierSpec,
    ConfigFile,
    DataPath,
    DatasetName,
    DecisionName,
    Device,
    Eps,
    Index,
    Norm,
    Panel,
    RunFolder,
    Seed,
    Tile,
    Weights,
    device_named,
    fit_config,
    index_range,
    names,
    number,
)
from dipdefense.cli.shown import note, print_frame, progress_bar

__all__ = ["ladder"]

SHOWN = (  # columns that are printed
    *("query", "attack", "crafted_on", "gradient", "loss", "rule", "steps", "samples", "restarts"),
    *("n", "n_all", "accuracy", "ci_low", "ci_high", "flagged", "right_or_flagged"),
    *("psnr_defended", "ssim_defended", "attack_seconds"),
)


def ladder(
    dataset: DatasetName = "digits",
    data: DataPath = None,
    index: Index = ":",
    classifier: ClassifierSpec = "digits_cnn",
    weights: Weights = None,
    config: ConfigFile = None,
    decision: DecisionName = None,
    tile: Tile = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="The defence draws a new seed at every query.", rich_help_panel=Panel.DEFENCE),
    ] = False,
    norm: Norm = "linf",
    eps: Eps = "8/255",
    rungs: Annotated[
        str | None, typer.Option(help="Comma-separated rungs; all by default.", rich_help_panel=Panel.ATTACK)
    ] = None,
    queries: Annotated[
        int, typer.Option(help="Of square, nes and rays, an image.", rich_help_panel=Panel.ATTACK)
    ] = 5000,
    source: Annotated[
        str | None,
        typer.Option(
            help="Classifier that the rung transfer crafts on, as --classifier.", rich_help_panel=Panel.ATTACK
        ),
    ] = None,
    source_weights: Annotated[Path | None, typer.Option(help="Its weights.", rich_help_panel=Panel.ATTACK)] = None,
    images: Annotated[
        str,
        typer.Option(
            help="Images a rung by its cost, such as gradient=64,unrolled=8; "
            "cheap=1000,gradient=256,unrolled=32,queries=16 by default.",
            rich_help_panel=Panel.RUN,
        ),
    ] = "",
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds that the run may take, by an estimate at its start.", rich_help_panel=Panel.RUN),
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    device: Device = "cpu",
    out: RunFolder = Path("runs/ladder"),
) -> None:
    """What is left of a defence: a ladder of attacks that know more and more of it, and the worst case over them."""
    from eval.classifiers import load_classifier
    from eval.robustness.ladder import AdaptiveConfig, evaluate_adaptive
    from eval.robustness.run_spec import RunSpec

    where, default = device_named(device), AdaptiveConfig(norm=norm)
    spec = RunSpec(
        classifier=classifier,
        weights=weights,
        dataset=dataset,
        data=data,
        index=index_range(index),
        config=AdaptiveConfig(
            rungs=[*default.chosen_rungs, *(["transfer"] if source else [])] if rungs is None else names(rungs),
            norm=norm,
            eps=number("eps", eps),
            n=default.n | _counts(images),
            queries=queries,
            seed=seed,
            batch_size=batch_size,
            budget=math.inf if budget is None else budget,
        ),
        fit=fit_config(config),
        tile=tile,
        decision=decision,
        fresh=fresh,
    )
    other = None if source is None else load_classifier(source, source_weights).to(where)
    with progress_bar("images") as progress:
        table = evaluate_adaptive(
            *spec.load(where),
            spec.config,
            out=out,
            source=other,
            classifier_name=spec.classifier,
            device=where,
            progress=progress,
        )
    print_frame(table, SHOWN)
    note(f"table and records: {out}")


def _counts(text: str) -> dict[str, int]:
    """COST=NUMBER, comma-separated."""
    counts = {}
    for part in names(text):
        cost, _, count = part.partition("=")
        if not count.isdecimal():
            raise ValueError(f"images must be COST=NUMBER, such as gradient=64,unrolled=8, got {part!r}")
        counts[cost] = int(count)
    return counts
