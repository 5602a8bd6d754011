"""Defences to compare, each over a range of strengths: images to logits and detection scores."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from skimage import restoration
from torch import Tensor, nn

from dipdefense import CrossBoundary, Decision, DefendedClassifier, FitConfig, MeanSoftmax, Purifier, Trust
from dipdefense.looks import VIEWS, Looks, contradiction, log_mean_softmax
from eval.baselines import BASELINES
from eval.clock import clock

__all__ = [
    "FILTERS",
    "FITS",
    "METHODS",
    "Defended",
    "Filtered",
    "Method",
    "NoiseLevel",
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
    """The family's name with its views: `jpeg`, `jpeg+mirror` for both of them, `jpeg:mirror` for the mirror alone."""
    if views[0] == "identity":
        return "+".join((name, *views[1:]))
    return f"{name}:{'+'.join(views)}"


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
        (views,) = (views for views in self.views if _viewed(self.name, views) == setting.method)
        return {"filter": name, self.keyword: setting.strength, "views": list(views)}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        start = clock(images.device)
        bare, verdicts = self.classifier(images), {}
        glance = clock(images.device) - start
        for strength in self.strengths:
            start = clock(images.device)
            filtered = images if self.filter is None else self.filter(images, **{self.keyword: strength})
            filtering = clock(images.device) - start
            for views in self.views:
                start = clock(images.device)
                along = torch.stack([self.classifier(VIEWS[view](filtered)) for view in views])
                logits, scores = log_mean_softmax(along), contradiction(bare, along)
                seconds = glance + filtering + clock(images.device) - start
                verdicts[Setting(_viewed(self.name, views), strength)] = Verdict(logits, scores, seconds)
        return verdicts


@dataclass(frozen=True)
class NoiseLevel:
    """The bare classifier, and how noisy the image is as the score: what a detector must beat.

    Source: Donoho and Johnstone (1994), the median of the finest wavelet coefficients, by scikit-image.
    """

    classifier: nn.Module
    settings: Sequence[Setting] = (Setting("noise_level", 0),)

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`."""
        return {"score": "skimage.restoration.estimate_sigma"}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        start, pixels = clock(images.device), images.permute(0, 2, 3, 1).cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # an image without any detail has a NaN for its 0
            sigmas = [restoration.estimate_sigma(image, channel_axis=-1, average_sigmas=True) for image in pixels]
        logits, scores = self.classifier(images), torch.tensor(sigmas).nan_to_num(0).to(images)
        return {self.settings[0]: Verdict(logits, scores, clock(images.device) - start)}


@dataclass(frozen=True)
class OneFit:
    """Decisions that share the trajectory of one fit (and its restarts), each a setting of its own.

    A setting's seconds are those of the fit up to its last iteration, and of its looks; what a fit takes before its
    first iteration is spread over all of them.
    """

    classifier: nn.Module
    purifier: Purifier
    decisions: Mapping[Setting, Decision]

    def __post_init__(self) -> None:
        for setting, decision in self.decisions.items():
            if not decision.looks(1):
                raise ValueError(f"decisions must name iterations, got {decision!r} for {tuple(setting)}: use Defended")

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`."""
        return list(self.decisions)

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`."""
        decision = self.decisions[setting]
        return {**_describe_fit(self.purifier, images), "decision": repr(decision)}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        length = self.purifier.config_for(images).iterations
        looks = {setting: decision.looks(length) for setting, decision in self.decisions.items()}
        asked = [*looks.values(), *(decision.residuals for decision in self.decisions.values())]
        iterations = sorted({iteration for named in asked for iteration in named})
        restarts = max(decision.restarts for decision in self.decisions.values())
        start = clock(images.device)
        fits = [self.purifier.trajectory(images, iterations, restart=restart) for restart in range(restarts)]
        fitting = (clock(images.device) - start) / restarts / iterations[-1]  # of one iteration of one fit

        @cache
        def look(restart: int, iteration: int, view: str) -> tuple[Tensor, float]:
            start = clock(images.device)
            logits = self.classifier(VIEWS[view](fits[restart][iterations.index(iteration)]))
            return logits, clock(images.device) - start

        residual = [(frames - images).square().flatten(2).mean(2) for frames in fits]  # (T, B) of each restart
        start = clock(images.device)
        bare, verdicts = self.classifier(images), {}
        glance = clock(images.device) - start
        for setting, decision in self.decisions.items():
            start = clock(images.device)
            frames = [fits[r][iterations.index(i)] for r in range(decision.restarts) for i in looks[setting]]
            stacked = torch.stack(frames)
            prepared = decision.prepare(self.classifier, images, stacked)
            if prepared is stacked:
                seen = [look(r, i, v) for r in range(decision.restarts) for i in looks[setting] for v in decision.views]
                start = clock(images.device)  # of a look that other settings share, the seconds of the first count
            else:
                seen = [(self.classifier(VIEWS[v](image)), 0.0) for image in prepared for v in decision.views]
            left = torch.stack(residual[: decision.restarts]).mean(0)
            what = Looks(
                bare,
                torch.stack([logits for logits, _ in seen]),
                {iteration: left[iterations.index(iteration)] for iteration in decision.residuals},
            )
            last = max(*looks[setting], *decision.residuals, 1)
            logits, scores = decision.combine(what), decision.score(what)
            deciding = clock(images.device) - start
            seconds = glance + fitting * decision.restarts * last + sum(seconds for _, seconds in seen) + deciding
            verdicts[setting] = Verdict(logits, scores, seconds)
        return verdicts


