"""Sources, plans and shards, and what is refused: without a cluster. `test_scale_ray.py` has one."""

import io
import json
import os
import pickle
import socket
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock, call

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from dipdefense import FitConfig, Purifier
from dipdefense.cli import app
from dipdefense.cli.options import device_or_cluster
from dipdefense.distributed import Cluster, purify_shards, storage_retries
from dipdefense.distributed import cluster as cluster_module
from dipdefense.distributed import purification as purify_module
from dipdefense.distributed.pool import Lost, compute
from dipdefense.distributed.shard_plan import Plan
from dipdefense.distributed.sources import find_images
from dipdefense.distributed.storage import Storage
from dipdefense.distributed.storage_retries import OutageError, persist
from dipdefense.files.purify_files import purify_files
from dipdefense.files.reading import read_image
from dipdefense.files.writing import encode_png, write_image
from eval.robustness.config import RunConfig
from eval.robustness.distributed import RunSpec, _BatchScorer, evaluate_shards

TINY = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=20, memory_gb=0.001
)
SHORT = replace(TINY, iterations=2)
SHAPES = [(3, 8, 8), (1, 8, 8), (3, 8, 8), (3, 8, 12), (3, 8, 8)]


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(*shape, generator=generator) for shape in SHAPES]


@pytest.fixture
def folder(tmp_path, images):
    """Five images, one of them in a subfolder, and one that is none."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i, image in enumerate(images):
        write_image(image, tmp_path / "in" / ("sub" if i == 4 else "") / f"{i}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"torn")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    (tmp_path / "in" / "readme.txt").write_text("no image")
    return tmp_path / "in"


def write_table(path, images, *, as_struct=False, group=2):
    contents = [None if image is None else encode_png(image) for image in images]
    column = pa.array([{"bytes": c, "path": None} for c in contents]) if as_struct else pa.array(contents, pa.binary())
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"picture": column, "label": list(range(len(contents)))}), path, row_group_size=group)


def read_all(source) -> dict[str, torch.Tensor]:
    return {key: read() for key, read in source.images()}


def work_here(monkeypatch):
    """Do what the workers do in this process, pickled on its way as to theirs."""

    def compute(cluster, build, items, part):
        work = pickle.loads(pickle.dumps(build))()
        for item in items:
            yield item, work(pickle.loads(pickle.dumps(part(item))))

    monkeypatch.setattr(purify_module, "compute", compute)
    monkeypatch.setattr(purify_module, "connected", lambda address: nullcontext())


def records_of(folder) -> list[dict]:
    return [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]


def test_a_folder_is_its_files_below_sorted(folder):
    source = find_images(str(folder))
    assert list(source.keys()) == ["0.png", "1.png", "2.png", "3.png", "bad.png", "sub/4.png"]
    assert list(source.part(4, 6).keys()) == ["bad.png", "sub/4.png"]
    assert torch.equal(dict(source.images())["sub/4.png"](), read_image(folder / "sub" / "4.png"))
    with pytest.raises(ValueError, match=r"bad\.png: not an image"):
        dict(source.images())["bad.png"]()
    assert list(find_images(f"{folder}/2.png").keys()) == ["2.png"]
    assert list(find_images(folder.as_uri()).keys()) == list(source.keys())


@pytest.mark.parametrize("in_table", [False, True])
def test_the_pixel_limit_of_the_driver_holds_where_images_are_read(tmp_path, images, monkeypatch, in_table):
    if in_table:
        write_table(tmp_path / "in" / "0.parquet", images)
    else:
        (tmp_path / "in").mkdir()
        for i, image in enumerate(images):
            write_image(image, tmp_path / "in" / f"{i}.png")
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", "95")
    sent = pickle.dumps(find_images(str(tmp_path / "in"), "picture").part(2, 4))
    monkeypatch.delenv("DIPDEFENSE_MAX_PIXELS")
    small, large = (read for _, read in pickle.loads(sent).images())
    assert small().shape == (3, 8, 8)
    with pytest.raises(ValueError, match="an image must have at most 95 pixels, got 12 x 8 = 96"):
        large()


@pytest.mark.parametrize("as_struct", [False, True])
def test_rows_of_parquet_are_the_same_however_they_are_cut(tmp_path, images, as_struct):
    for i, part in enumerate((images, images[:1], images[2:])):  # 5 + 1 + 3 rows in groups of 2
        write_table(tmp_path / "in" / f"{i}.parquet", part, as_struct=as_struct)
    source = find_images(str(tmp_path / "in"), "picture")
    whole = read_all(source)
    assert len(source) == len(whole) == 9
    assert list(whole)[4:7] == ["0.parquet:4", "1.parquet:0", "2.parquet:0"]
    for key, image in zip(whole, images + images[:1] + images[2:], strict=True):
        assert (whole[key] - image).abs().max() <= 0.5 / 255 + 1e-6, key
    for size in (1, 2, 4, 9):
        parts = [source.part(start, min(start + size, 9)) for start in range(0, 9, size)]
        joined = {key: image for part in parts for key, image in read_all(pickle.loads(pickle.dumps(part))).items()}
        assert list(joined) == list(whole)
        assert all(torch.equal(joined[key], whole[key]) for key in whole)


def overwrite_pages(path, group):
    """Nothing of a row group's pages can be parsed; the footer stays."""
    chunk = pq.read_metadata(path).row_group(group).column(0)
    start = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


