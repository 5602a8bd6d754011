"""The layers, alone and stacked, against torch's own operators in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dipdefense.fitting import layers
from dipdefense.fitting.layers import (
    BROAD,
    FEW,
    FOLDED,
    PADDINGS,
    UPSAMPLINGS,
    Conv,
    Doubled,
    Norm,
    reflect,
    repeat,
    upsample,
)
from dipdefense.fitting.networks import ARCHITECTURES

PAD = {"reflection": "reflect", "zero": "constant"}  # our names -> those of F.pad
STACKS = [  # networks, batch size of each part
    (1, (1,)),
    (1, (1, 1)),
    (3, (3,)),
    (3, (1,)),
    (3, (3, 3)),
    (3, (1, 1)),
    (3, (1, 3)),
    (3, (3, 1)),
]
TINY = {
    "autoencoder": {"channels": [5, 2]},
    "unet": {"channels": [5, 2]},
    "skip": {"channels": [5, 2], "skip_channels": 2},
}
REFLECTIONS = pytest.mark.parametrize(
    ("width", "size"),
    [(p, (p + down, p + right)) for p in (1, 2, 3) for down, right in ((1, 1), (1, 4), (3, 1), (3, 2))],
)  # p + 1 is the smallest side


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers whose gradient is asked for."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def stacked(layer: nn.Module, weight: Tensor, bias: Tensor, *parts: Tensor) -> Tensor:
    """The layer's output with the given parameters in place of its own."""
    output: Tensor = functional_call(layer, {"weight": weight, "bias": bias}, parts)
    return output


