"""Claims about the depth, the rate and the padding of the network that denoises."""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from dipdefense import FitConfig, fit
from dipdefense.restoration.presets import SMALL_HOLES
from eval.claims.bench import Bench
from eval.claims.claim import SPREAD, Outcome, estimate, holds
from eval.claims.curve_scores import scores
from eval.records import Record

__all__ = ["EXPERIMENTS"]

FILE, OTHER = "sets/set14/lenna.png", "sets/set14/monarch.png"
SIGMA, ITERATIONS = 25 / 255, 400
WIDTHS = (16, 32, 64, 64, 64)
DEPTHS, RATES = (1, 2, 3, 4, 5), (3e-3, 1e-2, 3e-2)
BORDER = 8  # pixels
PROTOCOL = (
    "{files} at {size} px, clipped noise of sigma 25, hourglass of widths 16, 32, 64, 64 (depth 4) with 4 skip "
    "channels, nearest upsampling, {iterations} iterations, rate .01, noise of 1/30 on z, unless the row says more."
)


def _config(bench: Bench, lr: float = 1e-2, **options: object) -> FitConfig:
    own = {**SMALL_HOLES.architecture_options, **options}
    return bench.fit(replace(SMALL_HOLES, iterations=ITERATIONS, lr=lr, architecture_options=own))


def _peak(bench: Bench, depth: int, lr: float) -> Record:
    clean = bench.photo(FILE, whole=False)
    curve = bench.curve(clean, bench.noisy(clean, SIGMA, FILE), _config(bench, lr, channels=list(WIDTHS[:depth])))
    return {"depth": depth, "rate": lr, **scores(curve)}


def _protocol(bench: Bench, *files: str) -> str:
    iterations = _config(bench).iterations
    return PROTOCOL.format(files=" and ".join(files), size=bench.settings.size, iterations=iterations)


def depth(bench: Bench) -> Outcome:
    """S1-15."""
    table = [_peak(bench, each, 1e-2) for each in DEPTHS]
    peaks = [row["psnr_best"] for row in table]
    return Outcome(
        verdict=holds(max(peaks) - min(peaks) > SPREAD),
        protocol=_protocol(bench, FILE),
        ours="; ".join(f"depth {row['depth']}: {row['psnr_best']:.2f} dB at {row['best_at']}" for row in table),
        n=1,
        why=f"Reproduced if depths 1 to 5 differ in their best iterate by more than {SPREAD} dB. How complex a pattern "
        "is has no figure.",
        table=table,
    )


def rate_and_depth(bench: Bench) -> Outcome:
    """S3-14."""
    table = [_peak(bench, each, rate) for each in (2, 4) for rate in RATES]
    peaks, ends = [row["psnr_best"] for row in table], [row["psnr_last"] for row in table]
    return Outcome(
        verdict=holds(max(peaks) - min(peaks) > SPREAD, max(b - e for b, e in zip(peaks, ends, strict=True)) > SPREAD),
        protocol=_protocol(bench, FILE),
        ours="; ".join(
            f"depth {row['depth']}, rate {row['rate']}: {row['psnr_best']:.2f} dB at {row['best_at']}, last "
            f"{row['psnr_last']:.2f}"
            for row in table
        ),
        n=1,
        why=f"Reproduced if the best iterates differ by more than {SPREAD} dB over rate and depth, and a fit falls "
        "from its best by more than that. Whether it is the best of all untrained methods is S0-20.",
        table=table,
    )


def padding(bench: Bench) -> Outcome:
    """S1-10."""
    files = (FILE, OTHER)
    clean = torch.stack([bench.photo(file, whole=False) for file in files])
    noisy = torch.stack([bench.noisy(image, SIGMA, file) for image, file in zip(clean, files, strict=True)])
    table: list[Record] = []
    for name in ("reflection", "zero"):
        config = _config(bench, padding=name)

        def measure(config: FitConfig = config) -> list[list[float]]:
            images = fit(noisy.to(bench.settings.device), config, seed=bench.settings.seed).reconstruction.cpu()
            return [_border_and_inside(image, truth) for image, truth in zip(images, clean, strict=True)]

        for file, (border, inside) in zip(files, bench.once("padding", {"fit": asdict(config)}, measure), strict=True):
            table.append({"padding": name, "image": file, "border": border, "inside": inside})
    at_border, within = (
        estimate([a[where] - b[where] for a, b in zip(table[:2], table[2:], strict=True)])
        for where in ("border", "inside")
    )
    return Outcome(
        verdict=holds(at_border.least > 0),
        protocol=_protocol(bench, *files),
        ours=f"reflection less zero padding: outer {BORDER} px {at_border.mean:+.2f} dB ({at_border.least:+.2f} to "
        f"{at_border.most:+.2f}), inside {within.mean:+.2f} dB",
        estimate=at_border,
        n=len(files),
        why="Reproduced if the whole interval of the difference at the border lies above 0; it is of two images.",
        table=table,
    )


def _border_and_inside(image: Tensor, truth: Tensor) -> list[float]:
    """PSNR of the outer pixels and of the others, (C, H, W)."""
    inside = torch.zeros_like(truth, dtype=torch.bool)
    inside[:, BORDER:-BORDER, BORDER:-BORDER] = True
    error = (image.clamp(0, 1) - truth).square()
    return [-10 * error[where].mean().log10().item() for where in (~inside, inside)]


EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {"S1-10": padding, "S1-15": depth, "S3-14": rate_and_depth}