def test_planning_reads_footers_alone(tmp_path, images):
    """No page can be parsed, yet the plan is the same; another cut into row groups is another."""
    path = tmp_path / "in" / "0.parquet"
    write_table(path, images)
    before = find_images(str(path), "picture").digest()
    for group in range(3):
        overwrite_pages(path, group)
    with pytest.raises((OSError, ValueError)):
        pq.read_table(path, columns=["picture"])
    assert find_images(str(path), "picture").digest() == before
    write_table(path, images, group=3)
    assert find_images(str(path), "picture").digest() != before


def test_a_damaged_page_is_the_fault_of_its_rows(tmp_path, images):
    path = tmp_path / "in" / "0.parquet"
    write_table(path, images)
    source = find_images(str(path), "picture")
    overwrite_pages(path, 1)
    read = dict(source.images())
    assert list(read) == list(source.keys())
    for row in (0, 1, 4):
        assert (read[f"0.parquet:{row}"]() - images[row]).abs().max() <= 0.5 / 255 + 1e-6
    for row in (2, 3):
        with pytest.raises(ValueError, match=rf"0\.parquet:{row}: must be a row that can be read"):
            read[f"0.parquet:{row}"]()
    write_table(path, images[:3])
    with pytest.raises(ValueError, match=r"0\.parquet:3: must be a row that can be read, the file has fewer rows"):
        dict(source.images())["0.parquet:3"]()
    path.unlink()
    with pytest.raises(ValueError, match=r"0\.parquet:0: must be a row that can be read, .*No such file"):
        dict(source.images())["0.parquet:0"]()


