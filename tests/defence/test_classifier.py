"""The defence as a module: shapes, what a backward pass means, and what it leaves alone."""

import contextlib
import copy
import dataclasses
import itertools
import pickle
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

import dipdefense
from dipdefense import (
    DECISIONS,
    DefendedClassifier,
    Detector,
    DetectorGated,
    FitConfig,
    LastReconstruction,
    MeanSoftmax,
    OnDevices,
    Purifier,
    Unrolled,
    defend,
)

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=20)
SHORT = replace(TINY, iterations=2)


def images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """A linear classifier, whose gradient is its weight."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(5, 3 * 16 * 16, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


def test_a_batch_and_its_single_images():
    purifier = Purifier(TINY)
    batch = purifier(images().double())
    assert batch.shape == images().shape
    torch.testing.assert_close(purifier(images()[0].double()), batch[0])


def test_the_cosine_loss_stays_in_range():
    config = dataclasses.replace(TINY, loss="cosine", iterations=100)
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 3, 16, 16)
    assert dipdefense.fit(stripes, config).reconstruction.max() > 1  # the least-squares gain
    assert Purifier(config)(stripes).max() == 1


def test_is_a_transform():
    from torchvision.transforms import v2

    assert v2.Compose([v2.Resize(16), Purifier(TINY)])(torch.rand(3, 20, 20)).shape == (3, 16, 16)


def test_straight_through_is_the_identity_backwards():
    net = Linear()
    x = images().requires_grad_()
    logits = DefendedClassifier(net, Purifier(TINY), gradient="straight_through")(x)
    logits[:, 2].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, net.weight[2].view(1, 3, 16, 16).expand_as(x))


def test_no_gradient_raises_with_the_remedy():
    x = images().requires_grad_()
    blind = Purifier(TINY, gradient="none")
    for output in (defend(Linear(), TINY, gradient="none")(x), blind(x), DefendedClassifier(Linear(), blind)(x)):
        assert output.requires_grad  # never silently detached
        with pytest.raises(RuntimeError, match='use gradient="straight_through"'):
            output.sum().backward()


def test_logits_are_those_of_the_purified_images():
    net, purifier = Linear(), Purifier(TINY, seed=3)
    torch.testing.assert_close(DefendedClassifier(net, purifier)(images()), net(purifier(images())))


def test_works_without_gradients_and_keeps_every_mode():
    defended = defend(Linear(), TINY)
    plain = defended(images())
    with torch.no_grad():
        assert torch.equal(defended(images()), plain)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(defended(images()), plain)
        assert torch.is_inference_mode_enabled()
    for mode in (True, False):
        defended.train(mode)
        assert torch.equal(defended(images()), plain)
        assert {module.training for module in defended.modules()} == {mode}


def test_the_networks_of_a_fit_stay_out_of_the_module():
    defended = defend(Linear(), TINY)
    defended(images())
    assert list(defended.state_dict()) == ["weight"]
    assert list(Purifier(TINY).state_dict()) == []
    assert [id(p) for p in defended.parameters()] == [id(defended.classifier.weight)]
    again = copy.deepcopy(defended)
    torch.testing.assert_close(again(images()), defended(images()))


def awake(*layers: nn.Module) -> nn.Sequential:
    """A classifier in training mode."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 16 * 16, 5))


@pytest.mark.parametrize("wrap", [lambda defended: defended, lambda defended: OnDevices(defended, ["cpu", "cpu"])])
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(3), nn.Dropout(), nn.Dropout2d(0.1), nn.InstanceNorm2d(3, track_running_stats=True)]
)
def test_a_classifier_that_trains_is_refused_before_it_changes(layer, wrap):
    net = awake(copy.deepcopy(layer))
    before = copy.deepcopy(net.state_dict())
    defended = wrap(defend(net, SHORT))
    name = type(layer).__name__
    message = (
        rf"classifier must be in eval mode, got {name} in training mode: call \.eval\(\); to train .*, train it alone"
    )
    for mode in (contextlib.nullcontext(), torch.no_grad()):
        with mode, pytest.raises(ValueError, match=message):
            defended(images())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    first, again = defended.eval()(images()), defended(images())
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(ValueError, match=message):
        defended.train()(images())


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3, track_running_stats=False), nn.Dropout(0), nn.GroupNorm(1, 3)]
)
def test_training_mode_is_accepted_where_no_layer_depends_on_it(layer):
    net = awake(layer)
    assert torch.equal(defend(net, SHORT)(images()), defend(copy.deepcopy(net).eval(), SHORT)(images()))


