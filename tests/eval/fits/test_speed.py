"""The speed benchmark counts what it says; how fast it is, no test says."""

import dataclasses
import logging

import pandas as pd
import pytest
import torch

from dipdefense import FitConfig, fit
from eval.fits import speed
from eval.fits.speed import Point, _flop, _peak_bytes, benchmark_speed, plain_loop, seconds_per_step
from eval.metrics import psnr

POINT = Point(
    name="tiny",
    config=FitConfig(architecture="autoencoder", architecture_options={"channels": [4]}, input_channels=2),
    shape=(1, 8, 8),
    batches=(1, 3),
    iterations=10,
)
ALONE = dataclasses.replace(POINT, batches=(1,))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small matrices, and no process for each measurement of memory: one GiB an image."""
    monkeypatch.setitem(speed.MATMUL_SIDE, "cpu", 256)
    monkeypatch.setattr(speed, "_peak_bytes", lambda images, config: 2**30 * len(images))


def test_one_row_a_precision_and_batch_and_the_flops_by_hand():
    table = benchmark_speed([POINT], repeats=2, compiled=False)
    identity = ["point", "size", "precision", "compiled", "batch", "iterations"]
    rates = ["loop", "compiled_loop", "engine", "ratio", "ratio_compiled"]
    counted = ["gflop", "gflop_engine", "gflops", "matmul_gflops", "share", "peak_gb", "psnr_db"]
    assert table.columns.tolist() == identity + rates + counted
    rows = table[identity].to_numpy().tolist()
    assert rows == [["tiny", "1x8x8", precision, False, B, 10] for precision in ("full", "bfloat16") for B in (1, 3)]
    # 2 FLOP a multiply-add: encoder 3x3 2->4 on 4x4, decoder 3x3 4->4 and output 1x1 4->1 on 8x8
    encoder, decoder, output = 2 * 9 * 2 * 4 * 16, 2 * 9 * 4 * 4 * 64, 2 * 4 * 64
    # backward: weights and inputs, but for the encoder's input, which needs no gradient; upsampling counts nothing
    assert table["gflop"].to_numpy() * 1e9 == pytest.approx([2 * encoder + 3 * decoder + 3 * output] * 4)
    assert table["gflop_engine"].tolist() == table["gflop"].tolist()  # bilinear upsampling saves none
    assert (table[["loop", "engine", "matmul_gflops"]] > 0).all(axis=None)
    assert table["peak_gb"].tolist() == [1, 3, 1, 3]
    assert table["ratio"].tolist() == pytest.approx((table["engine"] / table["loop"]).tolist())
    assert table["share"].tolist() == pytest.approx((table["gflops"] / table["matmul_gflops"]).tolist())
    assert table[["compiled_loop", "ratio_compiled"]].isna().all(axis=None)
    quality = table["psnr_db"].astype(float).fillna(torch.inf)  # empty where they are equal
    full, low = (quality[table["precision"] == name] for name in ("full", "bfloat16"))
    assert full.min() > 60
    assert 15 < low.min() <= low.max() < full.min()


def test_rows_that_a_folder_holds_are_not_measured_again(tmp_path, monkeypatch):
    settings = {"repeats": 1, "compiled": False, "out": tmp_path / "run", "precisions": ["full"]}
    measured, timed = [], speed.seconds_per_step

    def kill_at_the_third(calls, *others):
        if "engine" in calls:
            measured.append(len(calls["engine"].args[0]))
            if len(measured) == 3:
                raise LookupError("killed")
        return timed(calls, *others)

    monkeypatch.setattr(speed, "seconds_per_step", kill_at_the_third)
    seen = []
    with pytest.raises(LookupError, match="killed"):
        benchmark_speed([POINT], batches=[1, 2, 3], progress=lambda *done: seen.append(done), **settings)
    assert seen == [(1, 3), (2, 3)]
    before = pd.read_csv(tmp_path / "run" / "speed.csv")
    assert before["batch"].tolist() == [1, 2]
    assert (tmp_path / "run" / "unfinished").exists()
    table = benchmark_speed([POINT], batches=[1, 2, 3], **settings)
    assert measured == [1, 2, 3, 3]
    assert not (tmp_path / "run" / "unfinished").exists()
    assert table["batch"].tolist() == [1, 2, 3]
    assert table["engine"].tolist()[:2] == pytest.approx(before["engine"].tolist())
    another = dataclasses.replace(POINT, name="other")
    assert benchmark_speed([another], batches=[1], **settings)["point"].tolist() == ["other"]
    assert pd.read_csv(tmp_path / "run" / "speed.csv")["point"].tolist() == ["tiny"] * 3 + ["other"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("torch.get_num_threads", lambda: 99, "threads 1 where this one has 99"),
        ("eval.fits.speed._device_name", lambda device: "another", "device cpu .* where this one has another"),
        ("eval.records.source_hash", lambda *packages: "changed", "made before the code changed"),
    ],
)
def test_a_folder_of_other_threads_another_device_or_code_is_refused(
    tmp_path, monkeypatch, one_thread, name, value, said
):
    settings = {"repeats": 1, "compiled": False, "out": tmp_path, "precisions": ["full"]}
    benchmark_speed([ALONE], **settings)
    monkeypatch.setattr(name, value)
    with pytest.raises(ValueError, match=f"holds a run .*{said}.*name another folder"):
        benchmark_speed([ALONE], **settings)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"points": ["small"]}, "points must be among small grey, .* on cpu, got 'small'"),
        ({"batches": [0]}, "batches must be an integer of at least 1, got 0"),
        ({"precisions": ["tf32"]}, "precisions must be among full, bfloat16 on cpu, got 'tf32'"),
    ],
)
def test_unknown_rows_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        benchmark_speed(**{"points": [POINT]} | chosen)


def test_the_flops_that_nearest_upsampling_saves_by_hand():
    """Encoder 3x3 2->4 to 16x16, decoder 3x3 4->4 and output 1x1 4->1 on 32x32; 16 of 36 products a small pixel."""
    options = {"channels": [4], "upsampling": "nearest"}
    config = FitConfig(architecture="autoencoder", architecture_options=options, input_channels=2)
    nearest = Point(name="nearest", config=config, shape=(1, 32, 32), batches=(2,), iterations=2)
    encoder, decoder, output = 2 * 9 * 2 * 4 * 256, 2 * 9 * 4 * 4 * 1024, 2 * 4 * 1024
    assert _flop(nearest, stacked=False) == 2 * encoder + 3 * decoder + 3 * output
    phases = 2 * 4 * 4 * 16 * 17 * 17  # of what lies between the small rows and columns, borders too
    assert _flop(nearest, stacked=True) == 2 * encoder + 3 * phases + 3 * output


@pytest.mark.slow
def test_without_a_compiler_there_is_a_warning_and_no_rate(caplog):
    torch.compiler.reset()  # forgets what an earlier test compiled
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), caplog.at_level(logging.WARNING):
        table = benchmark_speed([ALONE], repeats=2)
    assert table["compiled_loop"].isna().all()
    assert table["ratio_compiled"].isna().all()
    (record,) = (record for record in caplog.records if record.name == "eval.fits.speed")
    assert "no compiled loop for tiny: " in record.message
    assert "no-such-compiler" in record.message


@pytest.mark.slow
def test_the_compiled_loop_is_timed_and_returns_the_same():
    table = benchmark_speed([ALONE], repeats=2)
    assert (table["compiled_loop"] > 0).all()
    assert table["ratio_compiled"].tolist() == pytest.approx((table["engine"] / table["compiled_loop"]).tolist())
    image = picture(ALONE)
    eager, compiled = (plain_loop(image, ALONE.config, compiled=compiled)(10) for compiled in (False, True))
    assert psnr(compiled, eager) > 100


def picture(point):
    """(C, H, W) in float64: rounding stays small, however Adam magnifies it."""
    return torch.rand(point.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_plain_loop_returns_what_the_engine_fits():
    image, config = picture(POINT), dataclasses.replace(POINT.config, iterations=20)
    loop = plain_loop(image, config)
    assert psnr(loop(20), fit(image[None], config).reconstruction) > 100
    assert torch.equal(loop(3), plain_loop(image, config)(3))  # each call begins anew


@pytest.mark.slow
def test_memory_grows_with_the_batch_whatever_the_parent_took():
    parent = torch.ones(2**28)  # 1 GiB, which the peak of this process keeps
    del parent
    config = dataclasses.replace(POINT.config, architecture_options={"channels": [16]})
    one, many = (_peak_bytes(torch.zeros(B, 1, 64, 64), config) for B in (1, 64))
    assert 0 < one < many < 2**30


def test_a_device_that_is_neither_cpu_nor_cuda_is_refused():
    with pytest.raises(ValueError, match="device must be cpu or cuda, got meta"):
        benchmark_speed([POINT], device="meta")


def clock(monkeypatch, durations):
    """Let the n-th call of `step` take the n-th duration."""
    now, left = [0.0], iter(durations)
    monkeypatch.setattr("eval.fits.speed.time.perf_counter", lambda: now[0])

    def step(count):
        now[0] += next(left)

    return step


def test_a_disturbed_repeat_does_not_make_a_rate_look_high(monkeypatch):
    """One second fixed, 0.1 s a step; the short run of the second repeat is disturbed."""
    step = clock(monkeypatch, [2.0, 3.0, 2.9, 3.0, 2.0, 3.5])
    seconds = seconds_per_step({None: step}, 10, 3, torch.device("cpu"))
    assert seconds[None] == pytest.approx(0.1)


def test_a_call_that_was_disturbed_is_timed_again(monkeypatch):
    """The only short run is disturbed; the next two are not, and no third is made."""
    step = clock(monkeypatch, [4.0, 3.0, 2.0, 3.0])
    assert seconds_per_step({None: step}, 10, 1, torch.device("cpu")) == {None: pytest.approx(0.1)}


def test_a_restless_machine_is_no_rate(monkeypatch):
    step = clock(monkeypatch, [2.0, 2.0] * speed.PATIENCE)
    with pytest.raises(RuntimeError, match="twice the steps must take longer"):
        seconds_per_step({None: step}, 10, 1, torch.device("cpu"))
