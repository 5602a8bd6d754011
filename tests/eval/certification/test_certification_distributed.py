"""Certificates by the workers of a cluster, their work done in this process: agreement with the local run."""

import json
import pickle
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest

from dipdefense.cli.options import Subject
from dipdefense.defence.certify import SamplingPlan
from dipdefense.distributed.pool import Lost
from eval.certification import CertificationConfig, certify_dataset, distributed
from eval.certification.blocks import Block, BlockCounter, named_image
from eval.certification.distributed import certify_on_cluster

PLAN = SamplingPlan(sigma=0.25, n0=6, n=40, alpha=0.05)
CONFIG = CertificationConfig(plan=PLAN, purifiers=("none", "gaussian_blur"), n=3, block=16)
DIGITS = Subject()
RUN = partial(certify_on_cluster, DIGITS.load, CONFIG, classifier_name="digits_cnn")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    def compute(cluster, build, items, part):
        if items:
            work = pickle.loads(pickle.dumps(build))()
        for item in reversed(items):  # any order
            yield item, pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(part(item))))))

    monkeypatch.setattr(distributed, "compute", compute)
    monkeypatch.setattr(distributed, "connected", lambda address: nullcontext())


def local(folder, config=CONFIG):
    images, classifier = DIGITS.load("cpu")
    return certify_dataset(classifier, images, config, out=folder, classifier_name="digits_cnn")


def records(folder):
    lines = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    kept = [{name: value for name, value in record.items() if name != "seconds"} for record in lines]
    return sorted(kept, key=lambda record: (record["purifier"], record["index"], record["first"]))


def test_the_table_and_the_records_are_those_of_the_local_run(tmp_path):
    done = []
    table = RUN(out=tmp_path / "ray", progress=lambda *numbers: done.append(numbers))
    assert table.equals(local(tmp_path / "local"))
    assert records(tmp_path / "ray") == records(tmp_path / "local")
    assert done == sorted(done)
    assert len(done) == len(records(tmp_path / "ray"))
    assert done[-1] == (3 * 2 * 46, 3 * 2 * 46)


def test_a_local_run_is_continued_on_the_cluster(tmp_path):
    local(tmp_path, replace(CONFIG, n=2, purifiers=("none",)))
    before = records(tmp_path)
    RUN(out=tmp_path)
    after = records(tmp_path)
    assert all(after.count(record) == 1 for record in before)
    table = local(tmp_path)  # computes nothing
    assert records(tmp_path) == after
    assert set(table["n"]) == {3}


def test_an_image_that_is_always_lost_is_named_after_all_others_are_certified(tmp_path, monkeypatch):
    """And once its block can be counted, the same command computes it alone."""
    whole = distributed.compute
    images, _ = DIGITS.load("cpu")
    position = int(images.first(3, 0)[1])

    def lose(cluster, build, items, part):
        for item, result in whole(cluster, build, items, part):
            hit = part(item).position == position and part(item).purifier == "none" and part(item).draws.start == 6
            yield item, Lost("killed its worker 3 times", killed=True) if hit else result

    local(tmp_path / "local")
    wanted = records(tmp_path / "local")
    monkeypatch.setattr(distributed, "compute", lose)
    index = int(images.index[position])
    message = rf"1 of the certificates could not be made: that of image {index} by none killed its worker 3 times\. The"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            RUN(out=tmp_path / "run")
        made = records(tmp_path / "run")
        hit = [record for record in wanted if record["index"] == index and record["purifier"] == "none"]
        assert [record for record in wanted if record not in hit] == [record for record in made if record not in hit]
        assert not (tmp_path / "run" / "summary.csv").exists()
    monkeypatch.setattr(distributed, "compute", whole)
    RUN(out=tmp_path / "run")
    assert records(tmp_path / "run") == wanted


def test_other_pixels_on_a_worker_are_refused():
    images, classifier = DIGITS.load("cpu")
    counter = BlockCounter(classifier, images, CONFIG, "cpu")
    image = named_image(images, 0)[1]["image"]
    assert sum(counter(Block(0, image, "none", range(4))).classes.values()) == 4
    message = f"image {int(images.index[1])} must be the same on all machines, but has other pixels on this one"
    with pytest.raises(RuntimeError, match=message):
        counter(Block(1, image, "none", range(4)))


def test_wrong_input_is_refused_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "connected", None)
    with pytest.raises(ValueError, match="n must be at most the 449 images of digits, got 450"):
        certify_on_cluster(DIGITS.load, replace(CONFIG, n=450), out=tmp_path)
    with pytest.raises(ValueError, match="out must be a folder, got the address"):
        RUN(out="s3://bucket/run")


def test_a_worker_with_another_classifier_is_refused(tmp_path):
    loaded = []

    def load(device):
        loaded.append(device)
        images, classifier = DIGITS.load(device)
        if len(loaded) == 2:
            next(classifier.parameters()).data.mul_(1.01)
        return images, classifier

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "compute", lambda cluster, build, items, part: build())
        with pytest.raises(RuntimeError, match="must be the same on all machines, but differ on this one"):
            certify_on_cluster(load, CONFIG, out=tmp_path)
