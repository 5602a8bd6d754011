"""The engine ray on a real local cluster of two CPUs: agreement, and workers and drivers that are killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from dipdefense import FitConfig, Purifier
from dipdefense.cli import app
from dipdefense.distributed import Cluster, purify_shards
from dipdefense.distributed.cluster import _check_reachable
from dipdefense.distributed.pool import Lost, compute
from dipdefense.distributed.purification import _Purification
from dipdefense.distributed.storage_retries import OutageError
from dipdefense.files.purify_files import purify_files
from dipdefense.files.reading import read_image
from dipdefense.files.writing import write_image
from eval.datasets import load_dataset
from eval.robustness.config import RunConfig
from eval.robustness.distributed import RunSpec, evaluate_shards
from eval.robustness.evaluate import evaluate

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


def interrupted(driver) -> str:
    """What a command writes to stderr until it ends by Ctrl-C; pressed again if nothing has come of it in 30 s."""
    driver.send_signal(signal.SIGINT)
    try:
        return driver.communicate(timeout=30)[1]
    except subprocess.TimeoutExpired:
        driver.send_signal(signal.SIGINT)
        return driver.communicate()[1]


def test_a_stopped_driver_goes_on_where_it_was(address, tmp_path, folder):
    """Ctrl-C on the command, then the command again, in Parquet and with an image that is none.

    A shard takes seconds, since the command may take as long to end.
    """
    (tmp_path / "config.json").write_text(json.dumps(QUICK | {"iterations": 2000}))
    contents = [path.read_bytes() for path in sorted(folder.glob("[01]*.png"))]
    pq.write_table(pa.table({"image": [*contents, None]}), tmp_path / "in.parquet", row_group_size=5)
    out = tmp_path / "out"
    words = ["purify", str(tmp_path / "in.parquet"), str(out), "--engine", "ray"]
    words += ["--workers", "1", "--shard-size", "3", "--config", str(tmp_path / "config.json")]
    # A shell starts background jobs with Ctrl-C ignored, which these tests, and so the command, would inherit.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-W", "error", "-c", f"{code}from dipdefense.cli import main; main()", *words]
    with subprocess.Popen([*command, "--address", address], stderr=subprocess.PIPE, text=True) as driver:
        while driver.poll() is None and not list(out.glob("part-*")):
            time.sleep(0.05)
        stderr = interrupted(driver)
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
    assert [record["iterations"] for record in records] == [2000] * 12 + [None]


def test_evaluate_agrees_with_the_local_engine(address, tmp_path):
    spec = RunSpec(
        dataset="digits", classifier="digits_cnn", config=RUN, fit=FitConfig(**QUICK), filters=("gaussian_blur",)
    )
    local, seen = evaluate(spec.evaluation(), tmp_path / "local"), []
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


def test_certify_agrees_with_the_local_engine(address, tmp_path):
    command = ["certify", "--purifiers", "none,median", "--n", "3", "--n0", "8", "--samples", "60", "--block", "20"]
    for device in ("cpu", "ray:workers=2"):
        folder = tmp_path / device.partition(":")[0]
        result = CliRunner().invoke(app, [*command, "--device", device, "--out", str(folder)], catch_exceptions=False)
        assert result.exit_code == 0
    tables = [pd.read_csv(tmp_path / name / "certificates.csv").drop(columns="seconds") for name in ("cpu", "ray")]
    assert tables[0].equals(tables[1])
    counted = [len((tmp_path / name / "records.jsonl").read_text().splitlines()) for name in ("cpu", "ray")]
    assert counted[0] == counted[1]


def test_the_documentation_runs(address, tmp_path, folder, monkeypatch):
    """The Python of docs/scale.md, in a folder with a folder `photos`."""
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
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
    build = partial(_Purification, Purifier(), "cpu", {"torch": "0"})
    with pytest.raises(RuntimeError, match=r"a worker failed: RuntimeError: versions must be the same .*; start again"):
        list(compute(Cluster(), build, [0, 1], int))


def test_what_ray_raises_is_told(address):
    """Here since what the worker raised cannot be unpickled."""
    import ray

    class UnreadableError(Exception):
        def __reduce__(self):
            return __import__, ("not_on_this_node",)

    def work(sent):
        raise UnreadableError

    with pytest.raises(RuntimeError, match=r"a worker failed: \w+: .*; start again, finished shards stay") as caught:
        list(compute(ONE, partial(partial, work), [0], int))
    assert isinstance(caught.value.__cause__, ray.exceptions.RayError)
    assert not isinstance(caught.value.__cause__, ray.exceptions.RayTaskError)
    assert "\n" not in str(caught.value)


def test_a_connection_that_is_there_is_used(address, tmp_path):
    """Whatever the address."""
    results = compute(Cluster(address="127.0.0.1:9", workers=1), partial(partial, float), [0, 1], int)
    assert list(results) == [(0, 0.0), (1, 1.0)]


def test_a_cluster_with_a_token_is_told(address, monkeypatch):
    """As after `ray start --head` where a token lies."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    _check_reachable(address)
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(ConnectionError, match=r"refuses it: set RAY_AUTH_MODE=token, or give --address auto"):
        _check_reachable(address)


