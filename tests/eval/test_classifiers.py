"""Classifiers: their measured accuracy on real data, shortcuts by hand, every misfit of weights named."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import eval.digits_cnn
from eval.classifiers import (
    CLASSIFIERS,
    BasicBlock,
    CifarResNet,
    MnistLeNet,
    Normalize,
    load_classifier,
    read_weights,
    write_weights,
)
from eval.datasets import ImageDataset, load_dataset
from eval.digits_cnn import DigitsCNN, train_digits_cnn, trained_digits_cnn
from eval.intervals import wilson

NEED_WEIGHTS = [name for name in CLASSIFIERS if name != "digits_cnn"]
SIDES = {"digits_cnn": (1, 32), "mnist_lenet": (1, 28)}


def correct(classifier: nn.Module, dataset: ImageDataset, positions: range, batch_size: int = 250) -> int:
    with torch.no_grad():
        return sum(
            int((classifier(dataset.batch(batch)).argmax(1) == dataset.labels[list(batch)]).sum())
            for batch in (positions[i : i + batch_size] for i in range(0, len(positions), batch_size))
        )


def random_net(name: str, **sizes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return CLASSIFIERS[name](sizes.get("num_classes"))[0]


def save(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def digits_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache folder with a trained digits_cnn."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DIPDEFENSE_CACHE", str(folder))
        trained_digits_cnn()
    return folder


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_gives_differentiable_logits(name: str, tmp_path: Path) -> None:
    classifier = load_classifier(name, save(random_net(name), tmp_path / "w.pt"))
    channels, side = SIDES.get(name, (3, 32))
    images = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = classifier(images)
    assert logits.shape == (2, 10)
    assert not any(module.training for module in classifier.modules())
    logits.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NEED_WEIGHTS)
def test_num_classes(name: str, tmp_path: Path) -> None:
    classifier = load_classifier(name, save(random_net(name, num_classes=7), tmp_path / "w.pt"), num_classes=7)
    channels, side = SIDES.get(name, (3, 32))
    assert classifier(torch.rand(1, channels, side, side)).shape == (1, 7)


@pytest.mark.parametrize("spec", [*NEED_WEIGHTS, "torchvision:resnet18", "timm:resnet18"])
def test_random_weights_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"needs weights: random ones .* pass --weights"):
        load_classifier(spec)


def test_normalize_is_affine_and_has_no_weights() -> None:
    layer = Normalize((0.5, 0.25), (0.5, 0.25))
    black, white = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    assert torch.equal(torch.cat([layer(black), layer(white)]).flatten(1), torch.tensor([[-1.0, -1.0], [1.0, 3.0]]))
    assert layer.state_dict() == {}


def test_shortcut_pads_zero_channels_round_every_second_pixel() -> None:
    """With a zero residual a block is its shortcut: planes//4 zero channels on either side."""
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_parameters_are_those_of_the_paper(depth: int, millions: float) -> None:
    """He et al. (2016), table 6."""
    count = sum(parameter.numel() for parameter in CifarResNet(depth).parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_library_classifiers_normalise_first(library: str, tmp_path: Path) -> None:
    source = load_untrained(library)
    classifier = load_classifier(f"{library}:resnet18", save(source, tmp_path / "w.pt"))
    images = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(classifier(images), source.eval()(normalised), atol=1e-5)
    with pytest.raises(ValueError, match=r"fc\.weight in .*w\.pt must have the shape \(5, 512\), got \(1000, 512\)"):
        load_classifier(f"{library}:resnet18", tmp_path / "w.pt", num_classes=5)


def load_untrained(library: str) -> nn.Module:
    if library == "timm":
        import timm

        net: nn.Module = timm.create_model("resnet18", pretrained=False)
        return net
    import torchvision

    other: nn.Module = torchvision.models.resnet18(weights=None)
    return other


OWN = """
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Config:
    classes: int = 4


def build():
    return torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(12, Config().classes))


def number():
    return 3


constant = 3
"""


def test_own_classifier(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(OWN)
    classifier = load_classifier(f"{file}:build")
    assert classifier(torch.rand(2, 3, 2, 2)).shape == (2, 4)
    assert not classifier.training
    weights = {"2.weight": torch.zeros(4, 12), "2.bias": torch.arange(4.0)}
    torch.save(weights, tmp_path / "w.pt")
    classifier = load_classifier(f"{file}:build", tmp_path / "w.pt")
    assert classifier(torch.rand(1, 3, 2, 2)).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(TypeError, match=r"number of .*model\.py must return an nn\.Module, got int"):
        load_classifier(f"{file}:number")
    for name in ("absent", "constant", ""):
        with pytest.raises(ValueError, match=f"must define a function '{name}'"):
            load_classifier(f"{file}:{name}")
    with pytest.raises(FileNotFoundError, match=r"other\.py does not exist"):
        load_classifier(f"{tmp_path / 'other.py'}:build")
    with pytest.raises(ValueError, match="num_classes must be None for FILE"):
        load_classifier(f"{file}:build", num_classes=4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "resnet",
            r"spec must be one of digits_cnn, .*torchvision:NAME, timm:NAME, FILE\.py:FACTORY, got 'resnet'",
        ),
        ("torchvision:", "spec must be one of"),
        ("torchvision:resnet19", "torchvision: must name a classifier .*, got 'resnet19'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision: must name a classifier"),
        ("timm:resnet19", "timm: must name a model .*, got 'resnet19'"),
    ],
)
def test_unknown_specs_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_classifier(spec)