def assert_same(actual: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Equal values, and equal gradients of a random linear function of them."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    direction = rand(*expected.shape, seed=9).detach()
    gradients = (torch.autograd.grad(output, inputs, direction) for output in (actual, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("inputs", [1, 3, 4, 8, 12, 17])
@pytest.mark.parametrize(("networks", "batches"), STACKS)
def test_a_stacked_conv_equals_one_convolution_an_image(
    kernel, stride, padding, inputs, networks, batches, monkeypatch
):
    """Of the parts concatenated; a part of batch size 1 is every network's. The second part has five channels.

    A single image has two ways: that of a small and that of a large map.
    """
    channels = [inputs, 5][: len(batches)]
    parts = [rand(B, C, 6, 5, seed=C) for B, C in zip(batches, channels, strict=True)]
    weight, bias = rand(networks, 2, sum(channels), kernel, kernel, seed=1), rand(networks, 2, seed=2)
    conv = Conv(sum(channels), 2, kernel, stride, padding)
    for few in (FEW, 0) if networks == 1 else (FEW,):
        monkeypatch.setattr(layers, "FEW", few)
        x = torch.cat([part.expand(networks, -1, -1, -1) for part in parts], 1)
        x = F.pad(x, (kernel // 2,) * 4, PAD[padding])
        alone = [F.conv2d(x[i : i + 1], weight[i], bias[i], stride) for i in range(networks)]
        assert_same(stacked(conv, weight, bias, *parts), torch.cat(alone), *parts, weight, bias)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels", [(4,), (4, 5), (1, 3, 5)])
def test_a_conv_with_its_own_parameters_is_that_of_torch(kernel, stride, padding, channels):
    conv = Conv(sum(channels), 2, kernel, stride, padding).double()
    plain = nn.Conv2d(sum(channels), 2, kernel, stride, kernel // 2, padding_mode=PADDINGS[padding]).double()
    plain.load_state_dict(conv.state_dict())
    parts = [rand(2, C, 6, 5, seed=C) for C in channels]
    assert_same(conv(*parts), plain(torch.cat(parts, 1)), *parts)
    by_conv, by_plain = (
        torch.autograd.grad(output.sum(), tuple(layer.parameters()))
        for layer, output in ((conv, conv(*parts)), (plain, plain(torch.cat(parts, 1))))
    )
    torch.testing.assert_close(by_conv, by_plain, rtol=1e-10, atol=1e-10)


def test_conv_reflects_at_the_border():
    conv = Conv(1, 1, 3)
    with torch.no_grad():
        conv.weight.fill_(1 / 9)
        conv.bias.zero_()  # type: ignore[union-attr]
    x = torch.arange(9.0).view(1, 1, 3, 3)
    corner = (4 + 3 + 4 + 1 + 0 + 1 + 4 + 3 + 4) / 9  # 0 and its reflected neighbours
    assert conv(x)[0, 0, 0, 0].item() == pytest.approx(corner)


@pytest.mark.parametrize("slope", [1.0, 0.2])
@pytest.mark.parametrize("rows", [(), (3,)])
def test_norm_is_instance_norm_scaled_shifted_and_rectified(slope, rows):
    x, weight, bias = rand(3, 5, 6, 7), rand(*rows, 5, seed=1), rand(*rows, 5, seed=2)
    before = x.detach().clone()
    actual = stacked(Norm(5, slope), weight, bias, x)
    expected = weight[..., None, None] * F.instance_norm(x) + bias[..., None, None]
    assert_same(actual, F.leaky_relu(expected, slope), x, weight, bias)
    assert torch.equal(x, before)  # the rectifier works in place: on its own tensor


@pytest.mark.parametrize("rows", [(), (3,)])
def test_the_norm_of_more_maps_than_cuda_has_groups_is_the_same(rows):
    weight, bias, x = rand(*rows, 5, seed=1), rand(*rows, 5, seed=2), rand(3, 5, 4, 6)
    norm = Norm(5)
    norm._parameters.update(weight=weight, bias=bias)
    assert_same(norm._normalised(x), norm._normalised_in_groups(x).view_as(x), x, weight, bias)


def test_a_new_norm_is_instance_norm():
    x = rand(3, 5, 6, 7)
    assert_same(Norm(5).double()(x), F.instance_norm(x), x)


@pytest.mark.parametrize("mode", UPSAMPLINGS)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 4), (5, 3), (BROAD, 2), (BROAD - 1, BROAD), (BROAD + 1, 2), (2, BROAD + 1)]
)
def test_upsampling_is_that_of_torch_at_every_size(mode, size):
    x = rand(2, 3, *size)
    y = upsample(x, mode)
    assert isinstance(y, Doubled) == (mode == "nearest")
    assert_same(y.whole() if isinstance(y, Doubled) else y, F.interpolate(x, scale_factor=2, mode=mode), x)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("inputs", [1, 8, 12])
@pytest.mark.parametrize("size", [(14, 14), (2, 98), (13, 15), (4, 4)])  # the first two are folded
@pytest.mark.parametrize(("networks", "rows"), [(1, 1), (3, 3), (3, 1)])
def test_a_conv_of_a_doubling_is_that_of_the_map_itself(
    kernel, stride, padding, inputs, size, networks, rows, monkeypatch
):
    """Alone, and beside a part with three channels and the bias; as where the map of a single image is large."""
    monkeypatch.setattr(layers, "FEW", 0)
    conv = Conv(inputs, 2, kernel, stride, padding)
    bias, x = rand(networks, 2), rand(rows, inputs, *size, seed=1)
    weight = rand(networks, 2, inputs, kernel, kernel, seed=2)
    assert conv._folds(x) == (kernel == 3 and stride == 1 and size[0] * size[1] >= FOLDED)
    whole = F.interpolate(x, scale_factor=2)
    assert_same(stacked(conv, weight, bias, Doubled(x)), stacked(conv, weight, bias, whole), x, weight, bias)
    other = rand(rows, 3, *whole.shape[2:], seed=3)
    both = rand(networks, 2, 3 + inputs, kernel, kernel, seed=4)
    assert_same(
        stacked(conv, both, bias, other, Doubled(x)), stacked(conv, both, bias, other, whole), x, other, both, bias
    )


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_conv_of_a_doubling_differentiates_twice(padding, monkeypatch):
    monkeypatch.setattr(layers, "FEW", 0)
    conv, x, weight = Conv(1, 1, 3, 1, padding), rand(1, 1, 14, 14), rand(1, 1, 1, 3, 3, seed=1)
    direction = rand(1, 1, 28, 28, seed=2).detach()

    def total(x: Tensor, weight: Tensor) -> Tensor:
        return (direction * stacked(conv, weight, torch.zeros(1, 1).double(), Doubled(x)).square()).sum()

    assert torch.autograd.gradcheck(total, (x, weight))
    assert torch.autograd.gradgradcheck(total, (x, weight), fast_mode=True)


def test_the_norm_of_a_doubling_is_that_of_the_map_itself():
    x = rand(2, 3, 4, 5)
    norm = Norm(3, slope=0.2).double()
    normed = norm(Doubled(x))
    assert isinstance(normed, Doubled)
    assert_same(normed.whole(), norm(F.interpolate(x, scale_factor=2)), x, norm.weight, norm.bias)


@REFLECTIONS
def test_reflection_is_that_of_torch(width, size):
    x = rand(2, 3, *size)
    assert_same(reflect(x, width), F.pad(x, (width,) * 4, "reflect"), x)


@REFLECTIONS
def test_the_gradient_of_reflection_is_its_adjoint(width, size):
    """<reflect(x), y> = <x, reflect^T y>, and the gradient was taken at another x."""
    x, other = rand(2, 3, *size), rand(2, 3, *size, seed=1)
    y = rand(*reflect(x, width).shape, seed=2)
    (adjoint,) = torch.autograd.grad(reflect(other, width), other, y)
    torch.testing.assert_close((reflect(x, width) * y).sum(), (x * adjoint).sum(), rtol=1e-12, atol=1e-12)


@REFLECTIONS
def test_reflection_differentiates_twice(width, size):
    x = rand(1, 1, *size)
    assert torch.autograd.gradcheck(reflect, (x, width))
    assert torch.autograd.gradgradcheck(reflect, (x, width))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_repetition_is_that_of_torch_and_differentiates_twice(size):
    x = rand(2, 3, *size)
    assert_same(repeat(x), F.pad(x, (1, 1, 1, 1), "replicate"), x)
    assert torch.autograd.gradgradcheck(repeat, (x,), fast_mode=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("networks", "rows"), [(1, 1), (2, 1), (2, 2)])
def test_the_gradient_of_a_stack_can_be_differentiated(architecture, upsampling, padding, networks, rows):
    """A Hessian-vector product, which an attack through the fit needs, against differences of gradients."""
    net = ARCHITECTURES[architecture](2, 1, upsampling=upsampling, padding=padding, **TINY[architecture])
    theta = {name: 0.5 * rand(networks, *p.shape, seed=i) for i, (name, p) in enumerate(net.named_parameters())}
    z, observed = rand(rows, 2, 8, 8, seed=100), rand(networks, 1, 8, 8, seed=101)
    v = [rand(*p.shape, seed=200 + i).detach() for i, p in enumerate(theta.values())]

    def gradients(along: float) -> tuple[Tensor, ...]:
        """Of the loss at theta + along * v, with respect to theta, z and the observed images."""
        moved = [p + along * d for p, d in zip(theta.values(), v, strict=True)]
        loss = (functional_call(net, dict(zip(theta, moved, strict=True)), (z,)) - observed).square().sum()
        return torch.autograd.grad(loss, (*moved, z, observed), create_graph=True)

    slope = sum((g * d).sum() for g, d in zip(gradients(0.0), v, strict=False))  # <dloss/dtheta, v>
    products = torch.autograd.grad(slope, (*theta.values(), z, observed))
    h = 1e-6
    for product, after, before in zip(products, gradients(h), gradients(-h), strict=True):
        torch.testing.assert_close(product, (after - before) / (2 * h), rtol=1e-5, atol=1e-6)
