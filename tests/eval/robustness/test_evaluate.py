"""The evaluation: its table, its resumption, and what it refuses. A real classifier on real digits."""

import copy
import dataclasses
import json
import re
import secrets

import pandas as pd
import pytest
import torch
from torch import nn

from attacks import ATTACKS, MINIMUM_NORM
from dipdefense import FitConfig, Purifier
from eval import RunConfig, evaluate_robustness
from eval.baselines import gaussian_blur
from eval.classifiers import Normalize, load_classifier
from eval.datasets import load_dataset
from eval.robustness.config import describe_purifier
from eval.robustness.summary import COLUMNS, paired_differences, summarise

QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=10)
RUN = RunConfig(
    attacks=("fgsm", "pgd", "pgd_flip"), eps=0.2, steps=3, n=6, n_defended=2, crafted_on="both", batch_size=4
)
EXACT = [column for column in COLUMNS if column != "seconds_per_image"]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits_cnn")


def run(classifier, digits, out, config=RUN, **options):
    options = {"purifier": Purifier(QUICK), "filters": {"blur": gaussian_blur}} | options
    return evaluate_robustness(classifier, digits, config, out=out, **options)


def test_one_row_for_each_attack_and_defence(tmp_path, classifier, digits):
    table = run(classifier, digits, tmp_path, classifier_name="digits_cnn")
    assert list(table.columns) == COLUMNS
    rows = list(table[["attack", "crafted_on", "defence"]].itertuples(index=False, name=None))
    bare = [(a, "bare", d) for a in RUN.attacks for d in ("none", "dip", "blur")]
    assert rows == [("clean", "", d) for d in ("none", "dip", "blur")] + bare + [
        (a, "defended", "dip") for a in RUN.attacks
    ]
    assert table["n"].tolist() == [6] * 12 + [2] * 3
    assert table["gradient"].tolist() == [""] * 3 + ["exact"] * 9 + ["straight_through"] * 3
    assert ((table["ci_low"] <= table["accuracy"]) & (table["accuracy"] <= table["ci_high"])).all()
    by_row = table.set_index(["attack", "crafted_on", "defence"])
    assert by_row.loc[("clean", "", "none"), "accuracy"] >= 0.9
    assert by_row.loc[("pgd", "bare", "none"), "accuracy"] <= by_row.loc[("clean", "", "none"), "accuracy"] - 0.3
    assert pd.isna(by_row.loc[("clean", "", "none"), ["psnr_attacked", "psnr_defended"]].astype(float)).all()
    assert by_row.loc[("clean", "", "dip"), "psnr_defended"] > 10
    # Linf 0.2 and a mean square error of at most 0.04
    assert by_row.loc[("fgsm", "bare", "none"), "psnr_attacked"] >= 13.97
    saved = pd.read_csv(tmp_path / "summary.csv", keep_default_na=False)
    assert saved["attack"].tolist() == table["attack"].tolist()
    assert json.loads((tmp_path / "summary.json").read_text())[0]["dataset"] == "digits"
    paired = pd.read_csv(tmp_path / "paired.csv", keep_default_na=False)
    assert set(zip(paired["defence"], paired["against"], strict=True)) == {("dip", "blur")}
    assert len(paired) == 4


def test_the_default_attacks_are_those_that_have_the_norm():
    assert RunConfig().chosen_attacks == tuple(ATTACKS)
    assert RunConfig(norm="l2").chosen_attacks == tuple(name for name in ATTACKS if name != "fgsm")


def test_attacks_without_a_budget_have_distortions_in_place_of_a_radius(tmp_path, classifier, digits):
    config = dataclasses.replace(
        RUN, attacks=("fgsm", *MINIMUM_NORM), n=4, n_defended=1, attacks_defended=("deepfool",)
    )
    table = run(classifier, digits, tmp_path, config, each=(told := []).append)
    assert len(told) == len(table) == 3 * 5 + 1
    free = table[table["attack"].isin(MINIMUM_NORM)]
    assert free["eps"].isna().all()
    assert free["norm"].eq("l2").all()
    assert table.loc[table["attack"] == "clean", ["l2", "linf", "l2_mean", "linf_mean"]].isna().all(axis=None)
    fgsm = table[table["attack"] == "fgsm"]
    assert fgsm["linf"].tolist() == pytest.approx([0.2] * 3)
    bare = free[(free["crafted_on"] == "bare") & (free["defence"] == "none")]
    assert bare["attack"].tolist() == list(MINIMUM_NORM)
    assert (bare["accuracy"] == 0).all()
    assert (bare["l2"] < fgsm["l2"].iloc[0]).all()
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    own = [one for one in records if one["attack"] == "lbfgs" and one["defence"] == "none"]
    assert all(one["eps"] is None for one in own)
    assert bare["l2"].iloc[-1] == pytest.approx(pd.Series([one["l2"] for one in own if one["l2"] > 0]).median())
    paired = pd.read_csv(tmp_path / "paired.csv", keep_default_na=False)
    assert set(paired["attack"]) == {"clean", "fgsm", *MINIMUM_NORM}
    pd.testing.assert_frame_equal(run(classifier, digits, tmp_path, config), table)  # a finished run is read again


