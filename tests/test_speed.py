"""The speed benchmark counts what it says; how fast it is, no test says."""

import pytest
import torch

from dipdefense import FitConfig
from eval.speed import Point, benchmark_speed, seconds_per_step

POINT = Point(
    name="tiny",
    config=FitConfig(architecture="autoencoder", architecture_options={"channels": [4]}, input_channels=2),
    shape=(1, 8, 8),
    batches=(1, 3),
    iterations=3,
)


def test_one_row_a_batch_and_the_flops_by_hand():
    table = benchmark_speed([POINT], repeats=1)
    assert table["batch"].tolist() == [1, 3]
    # 2 FLOP a multiply-add: encoder 3x3 2->4 on 4x4, decoder 3x3 4->4 and output 1x1 4->1 on 8x8
    encoder, decoder, output = 2 * 9 * 2 * 4 * 16, 2 * 9 * 4 * 4 * 64, 2 * 4 * 64
    # backward: weights and inputs, but for the encoder's input, which needs no gradient
    assert table["gflop"][0] * 1e9 == pytest.approx(2 * encoder + 3 * decoder + 3 * output)
    assert (table[["loop", "engine", "matmul_gflops"]] > 0).all(axis=None)


def clock(monkeypatch, durations):
    """Let the n-th call of `step` take the n-th duration."""
    now, left = [0.0], iter(durations)
    monkeypatch.setattr("eval.speed.time.perf_counter", lambda: now[0])

    def step(count):
        now[0] += next(left)

    return step


def test_a_disturbed_repeat_does_not_make_a_rate_look_high(monkeypatch):
    """One second fixed, 0.1 s a step; the short run of the second repeat is disturbed."""
    step = clock(monkeypatch, [2.0, 3.0, 2.9, 3.0, 2.0, 3.5])
    seconds = seconds_per_step({None: step}, 10, 3, torch.device("cpu"))
    assert seconds[None] == pytest.approx(0.1)


def test_a_restless_machine_is_no_rate(monkeypatch):
    with pytest.raises(RuntimeError, match="twice the steps must take longer"):
        seconds_per_step({None: clock(monkeypatch, [2.0, 2.0])}, 10, 1, torch.device("cpu"))