@pytest.fixture
def waited(monkeypatch):
    """The seconds that storage was waited for, which take no time."""
    seconds = []
    monkeypatch.setattr(storage_retries.time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize("failures", [0, 1, len(storage_retries.WAITS)])
def test_storage_that_comes_back_is_waited_for(waited, failures):
    left = [TimeoutError("no route")] * failures

    def request():
        if left:
            raise left.pop()
        return "content"

    assert persist("0.png", request) == "content"
    assert waited == list(storage_retries.WAITS[:failures])


def test_storage_is_not_waited_for_without_end(waited):
    def fail(error):
        raise error

    with pytest.raises(OutageError, match=r"0\.png: cannot be read or written at present: no route"):
        persist("0.png", partial(fail, TimeoutError("no route")))
    assert (waited, sum(waited)) == (list(storage_retries.WAITS), 31)
    with pytest.raises(FileNotFoundError, match="gone"):  # the file's own fault, at once
        persist("0.png", partial(fail, FileNotFoundError("gone")))
    assert len(waited) == len(storage_retries.WAITS)


def test_a_read_that_failed_is_repeated_from_its_place(tmp_path, images, monkeypatch, waited):
    """Every read of a Parquet file fails once, after it has moved on in the file."""
    path = tmp_path / "in" / "0.parquet"
    write_table(path, images)
    whole = read_all(find_images(str(path), "picture"))

    class Shaky(io.BytesIO):
        fails = True

        def read(self, size=-1):
            content, self.fails = super().read(size), not self.fails
            if not self.fails:
                raise TimeoutError("no route")
            return content

    monkeypatch.setattr(Storage, "open", lambda *_: Shaky(path.read_bytes()))
    source = find_images(str(path), "picture")
    assert len(source) == len(images)
    assert all(torch.equal(image, whole[key]) for key, image in read_all(source).items())
    assert waited


@pytest.mark.parametrize("reads", [None, 0, 1])
def test_an_outage_is_no_fault_of_a_row(tmp_path, images, monkeypatch, reads, waited):
    """While the file is opened, its footer is read, or a page is."""
    path = tmp_path / "in" / "0.parquet"
    write_table(path, images)
    source = find_images(str(path), "picture")

    class Away(io.BytesIO):
        left = reads

        def read(self, size=-1):
            if not self.left:
                raise TimeoutError("no route")
            self.left -= 1
            return super().read(size)

    def away(*_):
        if reads is None:
            raise TimeoutError("no route")
        return Away(path.read_bytes())

    monkeypatch.setattr(Storage, "open", away)
    with pytest.raises(OutageError, match=r"0\.parquet: cannot be read or written at present: no route"):
        list(source.images())


def test_a_null_image_is_named(tmp_path, images):
    write_table(tmp_path / "in" / "0.parquet", [images[0], None])
    with pytest.raises(ValueError, match=r"0\.parquet:1: must be the bytes of an image, got null"):
        dict(find_images(str(tmp_path / "in"), "picture").images())["0.parquet:1"]()


def test_bad_sources_are_refused(tmp_path, folder, images):
    with pytest.raises(FileNotFoundError, match="missing: must be a file or a folder"):
        find_images(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="must be a path, or a URI such as s3://bucket/folder"):
        find_images("xyz://bucket/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: must hold at least one image"):
        find_images(str(tmp_path / "empty"))
    write_table(tmp_path / "tables" / "0.parquet", images)
    with pytest.raises(ValueError, match=r"0\.parquet: column must be one of picture, label, got 'image'; .*--column"):
        find_images(str(tmp_path / "tables"))
    with pytest.raises(ValueError, match=r"column label must hold bytes, or a struct with a field bytes, got int64"):
        find_images(str(tmp_path / "tables"), "label")
    (tmp_path / "tables" / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"torn\.parquet: must be a Parquet file"):
        find_images(str(tmp_path / "tables"), "picture")
    write_table(folder / "0.parquet", images)
    with pytest.raises(ValueError, match=r"must hold images or Parquet files, got both: 0\.png, 0\.parquet"):
        find_images(str(folder))


def test_an_outage_is_no_fault_of_an_image(folder, monkeypatch, waited):
    source = find_images(str(folder))
    monkeypatch.setattr(Storage, "read", lambda *_: (_ for _ in ()).throw(TimeoutError("no route")))
    with pytest.raises(OutageError, match=r"0\.png: cannot be read or written at present: no route"):
        dict(source.images())["0.png"]()
    (folder / "1.png").unlink()
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"1\.png: .*No such file"):
        dict(source.images())["1.png"]()


