"""The rule of every interval: a mean in [0, 1] from documents, in one or several strata.

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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

_SIMILAR = 0.05  # values nearer than this count partly as one value
_END_MASS = 0.2  # weight of the prior at an end of the scale, while all values are the same
_END_MASS_ALWAYS = 0.02  # the same, for values that differ
_LEAST_PRIOR = 1e-12  # keeps quotients defined where a stratum has no spread at all
_POOLED = 2.0  # documents' worth of the pooled variance that is mixed into each task's
_KNOWN = 1e9  # degrees of freedom of a variance that is not estimated
_LARGEST_EXPONENT = 50.0  # keeps t finite with next to no degrees of freedom

Floats = npt.NDArray[np.float64]


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
class Stratum:
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
    """Effective number of documents whose value is not the common one; see `_similarity`."""

    @property
    def binary(self) -> float:
        """Variance of binary values with this mean."""
        return self.mean * (1 - self.mean)


@dataclass(frozen=True)
class Estimate:
    """What `Estimate.ends` needs to know of a mean in [0, 1]."""

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
        t = t_from_z(NormalDist().inv_cdf((1 + level) / 2), self.freedom)
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
        return 2 * NormalDist().cdf(-z_from_t(t, self.freedom))


def stratum_of(
    scale: Scale, values: Sequence[float], clusters: Sequence[Hashable] | None, weight: float
) -> Stratum:
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
    return Stratum(
        weight=weight,
        mean=mean,
        documents=documents,
        residuals=dict(zip(numbers, residual.tolist(), strict=True)),
        square=float(squares.sum()),
        cube=float((squares * residual).sum()),
        leverage=0.0 if one_document else float(squares @ (share / (1 - share))),
        unlike=documents * (1 - math.sqrt(_similarity(sums / sizes, share, _SIMILAR / scale.span))),
    )


def _similarity(values: Floats, share: Floats, width: float) -> float:
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


def estimate_of(strata: Sequence[Stratum]) -> tuple[Estimate, float]:
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
    return Estimate(mean, unit * tie, slope, freedom / tie), tie


def _prior(stratum: Stratum, same: float) -> float:
    """P of the rule: variance, in units of one binary document, that a sample may not show.

    While all documents agree (`same` near 1), that of one more document that is right or wrong:
    whoever saw 20 equal scores has not seen that there are no others. At an end of the scale,
    where the expected number of right (or wrong) documents is small, the spread that is seen
    says as little. Fades with every document that differs. A stratum has its share of it.
    """
    near_end = math.exp(-stratum.documents * stratum.binary) * (1 - 2 * stratum.mean) ** 2
    prior = same * stratum.binary + (_END_MASS * same + _END_MASS_ALWAYS) * near_end
    return stratum.weight * max(prior, _LEAST_PRIOR)


def _widened(stratum: Stratum, dispersion: float, prior: float) -> float:
    """The dispersion with the correction for a mean that was itself estimated.

    For single documents of one size the variance grows by n / (n - 1), as always, but never
    beyond that of binary values; where the dispersion is 1 it is known and not estimated.
    """
    if dispersion >= 1:
        return dispersion
    of_prior = prior / stratum.documents**2
    leverage = stratum.leverage + of_prior / (stratum.documents - 1)
    return min(1.0, dispersion * (1 + (1 - dispersion) * leverage / (stratum.square + of_prior)))


def _tie_between_strata(strata: Sequence[Stratum], separate: float, prior: float) -> float:
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
    return max(1.0, (together + prior * occurrences / len(joint)) / (separate + prior))


def t_from_z(z: float, freedom: float) -> float:
    """Student's quantile at the normal quantile `z` (Wallace 1959).

    Wallace's transformation can be inverted in closed form and takes any positive degrees of
    freedom; at 95 % it is within 0.5 % of Student's t for 4 and more, and wider for fewer.
    """
    scaled = z * (8 * freedom + 3) / (8 * freedom + 1)
    exponent = min(scaled * scaled / freedom, _LARGEST_EXPONENT)
    return math.copysign(math.sqrt(freedom * math.expm1(exponent)), z)


def z_from_t(t: float, freedom: float) -> float:
    """The inverse of `t_from_z`."""
    exponent = math.log1p(t * t / freedom)
    return math.copysign(math.sqrt(freedom * exponent) * (8 * freedom + 1) / (8 * freedom + 3), t)
