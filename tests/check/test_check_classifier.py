"""What cannot be defended is found, each kind by a real small module, and the right ones pass."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn
from torchvision.models import alexnet, inception_v3

from dipdefense import FitConfig, check_classifier, defend
from dipdefense.check.input_range import RANGES, accuracies, divergences, natural_images, variations
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

SHAPE = (3, 16, 16)
TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=2)


class Net(nn.Module):
    """A small classifier, or one with something wrong with it: `before` its layers, or `after` them."""

    def __init__(self, before=lambda x: x, after=lambda x: x, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, classes))
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(4 * self.layers(self.before(x)))


def names(net, shape=SHAPE, **keywords):
    return [fault.name for fault in check_classifier(net, shape, **keywords).faults]


def only(net, shape=SHAPE, **keywords):
    (fault,) = check_classifier(net, shape, **keywords).faults
    return fault


def test_a_right_classifier_has_no_fault():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(Net().eval()) == []
        assert names(Net().double().eval()) == []  # and images of its own dtype
        assert names(Net(after=lambda x: x.log_softmax(1)).eval()) == []  # log-probabilities are logits
        defended = defend(Net(), TINY, check=SHAPE)
    assert defended(natural_images(2, SHAPE)).shape == (2, 5)


class Output:
    def __init__(self, logits):
        self.logits = logits


class Fixed(nn.Module):
    """Built for a batch of 4, as `x.view(4, -1)` does."""

    def __init__(self, n=4):
        super().__init__()
        self.n = n
        self.linear = nn.Linear(3 * 16 * 16, 5)

    def forward(self, x):
        return self.linear(x.view(self.n, 3 * 16 * 16))


class Rounded(torch.autograd.Function):
    """A layer that has no backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.mul(255).round() / 255

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no backward of rounding")


class Pooled(nn.Module):
    """Wide views: the rows of two images become those of one."""

    def forward(self, x):
        return x.reshape(-1, 6)


@pytest.mark.parametrize(
    ("net", "name", "message"),
    [
        (Net(after=Output), "output", r"got Output: wrap it, dipdefense.adapters.huggingface.Logits\(classifier\)"),
        (Net(after=lambda x: (x, x)), "output", "got tuple: wrap it in a module that returns the element"),
        (Net(after=lambda x: {"scores": x}), "output", "got dict: .* one of its entries scores"),
        (Net(after=lambda x: x.numpy()), "output", "got ndarray: return the tensor of logits alone"),
        (Net(after=lambda x: x[..., None, None]), "output", r"got shape \(3, 5, 1, 1\): pool or flatten"),
        (Net(after=lambda x: x.argmax(1)), "output", r"got shape \(3,\): return one column for each class"),
        (Net(after=lambda x: x[:, :1]), "output", r"at least 2 logits an image, got shape \(3, 1\)"),
        (Net(after=lambda x: x.round().long()), "output", "floating logits, got torch.int64"),
        (Net(after=lambda x: x / 0), "output", "finite logits"),
        (Net(after=lambda x: x.softmax(1)), "softmax", "take its softmax off"),
        (Fixed(), "batch", r"takes 4 and not 3: x.flatten\(1\)"),
        (Pooled(), "batch", r"takes 3 images for logits of shape \(384, 6\)"),
        (Net(after=torch.squeeze, classes=5), "batch", r"takes 1 image for an output of \(5,\)"),
        (Net(after=lambda x: x if len(x) > 1 else x[5]), "batch", "takes 3 and not 1"),
        (Net(before=lambda x: (x - x.mean(0)) * 5), "batch", "depend on the other images of the batch"),
        (Net().half(), "input", r"must take float32 images \(3, 3, 16, 16\).*got RuntimeError"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), "input", "resize inside the classifier"),
        (Net(before=lambda x: x.sub_(0.5)), "input", "it writes to them"),
        (nn.Bilinear(3, 3, 5), "input", "got TypeError: .*missing 1 required positional argument"),
    ],
)
def test_what_cannot_work_is_a_fault(net, name, message):
    fault = only(net.eval())
    assert fault.certain
    assert fault.name == name
    assert re.search(message, fault.message), fault.message
    with pytest.raises(ValueError, match=message):
        defend(net.eval(), check=SHAPE)


@pytest.mark.parametrize(
    ("net", "name", "message"),
    [
        (Net(after=torch.sigmoid), "sigmoid", "if it ends in a sigmoid"),
        (Net(after=lambda x: x + torch.randn_like(x)), "random", "got others at the second call"),
        (Net(before=Rounded.apply), "gradient", "got RuntimeError: no backward of rounding"),
        (Net(after=torch.detach), "gradient", "from its logits to the images, got none"),
        (Net(before=lambda x: (x * 255).round() / 255), "gradient", "got zeros"),
        (Net(before=lambda x: torch.where(x > 2, x, x / 0 * 0).nan_to_num() + x), "gradient", "got NaN"),
    ],
)
def test_what_looks_wrong_is_a_doubt(net, name, message):
    fault = only(net.eval())
    assert not fault.certain
    assert fault.name == name
    with pytest.warns(UserWarning, match=message):
        defend(net.eval(), check=SHAPE)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(0.9)])
