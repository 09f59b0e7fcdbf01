"""Intervals of means of series whose neighbours are alike."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from reports.series_stats import block_length, rolling_mean, series_mean

Floats = npt.NDArray[np.float64]


def ar1(generator: np.random.Generator, phi: float, n: int) -> Floats:
    """A stationary AR(1) series with mean 0."""
    noise = generator.standard_normal(n)
    found = np.empty(n)
    found[0] = noise[0] / math.sqrt(1 - phi * phi)
    for i in range(1, n):
        found[i] = phi * found[i - 1] + noise[i]
    return found


def coverage(phi: float, n: int, repetitions: int) -> tuple[float, float]:
    """How often 0 lies in our interval, and in that of independent draws."""
    generator = np.random.default_rng(7)
    ours = plain = 0
    for _ in range(repetitions):
        values = ar1(generator, phi, n)
        found = series_mean(values, np.ones(n), draws=300)
        assert found.low is not None and found.high is not None
        ours += found.low <= 0 <= found.high
        plain += abs(values.mean()) <= 1.96 * values.std(ddof=1) / math.sqrt(n)
    return ours / repetitions, plain / repetitions


@pytest.mark.parametrize(
    ("phi", "n", "least"), [(0.0, 200, 0.9), (0.6, 400, 0.88), (0.8, 400, 0.87)]
)
def test_an_ar1_series_is_covered_where_independent_draws_fail(
    phi: float, n: int, least: float
) -> None:
    ours, plain = coverage(phi, n, 120)
    assert least <= ours <= 0.985
    assert (plain < 0.75) == (phi > 0.5)


@pytest.mark.slow
def test_coverage_of_many_series_is_close_to_95_percent() -> None:
    for phi, n, least in ((0.0, 450, 0.93), (0.3, 450, 0.91), (0.6, 900, 0.9), (0.9, 900, 0.89)):
        ours, _ = coverage(phi, n, 1500)
        assert least <= ours <= 0.97, (phi, ours)


def test_blocks_are_longer_the_longer_a_series_remembers() -> None:
    generator = np.random.default_rng(1)
    lengths = [block_length(ar1(generator, phi, 800)) for phi in (0.0, 0.5, 0.9)]
    assert lengths[0] < lengths[1] < lengths[2] <= 160
    assert block_length(np.ones(50)) == 1


def test_units_of_unequal_size_count_by_their_tokens() -> None:
    sums, sizes = np.array([10.0, 0.0, 30.0, 4.0] * 6), np.array([5.0, 0.0, 10.0, 1.0] * 6)
    found = series_mean(sums, sizes, unit=16.0)
    assert found.mean == pytest.approx(44 / 16) and found.tokens == 96
    assert found.low is not None and found.low < found.mean
    again = series_mean(sums, sizes, unit=16.0)
    assert again == found, "the same seed draws the same blocks"
    assert series_mean(sums, sizes, seed=1, unit=16.0).high != found.high
    assert f"blocks of {found.block_tokens:,} tokens" in found.method and "seed 0" in found.method


def test_no_interval_of_a_handful_of_units_and_none_below_what_can_be() -> None:
    few = series_mean(np.arange(7.0), np.ones(7))
    assert (few.low, few.high) == (None, None) and "too few" in few.method
    assert not few.excludes_zero()
    bounded = series_mean(np.array([0.0, 0.0, 0.0, 9.0] * 4), np.ones(16), least=0.0)
    free = series_mean(np.array([0.0, 0.0, 0.0, 9.0] * 4), np.ones(16))
    assert bounded.high == free.high and bounded.low == max(0.0, free.low or 0.0)
    with pytest.raises(ValueError, match="0 tokens"):
        series_mean(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="3 sums and 2 sizes"):
        series_mean(np.zeros(3), np.ones(2))


def test_a_paired_difference_sees_what_two_means_hide() -> None:
    generator = np.random.default_rng(2)
    base = 5 + ar1(generator, 0.7, 300)
    other = base + 0.1 + 0.01 * generator.standard_normal(300)
    sizes = np.ones(300)
    first, second = series_mean(base, sizes), series_mean(other, sizes)
    assert first.high is not None and second.low is not None and second.low < first.high
    difference = series_mean(other - base, sizes)
    assert difference.excludes_zero() and difference.mean == pytest.approx(0.1, abs=0.005)


def test_a_rolling_mean_stands_at_the_end_of_its_window() -> None:
    sums, sizes = np.arange(40.0), np.ones(40)
    sizes[0], sums[0] = 0, 0
    found = rolling_mean(sums, sizes, 4, 8.0)
    assert list(found.at) == list(range(4, 41)) and found.window_tokens == 32
    assert found.mean[0] == pytest.approx((1 + 2 + 3) / 3)
    assert found.mean[-1] == pytest.approx((36 + 37 + 38 + 39) / 4)
    assert found.half is not None and found.half >= 0
    short = rolling_mean(sums[:6], sizes[:6], 4, 8.0)
    assert short.half is None and len(short.mean) == 3
    assert np.isnan(rolling_mean(np.zeros(9), np.eye(9)[8], 2, 1.0).mean[0])


def test_the_band_is_as_wide_as_means_of_its_window_vary() -> None:
    generator = np.random.default_rng(3)
    values = ar1(generator, 0.5, 4000)
    found = rolling_mean(values, np.ones(4000), 40, 1.0)
    means = values.reshape(100, 40).mean(1)
    assert found.half is not None
    assert 0.75 * 1.96 * means.std() < found.half < 1.15 * 1.96 * means.std()
    trend = rolling_mean(values + np.linspace(0, 20, 4000), np.ones(4000), 40, 1.0)
    assert trend.half == pytest.approx(found.half, rel=0.15), "a slow drift is no noise"
