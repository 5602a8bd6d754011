"""The demo's promises, and that the defence falls where it must."""

import dataclasses
import json
import math
from itertools import pairwise

import pandas as pd
import pytest
import torch
from closed_form_classifiers import FIT
from PIL import Image
from typer.testing import CliRunner

from attacks import pgd
from dipdefense import DefendedClassifier, Purifier, defence_for, defend
from dipdefense.cli import app
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.demo import DEMO, _telling, run_demo
from eval.report import write_report
from eval.report.findings import NOT_ADAPTIVE
from eval.robustness.evaluate import evaluate_robustness
from eval.robustness.scored_defences import name_of


@pytest.fixture(scope="module")
def threads():
    """These fits are real: all cores, unlike the other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, threads):
    """The folder of the main job, its table, the rows as they were told, and the progress."""
    folder, told, seen = tmp_path_factory.mktemp("demo"), [], []
    table = run_demo(folder, progress=lambda done, total: seen.append(done), each=told.append)
    return folder, table, told, seen


@pytest.mark.slow
def test_the_demo_keeps_its_promises(demo):
    folder, table, told, _ = demo
    pd.testing.assert_frame_equal(pd.concat(told, ignore_index=True), table)  # in this order
    accuracy = table.set_index(["attack", "crafted_on", "defence"])["accuracy"]
    assert accuracy["clean", "", "none"] >= 0.97
    for attack in ("fgsm", "pgd", "momentum_pgd"):
        assert accuracy[attack, "bare", "none"] < accuracy[attack, "bare", "dip"]
        assert (attack, "bare", "gaussian_blur") in accuracy.index
    assert accuracy["pgd", "bare", "none"] <= 0.10
    assert accuracy["pgd", "bare", "dip"] >= 0.60
    assert accuracy["pgd", "defended", "dip"] < accuracy["pgd", "bare", "dip"] - 0.2  # the attacker knows the defence
    paired = pd.read_csv(folder / "paired.csv", keep_default_na=False).set_index("attack")
    assert paired.loc["pgd", "difference"] > 0.1  # better than blur; the interval of 24 digits may touch zero
    with Image.open(folder / "comparison.png") as picture:
        assert min(picture.size) > 800
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20) or []) > 100


@pytest.mark.slow
def test_the_demo_says_how_far_it_is(demo):
    *_, seen = demo
    assert seen[0] < 1
    assert seen[-1] == 100
    assert all(0 <= after - before < 1 for before, after in pairwise(seen))  # every fit is foreseen


@pytest.mark.slow
def test_the_full_demo_adds_all_that_a_report_shows(demo):
    folder, table, _, _ = demo
    seen: list[float] = []
    records = (folder / "records.jsonl").read_bytes()
    pd.testing.assert_frame_equal(run_demo(folder, full=True, progress=lambda done, total: seen.append(done)), table)
    assert (folder / "records.jsonl").read_bytes() == records  # the main job is not repeated
    assert seen == sorted(seen)
    assert seen[-1] == 100
    write_report(folder, folder / "report.html")
    assert 'id="absent"' not in (folder / "report.html").read_text()  # every part of a report is there


def test_a_purifier_that_tells_purifies_as_any_other():
    images, told = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), []
    telling = _telling(told.append).variant(config=FIT)
    assert torch.equal(telling(images), Purifier(FIT)(images))
    telling.reconstruct(images[:2])
    assert told == sorted(told)
    assert (0 < told[0] < 1, told[-1]) == (True, 5)  # images
    assert name_of(DefendedClassifier(torch.nn.Flatten(), telling)) == "dip"


@pytest.mark.parametrize(("words", "full"), [([], False), (["--full"], True)])
def test_the_command_prints_rows_as_they_are_made(monkeypatch, tmp_path, words, full):
    row = pd.DataFrame(
        {
            **{"attack": ["clean"], "crafted_on": "", "defence": "dip", "n": 4, "accuracy": 1.0, "ci_low": 0.5},
            **{"eps": 0.0, "dataset": "digits", "classifier": "digits_cnn"},
            **{"ci_high": 1.0, "seconds_per_image": 0.1, **dict.fromkeys(("psnr_attacked", "ssim_attacked"), math.nan)},
            **dict.fromkeys(("psnr_defended", "ssim_defended"), math.nan),
        }
    )

    def run(out, **given):
        assert (out, given["full"]) == (tmp_path, full)
        given["progress"](50, 100)
        given["each"](row)
        return row

    monkeypatch.setattr("eval.demo.run_demo", run)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *words])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("attack\tcrafted on")
    assert lines[1] == "clean\t\tdip\t4\t100.0\t50.0 - 100.0\t\t\t0.1000"
    assert lines[2] == f"table: {tmp_path / 'summary.csv'}"
    assert lines[-6].endswith(f"dipdefense report {tmp_path} -o report.html")
    assert lines[-5] == f"picture: {tmp_path / 'comparison.png'}"
    assert lines[-4].startswith("It shows 4 of the digits: clean, attacked by PGD, ")
    assert "100.0 % (50.0 to 100.0) are classified right with the defence" in lines[-3]
    assert lines[-2:] == ["No attack was run that does not know the defence.", NOT_ADAPTIVE]
    assert (f"dipdefense demo --full --out {tmp_path}" in result.stdout) != full
    asked = CliRunner().invoke(app, ["--json", "demo", "--out", str(tmp_path), *words])
    assert [one["attack"] for one in json.loads(asked.stdout)] == ["clean"]


@pytest.mark.slow
def test_the_defence_falls_to_a_huge_perturbation_through_it(threads):
    """If it did not, the gradients would be masked and every figure worthless."""
    digits, classifier = load_dataset("digits"), load_classifier("digits_cnn")
    images, labels = digits.batch(range(16)), digits.labels[:16]
    defended = defend(classifier, dataclasses.replace(defence_for((1, 32, 32)).fit, iterations=40))
    adversarial = pgd(defended, images, labels, eps=0.5, steps=10)
    with torch.no_grad():
        assert (defended(images).argmax(1) == labels).float().mean() >= 0.9
        assert (defended(adversarial).argmax(1) == labels).float().mean() <= 0.125


@pytest.mark.slow
@pytest.mark.data
def test_cifar10_is_defended_beyond_chance(tmp_path, data, threads):
    """64 images on which no choice was made; n = 500 stands in docs/results.md."""
    table = evaluate_robustness(
        load_classifier("cifar_resnet20", data / "weights" / "cifar10_resnet20.pt"),
        load_dataset("cifar10", data / "cifar10" / "test.npz").between(1000, None),
        dataclasses.replace(DEMO, attacks=("pgd",), eps=8 / 255, n=64, crafted_on="bare", batch_size=64, seed=1),
        out=tmp_path,
    ).set_index(["attack", "defence"])
    assert table.loc[("clean", "none"), "accuracy"] >= 0.8
    assert table.loc[("pgd", "none"), "accuracy"] <= 0.05
    assert table.loc[("clean", "dip"), "ci_high"] >= 0.78
    assert table.loc[("pgd", "dip"), "ci_low"] >= 0.40
