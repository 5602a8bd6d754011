"""Momentum PGD as a torchattacks attack, with what those of the library lack: L2 and zero gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchattacks.attack import Attack

from attacks.ball import length, project, steepest

__all__ = ["MomentumPGD"]


class MomentumPGD(Attack):  # type: ignore[misc]  # torchattacks is untyped
    """Projected gradient ascent along an accumulated gradient; `attacks.momentum_pgd` is its checked entry.

    Used like any torchattacks attack: `MomentumPGD(classifier, eps=8 / 255)(images, labels)`.

    Source: Dong et al. (2018), "Boosting adversarial attacks with momentum", eq. (6)-(7).
    Differs: a random start is possible, as in Madry et al. (2018), and each step is projected on the ball.
        torchattacks has both in Linf (MIFGSM, and UPGD with a random start), but no L2, and NaN once a
        gradient is zero; here such a gradient adds nothing. It divides by the mean of the absolute gradient,
        we by the sum, as eq. (6): the momentum differs by the factor C*H*W, its sign and the images do not.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        random_start: bool = False,
        norm: str = "linf",
        seed: int | None = 0,
    ) -> None:
        super().__init__("MomentumPGD", model)
        self.eps, self.alpha, self.steps, self.decay = eps, alpha, steps, decay
        self.random_start, self.norm, self.seed = random_start, norm, seed
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images, (B, C, H, W) in [0, 1]; `labels` (B,) are the targets if targeted."""
        images = images.detach().clone()
        target = self.get_target_label(images, labels) if self.targeted else labels
        ascent = -1 if self.targeted else 1
        momentum = torch.zeros_like(images)
        adversarial = self._start(images) if self.random_start else images

        for _ in range(self.steps):
            adversarial = adversarial.detach().requires_grad_()
            loss = ascent * F.cross_entropy(self.get_logits(adversarial), target)
            (gradient,) = torch.autograd.grad(loss, adversarial)
            momentum = self.decay * momentum + gradient / length(gradient, 1)  # eq. (6)
            stepped = adversarial.detach() + self.alpha * steepest(momentum, self.norm)  # eq. (7)
            adversarial = project(stepped, images, self.eps, self.norm)
        return adversarial.detach()

    def _start(self, images: Tensor) -> Tensor:
        """Draw a point of the ball once for all images, so that none depends on its place in the batch."""
        generator = torch.Generator(images.device)
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        delta = torch.empty_like(images[:1])
        if self.norm == "linf":
            delta.uniform_(-self.eps, self.eps, generator=generator)
        else:  # as torchattacks' PGDL2: uniform direction, uniform radius
            delta = steepest(delta.normal_(generator=generator), self.norm)
            delta *= self.eps * torch.rand((), generator=generator, device=delta.device, dtype=delta.dtype)
        return (images + delta).clamp(0, 1)
