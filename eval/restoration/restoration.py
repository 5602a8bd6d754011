"""The restoration benchmark: deep image prior, total variation and library methods on degraded real images.

A run writes its description to `config.json`, one record per image and method to `records.jsonl` and the restored image
to `images/` as they are made, and `summary.csv`, `summary.json`, `paired.csv` and the contact sheet `sheet.png` at its
end. A killed run is continued by the same call. Tasks and methods may be added.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

import dipdefense
from dipdefense import FitConfig
from dipdefense.arguments import did_you_mean
from dipdefense.digest import configuration_hash
from dipdefense.files.reading import read_image
from dipdefense.files.writing import write_image
from dipdefense.filters.cosine_filters import back_project, fill
from dipdefense.restoration.jpeg import iterations_for
from dipdefense.restoration.jpeg_quality import estimate_quality
from dipdefense.restoration.operators import downsampling
from dipdefense.restoration.presets import (
    PIXELS,
    PUBLISHED,
    PUBLISHED_INPAINTING,
    SMALL,
    TILE,
    published_super_resolution,
)
from eval.records import Record, Run, made_with, write_whole
from eval.restoration.contact_sheet import save_sheet
from eval.restoration.degraded_inputs import SCENES, Scene, by_pillow
from eval.restoration.denoising_tables import PAIRED, paired_scores
from eval.restoration.restoration_scores import FIGURES, score_restored

__all__ = [
    "DEFAULT_TASKS",
    "LIBRARY",
    "METHODS",
    "benchmark_restoration",
    "paired_restoration",
    "summarise_restoration",
]

DEFAULT_TASKS = (
    *("text", "holes", "half", "sparse", "inpaint11", "zebra", "zebra2", "zebra8"),
    *("jpeg", "jpeg10", "flash", "inversion", "activation"),
)
# Weight of total variation for each function; tasks without noise need little of it.
VARIATION = {
    "inpaint": 0.01,
    "super_resolve": 0.003,
    "remove_jpeg_artifacts": 0.05,
    "flash_no_flash": 0.1,
    "invert_features": 1.0,
    "maximise_activation": 1e4,  # an activation has no bound
}


def _biharmonic(scene: Scene) -> Tensor:
    image, mask = scene.inputs
    known = (image * mask).permute(1, 2, 0).numpy()
    return _tensor(inpaint_biharmonic(known, mask[0].numpy() == 0, channel_axis=-1))


def _thresholded(scene: Scene) -> Tensor:
    """`fill` without a fit: begun at the biharmonic interpolation."""
    image, mask = (part[None] for part in scene.inputs)
    return fill(image, mask.bool(), _biharmonic(scene)[None])[0].clamp(0, 1)


def _back_projected(scene: Scene) -> Tensor:
    """`back_project` without a fit: begun at the bicubic interpolation."""
    small, factor = scene.inputs[0][None], scene.options["factor"]
    reduce = downsampling(factor, *(factor * side for side in small.shape[2:]))
    large = back_project(small, _enlarged(scene, Image.Resampling.BICUBIC)[None], reduce)
    return large[0].clamp(0, 1)


def _enlarged(scene: Scene, how: Image.Resampling) -> Tensor:
    image, factor = scene.inputs[0], scene.options["factor"]
    return by_pillow(image, [factor * side for side in image.shape[1:]], how)


def _tensor(pixels: Any) -> Tensor:
    """(H, W, C) -> (C, H, W), clipped to [0, 1]."""
    return torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32)).clamp(0, 1)


# function of dipdefense -> library methods to compare with
LIBRARY: dict[str, dict[str, Callable[[Scene], Tensor]]] = {
    "inpaint": {"biharmonic": _biharmonic, "cosine": _thresholded},
    "super_resolve": {
        "bicubic": lambda scene: _enlarged(scene, Image.Resampling.BICUBIC),
        "nearest": lambda scene: _enlarged(scene, Image.Resampling.NEAREST),
        "cosine": _back_projected,
    },
    "remove_jpeg_artifacts": {"input": lambda scene: scene.inputs[0]},
    "flash_no_flash": {},
    "invert_features": {},
    "maximise_activation": {},
}
# function of dipdefense -> what goes with its own settings, where no others are given
USUAL: dict[str, dict[str, Any]] = {
    "inpaint": {"tile": TILE, "refine": True},
    "super_resolve": {"tile": TILE, "refine": True},
    "remove_jpeg_artifacts": {"tile": TILE, "refine": True},
}
METHODS = ("dip", "tv", "pixels", "library")


def benchmark_restoration(
    data: str | Path,
    *,
    tasks: Sequence[str] = DEFAULT_TASKS,
    methods: Sequence[str] = METHODS,
    size: int | None = 128,
    config: FitConfig | None = None,
    published: bool = False,
    iterations: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    out: str | Path,
    progress: Callable[[float, float], None] | None = None,
) -> pd.DataFrame:
    """Restore degraded images by every method and compare with the reference, which no method uses.

    Args:
        data: folder with `dip`, `sets` and `weights`.
        tasks: keys of `SCENES`.
        methods: among `METHODS`: `dip`; `tv`, total variation over plain pixels; `pixels`, plain pixels without any
            prior, for the tasks that use a classifier; `library`, the methods of `LIBRARY`.
        size: side of the images in pixels; None for their own.
        config: settings of all fits; None for those of each task.
        published: use the published settings of each task instead of the small ones.
        iterations: of all fits; None for those of their settings.
        seed: of masks and fits.
        device: where fits are computed.
        out: folder of the run, made if missing.
        progress: called with (images restored, in all).

    Returns:
        The table of `summarise_restoration`, also in `out`.

    Raises:
        ValueError: an unknown task or method, a size below 16 or above that of an image, `config` with `published`, a
            folder that holds another run.
        OSError: an image is missing, the folder cannot be written.
    """
    for name, chosen, known in (("tasks", tasks, tuple(SCENES)), ("methods", methods, METHODS)):
        unknown = [value for value in chosen if value not in known]
        if unknown or not chosen:
            hint = did_you_mean(unknown[0], known) if unknown else ""
            raise ValueError(f"{name} must be among {', '.join(known)}, got {(unknown or [''])[0]!r}{hint}")
    if size is not None and size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    if config is not None and published:
        raise ValueError("config and published must not be given together: each names the settings of the fits")
    scenes = [scene for task in tasks for scene in SCENES[task](Path(data), size, seed)]
    jobs = [(scene, method) for scene in scenes for method in _methods(scene, methods)]
    if not jobs:
        raise ValueError(f"methods must be such that one restores {', '.join(tasks)}, got {', '.join(methods)}")
    heads = [
        _head(scene, method, _keywords(scene, method, config, published, iterations), size, seed, device)
        for scene, method in jobs
    ]
    run, records = Run(out, ("key",), _description(heads), grows=("scenes", "fits")), list[Record]()
    run.begin()
    (run.folder / "images").mkdir(exist_ok=True)
    for done, ((scene, method), head) in enumerate(zip(jobs, heads, strict=True), 1):
        keywords = _keywords(scene, method, config, published, iterations)
        file = run.folder / head["file"]
        if run.missing([head]) or not file.exists():
            start = time.perf_counter()
            restored = _restore(scene, method, keywords, seed, device)
            score = score_restored(restored, scene) | {"seconds": time.perf_counter() - start}
            write_image(restored, file)
            run.add([head | score])
        records += run.records([head])
        if progress is not None:
            progress(done, len(jobs))
    table = summarise_restoration(records)
    write_whole(run.folder / "summary.csv", table.to_csv(index=False))
    write_whole(run.folder / "summary.json", table.to_json(orient="records", indent=1))
    write_whole(run.folder / "paired.csv", paired_restoration(records).to_csv(index=False))
    _draw(run.folder, scenes, records)
    run.end()
    return table


def summarise_restoration(records: Sequence[Record]) -> pd.DataFrame:
    """One row per task and method: the mean over its images.

    Columns: `task, method, n, psnr, psnr_min`, `psnr_y, ssim, features, activation` (`score_restored`), `iterations`,
    `seconds` per image, `seed`. A value is empty if there is no reference, or the column does not apply.
    """
    frame = pd.DataFrame(list(records))
    figures = [*FIGURES, "iterations"]
    frame[figures] = frame[figures].astype(float)
    groups = frame.groupby(["task", "method"], sort=False)
    table = groups[[*figures, "seconds", "seed"]].mean()
    table.insert(0, "n", groups.size())
    table.insert(2, "psnr_min", groups["psnr"].min())
    return table.reset_index()


def paired_restoration(records: Sequence[Record]) -> pd.DataFrame:
    """The PSNR of `dip` minus that of every other method, image by image; of the luma for super-resolution.

    Columns: `task, score` (psnr or psnr_y), and those of `paired_scores`. Tasks without a reference or without `dip`
    have no rows.
    """
    tables = [pd.DataFrame(columns=["task", "score", *PAIRED])]
    for task in dict.fromkeys(record["task"] for record in records):
        own = [record for record in records if record["task"] == task and record["psnr"] is not None]
        if any(record["method"] == "dip" for record in own):
            score = "psnr" if own[0]["psnr_y"] is None else "psnr_y"
            tables.append(paired_scores(own, "dip", score).assign(task=task, score=score))
    return pd.concat(tables[1:] or tables)[tables[0].columns]


def _methods(scene: Scene, methods: Sequence[str]) -> list[str]:
    """The names in the table; `pixels` is there only for tasks that use a classifier."""
    names = {"library": list(LIBRARY[scene.function]), "pixels": ["pixels"] if scene.classifier else []}
    return [name for method in methods for name in names.get(method, [method])]


def _keywords(
    scene: Scene, method: str, config: FitConfig | None, published: bool, iterations: int | None
) -> dict[str, Any] | None:
    """What the function of the scene is called with; None for a method without a fit."""
    settings = _settings(scene, method, config, published, iterations)
    if settings is None:
        return None
    usual = USUAL.get(scene.function, {}) if method == "dip" and config is None and not published else {}
    return {"config": settings, "tv": VARIATION[scene.function] if method == "tv" else 0.0, **usual}


def _settings(
    scene: Scene, method: str, config: FitConfig | None, published: bool, iterations: int | None
) -> FitConfig | None:
    """Settings of the fit; None for a method without a fit. With a classifier all fits take the same steps."""
    if method == "tv" and scene.classifier is None:
        return PIXELS
    if method not in ("dip", "tv", "pixels"):
        return None
    large = PUBLISHED[scene.function]
    if scene.function == "inpaint":
        large = PUBLISHED_INPAINTING[scene.published]
    if scene.function == "super_resolve":
        large = published_super_resolution(scene.options["factor"])
    chosen = config or (large if published else SMALL[scene.function])
    if scene.function == "remove_jpeg_artifacts" and chosen is SMALL[scene.function] and iterations is None:
        quality = estimate_quality(scene.inputs[0])
        iterations = None if quality is None else iterations_for(quality)
    chosen = chosen if iterations is None else dataclasses.replace(chosen, iterations=iterations)
    return chosen if method == "dip" else dataclasses.replace(PIXELS, iterations=chosen.iterations)


def _head(
    scene: Scene,
    method: str,
    keywords: dict[str, Any] | None,
    size: int | None,
    seed: int,
    device: str | torch.device,
) -> Record:
    """How a record was made; its key distinguishes it from all others."""
    given = {"config": None, "tv": 0.0, "tile": None, "refine": False} | (keywords or {})
    settings: FitConfig | None = given["config"]
    configuration = {
        "task": scene.task,
        "image": scene.image,
        "method": method,
        "size": size,
        "seed": seed,
        **given,
        "config": None if settings is None else dataclasses.asdict(settings),
        "device": torch.device(device).type,
        **made_with("dipdefense", "torch", "scikit-image", "pillow"),
        "contents": configuration_hash(scene.contents()),
    }
    key = configuration_hash(configuration)
    return configuration | {
        "key": key,
        "file": f"images/{scene.task}-{scene.image}-{method}-{key[:8]}.png",
        "iterations": None if settings is None else settings.iterations,
    }


def _description(heads: Sequence[Record]) -> dict[str, Any]:
    """Everything that the records depend on, in plain values."""
    return {
        "run": "benchmark restoration",
        **{name: heads[0][name] for name in ("size", "seed", "device", "versions", "code")},
        "scenes": {f"{head['task']} {head['image']}": head["contents"] for head in heads},
        "fits": {
            f"{head['task']} {head['image']} {head['method']}": {
                "fit": head["config"],
                **{name: head[name] for name in ("tv", "tile", "refine")},
            }
            for head in heads
        },
    }


def _restore(
    scene: Scene, method: str, keywords: dict[str, Any] | None, seed: int, device: str | torch.device
) -> Tensor:
    """(C, H, W) in [0, 1], on the CPU."""
    if keywords is None:
        return LIBRARY[scene.function][method](scene)
    inputs: list[Any] = [image[None].to(device) for image in scene.inputs]
    if scene.classifier is not None:
        inputs = [scene.classifier.to(device), scene.layer, *inputs]
    restore = getattr(dipdefense, scene.function)
    restored: Tensor = restore(*inputs, **scene.options, **keywords, seed=seed)
    return restored[0].cpu()


def _draw(run: Path, scenes: Sequence[Scene], records: Sequence[Record]) -> None:
    """The contact sheet: one row per image, with the input, every method, and the reference."""
    rows = []
    for scene in scenes:
        row = _given(scene)
        name = "" if row else f"{scene.image}, "
        for record in records:
            if (record["task"], record["image"]) == (scene.task, scene.image) and record["method"] != "input":
                row.append((f"{name}{record['method']}{_quality(record)}", read_image(run / record["file"])))
        if scene.reference is not None:
            row.append(("reference", scene.reference))
        rows.append(row)
    save_sheet(run / "sheet.png", rows)


def _given(scene: Scene) -> list[tuple[str, Tensor]]:
    """The pictures of the input with their captions; none if the task has no input image."""
    title = f"{scene.task}: {scene.image}"
    if scene.function == "inpaint":
        return [(title, torch.where(scene.inputs[1] > 0, scene.inputs[0], 0.5))]
    if scene.function == "flash_no_flash":
        return [(title, scene.inputs[1]), ("flash", scene.inputs[0])]
    return [(title, image) for image in scene.inputs]


def _quality(record: Record) -> str:
    if record["activation"] is not None:
        return f" {record['activation']:.1f}"
    return "" if record["psnr"] is None else f" {record['psnr']:.2f} dB"
