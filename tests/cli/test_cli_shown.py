"""`--json`, `--quiet`, examples in every help, completion and exit codes of the command."""

import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time

import pandas as pd
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from dipdefense.cli import app, main
from dipdefense.cli.output import accuracies_as_made, manner, print_accuracies, print_frame, progress_bar


@pytest.fixture(autouse=True)
def text():
    """Whatever manner another test left in this process."""
    before = manner.set("text")
    yield
    manner.reset(before)


RUN = ["evaluate", "--n", "4", "--steps", "2", "--eps", "0.2", "--attacks", "pgd"]


def commands(command=None, path=()) -> dict[tuple[str, ...], object]:
    """Every command below the application, by its words."""
    command = command or typer.main.get_command(app)
    below = getattr(command, "commands", {})
    found = {} if below else {path: command}
    for name, inner in below.items():
        found |= commands(inner, (*path, name))
    return found


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    quick = {"architecture_options": {"channels": [8, 8], "skip_channels": 0}, "input_channels": 8, "iterations": 10}
    (tmp_path / "config.json").write_text(json.dumps(quick))
    return [*RUN, "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]


@pytest.mark.parametrize("behind", [False, True])
def test_json_is_the_table_and_nothing_else(arguments, tmp_path, behind):
    result = CliRunner().invoke(app, [*arguments, "--json"] if behind else ["--json", *arguments])
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert json.loads(line) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result.stderr == f"table and records: {tmp_path / 'run'}\n"


def test_quiet_prints_nothing(arguments, tmp_path):
    result = CliRunner().invoke(app, ["--quiet", *arguments, "--gallery", "1"])
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "run" / "summary.csv").is_file()
    result = CliRunner().invoke(app, ["--quiet", "report", str(tmp_path / "run"), "-o", str(tmp_path / "r.html")])
    assert (result.exit_code, result.output) == (0, "")
    page = tmp_path / "r.html"
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "-o", str(page)])
    assert result.output == f"report: {page}, {page.stat().st_size / 1000:.0f} kB\n"
    assert "Gallery: run" in (tmp_path / "r.html").read_text()


def test_evaluate_refuses_galleries(arguments):
    result = CliRunner().invoke(app, [*arguments, "--gallery", "5"])
    assert isinstance(result.exception, ValueError)
    assert "gallery must lie between 0 and the 4 images of the run, got 5" in str(result.exception)
    assert CliRunner().invoke(app, ["ladder", "--gallery", "1"]).exit_code == 2


