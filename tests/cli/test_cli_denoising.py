"""The commands `benchmark denoising, impedance, curve, ablation`."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import eval.restoration.ablation
from dipdefense.cli import app
from dipdefense.cli.options import noise_level
from dipdefense.files.writing import write_image

QUICK = {"architecture_options": {"channels": [8, 8], "skip_channels": 0}, "input_channels": 8, "iterations": 10}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for i, name in enumerate(("a_real.png", "a_mean.png")):
        write_image(torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(i)), images / name)
    (tmp_path / "config.json").write_text(json.dumps(QUICK))
    return images


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["benchmark", *map(str, arguments)])
    assert result.exit_code == 0, result.exception
    return result.output


def refused(message: str, *arguments: object) -> None:
    result = CliRunner().invoke(app, ["benchmark", *map(str, arguments)])
    assert isinstance(result.exception, ValueError | OSError)
    assert message in str(result.exception)


def test_denoising(folder, tmp_path):
    command = ["denoising", "--config", tmp_path / "config.json", "--methods", "noisy,median,dip_ema", "--crop", 16]
    added = [*command, "--data", folder, "--sigma", 25, "--seeds", 2, "--out", tmp_path / "run"]
    output = run(*added)
    assert output.split()[:5] == ["method", "n", "seeds", "PSNR,", "dB"]
    assert "estimates are clipped to [0, 1] before they are scored" in output
    summary = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert summary[["method", "n", "seeds"]].values.tolist() == [[m, 2, 2] for m in ("noisy", "median", "dip_ema")]
    real = run(*command, "--noisy", folder, "--reference", folder, "--out", tmp_path / "real")
    assert "median:estimated" in real
    other = run(*command, "--data", folder, "--noise", "shot", "--level", 20, "--out", tmp_path / "shot")
    assert "median:estimated" in other
    refused("level must be given for the noise 'shot'", *command, "--data", folder, "--noise", "shot")
    refused("data must be given, or else noisy and reference together", *command)
    refused("data must be given, or else noisy and reference together", *command, "--noisy", folder)
    refused("data must be given, or else noisy", *added, "--noisy", folder, "--reference", folder)
    refused("resize must not be given", *command, "--noisy", folder, "--reference", folder, "--resize", 16)
    refused("sigma must be given where noise is to be added", *command, "--data", folder)
    refused("sigma must be 1 to 255 grey levels", *added, "--sigma=-25")
    refused("must hold at least one image", *added, "--data", tmp_path)
    refused("methods must be among noisy", *added, "--methods", "magic")
    (folder / "a_mean.png").unlink()
    refused("must hold at least one reference", *command, "--noisy", folder, "--reference", folder)


def test_one_unit_of_sigma():
    assert noise_level("25") == noise_level("25/255") == 25 / 255
    for text in ("0.1", "0", "-25", "256", "2/1"):
        with pytest.raises(ValueError, match="sigma must be 1 to 255 grey levels such as 25, or a fraction"):
            noise_level(text)
    with pytest.raises(ValueError, match="sigma must be a number"):
        noise_level("loud")


def test_impedance_and_curve(folder, tmp_path):
    image = folder / "a_mean.png"
    options = [image, "--config", tmp_path / "config.json", "--out", tmp_path / "run"]
    assert run("impedance", *options, "--sigma", 10).split()[:4] == ["target", "first", "last", "tenth"]
    output = run("curve", *options, "--every", 5, "--clip", "--crop", 16)
    assert output.split()[:6] == ["iteration", "of", "against", "PSNR,", "dB", "SSIM"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("impedance.csv", "impedance.png"),
        *("curve.csv", "curve.png"),
    }
    run("curve", *options, "--noisy", folder / "a_real.png")
    refused("resize and crop must not be given", "curve", *options, "--noisy", image, "--crop", 16)
    refused("every must lie between 1 and the 10", "curve", *options, "--every", 11)
    refused("sigma must be 1 to 255", "impedance", *options, "--sigma", "0.1")


def test_ablation(folder, tmp_path, monkeypatch):
    """The table that the benchmark gives is printed; the benchmark itself takes minutes."""
    asked = []
    table = pd.DataFrame([{"task": "colour", "network": "own", "psnr": 30.0}])
    monkeypatch.setattr(eval.restoration.ablation, "benchmark_ablation", lambda *a, **k: asked.append((a, k)) or table)
    output = run("ablation", "--data", folder, "--resize", 20, "--crop", 16, "--n", 1, "--out", tmp_path / "run")
    assert output.split()[:7] == ["task", "network", "PSNR,", "dB", "colour", "own", "30"]
    (photos, digits), options = asked[0]
    assert [tuple(photo.shape) for photo in photos] == [(3, 16, 16)]
    assert digits is None
    assert options["device"] == torch.device("cpu")
    assert options["out"] == tmp_path / "run"
    refused(
        "digits must be at least 1, got 0",
        "ablation",
        "--data",
        folder,
        "--digits",
        0,
        "--n",
        1,
        "--crop",
        8,
        "--resize",
        8,
    )


@pytest.mark.data
def test_ablation_reads_mnist(data, folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        eval.restoration.ablation,
        "benchmark_ablation",
        lambda *a, **k: asked.append(a) or pd.DataFrame([{"task": "digits"}]),
    )
    command = ["ablation", "--data", folder, "--mnist", data / "mnist", "--n", 2, "--resize", 20, "--crop", 16]
    run(*command, "--digits", 5, "--out", tmp_path / "run")
    assert asked[0][1].shape == (5, 1, 28, 28)
