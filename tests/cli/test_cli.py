"""The command, as a user runs it: in a process of its own where work is done."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from dipdefense.cli import app, main
from dipdefense.files.reading import read_image
from dipdefense.files.writing import write_image

QUICK = {
    "architecture_options": {"channels": [8, 8], "skip_channels": 0},
    "input_channels": 8,
    "iterations": 30,
}


def dipdefense(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "from dipdefense.cli import main; main()",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


def assert_refused(message: str, *arguments: object) -> None:
    """One clear line on stderr, exit code 1, no traceback; in this process, since one of its own takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["dipdefense", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 1, err.getvalue()
    assert message in err.getvalue()
    assert len(err.getvalue().strip().splitlines()) == 1
    assert out.getvalue() == ""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QUICK))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    write_image(torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0)), path)
    return path


def test_help_names_the_commands():
    result = dipdefense("--help", COLUMNS="200")
    assert result.returncode == 0
    for command in ("demo", "purify", "evaluate", "benchmark"):
        assert command in result.stdout


def test_purify_a_file(tmp_path, picture, config):
    result = dipdefense("purify", picture, tmp_path / "out.png", "--config", config)
    assert (result.returncode, result.stderr) == (0, "")
    assert read_image(tmp_path / "out.png").shape == (3, 20, 24)


def test_purify_a_folder_leaves_out_the_torn_and_writes_the_rest(tmp_path, config):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, shape in (("a.png", (1, 8, 8)), ("c.png", (3, 20, 24))):
        write_image(torch.rand(*shape, generator=torch.Generator().manual_seed(0)), folder / name)
    whole = (folder / "c.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    (folder / "d.png").write_bytes(b"")
    result = dipdefense("purify", folder, tmp_path / "out", "--config", config)
    assert result.returncode == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert "b.png" in result.stderr
    assert "d.png" in result.stderr
    assert "2 of 4 images were left out" in result.stderr


def test_purify_refuses(tmp_path, picture, config):
    assert_refused("missing.png", "purify", tmp_path / "missing.png", tmp_path / "out.png")
    assert_refused("out.xyz", "purify", picture, tmp_path / "out.xyz", "--config", config)
    (tmp_path / "empty").mkdir()
    assert_refused("empty", "purify", tmp_path / "empty", tmp_path / "out")
    assert_refused("device must be one that this machine has", "purify", picture, tmp_path / "o.png", "--device", "tpu")
    config.write_text("{")
    assert_refused("config.json: must be JSON", "purify", picture, tmp_path / "out.png", "--config", config)
    config.write_text('{"iteration": 3}')
    assert_refused("settings must be among architecture", "purify", picture, tmp_path / "out.png", "--config", config)
    config.write_text('{"memory_gb": 4}')
    assert_refused(
        "must state architecture_options and iterations", "purify", picture, tmp_path / "o.png", "--config", config
    )
    before = picture.read_bytes()
    assert_refused("OUTPUT must not replace an image that it comes from", "purify", picture, picture)
    assert_refused("OUTPUT must not replace an image that it comes from", "purify", picture, tmp_path)
    assert picture.read_bytes() == before
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "command", [("purify", "in.png", "o.png"), ("denoise", "in.png", "o.png"), ("benchmark", "curve", "in.png")]
)
def test_an_image_above_the_pixel_limit_is_refused(tmp_path, picture, monkeypatch, command):
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", "479")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"in\.png: an image must have at most 479 pixels, got 24 x 20 = 480; set "):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_purify_refuses_an_unwritable_target_before_it_computes(tmp_path, picture):
    (tmp_path / "file").write_text("precious")
    assert_refused("file", "purify", picture, tmp_path / "file" / "out.png")
    assert (tmp_path / "file").read_text() == "precious"


