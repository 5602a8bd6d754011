"""A block of draws of one image: noise, purification, and a count of the classes."""

from typing import NamedTuple

import torch
from torch import nn

from dipdefense.defence.smoothing import SmoothedClassifier
from eval.certification.config import CertificationConfig
from eval.certification.purifiers_by_name import purifier_named
from eval.cost import clock
from eval.datasets import ImageDataset

__all__ = ["Block", "BlockCounter", "Counted"]


class Block(NamedTuple):
    """Draws of an image that are purified together."""

    position: int  # of the image in the data set
    purifier: str
    draws: range


class Counted(NamedTuple):
    """What a block gave."""

    classes: dict[str, int]  # how often each class, by its number in text, as JSON has it
    seconds: float


class BlockCounter:
    """Purifies and classifies the draws of a block. Arguments as in `certify_dataset`."""

    def __init__(
        self, classifier: nn.Module, dataset: ImageDataset, config: CertificationConfig, device: str | torch.device
    ):
        self.dataset, self.device = dataset, device
        self.smoothed = {
            name: SmoothedClassifier(
                classifier,
                sigma=config.plan.sigma,
                seed=config.seed,
                purify=purifier_named(name, config.plan.sigma),
                mirror=config.mirror,
            )
            for name in config.purifiers
        }

    def __call__(self, block: Block) -> Counted:
        """Count the classes."""
        image = self.dataset.batch([block.position])[0].to(self.device)
        start, index = clock(image.device), int(self.dataset.index[block.position])
        classes = self.smoothed[block.purifier].count(image, block.draws, index)
        return Counted({str(k): classes[k] for k in sorted(classes)}, round(clock(image.device) - start, 4))
