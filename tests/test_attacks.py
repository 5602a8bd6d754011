"""Attacks: closed forms on a linear classifier, torchattacks and ART as oracles, nothing left behind."""

import inspect
import runpy
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from attacked import Refusing, conv_net, length, seeded
from torch import Tensor, nn

import attacks.gradient
from attacks import ATTACKS, MomentumPGD, fgsm, momentum_pgd, pgd
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

EPS = 8 / 255
VARIANTS = [("fgsm", "linf")] + [(name, norm) for name in ATTACKS if name != "fgsm" for norm in ("linf", "l2")]
every_variant = pytest.mark.parametrize(("name", "norm"), VARIANTS)
iterative = pytest.mark.parametrize("attack", [pgd, momentum_pgd])


def batch(size: int = 4, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = seeded(1)
    images = low + (high - low) * torch.rand(size, 3, 8, 8, generator=generator)
    return images, torch.randint(5, (size,), generator=generator)


class Linear(nn.Module):
    """Two classes with logits (0, <w, x>): the loss of class 0 grows along w. It has no parameters."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = w

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.w).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def linear(dtype: torch.dtype = torch.float64) -> tuple[Linear, Tensor, Tensor]:
    generator = seeded(3)
    w = torch.randn(3, 4, 4, generator=generator, dtype=dtype)
    return (
        Linear(w / w.norm()),
        torch.rand(5, 3, 4, 4, generator=generator, dtype=dtype),
        torch.zeros(5).long(),
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_linf_attack_on_a_linear_classifier_is_the_sign_of_its_weights(name):
    classifier, images, labels = linear()
    expected = (images + EPS * classifier.w.sign()).clamp(0, 1)
    torch.testing.assert_close(ATTACKS[name](classifier, images, labels, eps=EPS), expected)
    against = ATTACKS[name](classifier, images, 1 - labels, eps=EPS, targeted=True)
    torch.testing.assert_close(against, expected)


@iterative
def test_l2_attack_on_a_linear_classifier_is_its_unit_weights(attack):
    classifier, images, labels = linear()
    images = 0.25 + images / 2  # [0, 1] is out of reach of the ball
    adversarial = attack(classifier, images, labels, eps=0.1, norm="l2", alpha=0.05, random_start=False)
    torch.testing.assert_close(adversarial, images + 0.1 * classifier.w)


def test_l2_pgd_advances_where_the_gradient_is_nearly_zero():
    classifier, images, labels = linear(torch.float32)
    classifier.w *= 1e-15  # as behind a saturated softmax
    delta = pgd(classifier, images / 2 + 0.25, labels, eps=0.1, norm="l2", random_start=False) - images / 2 - 0.25
    torch.testing.assert_close(length(delta, "l2").float(), torch.full((5,), 0.1))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_momentum_pgd_equals_mifgsm_after_every_number_of_steps(steps, decay, targeted):
    net = conv_net().eval()
    images, labels = batch()
    reference = torchattacks.MIFGSM(net, eps=EPS, alpha=EPS / 4, steps=steps, decay=decay)
    if targeted:
        reference.set_mode_targeted_by_label(quiet=True)
    ours = momentum_pgd(net, images, labels, eps=EPS, steps=steps, decay=decay, targeted=targeted)
    torch.testing.assert_close(ours, reference(images, labels), rtol=0, atol=1e-7)


def test_momentum_pgd_with_a_random_start_equals_upgd_on_one_image():
    """On one image both draw the same numbers; on several, ours draws once and UPGD for each."""
    net = conv_net().eval()
    images, labels = batch(size=1)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(7)
        expected = torchattacks.UPGD(net, eps=EPS, alpha=0.01, steps=4, random_start=True)(images, labels)
    ours = momentum_pgd(net, images, labels, eps=EPS, alpha=0.01, steps=4, random_start=True, seed=7)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.3)])
def test_momentum_pgd_equals_art(norm, eps, decay):
    """ART divides by the L1 norm too; it clips before it projects, so in L2 the images stay off 0 and 1."""
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    net = conv_net().eval()
    images, labels = batch() if norm == "linf" else batch(low=0.4, high=0.6)
    estimator = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (3, 8, 8), nb_classes=10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    p = np.inf if norm == "linf" else 2
    reference = evasion.MomentumIterativeMethod(
        estimator, norm=p, eps=eps, eps_step=eps / 4, decay=decay, max_iter=6, verbose=False
    )
    expected = torch.from_numpy(reference.generate(images.numpy(), labels.numpy()))
    ours = momentum_pgd(net, images, labels, eps=eps, norm=norm, steps=6, decay=decay)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_class_serves_as_a_torchattacks_attack():
    net = conv_net().eval()
    images, labels = batch()
    attack = MomentumPGD(net, eps=EPS, alpha=EPS / 4, steps=20)
    assert torch.equal(attack(images, labels), momentum_pgd(net, images, labels, eps=EPS))
    attack.set_mode_targeted_least_likely(quiet=True)
    assert length(attack(images, labels) - images, "linf").max() > 0.9 * EPS


@every_variant
@pytest.mark.parametrize("eps", [EPS, 0.7])
def test_result_is_in_the_ball_and_in_range_and_raises_the_loss(name, norm, eps):
    net = conv_net().eval()
    images, labels = batch()
    images[0], images[1] = 0, 1  # every step of one sign leaves [0, 1]
    adversarial = ATTACKS[name](net, images, labels, eps=eps, norm=norm)
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert length(adversarial - images, norm).max() <= eps * (1 + 1e-5) + 1e-7
    with torch.no_grad():
        before, after = (F.cross_entropy(net(x), labels, reduction="none") for x in (images, adversarial))
    assert (after > before).all()


@every_variant
def test_targeted_moves_towards_the_target(name, norm):
    net = conv_net().eval()
    images, labels = batch()
    adversarial = ATTACKS[name](net, images, labels, eps=EPS, norm=norm, targeted=True)
    with torch.no_grad():
        before, after = (F.cross_entropy(net(x), labels, reduction="none") for x in (images, adversarial))
    assert (after < before).all()


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradient_does_not_fail(name, norm, dtype):
    images, labels = batch()
    images = images.to(dtype)
    random_start = {} if name == "fgsm" else {"random_start": False}
    blind = Linear(torch.zeros(3, 8, 8, dtype=dtype))
    adversarial = ATTACKS[name](blind, images, labels % 2, eps=EPS, norm=norm, **random_start)
    assert torch.equal(adversarial, images)


@every_variant
def test_zero_eps_returns_a_copy_of_the_images(name, norm):
    images, labels = batch()
    adversarial = ATTACKS[name](conv_net().eval(), images, labels, eps=0, norm=norm)
    assert torch.equal(adversarial, images)
    assert adversarial is not images


@every_variant
def test_dtype_follows_the_input_and_an_empty_batch_passes(name, norm):
    images, labels = batch()
    net = conv_net().eval().double()
    assert ATTACKS[name](net, images.double(), labels, eps=EPS, norm=norm).dtype == torch.float64
    assert ATTACKS[name](net, images[:0].double(), labels[:0], eps=EPS, norm=norm).shape == (0, 3, 8, 8)


@every_variant
def test_memory_layout_does_not_matter(name, norm):
    images, labels = batch()
    expected = ATTACKS[name](conv_net().eval().double(), images.double(), labels, eps=EPS, norm=norm)
    net = conv_net().eval().double().to(memory_format=torch.channels_last)
    images = images.double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(ATTACKS[name](net, images, labels, eps=EPS, norm=norm), expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_image_does_not_depend_on_its_neighbours(norm):
    net = conv_net().eval().double()
    images, labels = batch()
    images = images.double()
    order = torch.tensor([2, 0, 3])
    arguments = {"eps": EPS, "norm": norm, "random_start": True}
    whole = momentum_pgd(net, images, labels, **arguments)
    torch.testing.assert_close(momentum_pgd(net, images[order], labels[order], **arguments), whole[order])


@every_variant
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_everything_is_left_as_found(name, norm, mode, capsys):
    net = conv_net()
    net[1].eval()  # a frozen batch norm, which torchattacks alone would wake
    net[0].weight.requires_grad_(False)
    net[5].bias.grad = torch.full_like(net[5].bias, 2.0)
    images, labels = batch()
    state, kept, buffers = torch.get_rng_state(), images.clone(), [b.clone() for b in net.buffers()]
    with mode():
        adversarial = ATTACKS[name](net, images, labels, eps=EPS, norm=norm)
        assert torch.is_grad_enabled() == (mode is torch.enable_grad)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert not torch.equal(adversarial, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert net.training
    assert torch.equal(images, kept)
    assert not images.requires_grad
    assert all(torch.equal(b, c) for b, c in zip(net.buffers(), buffers, strict=True))
    assert [p.requires_grad for p in net.parameters()] == [False] + 5 * [True]
    assert (net[5].bias.grad == 2).all()
    assert all(p.grad is None for p in net.parameters() if p is not net[5].bias)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ATTACKS)
def test_classifier_without_parameters_is_attacked_in_silence(name, capsys):
    classifier, images, labels = linear()
    ATTACKS[name](classifier, images, labels, eps=EPS)
    assert capsys.readouterr().out == ""


@iterative
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_is_a_function_of_the_seed(attack, norm):
    net = conv_net().eval()
    images, labels = batch()

    def start(seed: int | None) -> Tensor:
        arguments = {"eps": EPS, "norm": norm, "alpha": 1e-9, "steps": 1, "random_start": True}
        return attack(net, images, labels, seed=seed, **arguments)

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    assert not torch.equal(start(None), start(None))
    assert length(start(1) - images, norm).max() <= EPS * (1 + 1e-5)


@pytest.mark.parametrize("name", ATTACKS)
def test_error_of_the_classifier_passes_and_state_is_restored(name):
    classifier, images, labels = linear()
    classifier = Refusing(classifier).train()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="this defence has no gradient"):
        ATTACKS[name](classifier, images, labels, eps=EPS)
    assert classifier.training
    assert torch.equal(torch.get_rng_state(), state)


REFUSED = [
    ({"eps": -0.1}, ValueError, r"eps must be finite and at least 0, got -0\.1"),
    ({"eps": float("nan")}, ValueError, "eps must be .* got nan"),
    ({"eps": float("inf")}, ValueError, "eps must be .* got inf"),
    ({"alpha": 0.0}, ValueError, r"alpha must be finite and above 0, got 0\.0"),
    ({"alpha": float("nan")}, ValueError, "alpha must be .* got nan"),
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"decay": -1.0}, ValueError, r"decay must be .* at least 0, got -1\.0"),
    ({"norm": "l1"}, ValueError, r"norm must be one of \('linf', 'l2'\), got 'l1'"),
    ({"images": torch.zeros(4, 3, 8, 8).byte()}, TypeError, r"images must be floating, got torch\.uint8"),
    ({"images": torch.full((4, 3, 8, 8), 1.5)}, ValueError, r"images must lie in \[0, 1\].*1\.5"),
    ({"images": torch.full((4, 3, 8, 8), torch.nan)}, ValueError, r"images must lie in \[0, 1\].*nan"),
    ({"labels": torch.zeros(4)}, TypeError, r"labels must be int64, got torch\.float32"),
    ({"labels": torch.zeros(4, 1).long()}, ValueError, r"labels must be \(4,\).* got shape \(4, 1\)"),
    ({"labels": torch.full((4,), -100)}, ValueError, "labels must be at least 0, got -100"),
]


def accepts(name: str, arguments: dict[str, object]) -> bool:
    return arguments.keys() <= inspect.signature(ATTACKS[name]).parameters.keys()


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [(name, *case) for name in ATTACKS for case in REFUSED if accepts(name, case[0])],
)
def test_bad_argument_is_refused(name, change, error, message):
    images, labels = batch()
    arguments = {"images": images, "labels": labels, "eps": EPS} | change
    with pytest.raises(error, match=message):
        ATTACKS[name](conv_net().eval(), **arguments)


def test_fgsm_refuses_l2_and_names_who_supports_it():
    with pytest.raises(ValueError, match=r"norm must be 'linf' for fgsm, got 'l2': pgd and momentum_pgd"):
        fgsm(conv_net().eval(), *batch(), eps=EPS, norm="l2")


def test_missing_torchattacks_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match=r'python -m pip install "dipdefense\[eval\]"'):
        runpy.run_path(attacks.gradient.__file__)


@pytest.mark.data
@pytest.mark.parametrize(("weights", "low", "high"), [("clntrained", 0.0, 0.02), ("advtrained", 0.94, 1.0)])
def test_fgsm_on_mnist_reaches_the_accuracy_measured_elsewhere(data, weights, low, high):
    net = load_classifier("mnist_lenet", data / "weights" / f"mnist_lenet5_{weights}.pt")
    digits = load_dataset("mnist", data / "mnist")
    images, labels = digits.batch(range(1000)), digits.labels[:1000]
    with torch.no_grad():
        accuracy = (net(fgsm(net, images, labels, eps=0.3)).argmax(1) == labels).float().mean()
    assert low <= accuracy <= high
