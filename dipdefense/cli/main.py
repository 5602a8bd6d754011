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
from dipdefense.cli.report import report
from dipdefense.cli.restoration import restoration
from dipdefense.cli.restore import restoring
from dipdefense.cli.shown import AnywhereGroup, errors, manner, note, print_accuracies, progress_bar
from dipdefense.files import purify_files
from dipdefense.images import list_images
from dipdefense.purify import Purifier

__all__ = ["app", "main"]

app = typer.Typer(
    cls=AnywhereGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Example: dipdefense demo, then dipdefense report runs/demo -o report.html",
)
benchmark.command(epilog="Example: dipdefense benchmark restoration --data images --tasks text,jpeg")(restoration)
benchmark.add_typer(denoising_benchmarks)
app.add_typer(benchmark, name="benchmark")
app.command(epilog="Example: dipdefense evaluate --attacks pgd --eps 0.2 --n 50 --gallery 4 --out runs/pgd")(evaluate)
app.command(epilog="Example: dipdefense check torchvision:resnet18 --shape 3,224,224")(check)
app.command(epilog="Example: dipdefense diagnose --eps 0.2 --n 16 --bare")(diagnose)
app.command(epilog="Example: dipdefense report runs/demo -o report.html")(report)
app.add_typer(restoring)


@app.callback()
def everywhere(
    json: Annotated[
        bool, typer.Option("--json", help="Print tables as JSON, one line each, and nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Purify images by an early-stopped deep image prior, and measure what that is worth."""
    if json and quiet:
        raise typer.BadParameter("--json and --quiet exclude each other")
    manner.set("json" if json else "quiet" if quiet else "text")


def main() -> None:
    """Run the command. What a user can mend ends in one line on stderr and exit code 1."""
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        message = " ".join(str(error).split())
        errors.print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command(epilog="Example: dipdefense demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the table, records and picture.")] = Path("runs/demo"),
) -> None:
    """Attack a digit classifier with FGSM, PGD and momentum PGD, purify, and print the table. Needs no data.

    Beside it go small runs of all that `dipdefense report` shows.
    """
    from eval.demo import run_demo

    with progress_bar("percent") as progress:
        table = run_demo(out, progress)
    print_accuracies(table)
    note(f"table, records and picture: {out}; to see all: dipdefense report {out} -o report.html")


@app.command(epilog="Example: dipdefense purify photo.png purified.png")
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