def test_an_image_that_kills_its_worker_costs_no_other(address, tmp_path, folder):
    """It has an error that says so; the run ends, and a second start finds it complete."""

    class Poisoned(Purifier):
        def reconstruct(self, images, callback=None):
            if (images == 0).flatten(1).all(1).any():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reconstruct(images, callback)

    for i in range(4, 12):
        (folder / f"{i:02}.png").unlink()
    write_image(torch.zeros(3, 32, 32), folder / "01.png")
    out, seen = tmp_path / "out", []
    run = partial(purify_shards, str(folder), str(out), Poisoned(FitConfig(**QUICK)), cluster=ONE, shard_size=3)
    failures, images = run(progress=lambda *numbers: seen.append(numbers))
    assert failures[0] == ("01.png", "01.png: killed its worker 3 times")
    assert ([failure.key for failure in failures], images) == (["01.png", "bad.png"], 5)
    records = records_of(out)
    assert [record["key"] for record in records] == ["00.png", "01.png", "02.png", "03.png", "bad.png"]
    assert [record["iterations"] for record in records] == [60, None, 60, 60, None]
    assert [record["image"] is None for record in records] == [False, True, False, False, True]
    assert seen == [(2, 5), (5, 5)]  # the other shard first
    assert run() == (failures, images)


