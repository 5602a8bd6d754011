"""The content of the folder of a run: the known tables, their rows, and the configuration."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eval.records import GOES_ON, UNFINISHED

__all__ = ["KINDS", "NOT_FINISHED", "PLAIN", "Run", "find_runs", "records_of", "rows_of"]

ACCURACY = frozenset(  # columns of every table of a robustness experiment
    {"attack", "eps", "crafted_on", "defence", "n", "accuracy", "ci_low", "ci_high", "psnr_defended", "ssim_defended"}
)
# kind -> its file, and the columns that it must have; kinds with more columns come first
KINDS: dict[str, tuple[str, frozenset[str]]] = {
    "ladder": ("summary.csv", ACCURACY | {"query", "flagged"}),
    "defence": ("summary.csv", ACCURACY | {"strength"}),
    "evaluation": ("summary.csv", ACCURACY),
    "certificates": (
        "summary.csv",
        frozenset({"purifier", "sigma", "radius", "n", "certified_accuracy", "ci_low", "ci_high"}),
    ),
    "iterations": (
        "iterations.csv",
        frozenset({"attack", "iteration", "n", "accuracy", "ci_low", "ci_high", "psnr"}),
    ),
}
# tables that are shown as they are
PLAIN = {
    "summary.csv": "Summary",
    "diagnose.csv": "Sanity checks",
    "speed.csv": "Speed",
    "slopes.csv": "How far gradients hold",
    "cost.csv": "What the exact gradient costs",
}
BESIDE = {"paired.csv", "roc.csv", "certificates.csv"}  # belong to a kind
NOT_FINISHED = f"its tables are missing, incomplete, or older than its last start; {GOES_ON}"


@dataclass(frozen=True)
class Run:
    """One folder, and its known content."""

    folder: Path
    name: str
    config: dict[str, Any]  # empty without config.json
    tables: dict[str, pd.DataFrame]  # kind -> rows
    plain: dict[str, pd.DataFrame]  # file name -> rows
    beside: dict[str, pd.DataFrame]  # the files of BESIDE
    gallery: dict[str, Any] | None  # gallery.json
    missing: list[str]  # sentences about missing or unknown files
    finished: bool = True  # False: the run was killed, or goes on, and its tables are still to come


def find_runs(folder: Path) -> list[Run]:
    """The folder itself, then its subfolders by name, if they hold anything known.

    Raises:
        OSError: the folder cannot be read.
        ValueError: it holds nothing known, or a file does not have the format that its name says.
    """
    if not folder.is_dir():
        instead = "a file" if folder.exists() else "no such folder; dipdefense demo makes runs/demo"
        raise ValueError(f"RUN_DIR must be the folder of a run, got {folder}: {instead}")
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "gallery")
    found = [read_run(path, folder.resolve().name if path == folder else path.name) for path in (folder, *inner)]
    runs = [run for run in found if run is not None]
    if not runs:
        files = sorted({file for file, _ in KINDS.values()} | PLAIN.keys())
        raise ValueError(
            f"RUN_DIR must hold one of {', '.join(files)} or gallery/gallery.json, or folders with them, as evaluate, "
            f"demo, diagnose and benchmark write; got {folder}, which has none: make one with dipdefense "
            f"demo --out {folder}"
        )
    return runs


def read_run(folder: Path, name: str) -> Run | None:
    """The known content of one folder; None if there is none."""
    tables, plain, missing = {}, {}, []
    frames = {path.name: _read_csv(path) for path in sorted(folder.glob("*.csv"))}
    for file, frame in frames.items():
        kind = next((k for k, (known, columns) in KINDS.items() if known == file and columns <= set(frame)), None)
        if kind is not None:
            tables[kind] = frame
        elif file in PLAIN:
            plain[file] = frame
        elif file not in BESIDE:
            missing.append(f"{file} is not shown: no command of this version writes a table of that name and columns")
    config, gallery = _read_json(folder / "config.json") or {}, _read_json(folder / "gallery" / "gallery.json")
    without_table = "run" in config and not (tables or plain)  # as an earlier version left it, which set no mark
    finished = not ((folder / UNFINISHED).exists() or without_table)
    if not finished:
        missing.append(f"the run is not finished: {NOT_FINISHED}")
    if not (tables or plain or gallery or not finished):
        return None
    if tables.keys() - {"iterations"} and not config:
        missing.append("config.json, the settings of the run")
    beside = {file: frames[file] for file in BESIDE & frames.keys()}
    return Run(folder, name, config, tables, plain, beside, gallery, missing, finished)


def records_of(run: Run) -> Iterator[dict[str, Any]]:
    """The records of a run's own configuration; an incomplete last line is ignored."""
    with (run.folder / "records.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith("\n"):
                record = _record(line, f"{run.folder / 'records.jsonl'}: line {number}")
                if record.get("config") == run.config.get("hash"):
                    yield record


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} must be a JSON object: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object, got {type(record).__name__}")
    return record


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except ValueError as error:  # also raised for a file that is not UTF-8, or that pandas cannot parse
        raise ValueError(f"{path} must be a CSV table: {error}") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(value).__name__}")
    return value
