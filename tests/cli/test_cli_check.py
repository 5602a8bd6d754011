"""`dipdefense check`, through its own parser."""

import importlib
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dipdefense.cli import app

SOFTMAX = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5), nn.Softmax(1))

def sigmoid():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5), nn.Sigmoid())
"""


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOFTMAX)
    return path


def test_a_right_classifier_passes():
    result = check("digits_cnn", "--dataset", "digits", "--n", 50)
    assert result.exit_code == 0
    assert result.stdout == "no fault found, checked with images of 1 x 32 x 32\n"


def test_a_fault_is_printed_and_ends_in_exit_code_1(mine):
    result = check(f"{mine}:build", "--shape", "3,16,16")
    assert result.exit_code == 1
    fault, size = result.stdout.splitlines()
    assert fault.startswith("fault, softmax: classifier must return logits, got probabilities")
    assert size == "checked with images of 3 x 16 x 16"


def test_a_doubt_is_printed_and_passes(mine):
    result = check(f"{mine}:sigmoid")
    assert result.exit_code == 0
    assert result.stdout.startswith("doubt, sigmoid: ")
    assert "3 x 16 x 16" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits_cnn", "--shape", "32,32"], "shape must be C,H,W, such as 3,32,32, got '32,32'"),
        (["digits_cnn", "--shape", "1,0,32"], r"shape must be \(C, H, W\), three positive integers"),
        (["digits_cnn", "--n", 0], "n must be at least 1, got 0"),
        (["nonsense"], "spec must be one of digits_cnn"),
        (["mnist_lenet"], "mnist_lenet needs weights"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    result = check(*arguments)
    assert result.exit_code == 1
    with pytest.raises(ValueError, match=message):
        raise result.exception


@pytest.mark.parametrize("library", ["pandas", "scipy", "skimage", "sklearn", "torchmetrics", "matplotlib"])
def test_without_the_extra_the_command_names_it(library, monkeypatch):
    for name in [name for name in sys.modules if name == "eval" or name.startswith("eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"eval needs {library}: python -m pip install 'dipdefense\[eval\]'"):
        importlib.import_module("eval")
    result = check("digits_cnn")
    assert isinstance(result.exception, ImportError)


@pytest.mark.data
def test_labels_find_a_missing_normalisation(data, tmp_path):
    (tmp_path / "bare.py").write_text(
        "from eval.classifiers import load_classifier\n"
        f"def build(): return load_classifier('cifar_resnet20', {str(data / 'weights/cifar10_resnet20.pt')!r})[1]\n"
    )
    result = check(f"{tmp_path}/bare.py:build", "--dataset", "cifar10", "--data", data / "cifar10/test.npz")
    assert result.exit_code == 1
    assert "fault, range: classifier must expect images in [0, 1], but" in result.stdout
    assert "images normalised by ImageNet's mean and standard deviation" in result.stdout
