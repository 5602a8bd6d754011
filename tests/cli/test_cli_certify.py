"""The command `certify`: its table, its resumption, and what it refuses, one line each."""

import json
from statistics import NormalDist

import pandas as pd
import pytest
from test_cli import assert_refused
from typer.testing import CliRunner

from dipdefense.cli import app

QUICK = ("--sigma", "0.25", "--n0", 4, "--samples", 24, "--alpha", 0.05, "--n", 2, "--purifiers", "none,jpeg")


def run(*arguments: object):
    return CliRunner().invoke(app, ["certify", *map(str, arguments)])


def test_a_table_is_printed_written_and_found_again(tmp_path):
    result = run(*QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert "certified accuracy, % (95 % interval)" in result.output
    reach = 0.25 * NormalDist().inv_cdf(0.05 ** (1 / 24))  # all 24 draws give the class
    assert f"no radius above {reach:.3g} can be certified with 24 samples at alpha 0.05" in result.output
    assert (table.certified_accuracy[table.radius > reach] == 0).all()
    assert set(table["purifier"]) == {"none", "jpeg"}
    made = (tmp_path / "run" / "records.jsonl").read_text()
    result = run(*QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "records.jsonl").read_text() == made
    shown = CliRunner().invoke(app, ["--json", "certify", *map(str, QUICK), "--out", str(tmp_path / "run")])
    assert len(json.loads(shown.stdout)) == len(table)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("sigma must be positive and finite, got 0.0", ["--sigma", "0"]),
        ("sigma must be positive and finite, got -1.0", ["--sigma", "-1"]),
        ("n must be at least 10 to certify any radius at alpha 0.001, got 9", ["--samples", "9"]),
        ("n must be at least 1286 to certify the radius 0.3", ["--samples", "1000", "--targets", "0.3"]),
        ("n0 must be an integer of at least 1, got 0", ["--n0", "0"]),
        ("purifiers must be among dip, cosine, none", ["--purifiers", "dip,nope"]),
        ("targets must be a number such as 0.03 or 8/255, got 'far'", ["--targets", "far"]),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, message, arguments):
    assert_refused(message, "certify", *arguments, "--out", tmp_path)


@pytest.mark.parametrize(
    ("message", "end"),
    [
        ("classifier must return logits, got probabilities", "nn.Linear(1024, 10), nn.Softmax(1)"),
        ("classifier must take float32 images (3, 1, 32, 32)", "nn.Linear(100, 10)"),
    ],
)
def test_classifiers_that_cannot_be_certified_are_refused(tmp_path, message, end):
    file = tmp_path / "mine.py"
    file.write_text(f"from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), {end}).eval()\n")
    assert_refused(message, "certify", "--classifier", f"{file}:build", "--n", "1", "--out", tmp_path / "run")