def test_each_row_is_told_once_all_its_images_are_scored(tmp_path, classifier, digits):
    told = []

    def tell(row):
        lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
        name = row.loc[0, ["attack", "crafted_on", "defence"]].tolist()
        own = [line for line in lines if [line["attack"], line["crafted_on"], line["defence"]] == name]
        assert len(own) == row.loc[0, "n"] == (2 if name[1] == "defended" else 6)
        told.append(row)

    table = run(classifier, digits, tmp_path, dataclasses.replace(RUN, attacks=("fgsm",)), each=tell)
    rows = pd.concat(told).sort_values(["crafted_on", "attack", "defence"], ignore_index=True)
    pd.testing.assert_frame_equal(rows, table.sort_values(["crafted_on", "attack", "defence"], ignore_index=True))
    again = []
    run(classifier, digits, tmp_path, dataclasses.replace(RUN, attacks=("fgsm",)), each=again.append)
    assert len(again) == len(told)  # a finished run tells its rows, too


def test_only_some_attacks_go_through_the_defence(tmp_path, classifier, digits):
    some = dataclasses.replace(RUN, attacks=("fgsm", "pgd"), attacks_defended=("fgsm",), n=4)
    table = run(classifier, digits, tmp_path, some)
    assert table.loc[table["crafted_on"] == "defended", "attack"].tolist() == ["fgsm"]
    assert table.loc[table["crafted_on"] == "bare", "attack"].unique().tolist() == ["fgsm", "pgd"]
    calls = []
    every = dataclasses.replace(some, attacks_defended=None)
    table = run(classifier, digits, tmp_path, every, progress=lambda *n: calls.append(n))
    assert table.loc[table["crafted_on"] == "defended", "attack"].tolist() == ["fgsm", "pgd"]
    assert len(calls) == 1  # the one row that is new
    with pytest.raises(ValueError, match="attacks_defended must be among attacks, fgsm, got 'pgd'"):
        RunConfig(attacks=("fgsm",), attacks_defended=("pgd",))
    for twice in ({"attacks": ("fgsm", "fgsm")}, {"attacks_defended": ("fgsm", "fgsm")}):
        with pytest.raises(ValueError, match="must name each once, got fgsm, fgsm"):
            RunConfig(**twice)


def test_a_killed_run_ends_with_the_same_table(tmp_path, classifier, digits):
    whole = run(classifier, digits, tmp_path / "whole")

    def kill(made, total):
        if made > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(classifier, digits, tmp_path / "killed", progress=kill)
    path = tmp_path / "killed" / "records.jsonl"
    kept = path.read_bytes()
    path.write_bytes(kept[:-40])  # and the last record torn
    resumed = run(classifier, digits, tmp_path / "killed")
    pd.testing.assert_frame_equal(resumed[EXACT], whole[EXACT])
    assert path.read_bytes().startswith(kept[: kept.rfind(b"\n", 0, -40) + 1])  # nothing written is lost
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = [(r["attack"], r["crafted_on"], r["defence"], r["index"]) for r in lines]
    assert len(keys) == len(set(keys))


def test_a_finished_run_computes_nothing(tmp_path, classifier, digits):
    run(classifier, digits, tmp_path)
    calls = []
    again = run(classifier, digits, tmp_path, progress=lambda *numbers: calls.append(numbers))
    assert calls == []
    assert len(again) == 15


def test_another_attack_keeps_the_records_there_are(tmp_path, classifier, digits):
    small = dataclasses.replace(RUN, attacks=("fgsm",), crafted_on="bare", n=4)
    run(classifier, digits, tmp_path, small)
    calls = []
    more = dataclasses.replace(small, attacks=("fgsm", "pgd"))
    table = run(classifier, digits, tmp_path, more, progress=lambda *n: calls.append(n))
    assert len(calls) == 3
    assert len(table) == 9
    assert len(run(classifier, digits, tmp_path, small)) == 6
    both = run(classifier, digits, tmp_path, dataclasses.replace(small, crafted_on="both"))
    assert both["crafted_on"].tolist() == ["", "", "", "bare", "bare", "bare", "defended"]