def test_training_mode_is_found_and_left(layer):
    net = nn.Sequential(layer, Net())
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    fault = only(net)
    assert fault.name == "training"
    assert "call classifier.eval()" in fault.message
    assert net.training
    assert layer.training
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert names(net.eval()) == []


def test_training_mode_that_changes_nothing_is_no_fault():
    assert names(Net().train()) == []


def test_another_output_in_training_mode_is_found():
    net = inception_v3(weights=None, init_weights=False, num_classes=10)
    assert "training" in names(net, (3, 96, 96))


class Scaled(nn.Module):
    """Trained on another range: `mapping` undoes it first."""

    def __init__(self, net, mapping):
        super().__init__()
        self.net, self.mapping = net, mapping

    def forward(self, x):
        return self.net(self.mapping(x))


UNDONE = {
    "images in [0, 255]": lambda x: x / 255,
    "images in [-1, 1]": lambda x: (x + 1) / 2,
}


@pytest.fixture(scope="module")
def digits_cnn():
    return load_classifier("digits_cnn")


@pytest.mark.parametrize("name", UNDONE)
def test_the_range_is_told_by_the_first_batch_norm(digits_cnn, name):
    """It was trained on digits, and the synthetic images tell it all the same."""
    assert names(digits_cnn, (1, 32, 32)) == []
    fault = only(Scaled(digits_cnn, UNDONE[name]).eval(), (1, 32, 32))
    assert (fault.name, fault.certain) == ("range", False)
    assert f"those of {name}" in fault.message
    assert "make its scaling or normalisation the first layer" in fault.message


@pytest.mark.parametrize("name", UNDONE)
def test_labels_tell_the_range_for_certain(digits_cnn, name):
    digits = load_dataset("digits")
    examples = {"images": digits.batch(range(100)), "labels": digits.labels[:100]}
    assert names(digits_cnn, None, **examples) == []
    fault = only(Scaled(digits_cnn, UNDONE[name]).eval(), None, **examples)
    assert (fault.name, fault.certain) == ("range", True)
    assert f"% of {name}" in fault.message
    right = accuracies(digits_cnn, *examples.values())
    assert max(right, key=right.get) == "images in [0, 1]"
    assert right["images in [0, 1]"] > 0.9


def test_bytes_look_alike_to_what_expects_them():
    """Without batch normalisation, a doubt stands only where the logits hardly move."""
    net = Scaled(Net(), lambda x: x / 255).eval()
    fault = only(net)
    assert (fault.name, fault.certain) == ("range", False)
    assert "they all look alike to it" in fault.message
    spread = variations(net, natural_images(3, SHAPE))
    assert spread["images in [0, 1]"] < 0.03 < spread["images in [0, 255]"]


def test_random_weights_can_raise_a_false_doubt():
    """Documented: an untrained AlexNet looks like one that expects bytes."""
    torch.manual_seed(0)
    assert names(alexnet(weights=None).eval(), (3, 96, 96)) == ["range"]


def test_a_batch_norm_that_never_trained_says_nothing():
    net = nn.Sequential(nn.BatchNorm2d(3), Net()).eval()
    assert divergences(net, natural_images(3, SHAPE)) == {}
    assert divergences(Net(), natural_images(3, SHAPE)) == {}
    assert not net[0]._forward_pre_hooks


def test_the_divergence_is_that_of_gaussians():
    """Against torch's own, at one channel."""
    norm = nn.BatchNorm2d(1).eval()
    norm.running_mean[:], norm.running_var[:] = 0.3, 0.2
    x = natural_images(4, (1, 16, 16))
    measured = torch.distributions.Normal(x.mean(), x.std())
    expected = torch.distributions.kl_divergence(measured, torch.distributions.Normal(0.3, 0.2**0.5))
    assert divergences(norm, x)["images in [0, 1]"] == pytest.approx(float(expected), rel=1e-4)


def strict(x):
    """A classifier that checks its range itself."""
    if x.min() < 0 or x.max() > 1:
        raise ValueError("not in [0, 1]")
    return x


def test_a_classifier_that_refuses_other_ranges_passes():
    assert names(Net(before=strict).eval()) == []


