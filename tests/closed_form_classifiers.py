"""Small classifiers whose robustness is known in closed form, for the tests of attacks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dipdefense import FitConfig

# A small fit in few large steps.
FIT = FitConfig(architecture_options={"channels": [4], "skip_channels": 2}, input_channels=4, iterations=8, lr=0.1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Logits <w_k, x - 0.5> with a head start of class 0, and a dropout whose mode matters."""

    def __init__(self, w: Tensor, lead: float = 3.0) -> None:
        super().__init__()
        self.w = nn.Parameter(w)
        self.lead = lead
        self.dropout = nn.Dropout()

    def forward(self, images: Tensor) -> Tensor:
        logits = (self.dropout(images) - 0.5).flatten(1) @ self.w.flatten(1).T
        return logits + self.lead * torch.eye(len(self.w), dtype=logits.dtype)[0]


def linear(classes: int = 4, size: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Linear, Tensor, Tensor]:
    """A classifier, images of class 0 far from 0 and 1, and their labels.

    The last row and column weigh nothing: pyautoattack's smallest squares never touch them.
    """
    w = torch.randn(classes, 1, 6, 6, generator=seeded(0), dtype=dtype)
    w[..., -1] = w[..., -1, :] = 0
    images = 0.49 + 0.02 * torch.rand(size, 1, 6, 6, generator=seeded(1), dtype=dtype)
    return Linear(w), images, torch.zeros(size).long()


def radius(classifier: Linear, images: Tensor) -> float:
    """The smallest Linf perturbation that changes the class of the first image: min_k margin_k / |w_0 - w_k|_1."""
    with torch.no_grad():
        logits = classifier.eval()(images[:1])[0]
        lengths = (classifier.w[:1] - classifier.w[1:]).abs().flatten(1).sum(1)
        return ((logits[0] - logits[1:]) / lengths).min().item()


def conv_net(classes: int = 10) -> nn.Module:
    """Small net with the submodules whose mode matters, in training mode."""
    with torch.random.fork_rng():
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(256, classes),
        )
    generator = seeded(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return net


def batch(net: nn.Module, size: int = 4) -> tuple[Tensor, Tensor]:
    """Images that reach 0 and 1, with the classes that the net predicts in evaluation mode."""
    images = (1.4 * torch.rand(size, 3, 8, 8, generator=seeded(1)) - 0.2).clamp(0, 1)
    training = net.training
    with torch.no_grad():
        labels = net.eval()(images).argmax(1)
    net.train(training)
    return images, labels


def length(delta: Tensor, norm: str) -> Tensor:
    """Norm of each image, in float64."""
    return torch.linalg.vector_norm(delta.double(), float("inf") if norm == "linf" else 2, dim=(1, 2, 3))


class Counting(nn.Module):
    """Keeps how many images each call held, what it returned, and whether gradients were enabled."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.asked: list[int] = []
        self.logits: list[Tensor] = []
        self.gradients = False

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        self.gradients |= torch.is_grad_enabled()
        self.logits.append(self.classifier(images))
        return self.logits[-1]


class Scaled(nn.Module):
    """A classifier of the same weights and code, whatever function it holds; a fingerprint does not see that."""

    def __init__(self, net: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self.net(images))


class NoGradient(torch.autograd.Function):
    """The identity, whose backward pass raises."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("this defence has no gradient")


class Refusing(nn.Module):
    """A classifier without a backward pass."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return NoGradient.apply(self.classifier(images))


class Noisy(nn.Module):
    """A classifier that draws from the global generator."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images + 0.05 * torch.randn_like(images))
