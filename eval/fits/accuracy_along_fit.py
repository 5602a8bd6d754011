"""Accuracy and PSNR along a fit, which served to choose the number of iterations of a default."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from dipdefense import FitConfig, Progress, fit
from eval.datasets import ImageDataset
from eval.intervals import wilson
from eval.metrics import psnr, ssim
from eval.robustness.config import RunConfig, check_run, craft

__all__ = ["accuracy_along_fit"]


def accuracy_along_fit(
    classifier: nn.Module,
    dataset: ImageDataset,
    config: RunConfig,
    fit_config: FitConfig,
    *,
    every: int = 20,
    device: str | torch.device = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> pd.DataFrame:
    """Classify the result of a fit at every k-th iteration, for clean and attacked images.

    It uses labels, so run it only on images that are meant for choosing settings.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode, on `device`.
        dataset: labelled images; the first `config.n` of a seeded permutation are used.
        config: the attacks, crafted on the bare classifier.
        fit_config: settings of the fit; its stopping rule must be `fixed`, so that all images run to the end.
        every: iterations between two rows.
        device: where the classifier is and the images go.
        progress: called with (fits done, fits in all); one under way counts in part.

    Returns:
        One row per attack and iteration: `attack, iteration, n, accuracy, ci_low, ci_high, psnr, seconds, ssim`. The
        interval is the 95 % Wilson interval; PSNR in dB and SSIM are against the clean image; seconds are per image, of
        the fit up to that iteration including the scoring.

    Raises:
        ValueError: another stopping rule, attacks on the defended model, `every` outside the fit, or a classifier, data
            set or settings that `evaluate_robustness` refuses.
    """
    if fit_config.stopping != "fixed":
        raise ValueError(f"fit_config must stop by the rule fixed, got {fit_config.stopping!r}")
    if config.crafted_on != "bare":
        raise ValueError(f"crafted_on must be bare, since no fit is finished here, got {config.crafted_on!r}")
    if not 1 <= every <= fit_config.iterations:
        raise ValueError(f"every must lie between 1 and the {fit_config.iterations} iterations of the fit, got {every}")
    check_run(classifier, dataset, config.n, device)
    positions = dataset.first(config.n, config.seed)
    clean, labels = dataset.batch(positions.tolist()).to(device), dataset.labels[positions].to(device)
    rows = []
    attacks = ("clean", *config.chosen_attacks)
    for number, attack in enumerate(attacks):
        images = clean if attack == "clean" else craft(attack, classifier, clean, labels, config)
        scores: dict[int, Tensor] = {}  # iteration -> (n, 3): right, PSNR, SSIM

        def watch(state: Progress, number: int = number, scores: dict[int, Tensor] = scores) -> None:
            if state.iteration % every == 0:
                scored = scores.setdefault(state.iteration, torch.zeros(len(clean), 3))
                scored[state.index.cpu()] = _score(classifier, state, clean, labels)
            if progress is not None:
                progress(number + state.share, len(attacks))

        seconds = fit(images, fit_config, seed=config.seed, callback=watch).seconds / len(images)
        for iteration, scored in sorted(scores.items()):
            accuracy, decibels, similarity = scored.mean(0).tolist()
            low, high = wilson(int(scored[:, 0].sum()), len(scored))
            elapsed = seconds * iteration / fit_config.iterations
            rows.append((attack, iteration, len(scored), accuracy, low, high, decibels, elapsed, similarity))
    columns = ["attack", "iteration", "n", "accuracy", "ci_low", "ci_high", "psnr", "seconds", "ssim"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def _score(classifier: nn.Module, state: Progress, clean: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is right (1 or 0), its PSNR and its SSIM, (B, 3), on the CPU."""
    reference, images = clean[state.index], state.average
    right = classifier(images).argmax(1) == labels[state.index]
    return torch.stack([right.float(), psnr(images, reference), ssim(images, reference)], 1).cpu()
