"""Minimum-norm attacks: the exact distance of a linear classifier's boundary, torchattacks, nothing left behind."""

import sys

import pytest
import torch
import torchattacks
from closed_form_classifiers import FIT, Counting, Linear, Refusing, batch, conv_net, length, linear
from torch import Tensor, nn

from attacks import MINIMUM_NORM, bim, carlini_wagner, deepfool, lbfgs
from dipdefense import defend
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

every = pytest.mark.parametrize("name", MINIMUM_NORM)
QUICK = {"deepfool": {"steps": 5}, "carlini_wagner": {"steps": 20}, "lbfgs": {"steps": 10, "search_steps": 6}}


def wrong(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier.eval()(images).argmax(1) != labels


def least_l2(classifier: Linear, images: Tensor) -> Tensor:
    """The smallest L2 perturbation that changes class 0 of each image: min_k margin_k / |w_0 - w_k|."""
    with torch.no_grad():
        logits = classifier.eval()(images)
        lengths = torch.linalg.vector_norm(classifier.w[:1] - classifier.w[1:], dim=(1, 2, 3))
        return ((logits[:, :1] - logits[:, 1:]) / lengths).amin(1).double()


CLOSED_FORM = [  # what an attack may need in excess, and the classes of the classifier
    ("deepfool", {}, 0.041, 2),  # it lengthens twice by 2 %
    ("deepfool", {}, 0.041, 4),
    ("carlini_wagner", {"lr": 0.01, "search_steps": 9}, 0.01, 2),
    ("carlini_wagner", {}, 0.15, 4),  # in few steps
    ("lbfgs", {}, 0.01, 2),  # of four classes it reaches the runner-up, which need not be the nearest
]


@pytest.mark.parametrize(("name", "settings", "excess", "classes"), CLOSED_FORM)
def test_a_linear_classifier_falls_at_its_distance(name, settings, excess, classes):
    classifier, images, labels = linear(classes=classes)
    adversarial = MINIMUM_NORM[name](classifier, images, labels, **settings)
    ratio = length(adversarial - images, "l2") / least_l2(classifier, images)
    assert wrong(classifier, adversarial, labels).all()
    assert ratio.min() > 0.999
    assert ratio.max() < 1 + excess


def test_deepfool_is_torchattacks_lengthened_by_its_overshoot():
    net = conv_net().eval()
    images, labels = batch(net)
    images, labels = images * 0.5 + 0.25, net(images * 0.5 + 0.25).argmax(1)
    theirs = torchattacks.DeepFool(net, steps=20, overshoot=0.05)(images, labels)
    ours = deepfool(net, images, labels, overshoot=0.05)
    torch.testing.assert_close(ours, images + 1.05 * (theirs - images))


def test_deepfool_passes_the_boundary_that_clipping_keeps_torchattacks_on():
    """Most of the gradient points out of [0, 1], so that each step goes a part of its way."""
    net = conv_net().eval()
    images, labels = batch(net)
    assert wrong(net, deepfool(net, images, labels), labels).all()
    theirs = torchattacks.DeepFool(net, steps=20)(images, labels)
    assert not wrong(net, theirs, labels).all()


def test_carlini_wagner_needs_no_more_than_that_of_foolbox():
    foolbox = pytest.importorskip("foolbox")
    net = conv_net().eval()
    images, labels = batch(net)
    attack = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=100, stepsize=0.05)
    theirs = attack.run(foolbox.PyTorchModel(net, (0, 1)), images, labels)
    assert wrong(net, theirs, labels).all()
    ours = length(carlini_wagner(net, images, labels) - images, "l2")
    assert ours.mean() < 1.02 * length(theirs - images, "l2").mean()


def test_bim_is_the_best_iterate_of_torchattacks():
    net = conv_net().eval()
    images, labels = batch(net)
    eps = 8 / 255
    last = torchattacks.BIM(net, eps=eps, alpha=eps / 4, steps=4)(images, labels)  # the best one: the loss rises
    torch.testing.assert_close(bim(net, images, labels, eps=eps, steps=4), last, rtol=0, atol=1e-7)


@every
def test_all_are_broken_inside_the_range_and_what_is_wrong_already_stays(name):
    net = conv_net()
    images, labels = batch(net, size=6)
    labels[2] = (labels[2] + 1) % 10
    adversarial = MINIMUM_NORM[name](net, images, labels)
    assert wrong(net, adversarial, labels).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad
    changed = (adversarial != images).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, True, True, True]
    assert length(adversarial - images, "l2").max() < 0.8


@every
@pytest.mark.parametrize("label", [0, 2])
def test_a_search_that_fails_returns_the_image(name, label):
    """Equal gradients of all logits: no step changes the margin."""

    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not images.isnan().any()
            return images.sum((1, 2, 3))[:, None] + torch.eye(3, dtype=images.dtype)[label]

    images, labels = torch.rand(2, 1, 6, 6), torch.full((2,), label)
    adversarial = MINIMUM_NORM[name](Blind(), images, labels, **QUICK[name])
    assert torch.equal(adversarial, images)
    assert adversarial is not images


