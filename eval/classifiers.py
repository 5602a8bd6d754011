"""Undefended classifiers: images (B, C, H, W) in [0, 1] to logits (B, K), normalisation included."""

import importlib.util
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dipdefense.arguments import did_you_mean
from dipdefense.whole_file import replacing
from eval.digits_cnn import TORN, DigitsCNN, trained_digits_cnn

__all__ = ["CLASSIFIERS", "CifarResNet", "MnistLeNet", "Normalize", "load_classifier", "read_weights", "write_weights"]

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(images - mean) / std for each channel, as a layer, so that attack budgets stay in pixel units."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images.

        Raises:
            ValueError: the images have another number of channels than the mean.
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(f"images must have {len(self.mean)} channels for this classifier, got {images.shape[1]}")
        return (images - self.mean) / self.std


class MnistLeNet(nn.Sequential):
    """advertorch's LeNet for MNIST, (B, 1, 28, 28), without normalisation."""

    def __init__(self, num_classes: int = 10) -> None:
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(1, 32, 3, padding=1),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(32, 64, 3, padding=1),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "linear1": nn.Linear(64 * 7 * 7, 200),
            "relu3": nn.ReLU(),
            "linear2": nn.Linear(200, num_classes),
        }
        super().__init__(OrderedDict(layers))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A of He et al.)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.padding = (width - width_in) // 2  # zero channels on either side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(residual + shortcut)


class CifarResNet(nn.Module):
    """ResNet of 6n+2 layers for CIFAR, (B, 3, 32, 32).

    Source: He, Zhang, Ren and Sun (2016), section 4.2; keys as in akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = self._stage(blocks, 16, 16, stride=1)
        self.layer2 = self._stage(blocks, 16, 32, stride=2)
        self.layer3 = self._stage(blocks, 32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(blocks: int, width_in: int, width: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(width_in, width, stride), *rest)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


Built = tuple[nn.Module, Normalize | None]  # the network whose weights are loaded, and what precedes it


def _digits_cnn(num_classes: int | None) -> Built:
    if num_classes not in (None, 10):
        raise ValueError(f"num_classes of digits_cnn must be 10, got {num_classes}")
    return DigitsCNN(), None


def _mnist_lenet(num_classes: int | None) -> Built:
    return MnistLeNet(num_classes or 10), None


def _cifar_resnet(depth: int) -> Callable[[int | None], Built]:
    def build(num_classes: int | None) -> Built:
        return CifarResNet(depth, num_classes or 10), Normalize(IMAGENET_MEAN, IMAGENET_STD)

    return build


def _torchvision(name: str, num_classes: int | None) -> Built:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"torchvision: must name a classifier of torchvision.models.list_models(), got {name!r}{hint}")
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    return torchvision.models.get_model(name, weights=None, **sizes), Normalize(IMAGENET_MEAN, IMAGENET_STD)


def _timm(name: str, num_classes: int | None) -> Built:
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm classifiers need timm: pip install 'dipdefense[timm]'") from error
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ValueError(f"timm: must name a model of timm.list_models(), got {name!r}{hint}")
    net = timm.create_model(name, pretrained=False, num_classes=num_classes)
    constants = timm.data.resolve_model_data_config(net)
    return net, Normalize(constants["mean"], constants["std"])


CLASSIFIERS: dict[str, Callable[[int | None], Built]] = {
    "digits_cnn": _digits_cnn,
    "mnist_lenet": _mnist_lenet,
    **{f"cifar_resnet{depth}": _cifar_resnet(depth) for depth in (20, 32, 44, 56)},
}
MADE = {  # how a user gets a file of weights
    "torchvision": "torch.save(torchvision.models.{}(weights='DEFAULT').state_dict(), FILE)",
    "timm": "torch.save(timm.create_model('{}', pretrained=True).state_dict(), FILE)",
}
LIBRARIES: dict[str, Callable[[str, int | None], Built]] = {"torchvision": _torchvision, "timm": _timm}


def load_classifier(spec: str, weights: str | Path | None = None, *, num_classes: int | None = None) -> nn.Module:
    """Build a classifier in eval mode, on the CPU, with its weights.

    Args:
        spec: one of `CLASSIFIERS`; `torchvision:NAME` or `timm:NAME`, with the normalisation they were trained
            with; or `FILE.py:FACTORY`, a function without arguments in your own file. The file is executed, and
            the function's nn.Module, images in [0, 1] to logits, is used unchanged.
        weights: a state dict, see `read_weights`. Optional for `digits_cnn`, which is trained in seconds on
            first use and kept in the cache folder, and for your own file.
        num_classes: K, if it differs from the architecture's; not for `FILE.py:FACTORY`.

    Raises:
        ValueError: the spec is unknown, or the weights are missing, unreadable or of another network.
        FileNotFoundError: the weights or FILE.py do not exist.
        TypeError: FACTORY did not return an nn.Module.
    """
    library, _, name = spec.partition(":")
    own = ".py:" in spec
    if num_classes is not None and (own or num_classes < 1):
        raise ValueError(f"num_classes must be None for FILE.py:FACTORY and positive else, got {num_classes}")
    if own:
        net, normalize = _own_classifier(spec), None
    elif library in LIBRARIES and name:
        net, normalize = LIBRARIES[library](name, num_classes)
    elif spec in CLASSIFIERS:
        net, normalize = CLASSIFIERS[spec](num_classes)
    else:
        known = (*CLASSIFIERS, *(f"{library}:NAME" for library in LIBRARIES), "FILE.py:FACTORY")
        raise ValueError(f"spec must be one of {', '.join(known)}, got {spec!r}{did_you_mean(spec, known)}")
    if weights is not None:
        _load(net, read_weights(weights), weights)
    elif spec == "digits_cnn":
        net = trained_digits_cnn()
    elif not own:
        make = f", made by {MADE[library].format(name)}" if library in MADE else ""
        raise ValueError(
            f"{spec} needs weights: random ones make every figure meaningless; pass --weights FILE, a state dict{make}"
        )
    return (net if normalize is None else nn.Sequential(normalize, net)).eval()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict as tensors only: nothing in the file is executed.

    The file is `*.safetensors`, or was written by torch.save. Two wrappings are removed, with a log line: a training
    checkpoint's {"state_dict": ...}, and the `module.` that DataParallel puts before every key.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a file of weights there")
    weights = _read_file(path)
    if isinstance(weights, Mapping) and isinstance(weights.get("state_dict"), Mapping):
        logger.info("%s: taking the entry state_dict", path)
        weights = weights["state_dict"]
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} must hold a state dict, keys to tensors, got {type(weights).__name__}")
    if weights and all(key.startswith("module.") for key in weights):
        logger.info("%s: taking 'module.' off the keys", path)
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return dict(weights)


def write_weights(classifier: nn.Module, path: str | Path, spec: str, recipe: Mapping[str, Any]) -> None:
    """Write the state dict that `load_classifier` reads for this spec, as safetensors.

    Args:
        classifier: of `load_classifier(spec)`, or a copy with other weights.
        path: `*.safetensors`; what was there is replaced at once, or stays.
        spec: as in `load_classifier`.
        recipe: plain values that say how the weights were made, JSON under `recipe` in the file's metadata.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    wrapped = ".py:" not in spec and isinstance(classifier, nn.Sequential) and isinstance(classifier[0], Normalize)
    net = classifier[1] if wrapped else classifier  # type: ignore[index]
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in net.state_dict().items()}
    content = save(tensors, {"recipe": json.dumps(dict(recipe))})
    with replacing(Path(path)) as file:
        file.write(content)


