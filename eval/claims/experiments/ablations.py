"""Claims about single parts of a fit, by the ablation benchmark."""

from collections.abc import Callable

import torch

from eval.claims.bench import Bench, plain
from eval.claims.claim import Estimate, Outcome, holds
from eval.datasets import load_dataset
from eval.records import Record
from eval.restoration.ablation import FIXED, OWN, benchmark_ablation

__all__ = ["EXPERIMENTS"]

FILES = ("sets/set9/image_House256rgb.png", "sets/set9/image_Peppers512rgb.png")
DIGITS = 16


def _rows(bench: Bench) -> list[Record]:
    """The whole table of `benchmark ablation` on two photographs and sixteen digits."""

    def measure() -> list[Record]:
        photos = [bench.photo(file, whole=False) for file in FILES]
        table = benchmark_ablation(
            [photo[:, : photo.shape[1] // 32 * 32, : photo.shape[2] // 32 * 32] for photo in photos],
            load_dataset("mnist", bench.settings.data / "mnist").batch(range(DIGITS)),
            fixed=bench.fit(FIXED),
            own={task: bench.fit(config) for task, config in OWN.items()},
            seed=bench.settings.seed,
            device=torch.device(bench.settings.device),
            out=bench.folder("ablation"),
        )
        return plain(table)

    rows: list[Record] = bench.once("ablation", {}, measure)
    return rows


def _difference(rows: list[Record], task: str, network: str) -> Estimate:
    """PSNR of a network minus that of the task's own."""
    (row,) = (row for row in rows if (row["task"], row["network"]) == (task, network))
    return Estimate(row["difference"], row["difference_low"], row["difference_high"], row["n"])


def compared(networks: tuple[str, ...], better: bool, claim: str) -> Callable[[Bench], Outcome]:
    """One row of the table against the task's own, on photographs with noise of 29 dB."""

    def measure(bench: Bench) -> Outcome:
        rows = _rows(bench)
        found = {network: _difference(rows, "colour", network) for network in networks}
        return Outcome(
            verdict=holds(*((each.least > 0) if better else (each.most < 0) for each in found.values())),
            protocol=f"`benchmark ablation`: {', '.join(FILES)} at {bench.settings.size} px, noise of 29 dB, four "
            "scales of 32 channels with 4 skip channels, 400 iterations, rate .02, noise on z.",
            ours="; ".join(
                f"{network} {each.mean:+.2f} dB ({each.least:+.2f} to {each.most:+.2f})"
                for network, each in found.items()
            ),
            estimate=next(iter(found.values())),
            n=len(FILES),
            why=f"Reproduced if {claim}, with the whole interval; of two images it is no more than these two.",
            table=[row for row in rows if row["task"] == "colour"],
        )

    return measure


def one_for_all(bench: Bench) -> Outcome:
    """S3-15."""
    rows = _rows(bench)
    found = {task: _difference(rows, task, "fixed") for task in OWN if task != "colour"}
    return Outcome(
        verdict=holds(all(each.most < 0 for each in found.values())),
        protocol="`benchmark ablation`: one configuration for every task against each task's own.",
        ours="; ".join(f"{task} {each.mean:+.2f} dB (n = {each.n})" for task, each in found.items()),
        n=len(FILES) + DIGITS,
        why="The survey leaves the question open. Reproduced means no: the fixed one is worse on every other task.",
        table=[row for row in rows if row["network"] in ("own", "fixed", "input")],
    )


EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {
    "S0-23": compared(("between",), True, "half of the channels as skips is better than the hourglass"),
    "S1-8": compared(
        ("bilinear",), True, "bilinear is better than nearest upsampling for denoising, the first half of the claim"
    ),
    "S1-9": compared(("no skip",), False, "the hourglass without skip connections is worse"),
    "S3-15": one_for_all,
}
