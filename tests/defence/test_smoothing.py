"""The smoothed classifier: its vote against the formula, its noise, its gradients, what it refuses."""

import pytest
import torch
from closed_form_classifiers import FIT, batch, conv_net
from torch import nn

from dipdefense import DefendedClassifier, MeanSoftmax, Purifier, smooth
from dipdefense.defence.presets import NOISY_ITERATIONS, smoothing_defence_for
from dipdefense.defence.smoothing import NoisyPurifier, gaussian_draws
from dipdefense.filters.refinement import refine
from eval.baselines import BASELINES

PURIFIERS = {"bare": None, "fit": Purifier(FIT), "filter": BASELINES["gaussian_blur"]}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return conv_net().eval()


@pytest.mark.parametrize("purify", PURIFIERS.values(), ids=PURIFIERS)
def test_the_answer_is_the_mean_over_clipped_purified_copies(net, purify):
    images, _ = batch(net, 2)
    noise = [gaussian_draws(image, 5, range(3)) for image in images]
    noisy = torch.stack([(images[i] + 0.3 * noise[i]).clamp(0, 1) for i in range(2)])  # (B, D, C, H, W)
    purified = noisy if purify is None else torch.stack([purify(copies) for copies in noisy])
    with torch.no_grad():
        expected = torch.stack([net(copies).softmax(1).mean(0) for copies in purified])
        answer = smooth(net, 0.3, votes=3, seed=5, purify=purify)(images)
    torch.testing.assert_close(answer.exp(), expected, rtol=0, atol=0.02 if purify is PURIFIERS["fit"] else 1e-5)
    torch.testing.assert_close(answer.exp().sum(1), torch.ones(2))


def test_the_default_is_the_fit_for_the_noise(net):
    images, _ = batch(net, 1)
    defence = smoothing_defence_for((3, 8, 8), 0.12)
    noisy = images + 0.12 * gaussian_draws(images[0], 0, range(1))
    purifier = Purifier(defence.fit, seed=0, tile=defence.tile, sigma=0.12)
    defended = DefendedClassifier(net, purifier, decision=defence.decision)
    with torch.no_grad():
        torch.testing.assert_close(smooth(net).base(noisy), defended(noisy.clamp(0, 1)))


def test_settings_are_those_of_the_nearest_noise():
    for sigma, iterations in NOISY_ITERATIONS.items():
        for near in (0.9 * sigma, sigma, 1.1 * sigma):
            defence = smoothing_defence_for((3, 32, 32), near)
            assert isinstance(defence.decision, MeanSoftmax)
            assert (defence.decision.iterations, defence.fit.iterations) == ((iterations,), iterations)
    assert "mirror" in smoothing_defence_for((3, 32, 32), 0.12).decision.views
    assert smoothing_defence_for((3, 32, 32), 0.12, mirror=False).decision.views == ("identity",)
    assert smoothing_defence_for((1, 28, 28), 0.12).decision.views == ("identity",)
    with pytest.raises(ValueError, match="sigma must be positive and finite, got 0"):
        smoothing_defence_for((3, 32, 32), 0.0)


def test_noise_is_normal_and_a_function_of_seed_image_and_draw():
    image, other = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    noise = gaussian_draws(image, 1, range(40))
    assert noise.shape == (40, 3, 16, 16)
    assert abs(noise.mean().item()) < 5 / noise.numel() ** 0.5
    assert abs(noise.var().item() - 1) < 5 * (2 / noise.numel()) ** 0.5
    flat = noise.flatten(1)
    correlation = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / flat.shape[1] ** 0.5  # of 780 pairs of draws
    assert torch.equal(gaussian_draws(image, 1, range(7, 9)), noise[7:9])
    for different in (gaussian_draws(image, 2, range(1)), gaussian_draws(other, 1, range(1))):
        assert (different[0] - noise[0]).abs().mean() > 0.5
    named = gaussian_draws(image, 1, range(1), index=4)
    assert torch.equal(named, gaussian_draws(other, 1, range(1), index=4))
    assert not torch.equal(named, gaussian_draws(image, 1, range(1), index=5))
    exact = gaussian_draws(image.double(), 1, range(1), index=4)
    torch.testing.assert_close(exact.float(), named)


