"""Noise impedance: a generator fits a photograph faster than noise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dipdefense import FitConfig, Progress, fit
from dipdefense.image_tensors import check_images
from eval.noise import gaussian, generator_of
from eval.plots import save_lines

__all__ = ["TARGETS", "arrivals", "impedance_targets", "noise_impedance", "save_impedance"]

TARGETS = ("image", "image + noise", "shuffled pixels", "noise")


def impedance_targets(image: Tensor, sigma: float, seed: int) -> Tensor:
    """The image, the image with Gaussian noise, with its pixels permuted, and uniform noise, (4, C, H, W).

    All are in [0, 1], the range of the generator, so the noisy image is clipped. The channels of a pixel are permuted
    together.
    """
    generator = generator_of(seed, "impedance")
    C, H, W = image.shape
    noisy = gaussian(image[None], sigma, generator=generator)[0]
    shuffled = image.flatten(1)[:, torch.randperm(H * W, generator=generator)].reshape(C, H, W)
    noise = torch.rand(image.shape, generator=generator, dtype=image.dtype)
    return torch.stack([image, noisy, shuffled, noise])


def noise_impedance(
    image: Tensor,
    config: FitConfig,
    *,
    sigma: float = 25 / 255,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> pd.DataFrame:
    """The loss along the fits to an image, the image with noise, its pixels shuffled, and noise, as one batch.

    Source: Ulyanov et al. (2018), figure 2.

    Args:
        image: (C, H, W) in [0, 1].
        config: settings of the fits; its rule must be `fixed`, so that all run to the end.
        sigma: of the noise that is added, in [0, 1] units.
        seed: of noise, permutation and fits.
        device: where the fits are computed.
        progress: called with (share of the work that is done, 1).

    Returns:
        One row per target and iteration: `target, iteration, loss`.

    Raises:
        ValueError: not an image, another rule, a sigma that is not positive.
    """
    check_images(image, "image", ndim=3, channels=(1, 3))
    if config.stopping != "fixed":
        raise ValueError(f"config must stop by the rule fixed, got {config.stopping!r}: all curves have one length")
    targets = impedance_targets(image, sigma, seed)
    losses = torch.full((len(TARGETS), config.iterations), torch.nan)

    def watch(state: Progress) -> None:
        losses[state.index.cpu(), state.iteration - 1] = state.loss.float().cpu()
        if progress is not None:
            progress(state.share, 1)

    fit(targets.to(device), config, seed=seed, callback=watch)
    frames = [
        pd.DataFrame({"target": name, "iteration": range(1, config.iterations + 1), "loss": row.numpy()})
        for name, row in zip(TARGETS, losses, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def arrivals(curves: pd.DataFrame) -> pd.DataFrame:
    """One row per target: `target`, `first` and `last` loss in decibels (-10 log10), `tenth`.

    `tenth` is the iteration at which the loss first fell to a tenth of the first one, 0 if it never did.
    """
    rows = []
    for target, curve in curves.groupby("target", sort=False):
        losses = curve["loss"].to_numpy()
        there = losses <= losses[0] / 10
        tenth = int(curve["iteration"].to_numpy()[there.argmax()]) if there.any() else 0
        first, last = -10 * np.log10(losses[[0, -1]])
        rows.append({"target": target, "first": first, "last": last, "tenth": tenth})
    return pd.DataFrame(rows)


def save_impedance(out: str | Path, curves: pd.DataFrame) -> None:
    """Write `impedance.csv` and `impedance.png` into a folder, made if missing."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    curves.to_csv(folder / "impedance.csv", index=False)
    save_lines(
        folder / "impedance.png", curves, x="iteration", kind="target", panels={"loss": curves["loss"]}, log=True
    )
