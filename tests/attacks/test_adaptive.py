"""Attacks that know the defence: closed forms on linear classifiers, agreement with pyautoattack, the ball."""

import math
from dataclasses import replace
from itertools import repeat
from typing import ClassVar

import pytest
import torch
from closed_form_classifiers import linear
from pyautoattack.autopgd_base import APGDAttack
from torch import nn

from attacks import fgsm, square
from attacks.adaptive import (
    LADDER,
    LOSSES,
    STEP_RULES,
    SURROGATES,
    Blur,
    GradientAttack,
    Oblivious,
    Query,
    Rated,
    ShortFit,
    Smoothed,
    ascend,
    objective,
    random_start,
)
from attacks.adaptive.averaged_model import Averaged
from attacks.adaptive.ladder import confirmed
from attacks.adaptive.objectives import _fooled_first
from attacks.ball import steepest
from dipdefense import DefendedClassifier, Detector, DetectorGated, FitConfig, MeanSoftmax, Purifier, Unrolled, defend
from dipdefense.defence.evidence import Evidence
from dipdefense.defence.gradients import Fitted
from dipdefense.defence.pipeline import decide
from dipdefense.fitting.unroll import pull_back

TINY = FitConfig(architecture_options={"channels": [4, 8], "skip_channels": 2}, input_channels=4, iterations=6)
TRUST = DetectorGated((3, 6), detector=Detector(5, bias=0.1, doubt=0.6, left=1.2, drawn=-1.0), threshold=0.5)


def images(n: int = 3, side: int = 8) -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Linear(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, 3 * 8 * 8, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.to(x).T


class Bare(Purifier):
    """Reconstructs the images as they are: a defence whose robustness is its classifier's."""

    def __init__(self) -> None:
        super().__init__(TINY)

    def frames(self, images, iterations, **options):
        return images[None].expand(1 if iterations is None else len(iterations), *images.shape)


def climbed(weight: torch.Tensor):
    """A linear objective, whose largest value in a Linf ball is known."""

    def rate(x: torch.Tensor, index: torch.Tensor) -> Rated:
        value = (weight[index] * x).flatten(1).sum(1)
        return Rated(value, weight[index], value)

    return rate


@pytest.mark.parametrize("rule", STEP_RULES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_objective_is_climbed_to_its_maximum(rule, norm):
    x, w = images(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    best, success = ascend(climbed(w), x, eps=0.1, norm=norm, steps=20, rule=rule)
    length = {"linf": w.abs().flatten(1).sum(1), "l2": w.flatten(1).norm(dim=1)}[norm]
    torch.testing.assert_close(success, (w * x).flatten(1).sum(1) + 0.1 * length, rtol=1e-6, atol=0)
    distance = (best - x).flatten(1).norm(p=float("inf") if norm == "linf" else 2, dim=1)
    assert (distance <= 0.1).all()


def test_apgd_takes_the_steps_of_pyautoattack():
    net, x = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 4)), images(4).float()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
    labels = net(x).argmax(1)
    start = random_start(x, eps=0.1, norm="linf", seed=0)
    attack = APGDAttack(net, n_iter=30, eps=0.1, norm="Linf", loss="ce", device="cpu")
    attack.init_hyperparam(x)
    _, _, theirs, _ = attack.attack_single_run(x, labels, x_init=start)

    def rate(x: torch.Tensor, index: torch.Tensor) -> Rated:
        point = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(net(point), labels[index], reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), point)
        return Rated(loss.detach(), gradient, loss.detach())

    _, ours = ascend(rate, x, eps=0.1, steps=30, rule="apgd", start=start)
    assert (theirs > nn.functional.cross_entropy(net(start), labels, reduction="none")).all()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_images_that_are_won_are_left_alone():
    seen = []

    def rate(x: torch.Tensor, index: torch.Tensor) -> Rated:
        seen.append(index.tolist())
        return Rated(x.flatten(1).sum(1), torch.ones_like(x), torch.tensor([2.0, 0.5, 0.5]).double()[index])

    ascend(rate, images(), eps=0.1, steps=3, enough=1.0)
    assert seen == [[0, 1, 2], [1, 2], [1, 2], [1, 2]]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_of_each_loss_is_its_slope(loss):
    defended = DefendedClassifier(Linear(), Purifier(TINY), decision=TRUST)
    x, labels = images(), torch.tensor([0, 1, 2])
    rate = objective(defended, labels, loss=loss, gradient="unrolled", seeds=repeat((0, 1)))
    index = torch.arange(3)
    rated = rate(x, index)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).sign()
    exact = (rated.gradient * direction).flatten(1).sum(1)
    off = []
    for step in (1e-7, 1e-8):
        up, down = (rate(x + sign * step * direction, index).loss for sign in (1, -1))
        off.append(((up - down) / (2 * step) - exact).abs() / exact.abs().clamp_min(1e-3))
    assert (torch.stack(off).min(0).values <= 1e-3).all()


