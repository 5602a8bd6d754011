"""Certificates: the bound against exact binomials, the radius of a linear classifier, what attacks find inside."""

import math

import numpy as np
import pytest
import torch
from closed_form_classifiers import FIT, Scaled, seeded
from scipy import stats
from torch import Tensor, nn

from attacks import pgd
from dipdefense import Certificate, Purifier, certify, smooth
from dipdefense.defence.certify import SamplingPlan, Tally, lower_bound
from dipdefense.defence.smoothing import DIP
from eval.classifiers import load_classifier
from eval.datasets import load_dataset


class Halves(nn.Module):
    """Two classes, on either side of the plane <w, x - 0.5> = 0."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, images: Tensor) -> Tensor:
        margin = (images - 0.5).flatten(1) @ self.w.flatten()
        return torch.stack([margin, -margin], 1)


def halves(distances: Tensor) -> tuple[Halves, Tensor]:
    """The classifier, and images at these distances from its plane; far from 0 and 1, so that no noise is clipped."""
    w = torch.randn(1, 6, 6, generator=seeded(0))
    return Halves(w), 0.5 + distances.view(-1, 1, 1, 1) * w / w.norm()


# --- statistics -------------------------------------------------------------------------------------------------


def test_the_bound_is_that_of_clopper_and_pearson():
    for successes, n, level in [(0, 7, 0.05), (3, 7, 0.05), (90, 100, 0.001), (1000, 1000, 0.001)]:
        exact = stats.binomtest(successes, n, alternative="greater").proportion_ci(1 - level, method="exact").low
        assert lower_bound(successes, n, level) == pytest.approx(exact)
    assert lower_bound(50, 50, 0.001) == pytest.approx(0.001 ** (1 / 50))  # closed form


@pytest.mark.parametrize("targets", [(), (0.25,), (0.1, 0.25)])
@pytest.mark.parametrize("n", [40, 300])
def test_certificates_are_wrong_no_more_often_than_alpha(targets, n):
    """The whole procedure with its looks, on binomial draws: 20,000 images for each of 15 shares."""
    plan = SamplingPlan(sigma=0.5 if n == 40 else 0.12, n=n, alpha=0.05, targets=targets)
    share = np.repeat([0.4, 0.49, 0.5, 0.51, 0.55, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 1], 20_000)
    radius, ended = _certified(plan, share)
    truth = plan.sigma * stats.norm.ppf(share.clip(0.5))
    wrong = (radius > truth).reshape(15, -1).mean(1)
    assert ended.all()
    assert wrong.max() <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 20_000)
    assert wrong[:-1].max() > 0.01  # it is no idle bound


def _certified(plan: SamplingPlan, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Certified radius of images whose draws give their class with these probabilities, and whether they ended."""
    random, successes, before = np.random.default_rng(0), np.zeros(len(share), int), 0
    radius, ended = np.zeros(len(share)), np.zeros(len(share), bool)
    for look in plan.looks:
        successes += random.binomial(look - before, share)
        counts = np.arange(look + 1)
        ends = plan.has_ended(counts, look)[successes] & ~ended
        radius[ends], before = plan.radius(counts, look)[successes[ends]], look
        ended |= ends
    return radius, ended


def test_images_end_where_all_is_decided():
    plain = SamplingPlan(sigma=0.12)
    assert plain.looks == (100, 300, 1000)
    assert plain.level == 0.001
    # 30 of 100: no radius is left to hope for; 100 of 100: the radius still grows
    assert plain.has_ended(np.array([30, 50, 100]), 100).tolist() == [True, False, False]
    assert plain.has_ended(1000, 1000)
    aimed = SamplingPlan(sigma=0.12, targets=(0.1,))
    assert aimed.level == pytest.approx(0.001 / 3)
    # 60 of 100: 0.1, which takes a share of 0.80, is out of reach; 100 of 100: it is certified
    assert aimed.has_ended(np.array([60, 80, 100]), 100).tolist() == [True, False, True]
    both = SamplingPlan(sigma=0.12, targets=(0.05, 0.2))
    assert both.has_ended(np.array([84, 100]), 100).tolist() == [
        True,
        False,
    ]  # 0.05 certified, 0.2 out of reach or open


def test_ending_early_costs_few_certificates():
    """At a share just above what the target needs, an image is given up at a look with a probability below 0.01."""
    plan = SamplingPlan(sigma=0.12, targets=(0.1,))
    needed = stats.norm.cdf(0.1 / 0.12)
    counts = np.arange(101)
    given_up = plan.has_ended(counts, 100) & (plan.radius(counts, 100) < 0.1)
    assert 0 < stats.binom.pmf(counts[given_up], 100, needed).sum() < 0.01


def test_draws_are_asked_in_blocks_that_stop_at_looks():
    plan, asked = SamplingPlan(sigma=0.1, n0=5, n=100, alpha=0.01), []
    tally = Tally(plan)
    while draws := tally.next_draws(40):
        asked.append((draws.start, draws.stop))
        tally.add({7: len(draws)})
    assert asked == [(0, 5), (5, 15), (15, 35), (35, 75), (75, 105)]
    assert (tally.prediction, tally.draws) == (7, 105)
    assert tally.radius == pytest.approx(0.1 * stats.norm.ppf(0.01 ** (1 / 100)))


def test_equal_counts_choose_the_smaller_class():
    tally = Tally(SamplingPlan(sigma=0.1, n0=4))
    tally.add({3: 2, 1: 2})
    assert tally.prediction == 1


# --- certificates ------------------------------------------------------------------------------------------------


