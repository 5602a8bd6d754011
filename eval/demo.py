"""A demonstration without data files: attack a digit classifier, purify, and show table and picture.

The full demo adds small runs of everything else that `dipdefense report` shows, in subfolders.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from attacks import pgd
from dipdefense import DefendedClassifier, Purifier, defence_for
from dipdefense.fitting.fit import Progress
from eval.baselines import gaussian_blur
from eval.classifiers import load_classifier
from eval.datasets import ImageDataset, load_dataset
from eval.demo_picture import CHANGE_GAIN, save_comparison
from eval.report.findings import findings
from eval.report.runs import rows_of
from eval.robustness.config import RunConfig
from eval.robustness.evaluate import evaluate_robustness

__all__ = ["DEMO", "run_demo", "what_it_shows"]

ADAPTIVE = 8  # images that are attacked through the defence; each step fits each image once
DEMO = RunConfig(
    attacks=("fgsm", "pgd", "momentum_pgd"),
    eps=0.2,
    steps=10,
    crafted_on="both",
    attacks_defended=("pgd",),
    n=24,
    n_defended=ADAPTIVE,
    batch_size=24,
)
BLUR = 1.5  # std in pixels
SHOWN = 4  # images of the picture, and of the gallery
FITS = DEMO.n * (1 + len(DEMO.chosen_attacks)) + ADAPTIVE * (DEMO.steps + 2) + SHOWN  # of the main job
RADII = (0.1, 0.2, 0.3)  # of the comparison
# approximate percentages of the time of the full demo
STAGES = {"run": 45, "gallery": 2, "defences": 14, "fit": 13, "ladder": 26}

Told = Callable[[float, float], None]  # progress, as (done, in all)


def run_demo(
    out: str | Path,
    *,
    full: bool = False,
    progress: Told | None = None,
    each: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Evaluate the digit classifier bare, purified and blurred, once with an adaptive attack, and show four digits.

    Args:
        out: folder of the run; a run that is there already is completed.
        full: also make a gallery and, in folders in `out`, a comparison of defences, accuracy along the fit and a
            ladder.
        progress: called with (percent done, 100).
        each: called with each row of the table as soon as it is complete, as by `evaluate_robustness`.

    Returns:
        The table of `evaluate_robustness`.
    """
    tell = progress or (lambda done, total: None)
    main = _stage(tell, "run") if full else tell
    digits = load_dataset("digits")
    classifier = load_classifier("digits_cnn")
    purifier = _telling(lambda fits: main(round(100 * fits / FITS, 1), 100))
    table = evaluate_robustness(
        classifier,
        digits,
        DEMO,
        out=out,
        purifier=purifier,
        filters={"gaussian_blur": partial(gaussian_blur, sigma=BLUR)},
        classifier_name="digits_cnn",
        each=each,
    )
    shown = digits.first(SHOWN, DEMO.seed)
    clean, labels = digits.batch(shown.tolist()), digits.labels[shown]
    adversarial = pgd(classifier, clean, labels, eps=DEMO.eps, steps=DEMO.steps)
    pictures = {"clean": clean, "adversarial": adversarial, "purified": purifier(adversarial)}
    save_comparison(Path(out) / "comparison.png", classifier, pictures, labels, digits.class_names)
    main(100, 100)
    if full:
        _runs_beside(Path(out), classifier, digits, tell)
    return table


def what_it_shows(table: pd.DataFrame) -> str:
    """The picture and the table of `run_demo` in words, one sentence a line."""
    picture = (
        f"It shows {SHOWN} of the digits: clean, attacked by PGD, the change times {CHANGE_GAIN}, and purified, each "
        "with what the classifier reads."
    )
    return "\n".join([picture, *findings([rows_of(table)])])


def _telling(tell: Callable[[float], None]) -> Purifier:
    """A purifier that reports how many images it has fitted, with fractions for fits under way."""
    fitted = 0

    class Telling(Purifier):
        def frames(self, images: Tensor, *given: Any, callback: Any = None, **named: Any) -> Tensor:
            nonlocal fitted

            def watch(state: Progress) -> None:
                tell(fitted + state.share * len(images))
                if callback is not None:
                    callback(state)

            frames = super().frames(images, *given, **named, callback=watch)
            fitted += len(images)
            return frames

    return Telling(seed=DEMO.seed)


def _runs_beside(out: Path, classifier: nn.Module, digits: ImageDataset, tell: Told) -> None:
    """A gallery, a comparison of defences, accuracy along the fit, and a ladder."""
    from eval.fits.accuracy_along_fit import accuracy_along_fit
    from eval.robustness.comparison import ComparisonConfig, benchmark_defence
    from eval.robustness.defences_by_name import build_methods
    from eval.robustness.gallery import gallery_of_run
    from eval.robustness.ladder import AdaptiveConfig, evaluate_adaptive

    defended = DefendedClassifier(classifier)
    gallery_of_run(out, defended, digits, replace(DEMO, attacks=("pgd",)), n=SHOWN, progress=_stage(tell, "gallery"))
    fit = defence_for((1, 32, 32)).fit
    compared = build_methods(
        ["bare", "noise_level", "jpeg", "median", "gaussian_blur", "dip"],
        classifier,
        Purifier(fit),
        iterations=[fit.iterations * k // 6 for k in range(1, 7)],
    )
    small = ComparisonConfig(
        attacks=("pgd",), eps=DEMO.eps, steps=DEMO.steps, n=30, batch_size=DEMO.batch_size, radii=RADII
    )
    benchmark_defence(
        classifier,
        digits,
        compared,
        small,
        out=out / "defences",
        classifier_name="digits_cnn",
        progress=_stage(tell, "defences"),
    )
    longer = replace(fit, iterations=2 * fit.iterations)
    along = accuracy_along_fit(
        classifier,
        load_dataset("digits_train"),
        small,
        longer,
        every=longer.iterations // 12,
        progress=_stage(tell, "fit"),
    )
    (out / "along_the_fit").mkdir(exist_ok=True)
    along.to_csv(out / "along_the_fit" / "iterations.csv", index=False)
    ladder = AdaptiveConfig(
        rungs=("oblivious", "bpda"), eps=DEMO.eps, n={"cheap": 10, "gradient": 10, "unrolled": 1, "queries": 1}
    )
    evaluate_adaptive(
        defended, digits, ladder, out=out / "ladder", classifier_name="digits_cnn", progress=_stage(tell, "ladder")
    )


def _stage(tell: Told, name: str) -> Told:
    """The progress of one stage as percent of the whole."""
    start = sum(list(STAGES.values())[: list(STAGES).index(name)])
    return lambda done, total: tell(round(start + STAGES[name] * done / total, 1), 100)
