"""Claims about holes, which are cut into photographs here so that there is a truth."""

from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from dipdefense import FitConfig, inpaint
from dipdefense.restoration.presets import SMALL_HOLES
from eval.claims.bench import Bench
from eval.claims.claim import SPREAD, Outcome, estimate, holds
from eval.records import Record

__all__ = ["EXPERIMENTS"]

FILES = ("sets/set14/lenna.png", "sets/set14/monarch.png")
FACE = "sets/set5/head.png"
SIDE = 32  # pixels, of the hole of S1-7
SIDES = (8, 16, 32, 64)  # those up to half of the photograph
ITERATIONS = 400


def _inside(bench: Bench, file: str, side: int, config: FitConfig) -> float:
    """PSNR inside a square hole in the middle of a photograph."""
    image = bench.photo(file, whole=False)[None]
    mask = torch.ones_like(image[:, :1])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    mask[..., top : top + side, left : left + side] = 0

    def measure() -> float:
        result = inpaint(image.to(bench.settings.device), mask, config=config, seed=bench.settings.seed).cpu()
        return _decibels((result - image)[(mask == 0).expand_as(image)])

    value: float = bench.once("hole", {"file": file, "side": side, "fit": asdict(config)}, measure)
    return value


def _decibels(error: Tensor) -> float:
    return -10 * error.square().mean().log10().item()


def _config(bench: Bench, **options: object) -> FitConfig:
    return bench.fit(
        replace(
            SMALL_HOLES,
            iterations=ITERATIONS,
            architecture_options={**SMALL_HOLES.architecture_options, **options},
        )
    )


def inputs_and_skips(bench: Bench) -> Outcome:
    """S1-7."""
    noise, bare = _config(bench), _config(bench, skip_channels=0)
    mesh = {"input": "meshgrid", "input_channels": 2}
    configs = {
        "noise, skips": noise,
        "noise, no skips": bare,
        "meshgrid, skips": replace(noise, **mesh),  # type: ignore[arg-type]
        "meshgrid, no skips": replace(bare, **mesh),  # type: ignore[arg-type]
    }
    values = {name: [_inside(bench, file, SIDE, config) for file in FILES] for name, config in configs.items()}
    means = {name: estimate(each).mean for name, each in values.items()}
    others = [value for name, value in means.items() if name != "meshgrid, no skips"]
    return Outcome(
        verdict=holds(means["meshgrid, no skips"] > max(others)),
        protocol=f"A hole of {SIDE} px in the middle of {' and '.join(FILES)}, {bench.settings.size} px; hourglass of "
        f"widths 16, 32, 64, 64, nearest upsampling, {noise.iterations} iterations. Images and holes are not stated.",
        ours="PSNR inside: " + "; ".join(f"{name} {value:.2f}" for name, value in means.items()) + " dB",
        n=len(FILES),
        why="Reproduced if the meshgrid without skip connections has the largest mean.",
        table=[
            {"network": name, "image": file, "psnr": value}
            for name, each in values.items()
            for file, value in zip(FILES, each, strict=True)
        ],
    )


def size_of_the_hole(bench: Bench) -> Outcome:
    """S3-10."""
    config, sides = _config(bench), [side for side in SIDES if side <= bench.settings.size // 2]
    table: list[Record] = [
        {"image": file, "side": side, "psnr": _inside(bench, file, side, config)}
        for file in (FACE, *FILES)
        for side in sides
    ]
    by_side = {side: estimate([row["psnr"] for row in table if row["side"] == side]).mean for side in sides}
    return Outcome(
        verdict=holds(by_side[sides[-1]] < by_side[sides[0]] - SPREAD),
        protocol=f"Square holes in the middle of {FACE} and two photographs of Set14, {bench.settings.size} px, the "
        "network of S1-7 with skip connections and noise as z. Sizes are not stated.",
        ours="mean PSNR inside, by side: "
        + "; ".join(f"{side} px {value:.2f}" for side, value in by_side.items())
        + " dB",
        n=1 + len(FILES),
        why="Reproduced if the largest hole is filled worse than the smallest. That it fails is not a figure.",
        table=table,
    )


EXPERIMENTS: dict[str, Callable[[Bench], Outcome]] = {"S1-7": inputs_and_skips, "S3-10": size_of_the_hole}
