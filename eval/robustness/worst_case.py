"""From the records of a ladder to its table, and to the worst case over its rungs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from attacks.adaptive import LADDER, Rung
from eval.intervals import wilson
from eval.records import Record

__all__ = ["QUERIES", "WAYS", "tabulate"]

QUERIES = 5  # times that a defence which draws is asked about an image
FALSE_ALARMS = 0.05  # share of clean images that are flagged

# what counts as right, of the answers to one image
WAYS: dict[str, Callable[[Sequence[bool]], bool]] = {
    "single": lambda right: right[0],
    "majority": lambda right: sum(right) > len(right) / 2,
    "worst": all,
}
NUMBERS = ("gradient", "loss", "rule", "steps", "samples", "restarts", "calls")


def tabulate(
    records: Sequence[Record],
    description: Mapping[str, Any],
    rung: Callable[[str], Rung | None] = LADDER.get,
) -> pd.DataFrame:
    """One row a way of asking and rung, and the worst case over the rungs.

    In the worst case an image is lost if it is wrong when clean, or under any rung that attacked it. The row holds the
    lowest share of images that are not lost, over the images of each row in turn and over all images: rungs that
    attack few images can neither raise it nor hide what they win, and it is never above a rung.

    Args:
        records: of one run.
        description: of the run; whether its defence draws.
        rung: the attack of a name, with the run's numbers.

    Columns:
        query: `single`, `majority` of five or `worst` of five queries; only `single` where the defence's seed is fixed.
        rung: `clean` for images as they are; `worst case` as above.
        n: images that the row counts; in the worst case those on which the lowest share was found.
        n_all: images of all rows together; where n is smaller, the row says nothing of the others.
        accuracy, ci_low, ci_high: with the 95 % Wilson interval for n images.
        flagged: share whose detection score, the mean over the queries, exceeds that of 95 % of the clean images.
        right_or_flagged: share that is right, or flagged; what a user sees who discards what is flagged. In the worst
            case the lowest share as above, perhaps on other images than those of the accuracy.
        gradient .. calls: the attack's numbers, as in `attacks.adaptive.LADDER`.
        seconds, peak_gb: of the attack, an image; of the whole process so far.
    """
    frame = pd.DataFrame(list(records))
    limit = frame.loc[frame["rung"] == "clean", "score"].quantile(1 - FALSE_ALARMS)
    frame["flagged"] = frame["score"] > limit
    rows = []
    for query in ("single",) if description["fit_seed"] is not None else WAYS:
        frame["correct"] = [bool(WAYS[query](right)) for right in frame["right"]]
        frame["right_or_flagged"] = frame["correct"] | frame["flagged"]
        for name, group in frame.groupby("rung", sort=False):
            rows.append(
                {
                    **_share(query, str(name), group["correct"]),
                    "flagged": group["flagged"].mean(),
                    "right_or_flagged": group["right_or_flagged"].mean(),
                    **{number: getattr(rung(str(name)), number, "") for number in NUMBERS},
                    "seconds": group["seconds"].mean(),
                    "peak_gb": group["peak_gb"].max(),
                }
            )
        if frame["rung"].nunique() > 1:
            rows.append(_worst_case(query, frame))  # NaN in the columns of a single rung
    table = pd.DataFrame(rows)
    table.insert(list(table).index("n") + 1, "n_all", frame["index"].nunique())
    return table


def _worst_case(query: str, frame: pd.DataFrame) -> dict[str, Any]:
    """The lowest share of images that no rung won, over the images of each rung and over all; of equals the largest."""
    stands = frame.groupby("index")[["correct", "right_or_flagged"]].all()
    sets = [stands, *(stands.loc[group["index"]] for _, group in frame.groupby("rung"))]
    lowest = min(sets, key=lambda images: (images["correct"].mean(), -len(images)))
    unseen = min(images["right_or_flagged"].mean() for images in sets)
    return _share(query, "worst case", lowest["correct"]) | dict.fromkeys(NUMBERS, "") | {"right_or_flagged": unseen}


def _share(query: str, rung: str, correct: "pd.Series[bool]") -> dict[str, Any]:
    low, high = wilson(int(correct.sum()), len(correct))
    return {
        "query": query,
        "rung": rung,
        "n": len(correct),
        "accuracy": correct.mean(),
        "ci_low": low,
        "ci_high": high,
    }
