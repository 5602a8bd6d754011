"""Random noise of the size of an attack: the control for attacks and for detectors of attacks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.gradient import validate

__all__ = ["CONTROLS", "random_noise"]


def random_noise(
    classifier: nn.Module, images: Tensor, labels: Tensor, *, eps: float, norm: str = "linf", seed: int | None = 0
) -> Tensor:
    """A random corner of the ball: +eps or -eps in every value (linf), a random direction of length eps (l2).

    A corner is as far from the image as the ball allows; its L2 norm is larger than that of most linf attacks.

    Args:
        classifier: not used.
        images: (B, C, H, W), floating, in [0, 1].
        labels: not used.
        eps: radius of the ball, in the unit of the images.
        norm: "linf" or "l2"; the L2 norm is that of a whole image.
        seed: of the noise, which is the same for all images of one size; `None` is fresh entropy.

    Returns:
        Noisy images, like `images`, clipped to [0, 1].

    Raises:
        TypeError, ValueError: as `pgd`.
    """
    validate(images, labels, eps=eps, norm=norm)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    noise = torch.randn(images.shape[1:], generator=generator, dtype=torch.float64)
    noise = noise.sign() if norm == "linf" else noise / noise.norm()
    return (images + eps * noise.to(images)).clamp(0, 1)


CONTROLS: dict[str, Callable[..., Tensor]] = {"random_noise": random_noise}