def test_a_file_system_by_uri():
    """Pyarrow's own in memory: files are written beside their names and moved."""
    store = Storage.at("mock:///bucket/run")
    store.write("a.bin", b"one")
    store.write("a.bin", b"two")
    store.write("sub.bin", b"three")
    assert (store.read("a.bin"), store.sizes(), store.holds("b.bin")) == (b"two", {"a.bin": 3, "sub.bin": 5}, False)
    assert store.inside(store.parent())
    assert not store.parent().inside(store)


@pytest.mark.parametrize(("kind", "moves"), [("s3", 0), ("gcs", 0), ("abfs", 0), ("hdfs", 1)])
def test_only_objects_are_written_under_their_names(kind, moves):
    files = Mock(type_name=kind)
    files.open_output_stream.return_value = io.BytesIO()
    Storage(files, "bucket/run").write("a.bin", b"one")
    (written,), _ = files.open_output_stream.call_args
    assert (written == "bucket/run/a.bin") == (not moves)
    assert files.move.call_args_list == [call(written, "bucket/run/a.bin")] * moves


def test_local_files_appear_whole(tmp_path):
    store = Storage.at(str(tmp_path / "run"))
    store.write("a.bin", b"one")
    (tmp_path / "run" / ".b.bin.0123.part").write_bytes(b"torn")
    (tmp_path / "run" / ".keep").write_bytes(b"")
    assert list(store.sizes()) == ["a.bin"]
    store.sweep()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".keep", "a.bin"]


def test_a_local_file_has_its_name_when_the_disk_has_it(tmp_path, monkeypatch):
    held = []

    def sync(descriptor):
        held.append((os.pread(descriptor, 9, 0), (tmp_path / "a.bin").exists()))

    monkeypatch.setattr(os, "fsync", sync)
    Storage.at(str(tmp_path)).write("a.bin", b"one")
    assert held == [(b"one", False)]
    assert (tmp_path / "a.bin").read_bytes() == b"one"


def test_names_of_many_shards_sort_as_the_shards_do():
    plan = Plan(100_001, 1)
    names = [plan.name(shard) for shard in (0, 9_999, 10_000, 99_999, 100_000)]
    assert names == sorted(names)
    assert names[0] == "part-000000-of-100001.parquet"


def test_a_plan_covers_each_image_once(tmp_path):
    plan = Plan(1000, 64)
    assert len(plan) == 16
    assert [i for shard in range(16) for i in range(*plan.span(shard))] == list(range(1000))
    assert (plan.name(0), plan.name(15)) == ("part-00000-of-00016.parquet", "part-00015-of-00016.parquet")
    store = Storage.at(str(tmp_path))
    store.write(plan.name(3), b"")
    assert plan.missing(store) == [0, 1, 2, *range(4, 16)]
    for numbers, name in (((0, 1), "images"), ((1, 0), "shard_size")):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
            Plan(*numbers)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_shards_agree_with_the_local_engine(tmp_path, folder, images, kind, monkeypatch):
    work_here(monkeypatch)
    targets = [tmp_path / f"{i}.png" for i in range(5)]
    files = [folder / ("sub" if i == 4 else "") / f"{i}.png" for i in range(5)]
    assert purify_files(files, targets, Purifier(TINY)) == []
    if kind == "parquet":
        folder = tmp_path / "tables"
        write_table(folder / "0.parquet", [*images[:4], None, images[4]])
    seen = []
    failures, count = purify_shards(
        str(folder),
        str(tmp_path / "out"),
        Purifier(TINY),
        shard_size=4,
        column="picture",
        progress=lambda done, total: seen.append((done, total)),
    )
    records = records_of(tmp_path / "out")
    assert ([record["key"] for record in records], count) == (list(find_images(str(folder), "picture").keys()), 6)
    bad = records.pop(4)
    assert (bad["image"], bad["iterations"], len(failures)) == (None, None, 1)
    assert failures[0] == (bad["key"], bad["error"])
    for record, target in zip(records, targets, strict=True):
        (tmp_path / "one.png").write_bytes(record["image"])
        levels = 255 * (read_image(tmp_path / "one.png") - read_image(target)).abs()
        assert levels.max() <= 1.01  # batches differ, so a value may round the other way
        assert (levels > 0.5).float().mean() < 0.01
        assert (record["iterations"], record["error"]) == (20, None)
    assert seen == [(4, 6), (6, 6)]


