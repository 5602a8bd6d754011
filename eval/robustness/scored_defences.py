"""The compared defences: from images to logits and detection scores, at one or more strengths at once."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from skimage import restoration
from torch import Tensor, nn

from dipdefense import Decision, DefendedClassifier, LastReconstruction, MeanSoftmax, Purifier
from dipdefense.defence.evidence import classify_view, disagreement, log_mean_softmax
from dipdefense.defence.pipeline import Reconstructions, decide, gather_evidence, reconstruct
from dipdefense.defence.smoothing import NoisyPurifier
from dipdefense.digest import describe
from eval.cost import clock
from eval.robustness.config import describe_purifier
from eval.robustness.cross_boundary import CrossBoundary

__all__ = [
    "Defended",
    "Filter",
    "Filtered",
    "Method",
    "NoiseLevel",
    "OneFit",
    "Setting",
    "Verdict",
    "name_of",
    "viewed",
]


Filter = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> same


class Setting(NamedTuple):
    """One point of a curve: a method at one strength."""

    method: str  # the family
    strength: float  # parameter within the family: a quality, a sigma, iterations, a threshold


class Verdict(NamedTuple):
    """The result of a setting for a batch."""

    logits: Tensor  # (B, K)
    scores: Tensor | None  # (B,) larger is more adversarial; None if it does not detect
    seconds: float  # that the setting alone would take for the batch
    purified: Tensor | None = None  # (B, C, H, W), the mean of the classified images; None if that is the input


class Method(Protocol):
    """One computation that serves one or more settings."""

    @property
    def settings(self) -> Sequence[Setting]:
        """All settings that it serves."""

    def describe(self, setting: Setting, images: Tensor) -> Mapping[str, Any]:
        """Everything but the classifier that the setting's result depends on, for this shape; plain values."""

    def __call__(self, images: Tensor) -> Mapping[Setting, Verdict]:
        """Classify images (B, C, H, W) in [0, 1], without gradient."""


def viewed(name: str, views: tuple[str, ...]) -> str:
    """The family's name with its views: `jpeg`, `jpeg:mirror` for the mirror alone, `jpeg+mirror` for both."""
    if views[0] == "identity":
        return "+".join((name, *views[1:]))
    return f"{name}:{'+'.join(views)}"


@dataclass(frozen=True)
class Filtered:
    """The classifier, behind a filter if there is one, at each strength and for every tuple of views.

    The logits are the mean softmax over the views. The detection score is the disagreement of the filtered image with
    the bare prediction, as for a fit.
    """

    name: str
    classifier: nn.Module
    filter: Callable[..., Tensor] | None = None
    keyword: str = ""  # the filter's argument for the strength; empty if it has none
    strengths: tuple[float, ...] = (0,)
    views: tuple[tuple[str, ...], ...] = (("identity",),)
    detects: bool = True  # False: no detection score

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`."""
        return [Setting(viewed(self.name, views), s) for views in self.views for s in self.strengths]

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`: the filter's name, code and parameters."""
        inner = getattr(self.filter, "func", self.filter)
        named = isinstance(inner, nn.Module | None) or "<lambda>" not in getattr(inner, "__qualname__", "<lambda>")
        if not named:
            raise ValueError(
                f"filters must be functions with a name, or modules, so that a run knows them, got {self.filter!r}"
            )
        (views,) = (views for views in self.views if viewed(self.name, views) == setting.method)
        name = None if self.filter is None else describe(self.filter)
        return {"filter": name, **self._options(setting.strength), "views": list(views)}

    def _options(self, strength: float) -> dict[str, float]:
        return {self.keyword: strength} if self.keyword else {}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        start, verdicts = clock(images.device), {}
        bare = self.classifier(images) if self.detects else None
        glance = clock(images.device) - start
        for strength in self.strengths:
            start = clock(images.device)
            purified = None if self.filter is None else self.filter(images, **self._options(strength))
            filtering = clock(images.device) - start
            for views in self.views:
                start, seen = clock(images.device), images if purified is None else purified
                along = torch.stack([classify_view(self.classifier, seen, view) for view in views])
                logits, scores = log_mean_softmax(along), None if bare is None else disagreement(bare, along)
                seconds = glance + filtering + clock(images.device) - start
                verdicts[Setting(viewed(self.name, views), strength)] = Verdict(logits, scores, seconds, purified)
        return verdicts


