"""Claims about noise impedance: what a network learns first."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from dipdefense.restoration.presets import PUBLISHED
from eval.claims.bench import Bench
from eval.claims.claim import Outcome, holds
from eval.fits.impedance import TARGETS, noise_impedance, save_impedance
from eval.records import Record, digest

__all__ = ["EXPERIMENTS"]

FILE = "sets/set5/butterfly.png"
NEVER = float("inf")


def _arrivals(bench: Bench) -> tuple[list[Record], int]:
    """First iteration at half and at a tenth of the first loss for each target; the report's own network."""
    config, seed = bench.fit(PUBLISHED["remove_jpeg_artifacts"]), bench.settings.seed
    image = bench.photo(FILE)

    def measure() -> list[Record]:
        curves = noise_impedance(image, config, seed=seed, device=bench.settings.device)
        save_impedance(bench.folder("S2-1"), curves)
        return [{"target": target, **_arrival(curves, target)} for target in TARGETS]

    rows: list[Record] = bench.once("impedance", {"fit": asdict(config), "image": digest(image)}, measure)
    return rows, config.iterations


def _arrival(curves: pd.DataFrame, target: str) -> dict[str, Any]:
    losses = curves.loc[curves["target"] == target, "loss"].to_numpy()
    found: dict[str, Any] = {"first_loss": float(losses[0]), "last_loss": float(losses[-1])}
    for name, share in (("half", 0.5), ("tenth", 0.1)):
        there = losses <= losses[0] * share
        found[name] = int(np.argmax(there)) + 1 if there.any() else None
    return found


def _when(row: Record, share: str) -> float:
    return NEVER if row[share] is None else float(row[share])


def two_groups(bench: Bench) -> Outcome:
    """S2-1."""
    rows, iterations = _arrivals(bench)
    image, noisy, shuffled, noise = (_when(row, "half") for row in rows)
    return Outcome(
        verdict=holds(max(image, noisy) < min(shuffled, noise)),
        protocol=_protocol(bench, iterations),
        ours="; ".join(
            f"{share} of the first loss after "
            + ", ".join(f"{row[name] or 'never'} ({row['target']})" for row in rows)
            + " iterations"
            for name, share in (("half", "half"), ("tenth", "a tenth"))
        ),
        n=1,
        why="Reproduced if image and image + noise are at half of the first loss before shuffled pixels and noise. A "
        "tenth of it is about the noise itself, so image + noise would have to be fitted with its noise.",
        table=rows,
    )


def noise_in_the_end(bench: Bench) -> Outcome:
    """S1-14."""
    rows, iterations = _arrivals(bench)
    image, *_, noise = rows
    return Outcome(
        verdict=holds(_when(image, "half") < _when(noise, "half"), noise["last_loss"] < noise["first_loss"]),
        protocol=_protocol(bench, iterations),
        ours=f"half of the first loss after {image['half'] or 'never'} iterations for the image, "
        f"{noise['half'] or 'never'} for noise, whose loss falls from {noise['first_loss']:.3f} to "
        f"{noise['last_loss']:.3f}",
        n=1,
        why="Reproduced if the image is there first, and the loss of noise falls at all. Random labels are not tested.",
        table=rows,
    )


def _protocol(bench: Bench, iterations: int) -> str:
    return (
        f"{FILE} reduced to {bench.settings.size} px, sigma 25 clipped; the network of the report, widths 8 to 128 "
        f"with 4 skip channels at the two coarsest scales, z of 3 channels, {iterations} iterations. The "
        "image is not stated."
    )


EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {"S1-14": noise_in_the_end, "S2-1": two_groups}
