"""From records to tables."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from eval.intervals import tango, wilson
from eval.records import Record

__all__ = ["COLUMNS", "ROW", "paired_differences", "summarise"]

COLUMNS = [
    *("dataset", "classifier", "attack", "norm", "eps", "targeted", "crafted_on", "defence", "gradient"),
    *("n", "accuracy", "ci_low", "ci_high"),
    *("psnr_attacked", "psnr_defended", "ssim_attacked", "ssim_defended"),
    *("seconds_per_image", "seed"),
]
ROW = ["attack", "crafted_on", "defence"]  # what names a row


def summarise(records: Iterable[Record], description: Mapping[str, Any]) -> pd.DataFrame:
    """One row per attack and defence, in the order of the records; columns `COLUMNS`.

    Where `targeted` is true, the labels are the targets, and `accuracy` is the share of images that are classified as
    their target, clean images too: the lower, the better the defence. Elsewhere it is the share that is right. The
    interval is the 95 % Wilson interval. PSNR (dB) and SSIM are means over the images; `attacked` compares
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
                **{name: description[name] for name in ("dataset", "classifier", "targeted", "seed")},
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
    """Difference in accuracy of any two defences on identical images, with Tango's 95 % score interval.

    Columns `attack, crafted_on, defence, against, n, difference, ci_low, ci_high`; a positive difference says that
    `defence` is right (in a targeted run: hit) more often than `against`.
    """
    rows = []
    for (attack, crafted_on), group in pd.DataFrame(list(records)).groupby(ROW[:2], sort=False):
        wide = group.pivot(index="index", columns="defence", values="correct")
        for a, b in combinations([d for d in group["defence"].unique() if d != "none"], 2):
            rows.append((attack, crafted_on, a, b, len(wide), *tango(wide[a], wide[b])))
    return pd.DataFrame(
        rows, columns=["attack", "crafted_on", "defence", "against", "n", "difference", "ci_low", "ci_high"]
    )
