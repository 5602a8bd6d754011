"""The single checks for what keeps a classifier from being defended, each with what to change."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipdefense.check.input_range import RANGES, accuracies, divergences, variations
from dipdefense.defence.classifier_errors import REFUSALS, first_line

__all__ = ["NUMBERS", "Incompatibility", "faults"]

NUMBERS = (1, 2, 4, 8, 16, 32, 64)  # sizes of a batch that a model may have been built for
PLAIN = next(iter(RANGES))  # images in [0, 1]


@dataclass(frozen=True)
class Incompatibility:
    """Something to change."""

    name: str  # input, batch, output, softmax, sigmoid, training, random, gradient or range
    certain: bool  # False: a heuristic, which can be wrong
    message: str


def faults(
    net: nn.Module, training: nn.Module | None, images: Tensor, examples: tuple[Tensor, Tensor] | None
) -> Iterator[Incompatibility]:
    """All faults. If a fault leaves no logits to examine, it is the last one."""
    untouched = images.clone()
    try:
        output = net(images)
    except REFUSALS as error:
        yield _refusal(net, untouched, error)
        return
    if not torch.equal(images, untouched):
        message = (
            "classifier must leave its images as they are, but it writes to them: use x - mean instead of x.sub_(mean)"
        )
        yield Incompatibility("input", True, message)
        return
    if not isinstance(output, Tensor):
        yield _no_tensor(output)
        return
    wrong = _no_logits(output, len(images))
    if wrong is not None:
        yield wrong
        return
    if training is not None and _changes(copy.deepcopy(training), images, output):
        yield Incompatibility(
            "training",
            True,
            "classifier must be in eval mode, got modules in training mode that change its logits: "
            "call classifier.eval()",
        )
    yield from _probabilities(net, images, output)
    if _changes(net, images, output):
        yield Incompatibility(
            "random",
            False,
            "classifier must give the same logits for the same images, got others at the second call: switch its "
            "random layers off, or give attacks the expectation over them",
        )
    else:
        yield from _one_by_one(net, images, output)
    yield from _blind(net, images)
    yield from _range(net, images, examples)


def _refusal(net: nn.Module, images: Tensor, error: BaseException) -> Incompatibility:
    for n in NUMBERS:
        try:
            output = net(images[:1].expand(n, -1, -1, -1).contiguous())
        except REFUSALS:
            continue
        if isinstance(output, Tensor) and len(output) == n:
            return _fixed(f"{n} and not {len(images)}")
    kind = str(images.dtype).removeprefix("torch.")
    return Incompatibility(
        "input",
        True,
        f"classifier must take {kind} images {tuple(images.shape)} in [0, 1], got {first_line(error)}: "
        "resize inside the classifier, name the shape it takes, or convert it with classifier.float()",
    )


def _fixed(taken: str) -> Incompatibility:
    return Incompatibility(
        "batch",
        True,
        f"classifier must take any number of images, but takes {taken}: x.flatten(1) may replace x.view(N, -1) or "
        "x.squeeze()",
    )


def _no_tensor(output: object) -> Incompatibility:
    remedy = "return the tensor of logits alone"
    if isinstance(getattr(output, "logits", None), Tensor):
        remedy = "wrap it, dipdefense.adapters.huggingface.Logits(classifier)"
    elif isinstance(output, tuple | list):
        remedy = "wrap it in a module that returns the element that holds the logits"
    elif isinstance(output, dict):
        remedy = f"wrap it in a module that returns one of its entries {', '.join(map(str, output))}"
    return Incompatibility(
        "output", True, f"classifier must return a tensor of logits, got {type(output).__name__}: {remedy}"
    )


def _no_logits(output: Tensor, n: int) -> Incompatibility | None:
    shape = tuple(output.shape)
    if output.dim() == 2 and len(output) != n:
        return _fixed(f"{n} images for logits of shape {shape}")
    if output.dim() != 2:
        remedy = "pool or flatten what is more than (B, K)" if output.dim() > 2 else "return one column for each class"
        return Incompatibility("output", True, f"classifier must return logits (B, K), got shape {shape}: {remedy}")
    if shape[1] < 2:
        remedy = "of two classes, return torch.cat([-logit, logit], 1)"
        return Incompatibility(
            "output", True, f"classifier must return at least 2 logits an image, got shape {shape}: {remedy}"
        )
    if not output.is_floating_point():
        remedy = "return the values before its argmax"
        return Incompatibility("output", True, f"classifier must return floating logits, got {output.dtype}: {remedy}")
    if not output.isfinite().all():
        remedy = "look for weights that are NaN, or a logarithm of 0"
        return Incompatibility(
            "output", True, f"classifier must return finite logits, got NaN or infinite values: {remedy}"
        )
    return None


def _changes(net: nn.Module, images: Tensor, expected: Tensor) -> bool:
    try:
        return not _alike(net(images), expected)
    except REFUSALS:
        return True


def _alike(output: object, expected: Tensor) -> bool:
    """Equal up to a hundredth of the logits' spread, since kernels round differently for other batch sizes."""
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    spread = (expected.amax() - expected.amin()).clamp_min(1e-6)
    return bool((output - expected).abs().amax() <= 1e-2 * spread)


