"""Means and paired differences with intervals: the only place where uncertainty is computed.

One rule for all: binary and fractional scores, single examples and questions about one document,
one task and the average over many. It has no thresholds, so a small change of the scores, or one
more document, changes an interval only a little. How often it is right was measured
(`tests/bench/coverage.py`; the table and the reasons stand in `docs/statistics.md`).

The unit is the document (cluster), never the single question. With values in [0, 1], document g
holding the share a_g of them and e_g the sum of its values' distances from the mean m, divided by
n, the rule is:

1. The effective number of documents is G = 1 / sum(a_g^2).
2. The dispersion is phi = (G^2 sum(e_g^2) + P) / (G m (1 - m) + P): the variance of the documents
   over that of right and wrong answers with the same mean. It is 1 for single binary scores and
   smaller the narrower the scores are. P (`_prior`) stands for what a sample cannot show: it
   counts only while the values are nearly all the same or the mean is at an end of the scale.
   phi is widened to phi' by the leverage of the documents, as n / (n - 1) widens a variance.
3. The effective n is N = G / phi', and the interval holds every mean u with
   (m - u)^2 <= t^2 / N (u (1 - u) + s (u - m) + 1 / (4 N)):
   Wilson's interval (1927) for N, with half an answer's variance added, which keeps small counts
   covered, and a slope s >= 0 towards the end at which the sample's own skewness says that the
   variance grows faster than u (1 - u) does. t is Student's, with (G - 1) / (1 - phi') degrees of
   freedom: the variance of binary scores is known from their mean, that of others is estimated.

Paired differences lie in [-1, 1] and are moved to [0, 1] first. The average over tasks is the
same estimate with each task a stratum: the tasks' variances are added up, and 3. is applied once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

LEVEL = 0.95

_ALIKE = 0.05  # values nearer than this count partly as one value
_END_MASS = 0.2  # weight of the prior at an end of the scale, while all values are the same
_END_MASS_ALWAYS = 0.02  # the same, for values that differ
_POOLED = 2.0  # documents' worth of the pooled variance that is mixed into each task's
_KNOWN = 1e9  # degrees of freedom of a variance that is not estimated
_LARGEST_EXPONENT = 50.0  # keeps t finite with next to no degrees of freedom

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its interval; `n` values in `clusters` documents; `method` in words.

    `p` is that of the mean being 0, for differences: 1 minus the highest level whose interval
    excludes 0. None for scores.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int
    method: str
    p: float | None = None

    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval (for differences: a clear direction)."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Scale:
    """The range of what is averaged."""

    least: float
    most: float

    @property
    def span(self) -> float:
        """Length of the range."""
        return self.most - self.least


SCORES = Scale(0.0, 1.0)
DIFFERENCES = Scale(-1.0, 1.0)


@dataclass(frozen=True)
class Sample:
    """Values and, value by value, the cluster (document) each belongs to."""

    values: tuple[float, ...]
    clusters: tuple[Hashable, ...]


def mean_interval(
    scores: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """Mean of scores in [0, 1] with its interval at `level`.

    `clusters` names the document of each score; None: each score stands for itself. Raises
    ValueError for no scores, scores outside [0, 1] or lists of unequal length.
    """
    return _interval(SCORES, [(scores, clusters)], None, level)


def difference_interval(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """Mean of paired differences in [-1, 1]; otherwise as `mean_interval`."""
    return _interval(DIFFERENCES, [(differences, clusters)], None, level)


def pair(
    a: Mapping[str, float],
    b: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
) -> Sample:
    """The differences a - b over the examples that both have, in the order of `a`."""
    shared = [key for key in a if key in b]
    return Sample(
        values=tuple(a[key] - b[key] for key in shared),
        clusters=tuple(key if clusters is None else clusters[key] for key in shared),
    )


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Mean of a - b over the examples that both have, each compared with itself.

    `a` and `b` map example ids to scores in [0, 1], `clusters` maps them to documents. Raises
    ValueError when no example is shared.
    """
    sample = pair(a, b, clusters)
    return difference_interval(sample.values, sample.clusters, level)


