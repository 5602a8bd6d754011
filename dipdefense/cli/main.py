"""The command `dipdefense`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli.benchmark import benchmark
from dipdefense.cli.check import check
from dipdefense.cli.denoising import denoising_benchmarks
from dipdefense.cli.diagnose import diagnose
from dipdefense.cli.evaluate import evaluate
from dipdefense.cli.options import (
    ConfigFile,
    Device,
    Seed,
    device_named,
    fit_config,
)
from dipdefense.cli.restoration import restoration
from dipdefense.cli.restore import restoring
from dipdefense.cli.shown import console, errors, print_accuracies, progress_bar
from dipdefense.files import purify_files
from dipdefense.images import list_images
from dipdefense.purify import Purifier

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Purify images by an early-stopped deep image prior, and measure what that is worth.",
)
benchmark.command()(restoration)
benchmark.add_typer(denoising_benchmarks)
app.add_typer(benchmark, name="benchmark")
app.command()(evaluate)
app.command()(check)
app.command()(diagnose)
app.add_typer(restoring)


def main() -> None:
    """Run the command. What a user can mend ends in one line on stderr and exit code 1."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        message = " ".join(str(error).split())
        errors.print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the table, records and picture.")] = Path("runs/demo"),
) -> None:
    """Attack a digit classifier with FGSM, PGD and momentum PGD, purify, and print the table. Needs no data."""
    from eval.demo import run_demo

    with progress_bar("images") as progress:
        table = run_demo(out, progress)
    print_accuracies(table)
    console.print(f"table, records and picture: {out}", markup=False)


@app.command()
def purify(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Image file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Image file, or a folder for a folder.")],
    config: ConfigFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    tile: Annotated[
        int | None,
        typer.Option(help="Side of the overlapping tiles that larger images are cut into; 64, or uncut with --config."),
    ] = None,
) -> None:
    """Purify an image file, or every image of a folder, into PNG files of the same names.

    Images of one size are fitted together, and written as soon as they are done. One that cannot be read is named
    and left out, and the exit code is 1.
    """
    where, purifier = device_named(device), Purifier(fit_config(config), seed=seed, tile=tile)
    files = list_images(source) if source.is_dir() else [source]
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    targets = [target / f"{file.stem}.png" for file in files] if target.is_dir() else [target]
    overwritten = [path for path in targets if path.exists() and any(path.samefile(file) for file in files)]
    if overwritten:
        raise ValueError(f"OUTPUT must not replace the images it comes from, {overwritten[0]} would be")
    with progress_bar("images") as progress:
        failures = purify_files(files, targets, purifier, device=where, progress=progress)
    if failures and not source.is_dir():
        raise failures[0]
    for failure in failures:
        errors.print(f"left out: {failure}", markup=False, highlight=False, soft_wrap=True)
    if failures:
        raise ValueError(f"{len(failures)} of {len(files)} images were left out")
