"""The main job on an embedded data set: attack a digit classifier, purify, count, and show it.

Beside the run itself stand, in folders of their own, small runs of what else `dipdefense report` shows.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from torch import nn

from attacks import pgd
from dipdefense import DefendedClassifier, Purifier, default_config
from eval.adaptive import AdaptiveConfig, evaluate_adaptive
from eval.attacked import RunConfig
from eval.baselines import gaussian_blur
from eval.classifiers import load_classifier
from eval.datasets import ImageDataset, load_dataset
from eval.defence import benchmark_defence
from eval.frames import gallery_of_run
from eval.methods import build_methods
from eval.picture import save_comparison
from eval.robustness import evaluate_robustness
from eval.trajectory import accuracy_along_fit

__all__ = ["DEMO", "run_demo"]

DEMO = RunConfig(eps=0.2, steps=20, n=100, crafted_on="both", n_defended=20, batch_size=100)
BLUR = 1.5  # std in pixels
GALLERY = 4  # images
RADII = (0.1, 0.2, 0.3)  # of the comparison
SMALL = replace(DEMO, attacks=("pgd",), n=30, crafted_on="bare", n_defended=None)
# percent of the whole time, about
STAGES = {"run": 70, "gallery": 2, "defences": 10, "fit": 6, "ladder": 12}
LADDER = AdaptiveConfig(
    rungs=("oblivious", "bpda"), eps=0.2, n={"cheap": 10, "gradient": 10, "unrolled": 1, "queries": 1}
)


def run_demo(out: str | Path, progress: Callable[[float, float], None] | None = None) -> pd.DataFrame:
    """Evaluate the digit classifier bare, purified and blurred, and make the small runs beside it.

    Args:
        out: folder of the run; a comparison of defences, accuracy along the fit and a ladder go into folders in it.
        progress: called with (percent done, 100).

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
        progress=_stage(progress, "run"),
    )
    shown = digits.first(4, DEMO.seed)
    clean, labels = digits.batch(shown.tolist()), digits.labels[shown]
    adversarial = pgd(classifier, clean, labels, eps=DEMO.eps, steps=DEMO.steps)
    pictures = {"clean": clean, "adversarial": adversarial, "purified": Purifier()(adversarial)}
    save_comparison(Path(out) / "comparison.png", classifier, pictures, labels, digits.class_names)
    _runs_beside(Path(out), classifier, digits, progress)
    return table


def _runs_beside(
    out: Path, classifier: nn.Module, digits: ImageDataset, progress: Callable[[float, float], None] | None
) -> None:
    """A gallery, a comparison of defences, accuracy along the fit, and a ladder."""
    defended = DefendedClassifier(classifier)
    gallery_of_run(
        out, defended, digits, replace(DEMO, attacks=("pgd",)), n=GALLERY, progress=_stage(progress, "gallery")
    )
    fit = default_config((1, 32, 32))
    compared = build_methods(
        ["bare", "noise_level", "jpeg", "median", "gaussian_blur", "dip"],
        classifier,
        Purifier(fit),
        iterations=[fit.iterations * k // 6 for k in range(1, 7)],
    )
    benchmark_defence(
        classifier,
        digits,
        compared,
        SMALL,
        out=out / "defences",
        eps=RADII,
        classifier_name="digits_cnn",
        progress=_stage(progress, "defences"),
    )
    longer = replace(fit, iterations=2 * fit.iterations)
    along = accuracy_along_fit(
        classifier,
        load_dataset("digits_train"),
        SMALL,
        longer,
        every=longer.iterations // 12,
        progress=_stage(progress, "fit"),
    )
    (out / "along_the_fit").mkdir(exist_ok=True)
    along.to_csv(out / "along_the_fit" / "iterations.csv", index=False)
    evaluate_adaptive(
        defended, digits, LADDER, out=out / "ladder", classifier_name="digits_cnn", progress=_stage(progress, "ladder")
    )


def _stage(progress: Callable[[float, float], None] | None, name: str) -> Callable[[float, float], None] | None:
    """The progress of one stage as percent of the whole."""
    if progress is None:
        return None
    start = sum(list(STAGES.values())[: list(STAGES).index(name)])
    return lambda done, total: progress(round(start + STAGES[name] * done / total), 100)
