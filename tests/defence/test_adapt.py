"""Adaptation: a step and the statistics in closed form, what it leaves alone, resumption, refusals, what it gains."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from closed_form_classifiers import FIT, Scaled, batch, conv_net, seeded
from torch import Tensor, nn

from attacks import pgd
from dipdefense import Checkpoint, Defence, MeanSoftmax, Purifier, adapt, defend
from dipdefense.defence.adaptation import training_inputs
from dipdefense.defence.adaptation.agreement import measure_agreement
from dipdefense.defence.adaptation.progress_file import ProgressFile
from dipdefense.defence.adaptation.trained_layers import LAYERS, reestimate_batch_norm
from dipdefense.defence.adaptation.training import divergence, perturb
from dipdefense.defence.adaptation.training_inputs import NoisyCopies, reconstruct_copies
from dipdefense.defence.presets import NOISY_ITERATIONS
from dipdefense.defence.smoothing import gaussian_draws
from eval.datasets import load_dataset
from eval.digits_cnn import trained_digits_cnn

IMAGES, _ = batch(conv_net(), 6)
QUICK = {"purify": None, "epochs": 2, "batch": 4, "lr": 0.01}


def net() -> nn.Module:
    return conv_net().eval()


def linear() -> nn.Sequential:
    """Softmax regression without bias."""
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False)).eval()
    classifier[1].weight.data = 0.1 * torch.randn(10, 192, generator=seeded(0))
    return classifier


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def noisy_copies(images: Tensor, sigma: float, seed: int) -> Tensor:
    noise = torch.stack([gaussian_draws(image, seed, range(1))[0] for image in images])
    return (images + sigma * noise).clamp(0, 1)


# --- what it learns


@pytest.mark.parametrize("layers", ["last", "all"])
def test_the_first_step_is_that_of_the_closed_form(layers):
    classifier, lr = linear(), 1e-3
    adapted = adapt(classifier, IMAGES, sigma=0.3, layers=layers, epochs=1, lr=lr, purify=None, mirror=False, seed=4)
    inputs = torch.cat([IMAGES, noisy_copies(IMAGES, 0.3, 4)]).flatten(1)
    weight = classifier[1].weight.detach()
    targets = (IMAGES.flatten(1) @ weight.T).softmax(1).repeat(2, 1)
    gradient = ((inputs @ weight.T).softmax(1) - targets).T @ inputs / len(inputs)
    step = (adapted[1].weight - weight).detach()
    torch.testing.assert_close(step, -lr * gradient / (gradient.abs() + 1e-8), rtol=1e-2, atol=1e-6)  # Adam's first


def test_the_loss_is_the_divergence_and_falls():
    losses: list[float] = []
    adapt(
        linear(),
        IMAGES,
        sigma=0.3,
        layers="last",
        epochs=8,
        purify=None,
        mirror=False,
        callback=lambda stage, done, total, loss: losses.append(loss) if stage == "epochs" else None,
    )
    assert len(losses) == 8
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    logits, targets = torch.randn(2, 5, 7, generator=seeded(0)).unbind()
    targets = targets.softmax(1)
    expected = (targets * (targets.log() - logits.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(divergence(logits, targets), expected)
    assert divergence(targets.log(), targets).abs() < 1e-6


@pytest.mark.parametrize("size", [2, 5, 64])
def test_statistics_are_those_of_all_inputs(size):
    classifier = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10)).eval()
    adapted = adapt(classifier, IMAGES, sigma=0.3, layers="batch_norm", purify=None, batch=size, seed=2)
    inputs = torch.cat([IMAGES, noisy_copies(IMAGES, 0.3, 2)])
    torch.testing.assert_close(adapted[0].running_mean, inputs.mean((0, 2, 3)))
    torch.testing.assert_close(adapted[0].running_var, inputs.transpose(0, 1).flatten(1).var(1))
    torch.testing.assert_close(classifier[0].running_mean, torch.zeros(3))
    assert adapted[0].num_batches_tracked == 0
    assert torch.equal(adapted[2].weight, classifier[2].weight)


def test_statistics_of_deep_layers_are_those_of_one_batch_in_training_mode():
    deep = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).eval()
    reference = deepcopy(deep).train()
    reference[1].momentum = reference[4].momentum = None  # the average over one batch
    with torch.no_grad():
        reference(IMAGES)
    deep.add_module("unused", nn.BatchNorm2d(2).eval())
    deep.forward = lambda images: deep[4](deep[3](deep[2](deep[1](deep[0](images)))))  # type: ignore[method-assign]
    reestimate_batch_norm(deep, IMAGES, 64)
    for layer in (1, 4):
        torch.testing.assert_close(deep[layer].running_mean, reference[layer].running_mean)
        torch.testing.assert_close(deep[layer].running_var, reference[layer].running_var)
    assert torch.equal(deep.unused.running_var, torch.ones(2))
    assert not any(module.training for module in deep.modules())


@pytest.mark.parametrize(
    ("layers", "changed"), [("batch_norm", set()), ("last", {"5.weight", "5.bias"}), ("all", {"0", "1", "5"})]
)
def test_layers_say_what_changes(layers, changed):
    classifier = net()
    adapted = adapt(classifier, IMAGES, layers=layers, **QUICK)
    before, after = classifier.state_dict(), adapted.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {"1.running_mean", "1.running_var"}
    assert statistics <= moved
    names = {name for name in moved - statistics}
    assert (names if layers != "all" else {name[0] for name in names}) == changed
    assert layers in LAYERS


def test_the_last_layer_is_the_one_that_runs_last():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(8, 10), nn.Linear(192, 8)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images.flatten(1)))

    classifier = Backwards().eval()
    adapted = adapt(classifier, IMAGES, layers="last", **QUICK)
    assert torch.equal(adapted.body.weight, classifier.body.weight)
    assert not torch.equal(adapted.head.weight, classifier.head.weight)


# --- what it learns from


def test_copies_take_the_levels_in_turn_and_their_noise_from_the_seed():
    noisy = NoisyCopies((0.0, 0.2), 3, 5, None)
    made, owners = reconstruct_copies(IMAGES[:2], noisy, ProgressFile(None, {}))
    expected = {(i, copy): (0.2 if (3 * i + copy) % 2 else 0.0) for i in range(2) for copy in range(3)}
    wanted = [
        (IMAGES[i] + sigma * gaussian_draws(IMAGES[i], 5, range(copy, copy + 1))[0]).clamp(0, 1)
        for (i, copy), sigma in sorted(expected.items(), key=lambda item: item[1])
    ]
    assert torch.equal(made, torch.stack(wanted))
    assert owners.tolist() == [i for (i, _), _ in sorted(expected.items(), key=lambda item: item[1])]


@pytest.mark.parametrize("sigma", [0.12, 0.0])
def test_the_default_gives_every_reconstruction_that_is_classified(monkeypatch, sigma):
    asked: list[object] = []

    def small(*given: object) -> Defence:
        asked.extend(given)
        return Defence(FIT, MeanSoftmax((4, 8)), None)

    monkeypatch.setattr(training_inputs, "smoothing_defence_for", small)
    made, owners = reconstruct_copies(IMAGES[:2], NoisyCopies((sigma,), 1, 1, "dip"), ProgressFile(None, {}))
    least = min(NOISY_ITERATIONS)
    purifier = Purifier(FIT, seed=0, sigma=sigma or least)
    expected = purifier.trajectory(noisy_copies(IMAGES[:2], sigma, 1), (4, 8))
    assert torch.equal(made, expected.flatten(0, 1))
    assert owners.tolist() == [0, 1, 0, 1]
    assert asked == [(3, 8, 8), sigma or least]  # without noise, the fit and the filters for the least


@pytest.mark.parametrize("mirror", [True, False])
def test_inputs_are_mirrored_at_random(mirror):
    seen: list[Tensor] = []
    classifier = linear()
    classifier.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    images = torch.zeros(8, 3, 8, 8)
    images[..., 0] = 1  # the left edge
    adapt(classifier, images, sigma=0.0, purify=None, epochs=4, mirror=mirror, batch=16)
    trained = torch.cat([given for given in seen if len(given) == 16])  # (64, 3, 8, 8)
    assert len(trained) == 64
    left, right = trained[..., 0].mean((1, 2)), trained[..., -1].mean((1, 2))
    assert torch.equal(left + right, torch.ones(64))
    assert 15 < right.sum() < 49 if mirror else right.sum() == 0


def test_a_perturbation_stays_in_the_ball_and_increases_the_divergence():
    classifier, generator = linear(), seeded(3)
    with torch.no_grad():
        targets = classifier(IMAGES).softmax(1)
    moved = perturb(classifier, IMAGES, targets, eps=0.05, steps=7, generator=generator)
    delta = moved - IMAGES
    assert delta.abs().max() <= 0.05 + 1e-6
    assert delta.abs().max() > 0.049
    assert 0 <= moved.min() <= moved.max() <= 1
    assert not moved.requires_grad
    with torch.no_grad():
        noise = [(IMAGES + 0.05 * torch.randn(IMAGES.shape, generator=generator).sign()).clamp(0, 1) for _ in range(20)]
        most = max(divergence(classifier(one), targets) for one in noise)
        assert divergence(classifier(moved), targets) > 2 * most


# --- what it leaves alone


def test_the_original_and_the_state_of_torch_are_left_as_they_were():
    classifier = net()
    classifier[0].weight.requires_grad_(False)
    before, state = deepcopy(classifier), torch.get_rng_state()
    with torch.no_grad():
        adapted = adapt(classifier, IMAGES, **QUICK)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert same(classifier, before)
    assert type(adapted) is type(classifier)
    assert not any(module.training for module in (*classifier.modules(), *adapted.modules()))
    wanted = [parameter.requires_grad for parameter in classifier.parameters()]
    assert [parameter.requires_grad for parameter in adapted.parameters()] == wanted
    assert all(parameter.grad is None for parameter in (*classifier.parameters(), *adapted.parameters()))


def test_inference_tensors_are_copied():
    with torch.inference_mode():
        classifier, images = net(), IMAGES + 0
        inside = adapt(classifier, images, **QUICK)
    assert same(inside, adapt(net(), IMAGES, **QUICK))
    assert same(inside, adapt(classifier, images, **QUICK))


def test_the_seed_decides():
    first, again, other = (adapt(net(), IMAGES, seed=seed, eps=0.05, attack_steps=2, **QUICK) for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


# --- resumption


@pytest.mark.parametrize("at", [("reconstructions", 2), ("reconstructions", 6), ("epochs", 1), ("epochs", 3)])
def test_a_killed_adaptation_goes_on_to_the_same_bits(tmp_path, monkeypatch, at):
    settings = {"purify": Purifier(FIT), "sigma": (0.1, 0.2), "epochs": 3, "batch": 4, "eps": 0.02, "attack_steps": 2}
    monkeypatch.setattr(training_inputs, "BLOCK", 2)
    calls: list[tuple[str, int, int, float | None]] = []
    whole = adapt(net(), IMAGES, callback=lambda *call: calls.append(call), **settings)
    assert [call[:3] for call in calls if call[0] == "epochs"] == [("epochs", done, 3) for done in (1, 2, 3)]
    made: list[int] = []
    original = NoisyCopies.made
    monkeypatch.setattr(
        NoisyCopies, "made", lambda self, images, sigma, pairs: made.append(1) or original(self, images, sigma, pairs)
    )
    checkpoint = Checkpoint(tmp_path / "adapting", seconds=0)

    def kill(*call: object) -> None:
        if call[:2] == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(net(), IMAGES, callback=kill, checkpoint=checkpoint, **settings)
    again: list[tuple[str, int, int, float | None]] = []
    resumed = adapt(net(), IMAGES, callback=lambda *call: again.append(call), checkpoint=checkpoint, **settings)
    assert same(resumed, whole)
    assert again == calls
    assert len(made) == 4  # blocks of 2, 1, 2 and 1 copies, each made once


def test_a_whole_file_gives_the_result_without_work_and_a_path_is_enough(tmp_path, monkeypatch):
    whole = adapt(net(), IMAGES, checkpoint=tmp_path / "adapting", **QUICK)
    monkeypatch.setattr("dipdefense.defence.adaptation.training.divergence", None)
    monkeypatch.setattr(NoisyCopies, "made", None)
    assert same(adapt(net(), IMAGES, checkpoint=tmp_path / "adapting", **QUICK), whole)


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({"images": IMAGES.flip(0)}, "images, answers"),
        ({"classifier": Scaled(linear(), torch.sin).eval()}, "classifier, answers"),
        ({"sigma": 0.2}, "sigma"),
        ({"layers": "last"}, "layers"),
        ({"epochs": 3}, "epochs"),
        ({"lr": 0.02}, "lr"),
        ({"eps": 0.1}, "eps"),
        ({"seed": 1}, "seed"),
        ({"mirror": False}, "mirror"),
        ({"purify": torch.sqrt}, "purify"),
    ],
)
def test_the_checkpoint_of_another_adaptation_is_refused(tmp_path, change, differing):
    given = {"classifier": linear(), "images": IMAGES, "checkpoint": tmp_path / "adapting", **QUICK}
    adapt(**given)
    with pytest.raises(ValueError, match=rf"must be the checkpoint of this adaptation, .* \({differing}\)"):
        adapt(**given | change)


def test_another_function_of_the_same_weights_is_refused(tmp_path):
    given = {"images": IMAGES, "checkpoint": tmp_path / "adapting", **QUICK}
    adapt(Scaled(linear(), torch.clone).eval(), **given)
    with pytest.raises(ValueError, match=r"checkpoint of this adaptation, .* \(answers\)"):
        adapt(Scaled(linear(), torch.neg).eval(), **given)


# --- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"classifier": conv_net()}, ValueError, "classifier must be in eval mode, got BatchNorm2d in training mode"),
        ({"classifier": torch.sqrt}, TypeError, "classifier must be a torch.nn.Module, got"),
        ({"classifier": defend(net())}, TypeError, "the one inside the DefendedClassifier: give its .classifier"),
        ({"classifier": nn.Sequential(net(), nn.Softmax(1)).eval()}, ValueError, "logits, got probabilities"),
        ({"classifier": nn.Flatten().eval()}, ValueError, "classifier must have parameters for layers 'all', Flatten"),
        ({"classifier": linear(), "layers": "batch_norm"}, ValueError, "Sequential has none: use layers='last'"),
        ({"classifier": nn.Flatten().eval(), "layers": "last"}, ValueError, "linear or convolutional layer with param"),
        ({"images": IMAGES + 1}, ValueError, r"images must be within \[0, 1\]"),
        ({"images": IMAGES[:1]}, ValueError, "images must be at least 2, got 1: a classifier is adapted on hundreds"),
        ({"layers": "first"}, ValueError, "layers must be one of batch_norm, last, all, got 'first'"),
        ({"sigma": -0.1}, ValueError, "sigma must not be negative, got -0.1"),
        ({"sigma": (0.1, -1)}, ValueError, "sigma must not be negative, got -1"),
        ({"sigma": float("nan")}, ValueError, "sigma must be a finite number, got nan"),
        ({"sigma": ()}, ValueError, "sigma must be a number or one or more numbers, got an empty sequence"),
        ({"epochs": 0}, ValueError, "epochs must be an integer of at least 1, got 0"),
        ({"batch": 1}, ValueError, "batch must be an integer of at least 2, got 1"),
        ({"copies": 0}, ValueError, "copies must be an integer of at least 1, got 0"),
        ({"attack_steps": 0}, ValueError, "attack_steps must be an integer of at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0, got -1"),
        ({"lr": 0}, ValueError, "lr must be positive and finite, got 0"),
        ({"eps": 8}, ValueError, r"eps must lie in \[0, 1\], got 8"),
        ({"eps": float("inf")}, ValueError, "eps must be a finite number, got inf"),
        ({"purify": "jpeg"}, TypeError, "purify must be 'dip', None or a function of images, got 'jpeg'"),
        ({"purify": partial(F.avg_pool2d, kernel_size=2)}, ValueError, "purify must return images of the shape that"),
        ({"purify": torch.neg}, ValueError, r"purified images must be within \[0, 1\]"),
        (
            {"classifier": linear(), "lr": 1e37},
            RuntimeError,
            r"the loss of an adaptation must stay finite: lower lr, got 1e\+37",
        ),
    ],
)
def test_what_is_wrong_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        adapt(**{"classifier": net(), "images": IMAGES, **QUICK} | arguments)


# --- what it gains


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A classifier, images to adapt on, and held-out images with their labels."""
    held_out = load_dataset("digits")
    train = load_dataset("digits_train").batch(range(200))
    return trained_digits_cnn(), train, held_out.batch(range(150)), held_out.labels[:150]


def accuracy(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (classifier(images).argmax(1) == labels).float().mean().item()


def test_noisy_digits_are_read_better(digits):
    bare, train, images, labels = digits
    adapted = adapt(bare, train, sigma=0.3, epochs=2, lr=1e-3, batch=32, purify=None, mirror=False)
    noisy = noisy_copies(images, 0.3, 9)
    assert accuracy(bare, noisy, labels) < 0.6
    assert accuracy(adapted, noisy, labels) > accuracy(bare, noisy, labels) + 0.25
    assert accuracy(adapted, images, labels) > accuracy(bare, images, labels) - 0.05


def test_perturbed_digits_are_read_better(digits):
    bare, train, images, labels = digits
    images, labels, learning = images[:50], labels[:50], {"sigma": 0.1, "purify": None, "mirror": False, "batch": 32}
    adapted = adapt(bare, train[:120], epochs=3, lr=2e-3, eps=0.1, attack_steps=2, **learning)
    attacked = {net: pgd(net, images, labels, eps=0.05, steps=10) for net in (bare, adapted)}
    assert accuracy(bare, attacked[bare], labels) < 0.5
    assert accuracy(adapted, attacked[adapted], labels) > accuracy(bare, attacked[bare], labels) + 0.3


def test_agreement_counts_the_classes_of_the_bare_classifier():
    bare, constant = net(), linear()
    constant[1].weight.data.zero_()  # always answers 0
    with torch.no_grad():
        zeros = (bare(IMAGES).argmax(1) == 0).float().mean().item()
    without_noise = measure_agreement(bare, constant, IMAGES, NoisyCopies((0.0,), 2, 0, None))
    assert without_noise == pytest.approx((1, zeros, zeros))
    with torch.no_grad():
        share = (bare(noisy_copies(IMAGES, 0.9, 3)).argmax(1) == bare(IMAGES).argmax(1)).float().mean().item()
    assert share < 1
    noisy = measure_agreement(bare, bare, IMAGES, NoisyCopies((0.9,), 1, 3, None))
    assert noisy == pytest.approx((share, share, 1))
