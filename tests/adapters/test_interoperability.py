"""docs/interoperability.md: its Python runs as it stands, and what it says that each library leaves behind is so."""

import copy
import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dipdefense import DefendedClassifier, FitConfig, OnDevices, check_classifier, defend
from dipdefense.adapters.art import DIPPurification
from dipdefense.adapters.huggingface import Logits
from dipdefense.adapters.sklearn import NumpyClassifier
from dipdefense.adapters.torchvision import Purify

TEXT = (Path(__file__).parents[2] / "docs" / "interoperability.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
TITLES = [part.splitlines()[0] for part in TEXT.split("\n## ")[1:]]


def test_every_section_has_one_block():
    assert len(BLOCKS) == len(TITLES) + 1


def test_blocks_are_short():
    for block in BLOCKS:
        statements = [line for line in block.splitlines() if line and not line.startswith(("import ", "from "))]
        assert len(statements) <= 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the libraries' own, at import
@pytest.mark.parametrize("number", range(1, len(BLOCKS)), ids=TITLES)
def test_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in (BLOCKS[0], BLOCKS[number]):
            exec(compile(block, "docs/interoperability.md", "exec"), names)
    for name, shape in {"adversarial": (4, 3, 16, 16), "purified": (3, 16, 16), "predicted": (4,)}.items():
        if name in names:
            assert tuple(names[name].shape) == shape  # type: ignore[attr-defined]


# What a library leaves behind

TINY = FitConfig(architecture_options={"channels": [4, 4], "skip_channels": 0}, input_channels=4, iterations=2)


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(72, 4)
    )


def of_torchvision() -> nn.Module:
    from torchvision.transforms import v2

    return nn.Sequential(v2.Normalize([0.5] * 3, [0.5] * 3), small())


def of_timm() -> nn.Module:
    import timm

    network = timm.create_model("test_resnet", pretrained=False, num_classes=4, drop_rate=0.5)
    return nn.Sequential(nn.Upsample(32), network)


def of_transformers() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    tiny = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=4)
    return nn.Sequential(nn.Dropout(), Logits(ResNetForImageClassification(tiny)))


def call(defended: nn.Module, images: Tensor, labels: Tensor) -> None:
    defended(images.requires_grad_()).sum().backward(inputs=[images])


