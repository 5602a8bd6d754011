"""AutoAttack: the package itself as oracle, a linear classifier's exact radius, its flags on defences that mask."""

import logging
import sys
import threading

import pytest
import torch
from closed_form_classifiers import FIT, Counting, Noisy, Refusing, batch, conv_net, length, linear, radius
from pyautoattack import AutoAttack, checks
from torch import nn

from attacks import autoattack, autoattack_flags
from dipdefense import defend

BREAKS = {"linf": 0.3, "l2": 3.0}  # at the first attack


@pytest.mark.parametrize(
    ("version", "norm"),
    [("standard", "linf"), ("rand", "linf"), ("rand", "l2"), pytest.param("standard", "l2", marks=pytest.mark.slow)],
)
def test_result_equals_the_package_and_is_in_the_ball(version, norm):
    """At this size some of the images withstand, so that all the attacks run."""
    classifier, images, labels = linear(classes=10, size=4)
    labels[0] = 1  # misclassified from the start
    eps = {"linf": 0.0995, "l2": 0.4035}[norm]  # the radii: 0.0979 to 0.1010, 0.3987 to 0.4081
    ours = autoattack(classifier, images, labels, eps=eps, norm=norm, version=version, seed=3)
    with torch.random.fork_rng():
        package = AutoAttack(classifier.eval(), norm=norm.capitalize(), eps=eps, version=version, seed=3)
        expected, classes = package.run_standard_evaluation(images.clone(), labels)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert 0 < (classes[1:] != labels[1:]).sum() < 3
    assert torch.equal(ours[0], images[0])
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert (length(ours.double() - images.double(), norm) <= eps).all()


def test_a_linear_classifier_falls_just_beyond_its_radius_and_never_below():
    """It has 4 classes: the package fails on fewer than 10 with its own number of targets."""
    classifier, images, labels = linear(size=1)
    for factor, falls in ((1.05, True), (0.95, False)):
        adversarial = autoattack(classifier, images, labels, eps=factor * radius(classifier, images))
        assert (classifier(adversarial).argmax(1) != labels).item() == falls
    assert torch.equal(adversarial, images)


@pytest.mark.parametrize(
    ("mode", "version"),
    [(torch.enable_grad, "rand"), (torch.no_grad, "rand"), (torch.inference_mode, "standard")],
)
def test_everything_is_left_as_found(mode, version, capsys, caplog):
    classifier, images, labels = linear(size=1)
    classifier.train()
    classifier.dropout.eval()
    classifier.w.grad = torch.full_like(classifier.w, 2.0)
    state, trace, counts = torch.get_rng_state(), sys.gettrace(), dict(checks.funcs)
    caplog.set_level(logging.DEBUG)
    with mode():
        adversarial = autoattack(classifier, images.clone(), labels.clone(), eps=0.01, version=version)
        autoattack_flags(classifier, images.clone(), labels.clone())
    assert torch.equal(adversarial, images)  # all the attacks ran
    assert not adversarial.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert (sys.gettrace(), threading.gettrace(), checks.funcs) == (trace, None, counts)
    assert [module.training for module in classifier.modules()] == [True, False]
    assert (classifier.w.grad == 2).all()
    assert classifier.w.requires_grad
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


def test_all_that_is_drawn_is_a_function_of_the_seed():
    classifier, images, labels = linear()

    def run(seed: int | None) -> torch.Tensor:
        counting = Counting(classifier)
        autoattack(counting, images, labels, eps=BREAKS["linf"], seed=seed)
        return torch.cat([logits.detach() for logits in counting.logits])

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(run(None), run(None))


