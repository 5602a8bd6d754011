"""Append-only records: one JSON line for each image and row of the table, so that a killed run can be continued.

The folder of a run holds one configuration, which is stored there; a run with another one is refused.
"""

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from dipdefense.digest import source_hash
from eval.classifier_probe import Answers, difference_in_answers

__all__ = [
    "GOES_ON",
    "UNFINISHED",
    "Record",
    "Records",
    "Run",
    "append_records",
    "digest",
    "made_with",
    "read_records",
    "write_whole",
]

Record = dict[str, Any]
CONFIG, PROBE, RECORDS = "config.json", "probe.json", "records.jsonl"
UNFINISHED = "unfinished"  # a file that is in the folder from `begin` to `end`
GOES_ON = "the same command again, with the same --out, goes on from its records"
CODE = "code"  # entry of the description: a hash of this project's code
NAMED = 3  # number of differences that an error message names
LONGEST = 60  # characters of a value that the message shows


def digest(image: Tensor) -> str:
    """Sixteen hex digits that name the pixels of an image on the CPU."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()[:16]


class Records:
    """Records by name. A benchmark lists the head of each record, which holds the fields that name it, asks which are
    missing, and adds these with their figures.

    Args:
        key: the fields that name a record. One of them is a hash of everything else that its figures depend on, so
            records made with other settings are ignored.
    """

    def __init__(self, key: Sequence[str]):
        self.key = key
        self._records: dict[tuple[Any, ...], Record] = {}

    def name(self, head: Mapping[str, Any]) -> tuple[Any, ...]:
        """The values that name a record."""
        return tuple(head.get(field) for field in self.key)

    def missing(self, heads: Iterable[Record]) -> list[Record]:
        """The heads, or whole records, that are not stored yet."""
        return [head for head in heads if self.name(head) not in self._records]

    def add(self, records: Sequence[Record]) -> None:
        """Store records; a later one replaces an earlier one of the same name."""
        self._records |= {self.name(record): record for record in records}

    def records(self, heads: Iterable[Record]) -> list[Record]:
        """The records of these heads; none may be missing."""
        return [self._records[self.name(head)] for head in heads]


class Run(Records):
    """A run that can be continued after it was killed: a folder of one configuration, and the records in it.

    `config.json` in the folder holds the description, `probe.json` the probes, `records.jsonl` the records. The file
    `unfinished` is there from `begin` to `end`, so a run that was killed has it, also one that had ended before.

    Args:
        folder: `begin` makes it.
        key: as in `Records`.
        description: everything that the figures depend on, in plain values, the most informative first.
        free: names in the description whose values may differ between starts; the folder keeps the last one.
        grows: names of mappings in the description, such as methods and their settings, whose entries may be more or
            fewer at another start. Entries that both have must agree; the folder keeps all of them.
        probes: the answers of the classifier and of other functions (`eval.classifier_probe`); they must agree too.

    Raises:
        ValueError: the folder is a file or an address, or holds another run (the message says what differs), or records
            without a description.
    """

    def __init__(
        self,
        folder: str | Path,
        key: Sequence[str],
        description: Mapping[str, Any],
        *,
        free: Sequence[str] = (),
        grows: Sequence[str] = (),
        probes: Mapping[str, Answers] | None = None,
    ):
        super().__init__(key)
        self.folder, self._probes = Path(folder), dict(probes or {})
        if self.folder.parts and self.folder.parts[0].endswith(":") and len(self.folder.parts[0]) > 2:
            raise ValueError(f"out must be a folder, got the address {str(folder)!r}: name a path")
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out must be a folder, {folder} is a file: name another one")
        self._description: Record = json.loads(json.dumps(description))
        before = _read_object(self.folder / CONFIG)
        if before is not None:
            self._agree(before, free, grows)
            self._recognise()
        elif (self.folder / RECORDS).exists():
            raise ValueError(f"out {folder} holds records but no {CONFIG} that describes them: name another folder")
        super().add(read_records(self.folder / RECORDS))

    def _agree(self, before: Record, free: Sequence[str], grows: Sequence[str]) -> None:
        """Take over the entries in the folder, or raise if they differ."""
        grown = {name: before[name] | self._description[name] for name in grows if isinstance(before.get(name), dict)}
        now = {name: value for name, value in (self._description | grown).items() if name not in free}
        codes = before.get(CODE), now.get(CODE)
        if codes[0] != codes[1]:  # then definitions of attacks and defences differ, too
            raise ValueError(
                f"out {self.folder} holds a run that was made before the code changed, and results of both must not be "
                f"mixed: name another folder with --out, or delete this one (code {codes[0]}, now {codes[1]})"
            )
        differing = list(_differences({name: held for name, held in before.items() if name not in free}, now, grown))
        if differing:
            more = f", and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
            raise ValueError(
                f"out {self.folder} holds a run with {', '.join(differing[:NAMED])}{more}: name another folder"
            )
        self._description |= grown

    def _recognise(self) -> None:
        """Raise if the answers differ from those when the folder was made."""
        answers = _read_object(self.folder / PROBE)
        if answers is None and self._probes:
            raise ValueError(
                f"out {self.folder} must hold {PROBE}, which identifies its classifier: name another folder"
            )
        for name, now in self._probes.items():
            said = difference_in_answers(answers[name], now) if answers and name in answers else None
            if said is not None:
                raise ValueError(f"out {self.folder} holds a run with another {name}, {said}: name another folder")
        self._probes |= answers or {}

    def begin(self) -> None:
        """Make the folder and write the description of the run, before the first record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / UNFINISHED, f"This run is not finished: {GOES_ON}.\n")
        if self._probes:
            write_whole(self.folder / PROBE, json.dumps(self._probes) + "\n")
        write_whole(self.folder / CONFIG, json.dumps(self._description, indent=2) + "\n")

    def add(self, records: Sequence[Record]) -> None:
        """Append records to the file."""
        append_records(self.folder / RECORDS, records)
        super().add(records)

    def end(self) -> None:
        """Say that the run is finished, after its tables are written."""
        (self.folder / UNFINISHED).unlink(missing_ok=True)


def made_with(*packages: str) -> Record:
    """The versions of Python and of packages, and a hash of this project's code; every description has them.

    The version of a package that is not installed is None.
    """
    versions = {"python": ".".join(map(str, sys.version_info[:2])), **{name: _version(name) for name in packages}}
    return {"versions": versions, CODE: source_hash("dipdefense", "attacks", "eval")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _differences(before: Any, now: Any, grown: Collection[str] = (), name: str = "") -> Iterator[str]:
    """The differences between two plain values as text, such as `eps 0.1 where this one has 0.2`.

    The mappings named in `grown` may have more entries now than before.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*now, *before)):
            where = f"{name}.{key}" if name else key
            if key in before and key in now:
                yield from _differences(before[key], now[key], grown, where)
            elif key in before:
                yield f"{where} {_shown(before[key])} where this one has none"
            elif name not in grown:
                yield f"{where} missing where this one has {_shown(now[key])}"
    elif before != now:
        pair = _shown(before), _shown(now)
        old, new = pair if pair[0] != pair[1] else (json.dumps(before), json.dumps(now))
        yield f"{name} {old} where this one has {new}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _read_object(path: Path) -> Record | None:
    """The JSON object in a file; None if there is no file."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object: name another folder for this run")
    return value


def read_records(path: Path) -> list[Record]:
    """All records of a file, none if it is missing. An incomplete last line, left by a killed run, is removed from it.

    Raises:
        ValueError: a line before the last is not a JSON object.
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
    """Append records, one line each, and flush them to the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a file and move it into place, so that it is never seen half-written."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
