"""The architectures: published size, free choices, and a stack that equals its members."""

import pytest
import torch
from torch.func import functional_call

from dipdefense.fitting.networks import ARCHITECTURES, SkipNet

SMALL = {"autoencoder": {"channels": [4, 8]}, "unet": {"channels": [4, 8]}, "skip": {"channels": [20, 8]}}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_published_parameter_count():
    net = SkipNet(32, 3, channels=[128] * 5, skip_channels=4)
    assert sum(p.numel() for p in net.parameters()) == 2_217_831


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("downsampling", ["stride", "max", "average"])
@pytest.mark.parametrize("padding", ["reflection", "zero"])
def test_every_choice_gives_an_image_and_a_gradient(architecture, upsampling, downsampling, padding):
    net = ARCHITECTURES[architecture](
        3, 2, upsampling=upsampling, downsampling=downsampling, padding=padding, **SMALL[architecture]
    )
    image = net(torch.rand(2, 3, 16, 24, generator=generator()))
    assert image.shape == (2, 2, 16, 24)
    assert ((image > 0) & (image < 1)).all()
    image.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shared", [True, False])
def test_a_stack_of_networks_equals_each_alone(architecture, shared):
    nets = [ARCHITECTURES[architecture](17, 3, **SMALL[architecture]).double() for _ in range(3)]
    z = torch.rand(1 if shared else 3, 17, 16, 16, generator=generator(), dtype=torch.float64)
    stacked = {
        name: torch.stack([dict(net.named_parameters())[name] for net in nets])
        for name, _ in nets[0].named_parameters()
    }
    together = functional_call(nets[0], stacked, (z,))
    for i, net in enumerate(nets):
        torch.testing.assert_close(together[i], net(z[:1] if shared else z[i : i + 1])[0], rtol=1e-10, atol=1e-12)


def test_images_of_a_batch_never_meet():
    net = SkipNet(3, 3, channels=[4, 4])
    z = torch.rand(2, 3, 8, 8, generator=generator())
    torch.testing.assert_close(net(z)[:1], net(z[:1]))


@pytest.mark.parametrize("skip_channels", [[0, 0, 0, 4, 4], [4, 0, 2, 0, 0], 0])
def test_any_scale_may_go_without_skip(skip_channels):
    net = SkipNet(3, 3, channels=[4] * 5, skip_channels=skip_channels)
    assert net(torch.rand(1, 3, 64, 64, generator=generator())).shape == (1, 3, 64, 64)


def test_kernel_sizes_reach_their_branches():
    net = SkipNet(3, 3, channels=[4, 4], skip_channels=2, kernel_down=[3, 5], kernel_up=[7, 3], kernel_skip=3)
    shapes = {name: tuple(p.shape[-2:]) for name, p in net.named_parameters() if p.dim() == 4}
    assert shapes["down.0.0.conv.weight"] == (3, 3)
    assert shapes["down.1.1.conv.weight"] == (5, 5)
    assert shapes["up.0.0.conv.weight"] == (7, 7)
    assert shapes["skip.1.conv.weight"] == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": []}, "channels must be a list of positive integers"),
        ({"channels": [4, 0]}, "channels must be a list of positive integers"),
        ({"channels": 8}, "channels must be a list of positive integers, one for each scale, got 8"),
        ({"channels": [8.5]}, "channels must be a list of positive integers"),
        ({"channels": "ab"}, "channels must be a list of positive integers"),
        ({"skip_channels": [4]}, "skip_channels must be 0 or more, one number or 5 of them"),
        ({"skip_channels": -1}, "skip_channels must be 0 or more"),
        ({"kernel_down": 4}, "kernel_down must be odd, got 4"),
        ({"kernel_up": [3, 3]}, "kernel_up must be 1 or more"),
        ({"upsampling": "cubic"}, "upsampling must be one of bilinear, nearest, got 'cubic'"),
        ({"downsampling": "lanczos"}, "downsampling must be one of stride, max, average"),
        ({"padding": "wrap"}, "padding must be one of reflection, zero"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SkipNet(3, 3, **options)
