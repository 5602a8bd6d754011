"""Defences to compare, by name, each over a range of strengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from dipdefense import Decision, DefendedClassifier, DetectorGated, FitConfig, MeanSoftmax, Purifier
from dipdefense.arguments import check_known
from eval.baselines import BASELINES
from eval.robustness.cross_boundary import CrossBoundary
from eval.robustness.scored_defences import Defended, Filtered, Method, NoiseLevel, OneFit, Setting, viewed

__all__ = ["FILTERS", "FITS", "METHODS", "build_methods"]

# name: (keyword of its strength, strengths from weak to strong), without `bare`
FILTERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "jpeg": ("quality", (90, 75, 50, 30, 15)),
    "bit_depth": ("bits", (5, 4, 3, 2, 1)),
    "median": ("size", (3, 5)),
    "gaussian_blur": ("sigma", (0.5, 0.75, 1.0, 1.5)),  # pixels
    "total_variation": ("weight", (0.03, 0.08, 0.15)),
    "non_local_means": ("h", (0.05, 0.07, 0.1)),  # images in [0, 1]
    "bm3d": ("sigma", (0.05, 0.1)),  # images in [0, 1]
}


Family = Callable[[tuple[int, ...], DetectorGated, dict[str, Any]], Mapping[float, Decision | CrossBoundary]]
THRESHOLDS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)  # of the gated decision

# (iterations, a DetectorGated, options of MeanSoftmax) -> strength: decision
FITS: dict[str, Family] = {
    # each iteration alone; the strength is the iteration
    "dip": lambda iterations, gated, options: {k: MeanSoftmax((k,), **options) for k in iterations},
    # three iterations in a row; the strength is the last of them
    "dip_mean": lambda iterations, gated, options: {
        last: MeanSoftmax(iterations[max(0, k - 2) : k + 1], **options) for k, last in enumerate(iterations)
    },
    # keep the bare prediction unless the score is high; the strength is the threshold
    "detector_gated": lambda iterations, gated, options: {t: replace(gated, threshold=t) for t in THRESHOLDS},
    # the second half of the fit; the strength is its last iteration
    "cross_boundary": lambda iterations, gated, options: {
        iterations[-1]: CrossBoundary(tuple(i for i in iterations if i >= iterations[-1] / 2))
    },
}
VIEWED = ("dip", "dip_mean")  # the families that are repeated with views

METHODS = ("bare", "noise_level", *FILTERS, *FITS, "default", "dipdefend")


def build_methods(
    names: Sequence[str],
    classifier: nn.Module,
    purifier: Purifier,
    *,
    iterations: Sequence[int],
    restarts: int = 1,
    views: tuple[str, ...] = ("identity",),
    default: Decision | None = None,
) -> list[Method]:
    """The named methods; those of `FITS` share one fit.

    Args:
        names: of `METHODS`. `noise_level` is the bare classifier with a blind noise estimate as its detection score,
            `dipdefend` the setting of Dai et al. (2020), "DIPDefend", for CIFAR-10.
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K).
        purifier: of the fits; its rule is `fixed`.
        iterations: along the fit, rising; the points of the curve of `dip`.
        restarts: of the fits of `dip`, `dip_mean`, and `detector_gated` if it is not the default.
        views: if there are more than the identity, each filter, `dip` and `dip_mean` are repeated with the mean softmax
            over the views; their names then end in `+` and the views.
        default: the decision of the method `default`, if fit and images are those of the default. If it is a
            DetectorGated, `detector_gated` is this decision with its strength as the threshold; else `detector_gated`
            has these views and no detector.

    Raises:
        ValueError: an unknown name, `default` without a default decision, or an error of `MeanSoftmax`.
    """
    for name in names:
        check_known("methods", name, METHODS, several=True)
    both = tuple(dict.fromkeys((("identity",), MeanSoftmax(views=views).views)))
    along = MeanSoftmax(tuple(iterations)).iterations_of(0)
    gated = default if isinstance(default, DetectorGated) else DetectorGated(views=views, restarts=restarts)
    if "default" in names and default is None:
        raise ValueError("methods must leave out default, got it with a fit that is not the default one")
    decisions: dict[Setting, Decision | CrossBoundary] = {}
    methods: list[Method] = []
    for name in names:
        if name in FITS:
            for seen in both if name in VIEWED else (("identity",),):
                family = FITS[name](along, gated, {"restarts": restarts, "views": seen})
                decisions |= {Setting(viewed(name, seen), s): decision for s, decision in family.items()}
        elif name in FILTERS:
            keyword, strengths = FILTERS[name]
            methods.append(Filtered(name, classifier, BASELINES[name], keyword, strengths, both))
        elif name == "bare":
            methods.append(Filtered(name, classifier, views=both))
        elif name == "noise_level":
            methods.append(NoiseLevel(classifier))
        elif name == "default" and default is not None:
            if default.iterations_of(along[-1]):
                decisions[Setting(name, along[-1])] = default
            else:
                defended = DefendedClassifier(classifier, purifier, decision=default)
                methods.append(Defended(name, defended, along[-1]))
        else:
            methods.append(_dipdefend(classifier, purifier.seed))
    return [*methods, OneFit(classifier, purifier, decisions)] if decisions else methods


def _dipdefend(classifier: nn.Module, seed: int | None) -> Defended:
    """Source: Dai et al. (2020), "DIPDefend: deep image prior driven defense against adversarial examples"."""
    config = FitConfig(
        architecture_options={"channels": [4, 8, 16], "skip_channels": 0, "upsampling": "bilinear"},
        input_channels=1,
        iterations=400,
        lr=0.01,
        jitter=0.0,
        stopping="dipdefend",
        stopping_options={"patience": 400},  # the published code runs to the end
    )
    return Defended("dipdefend", DefendedClassifier(classifier, Purifier(config, seed=seed)), config.iterations)
