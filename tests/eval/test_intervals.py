"""Intervals: Wilson's closed form, Tango's published examples and its edges, the normal limit of the bootstrap."""

import math
import runpy
import sys

import numpy as np
import pytest
from scipy import optimize, stats

from eval.intervals import paired_bootstrap, tango, wilson

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


def pairs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers to as many images as are right in both, in the first alone, in the second alone, and in neither."""
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("counts", "confidence", "published", "digits"),
    [
        # Tango (1998), section 6.1, table V, soft contact lenses: the lower limit
        ((43, 0, 1, 0), 0.9, (-0.096, None), 3),
        # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850-2875, table V, airways
        ((1, 1, 7, 12), 0.95, (-0.517, -0.026), 3),
        # Fagerland, Lydersen and Laake (2017), Statistical Analysis of Contingency Tables, chapter 8, as the R package
        # contingencytables tests it: response before and after consolidation therapy
        ((59, 6, 16, 80), 0.95, (-0.1240, -0.0054), 4),
    ],
)
def test_tango_gives_published_limits(counts, confidence, published, digits) -> None:
    difference, *limits = tango(*pairs(*counts), confidence=confidence)
    assert difference == pytest.approx((counts[1] - counts[2]) / sum(counts))
    for limit, expected in zip(limits, published, strict=True):
        assert expected is None or round(limit, digits) == expected


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_tango_has_its_closed_form_at_the_edges(n: int) -> None:
    none = tango(np.ones(n), np.ones(n))
    assert none == pytest.approx((0, -(Z**2) / (n + Z**2), Z**2 / (n + Z**2)))
    assert none[2] == pytest.approx(wilson(0, n)[1])
    assert tango(np.ones(n), np.zeros(n)) == pytest.approx((1, (n - Z**2) / (n + Z**2), 1))
    assert tango(np.zeros(n), np.ones(n)) == pytest.approx((-1, -1, -(n - Z**2) / (n + Z**2)))


def tables(n: int) -> list[tuple[int, int, int, int]]:
    """All tables of n images that differ in the images that one alone has right."""
    return [(0, gained, lost, n - gained - lost) for gained in range(n + 1) for lost in range(n + 1 - gained)]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_tango_holds_the_difference_and_is_antisymmetric(n: int) -> None:
    for table in tables(n):
        a, b = pairs(*table)
        difference, low, high = tango(a, b)
        assert -1 <= low <= difference <= high <= 1
        assert high - low > 0.1 / n
        assert tango(b, a) == (-difference, -high, -low)
        assert tango(a[::-1], b[::-1]) == (difference, low, high)
        _, lower, higher = tango(a, b, confidence=0.99)
        assert lower <= low
        assert high <= higher


@pytest.mark.parametrize("table", [(0, 3, 1, 6), (0, 0, 4, 6), (0, 20, 40, 100), (0, 5, 5, 0)])
def test_tango_inverts_the_score_test(table) -> None:
    """At both limits the statistic, its nuisance rate found by a numerical search, is the normal quantile."""
    _, gained, lost, rest = table
    n = gained + lost + rest

    def score(difference: float) -> float:
        def unlikely(q: float) -> float:
            cells = np.array([q + difference, q, 1 - 2 * q - difference])
            return -float(np.dot([gained, lost, rest], np.log(np.maximum(cells, 1e-300))))

        bounds = (max(0, -difference), (1 - difference) / 2)
        q = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        return (gained - lost - n * difference) / math.sqrt(n * (2 * q + difference * (1 - difference)))

    _, low, high = tango(*pairs(*table))
    assert (score(low), score(high)) == pytest.approx((Z, -Z), rel=1e-4)


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.3, 0.1), (0.05, 0.4), (0.1, 0.02)])
def test_tango_covers(rates: tuple[float, float]) -> None:
    """The exact coverage for 30 images, summed over all tables, where the two rates of one alone are these."""
    gained, lost = rates
    covered = 0.0
    for table in tables(30):
        _, low, high = tango(*pairs(*table))
        if low <= gained - lost <= high:
            covered += stats.multinomial.pmf([*table[1:]], 30, [gained, lost, 1 - gained - lost])
    assert 0.93 < covered < 0.98


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
    with pytest.raises(ValueError, match="confidence must lie"):
        tango([1, 0], [0, 0], confidence=0)
    with pytest.raises(ValueError, match="must hold True and False, or 1 and 0, got other values: use paired_boot"):
        tango([0.5, 1], [1, 0])
    with pytest.raises(ValueError, match="must hold True and False"):
        tango([math.nan, 1], [1, 0])
    with pytest.raises(ValueError, match="must be finite"):
        paired_bootstrap([1, math.nan], [3, 4])


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [2]), ([1, 2], [1, 2, 3]), ([[1, 2]], [[3, 4]])])
def test_bootstrap_refuses_other_shapes(a: list, b: list) -> None:
    with pytest.raises(ValueError, match="N at least 2, got"):
        paired_bootstrap(a, b)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1, 0], [1, 0, 0]), ([[1, 0]], [[0, 1]])])
def test_tango_refuses_other_shapes(a: list, b: list) -> None:
    with pytest.raises(ValueError, match="N at least 1, got"):
        tango(a, b)


def test_absence_of_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"dipdefense\[eval\]"):
        runpy.run_path(sys.modules["eval.intervals"].__file__)