def test_natural_images_have_the_spectrum_of_photographs():
    x = natural_images(8, (3, 64, 64))
    assert x.shape == (8, 3, 64, 64)
    assert (x >= 0).all()
    assert (x <= 1).all()
    power = torch.fft.rfft2(x - x.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))
    fall = float((power[2, 0] + power[0, 2]) / (power[16, 0] + power[0, 16]))
    assert 16 < fall < 256  # 8 times the frequency, a 64th of the power; clipping and 48 lines blur it
    assert torch.equal(x, natural_images(8, (3, 64, 64)))


def test_shape_is_found():
    assert check_classifier(Net().eval()).shape == SHAPE
    assert check_classifier(load_classifier("digits_cnn")).shape == (1, 32, 32)


@pytest.mark.parametrize(("stride", "side"), [(1, 32), (2, 224)])
def test_a_network_that_begins_with_a_stride_is_checked_with_photographs(stride, side):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 4, 3, stride)
    net = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    assert check_classifier(net).shape == (3, side, side)
    fixed = nn.Sequential(stem, nn.Flatten(), nn.Linear(4 * (30 // stride) ** 2, 5)).eval()
    assert check_classifier(fixed).shape == (3, 32, 32)
    assert check_classifier(Fixed(16).eval()).faults[0].name == "batch"
    with pytest.raises(
        ValueError, match=r"shape must be given .* 384 pixels a side; the last attempt raised RuntimeError"
    ):
        check_classifier(nn.Linear(7, 5))


def test_defend_finds_the_shape():
    assert defend(Net(), TINY, check=True).classifier.training
    with pytest.raises(ValueError, match=r"take its softmax off, .*; classifier must judge each image on its own"):
        defend(Net(before=lambda x: (x - x.mean(0)) * 5, after=lambda x: x.softmax(1)), check=True)


IMAGES = natural_images(4, SHAPE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check_classifier(torch.sin), TypeError, "classifier must be a torch.nn.Module, got builtin"),
        (lambda: check_classifier(Net(), (16, 16)), ValueError, r"shape must be \(C, H, W\), .*got \(16, 16\)"),
        (lambda: check_classifier(Net(), (3, 0, 16)), ValueError, "three positive integers"),
        (lambda: check_classifier(Net(), images=IMAGES), ValueError, "must be given together, got images"),
        (lambda: check_classifier(Net(), labels=torch.zeros(4)), ValueError, "must be given together, got labels"),
        (lambda: check_classifier(Net(), images=IMAGES, labels=torch.zeros(3)), ValueError, r"got shape \(3,\)"),
        (lambda: check_classifier(Net(), images=IMAGES * 9, labels=torch.zeros(4)), ValueError, r"within \[0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.data
def test_ranges_of_real_networks(data):
    """Of the four classifiers with weights at hand: told by batch normalisation where there is one, never wrongly."""
    net = load_classifier("cifar_resnet20", data / "weights/cifar10_resnet20.pt")
    x = natural_images(3, (3, 32, 32))
    for wrong, best in (
        (net, 0),
        (Scaled(net, UNDONE["images in [0, 255]"]), 1),
        (Scaled(net, UNDONE["images in [-1, 1]"]), 2),
        (net[1], 3),
    ):
        far = divergences(wrong, x)
        assert min(far, key=far.get) == list(RANGES)[best]
    assert names(net, (3, 32, 32)) == []
    for wrong in (net[1], *(Scaled(net, undone).eval() for undone in UNDONE.values())):
        assert names(wrong, (3, 32, 32)) == ["range"]
    squeezenet = load_classifier("torchvision:squeezenet1_0", data / "weights/imagenet_squeezenet1_0.pt")
    lenet = load_classifier("mnist_lenet", data / "weights/mnist_lenet5_clntrained.pt")
    for right, shape in ((squeezenet, (3, 64, 64)), (lenet, (1, 28, 28))):
        assert names(right, shape) == []
        assert names(Scaled(right, UNDONE["images in [0, 255]"]).eval(), shape) == ["range"]
    assert names(squeezenet[1], (3, 64, 64)) == []  # a missing normalisation is not told without batch normalisation


@pytest.mark.data
def test_labels_tell_a_missing_normalisation(data):
    net = load_classifier("cifar_resnet20", data / "weights/cifar10_resnet20.pt")
    cifar = load_dataset("cifar10", data / "cifar10/test.npz")
    examples = {"images": cifar.batch(range(64)), "labels": cifar.labels[:64]}
    assert names(net, None, **examples) == []
    fault = only(net[1], None, **examples)
    assert fault.certain


def test_a_classifier_of_one_size_has_no_fault():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 10)).eval()
    with warnings.catch_warnings(action="error"):
        assert names(net, (3, 48, 48)) == []
        defended = defend(net, check=(3, 48, 48))
    with pytest.warns(UserWarning, match="images of 32x32, which the view 'small_mirror' shows it"):
        defended.plan(torch.zeros(1, 3, 48, 48))
