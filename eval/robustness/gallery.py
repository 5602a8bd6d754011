"""The gallery of a run: images along their fit, with the prediction for each frame.

`gallery/gallery.json` holds the values, `gallery/000.png` and so on the pixels. Each item has one strip, which shows
from top to bottom the clean image, the input of the fit, and a frame for each iteration in `gallery.json`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dipdefense import DefendedClassifier
from dipdefense.files.writing import write_image
from eval.datasets import ImageDataset
from eval.metrics import psnr, ssim
from eval.records import write_whole
from eval.robustness.config import RunConfig, craft

__all__ = ["FRAMES", "gallery_of_run", "save_gallery"]

FRAMES = 24  # of each image, evenly spaced along the fit


def gallery_of_run(
    folder: str | Path,
    defended: DefendedClassifier,
    dataset: ImageDataset,
    config: RunConfig,
    *,
    n: int,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Save the gallery of a run's first n images, clean and under each of its attacks on the bare classifier.

    Args:
        folder: of the run.
        defended: the defence of the run, on `device`.
        dataset: its labelled images.
        config: its settings.
        n: images, at most those of the run.
        device: where the classifier is and the images go.
        progress: called with (conditions done, conditions in all).

    Raises:
        ValueError: n outside the run, a stopping rule other than `fixed`.
    """
    if not 1 <= n <= config.n:
        raise ValueError(f"gallery must lie between 1 and the {config.n} images of the run, got {n}")
    order = dataset.first(config.n, config.seed)
    crafted: dict[str, list[Tensor]] = {"clean": [], **{attack: [] for attack in config.chosen_attacks}}
    for start in range(0, n, config.batch_size):  # the batches of the run, so that each attack starts as it did there
        positions = order[start : start + config.batch_size]
        images, labels = dataset.batch(positions.tolist()).to(device), dataset.labels[positions].to(device)
        crafted["clean"].append(images)
        for attack in config.chosen_attacks:
            crafted[attack].append(craft(attack, defended.classifier, images, labels, config))
    order = order[:n]
    save_gallery(
        folder,
        defended,
        {condition: torch.cat(batches)[:n] for condition, batches in crafted.items()},
        dataset.labels[order],
        dataset.index[order].tolist(),
        class_names=dataset.class_names,
        progress=progress,
    )


@torch.no_grad()
def save_gallery(
    folder: str | Path,
    defended: DefendedClassifier,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    index: Sequence[int],
    *,
    class_names: Sequence[str],
    frames: int = FRAMES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fit images with the settings of the defence, and save frames along each fit.

    Args:
        folder: of the run; the gallery is `folder/gallery`.
        defended: its fit, seed and classifier are used.
        inputs: condition -> images (B, C, H, W) in [0, 1], `clean` among them.
        labels: true classes, (B,).
        index: positions of the images in their data set.
        class_names: of all classes.
        frames: how many of each fit, at most.
        progress: called with (conditions done, conditions in all).

    Raises:
        ValueError: a stopping rule other than `fixed`, since its fits end at different iterations.
    """
    clean = inputs["clean"]
    purifier, _ = defended.plan(clean)
    fit = purifier.config_for(clean)
    if fit.stopping != "fixed":
        raise ValueError(f"gallery must go with the stopping rule fixed, got {fit.stopping!r}: leave it out")
    iterations = sorted({max(1, round(fit.iterations * k / frames)) for k in range(1, frames + 1)})
    gallery = Path(folder) / "gallery"
    gallery.mkdir(parents=True, exist_ok=True)
    items: list[dict[str, Any]] = []
    for number, (condition, images) in enumerate(inputs.items(), 1):
        along = purifier.trajectory(images, iterations)  # (T, B, C, H, W)
        read = [_read(defended.classifier, batch) for batch in (images, *along)]
        answers = _read(defended, images)
        measured = [_compare(frame, clean, images) for frame in (images, *along)]
        for i, label in enumerate(labels.tolist()):
            write_image(torch.cat([clean[i], images[i], *along[:, i]], 1), gallery / f"{len(items):03d}.png")
            rows = [seen[i] | compared[i] for seen, compared in zip(read, measured, strict=True)]
            numbered = [{"iteration": t} | row for t, row in zip(iterations, rows[1:], strict=True)]
            head = {"index": index[i], "label": label, "condition": condition}
            items.append(head | {"input": rows[0], "answer": answers[i], "frames": numbered})
        if progress is not None:
            progress(number, len(inputs))
    size = dict(zip(("channels", "height", "width"), clean.shape[1:], strict=True))
    content = {"classes": list(class_names), **size, "fit_iterations": fit.iterations, "items": items}
    write_whole(gallery / "gallery.json", json.dumps(content, allow_nan=False) + "\n")


def _read(classifier: nn.Module, images: Tensor) -> list[dict[str, Any]]:
    """The predicted class of each image, and its softmax probability."""
    probability, prediction = classifier(images).softmax(1).max(1)
    pairs = zip(prediction.tolist(), probability.tolist(), strict=True)
    return [{"prediction": guess, "probability": round(sure, 4)} for guess, sure in pairs]


def _compare(images: Tensor, clean: Tensor, observed: Tensor) -> list[dict[str, Any]]:
    """PSNR in dB and SSIM against the clean images, None if equal; RMS difference from the fitted images."""
    residual = (images - observed).square().flatten(1).mean(1).sqrt()
    rows = zip(psnr(images, clean).tolist(), ssim(images, clean).tolist(), residual.tolist(), strict=True)
    return [
        {"psnr": round(p, 2) if math.isfinite(p) else None, "ssim": round(s, 4), "residual": round(r, 5)}
        for p, s, r in rows
    ]
