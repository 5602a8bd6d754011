"""A run up the ladder: its table, its worst case, its resumption, and what it refuses. A real classifier, digits."""

import json
import math
import random
from dataclasses import replace

import pandas as pd
import pytest
import torch

from attacks.adaptive import LADDER
from dipdefense import DefendedClassifier, FitConfig, MeanSoftmax, Purifier
from dipdefense.defence.smoothing import NoisyPurifier
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.intervals import wilson
from eval.robustness.ladder import AdaptiveConfig, evaluate_adaptive
from eval.robustness.ladder_table import tabulate
from eval.robustness.summary import COLUMNS, DISTORTION, QUALITY

QUICK = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=8)
N = {"cheap": 6, "gradient": 4, "unrolled": 2, "queries": 1}
RUN = AdaptiveConfig(rungs=["oblivious", "bpda", "truncated"], eps=0.2, n=N, batch_size=3)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def defended(seed: int | None = 0, **numbers):
    return DefendedClassifier(load_classifier("digits_cnn"), Purifier(replace(QUICK, **numbers), seed=seed))


def test_one_row_a_rung_and_the_worst_case(tmp_path, digits):
    table = evaluate_adaptive(defended(), digits, RUN, out=tmp_path)
    assert table["attack"].tolist() == ["clean", "oblivious", "bpda", "truncated", "worst case"]
    assert table["n"].tolist()[:4] == [6, 6, 4, 2]
    assert table["n_all"].eq(6).all()
    assert (table["accuracy"] >= table["accuracy"].iloc[-1]).all()
    assert set(table["query"]) == {"single"}
    assert ((table["ci_low"] <= table["accuracy"]) & (table["accuracy"] <= table["ci_high"])).all()
    assert (table["right_or_flagged"] >= table["accuracy"]).all()
    assert table.set_index("attack").loc["bpda", ["gradient", "steps", "calls"]].tolist() == [
        "straight_through",
        20,
        21,
    ]
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert len(records) == 6 + 6 + 4 + 2
    assert json.loads((tmp_path / "summary.json").read_text())[0]["attack"] == "clean"
    assert list(table)[: len(COLUMNS)] == COLUMNS
    assert table["crafted_on"].tolist() == ["", "bare", "defended", "defended", "defended"]
    assert table["gradient"].tolist() == ["", "exact", "straight_through", "truncated", ""]
    assert table["defence"].eq("dip").all()
    assert table["psnr_defended"].iloc[:4].between(5, 40).all()
    assert table["psnr_attacked"].iloc[1:4].ge(13.97).all()  # Linf 0.2
    assert (set(table["norm"]), table["eps"].tolist()) == ({"", "linf"}, [0.0, 0.2, 0.2, 0.2, 0.2])


def test_a_defence_that_draws_is_asked_five_times(tmp_path, digits):
    config = replace(RUN, rungs=["oblivious"], n=N | {"cheap": 3})
    table = evaluate_adaptive(defended(seed=None), digits, config, out=tmp_path)
    assert table["query"].tolist() == ["single"] * 3 + ["majority"] * 3 + ["worst"] * 3
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    asked = pd.DataFrame(records).groupby(["attack", "index"])["strength"].apply(list)
    assert len(asked) == 6
    assert all(queries == [0, 1, 2, 3, 4] for queries in asked)


def test_a_smoothed_classifier_is_attacked_vote_by_vote_and_judged_by_their_majority(tmp_path, digits):
    classifier = load_classifier("digits_cnn")
    smoothed = DefendedClassifier(classifier, NoisyPurifier(0.1, QUICK, seed=None), decision=MeanSoftmax((8,)))
    config = replace(RUN, rungs=["oblivious", "bpda_eot", "truncated"], votes=3)
    table = evaluate_adaptive(smoothed, digits, config, out=tmp_path).set_index(["query", "attack"])
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    answers = pd.DataFrame(records).groupby(["attack", "index"])["correct"].agg(list)
    assert answers.str.len().eq(3).all()
    for attack in ("clean", "bpda_eot"):
        assert table.loc[("majority", attack), "accuracy"] == (answers[attack].apply(sum) >= 2).mean()
    assert json.loads((tmp_path / "config.json").read_text())["votes"] == 3
    assert set(table["defence"]) == {"smooth"}


