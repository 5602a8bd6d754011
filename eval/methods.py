"""Defences to compare, each over a range of strengths: images to logits and detection scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dipdefense import DefendedClassifier, FitConfig, MeanSoftmax, Purifier, Trust
from dipdefense.decisions import VIEWS, CrossBoundary, contradiction, log_mean_softmax
from dipdefense.stopping import STOPPING_RULES
from eval.baselines import BASELINES
from eval.robustness import clock

__all__ = [
    "FILTERS",
    "FITS",
    "METHODS",
    "Defended",
    "Filtered",
    "Method",
    "OneFit",
    "Setting",
    "Verdict",
    "build_methods",
]


class Setting(NamedTuple):
    """One point of a curve."""

    method: str  # the family
    strength: float  # its number within the family: a quality, a sigma, iterations, a threshold


class Verdict(NamedTuple):
    """What a setting says of a batch."""

    logits: Tensor  # (B, K)
    scores: Tensor | None  # (B,) larger is more adversarial; None where it does not detect
    seconds: float  # that the setting alone would take for the batch


class Method(Protocol):
    """One computation that serves one or more settings."""

    @property
    def settings(self) -> Sequence[Setting]:
        """All that it serves."""

    def describe(self, setting: Setting, images: Tensor) -> Mapping[str, Any]:
        """All that the setting's result depends on for images of this shape, classifier left out; plain values."""

    def __call__(self, images: Tensor) -> Mapping[Setting, Verdict]:
        """Judge images (B, C, H, W) in [0, 1], without gradient."""


def _viewed(name: str, views: tuple[str, ...]) -> str:
    """The family's name with its views: `jpeg`, `jpeg+mirror`."""
    return "+".join((name, *(view for view in views if view != "identity")))


@dataclass(frozen=True)
class Filtered:
    """A filter before the classifier, at each strength, once for every tuple of views (mean softmax over them).

    It detects as a fit does: by how much the filtered image contradicts the bare prediction.
    """

    name: str
    classifier: nn.Module
    views: tuple[tuple[str, ...], ...] = (("identity",),)
    filter: Callable[..., Tensor] | None = None  # None: the bare classifier
    keyword: str = ""  # under which the filter takes its strength
    strengths: tuple[float, ...] = (0,)

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`."""
        return [Setting(_viewed(self.name, views), s) for views in self.views for s in self.strengths]

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`."""
        name = "" if self.filter is None else f"{self.filter.__module__}.{self.filter.__qualname__}"
        return {"filter": name, self.keyword: setting.strength}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        bare, verdicts = self.classifier(images), {}
        for strength in self.strengths:
            start = clock(images.device)
            filtered = images if self.filter is None else self.filter(images, **{self.keyword: strength})
            filtering = clock(images.device) - start
            for views in self.views:
                start = clock(images.device)
                along = torch.stack([self.classifier(VIEWS[view](filtered)) for view in views])
                logits, scores = log_mean_softmax(along), contradiction(bare, along)
                seconds = filtering + clock(images.device) - start
                verdicts[Setting(_viewed(self.name, views), strength)] = Verdict(logits, scores, seconds)
        return verdicts


@dataclass(frozen=True)
class OneFit:
    """Decisions that share the trajectory of one fit (and its restarts), each a setting of its own.

    A setting's seconds are those of the fit up to its last iteration, and of its looks.
    """

    classifier: nn.Module
    purifier: Purifier
    decisions: Mapping[Setting, MeanSoftmax]

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`."""
        return list(self.decisions)

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`."""
        decision = self.decisions[setting]
        return {**_describe_fit(self.purifier, images), "decision": type(decision).__name__, **asdict(decision)}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        length = self.purifier.config_for(images).iterations
        looks = {setting: decision.looks(length) for setting, decision in self.decisions.items()}
        iterations = sorted({iteration for named in looks.values() for iteration in named})
        restarts = max(decision.restarts for decision in self.decisions.values())
        start = clock(images.device)
        fits = [self.purifier.trajectory(images, iterations, restart=restart) for restart in range(restarts)]
        fitting = (clock(images.device) - start) / restarts / iterations[-1]  # of one iteration of one fit

        @cache
        def look(restart: int, iteration: int, view: str) -> tuple[Tensor, float]:
            start = clock(images.device)
            logits = self.classifier(VIEWS[view](fits[restart][iterations.index(iteration)]))
            return logits, clock(images.device) - start

        bare, verdicts = self.classifier(images), {}
        for setting, decision in self.decisions.items():
            seen = [look(r, i, v) for r in range(decision.restarts) for i in looks[setting] for v in decision.views]
            along = torch.stack([logits for logits, _ in seen])
            seconds = fitting * decision.restarts * looks[setting][-1] + sum(seconds for _, seconds in seen)
            logits = decision.combine(bare if decision.needs_bare else None, along)
            verdicts[setting] = Verdict(logits, contradiction(bare, along), seconds)
        return verdicts


@dataclass(frozen=True)
class Defended:
    """A defended classifier as it is, as a family of one."""

    name: str
    defended: DefendedClassifier
    strength: float = field(default=0)

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`."""
        return [Setting(self.name, self.strength)]

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`."""
        return {**_describe_fit(self.defended.purifier, images), "decision": repr(self.defended.decision)}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        start = clock(images.device)
        logits, scores = self.defended.classify_and_detect(images)
        return {self.settings[0]: Verdict(logits, scores, clock(images.device) - start)}


