"""Check whether a classifier can be defended: certain faults, doubts, and what to change."""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipdefense.check.incompatibility import NUMBERS, Incompatibility, faults
from dipdefense.check.input_range import natural_images
from dipdefense.defence.classifier_errors import REFUSALS, first_line
from dipdefense.image_tensors import check_images

__all__ = ["Compatibility", "check_classifier"]

SIDES = (32, 28, 64, 224, 8, 16, 96, 128, 256, 384)  # tried in this order if no shape is given
PHOTOGRAPH = 224  # tried before them if the classifier looks as if it was made for photographs


@dataclass(frozen=True)
class Compatibility:
    """The findings of `check_classifier` with images of this shape, (C, H, W)."""

    shape: tuple[int, int, int]
    faults: tuple[Incompatibility, ...]

    def report(self) -> None:
        """Warn of every doubt, and raise ValueError with all certain faults."""
        for fault in self.faults:
            if not fault.certain:
                warnings.warn(fault.message, stacklevel=3)
        certain = [fault.message for fault in self.faults if fault.certain]
        if certain:
            raise ValueError("; ".join(certain))


def check_classifier(
    classifier: nn.Module,
    shape: tuple[int, int, int] | None = None,
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
) -> Compatibility:
    """Look for what keeps a classifier from being defended, or an attack on it from being as strong as it could be.

    The classifier is called a dozen times on three synthetic images, more often if no shape is given, and is left as it
    was. docs/interoperability.md says what each fault means, and where the doubts can be wrong. Whether the classifier
    expects images in [0, 1] is judged by the labels if there are any, else by its first batch normalisation. Without
    either there is a doubt only if its logits are nearly the same for all images.

    Args:
        classifier: should map images (B, C, H, W) in [0, 1] to logits (B, K).
        shape: (C, H, W) of its images; if None, that of `images`, or the first shape that it accepts: 224 pixels a
            side is tried before 32 if its first convolution has a stride.
        images: real ones in [0, 1], (B, C, H, W), 32 or more; only together with labels.
        labels: their classes, (B,) integers.

    Raises:
        TypeError: the classifier is not a module, or images are not a floating tensor.
        ValueError: a shape that is not three positive integers, or None where no shape is accepted; images without
            labels, outside [0, 1], or not as many as the labels.
    """
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
    examples = _examples(images, labels)
    like = next((p[:0] for p in classifier.parameters() if p.dim() and p.is_floating_point()), torch.empty(0))
    like = like.detach().to(torch.float64 if like.dtype == torch.float64 else torch.float32)
    training = any(module.training for module in classifier.modules())
    subject = copy.deepcopy(classifier).eval() if training else classifier
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []), torch.no_grad():
        if shape is None:
            shape = _accepted(subject, like) if examples is None else _shape(examples[0].shape[1:])
        probes = natural_images(3, _shape(shape)).to(like)
        found = tuple(faults(subject, classifier if training else None, probes, examples))
    return Compatibility(shape, found)


def _examples(images: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise ValueError(f"images and labels must be given together, got {'labels' if images is None else 'images'}")
    check_images(images)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be one for each of the {len(images)} images, got shape {tuple(labels.shape)}")
    return images, labels


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(f"shape must be (C, H, W), three positive integers, got {shape!r}")
    C, H, W = shape
    return C, H, W


def _begins_with_a_stride(net: nn.Module) -> bool:
    """Whether its first convolution has three input channels and a stride, as networks for photographs have.

    Most of them accept 32 pixels, too, of which they leave a single one. Networks for 32 pixels begin without a stride.
    """
    first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    return first is not None and first.in_channels == 3 and max(first.stride) > 1


def _accepted(net: nn.Module, like: Tensor) -> tuple[int, int, int]:
    """The first shape of which it accepts a batch of some size."""
    last: BaseException | None = None
    for side in (PHOTOGRAPH, *SIDES) if _begins_with_a_stride(net) else SIDES:
        for C in (3, 1):
            images = natural_images(1, (C, side, side)).to(like)
            for n in (3, *NUMBERS):
                try:
                    output = net(images.expand(n, -1, -1, -1).contiguous())
                except REFUSALS as error:
                    last = error
                    continue
                if not isinstance(output, Tensor) or len(output) == n:
                    return C, side, side
    sides = ", ".join(map(str, SIDES))
    raise ValueError(
        f"shape must be given as (C, H, W) for this classifier, or its weights converted to float32: it accepts no "
        f"grey or colour images of {sides} pixels a side; the last attempt raised {first_line(last)}"
    )
