"""The engine ray on a real local cluster of two CPUs: agreement, a worker that is killed, a driver that is stopped."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dipdefense import FitConfig, Purifier
from dipdefense.cli import app
from dipdefense.files import purify_files
from dipdefense.images import read_image, write_image
from dipdefense.scale import Cluster, purify_shards
from dipdefense.scale.cluster import _check_reachable, compute
from dipdefense.scale.plan import Plan
from dipdefense.scale.purify import _ShardPurifier
from dipdefense.scale.storage import Storage
from eval.attacked import RunConfig
from eval.datasets import load_dataset
from eval.robustness import evaluate_robustness
from eval.shards import RunSpec, evaluate_shards

pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and processes of its own to the interpreter.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

QUICK = {"architecture_options": {"channels": [8, 8], "skip_channels": 0}, "input_channels": 8, "iterations": 60}
ONE = Cluster(workers=1)
RUN = RunConfig(attacks=("pgd",), eps=0.2, steps=2, crafted_on="both", n=7, n_defended=4, batch_size=3)


@pytest.fixture(scope="module")
def address():
    """A cluster of two CPUs, to which this process is connected; its address for other processes."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def folder(tmp_path):
    """Twelve digits, of two sizes, and a file that is no image."""
    digits = load_dataset("digits")
    (tmp_path / "in").mkdir()
    for i in range(12):
        write_image(digits.read(i)[:, : 32 - 8 * (i % 2)], tmp_path / "in" / f"{i:02}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"torn")
    return tmp_path / "in"


def records_of(folder) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]


def pids_of(folder) -> dict[str, int]:
    return {path.name: int(pq.read_schema(path).metadata[b"pid"]) for path in sorted(folder.glob("part-*"))}


def test_a_killed_worker_loses_nothing(address, tmp_path, folder):
    """And the results are the local engine's; the worker dies in the middle of its second shard."""
    purifier, out, killed = Purifier(FitConfig(**QUICK | {"iterations": 300})), tmp_path / "out", []

    def kill(done, total):
        if not killed:
            (pid,) = pids_of(out).values()
            time.sleep(0.3)  # it is at work again
            killed.append((pid, set(pids_of(out))))
            os.kill(pid, signal.SIGKILL)

    failures, images = purify_shards(str(folder), str(out), purifier, cluster=ONE, shard_size=4, progress=kill)
    ((pid, before),) = killed
    after = {name: made_by for name, made_by in pids_of(out).items() if name not in before}
    assert len(before) == 1
    assert len(after) == 3
    assert pid not in after.values()
    assert {pid, os.getpid()}.isdisjoint(after.values())
    assert {path.name for path in out.iterdir()} == {"plan.json", *before, *after}
    records = records_of(out)
    assert [record["key"] for record in records] == [*(f"{i:02}.png" for i in range(12)), "bad.png"]
    assert ([key for key, _ in failures], images) == (["bad.png"], 13)
    files = sorted(folder.glob("[01]*.png"))
    assert purify_files(files, [tmp_path / path.name for path in files], purifier) == []
    for record in records[:12]:
        (tmp_path / "one.png").write_bytes(record["image"])
        levels = 255 * (read_image(tmp_path / "one.png") - read_image(tmp_path / record["key"])).abs()
        assert levels.max() < 3  # 300 iterations in another batch: roundings grow
        assert levels.mean() < 0.1


def test_a_stopped_driver_goes_on_where_it_was(address, tmp_path, folder):
    """Ctrl-C on the command, then the command again, in Parquet and with an image that is none."""
    (tmp_path / "config.json").write_text(json.dumps(QUICK | {"iterations": 300}))
    contents = [path.read_bytes() for path in sorted(folder.glob("[01]*.png"))]
    pq.write_table(pa.table({"image": [*contents, None]}), tmp_path / "in.parquet", row_group_size=5)
    out = tmp_path / "out"
    words = ["purify", str(tmp_path / "in.parquet"), str(out), "--engine", "ray"]
    words += ["--workers", "1", "--shard-size", "3", "--config", str(tmp_path / "config.json")]
    command = [sys.executable, "-W", "error", "-c", "from dipdefense.cli import main; main()", *words]
    with subprocess.Popen([*command, "--address", address], stderr=subprocess.PIPE, text=True) as driver:
        while driver.poll() is None and not list(out.glob("part-*")):
            time.sleep(0.05)
        driver.send_signal(signal.SIGINT)
        stderr = driver.stderr.read()
    assert driver.returncode not in (0, None), stderr
    assert "Traceback" not in stderr
    found = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 0 < len(found) < 5
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert str(result.exception) == "1 of 13 images were left out"
    assert "left out: in.parquet:12: must be the bytes of an image, got null" in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("part-*") if path.name in found} == found
    records = records_of(out)
    assert [record["key"] for record in records] == [f"in.parquet:{i}" for i in range(13)]
    assert [record["iterations"] for record in records] == [300] * 12 + [None]


