"""The command `dipdefense purify`."""

from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from torch import Tensor

from dipdefense.cli import options
from dipdefense.cli.output import errors, note, progress_bar
from dipdefense.cli.restore_file import restore_file
from dipdefense.defence.purifier import Purifier
from dipdefense.distributed import Cluster, purify_shards
from dipdefense.files.purify_files import purify_files
from dipdefense.files.reading import list_images
from dipdefense.filters.noise_estimate import estimate_sigma

__all__ = ["purify"]

NAMED = 20  # number of skipped images that are named; the shards name all of them


def purify(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Image file, or a folder of them; see --engine.")],
    target: Annotated[str, typer.Argument(metavar="OUTPUT", help="Image file, or a folder for a folder.")],
    config: options.ConfigFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    tile: Annotated[
        int | None,
        typer.Option(help="Side of the tiles that larger images are cut into; the default's, or uncut with --config."),
    ] = None,
    engine: options.Engine = "local",
    address: options.Address = None,
    workers: options.Workers = None,
    cpus: options.Cpus = 1,
    gpus: options.Gpus = 0,
    shard_size: Annotated[int, typer.Option(help="With --engine ray: images of a shard.")] = 256,
    column: Annotated[str, typer.Option(help="With --engine ray: column of the images in Parquet files.")] = "image",
    checkpoint: options.CheckpointFile = None,
) -> None:
    """Purify an image file, or every image of a folder, into PNG files of the same names.

    Images of one size are fitted together, and written as soon as they are done. An image that cannot be read is named
    and left out, and the exit code is then 1.

    With --engine ray INPUT may also hold subfolders or Parquet files, and be a URI such as s3://bucket/folder; OUTPUT
    is a folder of Parquet shards with the columns key, image (PNG), iterations and error. A second start makes only the
    shards that are missing.
    """
    cluster = options.cluster_of(context, engine, address, workers, cpus, gpus, "shard_size", "column")
    purifier = Purifier(options.fit_config(config), seed=seed, tile=tile)
    if checkpoint is not None and (cluster is not None or Path(source).is_dir()):
        raise ValueError(
            "--checkpoint must come with a single image file; leave it out for a folder, and with --engine ray"
        )
    if cluster is not None:
        _purify_there(source, target, purifier, cluster, shard_size, column)
    elif Path(source).is_dir():
        _purify_folder(Path(source), Path(target), purifier, device)
    else:
        into = Path(target, f"{Path(source).stem}.png") if Path(target).is_dir() else Path(target)
        _purify_file(Path(source), into, purifier, device, checkpoint)


def _purify_file(source: Path, target: Path, purifier: Purifier, device: str, checkpoint: Path | None) -> None:
    def purified(image: Tensor, **keywords: Any) -> tuple[Tensor, str]:
        result = purifier.reconstruct(image, **keywords)
        return result, f"purified, noise of {255 * estimate_sigma(image).item():.1f} in 255 seen"

    restore_file([source], target, device, purified, checkpoint=checkpoint)


def _purify_folder(source: Path, target: Path, purifier: Purifier, device: str) -> None:
    where, start = options.device_named(device), perf_counter()
    files = list_images(source)
    target.mkdir(parents=True, exist_ok=True)
    targets = [target / f"{file.stem}.png" for file in files]
    overwritten = [path for path in targets if path.exists() and any(path.samefile(file) for file in files)]
    if overwritten:
        raise ValueError(
            f"OUTPUT must not replace an image that it comes from, {overwritten[0]} would be: name another"
        )
    with progress_bar("images") as progress:
        failures = purify_files(files, targets, purifier, device=where, progress=progress)
    note(f"{target}: {len(files) - len(failures)} of {len(files)} images purified, {perf_counter() - start:.1f} s")
    _leave_out(list(map(str, failures)), len(files))


def _purify_there(source: str, target: str, purifier: Purifier, cluster: Cluster, shard_size: int, column: str) -> None:
    with progress_bar("images") as progress:
        failures, images = purify_shards(
            source, target, purifier, cluster=cluster, shard_size=shard_size, column=column, progress=progress
        )
    _leave_out([failure.error for failure in failures], images)


def _leave_out(failures: list[str], images: int) -> None:
    for failure in failures[:NAMED]:
        errors.print(f"left out: {failure}", markup=False, highlight=False, soft_wrap=True)
    if len(failures) > NAMED:
        errors.print(f"left out: {len(failures) - NAMED} more")
    if failures:
        raise ValueError(f"{len(failures)} of {images} images were left out")