def test_evaluate_prints_and_writes_one_table(tmp_path, config):
    command = ("evaluate", "--n", 6, "--steps", 2, "--eps", "51/255", "--attacks", "pgd", "--config", config)
    result = dipdefense(*command, "--filters", "gaussian_blur", "--out", tmp_path / "run")
    assert (result.returncode, result.stderr) == (0, "")
    header, *rows = [line.split("\t") for line in result.stdout.splitlines() if "\t" in line]
    assert header[:5] == ["attack", "crafted on", "defence", "n", "accuracy %"]
    assert [row[:3] for row in rows] == [
        [attack, crafted, defence]
        for attack, crafted in (("clean", ""), ("pgd", "bare"))
        for defence in ("none", "dip", "gaussian_blur")
    ]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "probe.json", "records.jsonl", "summary.csv", "summary.json", "paired.csv"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["eps"] == pytest.approx(0.2)


def test_evaluate_tells_the_distortion_that_an_attack_without_a_budget_needs(tmp_path, config):
    command = ["evaluate", "--n", "2", "--attacks", "deepfool", "--config", str(config), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert re.search(r"deepfool, crafted on bare: median L2 \d\.\d{3}, median Linf 0\.\d{4}\n", result.stdout)
    assert "pgd" not in result.stdout


def test_evaluate_and_ladder_take_the_smoothed_classifier(tmp_path):
    words = ["evaluate", "--smooth", "0.1:2", "--n", "2", "--attacks", "pgd", "--steps", "2"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    words = ["ladder", "--smooth", "0.1:3", "--rungs", "oblivious", "--images", "cheap=2"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "ladder")])
    assert result.exit_code == 0, result.output
    assert "majority" in result.stdout
    records = (tmp_path / "ladder" / "records.jsonl").read_text().splitlines()
    assert len(records) == 2 * 2 * 3  # clean and attacked, two images, three votes


def test_the_ladder_takes_all_images_where_there_are_fewer_than_its_default(tmp_path, config):
    words = [
        "ladder",
        "--index",
        ":12",
        "--rungs",
        "oblivious",
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 2 * 3


@pytest.mark.slow
def test_the_ladder_prints_and_writes_one_table(tmp_path, config):
    command = ("ladder", "--rungs", "oblivious,bpda", "--images", "cheap=3,gradient=2", "--fresh")
    result = dipdefense(*command, "--eps", "0.2", "--config", config, "--out", tmp_path / "run")
    assert (result.returncode, result.stderr) == (0, "")
    assert "worst case" in result.stdout
    assert "majority" in result.stdout
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "probe.json", "records.jsonl", "summary.csv", "summary.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "svhn"), "digits, digits_train, mnist, cifar10, folder"),
        (("--classifier", "vgg"), "digits_cnn"),
        (
            ("--attacks", "cw"),
            "attack must be one of fgsm, pgd, bim, momentum_pgd, pgd_flip",
        ),
        (("--filters", "magic"), "filters must be among"),
        (("--eps", "-1/255"), "eps must not be negative"),
        (("--eps", "eight"), "eps must be a number such as 0.03 or 8/255, got 'eight'"),
        (("--norm", "l0"), "norm must be one of linf, l2"),
        (("--eps", "8/"), "eps must be a number such as"),
        (("--seed", "-1"), "seed"),
        (("--index", "-5:"), "index must be START:STOP"),
        (("--index", "7"), "index must be START:STOP"),
        (("--index", "9000:"), "must hold at least one image of digits"),
        (("--n", "9999"), "n must be at most the 449 images of digits, got 9999"),
        (("--crafted-on", "both:many"), "crafted_on must be bare, defended, both, or such as both:32, got 'both:many'"),
        (("--crafted-on", "bare:3"), "crafted_on must be bare, defended, both, or such as both:32, got 'bare:3'"),
        (("--crafted-on", "none:3"), "crafted_on must be one of bare, defended, both, got 'none'"),
        (("--crafted-on", "both:0"), "n_defended must be None or an integer of at least 1, got 0"),
        (("--decision", "magic"), "decision must be one of"),
        (("--tile", "0"), "tile must be"),
        (("--smooth", ".12"), "fit must be left out with sigma, which has its own, got FitConfig("),
        (("--smooth", ".12:many"), "smooth must be SIGMA or SIGMA:VOTES, such as 0.12:16, got '.12:many'"),
        (("--smooth", "0"), "sigma must be positive and finite, got 0.0"),
        (("--smooth", "1:0"), "votes must be an integer of at least 1, got 0"),
        (("--device", "ray:workers=many"), "device must be such as ray:workers=4,cpus=1,gpus=0,address=HOST:PORT"),
        (("--dataset", "mnist", "--data", "nowhere"), "nowhere does not exist"),
        (("--classifier", "mnist_lenet"), "weights"),
        (("--out", "/proc/nothing"), "/proc/nothing"),
    ],
)
def test_evaluate_refuses(arguments, message, config, tmp_path):
    command = ["evaluate", "--config", str(config), "--out", str(tmp_path / "run"), *arguments]
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "gradient:3"), "images must be COST=NUMBER, such as"),
        (("--images", "dear=3"), "n must name each of the costs cheap, gradient"),
        (("--rungs", "magic"), "rungs must be among oblivious"),
        (("--rungs", "transfer"), "source must be another classifier"),
        (("--images", "cheap=9999"), "n must be at most the 449 images of digits, got 9999"),
        (("--rungs", "bpda", "--images", "gradient=2", "--budget", "0.01"), "budget must be at least"),
        (("--norm", "l0"), "norm must be one of linf, l2"),
        (("--decision", "magic"), "decision must be one of"),
    ],
)
@pytest.mark.parametrize("command", [("ladder",), ("evaluate", "--adaptive")])
def test_the_ladder_refuses(command, arguments, message, config, tmp_path):
    words = [*command, "--config", str(config), "--out", str(tmp_path / "run"), *arguments]
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