def test_bypass_wants_the_bare_prediction_wrong_and_no_more_than_that():
    bare = torch.tensor([[9.0, 0.0, 1.0], [0.0, 1.5, 1.0], [0.0, 7.0, 1.0]])  # label 0 leads by 8, lags by 1.5 and by 7
    evidence = Evidence(bare, bare[None] / 2, torch.zeros(3, 1, 4, 4), {})
    answer = decide(MeanSoftmax((1,)), evidence)
    unseen = -torch.logit(answer.scores.clamp(1e-6, 1 - 1e-6))
    expected = torch.tensor([-8.0, 1.5, 2.0]) + unseen.clamp(max=4)
    torch.testing.assert_close(LOSSES["bypass"](evidence, answer, torch.tensor([0, 0, 0])), expected)
    every = torch.tensor([-6.0, 1.125, 2.0]) + unseen.clamp(max=4)  # the mean of the input and its one reconstruction
    torch.testing.assert_close(LOSSES["evade"](evidence, answer, torch.tensor([0, 0, 0])), every)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_success_counts_detection_by_the_threshold_of_the_decision(threshold):
    defended = DefendedClassifier(Linear(), Purifier(TINY), decision=replace(TRUST, threshold=threshold))
    x, labels, index = images(6), torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6)
    wins = {u: objective(defended, labels, seeds=repeat((0,)), unseen=u)(x, index).success for u in (False, True)}
    judged = defended.judge(x)
    wrong, hidden = judged.logits.argmax(1) != labels, judged.scores < threshold
    assert torch.equal(wins[False] > 0, wrong)
    assert torch.equal(wins[True] > 0, wrong & hidden)
    assert torch.equal(wins[True] > -1, wrong)


def test_a_seen_success_ranks_above_an_unseen_failure():
    fooled = torch.tensor([-0.01, -5.0, 3.0, 0.5, 2.0])
    hidden = torch.tensor([9.0, 9.0, -4.0, -0.1, 1.5])
    ranked = _fooled_first(fooled, hidden)
    assert ranked.argsort().tolist() == [1, 0, 2, 3, 4]
    assert (ranked > 0).tolist() == [False] * 4 + [True]


def test_a_decision_without_a_threshold_is_evaded_below_one_half():
    defended = DefendedClassifier(Linear(), Purifier(TINY), decision="mean_softmax")
    x, labels, index = images(6), torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6)
    success = objective(defended, labels, seeds=repeat((0,)), unseen=True)(x, index).success
    judged = defended.judge(x)
    assert torch.equal(success > 0, (judged.logits.argmax(1) != labels) & (judged.scores < 0.5))


def test_a_known_draw_alone_says_who_has_won():
    defended = DefendedClassifier(Linear(), Purifier(TINY), decision=TRUST)
    x, labels, index = images(), torch.tensor([0, 1, 2]), torch.arange(3)
    first = objective(defended, labels, seeds=repeat((0,)))(x, index)
    both = objective(defended, labels, seeds=repeat((0, 1)), known=True)(x, index)
    torch.testing.assert_close(both.success, first.success)
    assert not torch.allclose(both.gradient, first.gradient)