POISONED = """
import os, signal
from pathlib import Path
from eval.classifiers import load_classifier

def poisoned():
    net = load_classifier("digits_cnn")
    net.register_forward_pre_hook(look)
    return net

def look(net, inputs):
    found = (inputs[0].flatten(1).sum(1) - {light}).abs().min() < 1e-3
    if found and os.getpid() != {driver} and Path({marker!r}).exists():
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_batch_that_kills_its_worker_is_named_after_the_others_are_done(address, tmp_path):
    """And is all that is computed when its cause is gone."""
    digits = load_dataset("digits")
    order = digits.first(6, 0).tolist()
    marker, file = tmp_path / "poison", tmp_path / "poisoned.py"
    light = digits.read(order[2]).sum().item()
    file.write_text(POISONED.format(light=light, driver=os.getpid(), marker=str(marker)))
    config = RunConfig(attacks=(), n=6, batch_size=2)
    spec = RunSpec(dataset="digits", classifier=f"{file}:poisoned", config=config, fit=FitConfig(**QUICK))
    run = partial(evaluate_shards, spec, cluster=ONE, out=tmp_path / "run")
    marker.touch()
    named = ", ".join(map(str, sorted(digits.index[order[2:4]].tolist())))
    with pytest.raises(RuntimeError, match=rf"1 of 3 batches .*: that of images {named} killed its worker 3 times\."):
        run()
    held = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "shards").glob("*/part-*")}
    assert sorted(held) == ["part-00000-of-00003.jsonl", "part-00002-of-00003.jsonl"]
    assert not (tmp_path / "run" / "summary.csv").exists()
    marker.unlink()
    assert run()["n"].tolist() == [6, 6]
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "shards").glob("*/part-*")}
    assert (now.items() > held.items(), len(now)) == (True, 3)


def test_a_worker_that_lost_its_device_is_not_used_again(address, tmp_path):
    """Each try of an item that fails so has a process of its own, then it is given up; the others are done."""
    tries = tmp_path / "tries"

    def work(item):
        with tries.open("a") as file:
            file.write(f"{item} {os.getpid()}\n")
        if item == 0:
            raise torch.AcceleratorError("device lost\nthen more")
        return os.getpid()

    results = dict(compute(ONE, partial(partial, work), [0, 1], int))
    assert results[0] == Lost("failed 3 times: AcceleratorError: device lost", killed=False)
    tried = [tuple(map(int, line.split())) for line in tries.read_text().splitlines()]
    assert [item for item, _ in tried] == [0, 1, 0, 0]  # again after the others
    failed = {pid for item, pid in tried if item == 0}
    assert len(failed) == 3
    assert tried[1] == (1, results[1])
    assert tried[2][1] == results[1]  # a worker that did well is used again
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in failed) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in failed if Path(f"/proc/{pid}").exists()]


def test_an_outage_ends_the_run_after_the_others_are_done(address):
    def work(item):
        if item == 0:
            raise OutageError("0.png: cannot be read or written at present: no route")
        return item

    results = compute(ONE, partial(partial, work), [0, 1, 2], int)
    assert [next(results), next(results)] == [(1, 1), (2, 2)]
    with pytest.raises(RuntimeError, match=r"0\.png: cannot be read or written .*: no route; start again, finished"):
        next(results)


def test_workers_that_die_while_they_start_end_the_run(address):
    with pytest.raises(RuntimeError, match=r"a worker failed: \w+Error: .*; 3 in a row, each while it started"):
        list(compute(ONE, partial(os._exit, 1), [0], int))


def children(pid: int) -> list[int]:
    """The processes that a process started; none where it has ended."""
    with suppress(OSError):
        tasks = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for task in tasks for child in task.read_text().split()]
    return []


def workers() -> list[int]:
    """The processes of this cluster's actors that start or do work."""
    found = []
    for pid in (worker for child in children(os.getpid()) for worker in children(child)):
        with suppress(OSError):
            found += [pid] * (b"ray::_Worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def timeless(folder: Path) -> tuple[pd.DataFrame, list[dict]]:
    """The table and the records of an evaluation, but for what was timed."""
    table = pd.read_csv(folder / "summary.csv")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for record in records:
        for measured in ("seconds", "attack_seconds", "peak_gb"):
            del record[measured]
    records.sort(key=lambda record: (record["attack"], record["defence"], record["index"]))
    return table[[name for name in table if "seconds" not in name]], records


def test_a_run_that_is_killed_at_random_ends_with_the_same_table(address, tmp_path):
    """An evaluation: its driver is killed while it starts; then after shards its worker, twice, and its driver."""
    (tmp_path / "config.json").write_text(json.dumps(QUICK))
    words = ["evaluate", "--n", "10", "--batch-size", "1", "--attacks", "fgsm", "--eps", "0.2"]
    words += ["--config", str(tmp_path / "config.json")]
    ray = "ray:workers=1"
    result = CliRunner().invoke(app, [*words, "--device", ray, "--out", str(tmp_path / "whole")])
    assert result.exit_code == 0, result.output
    out, chance = tmp_path / "killed", random.Random(0)
    program = [sys.executable, "-c", "from dipdefense.cli import main; main()", *words]
    program += ["--device", f"{ray},address={address}", "--out", str(out)]

    def wait_for(something, driver, seconds=120):
        deadline = time.monotonic() + seconds
        while not something():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def made():
        return len(list(out.glob("shards/*/part-*")))

    for victims in (("driver",), ("worker", "worker", "driver")):
        with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
            for victim in victims:
                before = made()
                if len(victims) > 1:
                    wait_for(lambda before=before: made() > before and workers(), driver)
                time.sleep(chance.uniform(0, 0.2 if len(victims) > 1 else 2))
                assert driver.poll() is None
                for pid in workers() if victim == "worker" else [driver.pid]:
                    with suppress(ProcessLookupError):  # a worker of the driver before, which has ended by itself
                        os.kill(pid, signal.SIGKILL)
        assert driver.returncode == -signal.SIGKILL
        assert made() < 10
    assert made() >= 3
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, timeout=120)
    (table, records), (whole, expected) = timeless(out), timeless(tmp_path / "whole")
    pd.testing.assert_frame_equal(table, whole, check_exact=True)
    assert records == expected
    assert len(records) == 40
    assert not list(out.glob("shards/*/.*"))