def test_iterations_are_the_fits(tmp_path, images, monkeypatch):
    work_here(monkeypatch)
    write_table(tmp_path / "in" / "0.parquet", [images[0], images[2] * 0.1 + 0.5])
    config = FitConfig(
        architecture_options={"channels": [8, 8], "skip_channels": 0},
        input_channels=8,
        iterations=200,
        stopping="wmv",
        stopping_options={"window": 5, "patience": 8},
    )
    purify_shards(str(tmp_path / "in"), str(tmp_path / "out"), Purifier(config), column="picture")
    stored = torch.stack(list(read_all(find_images(str(tmp_path / "in"), "picture")).values()))
    ran = Purifier(config).fit(stored).iterations.tolist()
    assert [record["iterations"] for record in records_of(tmp_path / "out")] == ran
    assert min(ran) < 200


def test_a_shard_may_be_purified_again(tmp_path, folder, monkeypatch):
    work_here(monkeypatch)
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(TINY), shard_size=2)
    run()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out" / "part-00001-of-00003.parquet").unlink()
    seen = []
    assert run(progress=lambda *numbers: seen.append(numbers))[1] == 6
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"part-00001-of-00003.parquet"}
    assert seen == [(6, 6)]


def test_another_run_is_refused(tmp_path, folder, monkeypatch):
    work_here(monkeypatch)
    out = str(tmp_path / "out")
    purify_shards(str(folder), out, Purifier(TINY), shard_size=2)
    with pytest.raises(ValueError, match="its seed is 0, got 1: take another folder"):
        purify_shards(str(folder), out, Purifier(TINY, seed=1), shard_size=2)
    with pytest.raises(ValueError, match="its shard_size is 2, got 3"):
        purify_shards(str(folder), out, Purifier(TINY), shard_size=3)
    (folder / "new.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(ValueError, match="its digest is "):
        purify_shards(str(folder), out, Purifier(TINY), shard_size=2)
    with pytest.raises(ValueError, match=r"OUTPUT must lie outside INPUT, but .*in/out is inside .*in"):
        purify_shards(str(folder), str(folder / "out"), Purifier(TINY))
    (tmp_path / "link").symlink_to(folder)
    for target in (tmp_path / "link" / "out", tmp_path / "out" / ".." / "in" / "out"):
        with pytest.raises(ValueError, match="OUTPUT must lie outside INPUT"):
            purify_shards(str(folder), str(target), Purifier(TINY))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "part-00000-of-00003.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"OUTPUT must be empty, or the folder of this run, but holds part-00000"):
        purify_shards(str(folder), str(tmp_path / "used"), Purifier(TINY), shard_size=2)


def test_settings_may_change_until_there_is_a_shard(tmp_path):
    plan, store = Plan(2, 1), Storage.at(str(tmp_path))
    plan.settle(store, {"device": "cuda"})
    plan.settle(store, {"device": "cpu"})
    assert json.loads(store.read("plan.json")) == {"device": "cpu", "images": 2, "shard_size": 1}
    store.write(plan.name(0), b"")
    with pytest.raises(ValueError, match="its device is 'cpu', got 'cuda': take another folder"):
        plan.settle(store, {"device": "cuda"})


def test_a_shard_that_is_damaged_or_not_the_runs_is_made_again(tmp_path, folder, monkeypatch):
    """Cut off, empty, or with the images of another; the whole ones stay."""
    work_here(monkeypatch)
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(SHORT), shard_size=2)
    failures, count = run()
    first, second, third = (tmp_path / "out" / f"part-0000{i}-of-00003.parquet" for i in range(3))
    keys, content = pq.read_table(first, columns=["key"]), first.read_bytes()
    for damaged in (second.read_bytes(), content[:100], b"", b"\0" * len(content)):
        first.write_bytes(damaged)
        before, seen = [path.stat().st_mtime_ns for path in (second, third)], []
        assert run(progress=lambda *numbers, seen=seen: seen.append(numbers)) == (failures, count)
        assert pq.read_table(first, columns=["key"]).equals(keys)
        assert [path.stat().st_mtime_ns for path in (second, third)] == before
        assert seen == [(6, 6)]


