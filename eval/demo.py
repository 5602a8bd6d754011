"""The main job on an embedded data set: attack a digit classifier, purify, count, and draw one picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from attacks import pgd
from dipdefense import Purifier
from eval.baselines import gaussian_blur
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.picture import save_comparison
from eval.robustness import RunConfig, evaluate_robustness

__all__ = ["DEMO", "run_demo"]

DEMO = RunConfig(eps=0.2, steps=20, n=100, crafted_on="both", n_defended=20, batch_size=100)
BLUR = 1.5  # std in pixels


def run_demo(out: str | Path, progress: Callable[[int, int], None] | None = None) -> pd.DataFrame:
    """Evaluate the digit classifier bare, purified and blurred; write the run and `comparison.png` to `out`.

    Returns:
        The table of `evaluate_robustness`.
    """
    digits = load_dataset("digits")
    classifier = load_classifier("digits_cnn")
    table = evaluate_robustness(
        classifier,
        digits,
        DEMO,
        out=out,
        filters={"gaussian_blur": partial(gaussian_blur, sigma=BLUR)},
        classifier_name="digits_cnn",
        progress=progress,
    )
    shown = torch.randperm(len(digits), generator=torch.Generator().manual_seed(DEMO.seed))[:4]
    clean, labels = digits.batch(shown.tolist()), digits.labels[shown]
    adversarial = pgd(classifier, clean, labels, eps=DEMO.eps, steps=DEMO.steps)
    pictures = {"clean": clean, "adversarial": adversarial, "purified": Purifier()(adversarial)}
    save_comparison(Path(out) / "comparison.png", classifier, pictures, labels, digits.class_names)
    return table