def test_evaluate_agrees_with_the_local_engine(address, tmp_path):
    spec = RunSpec(
        dataset="digits", classifier="digits_cnn", config=RUN, fit=FitConfig(**QUICK), filters=("gaussian_blur",)
    )
    local, seen = evaluate_robustness(**spec.load(), out=tmp_path / "local"), []
    run = partial(evaluate_shards, spec, cluster=ONE, out=tmp_path / "ray")
    exact = [column for column in local.columns if not column.startswith("seconds")]
    for _ in range(2):  # the second time nothing is left to compute
        table = run(progress=lambda *numbers: seen.append(numbers))
        pd.testing.assert_frame_equal(table[exact], local[exact], check_exact=False, rtol=1e-4)
        assert seen[-1] == (46, 46)
        assert len(seen) == 3
    lines = [json.loads(line) for line in (tmp_path / "ray" / "records.jsonl").read_text().splitlines()]
    keys = [(line["attack"], line["crafted_on"], line["defence"], line["index"]) for line in lines]
    assert len(keys) == len(set(keys)) == 46
    here = [json.loads(line) for line in (tmp_path / "local" / "records.jsonl").read_text().splitlines()]
    timeless = [
        [{k: v for k, v in line.items() if k in ("config", "index", "prediction", "correct")} for line in run]
        for run in (here, lines)
    ]
    assert timeless[0] == timeless[1]
    (shard, *_) = sorted((tmp_path / "ray" / "shards").glob("*/part-*"))
    shard.write_text("".join(shard.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RuntimeError, match=r"must hold 21 records, one for each image and row, holds 20"):
        run()


def test_the_documentation_runs(address, tmp_path, folder, monkeypatch):
    """The Python of docs/scale.md, in a folder with a folder `photos`."""
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "photos")
    names: dict = {}
    exec(compile(block, "docs/scale.md", "exec"), names)
    assert (len(names["failures"]), names["images"]) == (1, 13)
    assert [record["iterations"] for record in records_of(tmp_path / "purified")] == [60] * 12 + [None]


def test_more_than_the_cluster_has_is_refused_at_once(address, tmp_path, folder):
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(FitConfig(**QUICK)))
    for cluster, message in (
        (Cluster(cpus=3), "cpus must be at most the 2 of one machine, got 3"),
        (Cluster(gpus=99), r"gpus must be at most the \d of one machine, got 99"),
        (Cluster(workers=3), "workers must be at most the 2 that the cluster has room for at 1 CPUs and 0 GPUs each"),
    ):
        with pytest.raises(ValueError, match=message):
            run(cluster=cluster)


def test_what_a_worker_raises_is_told(address, tmp_path):
    """Here of a machine with another torch than the driver's; on two workers at once."""
    build = partial(_ShardPurifier, Plan(2, 1), Storage.at(str(tmp_path)), Purifier(), "cpu", {"torch": "0"}, "")
    with pytest.raises(RuntimeError, match=r"a worker failed: RuntimeError: versions must be the same .*; start again"):
        list(compute(Cluster(), build, [(0, None), (1, None)]))


def test_what_ray_raises_is_told(address):
    """Here since what the worker raised cannot be unpickled."""
    import ray

    class UnreadableError(Exception):
        def __reduce__(self):
            return __import__, ("not_on_this_node",)

    def work(shard, sent):
        raise UnreadableError

    with pytest.raises(RuntimeError, match=r"a worker failed: \w+: .*; start again, finished shards stay") as caught:
        list(compute(ONE, partial(partial, work), [(0, None)]))
    assert isinstance(caught.value.__cause__, ray.exceptions.RayError)
    assert not isinstance(caught.value.__cause__, ray.exceptions.RayTaskError)
    assert "\n" not in str(caught.value)


def test_a_connection_that_is_there_is_used(address, tmp_path):
    """Whatever the address; and what Ray logs is as before."""
    import ray.data  # sets a level

    logger = logging.getLogger(ray.data.__name__)
    before = logger.level
    assert list(
        compute(Cluster(address="127.0.0.1:9", workers=1), partial(partial, print), [(0, None), (1, None)])
    ) == [0, 1]
    assert logger.level == before != logging.CRITICAL


def test_a_cluster_with_a_token_is_told(address, monkeypatch):
    """As after `ray start --head` where a token lies."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    _check_reachable(address)
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(ConnectionError, match=r"refuses it: set RAY_AUTH_MODE=token, or give --address auto"):
        _check_reachable(address)
