"""The description of a run by names and paths, which every machine can load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dipdefense import DefendedClassifier, FitConfig, Purifier
from dipdefense.arguments import did_you_mean
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
        ValueError: an unknown filter.
    """

    classifier: str  # as for `load_classifier`, with its weights
    weights: Path | None = None
    dataset: str  # as for `load_dataset`, with its path
    data: Path | None = None
    index: tuple[int | None, int | None] = (None, None)  # images between these positions
    config: Config
    fit: FitConfig | None = None
    tile: int | None = None
    decision: str | None = None
    mirror: bool = True  # False: no mirrored views, for classes that change in the mirror
    fresh: bool = False  # True: the defence draws its seed at every query; False: the seed of the config
    filters: tuple[str, ...] = ()  # keys of BASELINES, for comparison with the defence

    def __post_init__(self) -> None:
        for name in self.filters:
            if name not in BASELINES:
                raise ValueError(
                    f"filters must be among {', '.join(BASELINES)}, got {name!r}{did_you_mean(name, BASELINES)}"
                )

    def load(self, device: Any = "cpu") -> tuple[DefendedClassifier, ImageDataset]:
        """The defended classifier and the images. Raises as the loaders do."""
        images = load_dataset(self.dataset, self.data).between(*self.index)
        classifier = load_classifier(self.classifier, self.weights).to(device)
        purifier = Purifier(self.fit, seed=None if self.fresh else self.config.seed, tile=self.tile)
        return DefendedClassifier(classifier, purifier, decision=self.decision, mirror=self.mirror), images

    def evaluation(self: "RunSpec[RunConfig]", device: Any = "cpu", **subject: Any) -> Experiment:
        """The experiment of `evaluate_robustness`; `subject` are further fields of it."""
        filters = {name: BASELINES[name] for name in self.filters}
        subject |= {"classifier_name": self.classifier, "device": device}
        return evaluation(*self.load(device), self.config, filters=filters, **subject)
