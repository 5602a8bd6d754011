"""The evaluation in shards, its work done in this process: agreement with the local run, and shards that are wrong."""

import json
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dipdefense import FitConfig, Purifier
from dipdefense.distributed.pool import Lost
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.robustness import distributed as shards
from eval.robustness.config import RunConfig
from eval.robustness.distributed import RunSpec, evaluate_shards
from eval.robustness.evaluate import evaluate_robustness

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=8)
RUN = RunConfig(attacks=("fgsm",), eps=0.2, crafted_on="both", n=5, n_defended=4, batch_size=2)
SPEC = RunSpec(classifier="digits_cnn", dataset="digits", config=RUN, fit=TINY)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    def compute(cluster, build, items, part):
        work = pickle.loads(pickle.dumps(build))()
        for item in items:
            yield item, work(part(item))

    monkeypatch.setattr(shards, "compute", compute)


def test_the_table_is_that_of_the_local_run(tmp_path):
    done = []
    table = evaluate_shards(SPEC, out=tmp_path / "shards", progress=lambda *numbers: done.append(numbers))
    local = evaluate_robustness(
        load_classifier("digits_cnn"),
        load_dataset("digits"),
        RUN,
        out=tmp_path / "local",
        purifier=Purifier(TINY),
        classifier_name="digits_cnn",
    )
    timed = [name for name in table if "seconds" in name]
    assert table.drop(columns=timed).equals(local.drop(columns=timed))
    assert done[-1][0] == done[-1][1] == len((tmp_path / "shards" / "records.jsonl").read_text().splitlines())


def test_a_shard_that_is_damaged_or_holds_others_is_made_again(tmp_path):
    spec = replace(SPEC, config=replace(RUN, attacks=(), n=3))
    run = partial(evaluate_shards, spec, out=tmp_path)
    table = run()
    first, second = sorted(tmp_path.glob("shards/*/part-*"))
    timed = [name for name in table if "seconds" in name]
    content, other = first.read_text(), second.read_text()
    keys = [(r["defence"], r["index"]) for r in map(json.loads, content.splitlines())]
    for wrong in (other, content + content.splitlines(True)[0], content[:-20], "{}\n", ""):
        first.write_text(wrong)
        assert run().drop(columns=timed).equals(table.drop(columns=timed))
        assert [(r["defence"], r["index"]) for r in map(json.loads, first.read_text().splitlines())] == keys
        assert second.read_text() == other


def test_a_shard_that_is_gone_is_named(tmp_path, monkeypatch):
    run = partial(evaluate_shards, SPEC, out=tmp_path)
    run()
    first, summary = min(tmp_path.glob("shards/*/part-*")), (tmp_path / "summary.csv").read_bytes()
    first.unlink()
    monkeypatch.setattr(shards, "compute", lambda *_: iter(()))
    with pytest.raises(RuntimeError, match=rf"{first.name}: must hold the records of its batch: start again"):
        run()
    assert (tmp_path / "summary.csv").read_bytes() == summary


def test_a_batch_that_is_lost_is_named_after_the_others_are_done(tmp_path, monkeypatch):
    """And there is no table until it is done, too: the same command computes it alone."""
    here = shards.compute

    def lose(cluster, build, items, part):
        work = build()
        for item in items:
            yield item, Lost("killed its worker 3 times", killed=True) if item == 1 else work(part(item))

    monkeypatch.setattr(shards, "compute", lose)
    done = []
    run = partial(evaluate_shards, SPEC, out=tmp_path, progress=lambda *numbers: done.append(numbers))
    digits = load_dataset("digits")
    first, second = sorted(digits.index[digits.first(5, RUN.seed)[2:4]].tolist())
    message = f"1 of 3 batches have no records: that of images {first}, {second} killed its worker 3 times. The others"
    with pytest.raises(RuntimeError, match=message):
        run()
    assert not (tmp_path / "summary.csv").exists()
    assert (tmp_path / "unfinished").exists()
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*/part-*")}
    assert sorted(made) == ["part-00000-of-00003.jsonl", "part-00002-of-00003.jsonl"]
    assert len(done) == 2
    monkeypatch.setattr(shards, "compute", here)
    table = run()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*/part-*")}.items() > made.items()
    assert len(done) == 3
    assert table["n"].max() == 5


def test_a_folder_is_no_address(tmp_path):
    with pytest.raises(ValueError, match=r"out must be a folder, got the address"):
        evaluate_shards(SPEC, out=Path("s3://bucket/run"))
