"""Methods of the comparison against the defended classifier and the filters themselves."""

import pytest
import torch

from dipdefense import CrossBoundary, DefendedClassifier, FitConfig, MeanSoftmax, Purifier, Trust
from dipdefense.decisions import contradiction
from dipdefense.stopping import STOPPING_RULES
from eval.baselines import BASELINES, jpeg
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.methods import FILTERS, FITS, METHODS, Defended, Filtered, OneFit, Setting, build_methods

QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=30)
VIEWS = ("identity", "shift_left_1")


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits_cnn")


@pytest.fixture(scope="module")
def images():
    return load_dataset("digits").batch(range(4))


@torch.no_grad()
def test_a_filter_with_and_without_views(classifier, images):
    method = Filtered("jpeg", classifier, (("identity",), VIEWS), jpeg, "quality", (75, 30))
    verdicts = method(images)
    assert list(verdicts) == [("jpeg", 75), ("jpeg+shift_left_1", 75), ("jpeg", 30), ("jpeg+shift_left_1", 30)]
    assert set(verdicts) == set(method.settings)
    filtered = jpeg(images, 30)
    plain = classifier(filtered)
    moved = classifier(torch.cat([filtered[..., 1:], filtered[..., -2:-1]], 3))
    torch.testing.assert_close(verdicts["jpeg", 30].logits, plain.log_softmax(1))
    mean = (plain.softmax(1) + moved.softmax(1)) / 2
    torch.testing.assert_close(verdicts["jpeg+shift_left_1", 30].logits.exp(), mean)
    torch.testing.assert_close(verdicts["jpeg", 30].scores, contradiction(classifier(images), plain[None]))


@torch.no_grad()
def test_one_fit_serves_what_each_decision_gives_alone(classifier, images):
    purifier = Purifier(QUICK, seed=2)
    decisions = {
        Setting("dip", 10): MeanSoftmax((10,)),
        Setting("mean", 30): MeanSoftmax((20, 30), restarts=2, views=VIEWS),
        Setting("trust", 0.3): Trust((10, 30), threshold=0.3),
    }
    calls = []
    shared = OneFit(classifier, purifier, decisions)
    original = Purifier.trajectory
    try:
        Purifier.trajectory = lambda self, *a, **k: calls.append(k) or original(self, *a, **k)
        verdicts = shared(images)
    finally:
        Purifier.trajectory = original
    assert calls == [{"restart": 0}, {"restart": 1}]
    for setting, decision in decisions.items():
        logits, scores = DefendedClassifier(classifier, purifier, decision=decision).classify_and_detect(images)
        torch.testing.assert_close(verdicts[setting].logits, logits, atol=1e-2, rtol=1e-2)  # float32 fits
        torch.testing.assert_close(verdicts[setting].scores, scores, atol=1e-2, rtol=1e-2)
    assert verdicts["dip", 10].seconds < verdicts["mean", 30].seconds


def test_every_name_is_built(classifier, images):
    names = [name for name in METHODS if name != "dipdefend" or "dipdefend" in STOPPING_RULES]
    methods = build_methods(names, classifier, Purifier(QUICK), iterations=(10, 20, 30), views=VIEWS)
    settings = [setting for method in methods for setting in method.settings]
    assert len(set(settings)) == len(settings)
    assert {setting.method for setting in settings} == set(names) | {
        f"{name}+shift_left_1" for name in names if name in FILTERS or name in FITS or name == "bare"
    }
    assert sum(isinstance(method, OneFit) for method in methods) == 1
    (cross,) = (method for method in methods if isinstance(method, Defended) and method.name == "cross_boundary")
    assert cross.defended.decision == CrossBoundary((20, 30))
    described = [repr(method.describe(s, images)) + s.method for method in methods for s in method.settings]
    assert len(set(described)) == len(described)


@pytest.mark.parametrize("name", FILTERS)
def test_every_strength_of_a_filter_is_taken(name, images):
    keyword, strengths = FILTERS[name]
    if name == "bm3d":
        pytest.importorskip("bm3d")
    changes = [(BASELINES[name](images[:1], **{keyword: s}) - images[:1]).square().sum().item() for s in strengths]
    assert changes == sorted(changes)  # from weak to strong


def test_bad_names_are_refused(classifier, monkeypatch):
    with pytest.raises(ValueError, match=r"methods must be among bare, jpeg, .*, got 'magic'"):
        build_methods(["magic"], classifier, Purifier(QUICK), iterations=(10,))
    with pytest.raises(ValueError, match="views must be one or more of identity"):
        build_methods(["bare"], classifier, Purifier(QUICK), iterations=(10,), views=("upside",))
    monkeypatch.delitem(STOPPING_RULES, "dipdefend", raising=False)
    with pytest.raises(ValueError, match="methods must leave out dipdefend"):
        build_methods(["dipdefend"], classifier, Purifier(QUICK), iterations=(10,))
