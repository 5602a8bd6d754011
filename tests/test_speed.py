"""The speed benchmark counts what it says; how fast it is, no test says."""

import pytest

from dipdefense import FitConfig
from eval.speed import Point, benchmark_speed

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
    assert (table["ratio"] == table["engine"] / table["loop"]).all()
    assert table["share"].to_numpy() == pytest.approx((table["gflops"] / table["matmul_gflops"]).to_numpy())
