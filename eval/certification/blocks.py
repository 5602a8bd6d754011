"""A block of draws of one image: noise, purification, and a count of the classes."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipdefense.defence.smoothing import SmoothedClassifier
from eval.certification.config import CertificationConfig
from eval.certification.purifiers_by_name import purifier_named
from eval.cost import clock
from eval.datasets import ImageDataset
from eval.records import Record
from eval.robustness.config import identify

__all__ = ["Block", "BlockCounter", "Counted", "named_image"]


class Block(NamedTuple):
    """Draws of an image that are purified together."""

    position: int  # of the image in the data set
    image: str  # digest of its pixels and its label
    purifier: str
    draws: range


class Counted(NamedTuple):
    """What a block gave."""

    classes: dict[str, int]  # how often each class, by its number in text, as JSON has it
    seconds: float


def named_image(dataset: ImageDataset, position: int) -> tuple[Tensor, Record]:
    """An image (C, H, W), and the fields that name it in a record."""
    images = dataset.batch([position])
    return images[0], identify(images, dataset.labels[position][None], dataset.index[position][None])[0]


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
        """Count the classes.

        Raises:
            RuntimeError: the image has other pixels here than where the block was made.
        """
        image, named = named_image(self.dataset, block.position)
        index = named["index"]
        if named["image"] != block.image:
            raise RuntimeError(f"image {index} must be the same on all machines, but has other pixels on this one")
        image = image.to(self.device)
        start = clock(image.device)
        classes = self.smoothed[block.purifier].count(image, block.draws, index)
        return Counted({str(k): classes[k] for k in sorted(classes)}, round(clock(image.device) - start, 4))
