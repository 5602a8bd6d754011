"""Image classifiers of Hugging Face transformers as classifiers of tensors; needs no library beyond torch."""

from typing import Any

import torch
from torch import Tensor, nn

from dipdefense.defence.wrapper import Wrapper

__all__ = ["Logits"]


class Logits(Wrapper):
    """Images (B, C, H, W) in [0, 1] -> the `.logits` of a Hugging Face image classifier, (B, K).

    Args:
        classifier: an `AutoModelForImageClassification`, or any module whose output has `.logits`.
        processor: its image processor. Its `image_mean` and `image_std` normalise the images here, so that budgets of
            attacks stay in pixel units. Its resizing is left to the caller. None: no normalisation.

    Raises:
        TypeError: the classifier is not a module, or the processor has no image_mean and image_std.
    """

    def __init__(self, classifier: nn.Module, processor: Any = None):
        super().__init__(classifier)
        constants = [getattr(processor, name, None) for name in ("image_mean", "image_std")]
        self.normalise = processor is not None and getattr(processor, "do_normalize", True)
        if self.normalise and None in constants:
            raise TypeError(f"processor must have image_mean and image_std, got {type(processor).__name__}")
        mean, std = constants if self.normalise else ([0.0], [1.0])
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K).

        Raises:
            TypeError: the output has no tensor `.logits`.
        """
        output = self.classifier((images - self.mean) / self.std if self.normalise else images)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise TypeError(f"classifier must return an output with .logits, got {type(output).__name__}")
        return logits