def test_num_classes_are_checked() -> None:
    with pytest.raises(ValueError, match="positive else, got 0"):
        load_classifier("mnist_lenet", num_classes=0)
    with pytest.raises(ValueError, match="num_classes of digits_cnn must be 10, got 9"):
        load_classifier("digits_cnn", num_classes=9)


def test_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"dipdefense\[timm\]"):
        load_classifier("timm:resnet18")


STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_weights_are_read_from_both_formats(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    save_file(STATE, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.pt"), STATE)
    assert same(read_weights(tmp_path / "w.safetensors"), STATE)


class Tied(nn.Sequential):
    """Two names of one weight, behind a first layer that the state dict includes."""

    def __init__(self) -> None:
        super().__init__(Normalize([0.5], [0.5]), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
        self[3].weight = self[2].weight


@pytest.mark.parametrize("name", [*CLASSIFIERS, "own"])
def test_written_weights_are_those_that_are_read(name: str, tmp_path: Path) -> None:
    path, spec = tmp_path / "w.safetensors", name
    if name == "own":
        (tmp_path / "own.py").write_text("from test_classifiers import Tied\n\ndef build():\n    return Tied()\n")
        spec = f"{tmp_path / 'own.py'}:build"
        classifier = load_classifier(spec)
    else:
        classifier = load_classifier(spec, save(random_net(name), tmp_path / "random.pt"))
    write_weights(classifier, path, spec, {"epochs": 2})
    assert same(load_classifier(spec, path).state_dict(), classifier.state_dict())
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["recipe"]) == {"epochs": 2}
    with pytest.raises(OSError, match="missing"):
        write_weights(classifier, tmp_path / "missing" / "w.safetensors", spec, {})


def test_wrappings_are_undone_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefixed = {f"module.{key}": value for key, value in STATE.items()}
    torch.save({"epoch": 3, "state_dict": prefixed}, tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, "eval.classifiers"):
        assert same(read_weights(tmp_path / "w.pt"), STATE)
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "taking the entry state_dict",
        "taking 'module.' off the keys",
    ]


class Executed:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_the_advice_to_execute_weights_is_not_passed_on(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"as torch.save\(net.state_dict\(\), FILE\) makes it: ") as refused:
        read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(refused.value)


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"got 'cifar_resnet21'; did you mean cifar_resnet"):
        load_classifier("cifar_resnet21")
    with pytest.raises(ValueError, match=r"got 'resnet19'; did you mean resnet1"):
        load_classifier("torchvision:resnet19")
    with pytest.raises(ValueError, match=r"made by torch.save\(torchvision.models.resnet18\(weights='DEFAULT'\)"):
        load_classifier("torchvision:resnet18")


