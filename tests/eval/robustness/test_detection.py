"""Detection against scikit-learn, by hand, and its interval."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from eval.robustness.detection import detection, detection_table, paired_detection


def scores(n: int = 200, shift: float = 1.0):
    draw = np.random.default_rng(0)
    clean = draw.normal(size=n).round(1)  # ties
    return clean, (clean + draw.normal(shift, 1, n)).round(1), draw.random(n) < 0.7


def test_agrees_with_scikit_learn():
    clean, attacked, fooled = scores()
    truth = np.repeat([0, 1], [200, fooled.sum()])
    both = np.concatenate([clean, attacked[fooled]])
    found = detection(clean, attacked, fooled)
    assert found.auroc == pytest.approx(roc_auc_score(truth, both))
    fpr, tpr, _ = roc_curve(truth, both, drop_intermediate=False)
    assert found.tpr == pytest.approx(tpr[fpr <= 0.05].max())
    assert found.ci_low < found.auroc < found.ci_high
    assert found.ci_high - found.ci_low < 0.15


def test_the_interval_resamples_images():
    clean, attacked, fooled = scores(60)
    draw, areas = np.random.default_rng(1), []
    for _ in range(400):
        i = draw.integers(0, 60, 60)
        positive = attacked[i][fooled[i]]
        areas.append(roc_auc_score(np.repeat([0, 1], [60, len(positive)]), np.concatenate([clean[i], positive])))
    found = detection(clean, attacked, fooled)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=0.02)


def test_perfect_useless_and_none():
    found = detection([0.1, 0.2], [0.8, 0.9], [True, True])
    assert found == (1.0, 1.0, 1.0, 1.0, 1.0)
    assert detection([0.5, 0.5], [0.5, 0.5], [True, True])[:3] == (0.5, 0.5, 0.5)
    *unknown, flagged = detection([0.1], [0.2], [False])
    assert all(math.isnan(value) for value in unknown)
    assert flagged == 1.0


def test_the_table_by_hand():
    base = {"defence": "dip", "strength": 10, "fooled": False}
    records = [{**base, "attack": "clean", "eps": 0.0, "index": i, "score": i / 10} for i in range(4)]
    records += [{**base, "attack": "pgd", "eps": 0.1, "index": i, "score": 0.15, "fooled": i < 3} for i in (3, 2, 1, 0)]
    records += [{**record, "defence": "silent", "score": None} for record in records]
    (row,) = detection_table(records).to_dict("records")
    assert (row["defence"], row["attack"], row["n_clean"], row["n_adversarial"]) == ("dip", "pgd", 4, 3)
    assert row["auroc"] == 0.5
    assert len(detection_table(records[8:])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [0.1, 0.2], [True]), r"clean, attacked and fooled must be \(N,\), got \(1,\), \(2,\)"),
        (([], [], []), r"clean, attacked and fooled must be \(N,\)"),
        (([math.nan], [0.1], [True]), "scores must be finite"),
    ],
)
def test_bad_scores_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        detection(*arguments)


def pair(clean, attacked, fooled):
    return pd.DataFrame({"clean": clean, "attacked": attacked, "fooled": fooled})


def test_the_paired_difference_is_that_of_the_two_and_knows_of_the_pairing():
    clean, attacked, fooled = scores()
    first = pair(clean, attacked, fooled)
    assert paired_detection(first, first) == (0, 0, 0)
    worse = pair(clean, attacked - 0.5, fooled)
    difference, low, high = paired_detection(first, worse)
    found = detection(clean, attacked, fooled).auroc - detection(clean, attacked - 0.5, fooled).auroc
    assert difference == pytest.approx(found)
    assert 0 < low < difference < high
    assert paired_detection(first, worse.sample(frac=1, random_state=0)) == (difference, low, high)
    wide = detection(clean, attacked, fooled)
    assert high - low < wide.ci_high - wide.ci_low


def test_unequal_pairs_are_refused():
    clean, attacked, fooled = scores(20)
    first = pair(clean, attacked, fooled)
    for second in (first[:10], pair(clean, attacked, ~fooled)):
        with pytest.raises(ValueError, match="the same images, some of them fooled"):
            paired_detection(first, second)
