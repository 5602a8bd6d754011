"""What a training curve says: its end, its best iterate, and its value at an iteration."""

import pandas as pd

from eval.records import Record

__all__ = ["along", "at", "scores"]


def along(curve: pd.DataFrame, of: str, against: str = "reference") -> pd.DataFrame:
    """The rows of `output` or `average`, against `reference` or `noisy`, in the order of the iterations."""
    return curve.loc[(curve["of"] == of) & (curve["against"] == against)].reset_index(drop=True)


def at(curve: pd.DataFrame, of: str, iteration: int, against: str = "reference", score: str = "psnr") -> float:
    """The score of the row nearest to an iteration."""
    rows = along(curve, of, against)
    nearest = int((rows["iteration"] - iteration).abs().to_numpy().argmin())
    return float(rows[score].iloc[nearest])


def scores(curve: pd.DataFrame) -> Record:
    """PSNR and SSIM to the reference of the last output, the average and the best of both, and where the best is."""
    output, average = along(curve, "output"), along(curve, "average")
    both = pd.concat([output, average], ignore_index=True)
    best = both.iloc[int(both["psnr"].to_numpy().argmax())]
    ends = {"last": output.iloc[-1], "average": average.iloc[-1], "best": best}
    return {
        **{f"psnr_{name}": float(row["psnr"]) for name, row in ends.items()},
        **{f"ssim_{name}": float(row["ssim"]) for name, row in ends.items()},
        "best_at": int(best["iteration"]),
        "iterations": int(output["iteration"].iloc[-1]),
    }
