"""A batch over several devices gives what one gives."""

import threading

import pytest
import torch
from torch import nn

from dipdefense import FitConfig, OnDevices, Purifier, defend

TINY = FitConfig(architecture_options={"channels": [4, 4], "skip_channels": 0}, input_channels=4, iterations=5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def images():
    """float64, in which the rounding of other batch sizes does not show."""
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def defended():
    return defend(Net().double().eval(), TINY)


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_the_result_is_that_of_one(defended, images, number):
    spread = OnDevices(defended, ["cpu"] * number)
    torch.testing.assert_close(spread(images), defended(images))
    torch.testing.assert_close(OnDevices(Purifier(TINY), ["cpu"] * number)(images), Purifier(TINY)(images))


def test_gradients_reach_the_images(defended, images):
    found, wanted = images.clone().requires_grad_(), images.clone().requires_grad_()
    OnDevices(defended, ["cpu", "cpu"])(found).square().sum().backward()
    defended(wanted).square().sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad)
    assert found.grad.any()


def test_modes_are_the_callers(images):
    spread = OnDevices(defend(Net().double().eval(), TINY), ["cpu", "cpu"])
    assert spread(images).requires_grad
    with torch.no_grad():
        assert not spread(images).requires_grad
    with torch.inference_mode():
        assert spread(images).is_inference()


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_run_at_once_and_threads_are_left(images, threads):
    both = threading.Barrier(2, timeout=20)

    class Meet(nn.Module):
        def forward(self, x):
            both.wait()  # breaks unless the other part is here too
            return x.flatten(1)

        def __deepcopy__(self, memo):
            return self

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(OnDevices(Meet(), ["cpu", "cpu"])(images), images.flatten(1))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_new_weights_are_seen(defended, images):
    spread = OnDevices(defended, ["cpu", "cpu"])
    before = spread(images)
    assert list(spread.state_dict()) == list(Net().state_dict())
    spread.load_state_dict({key: value * 2 for key, value in spread.state_dict().items()})
    assert not torch.allclose(spread(images), before)
    torch.testing.assert_close(spread(images), defended(images))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: OnDevices(torch.sin, ["cpu"]), TypeError, "classifier must be a torch.nn.Module, got builtin"),
        (lambda: OnDevices(Net(), []), ValueError, "devices must be a list of at least one device"),
        (lambda: OnDevices(Net(), "cpu"), ValueError, "devices must be a list of at least one device"),
        (lambda: OnDevices(Net(), ["gpu:0"]), ValueError, r"devices must be known to torch, .* got \['gpu:0'\]"),
        (lambda: OnDevices(defend(Net(), TINY), ["cpu"] * 2)(torch.full((4, 3, 8, 8), 2.0)), ValueError, "within"),
    ],
)
def test_what_is_wrong_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.gpu
def test_the_result_is_that_of_one_on_a_gpu(defended, images):
    gpu = defended.to("cuda")
    expected = gpu(images.cuda()).cpu()
    torch.testing.assert_close(OnDevices(gpu, ["cuda:0", "cuda:0"])(images), expected, rtol=1e-6, atol=1e-6)
