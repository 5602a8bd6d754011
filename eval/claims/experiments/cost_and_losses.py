"""Claims about the cost of a fit, and about losses that know the noise."""

from collections.abc import Callable
from dataclasses import replace

import torch

from dipdefense import fit
from dipdefense.restoration.presets import PUBLISHED, SMALL_HOLES
from eval.claims.bench import CLOCKS, Bench
from eval.claims.claim import SPREAD, Outcome, estimate, holds
from eval.claims.curve_scores import scores
from eval.claims.experiments.two_models import MODELS, SNAIL, denoised, settings_of
from eval.cost import clock, peak_bytes
from eval.noise import generator_of, impulse
from eval.photographs import read_photo
from eval.records import Record

__all__ = ["EXPERIMENTS"]

STEPS = 20  # enough to know the cost of one
FILE = "sets/set14/lenna.png"
MINUTE = 60.0


def _seconds(device: torch.device) -> float:
    """The time; on the CPU that of the processor, which other jobs do not lengthen much."""
    return clock(device) if device.type != "cpu" else CLOCKS["processor"]()


def cost(bench: Bench) -> list[Record]:
    """Seconds of a whole fit, from twenty steps of it, and the peak memory of the process, at 128 px."""
    device = torch.device(bench.settings.device)
    image = bench.photo(SNAIL)[None].to(device)
    configs = {**MODELS, **({"published": PUBLISHED["denoise"]} if bench.settings.published else {})}

    def measure() -> list[Record]:
        rows = []
        for name, config in configs.items():
            start = _seconds(device)
            fit(image, replace(config, iterations=STEPS), seed=bench.settings.seed)
            seconds = (_seconds(device) - start) / STEPS * config.iterations
            rows.append({"network": name, "iterations": config.iterations, "seconds": seconds})
            rows[-1]["peak_gb"] = peak_bytes(device) / 2**30
        return rows

    rows: list[Record] = bench.once("cost", {}, measure)
    return rows


def slow(bench: Bench) -> Outcome:
    """S0-21."""
    rows = cost(bench)
    return Outcome(
        verdict=holds(max(row["seconds"] for row in rows) > 1),
        protocol=f"The snail at {bench.settings.size} px, {STEPS} steps of each model, times their number. Batch and "
        "image are not stated, and there are no seconds. On the CPU, seconds of the processor.",
        ours="; ".join(
            f"{row['network']} {row['seconds']:.0f} s for {row['iterations']} steps, {row['peak_gb']:.2f} GB"
            for row in rows
        ),
        n=1,
        why="Reproduced if a fit takes more than a second. The memory is the peak of the whole process.",
        table=rows,
    )


def no_data_but_time(bench: Bench) -> Outcome:
    """S1-17."""
    rows = cost(bench)
    row, _ = denoised(bench, SNAIL, settings_of(bench, "Model 1", quick=False))
    seconds = rows[0]["seconds"]
    return Outcome(
        verdict=holds(seconds > 1, row["psnr_best"] > row["psnr_last"] + SPREAD),
        protocol="The fit of S0-8, and its cost from S0-21. Adaptive stopping, their outlook, is in docs/stopping.md.",
        ours=f"{seconds:.0f} s; best {row['psnr_best']:.2f} dB at iteration {row['best_at']}, last "
        f"{row['psnr_last']:.2f} dB",
        n=1,
        why=f"Reproduced if a fit takes more than a second and falls from its best iterate by more than {SPREAD} dB.",
        table=[row],
    )


def minutes(bench: Bench) -> Outcome:
    """S3-13."""
    device, config = torch.device(bench.settings.device), PUBLISHED["denoise"]
    image = read_photo(bench.settings.data / "dip" / "denoising" / "F16_GT.png")[None].to(device)

    def measure() -> float:
        start = _seconds(device)
        fit(image, replace(config, iterations=2), seed=bench.settings.seed)
        return (_seconds(device) - start) / 2 * config.iterations

    total = bench.once("cost of the published fit", {}, measure)
    on_gpu = device.type == "cuda"
    return Outcome(
        verdict=holds(total > MINUTE) if on_gpu else "not testable here",
        protocol=f"F16 at 512 px, the published network; two steps, times {config.iterations // 2}.",
        ours=f"{total / MINUTE:.0f} minutes on {device.type}",
        n=1,
        why="Reproduced if a fit takes more than a minute." if on_gpu else "The claim is about a GPU.",
    )


def noise_model(bench: Bench) -> Outcome:
    """S3-5."""
    clean = bench.photo(FILE)
    noisy = impulse(clean[None], 0.09, generator=generator_of(bench.settings.seed, FILE, "impulse"))[0]
    table: list[Record] = []
    for loss in ("mse", "l1"):
        curve = bench.curve(clean, noisy, replace(SMALL_HOLES, iterations=500, ema=0.98, loss=loss))
        table.append({"loss": loss, **bench.input_scores(clean, noisy), **scores(curve)})
    gain = estimate([table[1]["psnr_average"] - table[0]["psnr_average"]])
    return Outcome(
        verdict=holds(gain.least > 0),
        protocol=f"{FILE} at {bench.settings.size} px, 9 % of the values set to 0 or 1, hourglass of widths 16, 32, "
        f"64, 64, {table[0]['iterations']} iterations; the absolute error, the likelihood of noise with heavy tails, "
        "against the squared one. The losses of photon counts and of mixtures were not tried with their noise.",
        ours=f"input {table[0]['psnr_in']:.2f} dB; squared {table[0]['psnr_average']:.2f}, absolute "
        f"{table[1]['psnr_average']:.2f} dB ({gain.mean:+.2f})",
        estimate=gain,
        n=1,
        why=f"Reproduced if the absolute error is better by more than {SPREAD} dB.",
        table=table,
    )


EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {
    "S0-21": slow,
    "S1-17": no_data_but_time,
    "S3-5": noise_model,
    "S3-13": minutes,
}
