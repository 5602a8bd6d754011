"""Accuracy along a fit against the fit itself, stopped there."""

import dataclasses

import pytest
import torch

from attacks import pgd
from dipdefense import FitConfig, fit
from eval import RunConfig
from eval.classifiers import load_classifier
from eval.datasets import load_dataset
from eval.fits.accuracy_along_fit import accuracy_along_fit
from eval.metrics import psnr

QUICK = FitConfig(
    architecture_options={"channels": [8, 8], "skip_channels": 0},
    input_channels=8,
    iterations=40,
    ema=0.5,
    memory_gb=0.004,  # several chunks
)
RUN = RunConfig(attacks=("pgd",), eps=0.2, steps=3, n=12)


def test_every_row_is_what_a_fit_of_that_length_gives():
    digits, classifier = load_dataset("digits_train"), load_classifier("digits_cnn")
    seen = []
    table = accuracy_along_fit(classifier, digits, RUN, QUICK, every=20, progress=lambda *n: seen.append(n))
    assert table[["attack", "iteration"]].values.tolist() == [["clean", 20], ["clean", 40], ["pgd", 20], ["pgd", 40]]
    assert seen == sorted(seen)
    assert seen[-1] == (2, 2)  # fits: clean and attacked
    positions = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[:12]
    images, labels = digits.batch(positions.tolist()), digits.labels[positions]
    attacked = pgd(classifier, images, labels, eps=0.2, steps=3)
    for (_, iteration), batch in zip([("clean", 20), ("pgd", 40)], [images, attacked], strict=True):
        result = fit(batch, dataclasses.replace(QUICK, iterations=iteration)).reconstruction
        accuracy = (classifier(result).argmax(1) == labels).float().mean().item()
        row = table[(table["iteration"] == iteration) & (table["attack"] == ("clean" if batch is images else "pgd"))]
        assert row["psnr"].item() == pytest.approx(psnr(result, images).mean().item(), abs=0.2)
        assert row["accuracy"].item() == pytest.approx(accuracy, abs=0.1)  # float32: one image may differ


@pytest.mark.parametrize(
    ("run", "config", "every", "message"),
    [
        (RUN, dataclasses.replace(QUICK, stopping="emv"), 20, "fit_config must stop by the rule fixed, got 'emv'"),
        (RUN, QUICK, 0, "every must lie between 1 and the 40 iterations of the fit, got 0"),
        (RUN, QUICK, 41, "every must lie between 1 and the 40 iterations"),
        (dataclasses.replace(RUN, crafted_on="both"), QUICK, 20, "crafted_on must be bare"),
        (dataclasses.replace(RUN, n=450), QUICK, 20, "n must be at most the 449 images"),
    ],
)
def test_bad_numbers_are_refused(run, config, every, message):
    with pytest.raises(ValueError, match=message):
        accuracy_along_fit(load_classifier("digits_cnn"), load_dataset("digits"), run, config, every=every)