def check(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    check_classifier(defended.classifier, (3, 8, 8))
    check_classifier(defended, (3, 8, 8))


def attack_with_torchattacks(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    import torchattacks

    for attack in (torchattacks.PGD(defended, steps=2), torchattacks.CW(defended, steps=2)):
        attack(images, labels)


def attack_with_foolbox(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    import foolbox

    target = foolbox.PyTorchModel(defended, bounds=(0, 1))
    foolbox.attacks.LinfPGD(steps=2)(target, images, labels, epsilons=0.1)


def attack_with_autoattack(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    from pyautoattack import AutoAttack

    for name in ("apgd-ce", "fab", "square"):
        auto = AutoAttack(defended, norm="Linf", eps=0.1, version="custom", attacks=[name], seed=0)
        auto.apgd.n_iter, auto.apgd.n_restarts, auto.square.n_queries = 2, 1, 4
        auto.fab.n_iter, auto.fab.n_restarts = 1, 1
        auto.run_standard_evaluation(images, labels, batch_size=2)


def attack_with_secml(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
    from torch.utils.data import DataLoader, TensorDataset

    model = BasePyTorchClassifier(defended)
    model.predict(images)
    attack = PGD("linf", 0.1, num_steps=2, step_size=0.05, backend=Backends.NATIVE)
    attack(model, DataLoader(TensorDataset(images, labels), batch_size=2))


def attack_with_art(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    keywords = {"loss": nn.CrossEntropyLoss(), "input_shape": (3, 8, 8), "nb_classes": 4, "clip_values": (0, 1)}
    purification = DIPPurification(defended.purifier, device_type="cpu")
    for classifier in (
        PyTorchClassifier(defended, device_type="cpu", **keywords),
        PyTorchClassifier(defended.classifier, device_type="cpu", preprocessing_defences=[purification], **keywords),
    ):
        classifier.predict(images.numpy())
        ProjectedGradientDescent(classifier, eps=0.1, max_iter=1, num_random_init=1, verbose=False).generate(
            images.numpy()
        )


def transform_with_torchvision(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    from torchvision.transforms import v2

    for transform in (defended.purifier, Purify(defended.purifier)):
        defended(v2.Compose([v2.ToImage(), transform])(images))


def predict_with_sklearn(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    NumpyClassifier(defended, classes=range(4)).predict_proba(images.numpy())


def spread(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    call(OnDevices(defended, ["cpu", "cpu"]), images, labels)


def save(defended: DefendedClassifier, images: Tensor, labels: Tensor) -> None:
    torch.save(defended, io.BytesIO())
    defended.load_state_dict(copy.deepcopy(defended).state_dict())
    named = dict(defended.named_parameters()) | dict(defended.named_buffers())
    torch.func.functional_call(defended, named, (images,))


# Section of the page -> a network, what is done with it, and what that changes besides
GRAD, TORCH, NUMPY = "grad", "torch's generator", "numpy's generator"
USES = {
    "Before anything else: `check`": (small, check, set()),
    "torchattacks": (small, attack_with_torchattacks, {GRAD, TORCH}),
    "foolbox": (small, attack_with_foolbox, {GRAD, TORCH}),
    "AutoAttack (pyautoattack)": (small, attack_with_autoattack, {GRAD, TORCH}),
    "SecML-Torch": (small, attack_with_secml, {GRAD, TORCH}),
    "Adversarial Robustness Toolbox": (small, attack_with_art, {GRAD, TORCH, NUMPY}),
    "torchvision": (of_torchvision, transform_with_torchvision, set()),
    "timm": (of_timm, call, set()),
    "Hugging Face transformers": (of_transformers, call, set()),
    "scikit-learn": (small, predict_with_sklearn, set()),
    "Several GPUs": (small, spread, set()),
    "Saving": (small, save, set()),
}


def test_every_section_is_used():
    assert list(USES) == TITLES


def numpy_state() -> tuple[object, ...]:
    return np.random.get_state()  # noqa: NPY002 - the generator that libraries draw from


def state(model: nn.Module) -> dict[str, object]:
    """All that a caller may want to find again as it was, bit for bit."""
    parameters = dict(model.named_parameters())
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "buffers": {name: buffer.numpy().tobytes() for name, buffer in model.named_buffers()},
        "parameters": {name: parameter.detach().numpy().tobytes() for name, parameter in parameters.items()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in parameters.items()},
        GRAD: {name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in parameters.items()},
        TORCH: torch.get_rng_state().numpy().tobytes(),
        NUMPY: [part.tobytes() if isinstance(part, np.ndarray) else part for part in numpy_state()],
        "python's generator": random.getstate(),
    }


@pytest.fixture
def seeded():
    """The global generators begin at 0, and are put back."""
    python, numpy = random.getstate(), numpy_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the libraries' own, at import
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize(("build", "use", "left"), USES.values(), ids=USES)
def test_a_library_leaves_behind_what_the_page_says(build, use, left, frozen, seeded):
    defended = defend(build().eval(), TINY).requires_grad_(not frozen)
    if not frozen:
        first = next(defended.parameters())
        first.grad = torch.ones_like(first)
    images = torch.rand(2, 3, 8, 8)
    labels = defended(images).argmax(1)  # so that there is something to attack
    before = state(defended)
    use(defended, images, labels)
    after = state(defended)
    assert not any(before["modes"].values())
    assert {name for name in before if before[name] != after[name]} == (left - {GRAD} if frozen else left)
    again = [defended(images.detach()) for _ in range(2)]
    assert torch.equal(*again)