class Shortened(Purifier):
    """A purifier that does not come from this project."""


def test_a_purifier_of_ones_own_has_the_name_of_its_class(tmp_path, digits):
    own = DefendedClassifier(load_classifier("digits_cnn"), Shortened(QUICK))
    config = replace(RUN, rungs=["oblivious"], n=N | {"cheap": 2})
    assert set(evaluate_adaptive(own, digits, config, out=tmp_path)["defence"]) == {"Shortened"}


DESCRIBED = {"dataset": "d", "classifier": "c", "norm": "linf", "seed": 0}
MEASURED = dict.fromkeys([*QUALITY, *DISTORTION, "seconds", "attack_seconds", "peak_gb"], 1.0)


def record(rung, index, right, score):
    """One record a query of an image."""
    head = {"attack": rung, "crafted_on": "defended", "eps": 0.1, "gradient": "", "defence": "dip", "index": index}
    return [
        {**head, **MEASURED, "strength": query, "correct": correct, "score": score}
        for query, correct in enumerate(right)
    ]


def test_the_table_counts_as_it_says():
    yes, no, most = [True] * 5, [False] * 5, [False, True, True, True, False]
    records = [one for i in range(4) for one in record("clean", i, yes, 0.1 * i)]
    records += [*record("bpda", 0, yes, 0.9), *record("bpda", 1, most, 0.9), *record("bpda", 2, no, 0.0)]
    records += [*record("square", 0, no, 0.9), *record("square", 1, yes, 0.0)]
    table = tabulate(records, DESCRIBED).set_index(["query", "attack"])
    assert table.loc[("single", "bpda"), "accuracy"] == pytest.approx(1 / 3)
    assert table.loc[("majority", "bpda"), "accuracy"] == pytest.approx(2 / 3)
    assert table.loc[("worst", "bpda"), "accuracy"] == pytest.approx(1 / 3)
    assert table.loc[("single", "bpda"), "flagged"] == pytest.approx(2 / 3)
    assert table.loc[("single", "bpda"), "right_or_flagged"] == pytest.approx(2 / 3)
    # image 0 falls to square, image 2 to bpda, image 1 to a single query of bpda, not to a majority; 3 met no attack
    assert table.loc[("single", "worst case"), ["n", "accuracy"]].tolist() == [3, 0.0]
    assert table.loc[("majority", "worst case"), ["n", "accuracy"]].tolist() == [3, pytest.approx(1 / 3)]
    assert table.loc[("majority", "worst case"), "right_or_flagged"] == pytest.approx(2 / 3)
    assert table["n_all"].eq(4).all()


def made_up(rungs):
    """Records of rungs, given how many images each attacked, the first of them, and how many of these it won."""
    return [one for rung, (n, won) in rungs.items() for i in range(n) for one in record(rung, i, [i >= won], 0.0)]


def test_a_rung_of_few_images_cannot_raise_the_worst_case():
    """Four images that Square leaves, all of them right under every rung, were once a worst case of 100 %."""
    square = [one for i in range(96, 100) for one in record("square", i, [True], 0.0)]
    records = [*made_up({"clean": (100, 0), "bpda": (100, 86)}), *square]
    table = tabulate(records, DESCRIBED).set_index("attack")
    assert table.loc["worst case", ["n", "n_all"]].tolist() == [100, 100]
    assert table.loc["worst case", "accuracy"] == table.loc["bpda", "accuracy"] == pytest.approx(0.14)
    assert table.loc["worst case", "ci_high"] == table.loc["bpda", "ci_high"]
    assert table.loc["worst case", "right_or_flagged"] == pytest.approx(0.14)


