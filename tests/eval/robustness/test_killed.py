"""`dipdefense evaluate` killed by SIGKILL at random moments, and started again each time."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

COMMAND = (
    *(
        sys.executable,
        "-c",
        "from dipdefense.cli import main; main()",
        "evaluate",
        "--eps",
        "0.2",
        "--attacks",
        "fgsm,pgd",
    ),
    *("--steps", "2", "--n", "40", "--crafted-on", "both:20", "--batch-size", "2"),
)
FIT = '{"architecture_options": {"channels": [4], "skip_channels": 0}, "input_channels": 4, "iterations": 60}'
KILLS = 10


def start(folder: Path) -> "subprocess.Popen[bytes]":
    config = folder.parent / "fit.json"
    config.write_text(FIT)
    command = [*COMMAND, "--config", str(config), "--out", str(folder)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder: Path) -> pd.DataFrame:
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return pd.read_csv(folder / "summary.csv", keep_default_na=False).drop(columns="seconds_per_image")


def lines(folder: Path) -> int:
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_ends_with_the_table_of_one_that_is_not(tmp_path):
    whole = finish(tmp_path / "whole")
    total, draw, folder = lines(tmp_path / "whole"), random.Random(0), tmp_path / "killed"
    for target in sorted(draw.sample(range(1, total * 4 // 5), KILLS)):  # where in the run it dies, in records
        process = start(folder)
        while lines(folder) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.05 * draw.random())  # at any moment of a batch, or within a write
        assert process.poll() is None, process.stderr.read().decode()
        process.kill()
        process.communicate()
    assert not (folder / "summary.csv").exists()
    assert (folder / "unfinished").exists()
    pd.testing.assert_frame_equal(finish(folder), whole)
    assert lines(folder) == total  # no record twice
