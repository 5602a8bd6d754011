"""The command `dipdefense report`."""

from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli.output import note

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run, or a folder of such folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to make or replace.")] = Path("report.html"),
) -> None:
    """Make one HTML file, which needs no network, of everything in the folder of a run.

    It has tables with intervals, accuracy against eps and along the fit, clean-robust curves, ROC, and the gallery if
    the run has one (`evaluate --gallery`, `demo --full`). The report also names what the folder lacks, and runs that
    are not finished.
    """
    from eval.report import write_report
    from eval.report.runs import NOT_FINISHED

    for folder in write_report(run, out):
        note(f"{folder} is not finished: {NOT_FINISHED}")
    note(f"report: {out}, {out.stat().st_size / 1e3:.0f} kB")
