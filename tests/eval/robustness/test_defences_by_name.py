"""Methods of the comparison against the defended classifier and the filters themselves."""

import copy
import dataclasses
import time

import pytest
import torch
from skimage.restoration import estimate_sigma
from torch import nn

from dipdefense import (
    DefendedClassifier,
    Detector,
    DetectorGated,
    FitConfig,
    LastReconstruction,
    MeanSoftmax,
    Purifier,
)
from dipdefense.defence.evidence import disagreement
from eval.baselines import BASELINES, jpeg
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.robustness.cross_boundary import CrossBoundary
from eval.robustness.defences_by_name import FILTERS, METHODS, VIEWED, build_methods
from eval.robustness.scored_defences import Filtered, OneFit, Setting

QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=30)
VIEWS = ("identity", "mirror")
SUSPICION = Detector(iteration=30, bias=1.0, doubt=0.6, left=9.0, drawn=-9.0)


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits_cnn")


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits").batch(range(4))


@torch.no_grad()
def test_a_filter_with_and_without_views(classifier, images):
    method = Filtered("jpeg", classifier, jpeg, "quality", (75, 30), (("identity",), VIEWS))
    verdicts = method(images)
    assert list(verdicts) == [("jpeg", 75), ("jpeg+mirror", 75), ("jpeg", 30), ("jpeg+mirror", 30)]
    assert set(verdicts) == set(method.settings)
    filtered = jpeg(images, 30)
    plain = classifier(filtered)
    moved = classifier(filtered.flip(3))
    torch.testing.assert_close(verdicts["jpeg", 30].logits, plain.log_softmax(1))
    mean = (plain.softmax(1) + moved.softmax(1)) / 2
    torch.testing.assert_close(verdicts["jpeg+mirror", 30].logits.exp(), mean)
    torch.testing.assert_close(verdicts["jpeg", 30].scores, disagreement(classifier(images), plain[None]))


