"""Whether a classifier can be defended: what cannot work, what looks wrong, and what to change."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipdefense.images import check_images
from dipdefense.input_range import RANGES, accuracies, divergences, natural_images, variations

__all__ = ["Compatibility", "Fault", "check_classifier"]

# What a model raises that is given images of a size, a number or a dtype that it was not built for.
REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError)
SIDES = (32, 28, 64, 224, 8, 16, 96, 128, 256, 384)  # tried in this order where no shape is named
NUMBERS = (1, 2, 4, 8, 16, 32, 64)  # sizes of a batch that a model may have been built for
PLAIN = next(iter(RANGES))  # images in [0, 1]


@dataclass(frozen=True)
class Fault:
    """Something to change."""

    name: str  # input, batch, output, softmax, sigmoid, training, random, gradient or range
    certain: bool  # False: a heuristic, which can be wrong
    message: str


@dataclass(frozen=True)
class Compatibility:
    """What `check_classifier` found with images of this shape, (C, H, W)."""

    shape: tuple[int, int, int]
    faults: tuple[Fault, ...]

    def report(self) -> None:
        """Warn of every doubt, and raise ValueError with all that is certain."""
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
    """Look for what keeps a classifier from being defended or attacked honestly; it stays as it was.

    It is called some thirty times on three synthetic images. docs/interoperability.md says what each fault means, and
    where the doubts can be wrong. Whether images in [0, 1] are what it expects is told by labels, where they are given,
    else by its first batch normalisation; without either there is a doubt only where all images look alike to it.

    Args:
        classifier: what is to be images (B, C, H, W) in [0, 1] -> logits (B, K).
        shape: (C, H, W) of its images; those of `images`, or the first that it takes, if None.
        images: real ones in [0, 1], (B, C, H, W), 32 or more; only with labels.
        labels: their classes, (B,) integers.

    Raises:
        TypeError: the classifier is no module, images no floating tensor.
        ValueError: a shape that is not three positive integers, or None where no shape is accepted; images without
            labels, outside [0, 1], or of another number than the labels.
    """
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
    examples = _examples(images, labels)
    where = next((p.device for p in classifier.parameters()), torch.device("cpu"))
    training = any(module.training for module in classifier.modules())
    subject = copy.deepcopy(classifier).eval() if training else classifier
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), torch.no_grad():
        if shape is None:
            shape = _accepted(subject, where) if examples is None else _shape(examples[0].shape[1:])
        probes = natural_images(3, _shape(shape)).to(where)
        faults = tuple(_faults(subject, classifier if training else None, probes, examples))
    return Compatibility(shape, faults)


def _faults(
    net: nn.Module, training: nn.Module | None, images: Tensor, examples: tuple[Tensor, Tensor] | None
) -> Iterator[Fault]:
    """Everything there is; after one that leaves no logits to look at, nothing more."""
    try:
        output = net(images)
    except REFUSALS as error:
        yield _refusal(net, images, error)
        return
    if not isinstance(output, Tensor):
        yield _no_tensor(output)
        return
    wrong = _no_logits(output, len(images))
    if wrong is not None:
        yield wrong
        return
    if training is not None and _changes(copy.deepcopy(training), images, output):
        yield Fault(
            "training",
            True,
            "classifier must be in eval mode, got modules in training mode that change its logits: "
            "call classifier.eval()",
        )
    yield from _probabilities(net, images, output)
    if _changes(net, images, output):
        yield Fault(
            "random",
            False,
            "classifier must give the same logits for the same images, got others at the second call: switch its "
            "random layers off, or give attacks the expectation over them",
        )
    else:
        yield from _one_by_one(net, images, output)
    yield from _blind(net, images)
    yield from _range(net, images, examples)


def _refusal(net: nn.Module, images: Tensor, error: BaseException) -> Fault:
    for n in NUMBERS:
        try:
            output = net(images[:1].expand(n, -1, -1, -1).contiguous())
        except REFUSALS:
            continue
        if isinstance(output, Tensor) and len(output) == n:
            return _fixed(f"{n} and not {len(images)}")
    return Fault(
        "input",
        True,
        f"classifier must take float32 images {tuple(images.shape)} in [0, 1], got {_line(error)}: "
        "resize inside the classifier, name the shape it takes, or convert it with classifier.float()",
    )


def _fixed(taken: str) -> Fault:
    return Fault(
        "batch",
        True,
        f"classifier must take any number of images, takes {taken}: x.flatten(1) for x.view(N, -1) or x.squeeze()",
    )


def _no_tensor(output: object) -> Fault:
    remedy = "return the tensor of logits alone"
    if isinstance(getattr(output, "logits", None), Tensor):
        remedy = "wrap it, dipdefense.adapters.huggingface.Logits(classifier)"
    elif isinstance(output, tuple | list):
        remedy = "wrap it in a module that returns the element that holds the logits"
    elif isinstance(output, dict):
        remedy = f"wrap it in a module that returns one of its entries {', '.join(map(str, output))}"
    return Fault("output", True, f"classifier must return a tensor of logits, got {type(output).__name__}: {remedy}")


def _no_logits(output: Tensor, n: int) -> Fault | None:
    shape = tuple(output.shape)
    if output.dim() == 2 and len(output) != n:
        return _fixed(f"{n} images for logits of shape {shape}")
    if output.dim() != 2:
        remedy = "pool or flatten what is more than (B, K)" if output.dim() > 2 else "return one column for each class"
        return Fault("output", True, f"classifier must return logits (B, K), got shape {shape}: {remedy}")
    if shape[1] < 2:
        remedy = "of two classes, return torch.cat([-logit, logit], 1)"
        return Fault("output", True, f"classifier must return at least 2 logits an image, got shape {shape}: {remedy}")
    if not output.is_floating_point():
        remedy = "return what stands before its argmax"
        return Fault("output", True, f"classifier must return floating logits, got {output.dtype}: {remedy}")
    if not output.isfinite().all():
        remedy = "look for weights that are NaN, or a logarithm of 0"
        return Fault("output", True, f"classifier must return finite logits, got NaN or infinite values: {remedy}")
    return None


def _changes(net: nn.Module, images: Tensor, expected: Tensor) -> bool:
    try:
        return not _alike(net(images), expected)
    except REFUSALS:
        return True


def _alike(output: object, expected: Tensor) -> bool:
    """Up to a hundredth of the logits' spread; kernels for other batches round otherwise."""
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    spread = (expected.amax() - expected.amin()).clamp_min(1e-6)
    return bool((output - expected).abs().amax() <= 1e-2 * spread)