def test_the_older_spelling_of_the_ladder_names_the_command(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--adaptive", "--rungs", "magic"])
    assert "evaluate --adaptive is deprecated: its name is dipdefense ladder" in result.stderr
    result = CliRunner().invoke(app, ["evaluate", "--rungs", "bpda"])
    assert result.exit_code == 2


def test_evaluate_has_few_options_in_groups():
    command = typer.main.get_command(app).commands["evaluate"]
    assert len(command.params) <= 22
    assert all(option.rich_help_panel for option in command.params)
    assert command.params[-1].default != typer.main.get_command(app).commands["ladder"].params[-1].default


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--decision", "magic"), "decision must be one of last, "), (("--tile", "0"), "tile must be")],
)
def test_diagnose_refuses_variants_that_there_are_not(arguments, message, config, tmp_path):
    command = ["diagnose", "--n", "8", "--config", str(config), "--out", str(tmp_path / "run"), *arguments]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_a_local_run_does_not_load_the_code_of_the_cluster(tmp_path, config):
    code = "import sys; from dipdefense.cli import app; app(sys.argv[1:], standalone_mode=False); "
    code += "print([name for name in sys.modules if name in ('ray', 'eval.robustness.distributed')])"
    words = ["evaluate", "--n", "2", "--attacks", "", "--config", str(config), "--out", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "run" / "summary.csv").exists()


def test_a_variant_of_the_defence_is_what_its_options_say(tmp_path, config):
    """The decision and the tiles of the command line stand in the description of the run, and in its figures."""
    command = ["--config", str(config), "--tile", "16", "--decision", "mean_softmax", "--out", str(tmp_path / "run")]
    words = ["evaluate", "--n", "3", "--attacks", "", *command]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    described = json.loads((tmp_path / "run" / "config.json").read_text())["defences"]["dip"]
    assert (described["tile"], described["decision"].partition("(")[0]) == (16, "MeanSoftmax")