@torch.no_grad()
def test_one_fit_serves_what_each_decision_gives_alone(classifier, images, monkeypatch):
    # Both run to other ends, and in float32 a fit amplifies the rounding that may differ between them.
    classifier, images = copy.deepcopy(classifier).double(), images.double()
    purifier = Purifier(QUICK, seed=2)
    decisions = {
        Setting("dip", 10): MeanSoftmax((10,)),
        Setting("mean", 30): MeanSoftmax((20, 30), restarts=2, views=VIEWS),
        Setting("detector_gated", 0.3): DetectorGated((10,), threshold=0.3, detector=SUSPICION),
        Setting("cross", 30): CrossBoundary((10, 20, 30), bisections=2),
    }
    calls = []
    original = Purifier.frames

    def counted(self, *args, **more):
        calls.append(more["restart"])
        return original(self, *args, **more)

    monkeypatch.setattr(Purifier, "frames", counted)
    verdicts = OneFit(classifier, purifier, decisions)(images)
    assert calls == [0, 1]
    rival = decisions.pop(Setting("cross", 30))
    for setting, decision in decisions.items():
        logits, scores, _ = DefendedClassifier(classifier, purifier, decision=decision).judge(images)
        torch.testing.assert_close(verdicts[setting].logits, logits, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(verdicts[setting].scores, scores, atol=1e-6, rtol=1e-6)
    stitched = classifier(rival.stitch(classifier, images, purifier.trajectory(images, rival.iterations)))
    torch.testing.assert_close(verdicts["cross", 30].logits, stitched, atol=1e-6, rtol=1e-6)
    scores = disagreement(classifier(images), stitched[None])
    torch.testing.assert_close(verdicts["cross", 30].scores, scores, atol=1e-6, rtol=1e-6)
    assert verdicts["dip", 10].seconds < verdicts["mean", 30].seconds


class Slow(nn.Module):
    """A classifier that takes a twentieth of a second."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        time.sleep(0.05)
        return x.flatten(1)[:, :3]


@torch.no_grad()
def test_a_setting_has_the_seconds_that_it_alone_would_take(images):
    """Of the bare prediction and of each reconstruction, also of one that another setting classified before."""
    slow = Slow()
    config = dataclasses.replace(QUICK, iterations=3)
    decisions = {Setting("one", 2): MeanSoftmax((2,)), Setting("both", 3): MeanSoftmax((2, 3))}
    verdicts = OneFit(slow, Purifier(config), decisions)(images)
    assert slow.calls == 3  # the bare prediction, and two reconstructions
    assert verdicts["one", 2].seconds >= 0.1
    assert verdicts["both", 3].seconds >= 0.15


def test_every_name_is_built(classifier, images):
    methods = build_methods(
        METHODS, classifier, Purifier(QUICK), iterations=(10, 20, 30), views=VIEWS, default=MeanSoftmax((15, 30))
    )
    settings = [setting for method in methods for setting in method.settings]
    assert len(set(settings)) == len(settings)
    twice = {"bare", *FILTERS, *VIEWED}
    assert {setting.method for setting in settings} == set(METHODS) | {f"{name}+mirror" for name in twice}
    (shared,) = (method for method in methods if isinstance(method, OneFit))
    assert shared.decisions["cross_boundary", 30] == CrossBoundary((20, 30))
    assert shared.decisions["dip_mean", 30] == MeanSoftmax((10, 20, 30))
    assert shared.decisions["detector_gated", 0.7] == DetectorGated(views=VIEWS, threshold=0.7)
    described = [repr(method.describe(s, images)) + s.method for method in methods for s in method.settings]
    assert len(set(described)) == len(described)


def test_a_default_that_looks_at_the_end_alone_is_fitted_on_its_own(classifier):
    (method,) = build_methods(
        ["default"], classifier, Purifier(QUICK), iterations=(10, 30), default=LastReconstruction()
    )
    assert method.settings == [("default", 30)]
    with pytest.raises(ValueError, match="methods must leave out default"):
        build_methods(["default"], classifier, Purifier(QUICK), iterations=(10,))
    with pytest.raises(ValueError, match="decisions must name iterations, got Last"):
        OneFit(classifier, Purifier(QUICK), {Setting("last", 0): LastReconstruction()})


def test_the_given_trust_is_the_one_whose_threshold_varies(classifier):
    trust = DetectorGated((10,), detector=SUSPICION)
    (shared,) = build_methods(["detector_gated"], classifier, Purifier(QUICK), iterations=(10, 30), default=trust)
    assert shared.decisions["detector_gated", 0.3] == DetectorGated((10,), detector=SUSPICION, threshold=0.3)


@torch.no_grad()
def test_the_noise_level_is_that_of_scikit_image(classifier, images):
    noisy = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    (method,) = build_methods(["noise_level"], classifier, Purifier(QUICK), iterations=(10,))
    scores = method(noisy)["noise_level", 0].scores
    assert scores.tolist() == pytest.approx([estimate_sigma(image[0].numpy()) for image in noisy])
    assert (scores > method(images)["noise_level", 0].scores).all()


@pytest.mark.parametrize("name", FILTERS)
def test_every_strength_of_a_filter_is_taken(name, images):
    keyword, strengths = FILTERS[name]
    if name == "bm3d":
        pytest.importorskip("bm3d")
    changes = [(BASELINES[name](images[:1], **{keyword: s}) - images[:1]).square().sum().item() for s in strengths]
    assert changes == sorted(changes)  # from weak to strong


def test_bad_names_are_refused(classifier):
    with pytest.raises(ValueError, match=r"methods must be among bare, noise_level, jpeg, .*, got 'magic'"):
        build_methods(["magic"], classifier, Purifier(QUICK), iterations=(10,))
    with pytest.raises(ValueError, match="views must be one or more of identity"):
        build_methods(["bare"], classifier, Purifier(QUICK), iterations=(10,), views=("upside",))
