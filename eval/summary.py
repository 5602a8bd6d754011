"""From records to tables."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from eval.intervals import paired_bootstrap, wilson
from eval.records import Record

__all__ = ["COLUMNS", "ROW", "paired_differences", "summarise"]

COLUMNS = [
    *("dataset", "classifier", "attack", "norm", "eps", "crafted_on", "defence", "gradient"),
    *("n", "accuracy", "ci_low", "ci_high"),
    *("psnr_attacked", "psnr_defended", "ssim_attacked", "ssim_defended"),
    *("seconds_per_image", "seed"),
]
ROW = ["attack", "crafted_on", "defence"]  # what names a row


def summarise(records: Iterable[Record], description: Mapping[str, Any]) -> pd.DataFrame:
    """One row per attack and defence, in the order of the records; columns `COLUMNS`.

    The interval is the 95 % Wilson interval. PSNR (dB) and SSIM are means over the images; `attacked` compares
    the attacked image with the clean one, `defended` the purified with the clean one; empty where that does not
    apply. `gradient` is what the attack differentiated: `exact` on the bare classifier, else the defence's mode.
    Seconds are those of defence and classification.
    """
    frame = pd.DataFrame(list(records))
    columns = ["psnr_attacked", "psnr_defended", "ssim_attacked", "ssim_defended"]
    frame[columns] = frame[columns].astype(float)
    rows = []
    for (attack, crafted_on, defence), group in frame.groupby(ROW, sort=False):
        low, high = wilson(int(group["correct"].sum()), len(group))
        clean = attack == "clean"
        means = group[columns].mean()
        if clean:
            means[["psnr_attacked", "ssim_attacked"]] = float("nan")
        rows.append(
            {
                **{name: description[name] for name in ("dataset", "classifier", "seed")},
                "attack": attack,
                "norm": "" if clean else description["norm"],
                "eps": 0.0 if clean else description["eps"],
                "crafted_on": crafted_on,
                "defence": defence,
                "gradient": {"": "", "bare": "exact", "defended": description["gradient"]}[str(crafted_on)],
                "n": len(group),
                "accuracy": group["correct"].mean(),
                "ci_low": low,
                "ci_high": high,
                **means,
                "seconds_per_image": group["seconds"].mean(),
            }
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = {name: i for i, name in enumerate(("", "bare", "defended"))}
    return table.sort_values("crafted_on", key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def paired_differences(records: Iterable[Record]) -> pd.DataFrame:
    """Difference in accuracy of any two defences on identical images, with its 95 % bootstrap interval.

    Columns `attack, crafted_on, defence, against, n, difference, ci_low, ci_high`; a positive difference says that
    `defence` is right more often than `against`.
    """
    rows = []
    for (attack, crafted_on), group in pd.DataFrame(list(records)).groupby(ROW[:2], sort=False):
        wide = group.pivot(index="index", columns="defence", values="correct").astype(float)
        for a, b in combinations([d for d in group["defence"].unique() if d != "none"], 2):
            right = wide[a].to_numpy(), wide[b].to_numpy()
            one = (float(right[0][0] - right[1][0]), math.nan, math.nan)  # a single image has no interval
            difference, low, high = paired_bootstrap(*right) if len(wide) > 1 else one
            rows.append((attack, crafted_on, a, b, len(wide), difference, low, high))
    return pd.DataFrame(
        rows, columns=["attack", "crafted_on", "defence", "against", "n", "difference", "ci_low", "ci_high"]
    )