def test_surrogates_are_what_they_say():
    x, w = images(), torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fitted = Fitted(x, TINY, 0, torch.tensor([[3] * 3, [6] * 3]))
    torch.testing.assert_close(SURROGATES["straight_through"](fitted, w), w.sum(0))
    narrow = Blur(sigma=0.1)(fitted, w)  # so narrow a blur is the identity
    torch.testing.assert_close(narrow, w.sum(0), rtol=1e-6, atol=1e-9)
    flat = Blur(sigma=1.0)(fitted, torch.ones_like(w))
    torch.testing.assert_close(flat.sum(), torch.tensor(2.0 * x.numel(), dtype=torch.float64))  # it keeps the mean
    short = pull_back(x, {3: w.sum(0)}, replace(TINY, iterations=3), seed=0)
    torch.testing.assert_close(ShortFit(3)(fitted, w), short)
    plain = Smoothed(sharpness=None, adam_eps=1e-8, sigma=0.0, samples=1)(fitted, w)
    torch.testing.assert_close(plain, Unrolled()(fitted, w))
    assert not torch.allclose(Smoothed()(fitted, w), plain, rtol=0.1)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if rung.cost == "unrolled" and name != "truncated" else name
        for name, rung in LADDER.items()
        if rung.cost != "queries"
    ],
)
def test_every_rung_keeps_the_ball_and_leaves_all_as_found(name):
    net = Linear().train()
    defended = defend(net, TINY, decision=TRUST)
    x = images().float()
    labels = net(x).argmax(1)
    before, mode = torch.get_rng_state(), [module.training for module in defended.modules()]
    rung = LADDER[name]
    rung = replace(rung, steps=2, restarts=min(rung.restarts, 2)) if isinstance(rung, GradientAttack) else rung
    attacked = rung(defended, x, labels, eps=8 / 255, seed=1, source=Linear())
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in defended.modules()] == mode
    assert all(p.grad is None for p in net.parameters())
    assert ((attacked.double() - x.double()).abs() <= 8 / 255).all()
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert not torch.equal(attacked, x)
    again = rung(defended, x, labels, eps=8 / 255, seed=1, source=Linear())
    assert torch.equal(attacked, again)


def rungs(slow: tuple[str, ...] = ("autoattack", "square", "nes", "rays")) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in LADDER]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", rungs())
def test_where_purification_is_the_identity_every_rung_breaks_beyond_the_radius_and_never_below(name, norm):
    """The nearest image of another class lies at min_k margin_k / |w_0 - w_k|, in the dual norm.

    Whether the gradient through a real fit is right is asked in tests/fitting/test_unroll.py.
    """
    rung = LADDER[name]
    if norm not in rung.norms:
        with pytest.raises(ValueError, match=f"norm must be linf for this rung, got '{norm}'"):
            rung.check(torch.rand(1, 1, 6, 6), norm, draws=False)
        return
    # Between two classes the sign of the loss's gradient is the way to the other; AutoAttack needs four.
    classifier, x, labels = linear(classes=4 if rung.cost == "queries" else 2, dtype=torch.float64)
    w = classifier.eval().w.data
    w[..., 0] = 0
    w += w.flip(3)  # alike from both sides, so that attacks on the mirror image know the same radius
    never_alarmed = DetectorGated((3, 6), detector=Detector(6, bias=-30.0, doubt=0.0, left=1.0, drawn=-1.0))
    defended = DefendedClassifier(classifier, Bare(), decision=never_alarmed)
    logits, away = classifier(x).detach(), (w[:1] - w[1:]).flatten(1)
    radius = ((logits[:, :1] - logits[:, 1:]) / away.norm(p=1 if norm == "linf" else 2, dim=1)).amin(1)
    beyond = 4 if rung.cost == "queries" else 1.3  # random search is far from the nearest image
    for eps, stands in ((0.95 * radius.min().item(), True), (beyond * radius.max().item(), False)):
        attacked = rung(defended, x, labels, eps=eps, norm=norm, source=classifier)
        assert ((defended(attacked).argmax(1) == labels) == stands).all()


@pytest.mark.parametrize(
    ("seed", "gradient"),
    [(0, "straight_through"), *(pytest.param(seed, "blur", marks=pytest.mark.slow) for seed in (0, None))],
)
def test_bpda_breaks_a_linear_classifier_behind_a_fit_at_a_huge_eps(seed, gradient):
    defended = DefendedClassifier(Linear(), Purifier(replace(TINY, iterations=25), seed=seed))
    x = images()
    labels = Purifier(defended.purifier.config)(x).flatten(1).matmul(defended.classifier.weight.T).argmax(1)
    attacked = GradientAttack(gradient=gradient, steps=12, samples=2, enough=20.0)(defended, x, labels, eps=0.5, seed=0)
    draws = [seed] if seed is not None else [1, 2, 3, 4, 5]  # named here, so that the test does not depend on entropy
    wrong = [defended.variant(seed=s, gradient="none")(attacked).argmax(1) != labels for s in draws]
    assert (torch.stack(wrong).double().mean(0) > 0.5).all()
    bare = fgsm(defended.classifier, x, labels, eps=0.5)
    assert (defended.classifier(bare).argmax(1) != labels).all()  # the control: the bare one falls to one step


