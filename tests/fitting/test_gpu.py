"""The CUDA path against the CPU's; skipped, visibly, where there is no device."""

import dataclasses
import math

import pytest
import torch

from dipdefense import STOPPING_RULES, FitConfig, defence_for, defend, fit
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

pytestmark = pytest.mark.gpu
TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=60)


def test_a_fit_agrees_with_the_cpu():
    """CUDA draws its own jitter, so compare without; float64 keeps rounding out of it."""
    observed = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = dataclasses.replace(TINY, jitter=0.0)
    there, here = fit(observed.cuda(), config), fit(observed, config)
    error = (there.reconstruction.cpu() - here.reconstruction).square().mean().item()
    assert -10 * math.log10(max(error, 1e-30)) > 60
    assert there.reconstruction.is_cuda


def test_the_default_fit_repeats_to_the_bit():
    observed = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cuda()
    config = dataclasses.replace(defence_for((3, 32, 32), decision="last").fit, iterations=30)
    assert torch.equal(fit(observed, config).reconstruction, fit(observed, config).reconstruction)


def test_images_leave_and_never_meet():
    observed = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cuda()
    config = dataclasses.replace(TINY, iterations=300, stopping="emv", stopping_options={"patience": 40})
    together = fit(observed, config)
    alone = fit(observed[:1], config)
    assert together.stopped.any()
    error = (together.reconstruction[0] - alone.reconstruction[0]).square().mean().item()
    assert -10 * math.log10(max(error, 1e-30)) > 35


@pytest.mark.parametrize("stopping", STOPPING_RULES)
def test_every_stopping_rule_draws_and_chooses_as_on_the_cpu(stopping):
    options = {"sigma": 0.2} if stopping in ("discrepancy", "sure") else {}
    options |= {"window": 10} if stopping == "wmv" else {}
    observed = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = dataclasses.replace(TINY, jitter=0.0, stopping=stopping, stopping_options=options)
    assert fit(observed.cuda(), config).chosen.tolist() == fit(observed, config).chosen.tolist()


def test_a_budget_that_does_not_fit_is_halved():
    free, _ = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        observed = torch.rand(4096, 3, 32, 32, device="cuda")
        with pytest.warns(UserWarning, match="out of memory: going on with chunks of"):
            fit(observed, dataclasses.replace(TINY, iterations=2, memory_gb=free / 2**30))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("numbers", [{"precision": "tf32"}, {"precision": "bfloat16"}, {"compile": True}])
def test_every_switch_of_speed_fits_as_well(numbers):
    """Smooth images, without jitter, which CUDA draws for itself."""
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    observed = torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear").cuda()
    config = dataclasses.replace(TINY, iterations=400, jitter=0.0)
    matmul, conv = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    error = (fit(observed, dataclasses.replace(config, **numbers)).reconstruction - observed).square().mean().item()
    assert -10 * math.log10(error) > 25
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == (matmul, conv)


def test_the_defence_runs_where_its_images_are():
    digits = load_dataset("digits")
    defended = defend(load_classifier("digits_cnn").cuda())
    images = digits.batch(range(20)).cuda()
    correct = (defended(images).argmax(1).cpu() == digits.labels[:20]).float().mean()
    assert correct >= 0.9
