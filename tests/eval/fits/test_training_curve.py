"""The training curve against fits that end where it looks."""

import dataclasses

import pandas as pd
import pytest
import torch

from dipdefense import FitConfig, fit
from eval.fits.training_curve import save_training_curve, training_curve
from eval.metrics import psnr, ssim

QUICK = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 0}, input_channels=8, iterations=25, ema=0.7
)
CLEAN = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0))
NOISY = CLEAN + 0.2 * torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(1))


def test_scores_are_those_of_fits_that_end_there(tmp_path):
    curve = training_curve(CLEAN, NOISY, QUICK, every=10, seed=3)
    rows = curve.set_index(["iteration", "of", "against"])
    assert sorted(set(curve["iteration"])) == [10, 20]
    for iterations in (10, 20):
        for of, ema in (("output", 0.0), ("average", 0.7)):
            config = dataclasses.replace(QUICK, iterations=iterations, ema=ema)
            image = fit(NOISY[None], config, seed=3).reconstruction
            for against, target in (("reference", CLEAN), ("noisy", NOISY)):
                row = rows.loc[iterations, of, against]
                assert row["psnr"] == pytest.approx(psnr(image, target[None]).item(), abs=1e-4)
                assert row["ssim"] == pytest.approx(ssim(image, target[None]).item(), abs=1e-5)
    save_training_curve(tmp_path / "new", curve)
    assert pd.read_csv(tmp_path / "new" / "curve.csv")["psnr"].tolist() == pytest.approx(curve["psnr"].tolist())
    assert (tmp_path / "new" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="every must lie between 1 and the 25 iterations of the fit, got 26"):
        training_curve(CLEAN, NOISY, QUICK, every=26)
    with pytest.raises(ValueError, match="noisy and reference must be of one shape"):
        training_curve(CLEAN, NOISY[:1], QUICK)
    with pytest.raises(ValueError, match="with sides of at least 11"):
        training_curve(CLEAN[:, :10], NOISY[:, :10], QUICK)
    with pytest.raises(ValueError, match=r"reference must be within \[0, 1\]"):
        training_curve(NOISY, NOISY, QUICK)