@pytest.mark.parametrize(
    ("seed", "asked"), [(0, 2), (None, 6)]
)  # the start and its confirmation; the start and each step
def test_a_lucky_draw_ends_no_climb(seed, asked):
    defended, queries = DefendedClassifier(Linear(), Purifier(TINY, seed=seed)), []
    defended.classifier.register_forward_hook(lambda *call: queries.append(1))
    GradientAttack(steps=5, enough=-1e9)(defended, images(), torch.tensor([0, 1, 2]), eps=0.1)
    assert len(queries) == 2 * asked  # the input and its reconstruction


class Watched(DefendedClassifier):
    """Notes the seeds that it is attacked under."""

    seen: ClassVar[list[int | None]] = []

    def variant(self, *, seed, gradient):
        self.seen.append(seed)
        return super().variant(seed=seed, gradient=gradient)


@pytest.mark.parametrize(("seed", "drawn", "different"), [(7, 14, 2), (None, 12, 12)])  # 2 of the 14 confirm
def test_restarts_of_a_defence_that_draws_meet_new_draws(seed, drawn, different):
    Watched.seen.clear()
    climb = GradientAttack(steps=2, samples=2, restarts=2, enough=1e9)
    climb(Watched(Linear(), Purifier(TINY, seed=seed)), images(), torch.tensor([0, 1, 2]), eps=0.1)
    assert (len(Watched.seen), len(set(Watched.seen))) == (drawn, different)  # restarts x points x samples


class Crowded(nn.Module):
    """A linear classifier that adds half a nat to class 0 where it is asked about the whole batch of four."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.linear(x.double())
        return logits + 0.5 * (len(x) == 4) * torch.eye(4, dtype=logits.dtype)[0]


@pytest.mark.parametrize("rung", [GradientAttack(steps=30, enough=0.0), Query(queries=300)])
def test_a_success_is_confirmed_in_the_batch_that_is_scored(rung):
    """Attacks stop at the first success; won among the images that still stand, it may be none in the whole batch."""
    x, labels = images(4), torch.zeros(4).long()
    defended = DefendedClassifier(Crowded(), Bare())
    lead = defended(x)[:, 0] - defended(x)[:, 1:].amax(1)
    x[0] = x[lead.argmax()]  # one that falls last, so that it is asked alone
    attacked = rung(defended, x, labels, eps=0.3, seed=0)
    assert (defended(attacked).argmax(1) != labels).all()


def test_what_falls_alone_is_attacked_anew():
    tries = []

    def attack(x: torch.Tensor, labels: torch.Tensor, *, seed: int) -> torch.Tensor:
        tries.append((len(x), seed))
        return x + seed

    class Smaller(nn.Module):
        """Class 1 for the image 0 always, for the image 1 in a smaller batch, and for what was attacked twice."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = x.flatten(1)[:, 0]
            return torch.stack([torch.full_like(value, 0.5), ((value == 0) | (value >= 2) | (len(x) < 3)).to(value)], 1)

    x = torch.tensor([0.0, 1.0, 1.0]).view(3, 1, 1, 1)
    made = confirmed(attack, Smaller(), x, torch.zeros(3).long(), seed=0)
    assert tries == [(3, 0), (2, 1)]
    assert made.flatten().tolist() == [0.0, 2.0, 2.0]


class Fickle(nn.Module):
    """One answer in so many favours class 1, the others class 0."""

    def __init__(self, every: int):
        super().__init__()
        self.every, self.asked = every, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        ahead = torch.tensor([0.0, 2.0] if self.asked % self.every == 0 else [2.0, 0.0])
        return ahead.expand(len(x), 2).to(x)


def test_an_averaged_model_is_the_mean_of_its_softmax():
    p = math.exp(2) / (1 + math.exp(2))
    averaged = Averaged(Fickle(4), 4)(torch.rand(3, 1, 2, 2))
    torch.testing.assert_close(
        averaged.exp(), torch.tensor([[0.75 * p + 0.25 * (1 - p), 0.25 * p + 0.75 * (1 - p)]] * 3)
    )
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Averaged(Fickle(4), 0)