def test_a_classifier_is_fine_tuned_alone_on_purified_images():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = awake(nn.BatchNorm2d(3), nn.Dropout(0.1)).eval()
    defended, labels = defend(net, SHORT), torch.tensor([0, 1])
    purified = defended.purifier.reconstruct(images())
    loss = nn.functional.cross_entropy(defended(images()), labels)
    loss.backward()  # in eval mode a gradient reaches the weights through the defence too
    assert all(parameter.grad.any() for parameter in net.parameters())
    net.train()
    with torch.random.fork_rng():
        for _ in range(20):
            trained = nn.functional.cross_entropy(net(purified), labels)
            for parameter, slope in zip(
                net.parameters(), torch.autograd.grad(trained, [*net.parameters()]), strict=True
            ):
                parameter.data -= 0.1 * slope
    assert net[0].num_batches_tracked == 20
    assert nn.functional.cross_entropy(defended.eval()(images()), labels) < loss


@pytest.mark.parametrize("gradient", ["straight_through", "unrolled", "none"])
@pytest.mark.parametrize(
    ("shape", "decision"),
    [
        *itertools.product([(3, 16, 16), (3, 80, 80)], [None, *DECISIONS]),  # the larger one is cut into tiles
        *itertools.product([(1, 8, 8)], [None, "last"]),
    ],
)
def test_an_empty_batch_gives_empty_results(decision, shape, gradient):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * shape[0], 5)).eval()
    defended = defend(net, gradient=gradient, decision=decision)
    none = torch.rand(0, *shape, requires_grad=True)
    judged = defended.judge(none)
    assert [tuple(part.shape) for part in judged] == [(0, 5), (0,), (0, *shape)]
    assert {part.dtype for part in judged} == {none.dtype}
    assert torch.equal(defended(none), judged.logits)
    assert torch.equal(defended.detect(none), judged.scores)
    judged.logits.sum().backward()
    assert none.grad.shape == none.shape


def test_an_empty_batch_is_purified():
    none, purifier = torch.rand(0, 3, 16, 16, dtype=torch.float64), Purifier(TINY)
    for purified in (purifier(none), purifier.reconstruct(none), OnDevices(purifier, ["cpu", "cpu"])(none)):
        assert (purified.shape, purified.dtype) == (none.shape, none.dtype)
    assert purifier.trajectory(none, (1, 2, 3)).shape == (3, 0, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"iterations must be one or more integers from 1 to the 20 of the fit, got \(\)"
    ):
        purifier.trajectory(none, ())
    for images in (torch.rand(0, 16, 16), torch.rand(2, 3, 0, 16), torch.rand(2, 0, 16, 16)):
        with pytest.raises(ValueError, match="images must not be empty, got shape"):
            purifier(images)


@pytest.mark.parametrize(
    "entry",
    [
        Purifier(TINY),
        Purifier(TINY).reconstruct,
        Purifier(TINY).fit,
        defend(Linear(), TINY),
        defend(Linear(), TINY).detect,
        defend(Linear(), TINY).judge,
    ],
    ids=["Purifier", "reconstruct", "fit", "forward", "detect", "judge"],
)
@pytest.mark.parametrize(
    ("convert", "error", "message"),
    [
        (torch.Tensor.half, TypeError, r"images must be float32 or float64, got torch\.float16: .* images\.float\(\)"),
        (torch.Tensor.bfloat16, TypeError, r"float32 or float64, got torch\.bfloat16: convert with images\.float\(\)"),
        (lambda x: x.clamp(1) + 1e-6, ValueError, r"; clamp rounding errors with images\.clamp\(0, 1\)$"),
        (lambda x: x.clamp(0.5) - 0.5 - 1e-7, ValueError, r"; clamp rounding errors with images\.clamp\(0, 1\)$"),
        (lambda x: x * 255, ValueError, "; divide 0..255 values by 255, undo any mean/std normalisation$"),
    ],
    ids=["float16", "bfloat16", "above 1", "below 0", "0..255"],
)
def test_every_entry_says_what_to_do(entry, convert, error, message):
    with pytest.raises(error, match=message):
        entry(convert(images()))


