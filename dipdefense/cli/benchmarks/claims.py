"""The command `dipdefense benchmark claims`."""

from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli import options
from dipdefense.cli.output import note, print_frame, progress_bar

__all__ = ["claims"]

SHOWN = ("id", "theirs", "ours", "n", "verdict", "seconds")


def claims(
    data: Annotated[
        Path, typer.Option(help="Folder with dip/, sets/, polyu/, mnist/, cifar10/ and weights/, as claims need them.")
    ],
    only: Annotated[str, typer.Option(help="Comma-separated ids such as S0-8,S2-5; all claims by default.")] = "",
    size: Annotated[int, typer.Option(help="Side of the photographs in pixels.")] = 128,
    iterations: Annotated[
        int | None, typer.Option(help="At most this many in every fit, for a trial; as each protocol says by default.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Networks and images of the documents' own size; for a GPU.")
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    out: options.RunFolder = Path("runs/claims"),
) -> None:
    """Measure what the documents behind the project claim, one row for each claim, with a verdict by a stated rule."""
    from eval.claims.bench import Settings
    from eval.claims.runner import benchmark_claims

    settings = Settings(
        data=data,
        size=size,
        iterations=iterations,
        published=published,
        seed=seed,
        device=str(options.device_named(device)),
    )
    asked = options.names(only)
    with progress_bar("claims") as progress:
        table = benchmark_claims(settings, only=asked, out=out, progress=progress)
    shown = table[table["id"].isin(asked)] if asked else table
    print_frame(shown, SHOWN)
    note(f"protocols and reasons: {out / 'claims.md'}; table, records, and details of each claim: {out}")
