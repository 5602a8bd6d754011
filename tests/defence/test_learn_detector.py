"""A detector learnt for one's own fit: what its regression must satisfy, that it detects, and what is refused."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from dipdefense import FitConfig, MeanSoftmax, defend, learn_detector

TINY = FitConfig(
    architecture_options={"channels": [4], "skip_channels": 0, "upsampling": "nearest"}, input_channels=4, iterations=12
)
DECISION = MeanSoftmax(iterations=(6, 12))


@pytest.fixture(scope="module")
def defended():
    torch.manual_seed(0)
    return defend(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), TINY, decision=DECISION)


def smooth_images(n: int, seed: int) -> torch.Tensor:
    """(n, 3, 8, 8): planes."""
    corners = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(corners, (8, 8), mode="bilinear", align_corners=True)


def with_signs(images: torch.Tensor, eps: float) -> torch.Tensor:
    signs = torch.rand(images.shape, generator=torch.Generator().manual_seed(9)).sub(0.5).sign()
    return (images + eps * signs).clamp(0, 1)


def scores(defended, detector, images):
    return defend(defended.classifier, TINY, decision=replace(DECISION, detector=detector)).detect(images).detach()


def test_it_is_the_regression_whose_mean_probabilities_are_those_of_the_kinds(defended):
    clean = smooth_images(40, 0)
    attacked = [with_signs(clean, 0.01)[:25], with_signs(clean, 0.02)[:15]]
    detector = learn_detector(defended, clean, attacked, batch_size=16)
    assert detector.iteration == 12
    assert detector.quiet is None
    missed = 1 - scores(defended, detector, torch.cat(attacked))
    alarms = scores(defended, detector, clean)
    # the derivative of the balanced likelihood by the bias, which has no penalty, is zero
    assert alarms.mean().item() == pytest.approx(missed.mean().item(), abs=0.01)


def test_it_detects_in_images_that_it_has_not_seen(defended):
    clean, others = smooth_images(40, 0), smooth_images(40, 1)
    detector = learn_detector(defended, clean, [with_signs(clean, 0.05)], iteration=6, quiet=1.0)
    assert (detector.iteration, detector.quiet) == (6, 1.0)
    found = torch.cat([scores(defended, detector, kind) for kind in (others, with_signs(others, 0.05))])
    assert roc_auc_score([0] * 40 + [1] * 40, found) > 0.95
    assert defended.decision == DECISION  # as it was


@pytest.mark.parametrize(
    ("clean", "adversarial", "options", "match"),
    [
        (2, [], {}, "adversarial must hold the images of one attack or more"),
        (2, [(1, 3, 8, 9)], {}, r"adversarial\[0\] must hold .* clean ones, \(3, 8, 8\), got \(3, 8, 9\)"),
        (0, [(1, 3, 8, 8)], {}, "clean"),
        (2, [(1, 3, 8, 8)], {"batch_size": 0}, "batch_size"),
        (2, [(1, 3, 8, 8)], {"iteration": 13}, "13"),
        (2, [(1, 3, 8, 8)], {"quiet": 2.0}, "quiet"),
    ],
)
def test_what_is_refused(defended, clean, adversarial, options, match):
    with pytest.raises(ValueError, match=match):
        learn_detector(defended, torch.rand(clean, 3, 8, 8), [torch.rand(shape) for shape in adversarial], **options)


def test_a_decision_without_iterations_is_refused(defended):
    last = defend(defended.classifier, TINY, decision="last")
    with pytest.raises(TypeError, match=r"must classify named iterations.*got LastReconstruction"):
        learn_detector(last, torch.rand(2, 3, 8, 8), [torch.rand(2, 3, 8, 8)])
