"""The denoising benchmark: the deep image prior and classical denoisers on identical noise.

A run writes its description to `config.json` and one record per image, seed and method to `records.jsonl` as it is
made. At its end it writes `scores.csv` (the records, and their mean over the images of each seed), `summary.csv` (one
row for each method), `paired.csv` (all others against one), `results.json` (all of them, with the run's settings) and
`contact_sheet.jpg`. A killed run is continued by the same call. Methods, images and seeds may be added.

The reference is used for scores, and otherwise only by `dip_oracle`, which chooses its iterate with it.
"""

import dataclasses
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dipdefense import FitConfig, denoise
from dipdefense.digest import configuration_hash
from dipdefense.image_tensors import check_images
from dipdefense.restoration.denoising import NOISE_TASKS
from dipdefense.restoration.presets import SMALL as DEFAULTS
from dipdefense.restoration.presets import TILE
from eval.cost import clock
from eval.metrics import psnr, ssim
from eval.noise import NOISES, generator_of
from eval.records import Record, Run, digest, made_with
from eval.restoration.candidates import CANDIDATES, fit_candidates
from eval.restoration.denoisers import DENOISERS, estimated_sigma
from eval.restoration.denoising_pictures import KEY, SHOWN, keep_picture
from eval.restoration.denoising_tables import write_scores

__all__ = ["METHODS", "SMALL", "benchmark_denoising"]

# For 128x128 pixels and sigma 25 / 255, chosen on images of Set5 and Set14; docs/denoising-benchmark.md.
SMALL = FitConfig(
    architecture_options={"channels": [32, 32, 32, 32], "skip_channels": 4, "upsampling": "nearest"},
    input_channels=16,
    iterations=500,
    ema=0.98,
)

AVERAGE = "dip_average"
# The function `dipdefense.denoise` with its own settings, by the kind of noise that it is told.
DENOISE = {
    "denoise": "independent",
    "denoise_average": "independent",
    "denoise_camera": "camera",
    "denoise_impulse": "impulse",
}
PRIORS = (*CANDIDATES, AVERAGE, *DENOISE)
METHODS = (*DENOISERS, "dip", "dip_ema", AVERAGE, "dip_blind_stop", "dip_oracle", *DENOISE)
ESTIMATED = ":estimated"
CHECKPOINTS = "checkpoints"  # the folder of those of the images under way


@dataclasses.dataclass(frozen=True)
class _Scene:
    name: str
    noisy: Tensor  # (C, H, W), not clipped here
    reference: Tensor  # (C, H, W) in [0, 1]
    pixels: str  # digest of both


Estimate = tuple[Tensor, float, int | None, float | None]  # image (C, H, W), seconds, iteration, sigma


