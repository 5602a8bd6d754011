"""Pre-images of features: closed forms with linear layers, and what is refused."""

import dataclasses

import pytest
import torch
from torch import nn

from dipdefense import FitConfig, invert_features, maximise_activation
from dipdefense.restoration.presets import PIXELS

QUICK = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 4, "upsampling": "nearest"},
    input_channels=8,
    iterations=120,
    lr=0.02,
    jitter=0.0,
)
BRIEF = dataclasses.replace(QUICK, iterations=20)


def images(n: int = 2, height: int = 16, width: int = 12) -> torch.Tensor:
    coarse = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)


def classifier() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4), nn.Dropout()
        )


def ready() -> nn.Sequential:
    net = classifier()
    net.eval()(images())
    return net.train()


@pytest.mark.parametrize("layer", ["0", "2", "4"])
def test_the_pre_image_has_the_features_of_the_image(layer):
    net, target = ready(), images()
    result = invert_features(net, layer, target, config=QUICK)
    assert result.shape == target.shape
    assert net.training
    part = net[: int(layer) + 1].eval()
    wanted, got = part(target).flatten(1), part(result).flatten(1)
    assert ((got - wanted).square().sum(1) < 0.1 * wanted.square().sum(1)).all()


def test_an_invertible_layer_gives_the_image_back():
    net, target = nn.Sequential(nn.Conv2d(3, 3, 1)), images()
    mixture = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -0.5], [-0.5, 0.0, 1.0]])
    net.load_state_dict({"0.weight": mixture[..., None, None], "0.bias": torch.tensor([0.1, -0.2, 0.3])})
    result = invert_features(net, "0", target, config=dataclasses.replace(PIXELS, iterations=400))
    torch.testing.assert_close(result, target, atol=0.02, rtol=0)


def test_features_alone_give_the_same_pre_image():
    net, target = ready(), images()
    features = net[:3].eval()(target).detach()
    ours = invert_features(net, "2", features, shape=(3, 16, 12), config=BRIEF)
    torch.testing.assert_close(ours, invert_features(net, "2", target, config=BRIEF))


def test_total_variation_flattens_what_a_layer_does_not_see():
    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    target = images(1)
    result = invert_features(nn.Sequential(Mean()), "0", target, config=PIXELS, tv=0.1)
    flat = target.mean((2, 3), keepdim=True).expand_as(target)
    torch.testing.assert_close(result, flat, atol=0.02, rtol=0)


def test_a_linear_layer_is_excited_most_by_the_sign_of_its_weights():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 5, 2))
    config = dataclasses.replace(PIXELS, iterations=80, ema=0.0, lr=0.02)
    best = maximise_activation(net, "1", 1, shape=(3, 6, 5), config=config)
    assert torch.equal(best.flatten(), (net[1].weight[1] > 0).float())


def test_a_network_excites_a_channel_more_than_chance():
    net = ready()
    best = maximise_activation(net, "1", 3, shape=(3, 16, 12), config=QUICK)
    with torch.no_grad():
        excited, chance = (net[:2].eval()(x)[:, 3].mean() for x in (best, torch.rand(1, 3, 16, 12)))
    assert best.shape == (1, 3, 16, 12)
    assert excited > chance + 0.1


def test_works_under_inference_mode():
    with torch.inference_mode():
        target = images()
    net = nn.Sequential(nn.Conv2d(3, 3, 1))
    with torch.inference_mode():
        assert invert_features(net, "0", target, config=BRIEF).shape == target.shape
        assert maximise_activation(net, "0", 0, shape=(3, 8, 8), config=BRIEF).shape == (1, 3, 8, 8)


def test_what_cannot_be_inverted_is_refused():
    net, target = ready(), images()
    with pytest.raises(ValueError, match="layer must be one of 0, 1, 2, 3, 4, 5, got 'conv5'"):
        invert_features(net, "conv5", target, config=BRIEF)
    with pytest.raises(ValueError, match=r"target must have the shape of the layer's features, \(B, 6, 7, 5\), got"):
        invert_features(net, "2", torch.zeros(2, 5, 7, 5), shape=(3, 16, 12), config=BRIEF)
    with pytest.raises(ValueError, match="target must have features other than 0 in every image"):
        invert_features(net, "2", torch.zeros(2, 6, 7, 5), shape=(3, 16, 12), config=BRIEF)
    with pytest.raises(ValueError, match=r"images must be within \[0, 1\]"):
        invert_features(net, "2", 2 * target + 1, config=BRIEF)
    assert net.training


def test_pixels_that_leave_the_range_are_shown_as_they_are_returned():
    """Two pixels whose mean is to be 0.75, one of them held at 1 by its features: the other must be at 0.5."""

    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert ((x >= 0) & (x <= 1)).all()
            return torch.cat([3 * x[..., :1].flatten(1), x.flatten(1).mean(1, keepdim=True)], 1)

    target = torch.tensor([3.3, 0.75])[None]
    config = dataclasses.replace(PIXELS, iterations=300)
    result = invert_features(nn.Sequential(Seen()), "0", target, shape=(1, 1, 2), config=config)
    torch.testing.assert_close(result.flatten(), torch.tensor([1.0, 0.5]), atol=0.02, rtol=0)
    assert maximise_activation(nn.Sequential(Seen()), "0", 1, shape=(1, 1, 2), config=config).flatten().tolist() == [
        1,
        1,
    ]


@pytest.mark.parametrize("shape", [(3, 16), (3, 0, 12), (3, 16.0, 12)])
def test_a_shape_that_no_image_has_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape must be three positive integers \(C, H, W\), got"):
        maximise_activation(ready(), "0", 0, shape=shape, config=BRIEF)


@pytest.mark.parametrize("channel", [6, -1, 1.0, True])
def test_a_channel_that_is_not_there_is_refused(channel):
    with pytest.raises(ValueError, match="channel must be one of the 6 of layer '0', 0 to 5, got"):
        maximise_activation(ready(), "0", channel, shape=(3, 16, 12), config=BRIEF)
