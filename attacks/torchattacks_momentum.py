"""Momentum PGD in the form of a torchattacks attack."""

from typing import Any

from torch import Tensor, nn

from attacks.gradient import rate
from attacks.gradient_ascent import ascend, random_start
from attacks.optional import library

__all__ = ["MomentumPGD"]


Attack: Any = library("torchattacks.attack").Attack


class MomentumPGD(Attack):  # type: ignore[misc]  # torchattacks is untyped
    """`attacks.momentum_pgd` as a torchattacks attack: `MomentumPGD(classifier, eps=8 / 255)(images, labels)`.

    Source: Dong et al. (2018), "Boosting adversarial attacks with momentum", eq. (6)-(7).
    Differs: torchattacks has this attack in Linf (MIFGSM, and UPGD with a random start), but not in L2, and returns
        NaN once a gradient is zero; here such a gradient adds nothing, and the best iterate is returned. It divides by
        the mean of the absolute gradient, we by the sum, as eq. (6): the momentum differs by the factor C*H*W, its
        sign and the images do not.
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
        seed: int = 0,
    ) -> None:
        super().__init__("MomentumPGD", model)
        self.eps, self.alpha, self.steps, self.decay = eps, alpha, steps, decay
        self.random_start, self.norm, self.seed = random_start, norm, seed
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images, (B, C, H, W) in [0, 1]; `labels` (B,) are the targets if targeted."""
        images = images.detach().clone()
        target = self.get_target_label(images, labels) if self.targeted else labels
        start = images
        if self.random_start:
            start = random_start(images, eps=self.eps, norm=self.norm, seed=self.seed)
        best, _ = ascend(
            rate(self.get_logits, target, targeted=self.targeted),
            images,
            eps=self.eps,
            norm=self.norm,
            steps=self.steps,
            rule="momentum",
            alpha=self.alpha,
            decay=self.decay,
            start=start,
        )
        return best
