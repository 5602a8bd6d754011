"""The CUDA path against the CPU's; skipped, visibly, where there is no device."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dipdefense import STOPPING_RULES, FitConfig, defence_for, defend, fit
from dipdefense.fitting.workers import memory_budget
from eval.classifiers import load_classifier
from eval.datasets import load_dataset

pytestmark = pytest.mark.gpu
COMPILING = (
    pytest.mark.filterwarnings(  # what torch warns of on compiling; the second until 2.13, for the precision "full"
        "ignore:The .grad attribute of a Tensor that is not a leaf", "ignore:TensorFloat32 tensor cores"
    )
)
TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=60)


def test_a_fit_agrees_with_the_cpu():
    """CUDA draws its own jitter, so compare without; float64 keeps rounding out of it."""
    observed = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = dataclasses.replace(TINY, jitter=0.0)
    there, here = fit(observed.cuda(), config), fit(observed, config)
    error = (there.reconstruction.cpu() - here.reconstruction).square().mean().item()
    assert -10 * math.log10(max(error, 1e-30)) > 60
    assert there.reconstruction.is_cuda


def test_the_default_fit_repeats_to_the_bit(monkeypatch):
    """If cuDNN may not choose algorithms that add in another order at every call; torch's own kernels are not asked."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    observed = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cuda()
    config = dataclasses.replace(defence_for((3, 32, 32), decision="last").fit, iterations=30)
    assert torch.equal(fit(observed, config).reconstruction, fit(observed, config).reconstruction)


def test_images_leave_and_never_meet():
    """In float64: in float32 a batch of another size rounds otherwise, and Adam magnifies that."""
    observed = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cuda()
    config = dataclasses.replace(TINY, iterations=300, stopping="emv", stopping_options={"patience": 40})
    together = fit(observed, config)
    alone = fit(observed[:1], config)
    assert together.stopped.any()
    assert together.chosen[0] == alone.chosen[0]
    error = (together.reconstruction[0] - alone.reconstruction[0]).square().mean().item()
    assert -10 * math.log10(max(error, 1e-30)) > 60


@pytest.mark.parametrize("stopping", STOPPING_RULES)
def test_every_stopping_rule_draws_and_chooses_as_on_the_cpu(stopping):
    options = {"sigma": 0.2} if stopping in ("discrepancy", "sure") else {}
    options |= {"window": 10} if stopping == "wmv" else {}
    observed = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = dataclasses.replace(TINY, jitter=0.0, stopping=stopping, stopping_options=options)
    assert fit(observed.cuda(), config).chosen.tolist() == fit(observed, config).chosen.tolist()


def test_a_budget_that_does_not_fit_is_halved():
    """4096 images need about 3 GiB, and torch may take 1 more than it has, whatever the device holds."""
    torch.cuda.empty_cache()
    most = torch.cuda.memory_reserved() + 2**30
    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.mem_get_info()[1])
    try:
        observed = torch.rand(4096, 3, 32, 32, device="cuda")
        with pytest.warns(UserWarning, match="out of memory: going on with chunks of"):
            result = fit(observed, dataclasses.replace(TINY, iterations=2, memory_gb=1024.0))
        assert result.iterations.tolist() == [2] * 4096
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_usual_budget_is_a_part_of_the_free_memory_and_of_what_torch_keeps():
    """Half of the memory is taken and given back to torch, which keeps it: it is free for the next fit."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before, (free, _) = memory_budget(None, device), torch.cuda.mem_get_info()
    assert 0.5 * free < before * 2**30 < 0.7 * free
    taken = torch.empty(free // 2, dtype=torch.uint8, device=device)
    del taken
    assert torch.cuda.mem_get_info()[0] < 0.6 * free
    assert memory_budget(None, device) == pytest.approx(before, rel=0.1)
    torch.cuda.empty_cache()


@COMPILING
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


@COMPILING
def test_a_compiled_fit_of_several_chunks_compiles_once_and_equals_the_eager_one():
    observed = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cuda()
    config = dataclasses.replace(TINY, iterations=20, memory_gb=0.002)
    sizes = set()
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = fit(observed, dataclasses.replace(config, compile=True), callback=lambda p: sizes.add(len(p.index)))
    assert len(sizes) == 1
    assert max(sizes) < 7
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    error = (compiled.reconstruction - fit(observed, config).reconstruction).square().mean().item()
    assert -10 * math.log10(max(error, 1e-30)) > 60


@COMPILING
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="CUDA graphs need the main thread in older torch (pytorch/pytorch#123177)",
)
def test_a_compiled_fit_runs_in_a_thread():
    observed, config = torch.rand(2, 3, 16, 16, device="cuda"), dataclasses.replace(TINY, iterations=20, compile=True)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fit, observed, config).result().reconstruction.isfinite().all()


def test_the_defence_runs_where_its_images_are():
    digits = load_dataset("digits")
    defended = defend(load_classifier("digits_cnn").cuda())
    images = digits.batch(range(20)).cuda()
    correct = (defended(images).argmax(1).cpu() == digits.labels[:20]).float().mean()
    assert correct >= 0.9