def test_images_that_a_strong_rung_did_not_attack_cannot_raise_the_worst_case():
    """Over all 1,000 images 614 are not lost; of the 100 that bpda attacked, 14."""
    table = tabulate(made_up({"clean": (1000, 0), "oblivious": (1000, 300), "bpda": (100, 86)}), DESCRIBED)
    worst = table.set_index("attack").loc["worst case"]
    assert worst[["n", "n_all"]].tolist() == [100, 1000]
    assert worst["accuracy"] == 0.0  # the 300 that the oblivious attack wins hold all of the 100
    later = [one for i in range(1000) for one in record("oblivious", i, [i >= 300 or i < 100], 0.0)]
    records = [*made_up({"clean": (1000, 0), "bpda": (100, 86)}), *later]
    worst = tabulate(records, DESCRIBED).set_index("attack").loc["worst case"]
    assert worst[["n", "n_all"]].tolist() == [100, 1000]
    assert (worst["accuracy"], worst["ci_low"], worst["ci_high"]) == pytest.approx((0.14, *wilson(14, 100)))


@pytest.mark.parametrize("seed", range(40))
def test_the_worst_case_is_never_above_a_rung(seed):
    """For any images that each rung attacked, nested or not, and any answers."""
    draw = random.Random(seed)
    rungs = {"clean": range(8)} | {name: draw.sample(range(8), draw.randint(1, 8)) for name in ("bpda", "nes", "rays")}
    likely = {rung: draw.random() for rung in rungs}
    records = [
        one
        for rung, met in rungs.items()
        for i in met
        for one in record(rung, i, [draw.random() < likely[rung]], draw.choice([0.0, 0.9]))
    ]
    table = tabulate(records, DESCRIBED)
    worst, others = table.iloc[-1], table.iloc[:-1]
    assert worst["attack"] == "worst case"
    assert (worst["accuracy"] <= others["accuracy"]).all()
    assert (worst["right_or_flagged"] <= others["right_or_flagged"]).all()
    assert worst["ci_low"] <= worst["accuracy"] <= worst["ci_high"]
    assert worst["n"] in {len(met) for met in rungs.values()}


def test_a_killed_run_loses_one_batch_at_most(tmp_path, digits):
    config = replace(RUN, rungs=["oblivious", "bpda"], n=N | {"cheap": 4})
    whole = evaluate_adaptive(defended(), digits, config, out=tmp_path / "whole")

    def kill(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_adaptive(defended(), digits, config, out=tmp_path / "killed", progress=kill)
    path = tmp_path / "killed" / "records.jsonl"
    made = path.read_text().splitlines()
    assert 6 < len(made) < 12
    path.write_text("\n".join(made) + '\n{"torn')
    seen = []
    again = evaluate_adaptive(
        defended(), digits, config, out=tmp_path / "killed", progress=lambda done, total: seen.append(done)
    )
    assert len(seen) * config.batch_size < 12
    changing = ["seconds_per_image", "attack_seconds", "peak_gb"]
    pd.testing.assert_frame_equal(whole.drop(columns=changing), again.drop(columns=changing))


def test_too_little_time_or_memory_is_said_before_the_start(tmp_path, digits):
    with pytest.raises(ValueError, match=r"budget must be at least \d+ seconds for .*, got 0.01: .* bpda takes"):
        evaluate_adaptive(defended(), digits, replace(RUN, rungs=["bpda"], budget=0.01), out=tmp_path)
    with pytest.raises(ValueError, match=r"memory_gb of the fit must be at least 0.0\d+ to unroll its 8 steps"):
        evaluate_adaptive(defended(memory_gb=1e-3), digits, RUN, out=tmp_path)
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rungs": ["bpda", "magic"]}, "rungs must be among oblivious, .*, got 'magic'"),
        ({"n": {"cheap": 1}}, "n must name each of the costs cheap, gradient, unrolled, queries"),
        ({"n": N | {"queries": 0}}, "n of queries must be an integer of at least 1, got 0"),
        ({"n": N | {"cheap": "8"}}, "n of cheap must be an integer of at least 1, got '8'"),
        ({"queries": "5"}, "queries must be an integer of at least 1, got '5'"),
        ({"budget": "60"}, "budget must be positive and finite, got '60'"),
        ({"eps": None}, "eps must be a finite number, got None"),
        ({"rungs": []}, "rungs must be one or more, got none"),
        ({"rungs": ["bpda", "bpda"]}, "rungs must name each once, got bpda, bpda"),
        ({"budget": 0.0}, "budget must be positive"),
        ({"eps": -1.0}, "eps must not be negative"),
    ],
)
def test_bad_numbers_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveConfig(**numbers)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"n": "8"}, "n must be a mapping of the costs cheap, gradient, unrolled, queries to images, got '8'"),
        ({"rungs": "bpda"}, "rungs must be a sequence of names, got 'bpda'"),
    ],
)
def test_numbers_of_another_type_are_named(numbers, message):
    with pytest.raises(TypeError, match=message):
        AdaptiveConfig(**numbers)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_default_ladder_holds_what_has_the_norm(norm):
    able = AdaptiveConfig(norm=norm).chosen_rungs
    assert set(able) == {name for name, rung in LADDER.items() if norm in rung.norms} - {"transfer"}
    assert ("rays" in able) == (norm == "linf")


