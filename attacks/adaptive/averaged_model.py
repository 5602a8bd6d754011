"""A random model, replaced by the mean of several of its answers."""

import torch
from torch import Tensor, nn

from dipdefense.defence.evidence import log_mean_softmax

__all__ = ["Averaged"]


class Averaged(nn.Module):
    """Logarithm of the mean softmax over several answers.

    An attack by queries ends for an image as soon as the model is wrong. With a random model one lucky draw would
    suffice, which says little about the next draw.

    Args:
        model: images (B, C, H, W) -> logits (B, K), drawn afresh at every call.
        samples: answers that are averaged, at least 1.

    Raises:
        ValueError: samples below 1.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.model, self.samples = model, samples
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return log_mean_softmax(torch.stack([self.model(images) for _ in range(self.samples)]))
