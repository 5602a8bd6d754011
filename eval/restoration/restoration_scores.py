"""The scores of a restored image."""

import torch
from torch import Tensor

from dipdefense.restoration.operators import feature_extractor
from eval.metrics import psnr, ssim
from eval.records import Record
from eval.restoration.degraded_inputs import Scene

__all__ = ["FIGURES", "score_restored"]

FIGURES = ("psnr", "psnr_y", "ssim", "features", "activation")
Y = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # luma of ITU-R BT.601 in [16, 235] / 255, less its offset


def score_restored(restored: Tensor, scene: Scene) -> Record:
    """All `FIGURES` of an image (C, H, W) in [0, 1]; None if one does not apply.

    `psnr` in dB, over the unknown pixels alone for inpainting; `psnr_y`, for super-resolution, of the luma without a
    border of `factor` pixels; `ssim` over all pixels; `features`, the squared error of a pre-image's features relative
    to their energy; `activation`, the mean of the channel that is maximised.
    """
    score: Record = dict.fromkeys(FIGURES)
    ours = restored[None]
    if scene.reference is not None:
        reference = scene.reference[None]
        score |= {"psnr": psnr(ours, reference).item(), "ssim": ssim(ours, reference).item()}
    if scene.function == "inpaint" and scene.reference is not None:
        unknown = (scene.inputs[1] == 0).expand_as(restored)
        error = (restored - scene.reference)[unknown].square().mean()
        score["psnr"] = -10 * error.log10().item()
    if scene.function == "super_resolve" and scene.reference is not None:
        border = scene.options["factor"]
        luma = [_luma(image[None])[..., border:-border, border:-border] for image in (restored, scene.reference)]
        score["psnr_y"] = psnr(*luma).item()
    if scene.function == "invert_features":
        wanted, got = _features(scene, scene.inputs[0]), _features(scene, restored)
        score["features"] = ((got - wanted).square().sum() / wanted.square().sum()).item()
    if scene.function == "maximise_activation":
        score["activation"] = _features(scene, restored)[:, scene.options["channel"]].mean().item()
    return score


def _features(scene: Scene, image: Tensor) -> Tensor:
    assert scene.classifier is not None
    weight = next(scene.classifier.parameters())
    with feature_extractor(scene.classifier, scene.layer) as extract, torch.no_grad():
        return extract(image[None].to(weight))


def _luma(images: Tensor) -> Tensor:
    """Luma without its offset, (B, C, H, W) -> (B, 1, H, W); a grey image is returned as it is."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(Y).view(1, 3, 1, 1)).sum(1, keepdim=True)