def _describe_fit(purifier: Purifier, images: Tensor) -> dict[str, Any]:
    return {
        "fit": asdict(purifier.config_for(images)),
        "fit_seed": purifier.seed,
        "tile": purifier.tile_for(images),
    }


# name: (keyword of its strength, strengths from weak to strong); `bare` apart
FILTERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "jpeg": ("quality", (90, 75, 60, 45, 30, 20, 10)),
    "bit_depth": ("bits", (6, 5, 4, 3, 2, 1)),
    "median": ("size", (3, 5)),
    "gaussian_blur": ("sigma", (0.5, 0.75, 1.0, 1.5, 2.0)),  # pixels
    "total_variation": ("weight", (0.02, 0.05, 0.08, 0.15, 0.3)),
    "non_local_means": ("h", (0.03, 0.05, 0.07, 0.1, 0.15)),  # images in [0, 1]
    "bm3d": ("sigma", (0.02, 0.05, 0.1, 0.15, 0.2)),  # images in [0, 1]
}


def _late(looks: Sequence[int]) -> tuple[int, ...]:
    """Those of the second half."""
    return tuple(i for i in looks if i >= looks[-1] / 2)


Fit = Callable[[tuple[int, ...], dict[str, Any]], dict[float, MeanSoftmax]]

# (iterations, options of MeanSoftmax) -> strength: decision
FITS: dict[str, Fit] = {
    # each iteration alone; the strength is the iteration
    "dip": lambda looks, options: {k: MeanSoftmax((k,), **options) for k in looks},
    # the looks from half an iteration up to it
    "dip_mean": lambda looks, options: {k: MeanSoftmax(_late([i for i in looks if i <= k]), **options) for k in looks},
    # the looks of the second half, by the threshold of trust
    "trust": lambda looks, options: {
        threshold: Trust(_late(looks), threshold=threshold, **options) for threshold in (0.1, 0.3, 0.5, 0.7, 0.9)
    },
}

METHODS = ("bare", *FILTERS, *FITS, "cross_boundary", "dipdefend")


def build_methods(
    names: Sequence[str],
    classifier: nn.Module,
    purifier: Purifier,
    *,
    iterations: Sequence[int],
    restarts: int = 1,
    views: tuple[str, ...] = ("identity",),
) -> list[Method]:
    """The named methods; those of `FITS` share one fit.

    Args:
        names: of `METHODS`. `cross_boundary` is `CrossBoundary` along the second half of the fit, `dipdefend` the
            setting of Dai et al. (2020), "DIPDefend", for CIFAR-10.
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K).
        purifier: of the fits; its rule is `fixed`.
        iterations: along the fit, rising; the points of the curve of `dip`.
        restarts: of the fits of `FITS`.
        views: where these are more than the identity, each filter and fit stands a second time, with their mean
            softmax, and with `+` and the views behind its name.

    Raises:
        ValueError: an unknown name, or one whose stopping rule is not there; what `MeanSoftmax` refuses.
    """
    for name in names:
        if name not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name!r}")
    both = tuple(dict.fromkeys((("identity",), MeanSoftmax(views=views).views)))
    looks = MeanSoftmax(tuple(iterations)).looks(0)
    decisions: dict[Setting, MeanSoftmax] = {}
    methods: list[Method] = []
    for name in names:
        if name in FITS:
            for seen in both:
                family = FITS[name](looks, {"restarts": restarts, "views": seen})
                decisions |= {Setting(_viewed(name, seen), s): decision for s, decision in family.items()}
        elif name in FILTERS:
            keyword, strengths = FILTERS[name]
            methods.append(Filtered(name, classifier, both, BASELINES[name], keyword, strengths))
        elif name == "bare":
            methods.append(Filtered(name, classifier, both))
        elif name == "cross_boundary":
            defended = DefendedClassifier(classifier, purifier, decision=CrossBoundary(_late(looks)))
            methods.append(Defended(name, defended, looks[-1]))
        else:
            methods.append(_dipdefend(classifier, purifier.seed))
    return [*methods, OneFit(classifier, purifier, decisions)] if decisions else methods


def _dipdefend(classifier: nn.Module, seed: int | None) -> Defended:
    """Source: Dai et al. (2020), "DIPDefend: deep image prior driven defense against adversarial examples"."""
    if "dipdefend" not in STOPPING_RULES:
        raise ValueError("methods must leave out dipdefend, got it without its stopping rule")
    config = FitConfig(
        architecture_options={"channels": [4, 8, 16], "skip_channels": 0, "upsampling": "bilinear"},
        input_channels=1,
        iterations=400,
        lr=0.01,
        jitter=0.0,
        stopping="dipdefend",
    )
    return Defended("dipdefend", DefendedClassifier(classifier, Purifier(config, seed=seed)), config.iterations)