def test_a_rung_without_the_norm_is_refused_before_the_start():
    with pytest.raises(ValueError, match="rungs must be attacks that have the norm l2, got rays: leave it out"):
        AdaptiveConfig(norm="l2", rungs=["bpda", "rays"])


@pytest.mark.parametrize(
    ("rung", "queries", "message"),
    [
        ("nes", 51, "rung nes: queries must be at least 52 for nes, got 51"),
        ("square", 3, "rung square: queries must be at least 4 for square, got 3"),
    ],
)
def test_too_few_queries_are_refused_before_the_start(tmp_path, digits, rung, queries, message):
    config = AdaptiveConfig(rungs=["bpda", rung], n=N, queries=queries)
    with pytest.raises(ValueError, match=message):
        evaluate_adaptive(defended(), digits, config, out=tmp_path)
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize("rung", ["square", "autoattack"])
def test_sides_that_the_tiles_of_square_do_not_fit_are_refused_before_the_start(rung):
    with pytest.raises(ValueError, match="images must have sides that Square's l2 tiles"):
        LADDER[rung].check(torch.rand(1, 3, 12, 12), "l2", draws=False)
    LADDER[rung].check(torch.rand(1, 3, 12, 12), "linf", draws=False)


@pytest.mark.slow
def test_the_whole_l2_ladder_runs(tmp_path, digits):
    n = {"cheap": 2, "gradient": 2, "unrolled": 2, "queries": 1}
    config = AdaptiveConfig(norm="l2", eps=1.0, n=n, queries=60, batch_size=2)
    table = evaluate_adaptive(defended(iterations=8), digits, config, out=tmp_path)
    assert set(table["attack"]) == {"clean", *config.chosen_rungs, "worst case"}


def test_other_numbers_of_one_rung_need_another_folder_and_leave_the_other_rungs(tmp_path, digits):
    config = replace(RUN, rungs=["oblivious", "rays"], n=N | {"cheap": 2}, queries=3)
    evaluate_adaptive(defended(), digits, config, out=tmp_path)
    more, seen = replace(config, queries=5), []
    with pytest.raises(ValueError, match=r"attacks\.rays\.queries 3 where this one has 5: name another folder"):
        evaluate_adaptive(defended(), digits, more, out=tmp_path)
    without = replace(more, rungs=["oblivious"])
    evaluate_adaptive(defended(), digits, without, out=tmp_path, progress=lambda *counts: seen.append(counts))
    assert seen == []


def test_transfer_needs_a_source(tmp_path, digits):
    with pytest.raises(ValueError, match="source must be another classifier"):
        evaluate_adaptive(defended(), digits, replace(RUN, rungs=["transfer"]), out=tmp_path)


def test_default_ladder_needs_no_source():
    config = AdaptiveConfig()
    assert "transfer" not in config.chosen_rungs
    assert set(config.chosen_rungs) < set(LADDER)
    assert math.isinf(config.budget)
