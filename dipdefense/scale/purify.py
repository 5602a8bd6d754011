"""Purify any number of images into Parquet shards, with one record for each image."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

from dipdefense.grouping import Purified, Result, purify_each
from dipdefense.images import encode_png
from dipdefense.purify import Purifier
from dipdefense.scale.cluster import Cluster, compute
from dipdefense.scale.plan import Plan
from dipdefense.scale.sources import Source, find_images
from dipdefense.scale.storage import Storage

__all__ = ["Failure", "purify_shards"]


class Failure(NamedTuple):
    """An image that was not purified."""

    key: str
    error: str


def purify_shards(
    source: str,
    target: str,
    purifier: Purifier,
    *,
    cluster: Cluster | None = None,
    shard_size: int = 256,
    column: str = "image",
    progress: Callable[[float, float], None] | None = None,
) -> tuple[list[Failure], int]:
    """Purify the images of a folder or of Parquet files into the shards of a folder, on Ray.

    A shard is a Parquet file with the columns key, image (PNG), iterations and error; it is written in one move.
    Started again with the same arguments, a run computes the shards that are missing.

    Args:
        source: a path or a URI, as `find_images` reads it; every worker must see it under this name.
        target: folder of the shards, likewise.
        purifier: what is applied.
        cluster: where; `Cluster()`, this machine, if None.
        shard_size: images of a shard; those of one size are fitted together.
        column: of Parquet files.
        progress: called with (images done, images in all) as shards are finished.

    Returns:
        The images that have an error in place of a purification, and how many images there are.

    Raises:
        ImportError: ray is not installed.
        OSError: the source cannot be read, the target not written, no cluster answers.
        ValueError: bad arguments; a target inside the source, or that belongs to another run.
        RuntimeError: a worker failed, or a shard does not hold its images.
    """
    cluster = cluster or Cluster()
    images = find_images(source, column)
    plan, folder, origin = Plan(len(images), shard_size), Storage.at(target), Storage.at(source)
    if folder.inside(origin):
        raise ValueError(f"OUTPUT must lie outside INPUT, {folder.path} is inside {origin.path}")
    settings: dict[str, Any] = {
        "source": f"{origin.files.type_name}:{origin.path}",
        "digest": images.digest(),
        "purifier": f"{type(purifier).__module__}.{type(purifier).__qualname__}",
        "fit": None if purifier.config is None else asdict(purifier.config),
        "seed": purifier.seed,
        "tile": purifier.tile,
        "device": cluster.device,
        "versions": _versions(),
    }
    run = plan.settle(folder, settings)
    missing = plan.missing(folder)
    done = len(images) - sum(stop - start for start, stop in map(plan.span, missing))
    items = ((shard, images.part(*plan.span(shard))) for shard in missing)
    build = partial(_ShardPurifier, plan, folder, purifier, cluster.device, settings["versions"], run)
    for shard in compute(cluster, build, items):
        start, stop = plan.span(shard)
        done += stop - start
        if progress is not None:
            progress(done, len(images))
    folder.sweep()
    return list(_check(plan, folder, images, run)), len(images)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("dipdefense", "torch")}


class _ShardPurifier:
    """The work of a worker: a shard's images in, its file out, marked as one of this run."""

    def __init__(
        self, plan: Plan, folder: Storage, purifier: Purifier, device: str, versions: dict[str, str], run: str
    ):
        if versions != _versions():
            raise RuntimeError(f"versions must be the same on all machines, {versions}, got {_versions()}")
        self.plan, self.folder, self.purifier, self.device = plan, folder, purifier, device
        self.run = run

    def __call__(self, shard: int, images: Source) -> None:
        name = self.plan.name(shard)
        if self.folder.holds(name):  # its writer died between the last byte and the answer
            return
        wall, cpu, records = time.perf_counter(), time.process_time(), {}
        for key, result in purify_each(images.images(), self.purifier, batch_size=len(images), device=self.device):
            records[key] = _record(key, result)
        made = {
            "run": self.run,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": round(time.perf_counter() - wall, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
        }
        self.folder.write(name, _parquet([records[key] for key in images.keys()], made))  # noqa: SIM118


def _record(key: str, result: Result) -> dict[str, Any]:
    if isinstance(result, Purified):
        return {"key": key, "image": encode_png(result.image), "iterations": result.iterations, "error": None}
    return {"key": key, "image": None, "iterations": None, "error": str(result)}


def _parquet(records: list[dict[str, Any]], made: dict[str, Any]) -> bytes:
    """The content of a shard's file, with where and how fast it was made."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    kinds = {"key": pa.string(), "image": pa.binary(), "iterations": pa.int32(), "error": pa.string()}
    schema = pa.schema(list(kinds.items()), metadata={name: str(value) for name, value in made.items()})
    sink = pa.BufferOutputStream()
    write_table(pa.Table.from_pylist(records, schema=schema), sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _check(plan: Plan, folder: Storage, images: Source, run: str) -> Iterator[Failure]:
    """Every shard is there and holds its images, each once and in order; what could not be purified."""
    missing = plan.missing(folder)
    if missing:
        raise RuntimeError(
            f"{len(missing)} of {len(plan)} shards are missing, such as {plan.name(missing[0])}: start again"
        )
    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(partial(_check_shard, plan, folder, images, run), range(len(plan))):
            yield from found


def _check_shard(plan: Plan, folder: Storage, images: Source, run: str, shard: int) -> list[Failure]:
    import pyarrow as pa
    from pyarrow.parquet import read_table

    name = plan.name(shard)
    try:
        with folder.open(name) as file:
            table = read_table(file, columns=["key", "error"])
    except pa.ArrowInvalid as error:
        raise RuntimeError(f"{name}: must be a shard of this run, {error}: delete it and start again") from error
    except OSError as error:
        raise RuntimeError(f"{name}: cannot be read at present, {error}: start again") from error
    if (table.schema.metadata or {}).get(b"run") != run.encode():
        raise RuntimeError(f"{name}: must be a shard of this run, was made with other settings: take another folder")
    planned, keys = list(images.part(*plan.span(shard)).keys()), table["key"].to_pylist()
    if keys != planned:
        raise RuntimeError(
            f"{name}: must hold its {len(planned)} images once each and in order, holds {len(keys)} records of "
            f"{len(set(keys) & set(planned))} of them: delete it and start again"
        )
    return [
        Failure(key, error) for key, error in zip(keys, table["error"].to_pylist(), strict=True) if error is not None
    ]
