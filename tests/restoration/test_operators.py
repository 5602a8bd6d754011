"""The operators: Lanczos against Pillow, its definition and its adjoint; features against a forward pass."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dipdefense.restoration.operators import downsample, downsampling, feature_extractor, masking


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("factor", "height", "width"), [(2, 8, 24), (3, 9, 30), (4, 32, 4), (8, 64, 40)])
def test_lanczos_is_that_of_pillow(factor, height, width):
    image = images(1, 1, height, width, dtype=torch.float32)
    shown = Image.fromarray(image[0, 0].numpy()).resize((width // factor, height // factor), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(downsample(image, factor)[0, 0], np.asarray(shown), atol=2e-6)


@pytest.mark.parametrize("lobes", [2, 3])
@pytest.mark.parametrize(("factor", "height", "width"), [(2, 5, 7), (3, 1, 10), (5, 11, 4)])
def test_lanczos_of_any_size_by_its_definition(factor, height, width, lobes):
    image = images(1, 1, height, width)
    small = downsampling(factor, height, width, lobes=lobes, dtype=image.dtype)(image, torch.zeros(1))[0, 0]
    assert small.shape == (-(-height // factor), -(-width // factor))

    def weight(pixel: int, sample: int) -> float:
        t = (pixel + 0.5) / factor - (sample + 0.5)
        if abs(t) >= lobes:
            return 0.0
        if t == 0:
            return 1.0
        return lobes * np.sin(np.pi * t) * np.sin(np.pi * t / lobes) / (np.pi * t) ** 2

    for i in range(small.shape[0]):
        for j in range(small.shape[1]):
            w = np.array([[weight(y, i) * weight(x, j) for x in range(width)] for y in range(height)])
            assert small[i, j].item() == pytest.approx((w * image[0, 0].numpy()).sum() / w.sum(), abs=1e-12)


@pytest.mark.parametrize(("factor", "height", "width"), [(2, 6, 9), (3, 1, 10), (4, 32, 20)])
def test_gradient_is_the_adjoint(factor, height, width):
    degrade, index = downsampling(factor, height, width, dtype=torch.float64), torch.arange(2)
    x, y = images(2, 3, height, width).requires_grad_(), images(2, 3, -(-height // factor), -(-width // factor), seed=1)
    product = (degrade(x, index) * y).sum()
    adjoint = torch.autograd.grad(product, x)[0]  # A* y
    other = images(2, 3, height, width, seed=2)
    assert (degrade(other, index) * y).sum().item() == pytest.approx((other * adjoint).sum().item(), rel=1e-12)


def test_a_flat_image_stays_flat():
    torch.testing.assert_close(downsample(torch.full((1, 3, 7, 9), 0.3), 2), torch.full((1, 3, 4, 5), 0.3))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"factor": 1}, "factor must be an integer of at least 2, got 1"),
        ({"factor": 2.5}, "factor must be an integer of at least 2, got 2.5"),
        ({"lobes": 0}, "lobes must be an integer of at least 1, got 0"),
        ({"height": 0}, "height must be an integer of at least 1, got 0"),
        ({"width": True}, "width must be an integer of at least 1, got True"),
    ],
)
def test_bad_numbers_of_a_reduction_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        downsampling(**({"factor": 2, "height": 4, "width": 4} | numbers))


@pytest.mark.parametrize("many", [1, 3])
def test_a_mask_follows_its_images(many):
    mask, x = images(many, 1, 4, 5) < 0.5, images(2, 3, 4, 5)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(masking(mask)(x, index), x * mask[index if many > 1 else [0, 0]])


class Classifier(nn.Module):
    """A batch normalisation, a layer in place after another, one that is not called, one that gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(16, 5)
        self.recurrent = nn.GRU(5, 2)
        self.spare = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.body(self.norm(self.conv(x))).flatten(1))
        return self.recurrent(logits)[0]


def classifier() -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier().double()
        net.norm.running_mean.uniform_()
    return net


def test_features_of_any_layer_and_the_classifier_as_it_was():
    net, x = classifier(), images(2, 3, 8, 8)
    net.body.eval()  # a mixture of modes
    before = {name: module.training for name, module in net.named_modules()}
    with feature_extractor(net, "norm") as extract:
        features = extract(x)
        assert not net.training
        assert len(net.norm._forward_hooks) == 1
    normalised = nn.functional.batch_norm(
        net.conv(x), net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias
    )
    torch.testing.assert_close(features, normalised)
    assert features.min() < 0  # the layer in place that follows has not touched it
    with feature_extractor(net, "body.1") as extract:
        torch.testing.assert_close(extract(x), nn.functional.adaptive_avg_pool2d(normalised.relu(), 2))
    assert {name: module.training for name, module in net.named_modules()} == before
    assert not any(module._forward_hooks for module in net.modules())
    assert net(x).shape == (2, 2)


def test_a_gradient_reaches_the_images_through_a_layer():
    x = images(1, 3, 8, 8).requires_grad_()
    with feature_extractor(classifier(), "head") as extract:
        extract(x)[0, 1].backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_two_extractors_of_one_classifier_do_not_disturb_each_other():
    net, x = classifier(), images(1, 3, 8, 8)
    with feature_extractor(net, "conv") as early, feature_extractor(net, "head") as late:
        assert early(x).shape == (1, 4, 6, 6)
        assert late(x).shape == (1, 5)


def test_layers_without_features_are_refused_and_leave_the_classifier_as_it_was():
    net, x = classifier(), images(1, 3, 8, 8)
    known = "conv, norm, body, body.0, body.1, head, recurrent, spare"
    with pytest.raises(ValueError, match=f"layer must be one of {known}, got 'fc'"), feature_extractor(net, "fc"):
        pass
    with (
        pytest.raises(ValueError, match="layer must be one that a forward pass reaches, 'spare' is not called"),
        feature_extractor(net, "spare") as extract,
    ):
        extract(x)
    with (
        pytest.raises(TypeError, match="layer must be one whose output is a tensor, 'recurrent' gives tuple"),
        feature_extractor(net, "recurrent") as extract,
    ):
        extract(x)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
