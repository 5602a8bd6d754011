"""Attacks by queries: a linear classifier's exact radius, the queries counted, no gradient ever asked for."""

import inspect
import sys

import pytest
import torch
from closed_form_classifiers import FIT, Counting, Noisy, Refusing, batch, conv_net, length, linear, radius, seeded
from torch import nn

from attacks import GRADIENT_FREE, autoattack, nes, rays, square
from attacks.margin import margin
from attacks.nes import estimate_gradient
from dipdefense import defend

VARIANTS = [(name, norm) for name in GRADIENT_FREE for norm in ("linf", "l2") if (name, norm) != ("rays", "l2")]
every = pytest.mark.parametrize("name", GRADIENT_FREE)
every_variant = pytest.mark.parametrize(("name", "norm"), VARIANTS)
EPS = {"linf": 0.1, "l2": 1.0}


@every
def test_a_linear_classifier_falls_just_beyond_its_radius_and_never_below(name):
    """Two classes: with more, the largest other logit may lead to a class that is further away."""
    classifier, images, labels = linear(classes=2, size=1)
    for factor, falls in ((1.05, True), (0.95, False)):
        eps = factor * radius(classifier, images)
        adversarial = GRADIENT_FREE[name](classifier, images, labels, eps=eps)
        assert (classifier(adversarial).argmax(1) != labels).item() == falls


@every
def test_the_classifier_is_asked_at_most_so_often(name):
    classifier, images, labels = linear(size=1)
    counting = Counting(classifier)
    GRADIENT_FREE[name](counting, images, labels, eps=0.5 * radius(classifier, images), queries=211)
    assert 150 <= sum(counting.asked) <= 211
    assert not counting.gradients


@every
def test_a_broken_image_is_asked_no_more(name):
    classifier, images, labels = linear(size=2)
    labels[0] = 1  # misclassified from the start
    counting = Counting(classifier)
    adversarial = GRADIENT_FREE[name](counting, images, labels, eps=0.5 * radius(classifier, images), queries=200)
    assert torch.equal(adversarial[0], images[0])
    assert sum(counting.asked) <= 1 + 200

    counting = Counting(classifier)
    broken = GRADIENT_FREE[name](counting, images[1:], labels[1:], eps=0.4, queries=2000)
    assert (classifier(broken).argmax(1) != labels[1:]).all()
    assert sum(counting.asked) < 400


@every_variant
def test_result_is_in_the_ball_and_in_range(name, norm):
    net = conv_net()
    images, labels = batch(net, size=8)
    adversarial = GRADIENT_FREE[name](net, images, labels, eps=EPS[norm], norm=norm, queries=300)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert (length(adversarial.double() - images.double(), norm) <= EPS[norm]).all()
    with torch.no_grad():
        broken = net.eval()(adversarial).argmax(1) != labels
    assert broken.float().mean() >= 0.5


