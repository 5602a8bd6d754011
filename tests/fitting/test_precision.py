"""The two switches of speed: the precision of the network, and compiling it."""

import dataclasses

import pytest
import torch

from dipdefense import FitConfig, fit
from dipdefense.fitting.config import PRECISIONS

TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=30)
NEAREST = dataclasses.replace(TINY, architecture_options={**TINY.architecture_options, "upsampling": "nearest"})
BOTH = pytest.mark.parametrize("tiny", [TINY, NEAREST], ids=["bilinear", "nearest"])


def images(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Smooth: a few waves each, on as many pixels as folded upsampling asks for."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear").to(dtype)


def decibels(a: torch.Tensor, b: torch.Tensor) -> float:
    return (-10 * (a - b).square().mean().clamp_min(1e-30).log10()).item()


@pytest.mark.slow
@BOTH
def test_bfloat16_fits_as_well_with_weights_of_full_precision(tiny):
    config = dataclasses.replace(tiny, iterations=400)
    low, full = (fit(images(4), dataclasses.replace(config, precision=p)).reconstruction for p in ("bfloat16", "full"))
    assert low.dtype == torch.float32
    assert not torch.equal(low, full)
    assert decibels(low, images(4)) > 25
    assert decibels(low, images(4)) > decibels(full, images(4)) - 2


@BOTH
def test_bfloat16_does_not_depend_on_the_batch(tiny):
    config = dataclasses.replace(tiny, precision="bfloat16")
    observed = images(6)
    others = torch.cat([1 - observed[:5], observed[5:]])
    assert torch.equal(fit(observed, config).reconstruction[5], fit(others, config).reconstruction[5])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, on compiling
@pytest.mark.parametrize(("precision", "dtype", "least"), [("full", torch.float64, 150), ("full", torch.float32, 40)])
@BOTH
def test_a_compiled_fit_equals_the_eager_one(tiny, precision, dtype, least):
    config = dataclasses.replace(tiny, precision=precision)
    observed = images(4, dtype)
    compiled = fit(observed, dataclasses.replace(config, compile=True)).reconstruction
    assert decibels(compiled, fit(observed, config).reconstruction) > least
    others = torch.cat([1 - observed[:3], observed[3:]])
    again = fit(others, dataclasses.replace(config, compile=True)).reconstruction
    assert torch.equal(again[3], compiled[3])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiling_bears_several_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compiled = fit(images(4, torch.float64), dataclasses.replace(TINY, compile=True)).reconstruction
        assert decibels(compiled, fit(images(4, torch.float64), TINY).reconstruction) > 150
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("stopping", ["emv", "validation"])
def test_compiled_images_that_stop_wait_for_the_others(stopping):
    config = dataclasses.replace(TINY, iterations=300, stopping=stopping, stopping_options={"patience": 40})
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    observed = torch.cat([images(1), noise]).double()
    sizes = set()
    result = fit(observed, dataclasses.replace(config, compile=True), callback=lambda p: sizes.add(len(p.index)))
    assert sizes == {2}
    assert result.chosen.tolist() == fit(observed, config).chosen.tolist()


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=f"precision must be one of {', '.join(PRECISIONS)}, got 'float16'"):
        FitConfig(precision="float16")
    with pytest.raises(ValueError, match="compile must be True or False, got 1"):
        FitConfig(compile=1)  # type: ignore[arg-type]


def test_a_precision_that_cannot_be_had_is_refused():
    with pytest.raises(ValueError, match="precision tf32 must run on a CUDA device, observed is on cpu: use full"):
        fit(images(1), dataclasses.replace(TINY, precision="tf32"))
    with pytest.raises(ValueError, match=r"observed must be float32 for the precision bfloat16, got torch\.float64"):
        fit(images(1, torch.float64), dataclasses.replace(TINY, precision="bfloat16"))