@every
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_everything_is_left_as_found(name, mode, capsys):
    net = conv_net()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[5].bias.grad = torch.full_like(net[5].bias, 2.0)
    images, labels = batch(conv_net())
    state, kept, buffers = torch.get_rng_state(), images.clone(), [b.clone() for b in net.buffers()]
    with mode():
        adversarial = MINIMUM_NORM[name](net, images.clone(), labels, **QUICK[name])
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert not torch.equal(adversarial, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert net.training
    assert all(torch.equal(b, c) for b, c in zip(net.buffers(), buffers, strict=True))
    assert [p.requires_grad for p in net.parameters()] == [False] + 5 * [True]
    assert (net[5].bias.grad == 2).all()
    assert all(p.grad is None for p in net.parameters() if p is not net[5].bias)
    assert capsys.readouterr() == ("", "")


@every
def test_an_image_is_attacked_alike_wherever_it_stands(name):
    net = conv_net().double()
    images, labels = batch(conv_net())
    images, order = images.double(), torch.tensor([2, 0, 3])
    whole = MINIMUM_NORM[name](net, images, labels, **QUICK[name])
    assert whole.dtype == torch.float64
    part = MINIMUM_NORM[name](net, images[order], labels[order], **QUICK[name])
    torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-4)  # rounding decides where a search ends


@every
def test_memory_layout_does_not_matter(name):
    net, images = conv_net().double(), batch(conv_net())[0].double()
    labels = batch(conv_net())[1]
    expected = MINIMUM_NORM[name](net, images, labels, **QUICK[name])
    ours = MINIMUM_NORM[name](net, images.to(memory_format=torch.channels_last), labels, **QUICK[name])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@every
def test_a_defended_classifier_is_attacked_through_its_straight_through_gradient(name):
    """It refuses values outside [0, 1]."""
    defended = defend(conv_net().eval(), FIT)
    images = batch(conv_net())[0][:2]
    with torch.no_grad():
        labels = defended.eval()(images).argmax(1)
    few = {
        "deepfool": {"steps": 2},
        "carlini_wagner": {"steps": 5, "search_steps": 2},
        "lbfgs": {"steps": 1, "search_steps": 2},
    }
    adversarial = MINIMUM_NORM[name](defended, images, labels, **few[name])
    unchanged = (adversarial == images).flatten(1).all(1)
    assert torch.equal(wrong(defended, adversarial, labels), ~unchanged)


@every
def test_nothing_to_do_asks_for_no_gradient(name):
    counting = Counting(conv_net())
    images, labels = batch(conv_net())
    attack = MINIMUM_NORM[name]
    assert attack(counting, images[:0], labels[:0]).shape == (0, 3, 8, 8)
    assert counting.asked == []
    assert torch.equal(attack(counting, images, (labels + 1) % 10), images)
    assert counting.asked == [4]


@every
def test_error_of_the_classifier_passes_and_state_is_restored(name):
    images, labels = batch(conv_net())
    classifier = Refusing(conv_net()).train()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="this defence has no gradient"):
        MINIMUM_NORM[name](classifier, images, labels)
    assert classifier.training
    assert torch.equal(torch.get_rng_state(), state)


REFUSED = [
    *(
        (name, {"images": torch.zeros(4, 3, 8, 8).byte()}, TypeError, "images must be floating")
        for name in MINIMUM_NORM
    ),
    *((name, {"labels": torch.zeros(4)}, TypeError, "labels must be int64") for name in MINIMUM_NORM),
    *((name, {"steps": 0}, ValueError, "^steps must be at least 1, got 0") for name in MINIMUM_NORM),
    ("deepfool", {"overshoot": -0.1}, ValueError, r"overshoot must be finite and at least 0, got -0\.1"),
    ("deepfool", {"classes": 1}, ValueError, "classes must be at least 2, got 1"),
    ("carlini_wagner", {"search_steps": 0}, ValueError, "search_steps must be at least 1, got 0"),
    ("carlini_wagner", {"lr": 0.0}, ValueError, r"lr must be finite and above 0, got 0\.0"),
    ("carlini_wagner", {"c": float("inf")}, ValueError, "c must be finite and above 0, got inf"),
    ("lbfgs", {"search_steps": 0}, ValueError, "search_steps must be at least 1, got 0"),
    ("lbfgs", {"c": -1.0}, ValueError, r"c must be finite and above 0, got -1\.0"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), REFUSED)
def test_bad_argument_is_refused(name, change, error, message):
    images, labels = batch(conv_net())
    with pytest.raises(error, match=message):
        MINIMUM_NORM[name](conv_net().eval(), **{"images": images, "labels": labels} | change)


@pytest.mark.parametrize(("attack", "module"), [(deepfool, "torchattacks"), (lbfgs, "scipy.optimize")])
def test_a_missing_library_names_the_extra(attack, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    with pytest.raises(ImportError, match=rf'this attack needs {package}: python -m pip install "dipdefense\[eval\]"'):
        attack(conv_net().eval(), *batch(conv_net()))


@pytest.mark.data
@every
def test_digits_of_mnist_fall_although_most_of_their_values_are_0(name, data):
    """LeNet's mean distance is about 1.4 to 1.6; values of exactly 0 and 1 have no slope in the space of tanh."""
    net = load_classifier("mnist_lenet", data / "weights" / "mnist_lenet5_clntrained.pt")
    digits = load_dataset("mnist", data / "mnist")
    images, labels = digits.batch(range(2)), digits.labels[:2]
    adversarial = MINIMUM_NORM[name](net, images, labels)
    assert wrong(net, adversarial, labels).all()
    assert 0.5 < length(adversarial - images, "l2").mean() < 2.5
