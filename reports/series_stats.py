"""Means of a series whose neighbours are alike: intervals by a circular block bootstrap. No torch.

The losses of consecutive tokens are no independent draws, so that an interval which takes them for
such is too narrow. Blocks of consecutive units are drawn instead, with the end of the series joined
to its beginning (Politis and Romano 1992); their length follows from the series (Politis and White
2004, corrected 2009; see `_LONGER`). Percentiles of few blocks are too narrow, too: the interval is
stretched about the mean by n / (n - l) in variance, and as Student's t with one degree of freedom
less than there are blocks is wider than the normal.

What such an interval is about: other stretches of the same kind of text. Not other books.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from reports.interval_rule import t_from_z

Floats = npt.NDArray[np.float64]
DRAWS = 2000
LEVEL = 0.95
FEWEST_UNITS = 8
"""Of fewer than these nothing is said of the uncertainty."""
_LONGER = 2.5
"""What Politis and White find best is best for the mean square error of a variance. Blocks of that
length find variances too small, which costs intervals up to a tenth of their coverage; longer ones
are right more often, and their noise is what the stretching is for."""
_SLOWER = 5
"""So many windows long is the rolling mean that is taken for the trend: one window's would take
half of what the band is to show."""


@dataclass(frozen=True)
class SeriesMean:
    """The mean of a series and its interval.

    Attributes:
        mean: per token.
        low: end of the interval; None where there are fewer than `FEWEST_UNITS` units.
        high: likewise.
        tokens: in all.
        block_tokens: tokens of a block of the bootstrap.
        blocks: that many blocks of this length has the series.
        method: in words.
    """

    mean: float
    low: float | None
    high: float | None
    tokens: int
    block_tokens: int
    blocks: float
    method: str

    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval; False without one."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def block_length(values: Floats) -> int:
    """Length of blocks for the interval of the mean of a series `[n]`, in its units.

    `_LONGER` times what Politis and White find best, at least 1, at most a fifth of the series.
    """
    n = len(values)
    centred = values - values.mean()
    variance = float(centred @ centred) / n
    longest = max(1, n // 5)
    if n < FEWEST_UNITS or variance <= 1e-24 * max(1.0, float(np.abs(values).max()) ** 2):
        return 1
    in_a_row = max(5, math.ceil(math.sqrt(math.log10(n))))
    most = min(n - 1, math.ceil(math.sqrt(n)) + in_a_row)
    covariance = np.array(
        [float(centred[: n - lag] @ centred[lag:]) / n for lag in range(most + 1)]
    )
    bound = 2 * math.sqrt(math.log10(n) / n)
    small = np.abs(covariance[1:] / variance) < bound
    # the first lag after which so many in a row are small; beyond what is known they count as small
    last = next((m for m in range(most) if small[m : m + in_a_row].all()), most)
    width = min(2 * max(last, 1), most)
    lags = np.arange(1, width + 1)
    window = np.minimum(1.0, 2 * (1 - lags / width))
    long_run = variance + 2 * float(window @ covariance[1 : width + 1])
    slope = 2 * float((window * lags) @ covariance[1 : width + 1])
    if long_run <= 0:
        return 1
    best = (2 * slope**2 / (4 / 3 * long_run**2)) ** (1 / 3) * n ** (1 / 3)
    return min(longest, max(1, round(_LONGER * best)))


def series_mean(
    sums: Floats,
    sizes: Floats,
    seed: int = 0,
    level: float = LEVEL,
    draws: int = DRAWS,
    unit: float | None = None,
    least: float = -math.inf,
) -> SeriesMean:
    """Mean per token of a series and its interval.

    Args:
        sums: sum over the tokens of each unit `[n]`, in the order of the text; of a paired
            difference, the differences of the sums.
        sizes: tokens of each unit `[n]`; some units may have none.
        seed: of the draws.
        level: of the interval.
        draws: of blocks.
        unit: tokens of the text in a unit, where that is not the largest of `sizes`.
        least: that the mean can be: no interval reaches below it.

    Raises:
        ValueError: no tokens, or lists of unequal length.
    """
    n, tokens = len(sums), float(sizes.sum())
    if len(sizes) != n or not tokens:
        raise ValueError(f"{n} sums and {len(sizes)} sizes, {tokens:.0f} tokens in all")
    mean = float(sums.sum()) / tokens
    rest = sums - mean * sizes  # what each unit adds to the error of the mean
    length = block_length(rest)
    unit = unit or float(sizes.max())
    blocks = n / length
    if n < FEWEST_UNITS:
        said = f"no interval: {n} units of {unit:.0f} tokens are too few"
        return SeriesMean(mean, None, None, round(tokens), round(unit * length), blocks, said)
    starts = np.random.default_rng(seed).integers(0, n, (draws, math.ceil(blocks)))
    means = mean + _drawn(rest, starts, length, n) / tokens
    z = NormalDist().inv_cdf((1 + level) / 2)
    stretch = t_from_z(z, max(1.0, blocks - 1)) / z * math.sqrt(n / (n - length))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return SeriesMean(
        mean,
        min(mean, max(least, mean + stretch * (float(low) - mean))),
        max(mean, mean + stretch * (float(high) - mean)),
        round(tokens),
        round(unit * length),
        blocks,
        f"circular block bootstrap: {draws:,} draws of blocks of {unit * length:,.0f} tokens "
        f"({blocks:.1f} in the text), seed {seed}, stretched by {stretch:.2f} for so few blocks",
    )


def _drawn(values: Floats, starts: npt.NDArray[np.int64], length: int, n: int) -> Floats:
    """Sums over blocks that begin at `starts [draws, k]`; the last is cut: n units are drawn."""
    summed = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[:length]]))])
    last = n - length * (starts.shape[1] - 1)
    found: Floats = (summed[starts[:, :-1] + length] - summed[starts[:, :-1]]).sum(1)
    return found + summed[starts[:, -1] + last] - summed[starts[:, -1]]


@dataclass(frozen=True)
class RollingMean:
    """A rolling mean with a band.

    Attributes:
        at: number of the last unit of each window `[m]`, counted from 1.
        mean: per token of the window `[m]`; NaN where it has none.
        half: half the width of the band around it; None: too few units for one.
        window_tokens: tokens of a full window.
        method: of the band, in words.
    """

    at: npt.NDArray[np.int64]
    mean: Floats
    half: float | None
    window_tokens: int
    method: str


def rolling_mean(
    sums: Floats, sizes: Floats, width: int, unit: float, seed: int = 0, level: float = LEVEL
) -> RollingMean:
    """The mean over the last so many units, at the end of every unit from the first full window on.

    The band is what the mean of a window of this length varies by: by a block bootstrap of what is
    left of the series without its trend. It has one width for all windows.

    Args:
        sums: sum over the tokens of each unit `[n]`.
        sizes: tokens of each unit `[n]`; some may have none.
        width: units of a window, at least one; no more than there are are taken.
        unit: tokens of the text in a unit; the last one may have fewer.
        seed: of the draws.
        level: of the band.
    """
    n = len(sums)
    width = min(n, max(1, width))
    total, count = (np.concatenate([[0.0], np.cumsum(x)]) for x in (sums, sizes))
    tokens = count[width:] - count[:-width]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total[width:] - total[:-width]) / tokens  # NaN where a window has no token
    at = np.arange(width, n + 1)
    window = round(unit * width)
    if n < max(FEWEST_UNITS, 2 * width) or not sizes.sum():
        return RollingMean(at, mean, None, window, "none, the text is too short")
    rest = sums - _slow(total, count, _SLOWER * width) * sizes
    length = min(width, block_length(rest))
    starts = np.random.default_rng(seed).integers(0, n, (DRAWS, math.ceil(width / length)))
    means = _drawn(rest, starts, length, width) / (width * float(sizes.mean()))
    half = float(np.quantile(np.abs(means - means.mean()), level))
    said = (
        f"{level:.0%} of the means of so many tokens, by a block bootstrap of what a rolling "
        f"mean {_SLOWER} times slower leaves, blocks of {unit * length:,.0f} tokens, seed {seed}"
    )
    return RollingMean(at, mean, half, window, said)


def _slow(total: Floats, count: Floats, width: int) -> Floats:
    """The trend of a series at each unit `[n]`: the mean of `width` units around it.

    Args:
        total: sums of the first units `[n + 1]`.
        count: their tokens `[n + 1]`.
        width: units; where the series has not twice as many, its mean stands for all.
    """
    n = len(total) - 1
    if n < 2 * width:
        return np.full(n, total[-1] / count[-1])
    tokens = count[width:] - count[:-width]
    known = tokens > 0
    mean = (total[width:] - total[:-width])[known] / tokens[known]
    return np.interp(np.arange(n), (np.arange(n - width + 1) + (width - 1) / 2)[known], mean)
