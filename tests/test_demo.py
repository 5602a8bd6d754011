"""The demo's promises, and that the defence falls where it must."""

import dataclasses

import pandas as pd
import pytest
import torch
from PIL import Image

from attacks import pgd
from dipdefense import default_config, defend
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.demo import DEMO, run_demo
from eval.report import write_report
from eval.robustness import evaluate_robustness


@pytest.fixture(scope="module")
def threads():
    """These fits are real: all cores, unlike the other tests."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path, threads):
    seen: list[float] = []
    table = run_demo(tmp_path, lambda done, total: seen.append(done)).set_index(["attack", "crafted_on", "defence"])
    assert table.loc[("clean", "", "none"), "accuracy"] >= 0.97
    assert table.loc[("pgd", "bare", "none"), "accuracy"] <= 0.10
    assert table.loc[("pgd", "bare", "dip"), "accuracy"] >= 0.60
    assert ("pgd", "bare", "gaussian_blur") in table.index
    assert ("pgd", "defended", "dip") in table.index
    paired = pd.read_csv(tmp_path / "paired.csv", keep_default_na=False).set_index("attack")
    assert paired.loc["pgd", "ci_low"] > 0  # better than blur, beyond chance
    assert seen == sorted(seen)
    assert seen[-1] == 100
    write_report(tmp_path, tmp_path / "report.html")
    assert 'id="absent"' not in (tmp_path / "report.html").read_text()  # every part of a report is there
    with Image.open(tmp_path / "comparison.png") as picture:
        assert min(picture.size) > 800
        assert len(picture.convert("RGB").getcolors(maxcolors=2**20) or []) > 100


@pytest.mark.slow
def test_the_defence_falls_to_a_huge_perturbation_through_it(threads):
    """If it did not, the gradients would be masked and every figure worthless."""
    digits, classifier = load_dataset("digits"), load_classifier("digits_cnn")
    images, labels = digits.batch(range(16)), digits.labels[:16]
    defended = defend(classifier, dataclasses.replace(default_config((1, 32, 32)), iterations=40))
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