def _probabilities(net: nn.Module, images: Tensor, output: Tensor) -> Iterator[Incompatibility]:
    sums = output.sum(1)
    if bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        yield Incompatibility(
            "softmax",
            True,
            "classifier must return logits, got probabilities (rows that sum to 1): take its softmax off, "
            "which flattens the gradients that attacks need",
        )
        return
    both = torch.cat([output, net(1 - images)])
    if bool(((both >= 0) & (both <= 1)).all() and both.amax() > 0.5):  # small ones come from random weights
        yield Incompatibility(
            "sigmoid",
            False,
            "classifier should return logits, but all values lie in [0, 1]: if it ends in a sigmoid, take that off",
        )


def _one_by_one(net: nn.Module, images: Tensor, output: Tensor) -> Iterator[Incompatibility]:
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
            yield Incompatibility(
                "batch",
                True,
                "classifier must judge each image on its own, but its logits depend on the other images of the batch: "
                "normalise with running statistics (track_running_stats=True), and do not pool over the batch",
            )
            return


def _blind(net: nn.Module, images: Tensor) -> Iterator[Incompatibility]:
    with torch.enable_grad():
        images = images.clone().requires_grad_()
        try:
            logits = net(images)
            gradient = torch.autograd.grad(logits.amax(1).sum(), images)[0] if logits.requires_grad else None
        except REFUSALS as error:
            got = first_line(error)
        else:
            if gradient is not None and bool(gradient.isfinite().all() and gradient.any()):
                return
            got = "none" if gradient is None else "NaN or infinity" if gradient.any() else "zeros"
    yield Incompatibility(
        "gradient",
        False,
        f"classifier should pass gradients from its logits to the images, got {got}: remove detach, no_grad, "
        "rounding or conversion to integers from it, since attacks that find no gradient make it look strong",
    )


def _range(net: nn.Module, images: Tensor, examples: tuple[Tensor, Tensor] | None) -> Iterator[Incompatibility]:
    try:
        if examples is not None:
            right = accuracies(net, examples[0].to(images), examples[1].to(images.device))
            best = max(right, key=lambda name: right[name])
            if (
                right[best] - right[PLAIN] > 2 * (0.5 / len(examples[1])) ** 0.5
            ):  # two standard deviations of a difference
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
    except REFUSALS:  # it refuses images outside [0, 1], so it expects those within
        return
    least = spread[PLAIN]
    if least < 0.03 and spread["images in [0, 255]"] > 5 * least:
        yield _misread(False, f"they all look alike to it (logits vary by {100 * least:.1f} %), and others do not")


def _misread(certain: bool, evidence: str) -> Incompatibility:
    verb = "must" if certain else "should"
    return Incompatibility(
        "range",
        certain,
        f"classifier {verb} expect images in [0, 1], but {evidence}: make its scaling or normalisation the first layer",
    )
