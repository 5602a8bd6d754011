"""The default defence on real images: what its documentation claims, with a baseline and an interval."""

import copy

import pytest
import torch

from attacks import ATTACKS, pgd, pgd_di
from attacks.adaptive import LADDER
from dipdefense import defend
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import wilson
from eval.robustness.detection import detection

pytestmark = [pytest.mark.data, pytest.mark.slow]
EPS = 8 / 255


N = 256
# 95 % intervals of the share that is classified correctly, of the first 256 images of the run in docs/defence.md.
CLAIMED = {"clean": (0.838, 0.917), "pgd": (0.616, 0.730), "momentum_pgd_flip": (0.482, 0.603)}
KNOWN = 27  # photographs of the run in docs/defence.md that are right when bare and clean
CLAIMED_ON_PHOTOGRAPHS = {"clean": (0.675, 0.941), "pgd_di": (0.275, 0.627)}  # interval of the share of these


def interval(right):
    return wilson(int(right.sum()), len(right))


@pytest.fixture(scope="module")
def case(data):
    """Images that no choice was made on: the classifier, images and labels."""
    classifier = load_classifier("cifar_resnet20", data / "weights" / "cifar10_resnet20.pt")
    dataset = load_dataset("cifar10", data / "cifar10" / "test.npz").between(1000, None)
    chosen = dataset.first(N, seed=3)
    return classifier, dataset.batch(chosen.tolist()), dataset.labels[chosen]


@pytest.fixture(scope="module")
def judged(case):
    """What the default defence says of these images, clean and attacked, and whether the bare classifier is right."""
    classifier, images, labels = case
    defended, found = defend(classifier), {}
    for name in CLAIMED:
        attacked = images if name == "clean" else ATTACKS[name](classifier, images, labels, eps=EPS)
        with torch.no_grad():
            found[name] = defended.judge(attacked), classifier(attacked).argmax(1) == labels
    return found


@pytest.mark.parametrize("name", CLAIMED)
def test_the_accuracy_lies_in_the_interval_that_is_claimed(case, judged, name):
    low, high = CLAIMED[name]
    assert low <= (judged[name][0].logits.argmax(1) == case[2]).double().mean() <= high


@pytest.mark.parametrize("name", [name for name in CLAIMED if name != "clean"])
def test_the_defence_is_surely_better_than_none(case, judged, name):
    prediction, bare_right = judged[name]
    assert interval(prediction.logits.argmax(1) == case[2])[0] > interval(bare_right)[1] + 0.2


def test_detection(judged):
    clean, attacked = judged["clean"], judged["pgd"]
    found = detection(clean[0].scores.numpy(), attacked[0].scores.numpy(), (clean[1] & ~attacked[1]).numpy())
    assert found.ci_low > 0.95


def test_bypass_defeats_the_gated_decision_unseen(case, judged):
    """The bare prediction is kept where nothing is suspicious, so an attack that hides needs to fool that alone."""
    classifier, images, labels = (part[:8] if isinstance(part, torch.Tensor) else part for part in case)
    defended = defend(classifier)
    threshold = defended.plan(images)[1].threshold
    assert (judged["pgd"][0].scores[:8] > threshold).float().mean() > 0.8  # the control: plain PGD is seen
    attacked = LADDER["bypass_apgd"](defended, images, labels, eps=EPS)
    with torch.no_grad():
        prediction = defended.judge(attacked)
    fooled = prediction.logits.argmax(1) != labels
    assert fooled.float().mean() > 0.8
    assert (prediction.scores[fooled] < threshold).float().mean() > 0.8


def test_the_default_on_photographs(data):
    classifier = load_classifier("torchvision:squeezenet1_0", data / "weights" / "imagenet_squeezenet1_0.pt")
    dataset = load_dataset("folder", data / "imagenet").between(50, None)
    images, labels = dataset.batch(range(len(dataset))), dataset.labels
    with torch.no_grad():
        known = classifier(images).argmax(1) == labels
    assert known.sum() == KNOWN
    images, labels = images[known], labels[known]
    attacked = pgd_di(classifier, images, labels, eps=4 / 255)
    with torch.no_grad():
        assert (classifier(attacked).argmax(1) == labels).float().mean() <= 0.1
        defended = defend(classifier)
        for name, shown in (("clean", images), ("pgd_di", attacked)):
            low, high = CLAIMED_ON_PHOTOGRAPHS[name]
            assert low <= (defended(shown).argmax(1) == labels).double().mean() <= high


@torch.no_grad()
def test_a_score_alone_and_in_a_batch(case):
    """In float64: rounding differs with the batch, and 45 steps amplify that of float32 beyond any bound."""
    classifier, images, labels = case
    attacked = pgd(classifier, images[:3], labels[:3], eps=EPS)
    defended = defend(copy.deepcopy(classifier).double())
    few = torch.cat([images[:3], attacked]).double()
    together = defended.judge(few)
    alone = [defended.judge(image[None]) for image in few]
    torch.testing.assert_close(torch.cat([one.scores for one in alone]), together.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([one.logits for one in alone]), together.logits, rtol=1e-6, atol=1e-6)
