"""Accuracy and PSNR along a fit, by which the number of iterations of a default is chosen."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from dipdefense import FitConfig, Progress, fit
from eval.datasets import ImageDataset
from eval.intervals import wilson
from eval.metrics import psnr
from eval.robustness import RunConfig, check_run, craft

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
    """Classify what a fit would return at every k-th iteration, for clean and attacked images.

    It reads labels to score, so use it on images on which choices may be made, and no others.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K), in eval mode, on `device`.
        dataset: labelled images; the first `config.n` of a seeded permutation are used.
        config: the attacks, crafted on the bare classifier.
        fit_config: numbers of the fit; its stopping rule must be `fixed`, so that all images run to the end.
        every: iterations between two rows.
        device: where the classifier is and the images go.
        progress: called with (fits done, fits in all); one under way counts in part.

    Returns:
        One row per attack and iteration: `attack, iteration, n, accuracy, ci_low, ci_high, psnr, seconds`, the
        interval that of Wilson at 95 %, PSNR in dB against the clean image, seconds per image of a fit up to there
        with the scoring in between.

    Raises:
        ValueError: another stopping rule, attacks on the defended model, `every` outside the fit, and what
            `evaluate_robustness` refuses of classifier, data set and numbers.
    """
    if fit_config.stopping != "fixed":
        raise ValueError(f"fit_config must stop by the rule fixed, got {fit_config.stopping!r}")
    if config.crafted_on != "bare":
        raise ValueError(f"crafted_on must be bare, since no fit is finished here, got {config.crafted_on!r}")
    if not 1 <= every <= fit_config.iterations:
        raise ValueError(f"every must lie between 1 and the {fit_config.iterations} iterations of the fit, got {every}")
    check_run(classifier, dataset, config, device)
    positions = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))[: config.n]
    clean, labels = dataset.batch(positions.tolist()).to(device), dataset.labels[positions].to(device)
    rows = []
    attacks = ("clean", *config.attacks)
    for number, attack in enumerate(attacks):
        images = clean if attack == "clean" else craft(attack, classifier, clean, labels, config)
        correct: dict[int, Tensor] = {}  # iteration -> (n,)
        quality: dict[int, Tensor] = {}

        def watch(
            state: Progress,
            number: int = number,
            correct: dict[int, Tensor] = correct,
            quality: dict[int, Tensor] = quality,
        ) -> None:
            if state.iteration % every == 0:
                right, decibels = _score(classifier, state, clean, labels)
                correct.setdefault(state.iteration, torch.zeros(len(clean), dtype=torch.bool))[state.index.cpu()] = (
                    right
                )
                quality.setdefault(state.iteration, torch.zeros(len(clean)))[state.index.cpu()] = decibels
            if progress is not None:
                progress(number + state.share, len(attacks))

        seconds = fit(images, fit_config, seed=config.seed, callback=watch).seconds / len(images)
        for iteration, right in sorted(correct.items()):
            low, high = wilson(int(right.sum()), len(right))
            accuracy, decibels = right.float().mean().item(), quality[iteration].mean().item()
            elapsed = seconds * iteration / fit_config.iterations
            rows.append((attack, iteration, len(right), accuracy, low, high, decibels, elapsed))
    columns = ["attack", "iteration", "n", "accuracy", "ci_low", "ci_high", "psnr", "seconds"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def _score(classifier: nn.Module, state: Progress, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which images are right, (B,) bool, and their PSNR, (B,), both on the CPU."""
    right = classifier(state.average).argmax(1) == labels[state.index]
    return right.cpu(), psnr(state.average, clean[state.index]).cpu()
