"""Attack a filter through the identity (BPDA): rounding every value to 0 or 1. Offline; seconds on a CPU.

Prints the share of images that are right after the filter, where the attack knows the classifier alone, and where it
goes through the filter. An argument, the data folder, replaces the digits by MNIST.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from attacks import momentum_pgd, pgd
from eval.baselines import bit_depth
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import wilson


class Filtered(nn.Module):
    """The classifier behind the filter, whose gradient is that of the identity."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(images + (bit_depth(images, 1) - images).detach())
        return logits


if sys.argv[1:]:
    data = Path(sys.argv[1])
    digits, first, N, STEPS = load_dataset("mnist", data / "mnist"), 1000, 128, 100
    classifier = load_classifier("mnist_lenet", data / "weights" / "mnist_lenet5_clntrained.pt")
else:
    digits, first, N, STEPS = load_dataset("digits"), 0, 48, 10
    classifier = load_classifier("digits_cnn")
chosen = range(first, first + N)
images, labels = digits.batch(chosen), digits.labels[chosen.start : chosen.stop]
filtered = Filtered(classifier)
for eps in (0.1, 0.2, 0.3):
    for name, attack in {"pgd": pgd, "momentum_pgd": momentum_pgd}.items():
        for crafted_on, target in {"bare": classifier, "filtered": filtered}.items():
            adversarial = attack(target, images, labels, eps=eps, steps=STEPS)
            with torch.no_grad():
                right = int((filtered(adversarial).argmax(1) == labels).sum())
            low, high = wilson(right, N)
            print(
                f"{eps} {name:12} {crafted_on:8} {100 * right / N:5.1f} % right ({100 * low:.1f} to {100 * high:.1f})"
            )
