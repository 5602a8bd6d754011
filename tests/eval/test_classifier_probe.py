"""The answers by which a run knows a classifier again: what they tell apart, and what they do not."""

import pytest
import torch
from closed_form_classifiers import Noisy, Scaled, conv_net

from eval.classifier_probe import TOLERANCE, difference_in_answers, probe, probe_images
from eval.datasets import load_dataset


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net():
    return conv_net().eval()


def test_images_are_the_first_and_the_same_with_noise():
    digits = load_dataset("digits")
    images = probe_images(digits)
    assert torch.equal(images[:4], digits.batch(range(4)))
    assert torch.equal(images, probe_images(digits))
    changed = images[4:] - images[:4]
    assert 0.05 < changed.std() < 0.1  # of 0.1, clipped to [0, 1]
    assert (images >= 0).all()
    assert (images <= 1).all()
    assert len(probe_images(digits.between(0, 8))) == 4  # there are two


@pytest.mark.parametrize("function", [lambda x: -x, lambda x: 2 * x, lambda x: x + 0.05, lambda x: x.flip(1)])
def test_attributes_and_closures_are_told_apart(net, images, function):
    before = probe(net, images)
    said = difference_in_answers(before, probe(Scaled(net, function), images))
    assert "up to" in said
    assert difference_in_answers(before, probe(Scaled(net, lambda x: x), images)) is None


def test_rounding_is_not(net, images):
    """Another number of threads, or the image in a batch, moves the last digits; 1e-5 of the logits is far more."""
    before = probe(net, images)
    assert difference_in_answers(before, probe(lambda x: net(x) * (1 + 1e-5), images)) is None
    assert difference_in_answers(before, probe(lambda x: net(x.expand(7, -1, -1, -1))[:1], images)) is None
    assert difference_in_answers(before, probe(lambda x: net.double()(x.double()), images)) is None


def test_the_tolerance_follows_the_type(net, images):
    assert probe(net, images)["tolerance"] == TOLERANCE
    half = probe(lambda x: net(x).bfloat16(), images)
    assert half["tolerance"] == 4 * 2**-7
    assert difference_in_answers(probe(net, images), half) is None


def test_draws_of_the_global_generator_are_repeated_and_left_as_found(net, images):
    state = torch.get_rng_state()
    first, again = (probe(Noisy(net), images) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first is not None
    assert first == again


def test_a_classifier_that_draws_afresh_has_no_answer(net, images):
    generator = torch.Generator().manual_seed(0)
    assert probe(lambda x: net(x + 0.3 * torch.randn(x.shape, generator=generator)), images) is None
    assert difference_in_answers(None, None) is None


def test_logits_must_be_finite(images):
    with pytest.raises(ValueError, match="classifier must return finite logits"):
        probe(lambda x: torch.full((len(x), 3), torch.nan), images)
    with pytest.raises(ValueError, match=r"classifier must return logits \(B, K\) for 1 image, got shape"):
        probe(lambda x: x, images)