def test_an_answer_depends_on_neither_neighbours_nor_order(net):
    images, _ = batch(net)
    smoothed = smooth(net, 0.2, votes=4, seed=3, purify=None)
    with torch.no_grad():
        together = smoothed(images)
        alone = torch.cat([smoothed(image[None]) for image in images])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(smoothed(images.flip(0)).flip(0), together)


def test_many_votes_are_taken_in_blocks(net, monkeypatch):
    images, _ = batch(net)
    smoothed = smooth(net, 0.2, votes=5, seed=3, purify=None)
    whole, counts = smoothed(images), smoothed.count(images[0], range(3, 20))
    monkeypatch.setattr("dipdefense.defence.smoothing.VALUES", 2 * images.numel())
    torch.testing.assert_close(smoothed(images), whole)
    assert smoothed.count(images[0], range(3, 20)) == counts
    assert sum(counts.values()) == 17


def test_without_a_seed_every_call_draws(net):
    images, _ = batch(net)
    assert not torch.equal(*[smooth(net, 0.2, votes=2, purify=None)(images) for _ in range(2)])


def test_gradients_pass_noise_and_fit(net):
    images, _ = batch(net, 2)
    images.requires_grad_()
    smooth(net, 0.2, votes=2, seed=0, purify=Purifier(FIT))(images).amax(1).sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(1).abs().sum(1).min() > 0


def test_a_purifier_that_is_told_the_noise_refines_its_fit():
    images = batch(conv_net().eval(), 2)[0].double()
    noisy = (images + 0.1 * gaussian_draws(images[0], 0, range(2))).clamp(0, 1)
    told, plain = Purifier(FIT, sigma=0.1), Purifier(FIT)
    fitted, level = plain.trajectory(noisy, (4, 8)), torch.full((2,), 0.1, dtype=torch.float64)
    frames = told.trajectory(noisy, (4, 8))
    torch.testing.assert_close(frames, torch.stack([refine(noisy, frame, level) for frame in fitted]))
    tiled = Purifier(FIT, sigma=0.1, tile=6)(noisy)
    torch.testing.assert_close(tiled, refine(noisy, Purifier(FIT, tile=6)(noisy), level))
    assert torch.equal(told.variant(sigma=None)(noisy), plain(noisy))
    with pytest.raises(ValueError, match="sigma must be positive and finite, got 0"):
        Purifier(FIT, sigma=0)


def test_the_filters_have_their_own_gradient_and_the_fit_counts_as_the_identity():
    noisy, level = batch(conv_net().eval(), 1)[0].double().requires_grad_(), torch.full((1,), 0.1, dtype=torch.float64)
    fitted = Purifier(FIT)(noisy.detach())
    (slope,) = torch.autograd.grad(Purifier(FIT, sigma=0.1)(noisy).square().sum(), noisy)
    through = fitted + (noisy - noisy.detach())
    (expected,) = torch.autograd.grad(refine(noisy, through, level).square().sum(), noisy)
    torch.testing.assert_close(slope, expected)


def test_noise_that_a_purifier_adds_is_noise_that_it_removes():
    images = batch(conv_net().eval(), 2)[0].double()
    noisy = torch.stack([(x + 0.1 * gaussian_draws(x, 3, range(1))[0]).clamp(0, 1) for x in images])
    expected = Purifier(FIT, seed=3, sigma=0.1)(noisy)
    torch.testing.assert_close(NoisyPurifier(0.1, FIT, seed=3)(images), expected)
    for sigma in (0.0, None):
        with pytest.raises(ValueError, match="sigma must be positive and finite, got"):
            NoisyPurifier(sigma, FIT)