def test_warnings_are_given_to_the_caller():
    images, labels = batch(conv_net(), size=2)
    heard: list[str] = []
    labels = (labels + 1) % 10  # nothing to attack: only the checks run
    autoattack(Noisy(conv_net()), images, labels, eps=0.1, warn=heard.append)
    assert len(heard) == 1
    assert "randomized defense" in heard[0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_type_and_layout_follow_the_input(norm):
    images, labels = batch(conv_net())
    arguments = {"eps": BREAKS[norm], "norm": norm}
    expected = autoattack(conv_net().double(), images.double(), labels, **arguments)
    assert expected.dtype == torch.float64
    net = conv_net().double().to(memory_format=torch.channels_last)
    images = images.double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(autoattack(net, images, labels, **arguments), expected)
    assert autoattack_flags(net, images, labels) == []


def test_nothing_to_do_asks_nothing():
    counting = Counting(conv_net())
    images, labels = batch(conv_net())
    adversarial = autoattack(counting, images, labels, eps=0)
    assert torch.equal(adversarial, images)
    assert adversarial is not images
    assert autoattack(counting, images[:0], labels[:0], eps=0.1).shape == (0, 3, 8, 8)
    assert autoattack_flags(counting, images[:0], labels[:0]) == []
    assert counting.asked == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1.0}, r"eps must be finite and at least 0, got -1\.0"),
        ({"norm": "l1"}, r"norm must be one of \('linf', 'l2'\), got 'l1'"),
        ({"version": "plus"}, "version must be one of standard, rand, got 'plus'"),
        ({"images": torch.zeros(4, 3, 4, 4), "norm": "l2"}, "images must have sides .* got 4x4"),
        ({"classifier": conv_net(3)}, "classifier must return at least 4 classes for version 'standard', got 3"),
        ({"classifier": conv_net(2), "version": "rand"}, "at least 3 classes for version 'rand', got 2: use pgd"),
    ],
)
def test_bad_argument_is_refused(change, message):
    images, labels = batch(conv_net())
    arguments = {"classifier": conv_net(), "images": images, "labels": labels % 2, "eps": 0.1} | change
    with pytest.raises(ValueError, match=message):
        autoattack(**arguments)


def test_flags_refuse_bad_images():
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        autoattack_flags(conv_net(), torch.full((1, 3, 8, 8), 2.0), torch.zeros(1).long())


class Detached(nn.Sequential):
    def forward(self, images):
        return super().forward(images).detach()


class Quantised(nn.Sequential):
    """Rounding has a gradient, which is zero."""

    def forward(self, images):
        return super().forward((images * 8).round() / 8)


class Optimising(nn.Sequential):
    """Takes a gradient step on its input, as purifiers do."""

    def forward(self, images):
        with torch.enable_grad():
            x = images.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(x.square().sum(), x)
        return super().forward(images - 0.01 * gradient)


class Threaded(Optimising):
    """The same in a thread of its own."""

    def forward(self, images):
        found = []
        thread = threading.Thread(target=lambda: found.append(Optimising.forward(self, images)))
        thread.start()
        thread.join()
        return found[0]


MASKING = {
    "plain": (nn.Sequential, []),
    "random": (Noisy, ["randomized defense"]),
    "softmax": (lambda net: nn.Sequential(net, nn.Softmax(1)), ["probability distribution"]),
    "detached": (Detached, ["4 points with zero gradient"]),
    "quantised": (Quantised, ["4 points with zero gradient"]),
    "optimising": (Optimising, ["dynamic defense"]),
    "threaded": (Threaded, ["dynamic defense"]),
    "plain again": (nn.Sequential, []),  # the package would remember the dynamic ones
}


@pytest.mark.parametrize("classes", [10, 2])
@pytest.mark.parametrize("name", MASKING)
def test_flags_name_what_masks(name, classes):
    defence, flags = MASKING[name]
    net = conv_net(classes)
    images, labels = batch(net)
    found = autoattack_flags(defence(net), images, labels)
    assert len(found) == len(flags)
    assert all(flag in warning for flag, warning in zip(flags, found, strict=True))


def test_a_purifier_is_a_dynamic_defence():
    net = conv_net()
    defended = defend(net, FIT)
    images = batch(net)[0]
    with torch.no_grad():
        labels = defended.eval()(images).argmax(1)
    found = autoattack_flags(defended, images, labels)
    assert len(found) == 1
    assert "dynamic defense" in found[0]


def test_the_error_of_a_backward_pass_passes():
    images, labels = batch(conv_net())
    with pytest.raises(RuntimeError, match="this defence has no gradient"):
        autoattack(Refusing(conv_net()), images, labels, eps=0.1)
