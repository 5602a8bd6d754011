"""The ball that an adversarial image must stay in, and the way up in its norm."""

import torch
from torch import Tensor

__all__ = ["length", "project", "steepest"]

INSIDE = 1 - 1e-12  # more than what a float64 norm is rounded by


def project(adversarial: Tensor, images: Tensor, eps: float | Tensor, norm: str) -> Tensor:
    """Move `adversarial` into [0, 1] and the ball of radius `eps`, exactly: no value is rounded out of it.

    In Linf this is the nearest such point; in L2 the perturbation is shortened, then clipped.

    Args:
        adversarial: (B, C, H, W), any values.
        images: the centres, (B, C, H, W) in [0, 1].
        eps: radius, in the unit of the images; a tensor (B, 1, 1, 1) where each image has its own.
        norm: "linf" or "l2".

    Returns:
        Like `images`. In float64, which MPS does not have, the norm of (result - images) is at most `eps`.
    """
    exact = torch.float32 if images.device.type == "mps" else torch.float64  # MPS has no float64
    centre = images.to(exact)
    delta = adversarial.to(exact) - centre
    eps = torch.as_tensor(eps, dtype=exact, device=centre.device)
    if norm == "linf":
        delta = delta.clamp(-eps, eps)
    else:
        length = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)
        delta = delta * (eps * INSIDE / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
    near = (centre + delta).clamp(0, 1).to(images.dtype)
    outside = (near.to(exact) - centre).abs() > delta.abs()
    return torch.where(outside, near.nextafter(images), near)


def length(x: Tensor, order: int) -> Tensor:
    """L1 or L2 norm of each image, (B, 1, 1, 1); kept above zero, so that 0 / length is 0."""
    norm: Tensor = torch.linalg.vector_norm(x, order, dim=(1, 2, 3), keepdim=True)
    return norm.clamp_min(torch.finfo(x.dtype).tiny)


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """Direction of steepest ascent of each image on the unit ball: like `gradient`, (B, C, H, W)."""
    if norm == "linf":
        return gradient.sign()
    gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / length(gradient, 2)  # its squares neither overflow nor vanish now
