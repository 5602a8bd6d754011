"""The command `dipdefense learn-start`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dipdefense.cli import options
from dipdefense.cli.output import note, progress_bar
from dipdefense.defence.presets import defence_for
from dipdefense.fitting.learn_start import learn_start as learn
from dipdefense.whole_file import check_writable

__all__ = ["learn_start"]


def learn_start(
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File of the start, such as start.safetensors.")],
    dataset: options.DatasetName = "digits_train",
    data: options.DataPath = None,
    index: options.Index = ":",
    n: options.Count = 1000,
    config: options.ConfigFile = None,
    memory_gb: options.MemoryGb = None,
    size: Annotated[
        int | None,
        options.image_option(help="Side of the squares cut from the images at random; the default tile, or uncut."),
    ] = None,
    inner: Annotated[int, options.run_option(help="Iterations of a fit, about as many as the start is for.")] = 30,
    outer: Annotated[int, options.run_option(help="Steps of the outer loop.")] = 400,
    batch: Annotated[int, options.run_option(help="Images of an outer step.")] = 24,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    checkpoint: options.CheckpointFile = None,
) -> None:
    """Learn initial parameters from which a fit arrives in fewer iterations, from images that are not reported on.

    Use the file as the value of `start` in the settings of a fit.
    """
    from eval.datasets import load_dataset

    images = load_dataset(dataset, data).between(*options.index_range(index))
    positions = images.first(n, seed).tolist()
    if len(positions) < n:
        raise ValueError(f"n must be at most the {len(images)} images of {dataset} {index}, got {n}")
    if target.suffix != ".safetensors":
        raise ValueError(f"OUTPUT must end in .safetensors, got {target}")
    if target.is_dir():
        raise IsADirectoryError(f"OUTPUT must be a file, {target} is a folder")
    check_writable(target)  # before the work
    shown = images.batch(positions).to(options.device_named(device))
    defence = defence_for(tuple(shown.shape[1:]))
    if size is None and defence.tile is not None and max(shown.shape[2:]) > defence.tile:
        size = defence.tile
    fit = options.fit_config(config) or replace(defence.fit, start="random")
    fit = fit if memory_gb is None else replace(fit, memory_gb=memory_gb)
    levels: list[float] = []
    with progress_bar("steps") as progress:

        def report(number: int, decibels: float) -> None:
            levels.append(-decibels)
            progress(number, outer)

        start = learn(
            shown,
            fit,
            inner=inner,
            outer=outer,
            batch=batch,
            size=size,
            seed=seed,
            callback=report,
            checkpoint=checkpoint,
        )
    start.save(target)
    note(f"after {inner} iterations: {levels[0]:.1f} dB in the first outer step, {levels[-1]:.1f} dB in the last")
    note(f'start: {target}\nuse it as "start" in a file of settings for --config, or as FitConfig(start=...)')
