"""Learn the detection score of a fit of one's own, from clean and from adversarial images."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.defence.classifier import DefendedClassifier
from dipdefense.defence.decisions import MeanSoftmax
from dipdefense.defence.detector import Detector
from dipdefense.defence.wrapper import shallow_copy
from dipdefense.image_tensors import check_images

__all__ = ["learn_detector"]

C = 100.0  # inverse strength of the penalty on the coefficients of standardised features: next to none


def learn_detector(
    defended: DefendedClassifier,
    clean: Tensor,
    adversarial: Sequence[Tensor],
    *,
    iteration: int | None = None,
    quiet: float | None = None,
    batch_size: int = 64,
) -> Detector:
    """The logistic regression of a `Detector` on the features of clean and of adversarial images.

    The clean images weigh as much as all adversarial ones together. A score that has learnt on strong attacks alone
    lets weak ones pass, so mix them (docs/defence.md has what the default learnt on).

    Args:
        defended: gives the fit, the views and the iterations; a score that its decision has already does not matter.
        clean: (n, C, H, W) in [0, 1], some hundred images, used for no figure that is reported.
        adversarial: one tensor for each attack, images of the same shape.
        iteration: t, whose reconstruction is looked at; None for the last one that is classified.
        quiet: as in `Detector`: None for small images, 0.05 for photographs.
        batch_size: images fitted together.

    Returns:
        A detector for `MeanSoftmax(..., detector=...)` and `DetectorGated(..., detector=...)`.

    Raises:
        TypeError: the decision of the defence classifies no named iterations.
        ValueError: no adversarial images, or of another shape than the clean ones; what `defended` raises.
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError("learn_detector needs scikit-learn: pip install 'dipdefense[sklearn]'") from error
    check_integer("batch_size", batch_size, 1)
    for name, images in [("clean", clean), *((f"adversarial[{i}]", part) for i, part in enumerate(adversarial))]:
        check_images(images, name)
        shape, of_clean = tuple(images.shape[1:]), tuple(clean.shape[1:])
        if shape != of_clean:
            raise ValueError(f"{name} must hold images of the shape of the clean ones, {of_clean}, got {shape}")
    if not adversarial:
        raise ValueError("adversarial must hold the images of one attack or more, got none")
    purifier, decision = defended.plan(clean)
    if not isinstance(decision, MeanSoftmax):
        raise TypeError(
            "decision of the defence must classify named iterations, such as MeanSoftmax(iterations=(35, 40, 45)), "
            f"got {type(decision).__name__}"
        )
    last = decision.iterations_of(purifier.config_for(clean).iterations)[-1]
    looks = Detector(last if iteration is None else iteration, bias=0, doubt=0, left=0, drawn=0, quiet=quiet)
    scored = shallow_copy(defended)
    scored.decision = replace(decision, detector=looks)
    features = [_features(scored, looks, images, batch_size) for images in (clean, *adversarial)]
    X, y = torch.cat(features).numpy(), [0] * len(clean) + [1] * sum(map(len, adversarial))
    scaler = StandardScaler().fit(X)
    fitted = LogisticRegression(C=C, class_weight="balanced", max_iter=5000).fit(scaler.transform(X), y)
    doubt, left, drawn = (fitted.coef_[0] / scaler.scale_).tolist()
    bias = float(fitted.intercept_[0] - (doubt, left, drawn) @ scaler.mean_)
    return replace(looks, bias=bias, doubt=doubt, left=left, drawn=drawn)


@torch.no_grad()
def _features(defended: DefendedClassifier, detector: Detector, images: Tensor, batch_size: int) -> Tensor:
    """Features of images (n, C, H, W), (n, 3) in float64 on the CPU."""
    rows = [torch.stack(detector.features(defended.evidence(part)[0]), 1) for part in torch.split(images, batch_size)]
    return torch.cat(rows).double().cpu()
