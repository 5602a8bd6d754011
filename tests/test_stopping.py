"""Stopping rules against a plain re-computation, and row by row."""

import numpy as np
import pytest
import torch

from dipdefense.stopping import STOPPING_RULES, ExponentialMovingVariance, WindowedMovingVariance

# A trajectory that calms down until iterate 30 and then grows restless, for three images at different times.
T, B = 60, 3
SANE = torch.ones(B, dtype=torch.bool)
OPTIONS = {"fixed": {}, "wmv": {"window": 7, "patience": 12}, "emv": {"patience": 12}}


def trajectory() -> torch.Tensor:
    noise = torch.randn(T, B, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    size = torch.stack([0.01 + 0.002 * (torch.arange(T) - calm).abs() for calm in (20, 30, 40)], 1)
    return 0.5 + size.view(T, B, 1, 1, 1) * noise


def chosen_and_end(rule, frames):
    chosen = torch.zeros(frames.shape[1], dtype=torch.long)
    end = torch.full_like(chosen, T)
    for i, frame in enumerate(frames, 1):
        better, done = rule.observe(frame, SANE)
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
    options = OPTIONS[name]
    together = STOPPING_RULES[name](**options)
    alone = STOPPING_RULES[name](**options)
    keep = torch.tensor([False, True, True])
    for i, frame in enumerate(trajectory(), 1):
        if i == 25:
            together.keep(keep)
        frame = frame if i < 25 else frame[keep]
        better, done = together.observe(frame, SANE[: len(frame)])
        alone_better, alone_done = alone.observe(frame[-1:], SANE[:1])
        assert better[-1] == alone_better[0]
        assert done[-1] == alone_done[0]


@pytest.mark.parametrize("name", STOPPING_RULES)
def test_an_iterate_that_is_not_sane_is_passed_over(name):
    """Image 0 holds still for ten iterations that do not count: its choice is that of the trajectory without them."""
    options = OPTIONS[name]
    disturbed, plain = STOPPING_RULES[name](**options), STOPPING_RULES[name](**options)
    chosen, expected = [], []
    for i, frame in enumerate(trajectory(), 1):
        if i in (3, 25):  # while the window fills, and after
            for _ in range(10):
                better, _ = disturbed.observe(torch.full_like(frame, 0.5), ~SANE)
                assert not better.any()
        chosen.append(disturbed.observe(frame, SANE)[0])
        expected.append(plain.observe(frame, SANE)[0])
    assert torch.equal(torch.stack(chosen), torch.stack(expected))


def test_a_window_of_large_images_stays_small():
    rule = WindowedMovingVariance(window=4)
    rule.observe(torch.zeros(1, 3, 512, 512), SANE[:1])
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
