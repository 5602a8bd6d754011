"""Learn the detection score of a fit of one's own, from clean and from adversarial images."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.defence.classifier import DefendedClassifier
from dipdefense.defence.decisions import MeanSoftmax
from dipdefense.defence.detector import Detector
from dipdefense.defence.wrapper import shallow_copy
from dipdefense.image_tensors import check_images

__all__ = ["learn_detector"]

INVERSE_PENALTY = 100.0  # on the coefficients of standardised features; at this value it hardly matters


def learn_detector(
    defended: DefendedClassifier,
    clean: Tensor,
    adversarial: Iterable[Tensor],
    *,
    iteration: int | None = None,
    quiet: float | None = None,
    batch_size: int = 64,
    callback: Callable[[int, int], None] | None = None,
) -> Detector:
    """The logistic regression of a `Detector` on the features of clean and of adversarial images.

    The clean images weigh as much as all adversarial ones together, so at a score of 0.5 an image is as likely to be of
    either kind, if half of all images are attacked. A detector that has learnt on strong attacks alone lets weak ones
    pass, so mix them; docs/defence.md names the attacks that the default has learnt on. Choose the threshold of
    `DetectorGated` on further images; the defaults have 0.4 and, for photographs, 0.2.

    Args:
        defended: gives the fit, the views and the iterations. The coefficients of a detector that it has do not matter.
        clean: (n, C, H, W) in [0, 1], some hundred images, used for no figure that is reported.
        adversarial: one tensor for each attack, images of the same shape.
        iteration: t, whose reconstruction is looked at; None for that of the detector of `defended`, or else the last
            one that is classified.
        quiet: as in `Detector`, 0.05 is that of the default for photographs; None for that of the detector of
            `defended`, or else the mean over all pixels.
        batch_size: images fitted together.
        callback: called after every batch with (images that are done, images in all).

    Returns:
        A detector for `MeanSoftmax(..., detector=...)` and `DetectorGated(..., detector=...)`.

    Raises:
        TypeError: `defended` is no defended classifier, or its decision is neither a `MeanSoftmax` nor a
            `DetectorGated`; `adversarial` is a tensor, or holds something else than tensors.
        ValueError: no adversarial images, or of another shape than the clean ones; an iteration that the fit does not
            have; what `defended` raises.
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("learn_detector needs scikit-learn: pip install 'dipdefense[sklearn]'") from error
    check_integer("batch_size", batch_size, 1)
    kinds = _kinds(clean, adversarial)
    unweighted, scored = _unweighted(defended, clean, iteration, quiet)
    total, rows = sum(map(len, kinds)), []
    for part in (part for images in kinds for part in torch.split(images, batch_size)):
        with torch.no_grad():
            rows.append(torch.stack(unweighted.features(scored.evidence(part)[0]), 1).cpu().double())
        if callback is not None:
            callback(sum(map(len, rows)), total)
    features, attacked = torch.cat(rows).numpy(), [0] * len(clean) + [1] * (total - len(clean))
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=5000)
    model.fit(scaler.transform(features), attacked)
    doubt, left, drawn = (model.coef_[0] / scaler.scale_).tolist()
    bias = float(model.intercept_[0] - (doubt, left, drawn) @ scaler.mean_)
    return replace(unweighted, bias=bias, doubt=doubt, left=left, drawn=drawn)


def _kinds(clean: Tensor, adversarial: Iterable[Tensor]) -> list[Tensor]:
    """The clean images, and those of each attack, all of one shape."""
    given: Any = adversarial
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(
            f"adversarial must be a list with a tensor (n, C, H, W) for each attack, got {type(given).__name__}"
        )
    kinds = [clean, *given]
    for name, images in zip(("clean", *(f"adversarial[{i}]" for i in range(len(kinds)))), kinds, strict=False):
        check_images(images, name)
        if images.shape[1:] != clean.shape[1:]:
            shapes = f"{tuple(clean.shape[1:])}, got {tuple(images.shape[1:])}"
            raise ValueError(f"{name} must hold images of the shape of the clean ones, {shapes}")
    if len(kinds) == 1:
        raise ValueError("adversarial must hold the images of one attack or more, got none")
    return kinds


def _unweighted(
    defended: DefendedClassifier, clean: Tensor, iteration: int | None, quiet: float | None
) -> tuple[Detector, DefendedClassifier]:
    """A detector without coefficients, and a copy of the defence that keeps what it looks at."""
    given: Any = defended
    if not isinstance(given, DefendedClassifier):
        raise TypeError(f"defended must be what dipdefense.defend returns, got {type(given).__name__}")
    purifier, decision = defended.plan(clean)
    if not isinstance(decision, MeanSoftmax):
        raise TypeError(
            "defended must have a decision MeanSoftmax or DetectorGated, such as "
            f"defend(..., decision=MeanSoftmax(iterations=(35, 40, 45))), got {type(decision).__name__}"
        )
    length, before = purifier.config_for(clean).iterations, decision.detector
    check_integer("iteration", iteration, 1, none=True)
    if iteration is None:
        iteration = before.iteration if before is not None else decision.iterations_of(length)[-1]
    if iteration > length:
        raise ValueError(f"iteration must be at most {length}, the length of the fit, got {iteration}")
    quiet = before.quiet if quiet is None and before is not None else quiet
    detector = Detector(iteration, bias=0, doubt=0, left=0, drawn=0, quiet=quiet)
    scored = shallow_copy(defended)
    scored.decision = replace(decision, detector=detector)
    return detector, scored