def test_a_single_image_has_a_paired_interval(tmp_path, classifier, digits):
    run(classifier, digits, tmp_path, dataclasses.replace(RUN, attacks=(), n=1))
    (row,) = pd.read_csv(tmp_path / "paired.csv").to_dict("records")
    assert row["n"] == 1
    assert row["ci_high"] - row["ci_low"] > 1


def test_targets_are_hit(tmp_path, classifier, digits):
    targets = dataclasses.replace(digits, labels=(digits.labels + 1) % 10)
    config = dataclasses.replace(RUN, targeted=True, attacks=("pgd",), crafted_on="bare", steps=20, eps=0.3)
    table = run(classifier, targets, tmp_path, config).set_index(["attack", "defence"])
    assert table.loc[("clean", "none"), "accuracy"] <= 0.1
    assert table.loc[("pgd", "none"), "accuracy"] >= 0.9
    assert pd.read_csv(tmp_path / "summary.csv")["targeted"].all()  # the clean rows count hits too


def test_the_same_images_for_the_same_seed(tmp_path, classifier, digits):
    small = dataclasses.replace(RUN, attacks=(), n=6)
    seen = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(classifier, digits, tmp_path / out, dataclasses.replace(small, seed=seed))
        seen.append({json.loads(line)["index"] for line in (tmp_path / out / "records.jsonl").read_text().splitlines()})
    assert seen[0] == seen[1] != seen[2]


def test_summary_by_hand():
    base = {
        "psnr_attacked": 30.0,
        "ssim_attacked": 0.9,
        "l2": 2.0,
        "linf": 0.1,
        "psnr_defended": None,
        "ssim_defended": None,
        "seconds": 1.0,
        "peak_gb": 1.0,
    }
    keys = {"attack": "pgd", "crafted_on": "bare", "eps": 0.1, "gradient": "exact", "defence": "none", "strength": 0}
    records = [{**keys, **base, "index": i, "correct": i < 3} for i in range(10)]
    described = {"dataset": "d", "classifier": "c", "norm": "linf", "seed": 0}
    described["targeted"] = False
    (row,) = summarise(records, described).to_dict("records")
    assert row["accuracy"] == pytest.approx(0.3)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.10779, 0.60322), abs=1e-4)  # Wilson, 3 of 10
    assert row["psnr_attacked"] == 30.0
    assert row["gradient"] == "exact"
    assert row["targeted"] is False


def test_distortions_are_those_of_the_images_that_were_changed():
    empty = dict.fromkeys(("psnr_attacked", "ssim_attacked", "psnr_defended", "ssim_defended"))
    base = {"attack": "lbfgs", "crafted_on": "bare", "eps": None, "gradient": "exact", "defence": "none", "strength": 0}
    records = [
        {**base, **empty, "l2": l2, "linf": l2 / 10, "index": i, "correct": False, "seconds": 1.0, "peak_gb": 1.0}
        for i, l2 in enumerate((0.0, 1.0, 2.0, 6.0))
    ]
    (row,) = summarise(records, {"dataset": "d", "classifier": "c", "norm": "linf", "seed": 0}).to_dict("records")
    assert (row["n"], row["norm"]) == (4, "l2")
    assert pd.isna(row["eps"])
    assert [row[name] for name in ("l2", "linf", "l2_mean", "linf_mean")] == pytest.approx([2.0, 0.2, 3.0, 0.3])


def test_paired_difference_by_hand():
    base = {"attack": "pgd", "crafted_on": "bare", "eps": 0.1, "strength": 0}
    records = [{**base, "defence": "dip", "index": i, "correct": i != 0} for i in range(20)]
    records += [{**base, "defence": "blur", "index": i, "correct": i >= 10} for i in range(20)]
    (row,) = paired_differences(records).to_dict("records")
    assert row["difference"] == pytest.approx(0.45)
    assert 0 < row["ci_low"] < 0.45 < row["ci_high"] < 1


def test_paired_intervals_have_a_width_where_one_defence_is_always_right():
    base = {"attack": "pgd", "crafted_on": "bare", "eps": 0.1, "strength": 0}
    for wrong, low, high in ((range(10), 0.4449, 1.0), ((), -0.2775, 0.2775)):  # Tango's closed forms for 10 images
        records = [{**base, "defence": "dip", "index": i, "correct": True} for i in range(10)]
        records += [{**base, "defence": "blur", "index": i, "correct": i not in wrong} for i in range(10)]
        (row,) = paired_differences(records).to_dict("records")
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attacks": ("fgsm", "cw")},
            "attack must be one of fgsm, pgd, .*random_noise, got 'cw'",
        ),
        ({"crafted_on": "none"}, "crafted_on must be one of bare, defended, both"),
        ({"eps": -0.1}, "eps must not be negative, in"),
        ({"eps": float("nan")}, "eps must be a finite number, got nan"),
        ({"eps": "8/255"}, "eps must be a finite number, got '8/255'"),
        ({"eps": 8.0}, "eps must be at most 1 in the linf norm"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"attacks": ("pgd", "lbfgs", "deepfool"), "targeted": True}, "leave out deepfool, lbfgs if they are targeted"),
        ({"norm": "l2", "attacks": ("fgsm",)}, "attacks must leave out fgsm when norm is l2"),
        ({"alpha": -1.0}, "alpha must be positive"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": "0.1"}, "alpha must be positive and finite, got '0.1'"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"n": 0}, "n must be an integer of at least 1, got 0"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"n_defended": "5"}, "n_defended must be None or an integer of at least 1, got '5'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**settings)