@pytest.mark.parametrize(
    ("gradient", "returned"),
    [
        (lambda fitted, w: w, r"\(1, 2, 3, 16, 16\)"),
        (lambda fitted, w: None, "NoneType"),
        (lambda fitted, w: w[0, :1], r"\(1, 3, 16, 16\)"),
    ],
)
def test_a_gradient_of_another_shape_is_refused(gradient, returned):
    x = images().requires_grad_()
    with pytest.raises(ValueError, match=r"gradient must return the derivative .*, \(2, 3, 16, 16\), got " + returned):
        Purifier(TINY, gradient=gradient)(x).sum().backward()


def test_a_callable_gradient_survives_copies_and_files():
    defended = defend(Linear(), TINY, gradient=Unrolled(last=2))
    for again in (copy.deepcopy(defended), pickle.loads(pickle.dumps(defended))):
        assert again.gradient == defended.gradient
        assert list(again.state_dict()) == ["weight"]
        slopes = []
        for model in (defended, again):
            x = images().requires_grad_()
            slopes += torch.autograd.grad(model(x).sum(), x)
        torch.testing.assert_close(*slopes)


def test_a_variant_changes_seed_and_gradient_only():
    defended = DefendedClassifier(
        Linear(), Purifier(TINY, seed=3, tile=12), gradient="none", decision=MeanSoftmax((2, 4), restarts=2)
    )
    other = defended.variant(seed=None, gradient="unrolled")
    assert (other.purifier.seed, other.gradient) == (None, "unrolled")
    assert (defended.purifier.seed, defended.gradient) == (3, "none")
    assert other.classifier is defended.classifier
    assert other.decision is defended.decision
    assert (other.purifier.config, other.purifier.tile) == (TINY, 12)
    same = defended.variant(seed=3, gradient="none")
    torch.testing.assert_close(same(images()), defended(images()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sede": 3}, TypeError, "arguments must be among config, seed, gradient, tile, sigma, got 'sede'"),
        ({"config": 3}, TypeError, "config must be a FitConfig or None, got int"),
        ({"seed": -1}, ValueError, "seed must be None or an integer of at least 0, got -1"),
        ({"tile": 0}, ValueError, "tile must be None or an integer of at least 1, got 0"),
        ({"gradient": "magic"}, ValueError, "gradient must be one of .*, or a callable, got 'magic'"),
    ],
)
def test_a_variant_is_checked_as_a_purifier_is(arguments, error, message):
    with pytest.raises(error, match=message):
        Purifier(TINY).variant(**arguments)
    if "sede" not in arguments:
        with pytest.raises(error, match=message):
            Purifier(**arguments)


def test_a_variant_stands_apart():
    purifier = Purifier(TINY)
    purifier.register_buffer("mean", torch.zeros(1))
    other = purifier.variant(seed=1)
    other.mean = torch.ones(1)
    other.register_forward_hook(lambda *call: None)
    assert (purifier.mean.item(), len(purifier._forward_hooks), purifier.seed) == (0, 0, 0)


class AnyStop(Purifier):
    """Another number of iterations for every seed."""

    def config_for(self, images):
        return replace(self.config, iterations=3 + random.Random(self.seed).randrange(4))


def test_a_defence_that_draws_its_numbers_draws_them_once_a_call():
    x, defended = images(), DefendedClassifier(Linear(), AnyStop(TINY, seed=None), decision=MeanSoftmax())
    assert len({defended(x).sum().item() for _ in range(8)}) > 1


