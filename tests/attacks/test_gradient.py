"""Attacks: closed forms on a linear classifier, torchattacks and ART as oracles, nothing left behind."""

import inspect
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchattacks
from closed_form_classifiers import Refusing, conv_net, length, seeded
from torch import Tensor, nn

from attacks import ATTACKS, MomentumPGD, fgsm, momentum_pgd, pgd, pgd_di, pgd_flip
from attacks.gradient import rate
from attacks.margin import margin
from attacks.views import flipped, itself, resized
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

EPS = 8 / 255
VARIANTS = [("fgsm", "linf")] + [(name, norm) for name in ATTACKS if name != "fgsm" for norm in ("linf", "l2")]
every_variant = pytest.mark.parametrize(("name", "norm"), VARIANTS)
iterative = pytest.mark.parametrize("attack", [pgd, momentum_pgd])
PLAIN = ["fgsm", "pgd", "momentum_pgd"]  # that show the classifier nothing but the image


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


@pytest.mark.parametrize("name", PLAIN)
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


def worst_for(net: nn.Module, iterates: list[Tensor], labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Of each image the iterate that the net gets wrong, or into the target, by the largest margin."""
    with torch.no_grad():
        margins = torch.stack([margin(net(x), labels) for x in iterates])
    best = margins.argmax(0) if targeted else margins.argmin(0)
    return torch.stack([iterates[i][row] for row, i in enumerate(best.tolist())])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_momentum_pgd_is_the_best_iterate_of_mifgsm(decay, targeted):
    net = conv_net().eval()
    images, labels = batch()
    iterates = [images]
    for steps in range(1, 9):
        reference = torchattacks.MIFGSM(net, eps=EPS, alpha=EPS / 4, steps=steps, decay=decay)
        if targeted:
            reference.set_mode_targeted_by_label(quiet=True)
        iterates.append(reference(images, labels))
    ours = momentum_pgd(net, images, labels, eps=EPS, steps=8, decay=decay, targeted=targeted)
    torch.testing.assert_close(ours, worst_for(net, iterates, labels, targeted=targeted), rtol=0, atol=1e-7)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "library"), [("linf", torchattacks.PGD), ("l2", torchattacks.PGDL2)])
def test_pgd_is_the_best_iterate_of_torchattacks(norm, library, targeted):
    net = conv_net().eval()
    images, labels = batch(low=0.2, high=0.8)
    eps, iterates = {"linf": EPS, "l2": 0.3}[norm], [images]
    for steps in range(1, 9):
        reference = library(net, eps=eps, alpha=eps / 4, steps=steps, random_start=False)
        if targeted:
            reference.set_mode_targeted_by_label(quiet=True)
        iterates.append(reference(images, labels))
    ours = pgd(net, images, labels, eps=eps, norm=norm, steps=8, random_start=False, targeted=targeted)
    torch.testing.assert_close(ours, worst_for(net, iterates, labels, targeted=targeted), rtol=0, atol=1e-6)


class Bumpy(nn.Module):
    """Two classes; the lead of class 1 is a wave over the mean of an image, so that long steps pass the crest."""

    def forward(self, images: Tensor) -> Tensor:
        lead = torch.sin(40 * images.flatten(1).mean(1))
        return torch.stack([torch.zeros_like(lead), lead], 1)


def wave_lead(images: Tensor) -> float:
    return Bumpy()(images)[0, 1].item()


def test_the_best_iterate_is_returned_and_not_the_last():
    images, labels = torch.full((1, 1, 4, 4), 0.52, dtype=torch.float64), torch.zeros(1).long()
    ours, theirs, wave = [], [wave_lead(images)], Bumpy()
    for steps in range(1, 8):
        ours.append(wave_lead(pgd(wave, images, labels, eps=0.2, alpha=0.06, steps=steps, random_start=False)))
        last = torchattacks.PGD(wave, eps=0.2, alpha=0.06, steps=steps, random_start=False)
        last.set_device("cpu")
        theirs.append(wave_lead(last(images, labels)))
    assert theirs[1:] != sorted(theirs[1:])  # the last iterate passes the crest
    assert ours == pytest.approx([max(theirs[: steps + 1]) for steps in range(1, 8)])


@pytest.mark.parametrize("views", [itself, flipped, resized])
def test_views_are_averaged_in_loss_gradient_and_success(views):
    net = conv_net().eval().double()
    images, labels = batch()
    images = images.double()
    rated = rate(net, labels, views=views, seed=5)(images, torch.arange(len(images)))
    point = images.clone().requires_grad_()
    shown = list(views(point, seeded(5)))
    losses = torch.stack([F.cross_entropy(net(view), labels, reduction="none") for view in shown]).mean(0)
    (gradient,) = torch.autograd.grad(losses.sum(), point)
    torch.testing.assert_close(rated.loss, losses.detach())
    torch.testing.assert_close(rated.gradient, gradient)
    torch.testing.assert_close(rated.success, -sum(margin(net(view), labels) for view in shown).detach() / len(shown))


def test_flipped_attack_is_blind_to_the_side():
    """The mirror image of an attacked image is the attacked mirror image."""
    net = conv_net().eval().double()
    images, labels = batch()
    images = images.double()
    there = pgd_flip(net, images.flip(3), labels, eps=EPS, random_start=False).flip(3)
    torch.testing.assert_close(pgd_flip(net, images, labels, eps=EPS, random_start=False), there)


def test_resized_views_are_the_image_and_smaller_ones_among_zeros():
    ones = torch.ones(2, 3, 40, 50)
    whole, *copies = resized(ones, seeded(0))
    assert whole is ones
    assert len({copy.sum().item() for copy in copies}) > 1
    for copy in copies:
        assert copy.shape == ones.shape
        rows, columns = (copy[0, 0].amax(side) > 0 for side in (1, 0))
        assert 36 <= rows.sum() <= 40
        assert 45 <= columns.sum() <= 50
        assert copy.sum() == 6 * rows.sum() * columns.sum()  # one rectangle, of ones


@pytest.mark.parametrize("attack", [pgd, pgd_flip, pgd_di])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_is_attacked_alike_wherever_it_stands(attack, norm):
    net = conv_net().eval().double()
    images, labels = batch()
    images, order = images.double(), torch.tensor([2, 0, 3])
    whole = attack(net, images, labels, eps=EPS, norm=norm)
    torch.testing.assert_close(attack(net, images[order], labels[order], eps=EPS, norm=norm), whole[order])


def test_random_starts_differ_between_images():
    images, labels = batch()
    start = pgd(conv_net().eval(), images, labels, eps=EPS, alpha=1e-9, steps=1) - images
    assert (start[0] - start[1]).abs().max() > EPS / 2


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.3)])
def test_momentum_pgd_is_the_best_iterate_of_art(norm, eps, decay):
    """ART divides by the L1 norm too; it clips before it projects, so in L2 the images stay off 0 and 1."""
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    net = conv_net().eval()
    images, labels = batch() if norm == "linf" else batch(low=0.4, high=0.6)
    estimator = PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (3, 8, 8), nb_classes=10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    p = np.inf if norm == "linf" else 2
    iterates = [images]
    for steps in range(1, 7):
        reference = evasion.MomentumIterativeMethod(
            estimator, norm=p, eps=eps, eps_step=eps / 4, decay=decay, max_iter=steps, verbose=False
        )
        iterates.append(torch.from_numpy(reference.generate(images.numpy(), labels.numpy())))
    ours = momentum_pgd(net, images, labels, eps=eps, norm=norm, steps=6, decay=decay)
    torch.testing.assert_close(ours, worst_for(net, iterates, labels), rtol=0, atol=1e-6)


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
    with pytest.raises(
        ImportError, match=r'this attack needs torchattacks: python -m pip install "dipdefense\[eval\]"'
    ):
        fgsm(conv_net().eval(), *batch(), eps=EPS)


@pytest.mark.data
@pytest.mark.parametrize(("weights", "low", "high"), [("clntrained", 0.0, 0.02), ("advtrained", 0.94, 1.0)])
def test_fgsm_on_mnist_reaches_the_accuracy_measured_elsewhere(data, weights, low, high):
    net = load_classifier("mnist_lenet", data / "weights" / f"mnist_lenet5_{weights}.pt")
    digits = load_dataset("mnist", data / "mnist")
    images, labels = digits.batch(range(1000)), digits.labels[:1000]
    with torch.no_grad():
        accuracy = (net(fgsm(net, images, labels, eps=0.3)).argmax(1) == labels).float().mean()
    assert low <= accuracy <= high