def benchmark_denoising(
    references: Sequence[tuple[str, Tensor]],
    methods: Sequence[str],
    config: FitConfig,
    *,
    sigma: float | None = None,
    noise: str = "gaussian",
    level: float | None = None,
    noisy: Sequence[Tensor] | None = None,
    clip: bool = False,
    seeds: int = 1,
    runs: int = 2,
    batch_size: int = 16,
    baseline: str = "dip_ema",
    device: str | torch.device = "cpu",
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Denoise all images by all methods, and score them against their references.

    Noise is a function of the seed and the image's name, and is the same for every method. Estimates are clipped to
    [0, 1] before they are scored; `psnr_unclipped` is the PSNR without clipping. A method is a key of `DENOISERS`,
    which is given sigma, or with `:estimated` an estimate; without sigma all of them use the estimate. The other
    methods never use sigma: `dip` (last output), `dip_ema` (moving average), `dip_average` (mean of the moving averages
    of several runs), `dip_blind_stop` (moving average where the rule `blind_discrepancy` stops) and `dip_oracle`
    (moving average of largest PSNR, by the reference). All but `dip_average` come from one fit. `denoise`,
    `denoise_camera` and `denoise_impulse` are `dipdefense.denoise`, told the kind of noise, with its own settings in
    place of `config`; `denoise_average` is `denoise` with the mean of several runs, of which the first is that of
    `denoise`. Their fits have checkpoints in `out`, so that a killed run goes on within an image.

    Args:
        references: (name, (1 or 3, H, W) in [0, 1]), sides of at least 16; no name twice.
        methods: as above, none twice.
        config: settings of the fits; its own rule must be `fixed`.
        sigma: standard deviation of the Gaussian noise that is added, in [0, 1] units. With other noise, or with
            `noisy`, it is only given to the filters, and may be None.
        noise: a key of `eval.noise.NOISES`.
        level: the strength of noise that is not Gaussian.
        noisy: real noisy images, one for each reference; none is added to them.
        clip: clip the noisy images to [0, 1] before any method gets them; noise that is not Gaussian is always clipped.
        seeds: noise and fits are repeated with the seeds 0, 1, ...
        runs: fits that `dip_average` and `denoise_average` average; seed s has the fits of seeds s * runs to
            s * runs + runs - 1, and the first of them gives the others.
        batch_size: images fitted together; records are written after each such batch.
        baseline: the method that `paired.csv` subtracts the others from; the first one if it is not among `methods`.
        device: where the fits are computed; the filters run on the CPU.
        out: folder of the run, made if missing.
        progress: called with (records made, records in all) after every batch.

    Returns:
        The table of `eval.scores.summarise_scores`, also in `out`.

    Raises:
        ValueError: no image, an image of a wrong shape or range, a sigma outside (0, 1], an unknown method or noise, a
            level that the noise does not have, neither sigma nor level nor noisy images, `seeds`, `runs` or
            `batch_size` below 1, or a folder that holds another run.
        ImportError: a method's package is not installed.
        OSError: the folder cannot be written.
    """
    _check_noise(sigma, noise, level, noisy, clip)
    if noise == "camera" and any(len(image) != 3 for _, image in references):
        raise ValueError("references must be RGB for the noise camera, got a grey image")
    _check(references, methods, config, sigma, noisy, {"seeds": seeds, "runs": runs, "batch_size": batch_size})
    labels = [_label(method, sigma) for method in methods]
    made = made_with("dipdefense", "torch")
    settings = {label: _settings(label, sigma, config, runs, device) for label in labels}
    heads = [{"config": configuration_hash(made | settings[label]), "method": label} for label in labels]
    added = sigma if noise == "gaussian" and noisy is None else None  # else sigma is only given to the filters
    described: Record = {
        **{"run": "benchmark denoising", "noise": noise if noisy is None else "real", "level": level, "clip": clip},
        "sigma": added,
        "methods": settings,
        "images": _digests(references, noisy),
        **made,
    }
    run, records = Run(out, KEY, described, grows=("methods", "images")), list[Record]()
    run.begin()
    pictures = run.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    own: Record = {"level": sigma, "clip": clip} if noise == "gaussian" else {"level": level}
    add = partial(NOISES[noise], **own)
    total, shown = len(references) * len(labels) * seeds, [name for name, _ in references[:SHOWN]]
    for seed in range(seeds):
        for batch in _batches(_scenes(references, add, noisy, seed), batch_size):
            here = [
                head | {"image": scene.name, "pixels": scene.pixels, "seed": seed} for scene in batch for head in heads
            ]
            missing = {(head["image"], head["method"]): head for head in run.missing(here)}
            new = []
            for scene, label, estimate in _estimates(batch, missing, sigma, config, seed, runs, device, run.folder):
                new.append(missing[scene.name, label] | _scored(scene, estimate))
                if seed == 0 and scene.name in shown:
                    keep_picture(pictures, new[-1], scene.reference, estimate[0])
            run.add(new)
            shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)
            records += run.records(here)
            if progress is not None and new:
                progress(len(records), total)
    against = baseline if baseline in labels else labels[0]
    stated: Record = {"sigma": sigma, "level": level, "clip": clip, "seeds": seeds, "runs": runs}
    stated |= {"noisy": noise if noisy is None else "real", "fit": dataclasses.asdict(config)}
    order = {name: i for i, (name, _) in enumerate(references)}
    records.sort(key=lambda record: (record["seed"], order[record["image"]]))
    table = write_scores(run.folder, records, against, stated)
    run.end()
    return table


def _scenes(
    references: Sequence[tuple[str, Tensor]], add: Callable[..., Tensor], noisy: Sequence[Tensor] | None, seed: int
) -> list[_Scene]:
    scenes = []
    for i, (name, reference) in enumerate(references):
        if noisy is not None:
            shot = noisy[i]
        else:
            shot = add(reference[None], generator=generator_of(seed, name, "denoising"))[0]
        scenes.append(_Scene(name, shot, reference, digest(torch.stack([shot, reference]))))
    return scenes


def _batches(scenes: Sequence[_Scene], batch_size: int) -> Iterator[list[_Scene]]:
    """Scenes of one shape, up to `batch_size` at a time."""
    for shape in dict.fromkeys(scene.reference.shape for scene in scenes):
        alike = [scene for scene in scenes if scene.reference.shape == shape]
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _estimates(
    batch: Sequence[_Scene],
    missing: Collection[tuple[str, str]],
    sigma: float | None,
    config: FitConfig,
    seed: int,
    runs: int,
    device: str | torch.device,
    folder: Path,
) -> Iterator[tuple[_Scene, str, Estimate]]:
    """The missing estimates of a batch, by name of the scene and label."""
    scenes = {scene.name: scene for scene in batch}
    for name, label in missing:
        if label in DENOISE:
            checkpoint = folder / CHECKPOINTS / f"{name}-{DENOISE[label]}-{seed}"
            yield scenes[name], label, _denoised(scenes[name], label, seed * runs, runs, device, checkpoint)
        elif label not in PRIORS:
            yield scenes[name], label, _filtered(scenes[name], label, sigma)
    fitted = [(name, label) for name, label in missing if label in PRIORS and label not in DENOISE]
    if fitted:
        here = list(dict.fromkeys(name for name, _ in fitted))
        repeats = runs if any(label == AVERAGE for _, label in fitted) else 1
        seeds = range(seed * runs, seed * runs + repeats)
        made = _fitted([scenes[name] for name in here], config, seeds, device)
        for name, label in fitted:
            yield scenes[name], label, made[label][here.index(name)]


def _filtered(scene: _Scene, label: str, sigma: float | None) -> Estimate:
    image = scene.noisy.permute(1, 2, 0).double().numpy()
    start = clock(torch.device("cpu"))
    level = estimated_sigma(image) if label.endswith(ESTIMATED) else sigma
    filtered = DENOISERS[label.removesuffix(ESTIMATED)](image, 0.0 if level is None else level)
    seconds = clock(torch.device("cpu")) - start
    estimate = torch.from_numpy(np.ascontiguousarray(filtered)).permute(2, 0, 1).to(scene.reference)
    return estimate, seconds, None, None if label == "noisy" else level


def _denoised(
    scene: _Scene, label: str, seed: int, runs: int, device: str | torch.device, checkpoint: Path
) -> Estimate:
    """What `dipdefense.denoise` makes of the image, clipped to [0, 1] as that of any file is.

    A fit that is finished for another label is not repeated, and its seconds count for that label alone.
    """
    noisy = scene.noisy.to(device)[None].clamp(0, 1)
    start = clock(noisy.device)
    checkpoint.parent.mkdir(exist_ok=True)
    several = label == "denoise_average" and runs > 1
    file = checkpoint if several else checkpoint.with_name(f"{checkpoint.name}.1")  # as `denoise` names the first run
    clean = denoise(noisy, noise=DENOISE[label], runs=runs if several else 1, seed=seed, checkpoint=file)[0]
    return clean.cpu(), clock(noisy.device) - start, None, None


def _fitted(
    scenes: Sequence[_Scene], config: FitConfig, seeds: range, device: str | torch.device
) -> dict[str, list[Estimate]]:
    """The candidates of the first seed, and the mean of the moving averages of all seeds."""
    reference = torch.stack([scene.reference for scene in scenes]).to(device)
    noisy = torch.stack([scene.noisy for scene in scenes]).to(device)
    fits = [fit_candidates(reference, noisy, config, seed) for seed in seeds]
    made: dict[str, list[Estimate]] = {
        name: [(image.cpu(), seconds, iteration, None) for image, seconds, iteration in fits[0][name]]
        for name in CANDIDATES
    }
    made[AVERAGE] = []
    for every in zip(*(one["dip_ema"] for one in fits), strict=True):
        images, seconds, iterations = zip(*every, strict=True)
        made[AVERAGE].append((torch.stack(images).mean(0).cpu(), sum(seconds), max(iterations), None))
    return made


def _scored(scene: _Scene, estimate: Estimate) -> Record:
    image, seconds, iteration, sigma = estimate
    reference, clipped = scene.reference[None], image[None].clamp(0, 1)
    return {
        "psnr": psnr(clipped, reference).item(),
        "ssim": ssim(clipped, reference).item(),
        "psnr_unclipped": psnr(image[None], reference).item(),
        "seconds": seconds,
        "iteration": iteration,
        "sigma": sigma,
    }


def _label(method: str, sigma: float | None) -> str:
    """The method's name in records; a filter that estimates sigma has the suffix `ESTIMATED`."""
    told = sigma is not None or method in PRIORS or method == "noisy" or method.endswith(ESTIMATED)
    return method if told else method + ESTIMATED


def _settings(label: str, sigma: float | None, config: FitConfig, runs: int, device: str | torch.device) -> Record:
    """Everything that the estimates of a method depend on besides the images, in plain values."""
    if label in DENOISE:
        return {
            "method": label,
            "fit": dataclasses.asdict(DEFAULTS[NOISE_TASKS[DENOISE[label]]]),
            "tile": TILE,
            "runs": runs,
            "device": str(device),
        }
    if label in PRIORS:
        return {"method": label, "fit": dataclasses.asdict(config), "runs": runs, "device": str(device)}
    package = "bm3d" if "bm3d" in label else "scikit-image"
    told = None if label == "noisy" or label.endswith(ESTIMATED) else sigma
    return {"method": label, "sigma": told} | ({} if label == "cosine" else {package: version(package)})


def _digests(references: Sequence[tuple[str, Tensor]], noisy: Sequence[Tensor] | None) -> dict[str, str]:
    """Digests of the pixels of each reference, and of its noisy image if there is one."""
    shots = [image for _, image in references] if noisy is None else noisy
    return {name: digest(torch.stack([shot, image])) for (name, image), shot in zip(references, shots, strict=True)}


def _check_noise(
    sigma: float | None, noise: str, level: float | None, noisy: Sequence[Tensor] | None, clip: bool
) -> None:
    """Raise if the noise has no strength or two, or is given together with noisy images."""
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    if sigma is not None and not 0 < sigma <= 1:
        raise ValueError(f"sigma must lie in (0, 1], images being in [0, 1], got {sigma}: write 25 / 255")
    if noisy is not None:
        if noise != "gaussian" or level is not None:
            raise ValueError(f"noise and level must be left out where noisy images are given, got {noise!r}, {level}")
        if clip:
            raise ValueError("clip must be False where noisy images are given, got True: they are in [0, 1]")
    elif noise != "gaussian":
        if level is None:
            raise ValueError(f"level must be given for the noise {noise!r}, got None")
        NOISES[noise](
            torch.zeros(1, 3, 8, 8), level, generator=torch.Generator()
        )  # raises for a level that the noise does not have
    elif level is not None:
        raise ValueError(f"level must be left out for Gaussian noise, got {level}: give sigma")
    elif sigma is None:
        raise ValueError("sigma must be given where noise is to be added, got None: give it, or noisy images")


def _check(
    references: Sequence[tuple[str, Tensor]],
    methods: Sequence[str],
    config: FitConfig,
    sigma: float | None,
    noisy: Sequence[Tensor] | None,
    counts: Mapping[str, int],
) -> None:
    """Raise, before anything is computed, if the run would fail or mislead later."""
    known = {*METHODS, *(f"{name}{ESTIMATED}" for name in DENOISERS if name != "noisy")}
    unknown = [method for method in methods if method not in known]
    if not methods or unknown:
        wanted = f"among {', '.join(METHODS)}, a filter perhaps with {ESTIMATED}"
        raise ValueError(f"methods must be {wanted}, got {unknown[0] if unknown else 'none'}")
    if len({_label(method, sigma) for method in methods}) < len(methods):
        raise ValueError(f"methods must differ from each other, got {', '.join(methods)}")
    if not references or len({name for name, _ in references}) < len(references):
        raise ValueError(f"references must be at least one, with different names, got {len(references)}")
    for name, image in references:
        check_images(image, name, ndim=3, channels=(1, 3))
        if min(image.shape[1:]) < 16:
            raise ValueError(f"{name}: sides must be at least 16 pixels, got {tuple(image.shape[1:])}")
        if image.shape[0] != 3 and any(method.startswith("cbm3d") for method in methods):
            raise ValueError(f"{name}: cbm3d must be given RGB images, got {image.shape[0]} channel: use bm3d")
    if noisy is not None:
        if [image.shape for image in noisy] != [image.shape for _, image in references]:
            raise ValueError(f"noisy must be one image for each of {len(references)} references, of its shape")
        for image, (name, reference) in zip(noisy, references, strict=True):
            check_images(image, f"{name}, noisy", ndim=3)
            if torch.equal(image, reference):
                raise ValueError(f"{name}: the noisy image must differ from its reference, got equal pixels")
    if config.stopping != "fixed":
        raise ValueError(f"config must stop by the rule fixed, got {config.stopping!r}: dip_blind_stop brings its own")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
