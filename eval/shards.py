"""The evaluation on a Ray cluster: each batch of the run is a shard, and the table is the local run's."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from dipdefense import FitConfig, Purifier
from dipdefense.digest import configuration_hash
from dipdefense.scale import Cluster
from dipdefense.scale.cluster import compute
from dipdefense.scale.plan import Plan
from dipdefense.scale.storage import Storage
from eval.attacked import RunConfig
from eval.baselines import BASELINES
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.records import Record, Records
from eval.robustness import begin, finish
from eval.scoring import KEY, Scoring

__all__ = ["RunSpec", "evaluate_shards"]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A run by names, which every machine can load for itself.

    Raises:
        ValueError: an unknown filter.
    """

    classifier: str  # as `load_classifier` takes it, and its weights
    weights: Path | None = None
    dataset: str  # as `load_dataset` takes it, and its path
    data: Path | None = None
    index: tuple[int | None, int | None] = (None, None)  # images between these positions
    config: RunConfig
    fit: FitConfig | None = None
    gradient: str = "straight_through"
    filters: tuple[str, ...] = ()  # keys of BASELINES

    def __post_init__(self) -> None:
        for name in self.filters:
            if name not in BASELINES:
                raise ValueError(f"filters must be among {', '.join(BASELINES)}, got {name!r}")

    def load(self, device: Any = "cpu") -> dict[str, Any]:
        """The arguments of `evaluate_robustness`, but for `out` and `progress`. Errors as the loaders have them."""
        return {
            "dataset": load_dataset(self.dataset, self.data).between(*self.index),
            "classifier": load_classifier(self.classifier, self.weights).to(device),
            "config": self.config,
            "purifier": Purifier(self.fit, seed=self.config.seed),
            "gradient": self.gradient,
            "filters": {name: BASELINES[name] for name in self.filters},
            "classifier_name": self.classifier,
            "device": device,
        }


def evaluate_shards(
    spec: RunSpec,
    *,
    out: str | Path,
    cluster: Cluster | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """What `evaluate_robustness` returns and writes, its batches computed by the workers of a cluster.

    A worker writes the records of a batch to `shards/HASH/part-*.jsonl` in the folder of the run, in one move. Started
    again, the run computes the shards that are missing; HASH names its whole configuration.

    Args:
        spec: the run; its files must be visible to all workers under these paths.
        out: folder of the run, likewise.
        cluster: where; `Cluster()`, this machine, if None.
        progress: called with (records made, records in all) after every batch.

    Raises:
        ImportError: ray is not installed.
        OSError: the folder cannot be written, no cluster answers.
        ValueError: as `evaluate_robustness`, `out` is no path, and where the cluster has no room.
        RuntimeError: a worker failed, or a shard does not hold its records.
    """
    cluster, out = cluster or Cluster(), Path(out)
    if out.parts and out.parts[0].endswith(":") and len(out.parts[0]) > 2:
        raise ValueError(f"out must be a folder that all machines see under one path, got the address {str(out)!r}")
    run = Scoring(**spec.load(), recorded_device=cluster.device)
    plan, whole = Plan(spec.config.n, spec.config.batch_size, "jsonl"), configuration_hash(run.description)
    folder = Storage.at(str(out / "shards" / whole))
    made = begin(run, out)
    missing = plan.missing(folder)
    held = [len(run.rows(start)) for start in run.starts]
    done = sum(held) - sum(held[shard] for shard in missing)
    build = partial(_BatchScorer, spec, Path.cwd(), plan, folder, cluster.device, whole)
    for shard in compute(cluster, build, ((shard, None) for shard in missing)):
        done += held[shard]
        if progress is not None:
            progress(done, sum(held))
    folder.sweep()
    records = [record for shard in range(len(plan)) for record in _join(run, plan, folder, shard, made)]
    return finish(run, out, records)


class _BatchScorer:
    """The work of a worker: a batch's number in, the file of its records out."""

    def __init__(self, spec: RunSpec, cwd: Path, plan: Plan, folder: Storage, device: str, whole: str):
        with suppress(OSError):  # the paths of the run start there; where it is missing, they say what they miss
            os.chdir(cwd)
        self.run = Scoring(**spec.load(device))
        self.plan, self.folder = plan, folder
        if configuration_hash(self.run.description) != whole:
            raise RuntimeError("classifier, weights and versions must be the same on all machines, differ on this one")

    def __call__(self, shard: int, sent: None) -> None:
        name = self.plan.name(shard)
        if self.folder.holds(name):  # its writer died between the last byte and the answer
            return
        rows = self.run.batch(self.run.starts[shard], Records(KEY))
        lines = [json.dumps(record, allow_nan=False) + "\n" for records, _ in rows for record in records]
        self.folder.write(name, "".join(lines).encode())


def _join(run: Scoring, plan: Plan, folder: Storage, shard: int, made: Records) -> list[Record]:
    """The records of a shard, each once, as the run keeps them."""
    file, wanted = f"{folder.path}/{plan.name(shard)}", run.rows(run.starts[shard])
    try:
        records = [json.loads(line) for line in folder.read(plan.name(shard)).splitlines()]
        held = [(r["attack"], r["crafted_on"], r["defence"], r["index"]) for r in records]
    except FileNotFoundError as error:
        raise RuntimeError(f"{file}: must be there, is missing: start again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{file}: must hold one record a line, {error}: delete it and start again") from error
    if len(held) != len(wanted) or set(held) != wanted:
        raise RuntimeError(
            f"{file}: must hold {len(wanted)} records, one for each image and row, holds {len(set(held) & wanted)} of "
            f"them in {len(held)}: delete it and start again"
        )
    made.add(made.missing(records))
    return made.records(records)