class Halved(Purifier):
    """A purifier of a user's own: half as bright, if its seed is even."""

    def frames(self, images, iterations, **more):
        return super().frames(images, iterations, **more) * (0.5 if self.seed % 2 == 0 else 1)


@pytest.mark.parametrize("config", [TINY, None])
def test_a_variant_keeps_the_class_of_a_purifier_of_ones_own(config):
    defended = DefendedClassifier(Linear(), Halved(config, seed=2), decision=None if config else MeanSoftmax((2,)))
    other = defended.variant(seed=3, gradient="none")
    assert type(other.purifier) is type(defended.purifier) is Halved
    assert type(defended.plan(torch.rand(1, 3, 32, 32))[0]) is Halved
    x = images()
    reconstruction = Purifier(config, seed=2).trajectory(x, (TINY.iterations if config else 2,))[0]
    torch.testing.assert_close(defended.judge(x).reconstruction, reconstruction / 2)


class Darkened(Purifier):
    """A filter in place of the fit: one reconstruction, half as bright."""

    def frames(self, images, iterations, **more):
        return images[None] / 2


def test_a_filter_of_ones_own_returns_as_many_frames_as_the_decision_needs():
    x, net = images(), Linear()
    torch.testing.assert_close(DefendedClassifier(net, Darkened(), decision=LastReconstruction())(x), net(x / 2))
    defended = DefendedClassifier(net, Darkened(), decision=MeanSoftmax((2, 4)))
    with pytest.raises(ValueError, match=r"^frames of Darkened must .* \(2, 2, 3, 16, 16\), got \(1, 2, .*: return as"):
        defended(x)


@pytest.mark.parametrize("tile", [None, 12])
def test_the_residual_has_no_gradient_where_the_fit_counts_as_the_identity(tile):
    decision = DetectorGated((2, 4), restarts=2, detector=Detector(4, bias=0.1, doubt=0.0, left=13.0, drawn=0.0))
    x = images().requires_grad_()
    defended = DefendedClassifier(Linear(), Purifier(TINY, tile=tile), decision=decision)
    (gradient,) = torch.autograd.grad(defended.detect(x).sum(), x)
    assert gradient.abs().max() < 1e-12
    drawn = replace(decision, detector=Detector(4, bias=0.1, doubt=0.0, left=0.0, drawn=-1.0))
    (gradient,) = torch.autograd.grad(
        DefendedClassifier(Linear(), Purifier(TINY, tile=tile), decision=drawn).detect(x).sum(), x
    )
    assert gradient.abs().max() > 1e-6


def test_fresh_seeds_differ_and_a_seed_repeats():
    assert torch.equal(Purifier(TINY, seed=1)(images()), Purifier(TINY, seed=1)(images()))
    fresh = Purifier(TINY, seed=None)
    assert not torch.equal(fresh(images()), fresh(images()))


def test_defend_has_a_default_for_the_size():
    purified = Purifier()(torch.full((1, 1, 8, 8), 0.5))
    assert purified.shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: defend(Linear(), gradient="exact"),
            ValueError,
            "gradient must be one of straight_through, unrolled, none",
        ),
        (lambda: Purifier(gradient="exact"), ValueError, "gradient must be one of straight_through, unrolled, none"),
        (lambda: defend(lambda x: x), TypeError, "classifier must be a torch.nn.Module, got function"),
        (lambda: Purifier({"lr": 0.1}), TypeError, "config must be a FitConfig or None, got dict"),
        (lambda: Purifier(TINY)(images() * 255), ValueError, "255"),
        (lambda: Purifier(TINY)((images() * 255).byte()), TypeError, "255"),
        (lambda: Purifier(TINY)(images() * float("nan")), ValueError, "NaN|finite"),
        (lambda: Purifier(TINY)(images()[0, 0]), ValueError, "images must"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_public_names():
    for name in dipdefense.__all__:
        assert hasattr(dipdefense, name)
