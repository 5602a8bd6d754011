"""The command `dipdefense diagnose`."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from dipdefense.cli import options
from dipdefense.cli.output import manner, note, print_frame, progress_bar
from dipdefense.defence.classifier import DefendedClassifier
from dipdefense.defence.purifier import Purifier

__all__ = ["diagnose"]

VERDICTS = {True: "pass", False: "FAIL", None: "-"}


@options.fields_as_options
def diagnose(
    subject: options.Subject = options.ON_DIGITS,
    defended: Annotated[
        bool, typer.Option("--defended/--bare", help="Diagnose the defended classifier, or the bare one.")
    ] = True,
    gradient: options.GradientName = "straight_through",
    surrogate: Annotated[
        str | None,
        typer.Option(help="Another classifier, for transfer; with --defended the bare one by default."),
    ] = None,
    surrogate_weights: Annotated[Path | None, typer.Option(help="Its state dict.")] = None,
    checks: Annotated[str | None, typer.Option(help="Comma-separated checks; all by default.")] = None,
    eps: options.Eps = "8/255",
    n: Annotated[int, typer.Option(help="Images: the first n of a seeded permutation, at least 8.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps of PGD; some checks take twice as many.")] = 20,
    queries: Annotated[int, typer.Option(help="Queries of the black-box attack for each image.")] = 200,
    repeats: Annotated[int, typer.Option(help="Queries with the same images.")] = 4,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    decision: options.DecisionName = None,
    mirror: options.Mirror = True,
    tile: options.Tile = None,
    out: Annotated[Path, typer.Option(help="Folder for diagnose.csv and diagnose.json.")] = Path("runs/diagnose"),
) -> None:
    """Can a robustness figure be believed? Run sanity checks of the attack and of the attacked model.

    The exit code is 0 when every check passes, 2 when one fails, 1 when it could not be run.
    """
    from eval.classifiers import load_classifier
    from eval.diagnose import diagnose as examine
    from eval.diagnose import passes

    where, radius = options.device_named(device), options.number("eps", eps)
    images, bare = subject.load(where)
    if not 1 <= n <= len(images):
        raise ValueError(f"n must lie between 1 and the {len(images)} images of {images.name}, got {n}")
    other = load_classifier(surrogate, surrogate_weights).to(where) if surrogate else bare if defended else None
    purifier = Purifier(options.fit_config(config), seed=seed, tile=tile)
    model = (
        DefendedClassifier(bare, purifier, gradient=gradient, decision=decision, mirror=mirror) if defended else bare
    )
    order = images.first(n, seed)
    chosen, labels = images.batch(order.tolist()).to(where), images.labels[order].to(where)
    out.mkdir(parents=True, exist_ok=True)  # a bad folder is refused before minutes are spent
    if defended:
        _forecast(model, chosen, passes(steps, queries, repeats))
    with progress_bar("checks") as progress:
        table = examine(
            model,
            chosen,
            labels,
            eps=radius,
            steps=steps,
            queries=queries,
            repeats=repeats,
            surrogate=other,
            checks=None if checks is None else options.names(checks),
            seed=seed,
            progress=progress,
            found=_print,
        )
    _write(table, out)
    if manner.get() == "json":
        print_frame(table)
    note(f"{int(table['queries'].sum())} images forward, {table['seconds'].sum():.0f} s; table: {out}")
    if table["passed"].eq(False).any():  # None is neither
        raise typer.Exit(2)


@torch.no_grad()
def _forecast(model: nn.Module, images: Tensor, fits: int) -> None:
    """Estimate the time of so many fits from one of them."""
    from eval.cost import clock

    with progress_bar("one fit, to estimate the time"):
        start = clock(images.device)
        model(images)
        minutes = fits * (clock(images.device) - start) / 60
    forecast = f"all checks: {fits} fits of {len(images)} images, about {minutes:.1f} minutes"
    note(f"{forecast}; --n, --steps, --queries shorten them", err=True)


def _print(finding: Any) -> None:
    from eval.text_tables import figures_text

    note(f"{VERDICTS[finding.passed]:4}  {finding.check}: {finding.means}")
    if finding.figures:
        note(f"      {figures_text(finding.figures)}")
    if finding.remedy:
        note(f"      remedy: {finding.remedy}")


def _write(table: Any, out: Path) -> None:
    (out / "diagnose.json").write_text(json.dumps(table.to_dict("records"), indent=2) + "\n", encoding="utf-8")
    table.assign(figures=table["figures"].map(json.dumps)).to_csv(out / "diagnose.csv", index=False)
