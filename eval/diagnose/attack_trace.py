"""The white-box attack of the checks, recorded at every step."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import pgd
from attacks.isolation import as_found
from attacks.margin import margin as logit_margin
from dipdefense.defence.check_logits import check_logits

__all__ = ["NoGradientError", "Trace", "query", "margin", "require_gradient", "trace"]


class NoGradientError(RuntimeError):
    """A backward pass through the model raises, so that no gradient attack can be made."""


class Trace(NamedTuple):
    """The iterates of an attack; row t is the iterate after t steps, row 0 the random start."""

    margins: Tensor  # (T + 1, B)
    usable: Tensor  # (T + 1, B) bool: the gradient was finite and not zero
    adversarial: Tensor  # (B, C, H, W), the iterate of the least margin

    def least(self, steps: int | None = None) -> Tensor:
        """The least margin within this many steps, all by default, (B,); at most 0 where the attack succeeded."""
        return self.margins[: None if steps is None else steps + 1].amin(0)


def trace(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, seed: int = 0) -> Trace:
    """PGD (Linf, random start, step size eps / 4) that keeps the best iterate; fewer steps give a prefix of more.

    Raises:
        NoGradientError: a backward pass through the model raises.
        ValueError: the model's logits are not finite or not (B, K).
    """
    require_gradient(model, images[:1], labels[:1], seed=seed)
    watched = _Watched(model, labels)
    best = pgd(watched, images, labels, eps=eps, steps=steps, seed=seed)
    return Trace(torch.stack(watched.margins), torch.stack(watched.usable), best)


def margin(model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """Logit of the true class minus the largest other, (B,); at most 0 where the image is misclassified."""
    return _margin(query(model, images, seed), labels)


def query(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Logits without gradient; the seed sets the global generators that a random model draws from."""
    with as_found(model, images.device, seed), torch.no_grad():
        logits: Tensor = model(images)
    return logits


def require_gradient(model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> None:
    """Make one backward pass.

    Raises:
        NoGradientError: it raises.
    """
    with as_found(model, images.device, seed):
        images = images.detach().clone().requires_grad_()
        loss = F.cross_entropy(model(images), labels)
        try:
            torch.autograd.grad(loss, images)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NoGradientError(" ".join(str(error).split())) from error


class _Watched(nn.Module):
    """A model that records the margins and gradients of the attack on it."""

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels = model, labels
        self.training = model.training
        self.margins: list[Tensor] = []
        self.usable: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """The model's logits."""
        seen = images.view_as(images)
        if seen.requires_grad:
            seen.register_hook(self._note)  # type: ignore[no-untyped-call]
        logits: Tensor = self.model(seen)
        self.margins.append(_margin(logits.detach(), self.labels))
        return logits

    def _note(self, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        self.usable.append(flat.isfinite().all(1) & (flat != 0).any(1))
        return gradient.nan_to_num(0, 0, 0)  # recorded above; with NaN an attack would leave [0, 1]


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    check_logits(logits, len(labels), "model")
    return logit_margin(logits, labels)
