"""The tables of a denoising run, made from its records: all scores, one row per method, paired differences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.intervals import paired_bootstrap
from eval.records import Record, write_whole
from eval.restoration.denoising_pictures import save_denoised

__all__ = ["PAIRED", "mean_interval", "paired_scores", "score_table", "summarise_scores", "write_scores"]

PAIRED = ["baseline", "method", "n", "difference", "ci_low", "ci_high", "least", "above"]  # columns
SCORES = ["psnr", "ssim", "psnr_unclipped", "seconds"]


def score_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per image, method and seed; after the rows of a seed, their mean over the images as image `mean`."""
    columns = ["image", "method", "seed", *SCORES, "iteration", "sigma"]
    frame = pd.DataFrame(list(records))[columns].astype({"iteration": float, "sigma": float})
    parts = []
    for seed, group in frame.groupby("seed", sort=False):
        means = group.groupby("method", sort=False)[SCORES].mean().reset_index()
        parts += [group, means.assign(image="mean", seed=seed)]
    return pd.concat(parts, ignore_index=True)[columns]


def summarise_scores(records: Sequence[Record]) -> pd.DataFrame:
    """One row per method.

    Columns: `method, n` (images), `seeds`; `psnr` in dB, of images clipped to [0, 1], with `ci_low, ci_high`, a 95 %
    bootstrap interval over the images, where an image counts with its mean over the seeds, and `psnr_spread`, the
    standard deviation over seeds of the mean over images; `ssim, ssim_spread` likewise; `psnr_unclipped`; `seconds` per
    image.
    """
    rows = []
    for method, group in pd.DataFrame(list(records)).groupby("method", sort=False):
        by_image = group.groupby("image", sort=False)[SCORES].mean()
        by_seed = group.groupby("seed", sort=False)[SCORES].mean()
        mean, low, high = mean_interval(by_image["psnr"].to_numpy())
        spread = by_seed.std()  # NaN of a single seed
        rows.append(
            {
                "method": method,
                "n": len(by_image),
                "seeds": len(by_seed),
                "psnr": mean,
                "ci_low": low,
                "ci_high": high,
                "psnr_spread": spread["psnr"],
                "ssim": by_image["ssim"].mean(),
                "ssim_spread": spread["ssim"],
                "psnr_unclipped": by_image["psnr_unclipped"].mean(),
                "seconds": by_image["seconds"].mean(),
            }
        )
    return pd.DataFrame(rows)


def paired_scores(records: Sequence[Record], baseline: str, score: str = "psnr") -> pd.DataFrame:
    """The score of `baseline` minus that of every other method, in dB if it is the PSNR, on the same images.

    Columns: `method, n, difference` with `ci_low, ci_high`, a 95 % paired bootstrap interval over images, where an
    image counts with its mean over the seeds; `least`, the smallest difference of any image, and `above`, the number of
    images whose difference is positive.
    """
    scores = pd.DataFrame(list(records)).pivot_table(index="image", columns="method", values=score, sort=False)
    rows = []
    for method in [name for name in scores.columns if name != baseline]:
        each = (scores[baseline] - scores[method]).to_numpy()
        mean, low, high = mean_interval(each)
        row = {"baseline": baseline, "method": method, "n": len(each), "difference": mean}
        rows.append(row | {"ci_low": low, "ci_high": high, "least": each.min(), "above": int((each > 0).sum())})
    return pd.DataFrame(rows, columns=PAIRED)


def mean_interval(values: Any) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval of (N,) values; the interval of a single value is NaN."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float(np.mean(values)), float("nan"), float("nan")
    return paired_bootstrap(values, np.zeros(len(values)))


def write_scores(run: Path, records: Sequence[Record], baseline: str, settings: Mapping[str, Any]) -> pd.DataFrame:
    """Write all tables and the contact sheet of a run into its folder; returns the summary."""
    tables = {
        "scores": score_table(records),
        "summary": summarise_scores(records),
        "paired": paired_scores(records, baseline),
    }
    for name, table in tables.items():
        write_whole(run / f"{name}.csv", table.to_csv(index=False))
    plain = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
    write_whole(run / "results.json", json.dumps({"settings": dict(settings), **plain}, indent=1) + "\n")
    save_denoised(run / "contact_sheet.jpg", run / "pictures", records)
    return tables["summary"]
