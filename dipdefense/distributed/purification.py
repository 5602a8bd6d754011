"""Purify any number of images into Parquet shards, with one record for each image."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from dipdefense.defence.purifier import Purifier
from dipdefense.distributed.cluster import Cluster, connected
from dipdefense.distributed.pool import Lost, compute
from dipdefense.distributed.shard_plan import Plan
from dipdefense.distributed.shards import Failure, Made, Record, Shards
from dipdefense.distributed.sources import Source, find_images
from dipdefense.distributed.storage import Storage, read_many
from dipdefense.files.same_shape import Purified, Result, purify_each
from dipdefense.files.writing import encode_png

__all__ = ["purify_shards"]


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
        The images that could not be purified, with their errors, and the number of all images.

    Raises:
        ImportError: ray is not installed.
        OSError: the source cannot be read, the target not written, no cluster answers.
        ValueError: bad arguments; a target inside the source, or that belongs to another run.
        RuntimeError: a worker failed, storage does not answer, or a shard that was made is gone.
    """
    cluster = cluster or Cluster()
    images = find_images(source, column)
    plan, folder, origin = Plan(len(images), shard_size), Storage.at(target), Storage.at(source)
    if folder.inside(origin):
        raise ValueError(f"OUTPUT must lie outside INPUT, but {folder.path} is inside {origin.path}")
    settings: dict[str, Any] = {
        "source": f"{origin.files.type_name}:{origin.path}",
        "digest": images.digest(),
        "purifier": f"{type(purifier).__module__}.{type(purifier).__qualname__}",
        "fit": None if purifier.config is None else asdict(purifier.config),
        "seed": purifier.seed,
        "tile": purifier.tile,
        "sigma": purifier.sigma,
        "device": cluster.device,
        "versions": _versions(),
    }
    shards = Shards(plan, folder, plan.settle(folder, settings))
    made = _found(shards, images, sorted(set(range(len(plan))) - set(plan.missing(folder))))
    done = sum(plan.images_of(shard) for shard in made)
    missing = [shard for shard in range(len(plan)) if shard not in made]
    build = partial(_Purification, purifier, cluster.device, settings["versions"])
    for shard, result in _make(cluster, shards, build, images, missing):
        made[shard] = result
        done += plan.images_of(shard)
        if progress is not None:
            progress(done, len(images))
    _check(shards, images, made)
    folder.sweep()
    return [failure for shard in range(len(plan)) for failure in made[shard].failures], len(images)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("dipdefense", "torch")}


class _Purification:
    """The work of a worker: images in; their records in the same order, and CPU seconds out."""

    def __init__(self, purifier: Purifier, device: str, versions: dict[str, str]):
        if versions != _versions():
            raise RuntimeError(f"versions must be the same on all machines, {versions}, got {_versions()}")
        self.purifier, self.device = purifier, device

    def __call__(self, images: Source) -> tuple[list[Record], float]:
        start, records = time.process_time(), {}
        for key, result in purify_each(images.images(), self.purifier, batch_size=len(images), device=self.device):
            if isinstance(result, torch.OutOfMemoryError):  # the image may not be at fault, so another worker tries
                raise result
            records[key] = _record(key, result)
        return [records[key] for key in images.keys()], time.process_time() - start  # noqa: SIM118


class _ShardWork:
    """The work of a worker: a shard's images in, its file out."""

    def __init__(self, shards: Shards, build: Callable[[], _Purification]):
        self.shards, self.purify = shards, build()

    def __call__(self, sent: tuple[int, Source]) -> Made:
        shard, images = sent
        made = self.shards.read(shard, images)  # its writer may have died between the last byte and the answer
        if made is not None:
            return made
        start = time.perf_counter()
        records, cpu_seconds = self.purify(images)
        return self.shards.write(shard, records, time.perf_counter() - start, cpu_seconds)


def _record(key: str, result: Result | Lost) -> Record:
    if isinstance(result, Purified):
        return {"key": key, "image": encode_png(result.image), "iterations": result.iterations, "error": None}
    error = f"{key}: {result.reason}" if isinstance(result, Lost) else str(result)
    return {"key": key, "image": None, "iterations": None, "error": error}


def _make(
    cluster: Cluster, shards: Shards, build: Callable[[], _Purification], images: Source, missing: list[int]
) -> Iterator[tuple[int, Made]]:
    """Compute shards. Those that no worker could finish are computed image by image, after the others.

    Raises:
        RuntimeError: no image of a shard could be purified, for lack of memory or because devices failed.
    """

    def send(shard: int) -> tuple[int, Source]:
        return shard, images.part(*shards.plan.span(shard))

    if not missing:
        return
    lost, failed = [], []
    with connected(cluster.address):
        for shard, result in compute(cluster, partial(_ShardWork, shards, build), missing, send):
            if isinstance(result, Lost):
                lost.append(shard)
            else:
                yield shard, result
        for shard in lost:
            rescued = _make_one_by_one(cluster, shards, build, *send(shard))
            if isinstance(rescued, Lost):
                failed.append(f"{shards.plan.name(shard)} {rescued.reason}")
            else:
                yield shard, rescued
    if failed:
        raise RuntimeError(
            f"no image of {len(failed)} shards could be purified, so the machines are at fault, {failed[0]}: start "
            "again, finished shards stay"
        )


def _make_one_by_one(
    cluster: Cluster, shards: Shards, build: Callable[[], _Purification], shard: int, images: Source
) -> Made | Lost:
    """Write a shard with one task for each image, so that only an image that is lost alone has an error.

    If no image can be purified, and memory or a device was the cause for one of them, nothing is written.
    """
    start, records, cpu_seconds, keys = time.perf_counter(), {}, 0.0, list(images.keys())
    fault: Lost | None = None
    for i, result in compute(cluster, build, range(len(images)), lambda i: images.part(i, i + 1)):
        if isinstance(result, Lost):
            records[i] = _record(keys[i], result)
            fault = fault if result.killed else result
        else:
            (records[i],), seconds = result
            cpu_seconds += seconds
    if fault is not None and all(record["error"] is not None for record in records.values()):
        return fault
    return shards.write(shard, [records[i] for i in range(len(images))], time.perf_counter() - start, cpu_seconds)


def _found(shards: Shards, images: Source, numbers: Sequence[int]) -> dict[int, Made]:
    """Those of these shards that exist, are whole and belong to this run."""

    def read(shard: int) -> Made | None:
        return shards.read(shard, images.part(*shards.plan.span(shard)))

    return {shard: made for shard, made in zip(numbers, read_many(read, numbers), strict=True) if made is not None}


def _check(shards: Shards, images: Source, made: dict[int, Made]) -> None:
    """Raise unless every shard exists and is whole; only those whose size has changed are read again."""
    plan, sizes = shards.plan, shards.folder.sizes()
    changed = [
        shard for shard in range(len(plan)) if shard not in made or sizes.get(plan.name(shard)) != made[shard].size
    ]
    wrong = set(changed) - _found(shards, images, changed).keys()
    if wrong:
        raise RuntimeError(
            f"{len(wrong)} of {len(plan)} shards are missing or damaged, such as {plan.name(min(wrong))}: start again"
        )
