"""A small CNN for scikit-learn's digits, trained in seconds, so that examples need no download."""

import logging
import pickle
import struct
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.datasets import cache_folder, digits_split

__all__ = ["TORN", "DigitsCNN", "train_digits_cnn", "trained_digits_cnn"]

logger = logging.getLogger(__name__)

# Errors of torch.load and load_state_dict for damaged, foreign or mismatching files; found by damaging files.
TORN = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError),
    *(pickle.UnpicklingError, struct.error),
)


class DigitsCNN(nn.Module):
    """Three 3x3 convolutions, each with batch norm and pooling; (B, 1, 32, 32) to (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(width_in, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(64 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.linear(self.features(images).flatten(1))
        return logits


def train_digits_cnn(*, epochs: int = 6, batch_size: int = 64, lr: float = 5e-3, seed: int = 0) -> DigitsCNN:
    """Train on the training part of the digits; `lr` is the peak of a one-cycle schedule of AdamW.

    It uses one thread, so that the weights do not depend on the number of cores; so small a net needs no more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Works under no_grad and inference_mode. Only the generator of the CPU is seeded.
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return _train(epochs, batch_size, lr)
    finally:
        torch.set_num_threads(threads)


def _train(epochs: int, batch_size: int, lr: float) -> DigitsCNN:
    digits = digits_split(train=True)
    images, labels = digits.batch(range(len(digits))), digits.labels
    net = DigitsCNN()
    optimizer = torch.optim.AdamW(net.parameters())
    steps = epochs * -(-len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(labels)), batch_size):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return net.eval()


def trained_digits_cnn() -> DigitsCNN:
    """Read the trained network from `cache_folder()`; train and keep it if the file is missing or damaged."""
    path = cache_folder() / "digits_cnn-2.pt"  # the number changes with the recipe
    if path.is_file():
        try:
            net = DigitsCNN()
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return net.eval()
        except TORN as error:
            logger.warning("%s is torn, training again: %s", path, error)
    net = train_digits_cnn()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        torch.save(net.state_dict(), file)
    Path(file.name).replace(path)  # atomic: a reader sees a whole file or none
    return net
