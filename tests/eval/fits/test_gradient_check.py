"""How far gradients hold: the exact one at small steps, none at random, and a cost that grows with the root."""

import pytest
import torch
from torch import nn

from dipdefense import DefendedClassifier, FitConfig, Purifier, Unrolled
from dipdefense.defence.gradients import GRADIENTS
from eval.fits.gradient_check import compare_gradients, cost_of_unrolling

TINY = FitConfig(
    architecture_options={"channels": [4, 8], "skip_channels": 2, "sharpness": 5.0}, input_channels=4, iterations=8
)


def defended(seed: int | None = 0) -> DefendedClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).double()
    return DefendedClassifier(net, Purifier(TINY, seed=seed))


def test_the_exact_gradient_keeps_its_promise_at_small_steps():
    images = 0.2 + 0.6 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = {"unrolled": Unrolled(), "straight_through": GRADIENTS["straight_through"]}
    table = compare_gradients(defended(), images, torch.arange(4), gradients=gradients, scales=(1e-8, 1e-2)).set_index(
        ["gradient", "step"]
    )
    assert table.loc[("unrolled", 1e-8), "kept"] == pytest.approx(1, abs=1e-3)
    assert table.loc[("unrolled", 1e-8), "rises"] == 1
    assert abs(table.loc[("straight_through", 1e-8), "kept"] - 1) > 0.01
    assert set(table["n"]) == {4}


def test_differences_end_at_the_range_of_the_images():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).round()
    gradients = {"unrolled": Unrolled()}
    table = compare_gradients(defended(), images, torch.arange(3), gradients=gradients, scales=(1e-8, 8 / 255))
    kept = table.set_index(["gradient", "step"])["kept"]
    assert kept[("unrolled", 1e-8)] == pytest.approx(1, abs=1e-2)


def test_differences_of_two_draws_are_refused():
    with pytest.raises(ValueError, match="defended must have a seed"):
        compare_gradients(defended(None), torch.rand(1, 3, 8, 8).double(), torch.zeros(1, dtype=torch.long))


@pytest.mark.slow
def test_memory_grows_far_slower_than_the_steps():
    config = FitConfig(architecture_options={"channels": [8, 16], "skip_channels": 4}, iterations=4)
    told: list[tuple[int, int]] = []
    measured = cost_of_unrolling(config, (3, 32, 32), (16, 256), progress=lambda *shares: told.append(shares))
    assert told == [(16, 272), (272, 272)]
    cost = measured.set_index("steps")
    assert cost.loc[256, "mib"] < 8 * cost.loc[16, "mib"]  # 4 by the root, 16 if it grew with the steps
