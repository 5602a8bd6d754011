"""Whether a classifier expects images in [0, 1]: evidence from the model itself, and from labels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["RANGES", "accuracies", "divergences", "natural_images", "variations"]

Map = Callable[[Tensor], Tensor]


def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Map:
    def normalise(images: Tensor) -> Tensor:
        if images.shape[1] != len(mean):
            return (images - sum(mean) / len(mean)) / (sum(std) / len(std))
        return (images - images.new_tensor(mean).view(-1, 1, 1)) / images.new_tensor(std).view(-1, 1, 1)

    return normalise


# What a classifier may have been trained on, from images in [0, 1].
RANGES: dict[str, Map] = {
    "images in [0, 1]": lambda images: images,
    "images in [0, 255]": lambda images: images * 255,
    "images in [-1, 1]": lambda images: images * 2 - 1,
    "images normalised by ImageNet's mean and standard deviation": _normalised(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
}


def natural_images(n: int, shape: tuple[int, int, int], *, seed: int = 0) -> Tensor:
    """Noise with the 1/f spectrum of photographs, (n, C, H, W) in [0, 1]; mean 0.45 and deviation 0.25 before clipping.

    Source: Field (1987), "Relations between the statistics of natural images and the response properties of cortical
    cells". Channels share four fifths of their variance.
    """
    C, H, W = shape
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(n, C, H, W, generator=generator)
    shared = torch.randn(n, 1, H, W, generator=generator)
    frequency = (torch.fft.fftfreq(H)[:, None] ** 2 + torch.fft.rfftfreq(W)[None] ** 2).sqrt()
    spectrum = 1 / frequency.clamp_min(1 / max(H, W))
    noise = torch.fft.irfft2(torch.fft.rfft2(shared * 0.8**0.5 + white * 0.2**0.5) * spectrum, s=(H, W))
    images: Tensor = 0.45 + 0.25 * noise / noise.std()
    return images.clamp(0, 1)


@torch.no_grad()
def divergences(classifier: nn.Module, images: Tensor) -> dict[str, float]:
    """How far images in each of `RANGES` are from the training statistics of the first batch normalisation.

    The images are (B, C, H, W) in [0, 1]. For each channel there are two Gaussians, with the moments of these images
    and with the running moments. The distance is the median over channels of their Kullback-Leibler divergence, in
    nats. The result is empty if there is no batch normalisation, or it was never trained.
    """
    seen: list[tuple[_BatchNorm, Tensor]] = []
    norms = [module for module in classifier.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(lambda norm, args: seen.append((norm, args[0]))) for norm in norms]
    found: dict[str, float] = {}
    try:
        for name, mapping in RANGES.items():
            seen.clear()
            classifier(mapping(images))
            if not seen or not _was_trained(seen[0][0]):
                return {}
            norm, values = seen[0]
            found[name] = _divergence(norm, values.transpose(0, 1).flatten(1))  # (channels, B*H*W)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _was_trained(norm: _BatchNorm) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return mean is not None and var is not None and not bool((mean == 0).all() and (var == 1).all())


def _divergence(norm: _BatchNorm, values: Tensor) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    ratio = values.var(1) / norm.running_var.clamp_min(norm.eps)
    shift = (values.mean(1) - norm.running_mean).square() / norm.running_var.clamp_min(norm.eps)
    return float((ratio + shift - 1 - ratio.clamp_min(1e-12).log()).median() / 2)


@torch.no_grad()
def variations(classifier: nn.Module, images: Tensor) -> dict[str, float]:
    """How much the logits vary over images, relative to how much they vary over classes, for each of `RANGES`.

    Close to 0 if all images (B, C, H, W) look alike to the classifier, for example almost black.
    """
    found: dict[str, float] = {}
    for name, mapping in RANGES.items():
        logits = classifier(mapping(images))
        found[name] = float(logits.std(0).mean() / logits.mean(0).std().clamp_min(1e-12))
    return found


@torch.no_grad()
def accuracies(classifier: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy on images (B, C, H, W) in [0, 1] given as each of `RANGES`."""
    return {
        name: float((classifier(mapping(images)).argmax(1) == labels).double().mean())
        for name, mapping in RANGES.items()
    }