@pytest.mark.parametrize("content", [{"a": Executed()}, nn.Linear(2, 2)])
def test_weights_are_never_executed(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is not a readable file of tensors"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_torn_weights_are_named(suffix: str, keep: int, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    torch.save(STATE, path) if suffix == "pt" else save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"w\.{suffix} is not a readable .*: \S+") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 3}, torch.ones(2)])
def test_other_contents_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt must hold a state dict"):
        read_weights(tmp_path / "w.pt")


def test_absent_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"w\.pt does not exist: expected a file of weights"):
        load_classifier("mnist_lenet", tmp_path / "w.pt")


def test_the_first_misfit_is_named(tmp_path: Path) -> None:
    state = MnistLeNet().state_dict()
    misfits = {
        r"must hold conv2\.bias, which is missing": {k: v for k, v in state.items() if k != "conv2.bias"},
        r"must hold the network's keys only, got extra": {**state, "extra": torch.ones(1)},
        r"linear2\.bias in .* must have the shape \(10,\), got \(9,\)": {
            **state,
            "linear2.bias": torch.ones(9),
        },
        r"must hold conv1\.weight, which is missing": {},
    }
    for message, weights in misfits.items():
        torch.save(weights, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=message):
            load_classifier("mnist_lenet", tmp_path / "w.pt")


def test_digits_cnn_reaches_98_percent(digits_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPDEFENSE_CACHE", str(digits_cache))
    digits = load_dataset("digits")
    assert correct(load_classifier("digits_cnn"), digits, range(len(digits))) / len(digits) >= 0.98


def test_digits_cnn_is_trained_once(digits_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPDEFENSE_CACHE", str(digits_cache))
    monkeypatch.setattr(eval.digits_cnn, "train_digits_cnn", lambda: pytest.fail("trained again"))
    load_classifier("digits_cnn")
    assert [file.suffix for file in digits_cache.iterdir()] == [".pt"]


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_torn_cache_is_trained_again(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DIPDEFENSE_CACHE", str(tmp_path))
    monkeypatch.setattr(eval.digits_cnn, "train_digits_cnn", DigitsCNN)
    first = trained_digits_cnn().state_dict()
    (file,) = tmp_path.iterdir()
    if content is None:  # whole, but of another network
        torch.save(STATE, file)
    else:
        file.write_bytes(content)
    again = trained_digits_cnn().state_dict()
    assert not same(first, again)
    assert "is torn, training again" in caplog.text
    assert same(torch.load(file, weights_only=True), again)


def test_training_is_repeatable_and_leaves_the_caller_alone() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        nets = [train_digits_cnn(epochs=1) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert same(nets[0].state_dict(), nets[1].state_dict())
    assert not any(parameter.is_inference() for parameter in nets[0].parameters())
    assert not nets[0].training


@pytest.mark.data
def test_resnet20_has_its_stated_accuracy(data: Path) -> None:
    """data/README.md measures 91.48 % on 4990 images; the interval of the first 500 holds it."""
    classifier = load_classifier("cifar_resnet20", data / "weights" / "cifar10_resnet20.pt")
    cifar = load_dataset("cifar10", data / "cifar10" / "test.npz")
    low, high = wilson(correct(classifier, cifar, range(500)), 500)
    assert low < 0.9148 < high


@pytest.mark.data
def test_lenet_has_its_stated_accuracy(data: Path) -> None:
    """data/README.md measures 98.89 % on 10000 images; every fifth is taken, as the first half is harder."""
    classifier = load_classifier("mnist_lenet", data / "weights" / "mnist_lenet5_clntrained.pt")
    low, high = wilson(correct(classifier, load_dataset("mnist", data / "mnist"), range(0, 10000, 5)), 2000)
    assert low < 0.9889 < high


@pytest.mark.data
def test_squeezenet_has_its_stated_accuracy(data: Path) -> None:
    """data/README.md measures 59 of the 100 photographs; decoders may differ by two."""
    weights = data / "weights" / "imagenet_squeezenet1_0.pt"
    classifier = load_classifier("torchvision:squeezenet1_0", weights)
    photographs = load_dataset("folder", data / "imagenet")
    assert abs(correct(classifier, photographs, range(100), batch_size=20) - 59) <= 2
