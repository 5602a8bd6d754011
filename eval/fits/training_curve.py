"""The training curve of a fit: how close its output and moving average are to the clean and to the noisy image."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from dipdefense import FitConfig, Progress, fit
from dipdefense.image_tensors import check_images
from eval.metrics import psnr, ssim
from eval.plots import save_lines

__all__ = ["save_training_curve", "training_curve"]


def training_curve(
    reference: Tensor,
    noisy: Tensor,
    config: FitConfig,
    *,
    every: int = 10,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> pd.DataFrame:
    """Score the output and its moving average at every k-th iteration, both clipped to [0, 1].

    Args:
        reference: (C, H, W) in [0, 1].
        noisy: the fitted image, same shape; it may leave [0, 1], and is not clipped for scoring.
        config: settings of the fit; the curve ends when its stopping rule ends the fit.
        every: iterations between two rows.
        seed: of the fit.
        device: where it is computed.
        progress: called with (share of the work that is done, 1).

    Returns:
        One row per iteration, `of` (`output`, `average`) and `against` (`reference`, `noisy`):
        `iteration, of, against, psnr, ssim`, PSNR in dB.

    Raises:
        ValueError: images of different shapes, sides below 11 pixels, `every` outside the fit.
    """
    check_images(reference, "reference", ndim=3, channels=(1, 3))
    if noisy.shape != reference.shape or min(reference.shape[1:]) < 11:
        shapes = f"{tuple(noisy.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"noisy and reference must be of one shape, with sides of at least 11, got {shapes}")
    if not 1 <= every <= config.iterations:
        raise ValueError(f"every must lie between 1 and the {config.iterations} iterations of the fit, got {every}")
    against = {"reference": reference[None].to(device), "noisy": noisy[None].to(device)}
    rows = []

    @torch.no_grad()
    def watch(state: Progress) -> None:
        if state.iteration % every == 0:
            for name, image in (("output", state.output), ("average", state.average)):
                for other, target in against.items():
                    scores = [metric(image.clamp(0, 1), target).item() for metric in (psnr, ssim)]
                    rows.append((state.iteration, name, other, *scores))
        if progress is not None:
            progress(state.share, 1)

    fit(against["noisy"], config, seed=seed, callback=watch)
    return pd.DataFrame(rows, columns=["iteration", "of", "against", "psnr", "ssim"])


def save_training_curve(out: str | Path, curve: pd.DataFrame) -> None:
    """Write `curve.csv` and `curve.png` into a folder, made if missing."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    curve.to_csv(folder / "curve.csv", index=False)
    panels = {
        f"{label} against {other}": curve.loc[curve["against"] == other, score]
        for other in ("reference", "noisy")
        for score, label in (("psnr", "PSNR, dB,"), ("ssim", "SSIM"))
    }
    save_lines(folder / "curve.png", curve, x="iteration", kind="of", panels=panels)