def test_it_is_saved_as_the_classifier(net):
    smoothed = smooth(net, purify=Purifier(FIT))
    assert smoothed.state_dict().keys() == net.state_dict().keys()
    assert "sigma=0.12" in repr(smoothed)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sigma": 0.0}, ValueError, "sigma must be positive and finite, got 0.0"),
        ({"sigma": -1}, ValueError, "sigma must be positive and finite, got -1"),
        ({"votes": 0}, ValueError, "votes must be an integer of at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be None or an integer of at least 0, got -1"),
        ({"purify": "jpeg"}, TypeError, "purify must be 'dip', None or a function of images, got 'jpeg'"),
        ({"check": (3, 9, 9)}, ValueError, "classifier must take float32 images"),
    ],
)
def test_what_is_wrong_is_refused(net, arguments, error, message):
    with pytest.raises(error, match=message):
        smooth(net, **arguments)


def test_images_and_classifiers_are_checked(net):
    images, _ = batch(net)
    with pytest.raises(ValueError, match=r"images must be within \[0, 1\]"):
        smooth(net)(images + 1)
    with pytest.raises(ValueError, match="classifier must be in eval mode"):
        smooth(conv_net(), purify=None)(images)
    with pytest.raises(ValueError, match="classifier must return logits"):
        smooth(nn.Flatten(0).eval(), purify=None)(images)
    with pytest.raises(ValueError, match="classifier must return logits, got probabilities"):
        smooth(nn.Sequential(net, nn.Softmax(1)).eval(), check=(3, 8, 8))


def noisy(net, sigma=0.2, seed=0, **decision):
    purifier = NoisyPurifier(sigma, FIT, seed=seed)
    return DefendedClassifier(net, purifier, decision=MeanSoftmax((FIT.iterations,), **decision))


def test_restarts_of_a_noisy_purifier_are_votes(net):
    images, _ = batch(net, 2)
    noise = torch.stack([gaussian_draws(image, 5, range(3)) for image in images], 1)  # (D, B, C, H, W)
    copies = (images + 0.2 * noise).clamp(0, 1)
    with torch.no_grad():
        seeds = range(5, 8)
        votes = [noiseless(net, seed)(some).softmax(1) for seed, some in zip(seeds, copies, strict=True)]
        answer = noisy(net, seed=5, restarts=3)(images)
    torch.testing.assert_close(answer.exp(), torch.stack(votes).mean(0), rtol=0, atol=0.02)


def noiseless(net, seed):
    return DefendedClassifier(net, Purifier(FIT, seed=seed, sigma=0.2), decision=MeanSoftmax((FIT.iterations,)))


def test_a_noisy_purifier_leaves_the_images_and_passes_the_gradient():
    """Past the clipping of the noisy image: its gradient is that of the purifier at the noisy image."""
    images = torch.rand(2, 3, 8, 8).double().round(decimals=1).requires_grad_()  # some are 0 or 1, and are clipped
    weights = torch.randn(2, 3, 8, 8).double()
    before = images.detach().clone()
    (weights * NoisyPurifier(0.3, FIT, seed=0)(images)).sum().backward()
    assert torch.equal(images.detach(), before)
    noise = torch.stack([gaussian_draws(image, 0, range(1))[0] for image in before])
    noisy = (before + 0.3 * noise).clamp(0, 1).requires_grad_()
    (weights * Purifier(FIT, seed=0, sigma=0.3)(noisy)).sum().backward()
    torch.testing.assert_close(images.grad, noisy.grad)


def test_a_noisy_purifier_is_random_without_a_seed_and_keeps_its_noise_in_a_variant():
    images = torch.rand(2, 3, 8, 8)
    assert not torch.equal(*[NoisyPurifier(0.3, FIT)(images) for _ in range(2)])
    purifier = NoisyPurifier(0.3, FIT, seed=1)
    assert torch.equal(purifier(images), NoisyPurifier(0.3, FIT).variant(seed=1)(images))
    assert not torch.equal(purifier(images), Purifier(FIT, seed=1)(images))
    assert "sigma=0.3" in repr(purifier)
    with pytest.raises(ValueError, match="sigma must be positive and finite, got 0"):
        NoisyPurifier(0.0)
