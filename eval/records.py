"""Append-only records: one JSON line for each image and row of the table, so that a run can be killed."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["Record", "append_records", "configuration_hash", "digest", "read_records", "write_whole"]

Record = dict[str, Any]


def configuration_hash(configuration: dict[str, Any]) -> str:
    """Sixteen hex digits that name a configuration of plain values, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


def digest(image: Tensor) -> str:
    """Sixteen hex digits that name the pixels of an image on the CPU."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]


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
