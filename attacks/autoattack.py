"""AutoAttack from the maintained package pyautoattack, with its official settings, and the warnings that it gives."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.ball import project
from attacks.gradient import validate
from attacks.isolation import as_found
from attacks.optional import library
from attacks.square import NORMS, Asked, check_tiles

__all__ = ["autoattack", "autoattack_flags", "VERSIONS"]

VERSIONS = {"standard": 4, "rand": 3}  # name -> classes that its loss (DLR) needs
TARGETS = 9  # official number of classes that the targeted attacks try


def autoattack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    version: str = "standard",
    seed: int | None = 0,
    warn: Callable[[str], None] | None = None,
) -> Tensor:
    """Several parameter-free attacks in a row, each on the images that withstood those before.

    "standard": APGD on the cross-entropy, targeted APGD on the DLR loss, targeted FAB (100 steps each, 9 targets),
    and Square with 5000 queries. "rand", for random classifiers: APGD on both losses, each gradient the mean of 20.
    Arguments, result and errors are those of `pgd`, without `alpha` and `steps`. Images that are misclassified
    already, and those that withstand, are returned as they are.

    Source: Croce and Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks".
    Differs: with fewer than 10 classes, all the others are targets, where pyautoattack fails. It draws
        jointly for all images that still stand, so the result of an image depends on its neighbours, and it computes in
        float32.

    Args:
        version: "standard" or "rand".
        warn: called with each warning of the package, which are not raised otherwise; see `autoattack_flags`.

    Raises:
        ValueError: also an unknown version; a classifier with fewer than 4 classes ("rand": 3); images whose sides
            pyautoattack's tiles do not fit ("standard" in l2).
    """
    validate(images, labels, eps=eps, norm=norm)
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    if version == "standard":
        check_tiles(images, norm)
    images = images.detach()
    if eps == 0 or len(images) == 0:
        return images.clone()
    with as_found(classifier, images.device, seed) as seed, _heard(warn), _untraced():
        asked = Asked(classifier, images.dtype)
        targets = min(TARGETS, _classes(asked, images, version) - 1)
        settings = {"norm": NORMS[norm], "eps": eps, "version": version, "seed": seed, "device": images.device}
        attack = library("pyautoattack").AutoAttack(asked, **settings)
        attack.fab.n_target_classes = attack.apgd_targeted.n_target_classes = targets
        start = images.float().contiguous().clone()  # tensors of the inference mode have no gradient
        adversarial: Tensor = attack.run_standard_evaluation(start, labels, batch_size=len(images))[0]
    return project(adversarial, images, eps, norm)


def autoattack_flags(classifier: nn.Module, images: Tensor, labels: Tensor, *, seed: int | None = 0) -> list[str]:
    """Warnings of AutoAttack's own checks on images, none if nothing is suspicious; no attack is run.

    They are: predictions that differ between five equal queries, logits that look like probabilities, zero gradients
    of the DLR loss (of the cross-entropy with two classes), and a forward pass that computes gradients. A classifier
    without any gradient counts as one whose gradients are zero.

    Args:
        classifier: images -> logits (B, K), on the device of the images.
        images: (B, C, H, W), floating, in [0, 1].
        labels: (B,) int64, the true classes.
        seed: of what the classifier draws from torch's global generator; `None` is fresh entropy.

    Returns:
        The sentences of pyautoattack.

    Raises:
        TypeError, ValueError: as `pgd`.
        RuntimeError: what the classifier raises in a backward pass.
    """
    validate(images, labels, eps=0, norm="linf")
    if len(images) == 0:
        return []
    found: list[str] = []
    listener = SimpleNamespace(warning=found.append)
    checks = library("pyautoattack.checks")
    with as_found(classifier, images.device, seed), _untraced():
        asked = Asked(classifier, images.dtype)
        x = images.detach().float().contiguous()
        checks.check_randomized(asked, x, labels, bs=len(x), logger=listener)
        checks.check_range_output(asked, x, logger=listener)
        checks.check_zero_gradients(_gradient(asked, x, labels), logger=listener)
        threading.settrace(checks.tracefunc)  # a defence may compute in threads of its own
        with torch.no_grad():
            checks.check_dynamic(asked, x, logger=listener)
    return found


def _classes(asked: Asked, images: Tensor, version: str) -> int:
    """Number of classes, from the logits of one image; raise if the losses of the version need more."""
    with torch.no_grad():
        classes: int = asked(images[:1].float()).shape[1]
    if classes < VERSIONS[version]:
        raise ValueError(
            f"classifier must return at least {VERSIONS[version]} classes for version {version!r}, got {classes}: "
            "use pgd and square"
        )
    return classes


def _gradient(asked: Asked, x: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the loss that AutoAttack checks, (B, C, H, W); zero where there is none."""
    x, labels = x.clone().requires_grad_(), labels.clone()  # tensors of the inference mode have no gradient
    logits = asked(x)
    if not logits.requires_grad:
        return torch.zeros_like(x)
    if logits.shape[1] < VERSIONS["rand"]:
        loss = F.cross_entropy(logits, labels, reduction="sum")
    else:
        attack = library("pyautoattack.autopgd_base").APGDAttack(asked, eps=0.0)
        loss = attack.dlr_loss(logits, labels).sum()
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True)
    return gradient.contiguous()


@contextlib.contextmanager
def _heard(warn: Callable[[str], None] | None) -> Iterator[None]:
    """Keep the package's log from the caller's handlers, and give its warnings to `warn`."""
    logger = logging.getLogger("auto-attack")

    def hear(record: logging.LogRecord) -> bool:
        if warn is not None and record.levelno >= logging.WARNING:
            warn(record.getMessage())
        return False

    logger.addFilter(hear)
    try:
        yield
    finally:
        logger.removeFilter(hear)


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Put back the trace functions that the package's check for gradients in a forward pass replaces.

    The check never resets its counts of calls, so they start from zero here.
    """
    checks = library("pyautoattack.checks")
    trace, thread_trace, counts = sys.gettrace(), threading.gettrace(), dict(checks.funcs)
    checks.funcs.update(dict.fromkeys(counts, 0))
    try:
        yield
    finally:
        checks.funcs.update(counts)
        sys.settrace(trace)
        threading.settrace(thread_trace)
