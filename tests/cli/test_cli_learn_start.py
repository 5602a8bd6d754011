"""The command `learn-start`, and its file in the settings of another command."""

import json

import pytest
from typer.testing import CliRunner

from dipdefense import read_start
from dipdefense.cli import app
from dipdefense.files.writing import write_image
from eval.datasets import load_dataset

NETWORK = {"architecture_options": {"channels": [4, 8], "skip_channels": 2}, "input_channels": 4, "iterations": 4}


def dipdefense(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


def learn(target, *arguments: object):
    small = ("--n", 8, "--inner", 2, "--outer", 2, "--batch", 2)
    return dipdefense("learn-start", target, *small, *arguments)


def test_a_start_is_learnt_and_used(tmp_path):
    settings, start, image = tmp_path / "fit.json", tmp_path / "start.safetensors", tmp_path / "digit.png"
    settings.write_text(json.dumps(NETWORK))
    result = learn(start, "--config", settings)
    assert result.exit_code == 0, result.output
    assert f"start: {start}" in result.output
    recipe = read_start(start).recipe
    assert (recipe["inner"], recipe["outer"], recipe["batch"], recipe["channels"]) == (2, 2, 2, 1)
    assert recipe["fit"]["architecture_options"] == NETWORK["architecture_options"]
    write_image(load_dataset("digits")[0][0], image)
    settings.write_text(json.dumps(NETWORK | {"start": str(start)}))
    result = dipdefense("purify", image, tmp_path / "purified.png", "--config", settings)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "purified.png").exists()


def test_the_default_network_is_that_of_the_defence(tmp_path):
    result = learn(tmp_path / "start.safetensors")
    assert result.exit_code == 0, result.output
    assert read_start(tmp_path / "start.safetensors").recipe["fit"]["architecture_options"]["channels"] == [16, 32, 64]


def test_a_checkpoint_gives_the_same_start_again_and_serves_no_other(tmp_path):
    first, second, saved = (tmp_path / name for name in ("1.safetensors", "2.safetensors", "learning"))
    for target in (first, second):
        result = learn(target, "--checkpoint", saved)
        assert result.exit_code == 0, result.output
        assert "dB in the first outer step" in result.output
    assert first.read_bytes() == second.read_bytes()
    result = learn(second, "--checkpoint", saved, "--seed", 1)
    assert result.exit_code == 1
    assert "checkpoint of this start, it is of another (images, seed" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("start.pt", (), "OUTPUT must end in .safetensors"),
        ("start.safetensors", ("--index", ":4"), "n must be at most the 3 images of digits_train :4, got 8"),
        ("start.safetensors", ("--memory-gb", 1e-9), "memory_gb must be at least"),
        ("start.safetensors", ("--memory-gb", 0), "memory_gb must be positive and finite, got 0.0"),
        ("start.safetensors", ("--size", 64), "size must be at most the sides of the images"),
        ("missing/start.safetensors", (), "No such file or directory"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, name, arguments, message):
    result = learn(tmp_path / name, *arguments)
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []
