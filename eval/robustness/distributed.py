"""The evaluation on a Ray cluster: each batch of the run is a shard, and the table is that of a local run."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd

from dipdefense.digest import configuration_hash
from dipdefense.distributed import Cluster
from dipdefense.distributed.pool import Lost, compute
from dipdefense.distributed.shard_plan import Plan
from dipdefense.distributed.storage import Storage
from dipdefense.distributed.storage_retries import persist
from eval.records import Record, Records
from eval.robustness.config import RunConfig
from eval.robustness.evaluate import finish
from eval.robustness.experiment import KEY, Experiment
from eval.robustness.run_spec import RunSpec
from eval.robustness.summary import ROW

__all__ = ["RunSpec", "evaluate_shards"]


def evaluate_shards(
    spec: RunSpec[RunConfig],
    *,
    out: str | Path,
    cluster: Cluster | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """As `evaluate_robustness`, with the batches computed by the workers of a cluster.

    A worker writes the records of a batch to `shards/HASH/part-*.jsonl` in the folder of the run, in one move. A second
    start computes the shards that are missing or damaged; HASH names the whole configuration of the run.

    If no worker could finish a batch (`dipdefense.distributed.pool`), the run ends with an error after the others are
    done, since a table without these images would be a different figure.

    Args:
        spec: the run; its files must be visible to all workers under these paths.
        out: folder of the run, likewise.
        cluster: `Cluster()`, which is this machine, if None.
        progress: called with (records made, records in all) after every batch.

    Raises:
        ImportError: ray is not installed.
        OSError: the folder cannot be written, no cluster answers.
        ValueError: as `evaluate_robustness`; `out` is not a path, or the cluster has no room.
        RuntimeError: a worker failed, a batch could not be finished, or storage does not answer.
    """
    cluster, out = cluster or Cluster(), Path(out)
    run = spec.evaluation(recorded_device=cluster.device)
    made = run.open(out)
    plan, whole = Plan(run.starts.stop, spec.config.batch_size, "jsonl"), configuration_hash(run.description)
    folder = Storage.at(str(out / "shards" / whole))
    made.begin()
    missing = [shard for shard in range(len(plan)) if _read(run, plan, folder, shard) is None]
    held = [len(run.rows(start)) for start in run.starts]
    done = sum(held) - sum(held[shard] for shard in missing)
    build = partial(_BatchScorer, spec, Path.cwd(), plan, folder, cluster.device, whole)
    lost: dict[int, Lost] = {}
    for shard, result in compute(cluster, build, missing, int):
        if isinstance(result, Lost):
            lost[shard] = result
            continue
        done += held[shard]
        if progress is not None:
            progress(done, sum(held))
    if lost:
        raise RuntimeError(_told(run, lost))
    folder.sweep()
    records = [record for shard in range(len(plan)) for record in _join(run, plan, folder, shard, made)]
    return finish(run, made, records)


def _told(run: Experiment, lost: dict[int, Lost]) -> str:
    """The message that says which images have no records, and why."""
    reasons = []
    for shard in sorted(lost):
        images = sorted({index for *_, index in run.rows(run.starts[shard])})
        reasons.append(f"that of images {', '.join(map(str, images))} {lost[shard].reason}")
    return (
        f"{len(lost)} of {len(run.starts)} batches have no records: {'; '.join(reasons)}. The others are done, "
        "and the same command computes only these"
    )


class _BatchScorer:
    """The work of a worker: compute the batch of a number, and write the file of its records."""

    def __init__(self, spec: RunSpec[RunConfig], cwd: Path, plan: Plan, folder: Storage, device: str, whole: str):
        with suppress(OSError):  # relative paths of the run start there; if it is missing, their errors say so
            os.chdir(cwd)
        self.run = spec.evaluation(device)
        self.plan, self.folder = plan, folder
        if configuration_hash(self.run.description) != whole:
            raise RuntimeError(
                "classifier, weights and versions must be the same on all machines, but differ on this one"
            )

    def __call__(self, shard: int) -> None:
        if _read(self.run, self.plan, self.folder, shard) is not None:  # a worker wrote it, and died before it answered
            return
        name = self.plan.name(shard)
        rows = self.run.batch(self.run.starts[shard], Records(KEY))
        lines = [json.dumps(record, allow_nan=False) + "\n" for records, _ in rows for record in records]
        persist(name, partial(self.folder.write, name, "".join(lines).encode()))


def _read(run: Experiment, plan: Plan, folder: Storage, shard: int) -> list[Record] | None:
    """The records of a shard; None if it is missing or damaged, or holds others, so that it must be made again."""
    name = plan.name(shard)
    try:
        content = persist(name, partial(folder.read, name))
        records = [json.loads(line) for line in content.splitlines()]
        held = [tuple(record[name] for name in (*ROW, "index")) for record in records]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    wanted = run.rows(run.starts[shard])
    return records if len(held) == len(wanted) and set(held) == wanted else None


def _join(run: Experiment, plan: Plan, folder: Storage, shard: int, made: Records) -> list[Record]:
    """The records of a shard, after they were added to the run."""
    records = _read(run, plan, folder, shard)
    if records is None:
        raise RuntimeError(f"{folder.path}/{plan.name(shard)}: must hold the records of its batch: start again")
    made.add(made.missing(records))
    return made.records(records)