def test_queries_of_a_defence_that_draws_are_spent_on_averages():
    x, labels = images()[:1].float(), torch.tensor([0])
    fickle = Fickle(8)  # an answer of the defence asks it twice
    defended = DefendedClassifier(fickle, Purifier(TINY, seed=None))
    Query(queries=24)(defended, x, labels, eps=0.1)
    assert 16 <= fickle.asked / 2 <= 24  # the input and its reconstruction: no lucky answer ended it, none came on top
    alone = Fickle(4)
    square(alone, x, labels, eps=0.1, queries=24)
    assert alone.asked < 8  # the control


class Blind(nn.Module):
    """Finite logits, whose gradient is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.detach()).flatten(1)[:, :4].abs().sqrt()


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(RuntimeError, match=r"gradient of images \[0, 1, 2\] must be finite, got NaN"):
        GradientAttack(steps=1)(DefendedClassifier(Blind(), Purifier(TINY)), images(), torch.tensor([0, 1, 2]), eps=0.1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["oblivious", "bpda", "bpda_apgd", "unrolled"])
def test_a_rung_works_in_any_gradient_mode(name, mode):
    defended, labels = defend(Linear(), TINY), torch.tensor([0, 1, 2])
    rung = replace(LADDER[name], steps=2)
    expected = rung(defended, images().float(), labels, eps=0.1)
    with mode():
        attacked = rung(defended, images().float(), labels.clone(), eps=0.1)
        rated = objective(defended, labels, seeds=repeat((0,)))(images(), torch.arange(3))
    assert torch.equal(attacked, expected)
    assert (rated.gradient != 0).any()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_way_up_in_l2_has_length_one_whatever_the_gradient(size):
    way = steepest(size * images().float(), "l2")
    torch.testing.assert_close(way.flatten(1).norm(dim=1), torch.ones(3))
    assert (steepest(torch.zeros(1, 1, 2, 2), "l2") == 0).all()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"gradient": "exact"}, "gradient must be one of straight_through, blur"),
        ({"loss": "mse"}, "loss must be one of cross_entropy, margin"),
        ({"rule": "adam"}, "rule must be one of pgd, momentum, apgd, got 'adam'"),
        ({"samples": 0}, "steps, samples and restarts must be at least 1, got 20, 0 and 1"),
        ({"restarts": 0}, "steps, samples and restarts must be at least 1, got 20, 1 and 0"),
    ],
)
def test_a_climb_that_leads_nowhere_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        GradientAttack(**numbers)


def test_bad_numbers_are_refused():
    with pytest.raises(
        ValueError, match="attack must be one of pgd, bim, momentum_pgd, pgd_flip, momentum_pgd_flip, pgd_di, got 'cw'"
    ):
        Oblivious(attack="cw")
    with pytest.raises(ValueError, match=r"attack must be one of .*square.*, got 'pgd'"):
        Query(attack="pgd")
    with pytest.raises(ValueError, match="averaged must be at least 1, got 0"):
        Query(averaged=0)
    with pytest.raises(ValueError, match=r"queries must be at least 16 for square, each the mean of 4 .*, got 11"):
        Query(queries=11)(defend(Linear(), TINY, seed=None), images(), torch.tensor([0, 1, 2]), eps=0.1)
    defended, x, labels = defend(Linear(), TINY), images(), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="rule must be one of pgd, momentum, apgd, got 'adam'"):
        ascend(climbed(images()), x, eps=0.1, rule="adam")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        ascend(climbed(images()), x, eps=0.1, steps=0)
    with pytest.raises(ValueError, match="loss must be one of cross_entropy, margin"):
        objective(defended, labels, loss="mse", seeds=repeat((0,)))
    with pytest.raises(ValueError, match="source must be another classifier where examples transfer"):
        LADDER["transfer"](defended, x, labels, eps=0.1)


def test_mean_softmax_has_restarts_in_every_look():
    defended = DefendedClassifier(Linear(), Purifier(TINY), decision=MeanSoftmax((3, 6), restarts=2))
    evidence, _, _ = defended.evidence(images())
    assert evidence.along.shape == (4, 3, 4)