@every_variant
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_everything_is_left_as_found_and_no_gradient_is_asked_for(name, norm, mode, capsys):
    net = conv_net()
    net[1].eval()
    net[5].bias.grad = torch.full_like(net[5].bias, 2.0)
    images, labels = batch(conv_net())
    state, kept, buffers = torch.get_rng_state(), images.clone(), [b.clone() for b in net.buffers()]
    with mode():
        adversarial = GRADIENT_FREE[name](Refusing(net), images.clone(), labels, eps=EPS[norm], norm=norm, queries=60)
    assert not adversarial.requires_grad
    assert not torch.equal(adversarial, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert all(torch.equal(b, c) for b, c in zip(net.buffers(), buffers, strict=True))
    assert (net[5].bias.grad == 2).all()
    assert all(p.requires_grad and (p.grad is None or p is net[5].bias) for p in net.parameters())
    assert capsys.readouterr() == ("", "")


@every
@pytest.mark.parametrize("wrap", [nn.Sequential, Noisy])
def test_all_that_is_drawn_is_a_function_of_the_seed(name, wrap):
    images, labels = batch(conv_net())

    def run(seed: int | None) -> torch.Tensor:
        counting = Counting(wrap(conv_net()))
        GRADIENT_FREE[name](counting, images, labels, eps=0.1, queries=60, seed=seed)
        return torch.cat(counting.logits)

    assert torch.equal(run(1), run(1))
    if name != "rays" or wrap is Noisy:  # rays draws nothing
        assert not torch.equal(run(1), run(2))
        assert not torch.equal(run(None), run(None))


@pytest.mark.parametrize("attack", [nes, rays])
def test_image_does_not_depend_on_its_neighbours(attack):
    net = conv_net().double()
    images, labels = batch(conv_net())
    images, order = images.double(), torch.tensor([2, 0, 3])
    whole = attack(net, images, labels, eps=0.02, queries=60)
    torch.testing.assert_close(attack(net, images[order], labels[order], eps=0.02, queries=60), whole[order])


@every_variant
def test_type_and_layout_follow_the_input(name, norm):
    images, labels = batch(conv_net())
    arguments = {"eps": EPS[norm], "norm": norm, "queries": 60}
    expected = GRADIENT_FREE[name](conv_net().double(), images.double(), labels, **arguments)
    assert expected.dtype == torch.float64
    net = conv_net().double().to(memory_format=torch.channels_last)
    images = images.double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(GRADIENT_FREE[name](net, images, labels, **arguments), expected)


@every
def test_a_defence_without_gradients_is_attacked(name):
    """Its backward pass raises, and so do values outside [0, 1]."""
    net = conv_net()
    defended = defend(net, FIT, gradient="none")
    images = batch(net)[0]
    with torch.no_grad():
        labels = defended.eval()(images).argmax(1)
    adversarial = GRADIENT_FREE[name](defended, images, labels, eps=0.9, queries=60)
    with torch.no_grad():
        assert (margin(defended(adversarial), labels) < margin(defended(images), labels)).any()


@every
def test_nothing_to_do_asks_nothing(name):
    counting = Counting(conv_net())
    images, labels = batch(conv_net())
    adversarial = GRADIENT_FREE[name](counting, images, labels, eps=0)
    assert torch.equal(adversarial, images)
    assert adversarial is not images
    assert GRADIENT_FREE[name](counting, images[:0], labels[:0], eps=0.1).shape == (0, 3, 8, 8)
    assert counting.asked == []


class Blind(nn.Module):
    """Equal logits: a tie that no attack can break."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 3)


@every_variant
def test_ties_are_the_class_that_argmax_names(name, norm):
    images = torch.full((2, 1, 6, 6), 0.5)
    for label, queries in ((0, 120), (1, 1)):
        counting = Counting(Blind())
        labels = torch.full((2,), label)
        adversarial = GRADIENT_FREE[name](counting, images, labels, eps=0.1, norm=norm, queries=120)
        assert sum(counting.asked) <= 2 * queries
        assert torch.equal(adversarial, images) or name == "rays"


def test_square_may_write_to_the_logits():
    """Its margin is computed in place: here the logits are the image."""
    images = torch.rand(3, 1, 6, 6, generator=seeded(0))
    net = nn.Flatten()
    labels = net(images).argmax(1)
    adversarial = square(net, images, labels, eps=0.3, queries=400)
    assert adversarial.isfinite().all()
    assert (net(adversarial).argmax(1) != labels).all()


def test_estimated_gradient_agrees_with_the_exact_one():
    generator = seeded(2)
    images = 0.3 + 0.4 * torch.rand(3, 1, 6, 6, generator=generator, dtype=torch.float64)
    w = torch.randn(1, 6, 6, generator=generator, dtype=torch.float64)

    def linear_score(x):
        return (x * w).flatten(1).sum(1)

    def quadratic(x):  # gradient 2 w x
        return (x * x * w).flatten(1).sum(1)

    for score, exact in ((linear_score, w.expand_as(images)), (quadratic, 2 * w * images)):
        estimate = estimate_gradient(score, images, samples=2000, sigma=1e-3, generator=seeded(3))
        cosine = torch.cosine_similarity(estimate.flatten(1), exact.flatten(1))
        assert cosine.min() > 0.95  # 36 directions and 1000 pairs: 1 / sqrt(1 + 35 / 1000) = 0.983 on average
        ratio = (estimate * exact).flatten(1).sum(1) / exact.square().flatten(1).sum(1)
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.2)


def test_the_batch_size_of_nes_changes_nothing():
    net = conv_net().double()
    images, labels = batch(conv_net())
    run = [nes(net, images.double(), labels, eps=0.02, queries=60, batch_size=size) for size in (7, 1000)]
    torch.testing.assert_close(*run)
    counting = Counting(net)
    nes(counting, images.double(), labels, eps=0.02, queries=60, batch_size=7)
    assert max(counting.asked) == 7


def test_margin():
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    assert margin(logits, torch.tensor([0, 1])).tolist() == [1.0, -2.0]


def test_rays_sees_classes_only():
    class OneHot(nn.Module):
        def forward(self, images):
            return torch.nn.functional.one_hot(net(images).argmax(1), 10).float()

    net = conv_net().eval()
    images, labels = batch(net)
    expected = rays(net, images, labels, eps=0.02, queries=300)
    assert torch.equal(rays(OneHot(), images, labels, eps=0.02, queries=300), expected)


def test_rays_gives_up_once_no_sign_helps():
    classifier, images, labels = linear(size=1)
    counting = Counting(classifier)
    eps = 0.5 * radius(classifier, images)
    withstood = rays(counting, images, labels, eps=eps, queries=100_000)
    assert sum(counting.asked) < 2500
    with torch.no_grad():  # the point at eps along the best direction is the worst for one of the classes
        lead = classifier.eval()(withstood)[0]
        exact = [
            lead_of[0] - lead_of[k]
            for k in range(1, 4)
            for lead_of in [classifier(images + eps * (classifier.w[k] - classifier.w[0]).sign())[0]]
        ]
    assert min(abs(lead[0] - lead[1:].max() - value) for value in exact) < 1e-4
    torch.testing.assert_close(length(withstood - images, "linf").item(), eps, rtol=1e-5, atol=0)


REFUSED = [
    ({"eps": -0.1}, r"eps must be finite and at least 0, got -0\.1"),
    ({"norm": "l1"}, r"norm must be one of \('linf', 'l2'\), got 'l1'"),
    ({"alpha": 0.0}, r"alpha must be finite and above 0, got 0\.0"),
    ({"queries": 0}, "queries must be at least .*, got 0"),
    ({"samples": 7}, "samples must be even and at least 2, got 7"),
    ({"samples": 0}, "samples must be even and at least 2, got 0"),
    ({"sigma": 0.0}, r"sigma must be finite and above 0, got 0\.0"),
    ({"decay": 1.0}, r"decay must be below 1, got 1\.0"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"tolerance": 0.0}, r"tolerance must be finite and above 0, got 0\.0"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (name, *case)
        for name in GRADIENT_FREE
        for case in REFUSED
        if case[0].keys() <= inspect.signature(GRADIENT_FREE[name]).parameters.keys()
    ],
)
def test_bad_argument_is_refused(name, change, message):
    images, labels = batch(conv_net())
    with pytest.raises(ValueError, match=message):
        GRADIENT_FREE[name](conv_net(), images, labels, **{"eps": 0.1} | change)


@pytest.mark.parametrize(
    ("attack", "queries", "message"),
    [
        (square, 3, "queries must be at least 4, got 3"),
        (nes, 51, r"queries must be at least samples \+ 2 = 52, got 51"),
    ],
)
def test_too_few_queries_are_refused(attack, queries, message):
    images, labels = batch(conv_net())
    with pytest.raises(ValueError, match=message):
        attack(conv_net(), images, labels, eps=0.1, queries=queries)
    attack(conv_net(), images, labels, eps=0.1, queries=queries + 1)


def test_rays_refuses_l2_and_names_who_supports_it():
    with pytest.raises(ValueError, match="norm must be 'linf' for rays, got 'l2': square and nes"):
        rays(conv_net(), *batch(conv_net()), eps=0.1, norm="l2")


@pytest.mark.parametrize("sides", [(4, 4), (12, 12), (14, 14), (18, 18), (24, 24)])
def test_square_refuses_sides_that_its_tiles_do_not_fit(sides):
    with pytest.raises(ValueError, match=f"images must have sides .* got {sides[0]}x{sides[1]}: use linf"):
        square(nn.Flatten(), torch.rand(1, 1, *sides), torch.zeros(1).long(), eps=0.1, norm="l2")


@pytest.mark.parametrize("side", [*range(5, 12), 13, 15, 16, 20, 28, 32])
def test_square_takes_the_other_sides_in_l2(side):
    images = torch.rand(2, 1, side, side, generator=seeded(side))
    labels = images.flatten(1).argmax(1)
    adversarial = square(nn.Flatten(), images, labels, eps=0.5, norm="l2", queries=20)
    assert (length(adversarial.double() - images.double(), "l2") <= 0.5).all()


@pytest.mark.parametrize("attack", [square, autoattack])
def test_missing_pyautoattack_names_the_extra(attack, monkeypatch):
    for module in ("pyautoattack", "pyautoattack.square", "pyautoattack.checks"):
        monkeypatch.setitem(sys.modules, module, None)
    images = torch.rand(1, 1, 5, 5, generator=seeded(0))
    with pytest.raises(
        ImportError, match=r'this attack needs pyautoattack: python -m pip install "dipdefense\[eval\]"'
    ):
        attack(nn.Flatten(), images, torch.zeros(1).long(), eps=0.1)
