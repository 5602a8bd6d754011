"""The Parquet files that a run writes, one record for each image, and what is read back from them."""

import os
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dipdefense.distributed.shard_plan import Plan
from dipdefense.distributed.sources import Source
from dipdefense.distributed.storage import Storage
from dipdefense.distributed.storage_retries import open_table, persist

__all__ = ["Failure", "Made", "Record", "Shards"]

Record = dict[str, Any]  # a row: key, image, iterations, error


class Failure(NamedTuple):
    """An image that was not purified."""

    key: str
    error: str


class Made(NamedTuple):
    """What is known of a shard that exists."""

    size: int  # bytes
    failures: list[Failure]


@dataclass(frozen=True)
class Shards:
    """The shards of one run, which carry its mark, in a folder."""

    plan: Plan
    folder: Storage
    run: str  # hash of its settings

    def write(self, shard: int, records: list[Record], seconds: float, cpu_seconds: float) -> Made:
        """Write a shard, and where and how fast it was made.

        Raises:
            OSError, OutageError: it cannot be written.
        """
        import pyarrow as pa
        from pyarrow.parquet import write_table

        made = {
            "run": self.run,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
        }
        kinds = {"key": pa.string(), "image": pa.binary(), "iterations": pa.int32(), "error": pa.string()}
        schema = pa.schema(list(kinds.items()), metadata={name: str(value) for name, value in made.items()})
        sink = pa.BufferOutputStream()
        write_table(pa.Table.from_pylist(records, schema=schema), sink)
        content, name = sink.getvalue().to_pybytes(), self.plan.name(shard)
        persist(name, partial(self.folder.write, name, content))
        return Made(len(content), _failures([r["key"] for r in records], [r["error"] for r in records]))

    def read(self, shard: int, images: Source) -> Made | None:
        """What a shard holds; None if it is missing, damaged or holds other images, and must be made again.

        Raises:
            OutageError: it cannot be read at present.
            RuntimeError: it belongs to another run.
        """
        import pyarrow as pa
        from pyarrow.parquet import read_table

        name = self.plan.name(shard)
        try:
            with open_table(self.folder, name) as file:
                size, table = file.size(), read_table(file, columns=["key", "error"])
        except (OSError, ValueError, pa.ArrowException):
            return None
        if (table.schema.metadata or {}).get(b"run") != self.run.encode():
            raise RuntimeError(
                f"{name}: must be a shard of this run, but was made with other settings: take another folder"
            )
        keys = table["key"].to_pylist()
        return Made(size, _failures(keys, table["error"].to_pylist())) if keys == list(images.keys()) else None


def _failures(keys: list[str], errors: list[str | None]) -> list[Failure]:
    return [Failure(key, error) for key, error in zip(keys, errors, strict=True) if error is not None]