def test_an_outage_makes_no_shard_again(tmp_path, folder, monkeypatch, waited):
    work_here(monkeypatch)
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(SHORT), shard_size=2)
    run()
    monkeypatch.setattr(Storage, "open", lambda *_: (_ for _ in ()).throw(TimeoutError("no route")))
    monkeypatch.setattr(Storage, "read", lambda self, name: Path(self.path, name).read_bytes())
    with pytest.raises(OutageError, match=r"part-0000\d-of-00003\.parquet: cannot be read .* at present: no route"):
        run()


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"torn")])
def test_a_shard_that_is_harmed_after_it_was_made_is_named(tmp_path, folder, monkeypatch, harm):
    work_here(monkeypatch)

    def progress(done, total):
        if done == total:
            harm(tmp_path / "out" / "part-00001-of-00003.parquet")

    with pytest.raises(RuntimeError, match=r"1 of 3 shards are missing or damaged, such as part-00001-of-00003\.par"):
        purify_shards(str(folder), str(tmp_path / "out"), Purifier(SHORT), shard_size=2, progress=progress)


def test_what_a_run_made_is_not_read_again(tmp_path, folder, monkeypatch):
    """A worker tells of its shard; a second start reads what is there, once."""
    work_here(monkeypatch)
    read, opened = Storage.open, []

    def count(self, name):
        opened.append(name)
        return read(self, name)

    monkeypatch.setattr(Storage, "open", count)
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(SHORT), shard_size=2)
    for _ in range(2):
        opened.clear()
        failures, _count = run()
        assert [failure.key for failure in failures] == ["bad.png"]
        names = sorted(name for name in opened if name.startswith("part"))
        assert names == [f"part-0000{i}-of-00003.parquet" for i in range(3)]  # here before a shard is made


def lose(monkeypatch, shards, images, killed):
    """Shards and images that no worker can finish."""

    def compute(cluster, build, items, part):
        work = pickle.loads(pickle.dumps(build))()
        for item in items:
            sent = part(item)
            gone = sent[0] in shards if isinstance(sent, tuple) else not images.isdisjoint(sent.keys())
            reason = "killed its worker 3 times" if killed else "failed 3 times: OutOfMemoryError: no memory"
            yield item, Lost(reason, killed) if gone else work(sent)

    monkeypatch.setattr(purify_module, "compute", compute)
    monkeypatch.setattr(purify_module, "connected", lambda address: nullcontext())


@pytest.mark.parametrize("killed", [True, False])
def test_of_a_shard_that_is_lost_only_the_image_at_fault_has_an_error(tmp_path, folder, monkeypatch, killed):
    """The shard of three is made image by image, after the others."""
    lose(monkeypatch, {0}, {"1.png"}, killed)
    seen = []
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(SHORT), shard_size=3)
    failures, _ = run(progress=lambda *numbers: seen.append(numbers))
    reason = "killed its worker 3 times" if killed else "failed 3 times: OutOfMemoryError: no memory"
    assert failures[0] == ("1.png", f"1.png: {reason}")
    assert [failure.key for failure in failures] == ["1.png", "bad.png"]
    records = records_of(tmp_path / "out")
    assert [record["key"] for record in records] == [*(f"{i}.png" for i in range(4)), "bad.png", "sub/4.png"]
    assert [record["image"] is None for record in records] == [False, True, False, False, True, False]
    assert [record["error"] for record in records if record["key"] == "1.png"] == [failures[0].error]
    assert seen == [(3, 6), (6, 6)]
    work_here(monkeypatch)
    assert run()[0] == failures  # the run is complete


