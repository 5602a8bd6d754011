"""The command `dipdefense`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli.benchmark import benchmark
from dipdefense.cli.denoising import denoising_benchmarks
from dipdefense.cli.options import (
    ClassifierSpec,
    ConfigFile,
    DataPath,
    DatasetName,
    Device,
    Eps,
    Index,
    Seed,
    Weights,
    device_named,
    fit_config,
    index_range,
    names,
    number,
)
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
benchmark.add_typer(denoising_benchmarks)
app.add_typer(benchmark, name="benchmark")


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


@app.command()
def evaluate(
    dataset: DatasetName = "digits",
    data: DataPath = None,
    classifier: ClassifierSpec = "digits_cnn",
    weights: Weights = None,
    attacks: Annotated[str, typer.Option(help="Comma-separated: fgsm, pgd, momentum_pgd, random_noise.")] = (
        "fgsm,pgd,momentum_pgd"
    ),
    filters: Annotated[str, typer.Option(help="Comma-separated cheap filters beside the defence.")] = "",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    eps: Eps = "8/255",
    alpha: Annotated[str | None, typer.Option(help="Step size; eps / 4 by default.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of PGD and momentum PGD.")] = 20,
    crafted_on: Annotated[str, typer.Option(help="bare, defended or both.")] = "bare",
    gradient: Annotated[str, typer.Option(help="How an attack passes the fit: straight_through or none.")] = (
        "straight_through"
    ),
    n: Annotated[int, typer.Option(help="Images: the first n of a seeded permutation.")] = 100,
    n_defended: Annotated[int | None, typer.Option(help="How many are attacked through the defence; n by default.")] = (
        None
    ),
    index: Index = ":",
    batch_size: Annotated[int, typer.Option(help="Images attacked and purified together.")] = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; a killed run goes on there.")] = Path("runs/evaluate"),
) -> None:
    """Accuracy, PSNR and SSIM of a classifier, bare and defended, on clean and attacked images."""
    from eval.baselines import BASELINES
    from eval.classifiers import load_classifier
    from eval.datasets import load_dataset
    from eval.robustness import RunConfig, evaluate_robustness

    where = device_named(device)
    numbers = RunConfig(
        attacks=names(attacks),
        norm=norm,
        eps=number("eps", eps),
        alpha=None if alpha is None else number("alpha", alpha),
        steps=steps,
        crafted_on=crafted_on,
        n=n,
        n_defended=n_defended,
        seed=seed,
        batch_size=batch_size,
    )
    unknown = [name for name in names(filters) if name not in BASELINES]
    if unknown:
        raise ValueError(f"filters must be among {', '.join(BASELINES)}, got {unknown[0]!r}")
    images = load_dataset(dataset, data).between(*index_range(index))
    net = load_classifier(classifier, weights).to(where)
    with progress_bar("images") as progress:
        table = evaluate_robustness(
            net,
            images,
            numbers,
            out=out,
            purifier=Purifier(fit_config(config), seed=seed),
            gradient=gradient,
            filters={name: BASELINES[name] for name in names(filters)},
            classifier_name=classifier,
            device=where,
            progress=progress,
        )
    print_accuracies(table)
    console.print(f"table and records: {out}", markup=False)