@dataclass(frozen=True)
class Defended:
    """A defended classifier as it is, as a family of one."""

    name: str
    defended: DefendedClassifier
    strength: float = 0

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`."""
        return [Setting(self.name, self.strength)]

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`."""
        purifier, decision = self.defended.plan(images)
        return {**_describe_fit(purifier, images), "decision": repr(decision)}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        start = clock(images.device)
        judgement = self.defended.judge(images)
        seconds = clock(images.device) - start
        return {self.settings[0]: Verdict(judgement.logits, judgement.scores, seconds)}


def _describe_fit(purifier: Purifier, images: Tensor) -> dict[str, Any]:
    return {
        "fit": asdict(purifier.config_for(images)),
        "fit_seed": purifier.seed,
        "tile": purifier.tile_for(images),
    }


# name: (keyword of its strength, strengths from weak to strong); `bare` apart
FILTERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "jpeg": ("quality", (90, 75, 50, 30, 15)),
    "bit_depth": ("bits", (5, 4, 3, 2, 1)),
    "median": ("size", (3, 5)),
    "gaussian_blur": ("sigma", (0.5, 0.75, 1.0, 1.5)),  # pixels
    "total_variation": ("weight", (0.03, 0.08, 0.15)),
    "non_local_means": ("h", (0.05, 0.07, 0.1)),  # images in [0, 1]
    "bm3d": ("sigma", (0.05, 0.1)),  # images in [0, 1]
}


Fit = Callable[[tuple[int, ...], Trust, dict[str, Any]], dict[float, Decision]]
THRESHOLDS = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9)  # of trust

# (iterations, a Trust, options of MeanSoftmax) -> strength: decision
FITS: dict[str, Fit] = {
    # each iteration alone; the strength is the iteration
    "dip": lambda looks, trust, options: {k: MeanSoftmax((k,), **options) for k in looks},
    # three looks in a row; the strength is the last of them
    "dip_mean": lambda looks, trust, options: {
        looks[k]: MeanSoftmax(looks[max(0, k - 2) : k + 1], **options) for k in range(len(looks))
    },
    # keep the bare prediction unless the fit speaks against it, by the threshold
    "trust": lambda looks, trust, options: {t: replace(trust, threshold=t) for t in THRESHOLDS},
    # the second half of the fit; the strength is its last iteration
    "cross_boundary": lambda looks, trust, options: {
        looks[-1]: CrossBoundary(tuple(i for i in looks if i >= looks[-1] / 2))
    },
}
VIEWED = ("dip", "dip_mean")  # the families that stand a second time with views

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
        restarts: of the fits of `dip`, `dip_mean`, and `trust` where it is not the default.
        views: where these are more than the identity, each filter, `dip` and `dip_mean` stand a second time, with the
            mean softmax over them, and with `+` and the views behind the name.
        default: the decision of the method `default`, where these are its fit and images; a Trust is also that whose
            threshold is the strength of `trust`, which else has these views and the `contradiction` alone.

    Raises:
        ValueError: an unknown name; `default` where there is none; what `MeanSoftmax` refuses.
    """
    for name in names:
        if name not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name!r}")
    both = tuple(dict.fromkeys((("identity",), MeanSoftmax(views=views).views)))
    looks = MeanSoftmax(tuple(iterations)).looks(0)
    trust = default if isinstance(default, Trust) else Trust(views=views, restarts=restarts)
    if "default" in names and default is None:
        raise ValueError("methods must leave out default, got it with a fit that is not the default one")
    decisions: dict[Setting, Decision] = {}
    methods: list[Method] = []
    for name in names:
        if name in FITS:
            for seen in both if name in VIEWED else (("identity",),):
                family = FITS[name](looks, trust, {"restarts": restarts, "views": seen})
                decisions |= {Setting(_viewed(name, seen), s): decision for s, decision in family.items()}
        elif name in FILTERS:
            keyword, strengths = FILTERS[name]
            methods.append(Filtered(name, classifier, both, BASELINES[name], keyword, strengths))
        elif name == "bare":
            methods.append(Filtered(name, classifier, both))
        elif name == "noise_level":
            methods.append(NoiseLevel(classifier))
        elif name == "default" and default is not None:
            if default.looks(looks[-1]):
                decisions[Setting(name, looks[-1])] = default
            else:
                defended = DefendedClassifier(classifier, purifier, decision=default)
                methods.append(Defended(name, defended, looks[-1]))
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
