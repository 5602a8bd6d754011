"""The sentences of tables, on rows made by hand."""

import math

import pytest

from eval.report.findings import NOT_ADAPTIVE, findings


def row(attack: str, defence: str, accuracy: float, **fields: object) -> dict[str, object]:
    """A row of a table with an interval of 10 points either way."""
    clean = attack == "clean"
    figures = {"accuracy": accuracy, "ci_low": accuracy - 0.1, "ci_high": accuracy + 0.1, "n": 20}
    head = {"dataset": "d", "classifier": "c", "attack": attack, "defence": defence, "targeted": False}
    return head | figures | {"eps": 0.0 if clean else 0.2, "crafted_on": math.nan if clean else "bare"} | fields


TABLE = [row("clean", "none", 0.9), row("clean", "dip", 0.8)]
TABLE += [row("fgsm", "none", 0.3), row("fgsm", "dip", 0.6), row("pgd", "none", 0.2), row("pgd", "dip", 0.5)]
RIVALS = [row("pgd", "jpeg", 0.4), row("pgd", "median", 0.45)]
NOISE = [row("random_noise", "none", 0.8), row("random_noise", "dip", 0.1)]


def test_the_strongest_attack_is_that_which_leaves_the_defence_least():
    measured, oblivious, adaptive = findings([TABLE + RIVALS + NOISE])  # random noise is no attack
    assert measured == (
        "20 images of d were classified by c, clean and under fgsm, pgd with eps 0.2; of the clean images 80.0 % (70.0 "
        "to 90.0) are classified right with the defence and 90.0 % (80.0 to 100.0) without it (95 % intervals in "
        "brackets)."
    )
    assert oblivious == (
        "Under the strongest attack that does not know the defence, pgd with eps 0.2, 20 images, 50.0 % (40.0 to 60.0) "
        "are classified right with the defence and 20.0 % (10.0 to 30.0) without it; the best of the other defences, "
        "median, keeps 45.0 % (35.0 to 55.0)."
    )
    assert adaptive == NOT_ADAPTIVE


def test_a_defence_of_ones_own_is_named_and_is_no_rival_of_itself():
    table = [row | {"defence": "Jpeg" if row["defence"] == "dip" else row["defence"]} for row in TABLE + RIVALS]
    measured, oblivious, _ = findings([table])
    assert "80.0 % (70.0 to 90.0) are classified right with the defence Jpeg and 90.0 %" in measured
    assert oblivious.endswith("the best of the other defences, median, keeps 45.0 % (35.0 to 55.0).")
    assert findings([[row("pgd", "jpeg", 0.5, strength=75.0)]]) == []  # a comparison without the fit


@pytest.mark.parametrize("worst", [False, True])
def test_the_attacker_who_knows_the_defence_has_the_last_sentence(worst):
    rungs = [row("bpda", "dip", 0.25, crafted_on="defended", n=4), row("nes", "dip", 0.5, crafted_on="defended")]
    whole = [row("worst case", "dip", 0.2, crafted_on="defended", query="single")] if worst else []
    others = [row("worst case", "dip", 0.1, crafted_on="defended", query="majority")]  # of a defence with fresh seeds
    *_, adaptive = findings([TABLE, [*rungs, *whole, *others]])
    said = "all attacks of the ladder together with eps 0.2" if worst else "bpda with eps 0.2"
    share = "20.0 % (10.0 to 30.0) of 20" if worst else "25.0 % (15.0 to 35.0) of 4"
    assert adaptive == f"Against an attacker who knows the defence ({said}) it keeps {share} images right."


def test_a_defence_of_several_strengths_is_its_whole_fit_and_its_variants_are_no_rivals():
    dip = [row("pgd", "dip", accuracy, strength=k) for k, accuracy in ((30.0, 0.9), (60.0, 0.5))]
    more = [row("pgd", name, 0.95, strength=60.0) for name in ("dip_mean", "noise_level", "dip+identity+mirror")]
    rivals = [row("pgd", "dipdefend", 0.35, strength=400.0), row("pgd", "jpeg", 0.3, strength=75.0)]
    _, oblivious, _ = findings([[*dip, *more, *rivals, row("pgd", "bare", 0.2, strength=0.0)]])
    assert "50.0 % (40.0 to 60.0) are classified right with the defence and 20.0 % (10.0 to 30.0) without" in oblivious
    assert oblivious.endswith("the best of the other defences, dipdefend 400, keeps 35.0 % (25.0 to 45.0).")


def test_what_was_not_measured_is_not_said():
    measured, oblivious, adaptive = findings([TABLE[:2]])
    assert "all of them clean: no attack was run; of the clean images 80.0 %" in measured
    assert (oblivious, adaptive) == ("No attack was run that does not know the defence.", NOT_ADAPTIVE)
    free = row("deepfool", "dip", 0.5, eps=math.nan)
    measured, oblivious, _ = findings([[free]])
    assert measured == "20 images of d were classified by c, clean and under deepfool."
    assert "deepfool, 20 images, 50.0 % (40.0 to 60.0) are classified right with the defence." in oblivious
    many = [row(f"attack{k}", "dip", 0.5) for k in range(7)]
    assert "under 7 attacks with eps 0.2" in findings([many])[0]
    assert findings([[row("pgd", "dip", 0.5, targeted=True)]]) == []  # shares of hits
    assert findings([[row("pgd", "none", 0.5)]]) == []


def test_a_lower_row_of_another_run_is_quoted_in_place_of_a_worst_case():
    ladder = [row("bpda", "dip", 0.4, crafted_on="defended"), row("worst case", "dip", 0.3, crafted_on="defended")]
    *_, adaptive = findings([TABLE, ladder, [row("pgd", "dip", 0.1, crafted_on="defended", n=8)]])
    assert "(pgd with eps 0.2) it keeps 10.0 % (0.0 to 20.0) of 8 images right" in adaptive


def test_the_smoothed_classifier_answers_by_the_majority_of_its_votes():
    shares = {"single": 0.5, "majority": 0.6, "worst": 0.2}
    rows = [
        row(attack, "smooth", share, query=query, crafted_on=crafted_on)
        for query, share in shares.items()
        for attack, crafted_on in (("clean", math.nan), ("pgd", "bare"), ("bpda", "defended"))
    ]
    assert all("60.0 % (50.0 to 70.0)" in sentence for sentence in findings([rows]))
    assert "50.0 % (40.0 to 60.0)" in findings([[other for other in rows if other["query"] == "single"]])[1]
