"""The default defence on real images: what its documentation claims, with a baseline and an interval."""

import copy

import pytest
import torch

from attacks import pgd
from dipdefense import defend
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import wilson
from eval.roc import detection

pytestmark = [pytest.mark.data, pytest.mark.slow]
EPS = 8 / 255


@pytest.fixture(scope="module")
def case(data):
    """Forty-eight images that no choice was made on: the classifier, images, labels, and the same under PGD."""
    classifier = load_classifier("cifar_resnet20", data / "weights" / "cifar10_resnet20.pt")
    dataset = load_dataset("cifar10", data / "cifar10" / "test.npz").between(2000, None)
    images, labels = dataset.batch(range(48)), dataset.labels[:48]
    return classifier, images, labels, pgd(classifier, images, labels, eps=EPS)


@torch.no_grad()
def test_robust_accuracy_and_detection(case):
    classifier, images, labels, attacked = case
    defended = defend(classifier)
    clean, adversarial = defended.judge(images), defended.judge(attacked)

    def interval(logits):
        return wilson(int((logits.argmax(1) == labels).sum()), len(labels))

    assert interval(adversarial.logits)[0] > interval(classifier(attacked))[1] + 0.3
    assert interval(clean.logits)[1] > 0.9
    fooled = (classifier(images).argmax(1) == labels) & (classifier(attacked).argmax(1) != labels)
    found = detection(clean.scores.numpy(), adversarial.scores.numpy(), fooled.numpy())
    assert found.ci_low > 0.9


@torch.no_grad()
def test_a_score_alone_and_in_a_batch(case):
    """In float64: rounding differs with the batch, and 300 steps amplify that of float32 beyond any bound."""
    classifier, images, _, attacked = case
    defended = defend(copy.deepcopy(classifier).double())
    few = torch.cat([images[:3], attacked[:3]]).double()
    together = defended.judge(few)
    alone = [defended.judge(image[None]) for image in few]
    torch.testing.assert_close(torch.cat([one.scores for one in alone]), together.scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([one.logits for one in alone]), together.logits, rtol=1e-6, atol=1e-6)
