"""The gradient of a fit: finite differences, plain autograd, and what may not change it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dipdefense import ARCHITECTURES, Detector, DetectorGated, FitConfig, MeanSoftmax, Purifier, Unrolled, defend, fit
from dipdefense.defence.gradients import Fitted
from dipdefense.fitting.problem import build_problem
from dipdefense.fitting.unroll import pull_back, unroll_bytes

OPTIONS = {
    "skip": {"channels": [4, 8], "skip_channels": 2},
    "unet": {"channels": [4, 8]},
    "autoencoder": {"channels": [4, 8]},
}
TINY = FitConfig(architecture_options=OPTIONS["skip"], input_channels=4, iterations=24, ema=0.5)


def images(n: int = 2, side: int = 8, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.1 + 0.8 * torch.rand(n, channels, side, side, generator=generator, dtype=torch.float64)


def cotangent(n: int = 2, side: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def averages(x: torch.Tensor, config: FitConfig, seed: int) -> dict[int, torch.Tensor]:
    seen = {}
    fit(x, config, seed=seed, callback=lambda state: seen.update({state.iteration: state.average.clone()}))
    return seen


def central_difference(function, x: torch.Tensor, direction: torch.Tensor, step: float) -> torch.Tensor:
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize(
    "config",
    [
        *(replace(TINY, architecture=name, architecture_options=OPTIONS[name]) for name in ARCHITECTURES),
        replace(TINY, loss="cosine", ema=0.0),
        replace(TINY, input="meshgrid", input_channels=2, jitter=0.0),
        replace(TINY, architecture_options={**OPTIONS["skip"], "sharpness": 5.0, "upsampling": "nearest"}),
        replace(TINY, stopping="sure", stopping_options={"sigma": 0.1}),
        replace(TINY, stopping="validation"),
    ],
    ids=lambda config: f"{config.architecture} {config.loss} {config.stopping}",
)
def test_gradient_equals_central_finite_differences(config):
    x, w = images(), cotangent()
    direction = cotangent().roll(1, 0).sign()
    gradient = pull_back(x, {11: w, 24: -2 * w}, config, seed=1)

    def scalar(x):
        seen = averages(x, config, seed=1)
        return (w * (seen[11] - 2 * seen[24])).flatten(1).sum(1)

    exact = (gradient * direction).flatten(1).sum(1)
    # the fit jumps at kinks, so one of two steps must lie within a smooth piece; a wrong gradient agrees at none
    off = torch.stack([(central_difference(scalar, x, direction, h) / exact - 1).abs() for h in (1e-8, 1e-9)])
    assert (off.min(0).values <= 1e-4).all()


@pytest.mark.parametrize("last", [None, 1, 2])
def test_three_steps_equal_plain_autograd(last):
    config = replace(TINY, iterations=3, ema=0.25)
    x, w = images(1), cotangent(1)
    problem = build_problem(x, config, 4, None, None, None)
    generator = torch.Generator().manual_seed(problem.jitter_seed)
    y = x.clone().requires_grad_()
    theta = {name: p.clone().requires_grad_() for name, p in problem.theta.items()}
    m = {name: torch.zeros_like(p) for name, p in theta.items()}
    v = {name: torch.zeros_like(p) for name, p in theta.items()}
    average = torch.zeros_like(x)
    for t in (1, 2, 3):
        fitted = y if last is None or t >= 3 - last else y.detach()
        z = problem.z + config.jitter * torch.randn(problem.z.shape[1:], generator=generator, dtype=x.dtype)
        output = torch.func.functional_call(problem.net, theta, (z,))[problem.crop]
        gradients = torch.autograd.grad(F.mse_loss(output, fitted), list(theta.values()), create_graph=True)
        average = output.lerp(average, 0.25 if t > 1 else 0.0)
        if fitted is not y:
            average, gradients = average.detach(), [g.detach() for g in gradients]
        for (name, p), g in zip(list(theta.items()), gradients, strict=True):
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
            root = (v[name] / (1 - 0.999**t) + 1e-30).sqrt()
            theta[name] = p - config.lr * (m[name] / (1 - 0.9**t)) / (root + 1e-8)
            if fitted is not y:
                theta[name] = theta[name].detach().requires_grad_()
    (expected,) = torch.autograd.grad((w * average).sum(), y)
    torch.testing.assert_close(
        pull_back(x, {3: w}, config, seed=4, last=last), expected, rtol=1e-6, atol=1e-9 * expected.abs().max()
    )


def test_truncation_through_all_steps_is_the_whole():
    x, w = images(), cotangent()
    whole = pull_back(x, {24: w}, TINY, seed=0)
    torch.testing.assert_close(pull_back(x, {24: w}, TINY, seed=0, last=24), whole, rtol=1e-6, atol=1e-9)
    part = pull_back(x, {24: w}, TINY, seed=0, last=6)
    assert not torch.allclose(part, whole, rtol=0.1)


def test_truncation_counts_from_each_frame():
    x, w = images(), torch.stack([cotangent(), -2 * cotangent(), 0 * cotangent()])
    fitted = Fitted(x, TINY, 0, torch.tensor([[6, 6], [12, 12], [24, 24]]))
    each = [pull_back(x, {i: c}, TINY, seed=0, last=3) for i, c in ((6, w[0]), (12, w[1]))]
    torch.testing.assert_close(Unrolled(last=3)(fitted, w), sum(each))
    torch.testing.assert_close(Unrolled()(fitted, w), pull_back(x, {6: w[0], 12: w[1]}, TINY, seed=0))
    assert not Unrolled()(fitted, 0 * w).any()


def test_image_does_not_see_its_neighbours():
    x, w = images(3), cotangent(3)
    together = pull_back(x, {12: w}, replace(TINY, iterations=12), seed=0)
    for i in range(3):
        alone = pull_back(x[i : i + 1], {12: w[i : i + 1]}, replace(TINY, iterations=12), seed=0)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-6 * float(alone.abs().max()))


def test_roll_backs_are_followed():
    config = replace(TINY, lr=0.05, rollback_db=0.02, jitter=0.3, iterations=40, ema=0.0)
    x, w = images(), cotangent()
    insane = []
    fit(
        x, config, seed=0, callback=lambda state: insane.append(state.iteration % 10 == 0 and bool((~state.sane).any()))
    )
    assert any(insane), "nothing rolled back: the test shows nothing"
    direction = cotangent().sign()
    exact = (pull_back(x, {40: w}, config, seed=0) * direction).flatten(1).sum(1)

    def scalar(x):
        return (w * fit(x, config, seed=0).reconstruction).flatten(1).sum(1)

    off = torch.stack([(central_difference(scalar, x, direction, h) / exact - 1).abs() for h in (1e-8, 1e-9, 1e-10)])
    assert (off.min(0).values <= 1e-3).all()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(4, 3 * 8 * 8, generator=generator, dtype=torch.float64) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize(
    "decision",
    [
        "last",
        MeanSoftmax((8, 16), restarts=2, views=("identity", "mirror")),
        DetectorGated((8, 16), threshold=0.5, detector=Detector(20, bias=0.1, doubt=0.6, left=1.2, drawn=-1.0)),
    ],
    ids=["last", "mean_softmax", "detector_gated"],
)
def test_defended_gradient_is_that_of_logits_and_scores(decision):
    defended = defend(Net(), TINY, gradient="unrolled", decision=decision)
    x = images().requires_grad_()
    judgement = defended.judge(x)
    (gradient,) = torch.autograd.grad((judgement.logits[:, 0] + judgement.scores).sum(), x)
    direction = cotangent().sign()

    def scalar(x):
        with torch.no_grad():
            judgement = defended.judge(x)
        return judgement.logits[:, 0] + judgement.scores

    exact = (gradient * direction).flatten(1).sum(1)
    off = torch.stack(
        [(central_difference(scalar, x.detach(), direction, h) / exact - 1).abs() for h in (1e-7, 1e-8, 1e-9)]
    )
    assert (off.min(0).values <= 1e-4).all()


def test_chosen_iterate_is_a_constant_of_the_backward_pass():
    config = replace(TINY, iterations=60, stopping="wmv", stopping_options={"window": 8, "patience": 10})
    x, w = images(), cotangent()
    chosen = fit(x, config, seed=0).chosen.tolist()
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((w * Purifier(config, gradient="unrolled")(y)).sum(), y)
    for i, iteration in enumerate(chosen):
        expected = pull_back(x[i : i + 1], {iteration: w[i : i + 1]}, config, seed=0)
        torch.testing.assert_close(gradient[i : i + 1], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_tiles_and_fresh_seeds_have_their_own_gradient():
    config = replace(TINY, iterations=4)
    x = images(side=12).requires_grad_()
    purifier = Purifier(config, seed=None, gradient=Unrolled(last=2), tile=8)
    (gradient,) = torch.autograd.grad(purifier(x).sum(), x)
    assert gradient.shape == x.shape
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="cotangents must be given for iterations from 1 to the 24"):
        pull_back(images(), {25: cotangent()}, TINY, seed=0)
    with pytest.raises(ValueError, match="cotangents must be given"):
        pull_back(images(), {}, TINY, seed=0)
    with pytest.raises(ValueError, match="last must be None or an integer of at least 1, got 0"):
        pull_back(images(), {24: cotangent()}, TINY, seed=0, last=0)
    with pytest.raises(ValueError, match="loss must not be l1 where a fit is unrolled"):
        pull_back(images(), {24: cotangent()}, replace(TINY, loss="l1"), seed=0)
    with pytest.raises(
        ValueError, match=r"memory_gb must be at least 0\.\d+ to unroll 24 steps for one image, got 1e-05"
    ):
        pull_back(images(), {24: cotangent()}, replace(TINY, memory_gb=1e-5), seed=0)
    with pytest.raises(ValueError, match="sharpness must be positive"):
        FitConfig(architecture_options={"sharpness": 0})


def test_threads_divide_the_images_and_are_left_as_they_were():
    config, x, w = replace(TINY, iterations=9), images(3), cotangent(3)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(pull_back(x, {9: w}, config, seed=0))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-9)


def test_a_gradient_is_that_of_the_images_as_they_were():
    config = replace(TINY, iterations=4)
    x, w = images().requires_grad_(), cotangent()
    purified = Purifier(config, gradient="unrolled")(x)
    expected = pull_back(x, {4: w}, config, seed=0)
    with torch.no_grad():
        x.mul_(0.5)
    torch.testing.assert_close(torch.autograd.grad((w * purified).sum(), x)[0], expected)


def test_memory_for_one_image_gives_the_gradient_of_all():
    config, x, w = replace(TINY, iterations=9), images(3), cotangent(3)
    one = unroll_bytes(build_problem(x, config, 0, None, None, None), 9) / 2**30
    tight = pull_back(x, {9: w}, replace(config, memory_gb=1.5 * one), seed=0)
    torch.testing.assert_close(tight, pull_back(x, {9: w}, config, seed=0), rtol=1e-4, atol=1e-9)


def test_memory_estimate_grows_with_the_root_of_the_steps():
    problem = build_problem(images(1), TINY, 0, None, None, None)
    assert unroll_bytes(problem, 400) == 2 * unroll_bytes(problem, 100)
