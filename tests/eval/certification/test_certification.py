"""Certified accuracy of digits by a real classifier: tables, resumption, purifiers on the same noise."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from dipdefense import certify
from dipdefense.defence.certify import SamplingPlan
from dipdefense.filters.refinement import filter_alone
from eval.baselines import BASELINES
from eval.certification import CertificationConfig, certify_dataset
from eval.certification.certified_accuracy import certified_radii, paired_differences, summarise_certificates
from eval.certification.purifiers_by_name import purifier_named
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import wilson
from eval.report import write_report

PLAN = SamplingPlan(sigma=0.25, n0=6, n=40, alpha=0.05)
CONFIG = CertificationConfig(plan=PLAN, purifiers=("none", "gaussian_blur"), n=3, block=16)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def net():
    return load_classifier("digits_cnn")


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_a_run_agrees_with_certify(tmp_path, digits, net):
    table = certify_dataset(net, digits, CONFIG, out=tmp_path)
    made = pd.read_csv(tmp_path / "certificates.csv")
    position = digits.first(3, 0)
    for name in CONFIG.purifiers:
        certificate = certify(
            net,
            digits.batch(position.tolist()),
            **{"sigma": 0.25, "n0": 6, "n": 40, "alpha": 0.05, "seed": 0, "block": 16},
            purify=purifier_named(name, 0.25),
            index=digits.index[position].tolist(),
        )
        rows = made[made["purifier"] == name]
        assert rows["prediction"].tolist() == certificate.prediction.tolist()
        np.testing.assert_allclose(rows["radius"], certificate.radius, rtol=1e-6)
        assert rows["draws"].tolist() == certificate.draws.tolist()
        shown = table[table["purifier"] == name]
        assert shown["radius"].tolist() == certified_radii(0.25)
        right = rows["correct"] & (rows["radius"] >= 0.1)
        row = shown[shown["radius"] == 0.1].iloc[0]
        assert (row["certified_accuracy"], row["ci_low"], row["ci_high"]) == (right.mean(), *wilson(right.sum(), 3))
    assert list(table) == ["purifier", "sigma", "radius", "n", "certified_accuracy", "ci_low", "ci_high"]
    assert table.groupby("purifier")["certified_accuracy"].apply(lambda share: share.is_monotonic_decreasing).all()
    paired = pd.read_csv(tmp_path / "paired.csv")
    assert set(paired["against"]) == {"none"}
    assert set(paired["purifier"]) == {"gaussian_blur"}
    assert pd.read_csv(tmp_path / "summary.csv").equals(table)
    assert not (tmp_path / "unfinished").exists()
    assert (tmp_path / "certified_accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert made["correct"].any()


def test_a_killed_run_loses_one_block_and_goes_on_to_the_same_table(tmp_path, digits, net):
    whole = certify_dataset(net, digits, CONFIG, out=tmp_path / "whole")

    def kill(done, total):
        if len(records(tmp_path / "killed")) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify_dataset(net, digits, CONFIG, out=tmp_path / "killed", progress=kill)
    with (tmp_path / "killed" / "records.jsonl").open("a") as file:
        file.write('{"torn')
    seen = []
    resumed = certify_dataset(net, digits, CONFIG, out=tmp_path / "killed", progress=lambda *done: seen.append(done))
    assert resumed.equals(whole)
    made = [{k: v for k, v in record.items() if k != "seconds"} for record in records(tmp_path / "killed")]
    assert made == [{k: v for k, v in record.items() if k != "seconds"} for record in records(tmp_path / "whole")]
    assert seen == sorted(seen)
    assert seen[-1] == (3 * 2 * 46, 3 * 2 * 46)


def test_images_and_purifiers_may_be_added_but_no_other_plan(tmp_path, digits, net):
    first = replace(CONFIG, purifiers=("none",), n=1)
    certify_dataset(net, digits, first, out=tmp_path)
    before = records(tmp_path)
    certify_dataset(net, digits, replace(CONFIG, n=2), out=tmp_path)
    after = records(tmp_path)
    assert after[: len(before)] == before
    assert {(record["purifier"], record["index"]) for record in after} == {
        (name, int(index)) for name in CONFIG.purifiers for index in digits.index[digits.first(2, 0)]
    }
    with pytest.raises(ValueError, match=r"holds a run with sigma 0.25 where this one has 0.12"):
        certify_dataset(net, digits, replace(first, plan=replace(PLAN, sigma=0.12)), out=tmp_path)


def test_the_default_purifier_is_the_fit(tmp_path, digits, net):
    config = CertificationConfig(plan=SamplingPlan(sigma=0.25, n0=1, n=2, alpha=0.4), n=1, block=4)
    table = certify_dataset(net, digits, config, out=tmp_path)
    assert set(table["purifier"]) == {"dip"}
    described = json.loads((tmp_path / "config.json").read_text())["purifiers"]["dip"]
    assert described["fit"]["iterations"] == 60
    assert described["filters"].startswith("dipdefense.filters.refinement.refine ")
    assert not (tmp_path / "paired.csv").exists()


def test_purifiers_are_told_the_noise_of_the_plan(digits):
    images, level = digits.batch([0, 1]), torch.full((2,), 0.25)
    assert torch.equal(purifier_named("cosine", 0.25)(images), filter_alone(images, level).clamp(0, 1))
    assert purifier_named("dip", 0.25) == "dip"
    assert purifier_named("none", 0.25) is None
    assert torch.equal(purifier_named("jpeg", 0.25)(images), BASELINES["jpeg"](images, 25))
    strengths = {name: getattr(purifier_named(name, 0.25), "keywords", {}) for name in BASELINES}
    assert strengths == {
        "gaussian_blur": {"sigma": 0.7},
        "median": {},
        "non_local_means": {"h": 0.1875},
        "total_variation": {"weight": 0.175},
        "jpeg": {"quality": 25},
        "bit_depth": {},
        "bm3d": {"sigma": 0.25},
    }


def test_an_abstention_is_certified_at_no_radius():
    certificates = pd.DataFrame(
        {
            "purifier": ["none"] * 4 + ["dip"] * 4,
            "index": [0, 1, 2, 3] * 2,
            "correct": [True, True, False, True] * 2,
            "abstained": [True, False, False, False] + [False] * 4,
            "radius": [0.0, 0.1, 0.3, 0.25, 0.01, 0.24, 0.3, 0.26],
        }
    )
    table = summarise_certificates(certificates, 0.1).set_index(["purifier", "radius"])["certified_accuracy"]
    assert table.xs("none")[[0.0, 0.1, 0.2, 0.25, 0.3]].tolist() == [0.5, 0.5, 0.25, 0.25, 0.0]
    assert table.xs("dip")[[0.0, 0.1, 0.25, 0.3]].tolist() == [0.75, 0.5, 0.25, 0.0]
    three = pd.concat([certificates, certificates[:4].assign(purifier="cosine")])
    pairs = paired_differences(three, 0.1)[["purifier", "against"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["dip", "cosine"], ["dip", "none"], ["cosine", "none"]]  # the bare classifier last
    paired = paired_differences(certificates, 0.1).set_index("radius")
    assert paired.loc[[0.0, 0.1, 0.2], "difference"].tolist() == [0.25, 0.0, 0.25]
    assert ((paired["ci_low"] <= paired["difference"]) & (paired["difference"] <= paired["ci_high"])).all()


def test_radii_reach_four_sigma_and_hold_those_that_are_quoted():
    radii = certified_radii(0.12)
    assert (radii[0], radii[-1]) == (0, 0.48)
    assert {0.1, 0.25} < set(radii)
    assert 0.5 not in radii
    assert len(radii) == 19


def test_with_targets_the_tables_have_these_radii_alone(tmp_path, digits, net):
    """An image ends once they are decided, so at other radii it might have been certified with more draws."""
    assert certified_radii(0.25, (0.2, 0.1)) == [0.1, 0.2]
    plan = replace(PLAN, n=100, targets=(0.2, 0.1))
    table = certify_dataset(net, digits, replace(CONFIG, plan=plan), out=tmp_path / "run")
    assert table["radius"].tolist() == [0.1, 0.2] * 2
    assert pd.read_csv(tmp_path / "run" / "paired.csv")["radius"].tolist() == [0.1, 0.2]
    made = pd.read_csv(tmp_path / "run" / "certificates.csv").set_index("purifier").loc["none"]
    assert (made["draws"] < plan.n0 + plan.n).any()
    shares = [(made["correct"] & (made["radius"] >= radius)).mean() for radius in (0.1, 0.2)]
    assert table.set_index("purifier").loc["none", "certified_accuracy"].tolist() == shares
    assert not (tmp_path / "run" / "certified_accuracy.png").exists()
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Differences of two purifiers" in page
    assert "Certified accuracy, sigma 0.25" not in page  # the title of the curve


def test_the_report_shows_the_curve(tmp_path, digits, net):
    certify_dataset(net, digits, CONFIG, out=tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Certificates" in page
    assert "Certified accuracy, sigma 0.25" in page
    assert "Differences of two purifiers" in page


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"purifiers": ("nope",)},
            ValueError,
            "purifiers must be among dip, cosine, none, .*, got 'nope'",
        ),
        ({"purifiers": "dip"}, TypeError, "purifiers must be a sequence of names, got 'dip'"),
        ({"n": 0}, ValueError, "n must be an integer of at least 1, got 0"),
        ({"block": 0}, ValueError, "block must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        replace(CONFIG, **settings)


def test_more_images_than_there_are_are_refused(tmp_path, digits, net):
    with pytest.raises(ValueError, match="n must be at most the 449 images of digits, got 450"):
        certify_dataset(net, digits, replace(CONFIG, n=450), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
