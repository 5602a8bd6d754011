"""The noise-impedance experiment."""

import dataclasses

import pandas as pd
import pytest
import torch

from dipdefense import FitConfig, fit
from eval.fits.impedance import TARGETS, arrivals, impedance_targets, noise_impedance, save_impedance

QUICK = FitConfig(
    architecture_options={"channels": [16, 16], "skip_channels": 0, "upsampling": "nearest"},
    input_channels=8,
    iterations=60,
)


def image() -> torch.Tensor:
    coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (24, 24), mode="bilinear")[0]


def test_the_targets():
    plain, noisy, shuffled, noise = impedance_targets(image(), 0.1, 0)
    assert torch.equal(plain, image())
    assert (noisy - plain).std().item() == pytest.approx(0.1, rel=0.1)
    colours = {tuple(pixel) for pixel in plain.flatten(1).T.tolist()}
    assert {tuple(pixel) for pixel in shuffled.flatten(1).T.tolist()} == colours  # the same pixels, elsewhere
    assert not torch.equal(shuffled, plain)
    assert noise.mean().item() == pytest.approx(0.5, abs=0.05)
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.1)
    targets = impedance_targets(image(), 0.5, 0)
    assert 0 <= targets.min() <= targets.max() <= 1
    assert not torch.equal(targets[1], impedance_targets(image(), 0.5, 1)[1])


def test_the_curves_are_those_of_one_fit_and_nature_comes_first(tmp_path):
    shares = []
    curves = noise_impedance(image(), QUICK, seed=2, progress=lambda done, total: shares.append((done, total)))
    losses = torch.zeros(4, 60)

    def watch(state):
        losses[state.index, state.iteration - 1] = state.loss

    fit(impedance_targets(image(), 25 / 255, 2), QUICK, seed=2, callback=watch)
    assert curves["target"].unique().tolist() == list(TARGETS)
    assert curves["loss"].tolist() == losses.flatten().tolist()
    assert shares[-1] == (1.0, 1)
    last = arrivals(curves).set_index("target")["last"]
    assert last["image"] > last["image + noise"] > last["shuffled pixels"] > last["noise"]
    save_impedance(tmp_path / "new", curves)
    assert pd.read_csv(tmp_path / "new" / "impedance.csv")["loss"].tolist() == pytest.approx(curves["loss"].tolist())
    assert (tmp_path / "new" / "impedance.png").read_bytes()[:4] == b"\x89PNG"


def test_arrivals_by_hand():
    losses = {"image": [1.0, 0.2, 0.1, 0.01], "noise": [1.0, 0.9, 0.8, 1.0]}
    rows = [
        {"target": target, "iteration": i, "loss": loss}
        for target, row in losses.items()
        for i, loss in enumerate(row, 1)
    ]
    assert arrivals(pd.DataFrame(rows)).values.tolist() == [["image", 0.0, 20.0, 3], ["noise", 0.0, 0.0, 0]]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="image must have 3 dimensions"):
        noise_impedance(image()[None], QUICK)
    with pytest.raises(ValueError, match="config must stop by the rule fixed, got 'emv'"):
        noise_impedance(image(), dataclasses.replace(QUICK, stopping="emv"))
    with pytest.raises(ValueError, match="level must be positive, got -1"):
        noise_impedance(image(), QUICK, sigma=-1)


@pytest.mark.data
@pytest.mark.slow
def test_a_photograph_before_noise(data):
    from eval.photographs import read_photo
    from eval.restoration.denoising import SMALL

    photo = read_photo(data / "sets" / "set5" / "baby.png", 128, 64)
    tenth = arrivals(noise_impedance(photo, dataclasses.replace(SMALL, iterations=200))).set_index("target")["tenth"]
    assert 0 < tenth["image"] < 100
    assert tenth["noise"] == 0
