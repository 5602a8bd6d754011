"""What the commands show: progress on stderr, tables on stdout."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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

__all__ = ["console", "errors", "print_accuracies", "print_frame", "progress_bar"]

console = Console()
errors = Console(stderr=True)


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[float, float], None]]:
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


def print_accuracies(table: Any) -> None:
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


def print_frame(table: Any) -> None:
    """All of a data frame, three decimals."""
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