def average_of_tasks(
    samples: Sequence[Sample],
    differences: bool = False,
    level: float = LEVEL,
    weights: Sequence[float] | None = None,
) -> Interval:
    """Mean of the tasks' means with its interval; the tasks weigh equally, or as `weights` say.

    The samples hold scores, or with `differences` paired differences (see `pair`). Documents
    that occur in several tasks tie these together; the variance is then multiplied by the
    ratio of the one with these ties to the one without. Raises ValueError for no tasks, and for
    weights that are not one positive number for each.
    """
    if not samples:
        raise ValueError("no tasks to average")
    if weights is not None and (
        len(weights) != len(samples) or not all(0 < w < math.inf for w in weights)
    ):
        raise ValueError(f"{len(samples)} tasks need as many positive weights, not {weights}")
    scale = DIFFERENCES if differences else SCORES
    return _interval(scale, [(s.values, s.clusters) for s in samples], weights, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order.

    To call significant what lies below 0.05 is then wrong about any of them in at most one of
    twenty such families of tests (Holm 1979).
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class _Stratum:
    """One task's values in [0, 1], by documents; `weight` is its share of the average."""

    weight: float
    mean: float
    documents: float
    """Effective number, G; 1 / sum of the squared shares."""
    residuals: dict[Hashable, float]
    """Per document, the sum of its values' distances from the mean, over the number of values."""
    square: float
    """Sum of the squared residuals: the variance of the mean, before corrections."""
    cube: float
    """Sum of the cubed residuals: the third moment of the mean."""
    leverage: float
    """Sum of squared residuals, each times a / (1 - a), for documents with the share a."""
    unlike: float
    """Effective number of documents whose value is not the common one; see `_alike`."""

    @property
    def binary(self) -> float:
        """Variance of binary values with this mean."""
        return self.mean * (1 - self.mean)


@dataclass(frozen=True)
class _Estimate:
    """What `_Estimate.ends` needs to know of a mean in [0, 1]."""

    mean: float
    unit: float
    """1 / effective n."""
    slope: float
    """Excess of the variance's slope over that of binary values, in the same unit."""
    freedom: float
    """Degrees of freedom of the variance."""

    def variance(self, value: float) -> float:
        """Variance of the mean, were `value` the true one; never below 0."""
        towards = value - self.mean
        skew = max(0.0, self.slope * towards)
        return self.unit * (max(0.0, value * (1 - value)) + skew + self.unit / 4)

    def ends(self, level: float) -> tuple[float, float]:
        """Every true mean that is not rejected at `level`, cut to [0, 1]."""
        t = _t_from_z(NormalDist().inv_cdf((1 + level) / 2), self.freedom)
        q = t * t * self.unit
        c = q * (self.mean * (1 - self.mean) + self.unit / 4)
        found = []
        for side in (-1, 1):
            slope = self.slope if self.slope * side > 0 else 0.0
            b = q * (1 - 2 * self.mean + slope)
            distance = (b + side * math.sqrt(b * b + 4 * (1 + q) * c)) / (2 * (1 + q))
            found.append(min(1.0, max(0.0, self.mean + distance)))
        return found[0], found[1]

    def p(self, value: float) -> float:
        """1 minus the highest level at which `value` is outside."""
        t = abs(self.mean - value) / math.sqrt(self.variance(value))
        return 2 * NormalDist().cdf(-_z_from_t(t, self.freedom))


def _interval(
    scale: Scale,
    samples: Sequence[tuple[Sequence[float], Sequence[Hashable] | None]],
    weights: Sequence[float] | None,
    level: float,
) -> Interval:
    """The rule of this module, for one sample or the average of several."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    relative = [1.0] * len(samples) if weights is None else list(weights)
    strata = [
        _stratum(scale, values, clusters, weight / sum(relative))
        for (values, clusters), weight in zip(samples, relative, strict=True)
    ]
    estimate, tie = _estimate(strata)
    low, high = estimate.ends(level)
    mean = sum(
        s.weight * math.fsum(values) / len(values)
        for s, (values, _) in zip(strata, samples, strict=True)
    )
    n = sum(len(values) for values, _ in samples)
    method = f"Wilson's rule with an effective n of {1 / estimate.unit:,.1f} for {n:,}"
    if estimate.freedom < 1000:
        method += f", t with {estimate.freedom:.1f} degrees of freedom"
    if len(samples) > 1:
        method += f", stratified by {len(samples)} tasks"
    if tie > 1:
        method += f", variance times {tie:.2f} for documents shared between tasks"
    return Interval(
        mean=mean,
        low=min(mean, max(scale.least, scale.least + scale.span * low)),
        high=max(mean, min(scale.most, scale.least + scale.span * high)),
        n=n,
        clusters=len({c for s in strata for c in s.residuals})
        if all(clusters is not None for _, clusters in samples)
        else n,
        method=method,
        p=estimate.p(0.5) if scale is DIFFERENCES else None,
    )


def _stratum(
    scale: Scale, values: Sequence[float], clusters: Sequence[Hashable] | None, weight: float
) -> _Stratum:
    """Checks one sample and forms its moments by documents."""
    n = len(values)
    if n == 0:
        raise ValueError("no values: a mean needs at least one")
    if clusters is not None and len(clusters) != n:
        raise ValueError(f"{n} values but {len(clusters)} clusters")
    x = np.asarray(values, dtype=np.float64)
    if not bool(np.all((x >= scale.least) & (x <= scale.most))):
        raise ValueError(f"values must lie in [{scale.least:g}, {scale.most:g}]")
    x = (x - scale.least) / scale.span
    numbers: dict[Hashable, int] = {}
    index = np.asarray(
        [numbers.setdefault(c, len(numbers)) for c in (range(n) if clusters is None else clusters)]
    )
    sums = np.bincount(index, weights=x)
    sizes = np.bincount(index).astype(np.float64)
    share = sizes / n
    mean = float(x.mean())
    residual = (sums - mean * sizes) / n
    squares = residual * residual
    documents = 1 / float(share @ share)
    one_document = len(numbers) == 1
    return _Stratum(
        weight=weight,
        mean=mean,
        documents=documents,
        residuals=dict(zip(numbers, residual.tolist(), strict=True)),
        square=float(squares.sum()),
        cube=float((squares * residual).sum()),
        leverage=0.0 if one_document else float(squares @ (share / (1 - share))),
        unlike=documents * (1 - math.sqrt(_alike(sums / sizes, share, _ALIKE / scale.span))),
    )


def _alike(values: Floats, share: Floats, width: float) -> float:
    """How alike two documents drawn at random are, in [0, 1].

    A pair counts 1 at distance 0, falling in a straight line to 0 at `width`. With k of n
    documents apart from the others, which agree, it is about (1 - k / n)^2.
    """
    if len(values) == 1:
        return 1.0
    order = np.argsort(values, kind="stable")
    values, share = values[order], share[order]
    shares = np.concatenate(([0.0], np.cumsum(share)))
    moments = np.concatenate(([0.0], np.cumsum(share * values)))
    first = np.arange(1, len(values) + 1)
    last = np.maximum(first, np.searchsorted(values, values + width))
    above = (shares[last] - shares[first]) * (1 + values / width)
    above -= (moments[last] - moments[first]) / width
    found = 2 * float(share @ above) / (1 - float(share @ share))
    return min(1.0, max(0.0, found))


def _estimate(strata: Sequence[_Stratum]) -> tuple[_Estimate, float]:
    """The weighted mean of `strata`, and by how much documents shared among them widen it."""
    mean = min(1.0, max(0.0, sum(s.weight * s.mean for s in strata)))
    # While all values agree, in all strata, the sample shows no spread at all.
    same = math.exp(-(sum(s.unlike for s in strata) ** 2) / 2)
    # Near an end the strata's variances and the pooled one vanish together; what is added to both
    # keeps their ratio finite and smooth.
    ends = _END_MASS / sum(s.documents for s in strata)
    pooled = mean * (1 - mean) + ends
    concentration = sum(s.weight**2 for s in strata)
    units, squares, cubes, priors, freedoms = [], [], [], [], []
    for s in strata:
        prior = _prior(s, same)
        dispersion = (s.documents**2 * s.square + prior) / (s.documents * s.binary + prior)
        if s.documents < 1 + 1e-9:
            dispersion = 1.0  # one document shows no spread: the largest is assumed
        widened = _widened(s, dispersion, prior)
        mixed = s.documents * (s.binary + ends) + _POOLED * pooled
        ratio = mixed / (s.documents + _POOLED - 1 + concentration) / pooled
        units.append(s.weight**2 * widened * ratio / s.documents)
        known = widened >= 1  # as large as can be: nothing about it was estimated
        freedoms.append(_KNOWN if known else (s.documents - 1) / (1 - widened))
        squares.append(s.weight**2 * s.square)
        priors.append(s.weight**2 * prior / s.documents**2)
        # Small samples show too little of their skewness, where it is estimated.
        third = s.cube * (1 + max(0.0, 1 - dispersion) * 2 / max(s.documents - 2, 1.0))
        third += prior / s.documents**3 * dispersion * (1 - 2 * s.mean)
        cubes.append(s.weight**3 * third)
    unit = sum(units)
    freedom = unit**2 / sum(u * u / f for u, f in zip(units, freedoms, strict=True))
    slope = sum(cubes) / (sum(squares) + sum(priors)) / unit - (1 - 2 * mean)
    tie = _tie_between_strata(strata, sum(squares), sum(priors))
    return _Estimate(mean, unit * tie, slope, freedom / tie), tie


def _prior(stratum: _Stratum, same: float) -> float:
    """P of the rule: variance, in units of one binary document, that a sample may not show.

    While all documents agree (`same` near 1), that of one more document that is right or wrong:
    whoever saw 20 equal scores has not seen that there are no others. At an end of the scale,
    where the expected number of right (or wrong) documents is small, the spread that is seen
    says as little. Fades with every document that differs. A stratum has its share of it.
    """
    near_end = math.exp(-stratum.documents * stratum.binary) * (1 - 2 * stratum.mean) ** 2
    prior = same * stratum.binary + (_END_MASS * same + _END_MASS_ALWAYS) * near_end
    return stratum.weight * prior


def _widened(stratum: _Stratum, dispersion: float, prior: float) -> float:
    """The dispersion with the correction for a mean that was itself estimated.

    For single documents of one size the variance grows by n / (n - 1), as always, but never
    beyond that of binary values; where the dispersion is 1 it is known and not estimated.
    """
    if dispersion >= 1 or dispersion == 0:
        return dispersion
    of_prior = prior / stratum.documents**2
    leverage = stratum.leverage + of_prior / (stratum.documents - 1)
    return min(1.0, dispersion * (1 + (1 - dispersion) * leverage / (stratum.square + of_prior)))


def _tie_between_strata(strata: Sequence[_Stratum], separate: float, prior: float) -> float:
    """Variance of the average with shared documents over that without; 1 or more."""
    joint: dict[Hashable, float] = {}
    occurrences = 0
    for s in strata:
        occurrences += len(s.residuals)
        for cluster, residual in s.residuals.items():
            joint[cluster] = joint.get(cluster, 0.0) + s.weight * residual
    if occurrences == len(joint):
        return 1.0
    together = sum(v * v for v in joint.values())
    # As if the unseen variance were that of documents which are alike in all of their strata.
    prior = max(prior, 1e-12)
    return max(1.0, (together + prior * occurrences / len(joint)) / (separate + prior))


def _t_from_z(z: float, freedom: float) -> float:
    """Student's quantile at the normal quantile `z` (Wallace 1959).

    Wallace's transformation can be inverted in closed form and takes any positive degrees of
    freedom; at 95 % it is within 0.5 % of Student's t for 4 and more, and wider for fewer.
    """
    scaled = z * (8 * freedom + 3) / (8 * freedom + 1)
    exponent = min(scaled * scaled / freedom, _LARGEST_EXPONENT)
    return math.copysign(math.sqrt(freedom * math.expm1(exponent)), z)


def _z_from_t(t: float, freedom: float) -> float:
    """The inverse of `_t_from_z`."""
    exponent = math.log1p(t * t / freedom)
    return math.copysign(math.sqrt(freedom * exponent) * (8 * freedom + 1) / (8 * freedom + 3), t)