@dataclass(frozen=True)
class NoiseLevel:
    """The bare classifier, with the estimated noise level as the score: the baseline for detectors.

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
            warnings.simplefilter("ignore", RuntimeWarning)  # an image without any detail gives NaN, which means 0
            sigmas = [restoration.estimate_sigma(image, channel_axis=-1, average_sigmas=True) for image in pixels]
        logits, scores = self.classifier(images), torch.tensor(sigmas).nan_to_num(0).to(images)
        return {self.settings[0]: Verdict(logits, scores, clock(images.device) - start)}


class Remembered:
    """A classifier that stores its logits and their seconds, so that it classifies equal images only once.

    Several decisions classify the same reconstructions; each counts the seconds as if it were the only one.
    """

    def __init__(self, classifier: nn.Module):
        self.classifier = classifier
        self._answers: dict[bytes, tuple[Tensor, float]] = {}
        self.asking = 0.0  # seconds of the answers since the last `reset`, also of stored ones
        self.waiting = 0.0  # seconds that the calls since then really took

    def reset(self) -> None:
        """Set the seconds to 0."""
        self.asking = self.waiting = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K)."""
        called = clock(images.device)
        key = hashlib.sha256(images.detach().cpu().numpy().tobytes()).digest() + repr(tuple(images.shape)).encode()
        if key not in self._answers:
            start = clock(images.device)
            logits = self.classifier(images)
            self._answers[key] = logits, clock(images.device) - start
        logits, seconds = self._answers[key]
        self.asking += seconds
        self.waiting += clock(images.device) - called
        return logits


@dataclass(frozen=True)
class OneFit:
    """Decisions that share the reconstructions of one fit (and its restarts); each decision is a setting.

    A setting's seconds are those of the fit up to its last iteration, and of the classifier. The time before the first
    iteration of a fit is divided among all iterations.
    """

    classifier: nn.Module
    purifier: Purifier
    decisions: Mapping[Setting, Decision | CrossBoundary]

    def __post_init__(self) -> None:
        for setting, decision in self.decisions.items():
            if not decision.iterations_of(1):
                raise ValueError(f"decisions must name iterations, got {decision!r} for {tuple(setting)}: use Defended")

    @property
    def settings(self) -> list[Setting]:
        """See `Method.settings`."""
        return list(self.decisions)

    def describe(self, setting: Setting, images: Tensor) -> dict[str, Any]:
        """See `Method.describe`."""
        return {**describe_purifier(self.purifier, images), "decision": describe(self.decisions[setting])}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        asking = [_of_reconstructions(decision) for decision in self.decisions.values()]
        start = clock(images.device)
        shared = reconstruct(self.purifier, images, asking, gradient="none")
        fitting = (clock(images.device) - start) / len(shared.frames) / shared.iterations[-1]  # of one iteration
        classify, verdicts = Remembered(self.classifier), {}
        for setting, decision in self.decisions.items():
            classify.reset()
            start = clock(images.device)
            logits, scores, purified = _decided(decision, classify, images, shared)
            deciding = clock(images.device) - start - classify.waiting
            wanted = _of_reconstructions(decision)
            last = max(*wanted.iterations_of(shared.fit_iterations), *wanted.scored_iterations, 1)
            seconds = fitting * wanted.restarts * last + classify.asking + deciding
            verdicts[setting] = Verdict(logits, scores, seconds, purified)
        return verdicts


def _of_reconstructions(decision: Decision | CrossBoundary) -> Decision:
    """A decision that needs the same reconstructions."""
    return MeanSoftmax(decision.iterations) if isinstance(decision, CrossBoundary) else decision


def _decided(
    decision: Decision | CrossBoundary, classify: Remembered, images: Tensor, shared: Reconstructions
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), scores (B,), and the mean of the classified images, (B, C, H, W)."""
    if isinstance(decision, CrossBoundary):
        stitched = decision.stitch(classify, images, shared.classified(_of_reconstructions(decision)))
        shared = replace(shared, frames=stitched[None, None], iterations=())
        decision = LastReconstruction()
    answer = decide(decision, gather_evidence(classify, images, classify(images), shared, decision))
    return answer.logits, answer.scores, shared.classified(decision).mean(0)


def name_of(defended: DefendedClassifier) -> str:
    """The name of a defence in a table: `smooth` for the smoothed classifier, `dip` for the other purifiers of this
    project, and the name of its class for a purifier that was derived elsewhere.
    """
    kind = type(defended.purifier)
    if issubclass(kind, NoisyPurifier):
        return "smooth"
    return "dip" if kind.__module__.partition(".")[0] in ("dipdefense", "eval") else kind.__name__


@dataclass(frozen=True)
class Defended:
    """A defended classifier without changes, as a family with one setting."""

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
        return {**describe_purifier(purifier, images), "decision": describe(decision)}

    def __call__(self, images: Tensor) -> dict[Setting, Verdict]:
        """See `Method`."""
        start = clock(images.device)
        prediction = self.defended.judge(images)
        seconds = clock(images.device) - start
        return {self.settings[0]: Verdict(prediction.logits, prediction.scores, seconds, prediction.reconstruction)}
