"""A detector learnt for one's own fit: what its regression must satisfy, that it detects, and what is refused."""

import sys
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from dipdefense import Detector, FitConfig, MeanSoftmax, defend, learn_detector

TINY = FitConfig(
    architecture_options={"channels": [4], "skip_channels": 0, "upsampling": "nearest"}, input_channels=4, iterations=12
)
DECISION = MeanSoftmax(iterations=(6, 12))


@pytest.fixture(scope="module")
def defended():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double().eval()  # float32 differs between processors
    return defend(classifier, TINY, decision=DECISION)


def smooth_images(n: int, seed: int) -> torch.Tensor:
    """(n, 3, 8, 8): planes."""
    corners = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.interpolate(corners, (8, 8), mode="bilinear", align_corners=True)


def with_signs(images: torch.Tensor, eps: float) -> torch.Tensor:
    signs = torch.rand(images.shape, generator=torch.Generator().manual_seed(9)).sub(0.5).sign()
    return (images + eps * signs).clamp(0, 1)


def scores(defended, detector, images):
    return defend(defended.classifier, TINY, decision=replace(DECISION, detector=detector)).detect(images).detach()


def test_it_is_the_regression_whose_mean_probabilities_are_those_of_the_kinds(defended):
    clean = smooth_images(40, 0)
    attacked = [with_signs(clean, 0.01)[:25], with_signs(clean, 0.02)[:15]]
    done = []
    detector = learn_detector(defended, clean, attacked, batch_size=16, callback=lambda *images: done.append(images))
    assert detector.iteration == 12
    assert detector.quiet is None
    assert done == [(16, 80), (32, 80), (40, 80), (56, 80), (65, 80), (80, 80)]
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


def test_what_the_detector_of_the_defence_looks_at_is_kept(defended):
    before = Detector(iteration=6, bias=5, doubt=5, left=5, drawn=5, quiet=0.5)
    with_detector = defend(defended.classifier, TINY, decision=replace(DECISION, detector=before))
    clean = smooth_images(8, 0)
    learnt = learn_detector(with_detector, clean, [with_signs(clean, 0.05)])
    assert (learnt.iteration, learnt.quiet) == (6, 0.5)
    other = learn_detector(defended, clean, [with_signs(clean, 0.05)], iteration=6, quiet=0.5)
    assert (learnt.bias, learnt.left) == pytest.approx((other.bias, other.left), rel=1e-6)
    assert (learnt.bias, learnt.left) != (5, 5)


def test_the_batches_do_not_matter(defended):
    clean = smooth_images(12, 0)
    one, other = (
        learn_detector(defended, clean, (with_signs(clean, eps) for eps in (0.01, 0.02)), batch_size=size)
        for size in (5, 64)
    )
    for name in ("bias", "doubt", "left", "drawn"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-3)


@pytest.mark.gpu
def test_images_on_a_gpu_give_a_detector(defended):
    clean = smooth_images(8, 0).cuda()
    detector = learn_detector(defended.to("cuda"), clean, [with_signs(clean.cpu(), 0.05).cuda()])
    defended.to("cpu")
    assert detector.left > 0


@pytest.mark.parametrize(
    ("clean", "adversarial", "options", "message"),
    [
        (2, [], {}, "adversarial must hold the images of one attack or more, got none"),
        (2, [(1, 3, 8, 9)], {}, r"adversarial\[0\] must hold .* clean ones, \(3, 8, 8\), got \(3, 8, 9\)"),
        (0, [(1, 3, 8, 8)], {}, r"clean must not be empty, got shape \(0, 3, 8, 8\)"),
        (2, [(1, 3, 8, 8)], {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (2, [(1, 3, 8, 8)], {"iteration": 13}, "iteration must be at most 12, the length of the fit, got 13"),
        (2, [(1, 3, 8, 8)], {"iteration": 0}, "iteration must be None or an integer of at least 1, got 0"),
        (2, [(1, 3, 8, 8)], {"quiet": 2.0}, r"quiet must be None or lie in \(0, 1\], got 2.0"),
    ],
)
def test_what_is_refused(defended, clean, adversarial, options, message):
    with pytest.raises(ValueError, match=message):
        learn_detector(defended, torch.rand(clean, 3, 8, 8), [torch.rand(shape) for shape in adversarial], **options)


def test_what_is_of_the_wrong_type(defended):
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(TypeError, match=r"adversarial must be a list with a tensor .* for each attack, got Tensor"):
        learn_detector(defended, images, images)
    with pytest.raises(TypeError, match=r"defended must be what dipdefense\.defend returns, got Sequential"):
        learn_detector(defended.classifier, images, [images])
    last = defend(defended.classifier, TINY, decision="last")
    with pytest.raises(TypeError, match=r"must have a decision MeanSoftmax or .*, got LastReconstruction"):
        learn_detector(last, images, [images])


def test_without_scikit_learn_the_remedy_is_named(defended, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install 'dipdefense\[sklearn\]'"):
        learn_detector(defended, torch.rand(2, 3, 8, 8), [torch.rand(2, 3, 8, 8)])
