"""The command `dipdefense ladder`."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from dipdefense.cli import options
from dipdefense.cli.output import note, print_frame, progress_bar

__all__ = ["ladder"]

SHOWN = (  # columns that are printed
    *("query", "attack", "crafted_on", "gradient", "loss", "rule", "steps", "samples", "restarts"),
    *("n", "n_all", "accuracy", "ci_low", "ci_high", "flagged", "right_or_flagged"),
    *("psnr_defended", "ssim_defended", "attack_seconds"),
)


@options.fields_as_options
def ladder(
    subject: options.Subject = options.ON_DIGITS,
    config: options.ConfigFile = None,
    decision: options.DecisionName = None,
    mirror: options.Mirror = True,
    tile: options.Tile = None,
    fresh: Annotated[
        bool, options.defence_option("--fresh", help="The defence draws a new seed at every query.")
    ] = False,
    smooth: options.Smooth = None,
    norm: options.Norm = "linf",
    eps: options.Eps = "8/255",
    rungs: Annotated[str | None, options.attack_option(help="Comma-separated rungs; all by default.")] = None,
    queries: Annotated[int, options.attack_option(help="Queries of square, nes and rays for each image.")] = 5000,
    source: Annotated[
        str | None,
        options.attack_option(help="Classifier that the rung transfer crafts on, given as for --classifier."),
    ] = None,
    source_weights: Annotated[Path | None, options.attack_option(help="Its weights.")] = None,
    images: Annotated[
        str,
        options.run_option(
            help="Images for each rung by its cost, such as gradient=64,unrolled=8; "
            "cheap=1000,gradient=256,unrolled=32,queries=16 by default, or all images if there are fewer."
        ),
    ] = "",
    budget: Annotated[
        float | None, options.run_option(help="Limit in seconds on the time that is estimated at the start.")
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 32,
    device: options.Device = "cpu",
    out: options.RunFolder = Path("runs/ladder"),
) -> None:
    """Attack a defence with a ladder of attacks that know more and more of it, and take the worst case over them."""
    from eval.classifiers import load_classifier
    from eval.robustness.ladder import AdaptiveConfig, evaluate_adaptive
    from eval.robustness.run_spec import RunSpec

    sigma, votes = (None, AdaptiveConfig.votes) if smooth is None else options.smoothing(smooth)
    where, default, counts = options.device_named(device), AdaptiveConfig(norm=norm), _counts(images)
    spec = RunSpec(
        **vars(subject) | {"index": options.index_range(subject.index)},
        config=AdaptiveConfig(
            rungs=[*default.chosen_rungs, *(["transfer"] if source else [])] if rungs is None else options.names(rungs),
            norm=norm,
            eps=options.number("eps", eps),
            n=default.n | counts,
            queries=queries,
            votes=votes,
            seed=seed,
            batch_size=batch_size,
            budget=math.inf if budget is None else budget,
        ),
        fit=options.fit_config(config),
        tile=tile,
        decision=decision,
        mirror=mirror,
        fresh=fresh or sigma is not None,
        sigma=sigma,
    )
    other = None if source is None else load_classifier(source, source_weights).to(where)
    defended, dataset = spec.load(where)
    fewer = {cost: min(count, len(dataset)) for cost, count in spec.config.n.items() if cost not in counts}
    with progress_bar("records") as progress:
        table = evaluate_adaptive(
            defended,
            dataset,
            replace(spec.config, n=spec.config.n | fewer),
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
    for part in options.names(text):
        cost, _, count = part.partition("=")
        if not count.isdecimal():
            raise ValueError(f"images must be COST=NUMBER, such as gradient=64,unrolled=8, got {part!r}")
        counts[cost] = int(count)
    return counts
