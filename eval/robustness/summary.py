"""The tables of a run, made from its records."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from eval.intervals import tango, wilson
from eval.records import Record

__all__ = ["COLUMNS", "DISTORTION", "QUALITY", "ROW", "paired_differences", "summarise"]

COLUMNS = [
    *("dataset", "classifier", "attack", "norm", "eps", "targeted", "crafted_on", "defence", "gradient"),
    *("n", "accuracy", "ci_low", "ci_high"),
    *("psnr_attacked", "psnr_defended", "ssim_attacked", "ssim_defended"),
    *("l2", "linf", "l2_mean", "linf_mean"),
    *("seconds_per_image", "seed"),
]
ROW = ("attack", "crafted_on", "eps", "defence", "strength")  # the fields that name a row
DISTORTION = ["l2", "linf"]  # of the perturbation of an image, in the unit of the images
QUALITY = ["psnr_attacked", "psnr_defended", "ssim_attacked", "ssim_defended"]


def summarise(
    records: Iterable[Record] | pd.DataFrame, description: Mapping[str, Any], further: Sequence[str] = ()
) -> pd.DataFrame:
    """One row per attack and defence, in the order of the records; columns `COLUMNS`, then the `further` ones.

    `accuracy` is the share of images that are classified correctly. If `targeted` is true, the labels are the targets,
    and it is the share that is classified as the target, also for clean images; a lower value then means a better
    defence. The interval is the 95 % Wilson interval. PSNR (dB) and SSIM are means over the images: `attacked` compares
    the attacked image with the clean one, `defended` the purified image with the clean one. They are empty if they do
    not apply. `l2` and `linf` are the medians of the norms of the perturbations, `l2_mean` and `linf_mean` their means,
    over the images that the attack changed: a minimum-norm attack, whose `eps` is empty, leaves an image as it is if it
    is misclassified already or if the search fails. `gradient` is that of the attack: `exact` on the bare classifier,
    else the replacement for the gradient of the defence, or `none`. Seconds are those of defence and classification. A
    further column is `strength`, or the mean of a field of the records; for `peak_gb` it is the largest value.
    """
    frame = records.copy() if isinstance(records, pd.DataFrame) else pd.DataFrame(list(records))
    averaged = [*QUALITY, *(name for name in further if name != "strength")]
    numbers = ["eps", *DISTORTION, *averaged]
    frame[numbers] = frame[numbers].astype(float)  # a missing number is NaN
    rows = []
    key: Any  # pandas types the keys of groups as Hashable
    for key, group in frame.groupby(list(ROW), sort=False, dropna=False):
        named = dict(zip(ROW, key, strict=True))
        low, high = wilson(int(group["correct"].sum()), len(group))
        clean, norm = named["attack"] == "clean", "l2" if pd.isna(named["eps"]) else description["norm"]
        changed = group.loc[group["linf"] > 0, DISTORTION]
        means: dict[Any, Any] = group[averaged].mean().to_dict() | {"peak_gb": group["peak_gb"].max()}
        if clean:
            means |= {"psnr_attacked": float("nan"), "ssim_attacked": float("nan")}
        rows.append(
            {
                **{name: description.get(name, False) for name in ("dataset", "classifier", "targeted", "seed")},
                **named,
                "norm": "" if clean else norm,
                "gradient": group["gradient"].iloc[0],
                "n": len(group),
                "accuracy": group["correct"].mean(),
                "ci_low": low,
                "ci_high": high,
                **means,
                **changed.median().to_dict(),
                **changed.mean().add_suffix("_mean").to_dict(),
                "seconds_per_image": group["seconds"].mean(),
            }
        )
    table = pd.DataFrame(rows, columns=[*COLUMNS, *further])
    order = {name: i for i, name in enumerate(("", "bare", "defended"))}
    return table.sort_values("crafted_on", key=lambda c: c.map(order), kind="stable").reset_index(drop=True)


def paired_differences(records: Iterable[Record], baseline: tuple[str, float] | None = None) -> pd.DataFrame:
    """Difference in accuracy of two defences on identical images, with Tango's 95 % score interval.

    Args:
        records: of a run.
        baseline: defence and strength that all others are compared with; if None, all pairs without `none` are.

    Columns `attack, crafted_on, eps, defence, strength, against, against_strength, n, difference, ci_low, ci_high`. A
    positive difference means that `defence` has a higher `accuracy`, as `summarise` defines it, than `against`.
    """
    rows = []
    for cell, group in pd.DataFrame(list(records)).groupby(list(ROW[:3]), sort=False, dropna=False):
        right = {name: of.set_index("index")["correct"] for name, of in group.groupby(list(ROW[3:]), sort=False)}
        pairs: Iterable[Any] = combinations([name for name in right if name[0] != "none"], 2)
        if baseline is not None:
            pairs = ((name, baseline) for name in right if name != baseline)
        for a, b in pairs:
            rows.append((*cell, *a, *b, len(right[b]), *tango(right[a].reindex(right[b].index), right[b])))
    columns = [*ROW, "against", "against_strength", "n", "difference", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns).astype({"strength": float, "against_strength": float})