def test_where_no_image_of_a_shard_can_be_made_the_machines_are_at_fault(tmp_path, folder, monkeypatch):
    """But for images that kill their workers; shards that are made stay."""
    every = {"0.png", "1.png", "2.png"}
    lose(monkeypatch, {0}, every, killed=False)
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(SHORT), shard_size=3)
    with pytest.raises(RuntimeError, match=r"no image of 1 shards .*part-00000-of-00002.parquet failed 3 times: OutOf"):
        run()
    assert [path.name for path in (tmp_path / "out").glob("part-*")] == ["part-00001-of-00002.parquet"]
    lose(monkeypatch, {0}, every, killed=True)
    assert [failure.key for failure in run()[0]] == [*sorted(every), "bad.png"]


def test_memory_that_does_not_suffice_is_no_record(tmp_path, folder, monkeypatch):
    """The worker raises it, so that another one tries."""
    work_here(monkeypatch)
    monkeypatch.setattr(Purifier, "reconstruct", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError, match=r"\d\.png: CUDA out of memory"):
        purify_shards(str(folder), str(tmp_path / "out"), Purifier(SHORT), shard_size=2)
    assert not list((tmp_path / "out").glob("part-*"))


def test_two_runs_that_begin_in_one_folder_are_not_mixed(tmp_path, folder, monkeypatch):
    """The shard of the other is there after this one's plan was kept."""
    work_here(monkeypatch)
    run = partial(purify_shards, str(folder), shard_size=2)
    run(str(tmp_path / "other"), Purifier(SHORT, seed=1))
    name = "part-00002-of-00003.parquet"

    def other_writes(done, total):
        if done == 2:
            (tmp_path / "out" / name).write_bytes((tmp_path / "other" / name).read_bytes())

    with pytest.raises(RuntimeError, match=rf"{name}: must be a shard of this run, but was made with other settings"):
        run(str(tmp_path / "out"), Purifier(SHORT), progress=other_writes)


def test_another_class_of_purifier_is_another_run(tmp_path, folder, monkeypatch):
    work_here(monkeypatch)
    run = partial(purify_shards, str(folder), str(tmp_path / "out"), shard_size=2)
    run(Purifier(TINY))
    with pytest.raises(ValueError, match=r"its purifier is 'dipdefense\.defence\.purifier\.Purifier', got '.*Mine'"):
        run(type("Mine", (Purifier,), {})(TINY))


def test_machines_must_agree():
    with pytest.raises(RuntimeError, match=r"versions must be the same on all machines, {'torch': '0'}, got"):
        purify_module._Purification(Purifier(TINY), "cpu", {"torch": "0"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers must be None or an integer of at least 1, got 0"),
        ({"cpus": 0}, "cpus must be an integer of at least 1, got 0"),
        ({"gpus": -1}, "gpus must be an integer of at least 0, got -1"),
        ({"address": "somewhere"}, "address must be HOST:PORT or auto, .*, got 'somewhere'"),
        ({"address": "ray://head:10001"}, "address must be HOST:PORT or auto"),
    ],
)
def test_bad_clusters_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**settings)