@pytest.mark.parametrize(
    "words",
    [
        ("ladder", "--rungs", "oblivious", "--images", "cheap=1"),
        ("benchmark", "defence", "--methods", "default", "--attacks", "", "--looks", "1", "--n", "1"),
    ],
)
@pytest.mark.parametrize(("option", "mirrored"), [((), True), (("--no-mirror",), False)])
def test_no_mirror(tmp_path, words, option, mirrored):
    """The default decision for colour images classifies mirror images, and without the mirror none."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", images=pixels, labels=np.array([0, 1]))
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    subject = ["--dataset", "cifar10", "--data", f"{tmp_path}/test.npz", "--classifier", f"{tmp_path}/net.py:build"]
    command = [*words, *subject, *option, "--out", str(tmp_path / "run")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    defences = json.loads((tmp_path / "run" / "config.json").read_text())["defences"].values()
    (decision,) = (defence["decision"] for defence in defences if "decision" in defence)
    assert ("mirror" in decision) == mirrored


def test_evaluate_refuses_in_one_line(config, tmp_path):
    command = ("evaluate", "--config", config, "--out", tmp_path / "run", "--norm", "l0")
    assert_refused("norm must be one of linf, l2", *command)


@pytest.mark.slow
def test_benchmark_iterations(config, tmp_path):
    command = ("benchmark", "iterations", "--n", 4, "--longest", 20, "--every", 10, "--config", config)
    result = dipdefense(*command, "--out", tmp_path / "run")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()[:3] == ["attack", "iteration", "n"]
    assert len((tmp_path / "run" / "iterations.csv").read_text().splitlines()) == 5
    assert_refused("every must lie between 1 and the 20 iterations of the fit, got 0", *command, "--every", 0)


@pytest.mark.slow
def test_benchmark_defence(config, tmp_path):
    command = ("benchmark", "defence", "--n", 4, "--steps", 2, "--eps", "25/255,51/255", "--attacks", "pgd")
    command = (*command, "--methods", "bare,jpeg,dip", "--looks", 3, "--views", "identity,mirror", "--config", config)
    result = dipdefense(*command, "--baseline", "jpeg:75", "--out", tmp_path / "run")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()[:4] == ["defence", "strength", "attack", "eps"]
    assert len(result.stdout.splitlines()) == 1 + 3 * 2 * (1 + 5 + 3) + 2
    assert result.stdout.endswith("these attacks do not know the defence; judge it by dipdefense ladder\n")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    kept = {"config.json", "probe.json", "records.jsonl"}
    assert names == kept | {"summary.csv", "summary.json", "paired.csv", "roc.csv", "curves.png", "roc.png"}
    result = dipdefense(*command, "--fit-seed", 1, "--out", tmp_path / "other")
    assert (result.returncode, result.stderr) == (0, "")
    described = json.loads((tmp_path / "other" / "config.json").read_text())
    assert described["seed"] == 0
    assert {defence["fit_seed"] for defence in described["defences"].values() if "fit_seed" in defence} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "magic"), "methods must be among bare, noise_level, jpeg"),
        (("--methods", ""), "methods must be at least one, got none"),
        (("--views", "upside"), "views must be one or more of identity, mirror"),
        (("--eps", ""), "eps must be one or more radii such as 4/255,8/255"),
        (("--looks", "31"), "looks must lie between 1 and the 30 iterations of the fit, got 31"),
        (("--longest", "0"), "iterations must be an integer of at least 1"),
        (("--restarts", "0"), "restarts must be an integer of at least 1, got 0"),
        (("--baseline", "jpeg"), "baseline must be a number"),
        (("--baseline", "magic:3"), "baseline must be a setting of the methods"),
    ],
)
def test_benchmark_defence_refuses(arguments, message, config, tmp_path):
    command = ["benchmark", "defence", "--config", str(config), "--out", str(tmp_path / "run"), *arguments]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_benchmark_gradients(config, tmp_path):
    command = [
        "benchmark",
        "gradients",
        "--n",
        "2",
        "--gradients",
        "truncated",
        "--steps",
        "2",
        "--config",
        str(config),
    ]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert len((tmp_path / "slopes.csv").read_text().splitlines()) == 1 + 2 * 6  # a random direction beside it
    assert len((tmp_path / "cost.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gradients", "magic"), "gradients must be among straight_through, blur, .*, got 'magic'"),
        (("--steps", "2.5"), "steps must be integers of at least 1 such as 25,100,225, got '2.5'"),
        (("--steps", "0"), "steps must be integers of at least 1"),
        (("--n", "0"), "n must lie between 1 and the 449 images, got 0"),
    ],
)
def test_benchmark_gradients_refuses(arguments, message, tmp_path):
    command = ["benchmark", "gradients", "--out", str(tmp_path / "run"), *arguments]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_benchmark_speed(monkeypatch, tmp_path):
    """The options reach the benchmark, and its table is printed; the benchmark itself takes minutes."""
    table = pd.DataFrame([{"point": "tiny", "precision": "full", "batch": 1, "ratio": 2.0}])
    asked = []
    monkeypatch.setattr(
        "eval.fits.speed.benchmark_speed",
        lambda points, progress, **options: asked.append({"points": points, **options}) or table,
    )
    chosen = ("--points", "small grey, large", "--batches", "1,8", "--precisions", "full")
    for options in ((), (*chosen, "--no-compiled", "--out", str(tmp_path))):
        result = CliRunner().invoke(app, ["benchmark", "speed", *options])
        assert result.exit_code == 0, result.output
        assert result.output.split() == ["point", "precision", "batch", "ratio", "tiny", "full", "1", "2"]
    usual = {"points": None, "batches": None, "precisions": None, "compiled": True, "out": None}
    named = {"points": ["small grey", "large"], "batches": [1, 8], "precisions": ["full"]}
    assert asked == [
        usual | {"device": torch.device("cpu")},
        usual | named | {"device": torch.device("cpu"), "compiled": False, "out": tmp_path},
    ]


def test_benchmark_speed_refuses(tmp_path):
    for options, message in {
        ("--device", "tpu"): "device must be one that this machine has",
        (
            "--points",
            "small",
        ): "points must be among small grey, small colour, large, large bilinear on cpu, got 'small'",
        ("--precisions", "tf32"): "precisions must be among full, bfloat16 on cpu, got 'tf32'",
        ("--batches", "1,x"): "batches must be integers of at least 1 such as 1,64,512, got '1,x'",
        ("--batches", "0"): "batches must be integers of at least 1",
    }.items():
        assert_refused(message, "benchmark", "speed", *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_benchmark_stopping(tmp_path, config):
    folder, options = tmp_path / "images", tmp_path / "options.json"
    folder.mkdir()
    for i in range(3):
        write_image(torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(i)), folder / f"{i}.png")
    options.write_text('{"wmv": {"window": 5, "patience": 8}}')
    command = ["benchmark", "stopping", "--data", folder, "--resize", 20, "--crop", 16, "--n", 2, "--config", config]
    command += ["--noises", "gaussian", "--levels", "low", "--iterations", 20, "--out", tmp_path / "run"]
    result = dipdefense(*command, "--rules", "wmv,discrepancy", "--options", options)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()[:4] == ["rule", "noise", "level", "n"]
    assert "2 of 2 fits were too short" in result.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "records.jsonl", "summary.csv"}
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 4

    def refused(message: str, *more: object) -> None:
        ended = CliRunner().invoke(app, list(map(str, [*command, *more])))
        assert isinstance(ended.exception, ValueError)
        assert message in str(ended.exception)

    refused("iterations must be at least the 100 iterates that wmv sees", "--rules", "wmv")
    refused("rules must be among fixed, wmv", "--rules", "magic")
    refused("n must lie between 1 and the 3 images", "--n", 4)
    refused("rules must be among emv, got 'wmv'", "--rules", "emv", "--options", options)
    options.write_text('{"wmv": 5}')
    refused("must be a JSON object of rule names", "--options", options)
    options.write_text("{")
    refused("options.json: must be JSON", "--options", options)


@pytest.mark.data
def test_a_weights_file_that_does_not_fit_names_the_key(data):
    weights = data / "weights" / "mnist_lenet5_clntrained.pt"
    assert_refused("conv1", "evaluate", "--classifier", "cifar_resnet20", "--weights", weights)
