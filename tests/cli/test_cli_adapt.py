"""The command `adapt`: its weights in another command, its recipe, its resumption, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_cli import assert_refused
from typer.testing import CliRunner

from dipdefense import adapt
from dipdefense.cli import app
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

QUICK = ("--n", 20, "--sigma", 0.3, "--purifier", "none", "--epochs", 2, "--lr", 0.001, "--no-mirror")


def run(target: Path, *arguments: object):
    return CliRunner().invoke(app, ["adapt", str(target), *map(str, (*QUICK, *arguments))])


def test_the_weights_are_those_of_adapt_and_are_read_by_another_command(tmp_path):
    target = tmp_path / "adapted.safetensors"
    result = run(target)
    assert result.exit_code == 0, result.output
    first, second = result.output.splitlines()
    assert "same class as the bare classifier's of the image, 2 held-out images: reconstructions " in first
    assert second == f"weights: {target}; use them: --classifier digits_cnn --weights {target}"
    digits = load_dataset("digits_train")
    images = digits.batch(digits.first(20, 0).tolist())
    learning = {"sigma": 0.3, "purify": None, "epochs": 2, "lr": 1e-3, "mirror": False}
    expected = adapt(load_classifier("digits_cnn"), images[:18], **learning)
    read = load_classifier("digits_cnn", target)
    with torch.no_grad():
        assert torch.equal(read(images), expected(images))
    with safe_open(target, "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    assert recipe == {
        **{"sigma": [0.3], "layers": "all", "epochs": 2, "lr": 0.001, "batch": 64, "copies": 1, "eps": 0.0},
        **{"attack_steps": 7, "mirror": False, "seed": 0, "purifier": "none", "classifier": "digits_cnn"},
        **{"dataset": "digits_train", "index": ":", "size": None, "n": 20, "held_out": 2},
    }
    result = CliRunner().invoke(app, ["check", "digits_cnn", "--weights", str(target), "--shape", "1,32,32"])
    assert result.exit_code == 0, result.output


def test_a_checkpoint_gives_the_same_weights_again_and_json_the_agreement(tmp_path):
    first, second, saved = (tmp_path / name for name in ("1.safetensors", "2.safetensors", "adapting"))
    options = ("--sigma", "0,0.3", "--eps", "1/50", "--steps", 2, "--checkpoint", saved)
    assert run(first, *options).exit_code == 0
    shown = CliRunner().invoke(app, ["--json", "adapt", str(second), *map(str, (*QUICK, *options))])
    assert shown.exit_code == 0, shown.output
    assert first.read_bytes() == second.read_bytes()
    table = json.loads(shown.stdout)
    assert table["held_out"] == 2
    assert {0 <= table[name] <= 1 for name in table if name.endswith(("reconstructions", "clean"))} == {True}
    result = run(second, *options, "--layers", "last")
    assert result.exit_code == 1
    assert "checkpoint of this adaptation, it is of another (layers)" in str(result.exception)


@pytest.mark.parametrize(
    ("message", "name", "arguments"),
    [
        ("OUTPUT must end in .safetensors", "adapted.pt", []),
        ("No such file or directory", "missing/adapted.safetensors", []),
        ("n must be at most the 3 images of digits_train :4, got 20", "w.safetensors", ["--index", ":4"]),
        ("n must be at least 3, of which one is held out, got 2", "w.safetensors", ["--n", 2]),
        ("purifier must be one of dip, cosine, none, ", "w.safetensors", ["--purifier", "nope"]),
        (
            "sigma must be one level above 0 for the purifier cosine",
            "w.safetensors",
            ["--purifier", "cosine", "--sigma", ".1,.2"],
        ),
        ("sigma must be one level above 0", "w.safetensors", ["--purifier", "cosine", "--sigma", "0"]),
        (
            "sigma must be one level above 0 for the purifier total_variation",
            "w.safetensors",
            ["--purifier", "total_variation", "--sigma", "0,.12"],
        ),
        ("sigma must not be negative, got -1.0", "w.safetensors", ["--sigma", "0.1,-1"]),
        ("sigma must be a number or one or more numbers", "w.safetensors", ["--sigma", ","]),
        ("layers must be one of batch_norm, last, all, got 'first'", "w.safetensors", ["--layers", "first"]),
        ("the loss of an adaptation must stay finite: lower lr", "w.safetensors", ["--lr", 1e37]),
    ],
)
def test_what_is_wrong_is_refused(tmp_path, message, name, arguments):
    assert_refused(message, "adapt", tmp_path / name, *QUICK, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_of_weights(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    assert_refused("OUTPUT must be a file", "adapt", tmp_path / "w.safetensors", *QUICK)
