"""The evaluation in shards, its work done in this process: agreement with the local run, and shards that are wrong."""

import pickle
from functools import partial
from pathlib import Path

import pytest

from dipdefense import FitConfig, Purifier
from eval import shards
from eval.attacked import RunConfig
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.robustness import evaluate_robustness
from eval.shards import RunSpec, evaluate_shards

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=8)
RUN = RunConfig(attacks=("fgsm",), eps=0.2, crafted_on="both", n=5, n_defended=4, batch_size=2)
SPEC = RunSpec(classifier="digits_cnn", dataset="digits", config=RUN, fit=TINY)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    def compute(cluster, build, items):
        work = pickle.loads(pickle.dumps(build))()
        for shard, sent in items:
            work(shard, sent)
            yield shard

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


def test_shards_that_are_wrong_or_missing_are_named(tmp_path, monkeypatch):
    run = partial(evaluate_shards, SPEC, out=tmp_path)
    run()
    first, second = sorted(tmp_path.glob("shards/*/part-*"))[:2]
    summary, content = (tmp_path / "summary.csv").read_bytes(), first.read_bytes()
    for wrong, message in (
        (second.read_bytes(), r"must hold 10 records, .* holds 0 of them in 10"),
        (content + content.splitlines(True)[0], r"must hold 10 records, .* holds 10 of them in 11"),
        (content[:-20], "must hold one record a line"),
        (b"{}\n", "must hold one record a line, 'attack'"),
    ):
        first.write_bytes(wrong)
        with pytest.raises(RuntimeError, match=rf"{first.name}: {message}.*: delete it and start again"):
            run()
    first.unlink()
    monkeypatch.setattr(shards, "compute", lambda *_: iter(()))
    with pytest.raises(RuntimeError, match=rf"{first.name}: must be there, is missing: start again"):
        run()
    assert (tmp_path / "summary.csv").read_bytes() == summary


def test_a_folder_is_no_address(tmp_path):
    with pytest.raises(ValueError, match=r"out must be a folder that all machines see under one path, got the address"):
        evaluate_shards(SPEC, out=Path("s3://bucket/run"))
