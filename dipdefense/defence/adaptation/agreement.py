"""How often reconstructions, and clean images, get the class that the bare classifier gives to the image."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipdefense.defence.adaptation.progress_file import ProgressFile
from dipdefense.defence.adaptation.training_inputs import NoisyCopies, reconstruct_copies

__all__ = ["Agreement", "measure_agreement"]

BATCH = 64  # images classified together


class Agreement(NamedTuple):
    """Shares, in [0, 1], with the class of the bare classifier; its share of the clean images is 1."""

    bare_on_reconstructions: float
    adapted_on_reconstructions: float
    adapted_on_clean: float


@torch.no_grad()
def measure_agreement(
    bare: nn.Module,
    adapted: nn.Module,
    images: Tensor,
    noisy: NoisyCopies,
    callback: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compare two classifiers on images (N, C, H, W) in [0, 1] that no one was trained on; no labels are needed.

    Each reconstruction counts by itself, as in training, and not the decision over several of them. `callback` is
    called as by `reconstruct_copies`.
    """
    made, owners = reconstruct_copies(images, noisy, ProgressFile(None, {}), callback)
    wanted = _classes(bare, images)
    return Agreement(
        bare_on_reconstructions=_share(bare, made, wanted[owners]),
        adapted_on_reconstructions=_share(adapted, made, wanted[owners]),
        adapted_on_clean=_share(adapted, images, wanted),
    )


def _share(classifier: nn.Module, images: Tensor, wanted: Tensor) -> float:
    return (_classes(classifier, images) == wanted).float().mean().item()


def _classes(classifier: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([classifier(part).argmax(1) for part in torch.split(images, BATCH)])