@pytest.mark.parametrize("wrong", ["5", None, 1.5, True, [1]])
@pytest.mark.parametrize("name", ["n", "steps", "batch_size", "seed"])
def test_a_count_of_another_type_is_named(name, wrong):
    with pytest.raises(
        ValueError, match=re.escape(f"{name} must be an integer of at least ") + f".*{re.escape(repr(wrong))}"
    ):
        RunConfig(**{name: wrong})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attacks": "pgd"}, "attacks must be a sequence of names, got 'pgd'"),
        ({"attacks": 3}, "attacks must be a sequence of names, got 3"),
        ({"attacks_defended": [1]}, r"attacks_defended must be a sequence of names, got \[1\]"),
        ({"targeted": 1}, "targeted must be true or false, got 1"),
    ],
)
def test_settings_of_another_type_are_named(settings, message):
    with pytest.raises(TypeError, match=message):
        RunConfig(**settings)


def test_bad_runs_are_refused(tmp_path, classifier, digits):
    with pytest.raises(ValueError, match="n must be at most the 449 images of digits, got 450"):
        run(classifier, digits, tmp_path, dataclasses.replace(RUN, n=450))
    with pytest.raises(ValueError, match=r"classifier must return logits \(B, K\) for 1 image, got shape"):
        run(nn.Flatten(0).eval(), digits, tmp_path)
    with pytest.raises(ValueError, match="classifier must return finite logits"):
        run(nn.Sequential(nn.Flatten(), nn.Threshold(2, float("nan"))).eval(), digits, tmp_path)
    with pytest.raises(ValueError, match=r"call classifier\.eval\(\)"):
        run(copy.deepcopy(classifier).train(), digits, tmp_path)
    with pytest.raises(ValueError, match="labels must be below the classifier's 10 classes, got 19"):
        run(classifier, dataclasses.replace(digits, labels=digits.labels + 10), tmp_path)
    with pytest.raises(ValueError, match="images must have 3 channels for this classifier, got 1"):
        run(nn.Sequential(Normalize([0.5] * 3, [0.5] * 3), nn.Flatten()).eval(), digits, tmp_path)
    with pytest.raises(ValueError, match="filters must not be named dip"):
        run(classifier, digits, tmp_path, filters={"dip": gaussian_blur})
    with pytest.raises(ValueError, match="filters must be functions with a name"):
        run(classifier, digits, tmp_path, filters={"half": lambda images: images / 2})
    with pytest.raises(ValueError, match="gradient must not be none"):
        run(classifier, digits, tmp_path, gradient="none")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(classifier, digits, tmp_path / "file" / "below")


class Shortened(Purifier):
    """A purifier that does not come from this project."""


def test_a_purifier_of_ones_own_has_the_name_of_its_class(tmp_path, classifier, digits):
    own, quick = {"purifier": Shortened(QUICK)}, dataclasses.replace(RUN, attacks=("fgsm",), n=2, n_defended=None)
    table = run(classifier, digits, tmp_path / "own", quick, **own)
    assert table["defence"].tolist() == [*("none", "Shortened", "blur") * 2, "Shortened"]
    with pytest.raises(ValueError, match="filters must not be named Shortened"):
        run(classifier, digits, tmp_path / "other", quick, filters={"Shortened": gaussian_blur}, **own)


def test_a_purifier_that_draws_its_numbers_is_described_alike_at_every_start():
    class Drawing(Purifier):
        def config_for(self, images):
            seed = secrets.randbits(32) if self.seed is None else self.seed
            return dataclasses.replace(QUICK, iterations=2 + seed % 1000)

        def tile_for(self, images):
            return self.config_for(images).iterations

    images = torch.zeros(1, 1, 8, 8)
    first, again = (describe_purifier(Drawing(seed=None), images) for _ in range(2))
    assert first == again
    assert first["tile"] == first["fit"]["iterations"] == 2
    assert first["fit_seed"] is None
    assert describe_purifier(Drawing(seed=5), images)["fit"]["iterations"] == 7
