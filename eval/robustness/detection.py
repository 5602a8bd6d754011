"""How well scores separate adversarial from clean images: AUROC with its interval, and the rate at few false alarms."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from eval.records import Record

__all__ = ["ALARMS", "Detection", "detection", "detection_table", "paired_detection", "score_pairs", "threshold_of"]

Scores = np.ndarray[Any, Any]

RIVAL = "noise_level"  # the baseline for detectors
BETTER = ("better_by", "better_low", "better_high")
ALARMS = 0.05  # false positive rate at which the true positive rate is read off


class Detection(NamedTuple):
    """How well a score detects; NaN if no image is adversarial."""

    auroc: float  # probability that an adversarial image scores above a clean one, ties counting half
    ci_low: float
    ci_high: float
    tpr: float  # true positives at a false positive rate of at most `ALARMS`
    flagged: float  # all attacked images, fooled or not, above the threshold of that rate


def detection(
    clean: ArrayLike,
    attacked: ArrayLike,
    fooled: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Detection:
    """Score the detection of adversarial images among clean ones.

    The interval is a percentile bootstrap over images: a clean image and its attacked version are drawn together.

    Args:
        clean: scores of the clean images, (N,), larger is more adversarial.
        attacked: scores of the same images attacked, (N,).
        fooled: (N,) bool; the attacked images that are adversarial. The others are left out.
        confidence: coverage, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: arrays of different lengths, scores that are not finite.
    """
    negative, positive = np.asarray(clean, dtype=np.float64), np.asarray(attacked, dtype=np.float64)
    chosen = np.asarray(fooled, dtype=bool)
    if negative.ndim != 1 or not negative.shape == positive.shape == chosen.shape or len(negative) < 1:
        raise ValueError(
            f"clean, attacked and fooled must be (N,), got {negative.shape}, {positive.shape} and {chosen.shape}"
        )
    if not (np.isfinite(negative).all() and np.isfinite(positive).all()):
        raise ValueError("scores must be finite, got NaN or infinite values")
    limit = threshold_of(negative)
    flagged = float((positive > limit).mean())
    if not chosen.any():
        return Detection(math.nan, math.nan, math.nan, math.nan, flagged)
    areas = _areas(negative, positive, chosen, resamples, seed)
    low, high = np.nanquantile(areas, [(1 - confidence) / 2, (1 + confidence) / 2])
    above = _above(negative, positive[chosen])
    return Detection(float(above.mean()), float(low), float(high), float((positive[chosen] > limit).mean()), flagged)


def threshold_of(clean: ArrayLike) -> float:
    """The smallest clean score (N,) that at most a share `ALARMS` of the clean scores exceeds."""
    ordered = np.sort(np.asarray(clean, dtype=np.float64))
    return float(ordered[-1 - math.floor(ALARMS * len(ordered))])


def _above(negative: Scores, positive: Scores) -> Scores:
    """Mann and Whitney's count, (N, A): 1 where the adversarial image scores above the clean one, ties 1/2."""
    return np.asarray((positive > negative[:, None]) + (positive == negative[:, None]) / 2)


def _areas(negative: Scores, positive: Scores, chosen: Scores, resamples: int, seed: int) -> Scores:
    """AUROC of bootstrap samples, (resamples,); a seed always draws the same images. NaN without adversarial images."""
    N, above = len(negative), _above(negative, positive[chosen])
    times = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), size=resamples)  # (resamples, N)
    drawn = times[:, chosen]
    with np.errstate(invalid="ignore"):
        return np.asarray(((times @ above) * drawn).sum(1) / (N * drawn.sum(1)))


def paired_detection(
    first: pd.DataFrame, second: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two AUROCs on the same images, and its paired percentile bootstrap interval.

    Args:
        first: columns `clean`, `attacked`, `fooled`, indexed by image, as `score_pairs` makes them.
        second: the same images and `fooled`; a positive difference means that `first` detects better.
        confidence: coverage, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: not the same images, or none is adversarial.
    """
    second = second.reindex(first.index)
    if second.isna().any(axis=None) or not (first["fooled"] == second["fooled"]).all() or not first["fooled"].any():
        raise ValueError("first and second must hold the same images, some of them fooled")
    samples, whole = [], []
    for pair in (first, second):
        clean, attacked, fooled = (pair[name].to_numpy() for name in ("clean", "attacked", "fooled"))
        samples.append(_areas(clean, attacked, fooled.astype(bool), resamples, seed))
        whole.append(_above(clean, attacked[fooled.astype(bool)]).mean())
    low, high = np.nanquantile(samples[0] - samples[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(whole[0] - whole[1]), float(low), float(high)


def score_pairs(records: Iterable[Record]) -> dict[tuple[str, float, str, float], pd.DataFrame]:
    """(method, strength, attack, eps) -> one row per image: its scores `clean` and `attacked`, and `fooled`.

    It has only methods that detect, and only attacks, not the clean rows.
    """
    frame = pd.DataFrame([record for record in records if record["score"] is not None])
    pairs: dict[tuple[str, float, str, float], pd.DataFrame] = {}
    if not len(frame):
        return pairs
    key: Any  # pandas types the keys of groups as Hashable
    row: Any
    for key, group in frame.groupby(["defence", "strength"], sort=False):
        clean = group[group["attack"] == "clean"].set_index("index")["score"].rename("clean")
        for row, attacked in group[group["attack"] != "clean"].groupby(["attack", "eps"], sort=False):
            columns = attacked.set_index("index")[["score", "fooled"]].rename(columns={"score": "attacked"})
            pairs[*key, *row] = columns.join(clean, how="inner")
    return pairs


def detection_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per method, strength, attack and eps.

    Columns `defence, strength, attack, eps, n_clean, n_adversarial, auroc, ci_low, ci_high, tpr_at_5fpr,
    flagged_at_5fpr, better_by, better_low, better_high`. An attacked image is adversarial if the bare classifier is
    wrong on it but right on its clean version. The last three are the AUROC minus that of the method `noise_level`, if
    the run has it, with its paired bootstrap interval.
    """
    pairs, rows = score_pairs(records), []
    rivals = {key[2:]: pair for key, pair in pairs.items() if key[0] == RIVAL}
    for key, pair in pairs.items():
        found = detection(pair["clean"], pair["attacked"], pair["fooled"])
        comparable = key[2:] in rivals and key[0] != RIVAL and pair["fooled"].any()
        better = paired_detection(pair, rivals[key[2:]]) if comparable else (math.nan,) * 3
        rows.append((*key, len(pair), int(pair["fooled"].sum()), *found, *better))
    columns = ["defence", "strength", "attack", "eps", "n_clean", "n_adversarial"]
    return pd.DataFrame(
        rows, columns=[*columns, "auroc", "ci_low", "ci_high", "tpr_at_5fpr", "flagged_at_5fpr", *BETTER]
    )
