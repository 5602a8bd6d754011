"""The description of a run by names and paths, which every machine can load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from dipdefense import DefendedClassifier, FitConfig, MeanSoftmax, Purifier
from dipdefense.arguments import check_integer, check_known, check_positive
from dipdefense.defence.presets import smoothing_defence_for
from dipdefense.defence.smoothing import NoisyPurifier
from eval.baselines import BASELINES
from eval.classifiers import load_classifier
from eval.datasets import ImageDataset, load_dataset
from eval.robustness.config import AttackConfig, RunConfig
from eval.robustness.evaluate import evaluation
from eval.robustness.experiment import Experiment

__all__ = ["RunSpec"]

Config = TypeVar("Config", bound=AttackConfig)


@dataclass(frozen=True, kw_only=True)
class RunSpec(Generic[Config]):
    """A run described by names and paths.

    Raises:
        ValueError: an unknown filter, votes below 1; a sigma that is not positive, or one beside a fit, a tile or a
            decision.
    """

    classifier: str  # as for `load_classifier`, with its weights
    weights: Path | None = None
    dataset: str  # as for `load_dataset`, with its path
    data: Path | None = None
    index: tuple[int | None, int | None] = (None, None)  # images between these positions
    size: int | None = None  # side of the squares cut from the photographs of `folder`, as for `load_dataset`
    config: Config
    fit: FitConfig | None = None
    tile: int | None = None
    decision: str | None = None
    mirror: bool = True  # False: no mirrored views, for classes that change in the mirror
    fresh: bool = False  # True: the defence draws its seed at every query; False: the seed of the config
    # standard deviation of the noise of a smoothed classifier, images in [0, 1], which is then the defence
    sigma: float | None = None
    votes: int = 1  # noisy copies that give one answer of the smoothed classifier
    filters: tuple[str, ...] = ()  # keys of BASELINES, for comparison with the defence

    def __post_init__(self) -> None:
        for name in self.filters:
            check_known("filters", name, BASELINES, several=True)
        check_integer("votes", self.votes, 1)
        if self.sigma is None:
            return
        check_positive("sigma", self.sigma)
        for name in ("fit", "tile", "decision"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} must be left out with sigma, which has its own, got {getattr(self, name)!r}")

    def load(self, device: Any = "cpu") -> tuple[DefendedClassifier, ImageDataset]:
        """The defended classifier and the images. Raises as the loaders do."""
        images = load_dataset(self.dataset, self.data, size=self.size).between(*self.index)
        classifier = load_classifier(self.classifier, self.weights).to(device)
        seed = None if self.fresh else self.config.seed
        if self.sigma is not None:
            return self._smoothed(classifier, images, self.sigma, seed), images
        purifier = Purifier(self.fit, seed=seed, tile=self.tile)
        return DefendedClassifier(classifier, purifier, decision=self.decision, mirror=self.mirror), images

    def _smoothed(
        self, classifier: nn.Module, images: ImageDataset, sigma: float, seed: int | None
    ) -> DefendedClassifier:
        defence = smoothing_defence_for(tuple(images.batch([0]).shape[1:]), sigma, mirror=self.mirror)
        classified = defence.decision.iterations_of(defence.fit.iterations) or (defence.fit.iterations,)
        decision = MeanSoftmax(classified, restarts=self.votes, views=defence.decision.views)
        purifier = NoisyPurifier(sigma, defence.fit, seed=seed, tile=defence.tile)
        return DefendedClassifier(classifier, purifier, decision=decision, mirror=self.mirror)

    def evaluation(self: "RunSpec[RunConfig]", device: Any = "cpu", **subject: Any) -> Experiment:
        """The experiment of `evaluate_robustness`; `subject` are further fields of it."""
        filters = {name: BASELINES[name] for name in self.filters}
        subject |= {"classifier_name": self.classifier, "device": device}
        return evaluation(*self.load(device), self.config, filters=filters, **subject)