def _read_file(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except TORN as error:
        # the first sentence: torch goes on to advise reading the file without its safeguard
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is not a readable file of tensors, as torch.save(net.state_dict(), FILE) makes it: {reason}"
        ) from error


def _load(net: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load all of the weights, or raise and name the first key that does not fit."""
    expected = net.state_dict()
    for key, value in expected.items():
        if key not in weights:
            if key.endswith("num_batches_tracked"):  # absent from old files, and unused in eval mode
                continue
            raise ValueError(f"{source} must hold {key}, which is missing")
        if weights[key].shape != value.shape:
            shapes = f"{tuple(value.shape)}, got {tuple(weights[key].shape)}"
            raise ValueError(f"{key} in {source} must have the shape {shapes}")
    unexpected = next((key for key in weights if key not in expected), None)
    if unexpected is not None:
        raise ValueError(f"{source} must hold the network's keys only, got {unexpected}")
    net.load_state_dict(weights, strict=False)  # checked above


def _own_classifier(spec: str) -> nn.Module:
    """Run FILE.py as a module and call its FACTORY."""
    file, _, factory = spec.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a Python file with {factory}")
    name = f"_own_classifier_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, factory, None)):
        raise ValueError(f"{path} must define a function {factory!r}")
    net = getattr(module, factory)()
    if not isinstance(net, nn.Module):
        raise TypeError(f"{factory} of {path} must return an nn.Module, got {type(net).__name__}")
    return net