def test_check_and_diagnose_in_json(tmp_path):
    result = CliRunner().invoke(app, ["--json", "check", "digits_cnn"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["shape"] == [1, 32, 32]
    run = ["diagnose", "--bare", "--n", "8", "--steps", "2", "--checks", "random_noise", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["--json", *run, "--queries", "4", "--eps", "0.2"])
    assert result.exit_code in (0, 2), result.output
    (row,) = json.loads(result.stdout)
    assert row["check"] == "random_noise"
    assert (result.exit_code == 2) == (row["passed"] is False)


def test_both_exclude_each_other():
    result = CliRunner().invoke(app, ["--json", "demo", "--quiet"])
    assert result.exit_code == 2
    assert "exclude each other" in result.output


def test_frames_in_each_manner(capsys):
    frame = pd.DataFrame({"attack": ["pgd", ""], "accuracy": [1 / 3, float("nan")], "loss": None})
    before = manner.set("text")
    for name, shown in (("text", "attack  accuracy, %\npgd            33.3\n\n"), ("quiet", "")):
        manner.set(name)
        print_frame(frame)
        assert capsys.readouterr().out == shown
    manner.set("json")
    print_frame(frame, ["attack"])  # the choice is for people
    rows = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in rows] == [pytest.approx(1 / 3), None]
    assert all(row["loss"] is None for row in rows)
    manner.reset(before)


def test_people_read_percent_and_files_and_json_hold_shares(tmp_path):
    """The same figures of one run in the terminal, in the report, in JSON and in the file."""
    run = ["certify", "--n", "3", "--n0", "4", "--samples", "40", "--purifiers", "none", "--out", str(tmp_path / "run")]
    printed, lines = (CliRunner().invoke(app, [*words, *run]).stdout for words in ([], ["--json"]))
    saved = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert saved["certified_accuracy"].between(0, 1).all()
    assert saved["certified_accuracy"].max() > 0
    assert [row["certified_accuracy"] for row in json.loads(lines)] == pytest.approx(saved["certified_accuracy"])
    texts = [
        f"{100 * row.certified_accuracy:.1f} ({100 * row.ci_low:.1f} to {100 * row.ci_high:.1f})"
        for row in saved.itertuples()
    ]
    header, *rows = printed.splitlines()[: 1 + len(saved)]
    assert header.endswith("certified accuracy, % (95 % interval)")
    assert [row.endswith(text) for row, text in zip(rows, texts, strict=True)] == [True] * len(saved)
    CliRunner().invoke(app, ["report", str(tmp_path / "run"), "-o", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert all(text in page for text in texts)
    assert "certified accuracy, % (95 % interval)" in page


def test_the_figures_of_checks_are_in_percent_for_people(tmp_path):
    run = ["diagnose", "--bare", "--n", "8", "--steps", "2", "--checks", "one_step", "--out", str(tmp_path)]
    printed = CliRunner().invoke(app, [*run, "--eps", "0.2"]).stdout
    (row,) = json.loads((tmp_path / "diagnose.json").read_text())
    accuracy = row["figures"]["accuracy FGSM"]
    assert 0 < accuracy <= 1
    said = f"accuracy FGSM {100 * accuracy:.1f} %, accuracy PGD {100 * row['figures']['accuracy PGD']:.1f} %, n 8"
    assert said in printed
    CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(tmp_path / "report.html")])
    assert said in (tmp_path / "report.html").read_text()


ROW = pd.DataFrame(
    {
        **{"attack": ["momentum_pgd"], "crafted_on": "bare", "defence": "none", "n": 32, "targeted": False},
        **{"accuracy": 0.5, "ci_low": 0.25, "ci_high": 0.75, "seconds_per_image": 0.125},
        **{"psnr_attacked": 15.0, "ssim_attacked": 0.5, "psnr_defended": math.nan, "ssim_defended": math.nan},
    }
)


def test_accuracies_as_they_are_made(capsys, monkeypatch):
    print_accuracies(pd.concat([ROW, ROW]))
    whole = capsys.readouterr().out
    show = accuracies_as_made()
    show(ROW)
    assert len(capsys.readouterr().out.splitlines()) == 2
    show(ROW)
    assert capsys.readouterr().out.splitlines() == whole.splitlines()[2:]
    for name in ("json", "quiet"):
        before = manner.set(name)
        accuracies_as_made()(ROW)
        assert capsys.readouterr().out == ""
        manner.reset(before)
    monkeypatch.setattr("dipdefense.cli.output.console", Console(force_terminal=True))
    accuracies_as_made()(ROW)
    header, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["momentum_pgd", "bare", "none", "32", "50.0", "25.0", "-", "75.0", "15.00", "0.500"]
    assert header.index("PSNR") == row.index("15.00")
    assert max(len(header), len(row)) <= 80


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_printed_under_a_bar_stays_on_stdout_unless_that_is_the_same_terminal(capsys, monkeypatch, terminal):
    bar = io.StringIO()
    monkeypatch.setattr("dipdefense.cli.output.errors", Console(file=bar, force_terminal=True))
    monkeypatch.setattr("dipdefense.cli.output.console", Console(force_terminal=terminal))
    with progress_bar("percent") as progress:
        progress(1, 2)
        accuracies_as_made()(ROW)
    assert ("momentum_pgd" in bar.getvalue()) == terminal
    assert ("momentum_pgd" in capsys.readouterr().out) != terminal


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys, monkeypatch):
    with progress_bar("images") as progress:  # shorter than a minute
        progress(1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("dipdefense.cli.output.LINES_APART", 0.2)
    for name in ("text", "json", "quiet"):
        before = manner.set(name)
        with progress_bar("images") as progress:
            for done in range(8, 10):  # the first eight were there before
                time.sleep(0.3)
                progress(done, 16)
        manner.reset(before)
        out, err = capsys.readouterr()
        assert out == ""
        if name == "quiet":
            assert err == ""
        else:
            first, second = err.splitlines()
            assert first == "images: 8 of 16 (50 %)"
            assert re.fullmatch(r"images: 9 of 16 \(56 %\), about 0:\d\d:\d\d left", second)


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_help_has_an_example_that_parses(path):
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert "Example: dipdefense" in result.output
    command = commands()[path]
    program, *words = shlex.split(command.epilog.removeprefix("Example: "))
    assert program == "dipdefense"
    assert tuple(words[: len(path)]) == path
    command.make_context(" ".join(path), words[len(path) :])  # an unknown option or a missing argument raises


def test_completion_is_offered_and_completes():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert "--install-completion" in result.output
    environment = {"_DIPDEFENSE_COMPLETE": "complete_bash", "COMP_WORDS": "dipdefense eva", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['dipdefense']; from dipdefense.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["evaluate"]


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["check", "digits_cnn"], 0), (["report", "nowhere"], 1), (["nothing"], 2), (["--nothing"], 2)],
)
def test_exit_codes(words, code, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dipdefense", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code
    assert (capsys.readouterr().err != "") == (code != 0)
