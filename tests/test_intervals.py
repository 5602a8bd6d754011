"""Intervals: Wilson's closed form, the normal limit of the bootstrap, coverage."""

import math
import runpy
import sys

import numpy as np
import pytest

from eval.intervals import paired_bootstrap, wilson

Z = 1.959963984540054  # normal quantile of 97.5 %


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (17, 50), (9148, 10000)])
def test_wilson_is_its_closed_form(successes: int, n: int) -> None:
    rate = successes / n
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2))
    low, high = wilson(successes, n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert 0 <= low <= rate <= high <= 1


def test_wilson_is_symmetric_and_widens_with_confidence() -> None:
    low, high = wilson(30, 100)
    assert wilson(70, 100) == pytest.approx((1 - high, 1 - low))
    wider = wilson(30, 100, confidence=0.99)
    assert wider[0] < low < high < wider[1]


def test_bootstrap_has_the_normal_limit() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 2000), rng.normal(0, 1, 2000)
    difference, low, high = paired_bootstrap(a, b)
    half = Z * np.std(a - b) / math.sqrt(2000)
    assert difference == pytest.approx(np.mean(a) - np.mean(b))
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=0.05 * half)


def test_bootstrap_keeps_the_pairing() -> None:
    """Columns that differ by nearly a constant: unpaired, the interval would be 100 times as wide."""
    rng = np.random.default_rng(2)
    a = rng.normal(0, 1, 200)
    difference, low, high = paired_bootstrap(a, a - 0.5 + 0.01 * rng.normal(size=200))
    assert low < difference < high
    assert high - low < 0.01


def test_bootstrap_covers() -> None:
    """The truth lies within about 95 of 100 intervals; 88 is 3 standard deviations below."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        a, b = rng.binomial(1, 0.8, 100), rng.binomial(1, 0.6, 100)
        _, low, high = paired_bootstrap(a, b, resamples=1000)
        covered += low <= 0.2 <= high
    assert covered >= 88


def test_bootstrap_is_a_function_of_its_seed_and_antisymmetric() -> None:
    a, b = [1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 1.0]
    first = paired_bootstrap(a, b, seed=4)
    assert paired_bootstrap(a, b, seed=4) == first
    difference, low, high = paired_bootstrap(b, a, seed=4)
    assert (-difference, -high, -low) == pytest.approx(first)


@pytest.mark.parametrize("shift", [0.0, 0.25])
@pytest.mark.parametrize("n", [2, 50])
def test_equal_differences_give_a_point(shift: float, n: int) -> None:
    a = np.linspace(0, 1, n)
    assert paired_bootstrap(a + shift, a) == pytest.approx((shift, shift, shift))


def test_values_are_checked() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        wilson(0, 0)
    with pytest.raises(ValueError, match=r"successes must lie in \[0, 5\], got 6"):
        wilson(6, 5)
    with pytest.raises(ValueError, match="confidence must lie"):
        wilson(1, 5, confidence=95)
    with pytest.raises(ValueError, match="confidence must lie"):
        paired_bootstrap([1, 2], [3, 4], confidence=1)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        paired_bootstrap([1, 2], [3, 4], resamples=0)
    with pytest.raises(ValueError, match="must be finite"):
        paired_bootstrap([1, math.nan], [3, 4])


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [2]), ([1, 2], [1, 2, 3]), ([[1, 2]], [[3, 4]])])
def test_bootstrap_refuses_other_shapes(a: list, b: list) -> None:
    with pytest.raises(ValueError, match="N at least 2, got"):
        paired_bootstrap(a, b)


def test_absence_of_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"dipdefense\[eval\]"):
        runpy.run_path(sys.modules["eval.intervals"].__file__)