def test_an_address_without_a_cluster_is_refused_at_once(tmp_path, folder):
    arguments = ["purify", str(folder), str(tmp_path / "out"), "--engine", "ray", "--address", "127.0.0.1:9"]
    with pytest.raises(ConnectionError, match=r"address must be that of a running Ray cluster, got 127\.0\.0\.1:9"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_port_that_is_not_rays_is_refused(monkeypatch):
    monkeypatch.setattr(cluster_module, "ANSWER_S", 4)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"running Ray cluster, got {address}: no answer within 4 s; start"):
            list(compute(Cluster(address=address), partial(print), [0], int))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "dask"), "engine must be one of local, ray, got 'dask'"),
        (("--engine", "ray", "--workers", "0"), "workers must be None or an integer of at least 1, got 0"),
        (("--engine", "ray", "--device", "cpu"), "--device must be left out with --engine ray"),
        (("--workers", "2"), "--workers must come with --engine ray"),
    ],
)
def test_engines_are_refused(tmp_path, folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["purify", str(folder), str(tmp_path / "out"), *arguments], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("dask", "device must be one that this machine has, such as cpu, got 'dask'"),
        ("ray:workers=0", "workers must be None or an integer of at least 1, got 0"),
        ("ray:device=cpu", "device must be such as ray:workers=4,.*got 'ray:device=cpu'"),
        ("ray:address=nowhere", "address must be HOST:PORT or auto"),
    ],
)
def test_clusters_of_evaluate_are_refused(tmp_path, device, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(
            app, ["evaluate", "--out", str(tmp_path / "out"), "--device", device], catch_exceptions=False
        )
    assert not (tmp_path / "out").exists()


def test_a_cluster_is_read_from_its_text():
    cluster = Cluster(address="10.0.0.1:6379", workers=4, cpus=2, gpus=1)
    assert device_or_cluster("ray:address=10.0.0.1:6379,workers=4,cpus=2,gpus=1") == (torch.device("cpu"), cluster)
    assert device_or_cluster("ray") == (torch.device("cpu"), Cluster())
    assert device_or_cluster("cpu") == (torch.device("cpu"), None)


def test_options_of_one_engine_are_refused_with_the_other(tmp_path, folder):
    for words, message in (
        (["purify", str(folder), str(tmp_path / "out"), "--shard-size", "2"], "--shard-size must come with --engine"),
        (["purify", str(folder), str(tmp_path / "out"), "--column", "x"], "--column must come with --engine ray"),
    ):
        with pytest.raises(ValueError, match=message):
            CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize("missing", ["ray", "pyarrow"])
def test_a_missing_extra_is_named(tmp_path, folder, missing, monkeypatch):
    monkeypatch.setattr("dipdefense.distributed.storage.find_spec", lambda name: None if name == missing else io)
    spec = RunSpec(dataset="digits", classifier="digits_cnn", config=RunConfig(n=1, attacks=()), fit=TINY)
    for run in (
        partial(purify_shards, str(folder), str(tmp_path / "out"), Purifier(TINY)),
        partial(evaluate_shards, spec, out=tmp_path / "run"),
    ):
        with pytest.raises(ImportError, match=rf"needs {missing}: python -m pip install 'dipdefense\[ray\]'"):
            run()


def test_a_plan_is_kept_as_plain_values(tmp_path, folder, monkeypatch):
    work_here(monkeypatch)
    purify_shards(str(folder), str(tmp_path / "out"), Purifier(TINY))
    kept = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (kept["images"], kept["shard_size"], kept["source"]) == (6, 256, f"local:{folder}")
    assert FitConfig(**kept["fit"]) == TINY


def test_a_machine_that_sees_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a worker moves to the driver's folder; here, back at the end
    spec = RunSpec(dataset="digits", classifier="digits_cnn", config=RunConfig(n=2, attacks=()), fit=TINY)
    with pytest.raises(RuntimeError, match="classifier, weights and versions must be the same on all machines"):
        _BatchScorer(spec, tmp_path, Plan(1, 2), Storage.at(str(tmp_path)), "cpu", "0123")
    with pytest.raises(ValueError, match=r"filters must be among .*, got 'magic'"):
        RunSpec(dataset="digits", classifier="digits_cnn", config=RunConfig(), filters=("magic",))
