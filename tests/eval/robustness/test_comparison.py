"""The defence benchmark: its tables and pictures, its resumption, and what it refuses."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from attacks import pgd
from dipdefense import FitConfig, Purifier
from eval.baselines import BASELINES
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.metrics import psnr, ssim
from eval.robustness.comparison import FURTHER, ComparisonConfig, benchmark_defence
from eval.robustness.comparison_plots import save_curves, save_rocs
from eval.robustness.defences_by_name import build_methods
from eval.robustness.detection import detection_table
from eval.robustness.scored_defences import Setting, Verdict
from eval.robustness.summary import COLUMNS, DISTORTION, QUALITY, paired_differences, summarise

QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=20)
RUN = ComparisonConfig(attacks=("fgsm", "pgd"), steps=3, n=10, batch_size=4, radii=(0.1, 0.3))
NAMES = ("bare", "median", "dip", "detector_gated", "cross_boundary")
EXACT = ["defence", "strength", "attack", "eps", "n", "accuracy", "ci_low", "ci_high"]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits_cnn")


def run(classifier, digits, out, config=RUN, names=NAMES, methods=None, fit=QUICK, **options):
    built = build_methods(names, classifier, Purifier(fit), iterations=(10, 20))
    return benchmark_defence(classifier, digits, built if methods is None else methods, config, out=out, **options)


def lines(out):
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def test_tables_and_pictures(tmp_path, classifier, digits):
    table = run(classifier, digits, tmp_path)
    settings = 1 + 2 + 2 + 6 + 1
    assert len(table) == settings * 5  # clean, and two attacks of two radii
    assert table["n"].eq(10).all()
    assert list(table)[: len(COLUMNS)] == COLUMNS
    purified = ~table["defence"].eq("bare")
    assert table.loc[purified, ["psnr_defended", "ssim_defended"]].notna().all(axis=None)
    assert table.loc[~purified, ["psnr_defended", "ssim_defended"]].isna().all(axis=None)
    attacks = ~table["attack"].eq("clean")
    assert table.loc[attacks, ["psnr_attacked", "ssim_attacked"]].notna().all(axis=None)
    assert ((table["ci_low"] <= table["accuracy"]) & (table["accuracy"] <= table["ci_high"])).all()
    by = table.set_index(["defence", "strength", "attack", "eps"])["accuracy"]
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[:10]
    images, labels = digits.batch(order.tolist()), digits.labels[order]
    attacked = [pgd(classifier, *pair, eps=0.3, steps=3) for pair in zip(images.split(4), labels.split(4), strict=True)]
    for inputs, key in ((images, ("clean", 0.0)), (torch.cat(attacked), ("pgd", 0.3))):
        right = (classifier(inputs).argmax(1) == labels).float().mean().item()
        assert by["bare", 0, *key] == pytest.approx(right)
    paired = pd.read_csv(tmp_path / "paired.csv")
    assert len(paired) == (settings - 1) * 5
    row = paired.query("defence == 'median' and strength == 5 and attack == 'pgd' and eps == 0.3").iloc[0]
    assert row["difference"] == pytest.approx(by["median", 5, "pgd", 0.3] - by["bare", 0, "pgd", 0.3])
    roc = pd.read_csv(tmp_path / "roc.csv")
    assert len(roc) == settings * 4
    fooled = roc.query("attack == 'pgd' and eps == 0.3")["n_adversarial"].unique().tolist()
    assert fooled == [round(10 * (by["bare", 0, "clean", 0.0] - by["bare", 0, "pgd", 0.3]))]
    for name in ("config.json", "summary.csv", "summary.json", "curves.png", "roc.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert len(lines(tmp_path)) == settings * 5 * 10


def test_psnr_and_ssim_are_those_of_what_was_classified(tmp_path, classifier, digits):
    """Of each iteration alone, of the mean of several, and of a filtered image, against the clean one."""
    names, config = ("bare", "noise_level", "median", "dip", "dip_mean"), dataclasses.replace(RUN, n=4, radii=(0.3,))
    table = run(classifier, digits, tmp_path, config, names).set_index(["defence", "strength", "attack"])
    positions = digits.first(4, config.seed)
    images, labels = digits.batch(positions.tolist()), digits.labels[positions]
    for attack, inputs in (("clean", images), ("pgd", pgd(classifier, images, labels, eps=0.3, steps=3))):
        early, late = Purifier(QUICK).trajectory(inputs, (10, 20))
        expected = {("dip", 10.0): early, ("dip", 20.0): late, ("dip_mean", 20.0): (early + late) / 2}
        for (defence, strength), purified in {**expected, ("median", 3.0): BASELINES["median"](inputs, size=3)}.items():
            row = table.loc[defence, strength, attack]
            assert row["psnr_defended"] == pytest.approx(psnr(purified, images).mean().item(), abs=0.02)
            assert row["ssim_defended"] == pytest.approx(ssim(purified, images).mean().item(), abs=1e-3)
    row = table.loc["bare", 0.0, "pgd"]
    assert row["psnr_attacked"] == pytest.approx(psnr(inputs, images).mean().item(), abs=1e-3)
    assert table.loc[["bare", "noise_level"], ["psnr_defended", "ssim_defended"]].isna().all(axis=None)


def test_a_killed_run_ends_with_the_same_table(tmp_path, classifier, digits):
    def kill(made, total):
        if made > total // 2:
            raise KeyboardInterrupt

    few = {"config": dataclasses.replace(RUN, attacks=("pgd",), n=6, radii=(0.2,)), "names": ("bare", "dip")}
    whole = run(classifier, digits, tmp_path / "whole", **few)
    with pytest.raises(KeyboardInterrupt):
        run(classifier, digits, tmp_path / "killed", progress=kill, **few)
    path = tmp_path / "killed" / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])  # and the last record torn
    resumed = run(classifier, digits, tmp_path / "killed", **few)
    pd.testing.assert_frame_equal(resumed[EXACT], whole[EXACT])
    keys = [(r["attack"], r["eps"], r["defence"], r["strength"], r["index"]) for r in lines(tmp_path / "killed")]
    assert len(keys) == len(set(keys)) == len(lines(tmp_path / "whole"))


def test_more_methods_attacks_and_radii_keep_the_records_there_are(tmp_path, classifier, digits):
    calls = []
    count = {"progress": lambda *n: calls.append(n)}
    small = dataclasses.replace(RUN, attacks=("pgd",), n=4, radii=(0.1,))
    run(classifier, digits, tmp_path, small, ("bare", "dip"))
    run(classifier, digits, tmp_path, small, ("bare", "dip"), **count)
    assert calls == []
    before = len(lines(tmp_path))
    table = run(classifier, digits, tmp_path, dataclasses.replace(RUN, n=4))
    assert len(lines(tmp_path)) == 4 * len(table)
    assert before == 4 * 3 * 2
    other = dataclasses.replace(QUICK, lr=0.02)
    with pytest.raises(
        ValueError, match=r"defences\.dip 10\.0\.fit\.lr 0\.01 where this one has 0\.02, .*: name another"
    ):
        run(classifier, digits, tmp_path, small, ("bare", "dip"), fit=other)
    assert len(lines(tmp_path)) == 4 * len(table)


class Constant:
    """A method that gives what it was told to."""

    settings = (Setting("constant", 1),)

    def __init__(self, logits=(4, 10), value=0.0, scores=None):
        self.verdict = Verdict(torch.full(logits, value), scores, 0.1)

    def describe(self, setting, images):
        return {}

    def __call__(self, images):
        return {self.settings[0]: self.verdict}


def test_a_method_that_does_not_detect(tmp_path, classifier, digits):
    config = dataclasses.replace(RUN, n=4, attacks=("pgd",))
    table = run(classifier, digits, tmp_path, config, methods=[Constant()])
    assert table["seconds_per_image"].tolist() == [0.025] * 3
    assert pd.read_csv(tmp_path / "roc.csv").empty
    assert pd.read_csv(tmp_path / "paired.csv").empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "methods must be at least one, got none"),
        ({"methods": [Constant(), Constant()]}, r"must have each setting once, got \('constant', 1\) twice"),
        (
            {"config": dataclasses.replace(RUN, baseline=("jpeg", 75))},
            r"baseline must be a setting of the methods, such as \('bare', 0\), got",
        ),
        ({"config": dataclasses.replace(RUN, n=450)}, "n must be at most the 449 images"),
        ({"methods": [Constant((4,))]}, r"constant must return logits \(B, K\) for 4 images, got shape \(4,\)"),
        ({"methods": [Constant(value=torch.nan)]}, "constant must return finite logits"),
        ({"methods": [Constant(scores=torch.zeros(4, 1))]}, r"constant must give finite scores \(B,\) or None"),
        ({"methods": [Constant(scores=torch.full((4,), torch.inf))]}, "constant must give finite scores"),
    ],
)
def test_bad_runs_are_refused(tmp_path, classifier, digits, options, message):
    with pytest.raises(ValueError, match=message):
        run(classifier, digits, tmp_path, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crafted_on": "both"}, "untargeted attacks, crafted on the bare"),
        ({"targeted": True}, "untargeted attacks, crafted on the bare"),
        ({"attacks": ("pgd", "deepfool")}, "attacks must have a radius: leave out deepfool"),
        ({"radii": ()}, "radii must be one or more, each once, got none"),
        ({"radii": 0.1}, r"radii must be one or more numbers, got 0\.1"),
        ({"radii": ("x",)}, "radii must be a finite number, got 'x'"),
        ({"radii": (5.0,)}, "radii must be at most 1 in the linf norm"),
        ({"baseline": "bare"}, "baseline must be the name of a method and a strength, got 'bare'"),
        ({"baseline": ("bare", "x")}, "baseline must be a finite number, got 'x'"),
        ({"radii": (0.1, 0.2, 0.1)}, r"radii must be one or more, each once, got 0\.1, 0\.2, 0\.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ComparisonConfig(**settings)


def test_settings_survive_json():
    config = ComparisonConfig(radii=[0.1, 0.2], baseline=("bare", 0.0))
    assert ComparisonConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_the_settings_of_a_comparison_stand_in_its_folder(tmp_path, classifier, digits):
    """All of them; the baseline may change when the run is continued, and `paired.csv` then follows it."""
    for baseline in (None, ("median", 5)):
        config = dataclasses.replace(RUN, attacks=(), n=4, baseline=baseline)
        run(classifier, digits, tmp_path, config, ("bare", "median"))
        described = json.loads((tmp_path / "config.json").read_text())
        settings = json.loads(json.dumps(dataclasses.asdict(config)))
        assert {name: described[name] for name in settings if name != "attacks"} == {
            name: value for name, value in settings.items() if name != "attacks"
        }
        against = pd.read_csv(tmp_path / "paired.csv")[["against", "against_strength"]].drop_duplicates()
        assert against.to_numpy().tolist() == [list(baseline or ("bare", 0))]


DESCRIBED = {"dataset": "d", "classifier": "c", "norm": "linf", "seed": 0}
MEASURED = dict.fromkeys([*QUALITY, *DISTORTION, "seconds", "attack_seconds", "peak_gb"], 0.1)


def synthetic():
    draw, records = np.random.default_rng(0), []
    for method, strengths in {"bare": (0,), "jpeg": (75, 30), "dip": (20, 40, 60), "dip+mirror": (20, 40, 60)}.items():
        for number, strength in enumerate(strengths):
            for attack, eps, right in (("clean", 0.0, 0.9), ("pgd", 0.1, 0.3 + 0.2 * number), ("pgd", 0.2, 0.2)):
                correct = draw.random(40) < right
                base = {"attack": attack, "eps": eps, "defence": method, "strength": strength, **MEASURED}
                base |= {"crafted_on": "" if attack == "clean" else "bare", "gradient": "exact"}
                records += [
                    {
                        **base,
                        "index": i,
                        "correct": bool(c),
                        "fooled": attack == "pgd",
                        "score": draw.beta(2, 1 + 4 * c),
                    }
                    for i, c in enumerate(correct)
                ]
    return records


def test_synthetic_records(tmp_path):
    records = synthetic()
    table, roc = summarise(records, DESCRIBED, FURTHER), detection_table(records)
    save_curves(tmp_path / "curves.png", table, "pgd")
    save_rocs(tmp_path / "roc.png", records, roc, "pgd")
    save_rocs(tmp_path / "none.png", [], roc.iloc[:0], "pgd")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "roc.png", "none.png"))
    paired = paired_differences(records, Setting("jpeg", 30))
    row = paired.query("defence == 'dip' and strength == 60 and eps == 0.1").iloc[0]
    accuracy = table.set_index(["defence", "strength", "eps"])["accuracy"]
    assert row["difference"] == pytest.approx(accuracy["dip", 60, 0.1] - accuracy["jpeg", 30, 0.1])
    assert row["ci_low"] < row["difference"] < row["ci_high"]
    single = paired_differences([record for record in records if record["index"] == 0], Setting("bare", 0))
    assert single["n"].eq(1).all()
    assert (single["ci_high"] - single["ci_low"] > 0.5).all()
