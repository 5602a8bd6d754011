"""The output of the commands: progress on stderr, tables on stdout, and the options `--quiet` and `--json`."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from time import monotonic
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

__all__ = [
    "Bar",
    "accuracies_as_made",
    "console",
    "errors",
    "manner",
    "note",
    "print_accuracies",
    "print_frame",
    "print_plain",
    "progress_bar",
]

console = Console()
errors = Console(stderr=True)
manner: ContextVar[str] = ContextVar("manner", default="text")  # text, json or quiet; set at every call of the command
ACCURACIES = ("attack", "crafted on", "defence", "n", "accuracy %", "95 % interval", "PSNR dB", "SSIM", "s / image")
LINES_APART = 60.0  # seconds between two lines of progress, where there is no bar
SPEED_OVER = 3600  # seconds over which the speed is estimated, since a batch may take minutes
WIDTHS = (12, 10, 13, 3, 10, 13, 7, 5)  # in a terminal of 80 columns, which leaves no room for the seconds


class Bar:
    """Progress as it is told: call it with (done, in all). With `lines` it is a line on stderr now and then."""

    def __init__(self, bar: Progress, unit: str, *, lines: bool = False) -> None:
        self._bar, self._task = bar, bar.add_task(unit, total=None)
        self._next: Bar | None = None
        self._lines, self._said = lines, monotonic()

    def __call__(self, done: float, total: float) -> None:
        """Show how much is done."""
        self._bar.update(self._task, completed=done, total=total)
        if self._lines and monotonic() - self._said >= LINES_APART:
            self._said = monotonic()
            task = self._bar.tasks[self._task]
            seconds = task.time_remaining  # None at the first call, since what was done before took no time
            left = "" if seconds is None else f", about {timedelta(seconds=seconds)} left"
            typer.echo(f"{task.description}: {done:.0f} of {total:.0f} ({task.percentage:.0f} %){left}", err=True)

    def then(self, work: str) -> "Bar":
        """The bar of the work that follows, below this one; the same at every call."""
        self._next = self._next or Bar(self._bar, work, lines=self._lines)
        return self._next


@contextmanager
def progress_bar(unit: str) -> Iterator[Bar]:
    """A bar with the remaining time, on stderr; a line a minute at most if that is not a terminal.

    Text that is printed meanwhile appears above the bar if stdout is a terminal, too.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    quiet, hidden = manner.get() == "quiet", not errors.is_terminal
    above = console.is_terminal  # else stdout is a file or a pipe, and the text must go there
    bar = Progress(
        *columns,
        console=errors,
        disable=quiet or hidden,
        redirect_stdout=above,
        speed_estimate_period=SPEED_OVER,
    )
    with bar:
        yield Bar(bar, unit, lines=hidden and not quiet)


def note(text: str, *, err: bool = False) -> None:
    """A line for people: not shown with `--quiet`; on stderr with `--json` or `err`."""
    if manner.get() != "quiet":
        typer.echo(text, err=err or manner.get() == "json")


def print_accuracies(table: Any) -> None:
    """Accuracy with its interval, PSNR, SSIM and time; plain tab-separated text if stdout is not a terminal."""
    if manner.get() != "text":
        print_frame(table)
        return
    rows = [_cells(row) for row in table.itertuples()]
    if console.is_terminal:
        shown = Table(*ACCURACIES)
        for cells in rows:
            shown.add_row(*cells)
        console.print(shown)
    else:
        typer.echo("\n".join(map("\t".join, (ACCURACIES, *rows))))


def accuracies_as_made() -> Callable[[Any], None]:
    """A function that prints new rows of that table at every call, under one header; not with `--json` or `--quiet`."""
    header_is_due = True

    def show(table: Any) -> None:
        nonlocal header_is_due
        rows = [*([ACCURACIES] if header_is_due else []), *(_cells(row) for row in table.itertuples())]
        header_is_due = False
        if manner.get() == "text":
            text = "\n".join(map(_aligned if console.is_terminal else "\t".join, rows))
            typer.echo(text, file=sys.stdout)  # this flushes; the file is named, or typer would overwrite the bar

    return show


def _cells(row: Any) -> tuple[str, ...]:
    """The text of a row, in the order of ACCURACIES."""
    from eval.text_tables import percent

    defended = row.defence != "none"
    quality = (row.psnr_defended, row.ssim_defended) if defended else (row.psnr_attacked, row.ssim_attacked)
    return (
        row.attack,
        row.crafted_on,
        row.defence,
        str(row.n),
        percent(row.accuracy),
        f"{percent(row.ci_low)} - {percent(row.ci_high)}",
        *("" if value != value else f"{value:.{digits}f}" for value, digits in zip(quality, (2, 3), strict=True)),
        f"{row.seconds_per_image:.4f}",
    )


def _aligned(cells: Sequence[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def print_frame(table: Any, columns: Sequence[str] = ()) -> None:
    """Print a data frame, or these columns of it, as in the report: shares in percent, without empty columns.

    With `--json` all columns are printed in one line, and shares are in [0, 1].
    """
    if manner.get() == "json":
        typer.echo(table.to_json(orient="records"))
    elif manner.get() == "text":
        from eval.text_tables import cells

        shown = cells("", table[list(columns) or list(table)])
        lines = [shown.header, *shown.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            padded = [
                text.rjust(width) if figures else text.ljust(width)
                for text, width, figures in zip(line, widths, shown.figures, strict=True)
            ]
            typer.echo("  ".join(padded).rstrip())


def print_plain(value: Any) -> None:
    """Print plain values, only with `--json`; the text for people goes through `note`."""
    if manner.get() == "json":
        typer.echo(json.dumps(value, allow_nan=False))
