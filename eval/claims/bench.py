"""What every measurement of a claim shares: its settings, the images, and results that are kept as they are made."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dipdefense import FitConfig
from dipdefense.digest import configuration_hash
from eval.fits.training_curve import training_curve
from eval.metrics import psnr, ssim
from eval.noise import gaussian, generator_of
from eval.photographs import read_photo
from eval.records import Record, Run, digest

__all__ = ["CLOCKS", "KEY", "Bench", "Settings", "plain"]

KEY = ("what", "config")
# Seconds by the wall, and of the processor: the second are those that other jobs on the machine do not lengthen much.
CLOCKS: dict[str, Callable[[], float]] = {"seconds": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all measurements of a run have in common."""

    data: Path  # the folder with dip/, sets/, polyu/, mnist/, cifar10/ and weights/
    size: int = 128  # side of the photographs in pixels
    iterations: int | None = None  # at most this many in every fit, for a trial; None: as each protocol says
    published: bool = False  # the protocols at full size, for a GPU
    seed: int = 0
    device: str = "cpu"


class Bench:
    """Measurements by name and inputs. Each is made once and kept in the run's records, so that claims share it."""

    def __init__(self, run: Run, settings: Settings):
        self.run, self.settings = run, settings
        self.cost = dict.fromkeys(CLOCKS, 0.0)  # of all measurements that were asked for, when they were made

    def once(self, what: str, inputs: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What `compute` returns, in plain values; it is called where the records lack it.

        Args:
            what: name of the measurement.
            inputs: everything that it depends on besides the settings of the run, in plain values.
            compute: makes it.
        """
        head, before = self.head(what, inputs), dict(self.cost)
        if self.run.missing([head]):
            start = {name: clock() for name, clock in CLOCKS.items()}
            value = compute()
            elapsed = {name: clock() - start[name] for name, clock in CLOCKS.items()}
            # What it asked for may have been made before, and is counted all the same.
            spent = {name: max(elapsed[name], self.cost[name] - before[name]) for name in CLOCKS}
            self.run.add([head | {"value": value} | spent])
        (record,) = self.run.records([head])
        self.cost = {name: before[name] + record[name] for name in CLOCKS}
        return record["value"]

    @staticmethod
    def head(what: str, inputs: Mapping[str, Any]) -> Record:
        """The fields that name a measurement."""
        return {"what": what, "config": configuration_hash(dict(inputs))}

    def fit(self, config: FitConfig) -> FitConfig:
        """These settings, shortened for a trial."""
        most = self.settings.iterations
        return config if most is None else replace(config, iterations=min(most, config.iterations))

    def photo(self, file: str, *, whole: bool = True) -> Tensor:
        """The centre of an image below the data folder, (C, size, size): reduced to `size`, or else to twice that.

        What is not reduced as a whole has its own size in a run of the published protocols.
        """
        path, size = self.settings.data / file, self.settings.size
        if self.settings.published and not whole:
            return read_photo(path)
        return read_photo(path, size if whole else 2 * size, size)

    def noisy(self, clean: Tensor, sigma: float, name: str) -> Tensor:
        """The image with Gaussian noise, clipped to [0, 1]; a function of the run's seed and the name."""
        return gaussian(clean[None], sigma, generator=generator_of(self.settings.seed, name, "claims"))[0]

    def input_scores(self, clean: Tensor, noisy: Tensor) -> Record:
        """PSNR and SSIM of the noisy image."""
        pair = noisy[None], clean[None]
        return {"psnr_in": psnr(*pair).item(), "ssim_in": ssim(*pair).item()}

    def folder(self, name: str) -> Path:
        """Where a benchmark of its own keeps its run, and where plots go."""
        return self.run.folder / "runs" / name

    def curve(self, clean: Tensor, noisy: Tensor, config: FitConfig, *, seed: int | None = None) -> pd.DataFrame:
        """`training_curve` of one fit, with a hundred rows of each kind; the last one is the end of the fit."""
        config, seed = self.fit(config), self.settings.seed if seed is None else seed
        every = max(1, config.iterations // 100)
        inputs = {"fit": asdict(config), "images": [digest(clean), digest(noisy)], "seed": seed, "every": every}
        made = self.once(
            "curve",
            inputs,
            lambda: plain(
                training_curve(clean, noisy, config, every=every, seed=seed, device=torch.device(self.settings.device))
            ),
        )
        return pd.DataFrame(made)


def plain(table: pd.DataFrame) -> list[Record]:
    """The rows of a table in plain values; None for what is missing or not a number."""
    rows: list[Record] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows
