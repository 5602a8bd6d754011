"""The command `dipdefense benchmark restoration`."""

from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli import options
from dipdefense.cli.output import note, print_frame, progress_bar

__all__ = ["restoration"]


def restoration(
    data: Annotated[Path, typer.Option(help="Folder with dip/, sets/ and, for the last two tasks, weights/.")],
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: text, holes, half, sparse, inpaint11, zebra, zebra2, zebra8, set5, set14, "
            "jpeg, jpeg10, set9_jpeg10 (also 20, 40, 60, 75, 90), flash, inversion, activation."
        ),
    ] = "text,holes,half,sparse,inpaint11,zebra,zebra2,zebra8,jpeg,jpeg10,flash,inversion,activation",
    methods: Annotated[
        str, typer.Option(help="Comma-separated: dip, tv, pixels (no prior), library.")
    ] = "dip,tv,pixels,library",
    size: Annotated[int, typer.Option(help="Side of the images in pixels; 0 for their own.")] = 128,
    published: Annotated[bool, typer.Option("--published", help="Published settings of each task; for a GPU.")] = False,
    iterations: Annotated[int | None, typer.Option(help="Iterations of the network's fits.")] = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    config: options.ConfigFile = None,
    out: options.RunFolder = Path("runs/restoration"),
) -> None:
    """Measure inpainting, super-resolution and other tasks, beside total variation and library methods."""
    from eval.restoration.restoration import benchmark_restoration

    where = options.device_named(device)
    with progress_bar("images") as progress:
        table = benchmark_restoration(
            data,
            tasks=options.names(tasks),
            methods=options.names(methods),
            size=size or None,
            config=options.fit_config(config),
            published=published,
            iterations=iterations,
            seed=seed,
            device=where,
            out=out,
            progress=progress,
        )
    print_frame(table)
    note(f"results are clipped to [0, 1] before they are scored; table, records and contact sheet: {out}")
