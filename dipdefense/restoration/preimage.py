"""What a classifier's layer sees: natural pre-images of features, and images that excite one channel most.

The same fit as any restoration, with a layer of the classifier as the operator A. Reconstructions are clipped to
[0, 1] before the classifier sees them, as the results are; only the architecture `pixels` can leave this range.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from dipdefense.fitting.checkpoint import CheckpointLike
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.fit import Progress, fit
from dipdefense.fitting.problem import check_shape
from dipdefense.image_tensors import check_images
from dipdefense.restoration.operators import feature_extractor
from dipdefense.restoration.presets import SMALL
from dipdefense.restoration.total_variation import weighted_total_variation

__all__ = ["invert_features", "maximise_activation"]

NEVER = 300.0  # dB: no roll-backs, since an activation can be negative, and a ratio of two says nothing


def invert_features(
    classifier: nn.Module,
    layer: str,
    target: Tensor,
    *,
    shape: tuple[int, int, int] | None = None,
    config: FitConfig | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callable[[Progress], None] | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Find natural images with given features: what a layer keeps of an image.

    Minimises |phi(x) - phi_0|^2 / |phi_0|^2, phi being the layer's output.

    Args:
        classifier: any torch module that takes images in [0, 1], on the device of `target`.
        layer: a name of `classifier.named_modules()`.
        target: images (B, C, H, W) in [0, 1], whose features are inverted; or, if `shape` is given, the features
            themselves, (B, ...).
        shape: (C, H, W) of the pre-images, if `target` holds features.
        config, seed, tv, callback, checkpoint: see `dipdefense.restoration.prior_fit`.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: no image batch, an unknown layer, features that are all 0 or not of the layer's shape, a
            negative `tv`; what `fit` and `feature_extractor` raise.

    Source: Mahendran and Vedaldi (2015), eq. (1) and (4); Ulyanov et al. (2018), section 3.5.
    """
    prior = weighted_total_variation(tv)
    with feature_extractor(classifier, layer) as extract, torch.inference_mode(False):
        if shape is None:
            check_images(target)
            shape = (int(target.shape[1]), int(target.shape[2]), int(target.shape[3]))
            with torch.no_grad():
                features = extract(target.clone())
        else:
            features = target
            with torch.no_grad():
                like = extract(torch.zeros(1, *shape, dtype=target.dtype, device=target.device))
            if target.shape[1:] != like.shape[1:]:
                wanted = f"(B, {', '.join(map(str, like.shape[1:]))})"
                raise ValueError(
                    f"target must have the shape of the layer's features, {wanted}, got {tuple(target.shape)}"
                )
        size = features.flatten(1).square().mean(1)
        if not (size > 0).all():
            raise ValueError("target must have features other than 0 in every image: take an earlier layer")

        def loss(output: Tensor, observed: Tensor, index: Tensor) -> Tensor:
            return (output - observed).square().flatten(1).mean(1) / size[index]

        result = fit(
            _as_images(features),
            config or SMALL["invert_features"],
            seed=seed,
            degrade=lambda images, index: _as_images(extract(images.clamp(0, 1))),
            loss=loss,
            prior=prior,
            shape=shape,
            callback=callback,
            checkpoint=checkpoint,
        )
    return result.reconstruction.clamp(0, 1)


def maximise_activation(
    classifier: nn.Module,
    layer: str,
    channel: int,
    *,
    shape: tuple[int, int, int],
    config: FitConfig | None = None,
    seed: int | None = 0,
    tv: float = 0.0,
    callback: Callable[[Progress], None] | None = None,
    checkpoint: CheckpointLike | None = None,
) -> Tensor:
    """Find a natural image that excites a channel of a layer most, on average over positions.

    Args:
        classifier: any torch module that takes images in [0, 1]; its first parameter gives dtype and device.
        layer: a name of `classifier.named_modules()`.
        channel: position along the second dimension of its output; for the last layer, a class.
        shape: (C, H, W) of the image.
        config, seed, tv, callback, checkpoint: see `dipdefense.restoration.prior_fit`. Stopping rules that look
            at the residual do not apply here.

    Returns:
        (1, C, H, W) in [0, 1].

    Raises:
        TypeError, ValueError: an unknown layer, a channel that it does not have, a shape that is not three positive
            integers, a negative `tv`; what `fit` and `feature_extractor` raise.

    Source: Erhan et al. (2009); Ulyanov et al. (2018), section 3.5.
    """
    prior = weighted_total_variation(tv)
    check_shape(shape)
    like = next(classifier.parameters(), torch.zeros(1))
    nothing = torch.zeros(1, 1, 1, 1, dtype=like.dtype, device=like.device)
    with feature_extractor(classifier, layer) as extract, torch.inference_mode(False):
        with torch.no_grad():
            K = extract(nothing.expand(1, *shape).clone()).shape[1]
        if isinstance(channel, bool) or not isinstance(channel, int) or not 0 <= channel < K:
            raise ValueError(f"channel must be one of the {K} of layer {layer!r}, 0 to {K - 1}, got {channel!r}")

        def activation(images: Tensor, index: Tensor) -> Tensor:
            return extract(images.clamp(0, 1))[:, channel].reshape(len(images), -1).mean(1).view(-1, 1, 1, 1)

        result = fit(
            nothing,
            replace(config or SMALL["maximise_activation"], rollback_db=NEVER),
            seed=seed,
            degrade=activation,
            loss=lambda output, observed, index: -output.flatten(1).mean(1),
            prior=prior,
            shape=shape,
            callback=callback,
            checkpoint=checkpoint,
        )
    return result.reconstruction.clamp(0, 1)


def _as_images(features: Tensor) -> Tensor:
    """(B, ...) -> (B, K, H, W), the form in which a fit takes what it observes."""
    return features if features.dim() == 4 else features.flatten(1)[..., None, None]
