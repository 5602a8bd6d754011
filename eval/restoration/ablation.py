"""An ablation of a denoising fit: one table of small networks, and one configuration for every task.

Each row is one call of the engine for all images of its task, with the same noise, or the same lost pixels, as the
other rows of the task. A row is stored as it is made, so a killed run is continued by the same call. `config.json`
holds the description of the run, and a different run is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from dipdefense import FitConfig, Progress, fit, masked_mse
from dipdefense.digest import configuration_hash
from dipdefense.fitting.inputs import INPUTS
from dipdefense.fitting.losses import Loss
from dipdefense.fitting.problem import Degrade
from dipdefense.image_tensors import check_images
from eval.metrics import psnr, ssim
from eval.noise import gaussian, generator_of
from eval.records import Record, Run, digest, made_with, write_whole
from eval.restoration.denoising import SMALL
from eval.restoration.denoising_tables import mean_interval

__all__ = ["FIXED", "OWN", "Task", "benchmark_ablation", "build_tasks", "variants"]

# Input PSNR of colour images and noise of digits, as in course projects of the field
COLOUR_DB, DIGIT_SIGMA = 29.0, 0.25
FIXED = replace(SMALL, iterations=400, lr=0.02, ema=0.95)
# The configuration of each task. Digits have fewer iterations, chosen on 16 other digits. The last two have no jitter,
# which gained 0.4 and 0.7 dB on an image of Set5.
OWN: dict[str, FitConfig] = {
    "colour": FIXED,
    "digits": replace(FIXED, iterations=60, ema=0.9),
    "inpainting": replace(FIXED, jitter=0.0),
    "super-resolution": replace(FIXED, jitter=0.0),
}


@dataclass(frozen=True)
class Task:
    """Images (B, C, H, W) in [0, 1], and what is observed of them."""

    references: Tensor
    observed: Tensor
    loss: Loss | None = None
    degrade: Degrade | None = None


def build_tasks(photos: Sequence[Tensor], digits: Tensor | None, seed: int = 0) -> dict[str, Task]:
    """The tasks by name, in the order of the table.

    `colour` has Gaussian noise with a PSNR of 29 dB, `digits` of sigma 0.25; neither is clipped. In `inpainting` half
    of the pixels are lost. In `super-resolution` the means of 2x2 pixels are observed.

    Args:
        photos: (3, H, W) in [0, 1], of one shape with even sides of at least 11.
        digits: (B, 1, H, W) in [0, 1]; no such task if None.
        seed: of noise and masks.

    Raises:
        ValueError: no photos, photos of several shapes or with odd or short sides, values outside [0, 1].
    """
    if not photos or len({photo.shape for photo in photos}) > 1:
        raise ValueError(f"photos must be at least one, and of one shape, got {len(photos)}: crop them")
    clean = torch.stack(list(photos))
    check_images(clean, "photos", channels=(3,))
    if min(clean.shape[2:]) < 11 or any(side % 2 for side in clean.shape[2:]):
        raise ValueError(f"photos must have even sides of at least 11 pixels, got {tuple(clean.shape[2:])}: crop them")
    generator = generator_of(seed, "ablation")

    def noisy(images: Tensor, sigma: float) -> Tensor:
        return gaussian(images, sigma, generator=generator, clip=False)

    tasks = {"colour": Task(clean, noisy(clean, 10 ** (-COLOUR_DB / 20)))}
    if digits is not None:
        check_images(digits, "digits", channels=(1,))
        tasks["digits"] = Task(digits, noisy(digits, DIGIT_SIGMA))
    mask = (torch.rand(clean[:, :1].shape, generator=generator) < 0.5).to(clean)
    tasks["inpainting"] = Task(clean, clean * mask, loss=masked_mse(mask))
    tasks["super-resolution"] = Task(clean, F.avg_pool2d(clean, 2), degrade=lambda x, index: F.avg_pool2d(x, 2))
    return tasks


def variants(own: FitConfig) -> dict[str, FitConfig]:
    """The rows of a denoising task: the three architectures, and its configuration with one change at a time.

    `between` is between two models: an autoencoder passes none of a scale's channels across, a U-Net all, and `between`
    half of them. `no EMA` returns the last output of the same fit.
    """
    options = dict(own.architecture_options)
    widths, upsampling = options["channels"], options["upsampling"]

    def skip(**changes: object) -> FitConfig:
        return replace(own, architecture_options={**options, **changes})

    def other(architecture: str, channels: list[int]) -> FitConfig:
        plain = {"channels": channels, "upsampling": upsampling}
        return replace(own, architecture=architecture, architecture_options=plain)

    return {
        "own": own,
        "autoencoder": other("autoencoder", widths),
        "unet": other("unet", [*widths, widths[-1]]),
        "between": skip(skip_channels=[width // 2 for width in widths]),
        "no skip": skip(skip_channels=0),
        "one more level": skip(channels=[*widths, widths[-1]]),
        "bilinear": skip(upsampling="bilinear"),
        "cosine loss": replace(own, loss="cosine"),
        "half the iterations": replace(own, iterations=max(1, own.iterations // 2)),
        "meshgrid input": replace(own, input="meshgrid", input_channels=2),
        "no jitter": replace(own, jitter=0.0),
        "no EMA": replace(own, ema=0.0),
    }


def benchmark_ablation(
    photos: Sequence[Tensor],
    digits: Tensor | None = None,
    *,
    fixed: FitConfig = FIXED,
    own: Mapping[str, FitConfig] = OWN,
    seed: int = 0,
    device: str | torch.device = "cpu",
    out: str | Path,
    progress: Callable[[float, float], None] | None = None,
) -> pd.DataFrame:
    """Fit every row of every task and compare it with the task's own configuration, on the same images.

    Args:
        photos: as `build_tasks` takes them; it makes the tasks.
        digits: as above.
        fixed: the configuration that every task is also fitted with, as row `fixed`.
        own: the configuration of each task, row `own`; those of `colour` and `digits` are varied (`variants`), and
            must be of the architecture `skip` with `channels` and `upsampling` stated.
        seed: of noise, masks and fits.
        device: where the fits are computed.
        out: folder for `records.jsonl`, one line per row, and `ablation.csv`; a killed run is continued there.
        progress: called with (rows done, rows in all); one under way counts in part.

    Returns:
        One row per task and network: `task, network, n`; `psnr` in dB, clipped to [0, 1], with `ci_low, ci_high`, a
        95 % bootstrap interval over images; `ssim`; `difference` of the PSNR to the task's own, with `difference_low,
        difference_high`, paired; `seconds` per image. The first row of a task is its `input`, if that has the size of
        the images.

    Raises:
        ValueError: what `build_tasks` refuses, a folder that holds another run.
    """
    tasks = build_tasks(photos, digits, seed)
    rows = [
        (task, network, config)
        for task in tasks
        for network, config in (
            *(variants(own[task]) if task in ("colour", "digits") else {"own": own[task]}).items(),
            ("fixed", fixed),
        )
    ]
    described = {
        **{"run": "benchmark ablation", "seed": seed, "device": str(device), **made_with("dipdefense", "torch")},
        "images": {name: _digests(task) for name, task in tasks.items()},
        "rows": {f"{name}, {network}": asdict(config) for name, network, config in rows},
    }
    run, table = Run(out, ("config",), described, grows=("images", "rows")), list[Record]()
    run.begin()
    for number, (name, network, config) in enumerate(rows):
        task = tasks[name]
        head = {"config": _key(task, config, seed, device), "task": name, "network": network}

        def report(state: Progress, number: int = number) -> None:
            if progress is not None:
                progress(number + state.share, len(rows))

        if run.missing([head]):
            run.add([head | _fitted(task, config, seed, device, report)])
        (record,) = run.records([head])
        if network == "own":
            base = record
            if task.observed.shape == task.references.shape:
                table.append(_row(name, "input", _scores(task.observed, task) | {"seconds": 0.0}, base))
        table.append(_row(name, network, record, base))
    frame = pd.DataFrame(table)
    write_whole(run.folder / "ablation.csv", frame.to_csv(index=False))
    run.end()
    return frame


def _fitted(
    task: Task, config: FitConfig, seed: int, device: str | torch.device, callback: Callable[[Progress], None]
) -> Record:
    result = fit(
        task.observed.to(device),
        config,
        seed=seed,
        degrade=task.degrade,
        z=_input(task, config, seed, device),
        loss=task.loss,
        callback=callback,
    )
    return _scores(result.reconstruction.cpu(), task) | {"seconds": result.seconds / len(task.references)}


def _key(task: Task, config: FitConfig, seed: int, device: str | torch.device) -> str:
    """A hash of everything that the scores depend on; rows with equal hashes share one fit."""
    settings = {"fit": asdict(config), "seed": seed, "device": str(device), "images": _digests(task)}
    return configuration_hash(settings | made_with("dipdefense", "torch"))


def _digests(task: Task) -> list[str]:
    return [digest(task.references), digest(task.observed)]


def _input(task: Task, config: FitConfig, seed: int, device: str | torch.device) -> Tensor | None:
    """z in the size of the images, if the observed ones have another size; else the engine draws it."""
    if task.degrade is None:
        return None
    H, W = task.references.shape[2:]
    generator = generator_of(seed, "ablation", "input")
    return INPUTS[config.input](config.input_channels, H, W, generator=generator).to(device)


def _scores(images: Tensor, task: Task) -> Record:
    """PSNR and SSIM of each image, clipped to [0, 1]."""
    clipped = images.clamp(0, 1)
    return {"psnr": psnr(clipped, task.references).tolist(), "ssim": ssim(clipped, task.references).tolist()}


def _row(task: str, network: str, record: Record, base: Record) -> Record:
    decibels = np.asarray(record["psnr"])
    mean, low, high = mean_interval(decibels)
    difference, worse, better = mean_interval(decibels - np.asarray(base["psnr"]))
    return {
        "task": task,
        "network": network,
        "n": len(decibels),
        "psnr": mean,
        "ci_low": low,
        "ci_high": high,
        "ssim": float(np.mean(record["ssim"])),
        "difference": difference,
        "difference_low": worse,
        "difference_high": better,
        "seconds": record["seconds"],
    }
