"""What a new user meets: the command alone, names that are nearly right, files that are not there."""

import io
import shlex
import subprocess
import sys

import pytest
import torch
import typer
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from dipdefense.arguments import did_you_mean
from dipdefense.cli import app, main
from dipdefense.cli.output import progress_bar
from dipdefense.files.writing import write_image
from eval.classifiers import MnistLeNet
from eval.datasets import load_dataset
from eval.robustness.config import check_run


def test_the_command_alone_says_what_to_try():
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert len(result.stdout.splitlines()) <= 20
    assert max(map(len, result.stdout.splitlines())) <= 110
    lines = [line.strip() for line in result.stdout.splitlines() if line.startswith("  dipdefense ")]
    assert [line.split()[1] for line in lines] == ["demo", "purify", "evaluate"]
    commands = typer.main.get_command(app).commands
    for _, name, *words in map(shlex.split, lines):
        commands[name].make_context(name, words)  # an unknown option or a missing argument raises
    assert "All commands: dipdefense --help" in result.stdout
    assert "Usage: " in CliRunner().invoke(app, ["--help"]).stdout


def test_python_m_is_the_command():
    called = subprocess.run(
        [sys.executable, "-m", "dipdefense", "purfy"], capture_output=True, text=True, check=False, timeout=240
    )
    assert called.returncode == 2
    assert "purify" in called.stderr


def test_the_nearest_name_is_named():
    assert did_you_mean("pdg", ["fgsm", "pgd"]) == "; did you mean pgd?"
    assert did_you_mean("magic", ["fgsm", "pgd"]) == ""


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("evaluate --attacks pdg", "pgd"),
        ("evaluate --attacks fgsm --filters gausian_blur", "gaussian_blur"),
        ("evaluate --decision lst", "last"),
        ("ladder --rungs bpdaa", "bpda"),
        ("benchmark defence --methods jpg", "jpeg"),
        ("benchmark restoration --data . --tasks hole", "holes"),
        ("certify --purifiers dipp", "dip"),
        ("learn-start x.safetensors --dataset digit", "digits"),
        ("denoise a.png b.png --noise camara", "camera"),
        ("inpaint a.png m.png b.png --kind texts", "text"),
    ],
)
def test_an_unknown_name_has_the_nearest_beside_it(words, nearest, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"got '\w+'; did you mean {nearest}\?"):
        CliRunner().invoke(app, words.split(), catch_exceptions=False)


def test_a_setting_that_is_nearly_right(tmp_path):
    (tmp_path / "config.json").write_text('{"iteration": 3}')
    words = ["purify", "a.png", "b.png", "--config", str(tmp_path / "config.json")]
    with pytest.raises(ValueError, match=r"got 'iteration'; did you mean iterations\?"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_an_error_of_a_file_is_its_name_and_the_reason(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dipdefense", "benchmark", "stopping", "--data", "nowhere"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: nowhere: No such file or directory\n"


def test_a_classifier_of_other_images_is_refused():
    message = (
        "classifier must accept the images of digits, 1x32x32, got an error: .*; choose a data set and a classifier"
    )
    with pytest.raises(ValueError, match=message):
        check_run(MnistLeNet().eval(), load_dataset("digits"), 1, "cpu")

    class Full(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):  # not a matter of shapes
        check_run(Full().eval(), load_dataset("digits"), 1, "cpu")


def test_photographs_are_cut_to_the_size_that_is_given(tmp_path):
    photographs = tmp_path / "photographs"
    for name in "ab":
        (photographs / name).mkdir(parents=True)
        write_image(torch.full((3, 60, 80), 0.5), photographs / name / "1.png")
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2)).eval()\n"
        "def build_for_224(): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)).eval()\n"
    )
    words = ["--dataset", "folder", "--data", str(photographs)]
    run = ["evaluate", *words, "--classifier", f"{tmp_path / 'own.py'}:build", "--n", "2", "--attacks", ""]
    run += ["--out", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="must accept the images of folder, 3x224x224"):
        CliRunner().invoke(app, run, catch_exceptions=False)
    result = CliRunner().invoke(app, [*run, "--size", "12"])
    assert result.exit_code == 0, result.output
    checked = CliRunner().invoke(app, ["check", f"{tmp_path / 'own.py'}:build", *words, "--n", "2", "--size", "12"])
    assert "checked with images of 3 x 12 x 12" in checked.stdout
    large = CliRunner().invoke(app, ["check", f"{tmp_path / 'own.py'}:build_for_224", *words, "--n", "2"])
    assert "checked with images of 3 x 224 x 224" in large.stdout
    for size, data, message in (
        ("0", words, "size must be at least 1 pixel, got 0"),
        ("12", [], "size must be left out with digits"),
    ):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, ["evaluate", *data, "--size", size], catch_exceptions=False)


def test_more_images_than_there_are():
    with pytest.raises(ValueError, match="got 450: ask for fewer with --n, in a ladder with --images"):
        check_run(MnistLeNet().eval(), load_dataset("digits"), 450, "cpu")


def test_what_follows_a_full_bar_has_a_bar_of_its_own(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("dipdefense.cli.output.errors", Console(file=shown, force_terminal=True, width=100))
    with progress_bar("fit") as progress:
        progress(100, 100)
        for done in (10, 30):
            progress.then("filters")(done, 100)
    last = shown.getvalue().rpartition("fit")[2]
    assert last.count("filters") == 1
    assert " 30/100" in last
