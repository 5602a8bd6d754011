"""Stopping rules against a plain re-computation, and row by row."""

import dataclasses

import numpy as np
import pytest
import torch

from dipdefense import FitConfig, fit
from dipdefense.stopping import STOPPING_RULES, Iterate
from dipdefense.stopping.variance import ExponentialMovingVariance, WindowedMovingVariance

# A trajectory that calms down until iterate 30 and then grows restless, for three images at different times.
T, B = 60, 3
SANE = torch.ones(B, dtype=torch.bool)
OPTIONS = {  # those that a rule must be given, or that make it decide within the trajectory
    "wmv": {"window": 7, "patience": 12},
    "emv": {"patience": 12},
    "dipdefend": {"rate": 0.1, "patience": 12},
    "discrepancy": {"sigma": 0.1},
    "sure": {"sigma": 0.1, "rate": 0.5, "patience": 12},
    "validation": {"fraction": 0.3, "patience": 12},
    "blind_discrepancy": {"factor": 0.9},
}
TINY = FitConfig(architecture_options={"channels": [8, 8], "skip_channels": 2}, input_channels=8, iterations=60)


def trajectory() -> torch.Tensor:
    noise = torch.randn(T, B, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    size = torch.stack([0.01 + 0.002 * (torch.arange(T) - calm).abs() for calm in (20, 30, 40)], 1)
    return 0.5 + size.view(T, B, 1, 1, 1) * noise


def target() -> torch.Tensor:
    return torch.rand(B, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def look(rule, frame, sane=SANE, observed=None):
    """The rule's answer to an iterate (B, C, H, W) that is its own average, of a fit without an operator."""
    observed = target()[: len(frame)] if observed is None else observed
    return rule.observe(Iterate(frame, frame, observed, sane, lambda images: images))


def begun(name, observed):
    rule = STOPPING_RULES[name](**OPTIONS.get(name, {}))
    rule.prepare(observed, torch.Generator().manual_seed(2))
    return rule


def chosen_and_end(rule, frames):
    chosen = torch.zeros(frames.shape[1], dtype=torch.long)
    end = torch.full_like(chosen, T)
    for i, frame in enumerate(frames, 1):
        better, done = look(rule, frame)
        chosen[better & (end == T)] = i
        end[done & (end == T)] = i
    return chosen, end


def test_fixed_takes_the_last():
    chosen, end = chosen_and_end(STOPPING_RULES["fixed"](), trajectory())
    assert chosen.tolist() == [T] * B
    assert end.tolist() == [T] * B


def test_wmv_is_the_least_variance_of_a_window():
    W, P = 7, 12
    x = trajectory().flatten(2).double().numpy()  # (T, B, pixels)
    chosen, end = chosen_and_end(WindowedMovingVariance(window=W, patience=P), trajectory())
    for i in range(B):
        variance = np.array([x[k - W : k, i].var(axis=0).sum() if k >= W else np.inf for k in range(T + 1)])
        best = W
        for k in range(W, T + 1):
            if variance[k] < variance[best]:
                best = k
            if k - best >= P:
                break
        assert chosen[i] == best
        assert end[i] == min(best + P, T)


def test_emv_follows_the_recursion():
    a, P = 0.2, 12
    x = trajectory().flatten(2).double().numpy()
    chosen, end = chosen_and_end(ExponentialMovingVariance(rate=a, patience=P), trajectory().double())
    for i in range(B):
        average, variance, best, least = x[0, i], 0.0, 0, np.inf
        for k in range(1, T + 1):
            variance = (1 - a) * (variance + a * ((x[k - 1, i] - average) ** 2).mean())
            average = (1 - a) * average + a * x[k - 1, i]
            if k * a >= 1:
                if variance < least:
                    best, least = k, variance
                if k - best >= P:
                    break
        assert chosen[i] == best
        assert end[i] == k


@pytest.mark.parametrize("name", STOPPING_RULES)
def test_an_image_is_judged_alone(name):
    together, alone = begun(name, target()), begun(name, target()[-1:])
    keep = torch.tensor([False, True, True])
    for i, frame in enumerate(trajectory(), 1):
        if i == 25:
            together.keep(keep)
        frame, observed = (x if i < 25 else x[keep] for x in (frame, target()))
        better, done = look(together, frame, SANE[: len(frame)], observed)
        alone_better, alone_done = look(alone, frame[-1:], SANE[:1], observed[-1:])
        assert better[-1] == alone_better[0]
        assert done[-1] == alone_done[0]


@pytest.mark.parametrize("name", STOPPING_RULES)
def test_an_iterate_that_is_not_sane_is_passed_over(name):
    """Image 0 holds still for ten iterations that do not count: its choice is that of the trajectory without them."""
    disturbed, plain = begun(name, target()), begun(name, target())
    chosen, expected = [], []
    for i, frame in enumerate(trajectory(), 1):
        if i in (3, 25):  # while the window fills, and after
            for _ in range(10):
                better, _ = look(disturbed, torch.full_like(frame, 0.5), ~SANE)
                assert not better.any()
        chosen.append(torch.stack(look(disturbed, frame)))
        expected.append(torch.stack(look(plain, frame)))
    assert torch.equal(torch.stack(chosen), torch.stack(expected))


def smooth_images(n: int) -> torch.Tensor:
    """Noisy ones, in float64: rounding of float32 alone can move the least of a statistic."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64)
    scale = torch.linspace(0.02, 0.2, n, dtype=torch.float64).view(-1, 1, 1, 1)
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear") + scale * noise


@pytest.mark.parametrize("name", STOPPING_RULES)
def test_a_fit_of_one_image_is_that_of_a_batch(name):
    """Rows leave at different times, and chunks begin anew: the choice is the same."""
    options = OPTIONS.get(name, {})
    config = dataclasses.replace(TINY, stopping=name, stopping_options=options)
    observed = smooth_images(4)
    whole = fit(observed, config)
    sizes = set()
    small = dataclasses.replace(config, memory_gb=0.0018)
    parts = fit(observed, small, callback=lambda p: sizes.add(len(p.index)))
    assert max(sizes) < 4
    assert whole.chosen.tolist() == parts.chosen.tolist()
    assert whole.stopped.tolist() == parts.stopped.tolist()
    for i in (0, 3):
        alone = fit(observed[i : i + 1], config)
        assert alone.chosen[0] == whole.chosen[i]
        assert (alone.reconstruction[0] - whole.reconstruction[i]).square().mean() < 1e-6


@pytest.mark.parametrize("name", STOPPING_RULES)
def test_memory_that_runs_out_changes_nothing(name):
    calls = []

    def greedy(x, index):
        calls.append(len(x))
        if len(calls) == 30:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    config = dataclasses.replace(TINY, iterations=60, stopping=name, stopping_options=OPTIONS.get(name, {}))
    with pytest.warns(UserWarning, match="out of memory: going on with chunks of 1"):
        again = fit(smooth_images(2), config, degrade=greedy)
    assert again.chosen.tolist() == fit(smooth_images(2), config).chosen.tolist()


def test_a_rule_sees_the_image_through_the_operator_once_it_asks():
    calls = []
    frame = torch.rand(2, 1, 4, 4, requires_grad=True)
    seen = Iterate(frame, frame, frame, SANE[:2], lambda images: calls.append(1) or 2 * images)
    assert not calls
    assert torch.equal(seen.fitted, 2 * frame)
    assert not seen.fitted.requires_grad
    assert len(calls) == 1


def test_a_window_of_large_images_stays_small():
    rule = WindowedMovingVariance(window=4)
    look(rule, torch.zeros(1, 3, 512, 512), SANE[:1])
    assert rule.state["frames"].shape == (1, 4, 4096)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowedMovingVariance(window=1), "window must be an integer of at least 2"),
        (lambda: WindowedMovingVariance(patience=0), "patience must be an integer of at least 1"),
        (lambda: ExponentialMovingVariance(rate=1.0), "rate must lie between 0 and 1"),
        (lambda: ExponentialMovingVariance(patience=0), "patience must be an integer of at least 1"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