def _probabilities(net: nn.Module, images: Tensor, output: Tensor) -> Iterator[Fault]:
    sums = output.sum(1)
    if bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        yield Fault(
            "softmax",
            True,
            "classifier must return logits, got probabilities (rows that sum to 1): take its softmax off, "
            "which flattens the gradients that attacks need",
        )
        return
    both = torch.cat([output, net(1 - images)])
    if bool(((both >= 0) & (both <= 1)).all() and both.amax() > 0.5):  # small ones are those of random weights
        yield Fault(
            "sigmoid",
            False,
            "classifier should return logits, all values lie in [0, 1]: if it ends in a sigmoid, take that off",
        )


def _one_by_one(net: nn.Module, images: Tensor, output: Tensor) -> Iterator[Fault]:
    for i, row in enumerate(output):
        try:
            alone = net(images[i : i + 1])
        except REFUSALS:
            yield _fixed(f"{len(images)} and not 1")
            return
        if not isinstance(alone, Tensor) or alone.shape != (1, *row.shape):
            shape = tuple(alone.shape) if isinstance(alone, Tensor) else type(alone).__name__
            yield _fixed(f"1 image for an output of {shape}")
            return
        if not _alike(alone, row[None]):
            yield Fault(
                "batch",
                True,
                "classifier must judge each image on its own, its logits depend on the other images of the batch: "
                "normalise with running statistics (track_running_stats=True), and do not pool over the batch",
            )
            return


def _blind(net: nn.Module, images: Tensor) -> Iterator[Fault]:
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        logits = net(images)
        gradient = torch.autograd.grad(logits.amax(1).sum(), images)[0] if logits.requires_grad else None
    if gradient is None or not bool(gradient.isfinite().all() and gradient.any()):
        got = "none" if gradient is None else "zeros" if bool(gradient.isfinite().all()) else "NaN or infinity"
        yield Fault(
            "gradient",
            False,
            f"classifier should pass gradients from its logits to the images, got {got}: without detach, no_grad, "
            "rounding or conversion to integers inside; attacks see nothing, and it looks strong",
        )


def _range(net: nn.Module, images: Tensor, examples: tuple[Tensor, Tensor] | None) -> Iterator[Fault]:
    try:
        if examples is not None:
            right = accuracies(net, examples[0].to(images.device), examples[1].to(images.device))
            best = max(right, key=lambda name: right[name])
            if right[best] - right[PLAIN] > 2 * (0.5 / len(examples[1])) ** 0.5:  # two deviations of a difference
                yield _misread(True, f"{100 * right[PLAIN]:.0f} % are right, and {100 * right[best]:.0f} % of {best}")
            return
        far = divergences(net, images)
        if far:
            best = min(far, key=lambda name: far[name])
            if far[PLAIN] > max(0.2, 3 * far[best]):
                measured = f"{far[PLAIN]:.2f} nats, and {far[best]:.2f} those of {best}"
                yield _misread(False, f"they are off the statistics of its first batch normalisation by {measured}")
            return
        spread = variations(net, images)
    except REFUSALS:  # it refuses images outside [0, 1], and takes those within
        return
    least = spread[PLAIN]
    if least < 0.03 and spread["images in [0, 255]"] > 5 * least:
        yield _misread(False, f"they all look alike to it (logits vary by {100 * least:.1f} %), and others do not")


def _misread(certain: bool, evidence: str) -> Fault:
    verb = "must" if certain else "should"
    return Fault(
        "range",
        certain,
        f"classifier {verb} expect images in [0, 1], but {evidence}: make its scaling or normalisation the first layer",
    )


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


def _accepted(net: nn.Module, where: torch.device) -> tuple[int, int, int]:
    """The first shape of which it takes some number of images."""
    last: BaseException | None = None
    for side in SIDES:
        for C in (3, 1):
            images = natural_images(1, (C, side, side)).to(where)
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
        f"shape must be named (C, H, W) for this classifier, or its weights converted to float32: it takes no grey or "
        f"colour images of {sides} a side, the last with {_line(last)}"
    )


def _line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
