"""The command `dipdefense`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from dipdefense.config import FitConfig
from dipdefense.files import purify_files
from dipdefense.images import list_images
from dipdefense.presets import default_config
from dipdefense.purify import Purifier

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Purify images by an early-stopped deep image prior, and measure what that is worth.",
)
benchmark = typer.Typer(no_args_is_help=True, help="Measure the library itself.")
app.add_typer(benchmark, name="benchmark")
console = Console()
errors = Console(stderr=True)

Seed = Annotated[int, typer.Option(help="Seed of images, attacks and fits.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")]
DatasetName = Annotated[str, typer.Option("--dataset", help="digits, digits_train, mnist, cifar10 or folder.")]
DataPath = Annotated[Path | None, typer.Option("--data", help="File or folder of the data set.")]
ClassifierSpec = Annotated[
    str,
    typer.Option(
        "--classifier", help="digits_cnn, mnist_lenet, cifar_resnet20, torchvision:NAME, timm:NAME, FILE.py:FACTORY."
    ),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="State dict, .pt or .safetensors.")]
Eps = Annotated[str, typer.Option("--eps", help="Radius, images in [0, 1]: 8/255 or 0.03.")]
Index = Annotated[str, typer.Option("--index", help="START:STOP, use only images of that range of the data set.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="JSON file of FitConfig settings.")]


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

    with _progress("images") as progress:
        table = run_demo(out, progress)
    _print_table(table)
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
    where, purifier = _device(device), Purifier(_fit_config(config), seed=seed, tile=tile)
    files = list_images(source) if source.is_dir() else [source]
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    targets = [target / f"{file.stem}.png" for file in files] if target.is_dir() else [target]
    overwritten = [path for path in targets if path.exists() and any(path.samefile(file) for file in files)]
    if overwritten:
        raise ValueError(f"OUTPUT must not replace the images it comes from, {overwritten[0]} would be")
    with _progress("images") as progress:
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
    attacks: Annotated[str, typer.Option(help="Comma-separated: fgsm, pgd, momentum_pgd.")] = "fgsm,pgd,momentum_pgd",
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

    where = _device(device)
    numbers = RunConfig(
        attacks=_names(attacks),
        norm=norm,
        eps=_number("eps", eps),
        alpha=None if alpha is None else _number("alpha", alpha),
        steps=steps,
        crafted_on=crafted_on,
        n=n,
        n_defended=n_defended,
        seed=seed,
        batch_size=batch_size,
    )
    unknown = [name for name in _names(filters) if name not in BASELINES]
    if unknown:
        raise ValueError(f"filters must be among {', '.join(BASELINES)}, got {unknown[0]!r}")
    images = load_dataset(dataset, data).between(*_range(index))
    net = load_classifier(classifier, weights).to(where)
    with _progress("images") as progress:
        table = evaluate_robustness(
            net,
            images,
            numbers,
            out=out,
            purifier=Purifier(_fit_config(config), seed=seed),
            gradient=gradient,
            filters={name: BASELINES[name] for name in _names(filters)},
            classifier_name=classifier,
            device=where,
            progress=progress,
        )
    _print_table(table)
    console.print(f"table and records: {out}", markup=False)


@benchmark.command()
def speed(
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder for speed.csv; none by default.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled/--no-compiled", help="Time the plain loop through torch.compile, too.")
    ] = True,
) -> None:
    """Image-steps per second of the batched engine, beside plain loops and the machine's matrix product."""
    from eval.speed import benchmark_speed

    table = benchmark_speed(device=_device(device), compiled=compiled)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "speed.csv", index=False)


@benchmark.command()
def iterations(
    dataset: DatasetName = "digits_train",
    data: DataPath = None,
    classifier: ClassifierSpec = "digits_cnn",
    weights: Weights = None,
    eps: Eps = "0.2",
    n: Annotated[int, typer.Option(help="Images: the first n of a seeded permutation.")] = 50,
    index: Index = ":",
    longest: Annotated[int, typer.Option(help="Iterations of the fit.")] = 200,
    every: Annotated[int, typer.Option(help="Iterations between two rows.")] = 20,
    seed: Seed = 0,
    device: Device = "cpu",
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="Folder for iterations.csv; none by default.")] = None,
) -> None:
    """Accuracy and PSNR along a fit, clean and under PGD: how the iterations of a default were chosen."""
    from eval.classifiers import load_classifier
    from eval.datasets import load_dataset
    from eval.robustness import RunConfig
    from eval.trajectory import accuracy_along_fit

    where = _device(device)
    images = load_dataset(dataset, data).between(*_range(index))
    numbers = RunConfig(attacks=("pgd",), eps=_number("eps", eps), n=n, seed=seed)
    chosen = _fit_config(config) or default_config(tuple(images[0][0].shape))
    net = load_classifier(classifier, weights).to(where)
    with _progress("iterations") as progress:
        table = accuracy_along_fit(
            net,
            images,
            numbers,
            replace(chosen, iterations=longest),
            every=every,
            device=where,
            progress=progress,
        )
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        table.to_csv(out / "iterations.csv", index=False)


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[float, float], None]]:
    """A bar with the remaining time, on stderr; nothing where that is no terminal."""
    columns = (
        TextColumn(unit),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_table(table: Any) -> None:
    """Accuracy with its interval, PSNR, SSIM and time; as plain tab-separated text where stdout is no terminal."""
    header = [
        "attack",
        "crafted on",
        "defence",
        "n",
        "accuracy",
        "95 % interval",
        "PSNR dB",
        "SSIM",
        "s / image",
    ]
    shown = Table(*header)
    lines = []
    for row in table.itertuples():
        defended = row.defence != "none"
        quality = (row.psnr_defended, row.ssim_defended) if defended else (row.psnr_attacked, row.ssim_attacked)
        cells = [
            row.attack,
            row.crafted_on,
            row.defence,
            str(row.n),
            f"{100 * row.accuracy:.1f}",
            f"{100 * row.ci_low:.1f} - {100 * row.ci_high:.1f}",
            *("" if value != value else f"{value:.{digits}f}" for value, digits in zip(quality, (2, 3), strict=True)),
            f"{row.seconds_per_image:.4f}",
        ]
        shown.add_row(*cells)
        lines.append("\t".join(cells))
    if console.is_terminal:
        console.print(shown)
    else:
        typer.echo("\n".join(["\t".join(header), *lines]))


def _fit_config(file: Path | None) -> FitConfig | None:
    if file is None:
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: must be JSON, {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: must be a JSON object of FitConfig settings, got {type(settings).__name__}")
    unknown = settings.keys() - FitConfig.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(FitConfig.__dataclass_fields__)
        raise ValueError(f"{file}: settings must be among {known}, got {sorted(unknown)[0]!r}")
    if not {"architecture_options", "iterations"} <= settings.keys():
        raise ValueError(
            f"{file}: must state architecture_options and iterations, so that the published 5x128 network and 3000 "
            "iterations are not taken unawares"
        )
    return FitConfig(**settings)


def _number(name: str, text: str) -> float:
    """A decimal or a fraction such as 8/255."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{name} must be a number such as 0.03 or 8/255, got {text!r}") from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _range(text: str) -> tuple[int | None, int | None]:
    start, colon, stop = text.partition(":")
    try:
        if not colon or "-" in text:
            raise ValueError
        return (int(start) if start else None), (int(stop) if stop else None)
    except ValueError:
        raise ValueError(f"index must be START:STOP, such as 1000: or :1000, got {text!r}") from None


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device must be one that this machine has, such as cpu, got {name!r}: {first}") from None
    return device
