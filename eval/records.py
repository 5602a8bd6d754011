"""Append-only records: one JSON line for each image and row of the table, so that a run can be killed."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["Record", "Records", "Run", "append_records", "digest", "read_records", "write_whole"]

Record = dict[str, Any]


def digest(image: Tensor) -> str:
    """Sixteen hex digits that name the pixels of an image on the CPU."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]


class Records:
    """Records by name. A benchmark writes down the head of each, all that it is named by, asks which are missing, and
    adds these with their figures.

    Args:
        key: the fields that name a record, one of them a hash of all that its figures depend on besides the others:
            so records of other numbers are passed over.
    """

    def __init__(self, key: Sequence[str]):
        self.key = key
        self._records: dict[tuple[Any, ...], Record] = {}

    def name(self, head: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a record is named by."""
        return tuple(head.get(field) for field in self.key)

    def missing(self, heads: Iterable[Record]) -> list[Record]:
        """Those of the heads, or whole records, that are not there."""
        return [head for head in heads if self.name(head) not in self._records]

    def add(self, records: Sequence[Record]) -> None:
        """Keep records; a later one stands in place of an earlier one of its name."""
        self._records |= {self.name(record): record for record in records}

    def records(self, heads: Iterable[Record]) -> list[Record]:
        """The records of these heads, none of which is missing."""
        return [self._records[self.name(head)] for head in heads]


class Run(Records):
    """A run that can be killed: a folder, and the records in its `records.jsonl`, found there or added.

    Args:
        folder: the caller makes it, before the first record.
        key: as in `Records`.
    """

    def __init__(self, folder: str | Path, key: Sequence[str]):
        super().__init__(key)
        self.folder = Path(folder)
        super().add(read_records(self.folder / "records.jsonl"))

    def add(self, records: Sequence[Record]) -> None:
        """Append records to the file."""
        append_records(self.folder / "records.jsonl", records)
        super().add(records)


def read_records(path: Path) -> list[Record]:
    """All records of a file, none if it is missing. A torn last line, left by a killed run, is cut off the file.

    Raises:
        ValueError: a line before the last is no JSON object.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    records = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}: line {number} must be a JSON object; move the file away to start anew")
        records.append(record)
    return records


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append records, one line each, and hand them to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a file in one move, so that it is never seen half-written."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
