"""Checks that need no attack: repeated queries, the range of the outputs, AutoAttack's own flags."""

import torch
from torch import Tensor, nn

from attacks import autoattack_flags
from attacks.isolation import as_found
from attacks.margin import margin
from eval.diagnose.attack_trace import query, require_gradient
from eval.diagnose.finding import TOLERANCE, Finding, surely_above

__all__ = ["alone", "autoattack", "probabilities", "stable"]

ROUNDING = 1e-4  # of logits, relative to their norm; AutoAttack's bound for a deterministic model


def stable(model: nn.Module, images: Tensor, labels: Tensor, *, repeats: int = 4, seed: int = 0) -> Finding:
    """Fail if the logits of the same images differ between queries by more than rounding.

    There is no sampling noise: a deterministic model repeats its answer, and a random one must be attacked in
    expectation.

    Source: AutoAttack's check for randomised defences (Croce and Hein, 2020); Pintor et al. (2022), unstable
        predictions.
    """
    with as_found(model, images.device, seed), torch.no_grad():
        logits = torch.stack([model(images) for _ in range(repeats)])
    change = (logits - logits[0]).norm(dim=2) / logits[0].norm(dim=1).clamp_min(torch.finfo(logits.dtype).tiny)
    changed = (logits.argmax(2) != logits[0].argmax(1)).any(0)
    passed = bool(change.max() <= ROUNDING)
    return Finding(
        check="stable",
        passed=passed,
        figures={
            "largest relative change": float(change.max()),
            "predictions that change": int(changed.sum()),
            "queries": repeats,
            "n": len(images),
        },
        means="the same image gets the same answer" if passed else "the same image gets another answer every time",
        remedy="" if passed else "average the gradient over the draws (EOT), and count the majority of several queries",
    )


def alone(model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> Finding:
    """Fail if over 2 % of images get another prediction alone than in their batch.

    An attack that drops the images it has broken queries a smaller batch than the one that is scored. Rounding differs
    with the batch, and a fit amplifies it, so the logits of a defence change; this is only reported.

    Source: our own.
    """
    together = query(model, images, seed)
    singly = torch.cat([query(model, image[None], seed) for image in images])
    change = (margin(together, labels) - margin(singly, labels)).abs()
    changed = int((together.argmax(1) != singly.argmax(1)).sum())
    passed = not surely_above(changed, len(images), TOLERANCE)
    return Finding(
        check="alone",
        passed=passed,
        figures={
            "largest change of a margin": float(change.max()),
            "predictions that change": changed,
            "n": len(images),
        },
        means="an image gets the same prediction alone and in its batch"
        if passed
        else "the answer for an image depends on the other images of its batch",
        remedy="" if passed else "let no statistic cross images (model.eval()), and score attacks in one fixed batch",
    )


def probabilities(model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> Finding:
    """Fail if every row of outputs lies in [0, 1] and sums to one: a softmax, whose gradient saturates.

    Logarithms of probabilities are reported but pass, since they are shifted logits, and no attack's loss depends on
    the shift.

    Source: AutoAttack's check of the outputs' range (Croce and Hein, 2020); Carlini and Wagner (2017).
    """
    logits = query(model, images, seed)
    low, high, off = float(logits.min()), float(logits.max()), float((logits.sum(1) - 1).abs().max())
    softmax = low >= -1e-5 and high <= 1 + 1e-5 and off < 1e-5  # AutoAttack's bounds
    return Finding(
        check="probabilities",
        passed=not softmax,
        figures={
            "least": low,
            "largest": high,
            "rows sum to 1": off < 1e-5,
            "log-probabilities": bool(logits.logsumexp(1).abs().max() < 1e-4),
        },
        means="outputs are probabilities: a second softmax, in the loss, flattens the gradient"
        if softmax
        else "outputs are logits",
        remedy="return logits: take the softmax off the model" if softmax else "",
    )


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> Finding:
    """Fail if AutoAttack itself warns that it may not be reliable on this model.

    As in an attack, it gets only images that are classified correctly, since the gradient of its loss (DLR) is zero by
    definition if the true class comes third.

    Source: Croce and Hein (2020), and flags_doc.md of its code.
    """
    require_gradient(model, images[:1], labels[:1], seed=seed)  # AutoAttack's own backward pass may raise
    correct = query(model, images, seed).argmax(1) == labels
    flags = autoattack_flags(model, images[correct], labels[correct], seed=seed)
    return Finding(
        check="autoattack_flags",
        passed=not flags,
        figures={"flags": "; ".join(flags) or "none"},
        means="AutoAttack warns of this model" if flags else "AutoAttack has no objection",
        remedy="follow the flag: the version rand for a random model, an adaptive attack for one that optimises"
        if flags
        else "",
    )
