"""The table of a ladder, made from its records, with the worst case over its rungs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from attacks.adaptive import LADDER, Rung
from eval.intervals import wilson
from eval.records import Record
from eval.robustness.detection import threshold_of
from eval.robustness.summary import COLUMNS, summarise

__all__ = ["WAYS", "tabulate"]

# when an image counts as right, given the answers to its queries
WAYS: dict[str, Callable[[Sequence[bool]], bool]] = {
    "single": lambda right: right[0],
    "majority": lambda right: sum(right) > len(right) / 2,
    "worst": all,
}
SETTINGS = ("loss", "rule", "steps", "samples", "restarts", "calls")
MEASURED = ("flagged", "right_or_flagged", "score", "attack_seconds", "peak_gb")
MEANS = ["score", "psnr_attacked", "psnr_defended", "ssim_attacked", "ssim_defended", "seconds"]  # over the queries


def tabulate(
    records: Sequence[Record], description: Mapping[str, Any], rungs: Mapping[str, Rung] = LADDER
) -> pd.DataFrame:
    """One row for each kind of query and rung, and the worst case over the rungs.

    In the worst case an image is lost if it is wrong when clean, or under any rung that attacked it. The share of
    images that are not lost is taken over the images of each row in turn, and over all images; the row holds the lowest
    of these shares. So it is never above the accuracy of a rung, and rungs that attack few images neither raise it nor
    hide their successes.

    Args:
        records: of one run; the strength of the defence is the number of the query.
        description: of the run; all that `summarise` needs.
        rungs: the attacks by name, with the run's settings.

    Columns, after those of `eval.robustness.summary.summarise`:
        attack, n: already there; `worst case` is the last attack for each kind of query, crafted on the defence if any
            rung is, and its n is the number of images with the lowest share.
        query: `single`, or `majority` or `worst` of all queries; only `single` if the defence's seed is fixed.
        n_all: images of all rows together; if n is smaller, the row does not cover the others.
        flagged: share whose detection score, the mean over the queries, exceeds a threshold that at most 5 % of the
            clean images exceed.
        right_or_flagged: share that is right or flagged, which matters to a user who discards flagged images. In the
            worst case it is the lowest share as above, perhaps over other images than those of the accuracy.
        score: mean detection score.
        loss .. calls: the attack's settings, as in `attacks.adaptive.LADDER`.
        attack_seconds, peak_gb: seconds of the attack per image, and peak memory of the whole process so far.
    """
    frame = pd.DataFrame(list(records)).sort_values("strength", kind="stable")
    frame[MEANS] = frame[MEANS].astype(float)
    groups = frame.groupby(["attack", "index"], sort=False)
    answers = groups.first().assign(**groups[MEANS].mean())
    right = groups["correct"].agg(list)
    clean = answers["score"][answers.index.get_level_values("attack") == "clean"]
    answers["flagged"] = answers["score"] > threshold_of(clean)
    tables = []
    for query in list(WAYS)[: 1 if frame["strength"].nunique() == 1 else None]:
        answers["correct"] = [bool(WAYS[query](answer)) for answer in right]
        answers["right_or_flagged"] = answers["correct"] | answers["flagged"]
        scored = answers.reset_index()
        table = summarise(scored, description, MEASURED)
        if table["attack"].nunique() > 1:
            table = pd.concat([table, _worst_case(table, scored)], ignore_index=True)
        tables.append(table.assign(query=query))
    table = pd.concat(tables, ignore_index=True).assign(n_all=frame["index"].nunique())
    for name in SETTINGS:
        table[name] = [getattr(rungs.get(attack), name, "") for attack in table["attack"]]
    return table[[*COLUMNS, "query", "n_all", *MEASURED[:3], *SETTINGS, *MEASURED[3:]]]


def _worst_case(table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The lowest share of images that no rung broke, over the images of each rung and over all images.

    Among equal shares the one over the most images is taken.
    """
    kept = answers.groupby("index")[["correct", "right_or_flagged"]].all()
    sets = [kept, *(kept.loc[group["index"]] for _, group in answers.groupby("attack"))]
    correct = min(sets, key=lambda images: (images["correct"].mean(), -len(images)))["correct"]
    low, high = wilson(int(correct.sum()), len(correct))
    shared = table.iloc[[-1]][["dataset", "classifier", "targeted", "norm", "eps", "crafted_on", "defence", "seed"]]
    return shared.assign(
        attack="worst case",
        gradient="",
        n=len(correct),
        accuracy=correct.mean(),
        ci_low=low,
        ci_high=high,
        right_or_flagged=min(images["right_or_flagged"].mean() for images in sets),
    )