def test_a_linear_classifier_has_its_radius():
    distances = torch.tensor([0.005, 0.03, 0.06, -0.09])
    net, images = halves(distances)
    certificate = certify(net, images, sigma=0.05, n=10_000, seed=0, purify=None, block=2500)
    assert isinstance(certificate, Certificate)
    assert certificate.prediction.tolist() == [0, 0, 0, 1]
    assert not certificate.abstained.any()
    assert (certificate.radius <= distances.abs()).all()
    assert (certificate.radius >= distances.abs() - 0.006).all()
    assert certificate.draws.tolist() == [10_032] * 4
    coarse = certify(net, images, sigma=0.05, n=100, seed=0, purify=None)
    assert (coarse.radius < certificate.radius).all()


def test_an_image_on_the_border_abstains():
    net, images = halves(torch.zeros(1))
    certificate = certify(net, images, sigma=0.05, n=200, seed=0, purify=None)
    assert certificate.abstained.tolist() == [True]
    assert certificate.radius.tolist() == [0]


@pytest.mark.parametrize("purify", [None, pytest.param(DIP, marks=pytest.mark.slow)], ids=["bare", "fit"])
def test_no_attack_within_the_radius_changes_the_class(purify):
    """L2 PGD through the smoothed classifier, by the majority of fresh noise; further out it does change the class."""
    net, images = load_classifier("digits_cnn"), load_dataset("digits").batch([0])
    certificate = certify(net, images, sigma=0.25, n0=8, n=24, alpha=0.05, seed=0, purify=purify)
    label, radius = certificate.prediction, certificate.radius.item()
    assert radius > 0.1
    smoothed = smooth(net, 0.25, votes=2, seed=1, purify=purify)
    for eps, keeps in ((radius, True), (8.0, False)):
        attacked = pgd(smoothed, images, label, eps=eps, norm="l2", steps=4)
        assert (attacked - images).norm() <= eps + 1e-5
        counts = smooth(net, 0.25, seed=2, purify=purify).count(attacked[0], range(30))
        assert (counts.get(label.item(), 0) > 15) == keeps


def test_a_certificate_depends_on_neither_batch_nor_order():
    net, images = halves(torch.tensor([0.01, 0.03, -0.02]))
    options = {"sigma": 0.05, "n0": 4, "n": 20, "seed": 4, "purify": Purifier(FIT), "block": 16}
    together = certify(net, images, **options)
    backwards = certify(net, images.flip(0), **options)
    alone = certify(net, images[1:2], **options)
    for name in Certificate._fields:
        assert torch.equal(getattr(together, name), getattr(backwards, name).flip(0))
        assert torch.equal(getattr(together, name)[1:2], getattr(alone, name))
    named = certify(net, images, index=[8, 9, 7], **options)
    again = certify(net, images[2:], index=[7], **options)
    assert torch.equal(named.radius[2:], again.radius)


def test_blocks_change_no_count_of_the_bare_classifier():
    net, images = halves(torch.tensor([0.02]))
    options = {"sigma": 0.05, "n": 200, "seed": 4, "purify": None}
    assert certify(net, images, block=7, **options).radius == certify(net, images, block=500, **options).radius


def test_progress_ends_at_the_whole():
    net, images = halves(torch.tensor([0.0, 0.05]))
    seen: list[tuple[int, int]] = []
    certify(net, images, sigma=0.05, n=50, seed=0, purify=None, progress=lambda *done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == (164, 164)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, "sigma must be positive and finite, got 0"),
        ({"n0": 0}, "n0 must be an integer of at least 1, got 0"),
        ({"targets": (2.0,)}, "targets must be below about 8 sigma"),
        ({"n": 9}, "n must be at least 10 to certify any radius at alpha 0.001, got 9"),
        ({"n": 50, "targets": (0.2,)}, "n must be at least 164 to certify the radius 0.2 at alpha 0.001, got 50"),
        ({"targets": (0.0,)}, "target must be positive and finite, got 0.0"),
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\), got 0.0"),
        ({"alpha": 1}, r"alpha must lie in \(0, 1\), got 1"),
        ({"block": 0}, "block must be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed must be None or an integer of at least 0, got -1"),
        ({"index": [1, 2]}, "index must name each of the 1 images, got 2 names"),
    ],
)
def test_wrong_numbers_are_refused(arguments, message):
    net, images = halves(torch.zeros(1))
    with pytest.raises(ValueError, match=message):
        certify(net, images, **{"purify": None, "n": 1000, **arguments})


def test_the_least_n_certifies_and_one_less_cannot():
    for alpha in (0.5, 0.05, 0.001):
        least = next(n for n in range(1, 99) if alpha ** (1 / n) > 0.5)
        plan = SamplingPlan(sigma=1, n=least, alpha=alpha)
        assert plan.radius(least, least) > 0
        if least > 1:
            with pytest.raises(ValueError, match=f"n must be at least {least} "):
                SamplingPlan(sigma=1, n=least - 1, alpha=alpha)


def test_wrong_images_and_classifiers_are_refused():
    net, images = halves(torch.zeros(1))
    with pytest.raises(ValueError, match=r"images must be within \[0, 1\]"):
        certify(net, images + 1)
    with pytest.raises(ValueError, match="classifier must return logits, got probabilities"):
        certify(Scaled(net, lambda logits: logits.softmax(1)), images)
    with pytest.raises(ValueError, match=r"classifier must take float32 images \(3, 1, 6, 7\)"):
        certify(net, torch.zeros(1, 1, 6, 7))
