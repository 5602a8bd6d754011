"""From the records of a ladder to its table, and to the worst case of each image."""

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
    """One row a way of asking and rung, and the worst case of each image over the rungs.

    Args:
        records: of one run.
        description: of the run; whether its defence draws.
        rung: the attack of a name, with the run's numbers.

    Columns:
        query: `single`, `majority` of five or `worst` of five queries; only `single` where the defence's seed is fixed.
        rung: `clean` for images as they are; `worst case` for the images that every rung attacked, each right only
            where it is right under every rung and clean.
        n, accuracy, ci_low, ci_high: with the 95 % Wilson interval.
        flagged: share whose detection score, the mean over the queries, exceeds that of 95 % of the clean images.
        right_or_flagged: share that is right, or flagged; what a user sees who discards what is flagged.
        gradient .. calls: the attack's numbers, as in `attacks.adaptive.LADDER`.
        seconds, peak_gb: of the attack, an image; of the whole process so far.
    """
    frame = pd.DataFrame(list(records))
    limit = frame.loc[frame["rung"] == "clean", "score"].quantile(1 - FALSE_ALARMS)
    frame["flagged"] = frame["score"] > limit
    rows = []
    for query in ("single",) if description["fit_seed"] is not None else WAYS:
        frame["correct"] = [bool(WAYS[query](right)) for right in frame["right"]]
        for name, group in frame.groupby("rung", sort=False):
            rows.append(
                {
                    **_share(query, str(name), group["correct"]),
                    "flagged": group["flagged"].mean(),
                    "right_or_flagged": (group["correct"] | group["flagged"]).mean(),
                    **{number: getattr(rung(str(name)), number, "") for number in NUMBERS},
                    "seconds": group["seconds"].mean(),
                    "peak_gb": group["peak_gb"].max(),
                }
            )
        everywhere = frame[frame.groupby("index")["rung"].transform("nunique") == frame["rung"].nunique()]
        if frame["rung"].nunique() > 1 and len(everywhere):
            right = everywhere.groupby("index")["correct"].all()
            unseen = (everywhere["correct"] | everywhere["flagged"]).groupby(everywhere["index"]).all()
            worst = _share(query, "worst case", right) | dict.fromkeys(NUMBERS, "")
            rows.append(worst | {"right_or_flagged": unseen.mean()})  # NaN in the columns of a single rung
    return pd.DataFrame(rows)


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
